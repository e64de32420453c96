//! When a registration of TimerReader is due: pure arithmetic over times that are given.
//!
//! Intervals go by the monotonic clock from the moment when the registration became active; cron expressions by the time
//! of day. A moment that was missed is never made up for.

use std::time::Duration;

use oxigears_coordinator::{cron::Cron, registry::Schedule};

/// A cron moment counts as missed when it is noticed so late: the clock jumped, or the process stood still.
const LATE_MOST_MS: i64 = 10_000;
/// The time of day is looked at so often, because it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A clock that is set back by more is taken at its word; by less, no moment comes a second time.
const BACK_MOST_MS: i64 = 3 * 3600 * 1000;

/// Two clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Time since the ticker was made, monotonic.
    pub elapsed: Duration,
    /// Milliseconds since 1970, as the time of day says.
    pub wall_ms: i64,
}

/// What a look at the clock says.
#[derive(Debug, PartialEq, Eq)]
pub enum Tick {
    /// Nothing is due.
    Nothing,
    /// This moment is due (milliseconds since 1970).
    Fire(i64),
    /// This moment has been missed.
    Missed(i64),
}

/// The moments of one registration.
#[derive(Debug)]
pub enum Ticker {
    /// At multiples of a period.
    Every {
        /// The period.
        period: Duration,
        /// The next moment.
        next: Duration,
    },
    /// At minutes of the time of day.
    Cron {
        /// The expression.
        cron: Cron,
        /// The next moment; `None`: there is none any more.
        next_ms: Option<i64>,
        /// The last moment that has come.
        over_ms: Option<i64>,
        /// The time of day that was seen last.
        seen_ms: i64,
    },
}

impl Ticker {
    /// Begins; the first moment is behind `now`.
    pub fn new(schedule: &Schedule, now: Now) -> Result<Ticker, String> {
        Ok(match schedule {
            Schedule::Every { ms } => {
                let period = Duration::from_millis((*ms).max(1));
                let next = now.elapsed.checked_add(period).ok_or("the interval is too long")?;
                Ticker::Every { period, next }
            }
            Schedule::Cron { expression } => {
                let cron = Cron::parse(expression).map_err(|e| e.to_string())?;
                let next_ms = cron.next_after(now.wall_ms);
                Ticker::Cron {
                    cron,
                    next_ms,
                    over_ms: None,
                    seen_ms: now.wall_ms,
                }
            }
        })
    }

    /// Looks at the clocks, and goes on to the next moment if one is due.
    pub fn tick(&mut self, now: Now) -> Tick {
        match self {
            Ticker::Every { period, next } => {
                let Some(late) = now.elapsed.checked_sub(*next) else {
                    return Tick::Nothing;
                };
                let late_ms = i64::try_from(late.as_millis()).unwrap_or(i64::MAX);
                // The last moment that has come counts; those before it were missed.
                let missed = u32::try_from(late.as_nanos() / period.as_nanos()).unwrap_or(u32::MAX);
                *next = next
                    .checked_add(period.saturating_mul(missed).saturating_add(*period))
                    .unwrap_or(Duration::MAX);
                let late_ms = late_ms - i64::try_from((*period * missed).as_millis()).unwrap_or(0);
                Tick::Fire(now.wall_ms.saturating_sub(late_ms))
            }
            Ticker::Cron {
                cron,
                next_ms,
                over_ms,
                seen_ms,
            } => {
                if now.wall_ms < *seen_ms {
                    // Set back: what has come does not come again, unless it was set back far; what has not come does.
                    *over_ms = over_ms.filter(|over| over.saturating_sub(now.wall_ms) <= BACK_MOST_MS);
                    *next_ms = cron.next_after(over_ms.unwrap_or(now.wall_ms).max(now.wall_ms));
                }
                *seen_ms = now.wall_ms;
                let Some(moment) = *next_ms else { return Tick::Nothing };
                let late = now.wall_ms.saturating_sub(moment);
                if late >= 0 {
                    *next_ms = cron.next_after(now.wall_ms);
                    if late > LATE_MOST_MS {
                        return Tick::Missed(moment);
                    }
                    *over_ms = Some(moment);
                    return Tick::Fire(moment);
                }
                Tick::Nothing
            }
        }
    }

