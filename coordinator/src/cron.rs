//! Cron expressions: reading them, and the next moment that one names. Pure; all in UTC.
//!
//! Five fields: minute, hour, day of month, month, day of week. A field is a list of `*`, numbers, ranges `a-b`, each
//! with a step `/n` behind `*` or a range. Months and days of the week also have names of three letters; Sunday is 0
//! and 7. As in every cron: if both day fields are restricted (neither begins with `*`), a day that is in one of them
//! is enough; else it must be in both.

use thiserror::Error;

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum CronError {
    #[error(
        "a cron expression has five fields (minute, hour, day of month, month, day of week), `{expression}` has {count}"
    )]
    Fields { expression: String, count: usize },
    #[error("the cron field `{text}` ({field}) is not valid: {why}")]
    Field {
        field: &'static str,
        text: String,
        why: String,
    },
    #[error("the cron expression `{0}` never comes: there is no such day")]
    Never(String),
    #[error("the cron expression is longer than {CRON_BYTES} bytes")]
    TooLong,
}

/// Longest expression.
pub const CRON_BYTES: usize = 256;
/// Every rhythm of leap years and days of the week repeats within these days (28 years, and a century without a leap
/// year in between).
const HORIZON_DAYS: i64 = 366 * 41;
const MINUTE_MS: i64 = 60_000;
const DAY_MINUTES: i64 = 24 * 60;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// One field: its name, its least and greatest number, names for numbers from the least one on.
struct Field {
    name: &'static str,
    least: u8,
    most: u8,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        name: "minute",
        least: 0,
        most: 59,
        names: &[],
    },
    Field {
        name: "hour",
        least: 0,
        most: 23,
        names: &[],
    },
    Field {
        name: "day of month",
        least: 1,
        most: 31,
        names: &[],
    },
    Field {
        name: "month",
        least: 1,
        most: 12,
        names: &MONTHS,
    },
    Field {
        name: "day of week",
        least: 0,
        most: 7,
        names: &DAYS,
    },
];

/// A cron expression that was read: one bit for each number of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both day fields are restricted: one of them is enough.
    either_day: bool,
}

impl Cron {
    /// Reads an expression; one that never comes is refused.
    pub fn parse(expression: &str) -> Result<Cron, CronError> {
        if expression.len() > CRON_BYTES {
            return Err(CronError::TooLong);
        }
        let words: Vec<&str> = expression.split_ascii_whitespace().collect();
        let Ok(words) = <[&str; 5]>::try_from(words.as_slice()) else {
            return Err(CronError::Fields {
                expression: expression.to_owned(),
                count: words.len(),
            });
        };
        let mut bits = [0u64; 5];
        for ((bits, word), field) in bits.iter_mut().zip(words).zip(&FIELDS) {
            *bits = field.read(word)?;
        }
        let [minutes, hours, days, months, weekdays] = bits;
        let cron = Cron {
            minutes,
            hours,
            days,
            months,
            // Sunday is 0 here.
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            either_day: !words[2].starts_with('*') && !words[4].starts_with('*'),
        };
        match cron.next_after(0) {
            Some(_) => Ok(cron),
            None => Err(CronError::Never(expression.to_owned())),
        }
    }

    /// The first moment behind `ms` (milliseconds since 1970, UTC).
    pub fn next_after(&self, ms: i64) -> Option<i64> {
        let minute = ms.div_euclid(MINUTE_MS).checked_add(1)?;
        let (first_day, first_minute) = (minute.div_euclid(DAY_MINUTES), minute.rem_euclid(DAY_MINUTES));
        for day in first_day..first_day.checked_add(HORIZON_DAYS)? {
            if !self.has_day(day) {
                continue;
            }
            let from = if day == first_day { first_minute } else { 0 };
            if let Some(minute) = self.minute_of_day(from) {
                return day
                    .checked_mul(DAY_MINUTES)?
                    .checked_add(minute)?
                    .checked_mul(MINUTE_MS);
            }
        }
        None
    }

    /// The first minute of a day from this one on.
    fn minute_of_day(&self, from: i64) -> Option<i64> {
        let (first_hour, first_minute) = (from / 60, from % 60);
        (first_hour..24).filter(|&hour| has(self.hours, hour)).find_map(|hour| {
            let start = if hour == first_hour { first_minute } else { 0 };
            let minute = (start..60).find(|&minute| has(self.minutes, minute))?;
            Some(hour * 60 + minute)
        })
    }

    /// The day of this number since 1970 is named.
    fn has_day(&self, day: i64) -> bool {
        let (month, day_of_month) = month_and_day(day);
        // The first of January 1970 was a Thursday.
        let weekday = (day + 4).rem_euclid(7);
        let (by_date, by_week) = (has(self.days, day_of_month), has(self.weekdays, weekday));
        let by_day = if self.either_day {
            by_date || by_week
        } else {
            by_date && by_week
        };
        has(self.months, month) && by_day
    }
}

fn has(bits: u64, number: i64) -> bool {
    bits >> number & 1 == 1
}

/// Month (1 to 12) and day of month of the day with this number since 1970, in the Gregorian calendar. The year is taken
/// to begin in March, so that the leap day is its last one.
fn month_and_day(day: i64) -> (i64, i64) {
    // Days since the first of March of the year 0.
    let day = day + 719_468;
    let day_of_era = day.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (month, day_of_month)
}

impl Field {
    fn read(&self, text: &str) -> Result<u64, CronError> {
        let refused = |why: String| CronError::Field {
            field: self.name,
            text: text.to_owned(),
            why,
        };
        let mut bits = 0;
        for part in text.split(',') {
            bits |= self.part(part).map_err(refused)?;
        }
        Ok(bits)
    }

    fn part(&self, part: &str) -> Result<u64, String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (self.least, self.most),
            Some((first, last)) => (self.number(first)?, self.number(last)?),
            None if step.is_some() => {
                return Err(format!("a step stands behind `*` or a range, not behind `{range}`"));
            }
            None => {
                let number = self.number(range)?;
                (number, number)
            }
        };
        if first > last {
            return Err(format!("the range `{range}` ends before it begins"));
        }
        let step = match step {
            None => 1,
            Some(step) => digits(step)
                .filter(|&n| n > 0)
                .ok_or_else(|| format!("`{step}` is no step"))?,
        };
        Ok((first..=last)
            .step_by(usize::from(step))
            .fold(0, |bits, number| bits | 1 << number))
    }

    fn number(&self, text: &str) -> Result<u8, String> {
        let named = |name: &&str| name.eq_ignore_ascii_case(text);
        if let Some(at) = self.names.iter().position(named) {
            return Ok(self.least + at as u8);
        }
        digits(text)
            .filter(|n| (self.least..=self.most).contains(n))
            .ok_or_else(|| {
                format!(
                    "`{text}` is no number from {} to {}{}",
                    self.least,
                    self.most,
                    if self.names.is_empty() { "" } else { " and no name" }
                )
            })
    }
}

/// A number of digits alone.
fn digits(text: &str) -> Option<u8> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
