//! The rhythm of keyspace readers: short holds of the server lock with real pauses between them.
//!
//! The lock is unfair: a reader that only yields gets it back before the main thread wakes up, and clients wait for
//! hundreds of milliseconds. A sleep, however short, lets the server in.

use std::time::{Duration, Instant};

use crate::redis::lock::{self, ServerLock};

/// Longest hold of the lock, but for the last key read in it.
pub const SLICE: Duration = Duration::from_micros(500);
/// The clock is looked at once in so many keys or elements.
pub const CLOCK_EVERY: u32 = 16;
/// Shortest time between two holds; the system's timer adds about 50 us.
const PAUSE: Duration = Duration::from_micros(50);
/// Time in slices after which a batch is handed on however small it is.
const BATCH_TIME: Duration = Duration::from_millis(5);

/// Takes the lock for slices.
#[derive(Default)]
pub struct Slices {
    last: Option<Instant>,
    in_batch: Duration,
    writes: bool,
}

/// The end of one slice.
pub struct Deadline {
    end: Instant,
    ticks: u32,
}

impl Deadline {
    /// The end of a slice of this length.
    pub fn after(length: Duration) -> Deadline {
        Deadline {
            end: Instant::now() + length,
            ticks: 0,
        }
    }

    /// The slice is over. Cheap: mostly it only counts.
    pub fn is_over(&mut self) -> bool {
        self.ticks += 1;
        self.ticks.is_multiple_of(CLOCK_EVERY) && self.is_over_now()
    }

    /// The same for those who ask seldom: looks at the clock each time.
    pub fn is_over_now(&self) -> bool {
        Instant::now() >= self.end
    }
}

impl Slices {
    /// Slices in which there may be writes.
    pub fn to_write() -> Slices {
        Slices {
            writes: true,
            ..Slices::default()
        }
    }

    /// Begins a batch.
    pub fn begin_batch(&mut self) {
        self.in_batch = Duration::ZERO;
    }

    /// The batch has taken long enough.
    pub fn batch_is_late(&self) -> bool {
        self.in_batch >= BATCH_TIME
    }

    /// Runs `work` under the lock, after a pause if the last slice was a moment ago.
    pub fn run<T>(&mut self, work: impl FnOnce(&ServerLock, &mut Deadline) -> T) -> T {
        if let Some(last) = self.last
            && last.elapsed() < PAUSE
            && !lock::is_held()
        {
            std::thread::sleep(PAUSE);
        }
        let guard = if self.writes {
            lock::lock_to_write()
        } else {
            lock::lock()
        };
        let start = Instant::now();
        let mut deadline = Deadline::after(SLICE);
        let outcome = work(&guard, &mut deadline);
        drop(guard);
        let end = Instant::now();
        self.in_batch += end - start;
        self.last = Some(end);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_looked_at_now_and_then() {
        let mut over = Deadline {
            end: Instant::now(),
            ticks: 0,
        };
        let looks = (0..CLOCK_EVERY * 3).filter(|_| over.is_over()).count();
        assert_eq!(looks, 3);
    }
}