    /// How long to sleep before the next look; `None`: nothing will come.
    pub fn pause(&self, now: Now) -> Option<Duration> {
        match self {
            Ticker::Every { next, .. } => Some(next.saturating_sub(now.elapsed)),
            Ticker::Cron { next_ms, .. } => {
                let left = (*next_ms)?.saturating_sub(now.wall_ms).max(0);
                Some(Duration::from_millis(left.unsigned_abs()).min(LOOK_EVERY))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_795_780_800_000; // 2026-11-27 12:00 UTC

    fn at(elapsed_ms: u64, wall_ms: i64) -> Now {
        Now {
            elapsed: Duration::from_millis(elapsed_ms),
            wall_ms,
        }
    }

    fn every(ms: u64) -> Ticker {
        Ticker::new(&Schedule::Every { ms }, at(500, NOON)).unwrap()
    }

    fn cron(expression: &str, now: Now) -> Ticker {
        let expression = expression.to_owned();
        Ticker::new(&Schedule::Cron { expression }, now).unwrap()
    }

    #[test]
    fn intervals_keep_their_rhythm_and_skip_what_was_missed() {
        let mut ticker = every(1000);
        assert_eq!(ticker.pause(at(500, NOON)), Some(Duration::from_millis(1000)));
        assert_eq!(ticker.tick(at(1499, NOON + 999)), Tick::Nothing);
        // A little late: the moment is the one that was due, and the next one is not later for it.
        assert_eq!(ticker.tick(at(1510, NOON + 1010)), Tick::Fire(NOON + 1000));
        assert_eq!(ticker.pause(at(1510, NOON + 1010)), Some(Duration::from_millis(990)));
        // Three and a half periods late: one firing, for the last of them.
        assert_eq!(ticker.tick(at(6000, NOON + 5500)), Tick::Fire(NOON + 5000));
        assert_eq!(ticker.tick(at(6000, NOON + 5500)), Tick::Nothing);
        assert_eq!(ticker.pause(at(6000, NOON + 5500)), Some(Duration::from_millis(500)));
    }

    #[test]
    fn intervals_do_not_care_about_the_time_of_day() {
        let mut ticker = every(1000);
        let hour = 3_600_000;
        assert_eq!(ticker.tick(at(1400, NOON + hour)), Tick::Nothing);
        assert_eq!(ticker.tick(at(1500, NOON - hour)), Tick::Fire(NOON - hour));
    }

    #[test]
    fn cron_goes_by_the_time_of_day() {
        let mut ticker = cron("*/5 * * * *", at(0, NOON));
        assert_eq!(ticker.pause(at(0, NOON)), Some(LOOK_EVERY));
        assert_eq!(ticker.pause(at(0, NOON + 299_800)), Some(Duration::from_millis(200)));
        assert_eq!(ticker.tick(at(0, NOON + 299_999)), Tick::Nothing);
        assert_eq!(ticker.tick(at(0, NOON + 300_004)), Tick::Fire(NOON + 300_000));
        assert_eq!(ticker.tick(at(0, NOON + 300_005)), Tick::Nothing);
        assert_eq!(ticker.tick(at(0, NOON + 600_000)), Tick::Fire(NOON + 600_000));
    }

    #[test]
    fn a_clock_that_jumps_makes_no_storm() {
        let mut ticker = cron("* * * * *", at(0, NOON));
        // Forward by an hour: one moment is missed, none is made up for.
        let later = NOON + 3_630_000;
        assert_eq!(ticker.tick(at(10, later)), Tick::Missed(NOON + 60_000));
        assert_eq!(ticker.tick(at(11, later)), Tick::Nothing);
        assert_eq!(ticker.tick(at(12, NOON + 3_660_000)), Tick::Fire(NOON + 3_660_000));
        // Back by an hour: nothing comes twice.
        assert_eq!(ticker.tick(at(13, NOON + 120_000)), Tick::Nothing);
        assert_eq!(ticker.tick(at(14, NOON + 3_720_000)), Tick::Fire(NOON + 3_720_000));
        // Back by a day: it was wrong before.
        let back = NOON - 86_400_000;
        assert_eq!(ticker.tick(at(15, back)), Tick::Nothing);
        assert_eq!(ticker.tick(at(16, back + 60_000)), Tick::Fire(back + 60_000));
    }

    #[test]
    fn what_has_not_come_comes_after_the_clock_was_set_right() {
        let hour = 3_600_000;
        // It was two hours fast when the registration became active.
        let mut ticker = cron("* * * * *", at(0, NOON + 2 * hour));
        assert_eq!(ticker.tick(at(1, NOON + 1000)), Tick::Nothing);
        assert_eq!(ticker.tick(at(2, NOON + 60_000)), Tick::Fire(NOON + 60_000));
        // The same after it has fired: not before the last moment that has.
        assert_eq!(ticker.tick(at(3, NOON + 30_000)), Tick::Nothing);
        assert_eq!(ticker.tick(at(4, NOON + 60_500)), Tick::Nothing);
        assert_eq!(ticker.tick(at(5, NOON + 120_000)), Tick::Fire(NOON + 120_000));
    }

    #[test]
    fn a_clock_that_is_fast_for_a_moment_changes_nothing() {
        let hour = 3_600_000;
        let mut ticker = cron("* * * * *", at(0, NOON));
        assert_eq!(ticker.tick(at(1, NOON + 60_000)), Tick::Fire(NOON + 60_000));
        assert_eq!(ticker.tick(at(2, NOON + 2 * hour)), Tick::Missed(NOON + 120_000));
        assert_eq!(ticker.tick(at(3, NOON + 70_000)), Tick::Nothing);
        assert_eq!(ticker.tick(at(4, NOON + 120_000)), Tick::Fire(NOON + 120_000));
        // No moment comes twice, if it was late, too.
        assert_eq!(ticker.tick(at(5, NOON + 189_000)), Tick::Fire(NOON + 180_000));
        assert_eq!(ticker.tick(at(6, NOON + 170_000)), Tick::Nothing);
        assert_eq!(ticker.tick(at(7, NOON + 185_000)), Tick::Nothing);
        assert_eq!(ticker.tick(at(8, NOON + 240_000)), Tick::Fire(NOON + 240_000));
    }

    #[test]
    fn a_moment_far_from_the_next_one_comes_once_too() {
        let day = 86_400_000;
        let mut ticker = cron("0 12 * * *", at(0, NOON - 1000));
        assert_eq!(ticker.tick(at(1, NOON + 500)), Tick::Fire(NOON));
        for (elapsed, wall) in [
            (2, NOON - 1500),
            (3, NOON + 100),
            (4, NOON - 7_200_000),
            (5, NOON + 100),
        ] {
            assert_eq!(ticker.tick(at(elapsed, wall)), Tick::Nothing);
        }
        // Step by step it goes back far as well.
        assert_eq!(ticker.tick(at(6, NOON - 3 * 3_600_000 - 1000)), Tick::Nothing);
        assert_eq!(ticker.tick(at(7, NOON)), Tick::Fire(NOON));
        assert_eq!(ticker.tick(at(8, NOON + day)), Tick::Fire(NOON + day));
    }
}
