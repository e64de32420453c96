//! Whether this server may trust what it knows of its cluster: not right after it stood still.
//!
//! While a process is stopped, its machine sleeps or one command takes seconds, the others may put a replica in its place.
//! It learns of that only when its main thread reads what they have sent. So the main thread's pulse is watched: the
//! server's cron beats ten times a second, at least once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{registered::now_since, ticker::Now};
use crate::redis::lock::ServerLock;

/// Beats that are further apart: it stood still. An election takes longer from a node timeout of a second on, and `hz 1`
/// keeps below.
const STILL_FROM: Duration = Duration::from_millis(1500);
/// What was sent meanwhile is read so soon after.
const CATCH_UP: Duration = Duration::from_secs(1);

static PULSE: Mutex<Option<(Instant, Pulse)>> = Mutex::new(None);

/// On the main thread, in each turn of the server's cron.
pub fn beat(_: &ServerLock) {
    let mut pulse = PULSE.lock();
    let (start, pulse) = pulse.get_or_insert_with(|| {
        let start = Instant::now();
        (start, Pulse::new(now_since(start)))
    });
    pulse.beat(now_since(*start));
}

/// It has not stood still lately. Holds for who has the server lock: nothing is read while it waits for that.
pub fn is_steady(_: &ServerLock) -> bool {
    let pulse = PULSE.lock();
    pulse
        .as_ref()
        .is_some_and(|(start, pulse)| pulse.is_steady(now_since(*start)))
}

struct Pulse {
    last: Now,
    /// It has not stood still since.
    steady_since: Now,
}

impl Pulse {
    fn new(now: Now) -> Pulse {
        Pulse {
            last: now,
            steady_since: now,
        }
    }

    fn beat(&mut self, now: Now) {
        if between(self.last, now) > STILL_FROM {
            self.steady_since = now;
        }
        self.last = now;
    }

    fn is_steady(&self, now: Now) -> bool {
        between(self.last, now) <= STILL_FROM && between(self.steady_since, now) >= CATCH_UP
    }
}

/// The time between, by the clock that has gone further: the monotonic one rests while the machine sleeps.
fn between(from: Now, to: Now) -> Duration {
    let wall_ms = to.wall_ms.saturating_sub(from.wall_ms).max(0).unsigned_abs();
    Duration::from_millis(wall_ms).max(to.elapsed.saturating_sub(from.elapsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        slept(ms, 0)
    }

    /// The machine has slept for so long: the monotonic clock does not show it.
    fn slept(ms: u64, asleep_ms: i64) -> Now {
        Now {
            elapsed: Duration::from_millis(ms),
            wall_ms: 1_795_780_800_000 + i64::try_from(ms).unwrap() + asleep_ms,
        }
    }

    /// Has beaten for two seconds.
    fn steady() -> Pulse {
        let mut pulse = Pulse::new(at(0));
        (0..=20).for_each(|n| pulse.beat(at(n * 100)));
        assert!(pulse.is_steady(at(2000)));
        pulse
    }

    #[test]
    fn a_process_that_has_just_begun_is_not_steady() {
        let mut pulse = Pulse::new(at(0));
        pulse.beat(at(500));
        assert!(!pulse.is_steady(at(900)));
        assert!(pulse.is_steady(at(1000)));
    }

    #[test]
    fn a_beat_that_is_missing_shows_before_the_next_one_comes() {
        let mut pulse = steady();
        assert!(pulse.is_steady(at(3500)));
        assert!(!pulse.is_steady(at(3600)));
        // After it the server catches up.
        pulse.beat(at(6000));
        assert!(!pulse.is_steady(at(6000)) && !pulse.is_steady(at(6900)));
        pulse.beat(at(6900));
        assert!(pulse.is_steady(at(7000)));
    }

    #[test]
    fn one_beat_a_second_is_enough() {
        let mut pulse = steady();
        for n in 3..9 {
            pulse.beat(at(n * 1000 + 50 * (n % 2)));
            assert!(pulse.is_steady(at(n * 1000 + 900)));
        }
    }

    #[test]
    fn a_machine_that_sleeps_stands_still() {
        let mut pulse = steady();
        assert!(!pulse.is_steady(slept(2100, 60_000)));
        pulse.beat(slept(2100, 60_000));
        assert!(!pulse.is_steady(slept(3000, 60_000)));
        // A clock that is set back is none.
        let mut pulse = steady();
        pulse.beat(slept(2100, -3_600_000));
        assert!(pulse.is_steady(slept(2200, -3_600_000)));
    }
}
