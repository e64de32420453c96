//! What RG.DUMPREGISTRATIONS counts of a registration on this shard.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use oxigears_coordinator::execution::Outcome;
use parking_lot::Mutex;

use super::padded::Padded;

/// How an execution ended.
pub enum End<'a> {
    /// Without an error.
    Success,
    /// With this error first.
    Failure(&'a str),
    /// It did not run, for this reason.
    Refused(&'a str),
    /// It did not run, or was stopped before it had results or errors.
    Aborted,
}

impl End<'_> {
    /// How one ended that began and gave this. `aborted`: it was ended before it was complete; an error counts all the same.
    pub fn of(outcome: &Outcome, aborted: bool) -> End<'_> {
        match outcome.errors.first() {
            Some(text) => End::Failure(text),
            None if aborted => End::Aborted,
            None => End::Success,
        }
    }
}

/// The numbers at one moment; they fit together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Requested.
    pub triggered: u64,
    /// Ended without error.
    pub success: u64,
    /// Ended with an error.
    pub failures: u64,
    /// Did not run.
    pub aborted: u64,
    last_ns: u64,
    total_ns: u64,
    /// Of the last batch of a stream, from the moment when its first entry came, to its end.
    pub last_lag_ms: u64,
    total_lag_ms: u64,
    /// Of the last failure, until a success; of what did not run, until a failure.
    pub last_error: Option<Arc<str>>,
    /// It is of something that did not run.
    is_refusal: bool,
}

impl Counts {
    fn finished(&self) -> u64 {
        self.success + self.failures + self.aborted
    }

    /// Whole milliseconds of the last one.
    pub fn last_ms(&self) -> u64 {
        self.last_ns / 1_000_000
    }

    /// Whole milliseconds of all.
    pub fn total_ms(&self) -> u64 {
        self.total_ns / 1_000_000
    }

    /// Milliseconds of one, on average.
    pub fn average_ms(&self) -> f64 {
        match self.finished() {
            0 => 0.0,
            n => self.total_ms() as f64 / n as f64,
        }
    }

    /// The lag of one batch, on average.
    pub fn average_lag_ms(&self) -> f64 {
        match self.finished() {
            0 => 0.0,
            n => self.total_lag_ms as f64 / n as f64,
        }
    }

    fn end(&mut self, end: &End<'_>, ns: u64) {
        self.last_ns = ns;
        self.total_ns = self.total_ns.saturating_add(ns);
        match end {
            End::Success => {
                self.success += 1;
                // What was lost must be seen, and the cause may succeed a moment later.
                if !self.is_refusal {
                    self.last_error = None;
                }
            }
            End::Failure(text) => {
                self.failures += 1;
                self.last_error = Some(Arc::from(*text));
                self.is_refusal = false;
            }
            End::Refused(text) => {
                self.aborted += 1;
                self.last_error = Some(Arc::from(*text));
                self.is_refusal = true;
            }
            End::Aborted => self.aborted += 1,
        }
    }
}

/// The counters of one registration. A lock of a few nanoseconds, so that the numbers of what is over always fit together.
#[derive(Debug, Default)]
pub struct Stats {
    /// Apart from the others: those who trigger run on another thread than those who end, and neither is to wait for
    /// the other's cache line.
    triggered: Padded<AtomicU64>,
    over: Padded<Mutex<Counts>>,
}

impl Stats {
    /// An execution is wanted.
    pub fn triggered(&self) {
        self.triggered.0.fetch_add(1, Ordering::AcqRel);
    }

    /// It is over, after so many nanoseconds of work.
    pub fn ended(&self, end: &End<'_>, ns: u64) {
        self.over.0.lock().end(end, ns);
    }

    /// The same for a batch of a stream, whose first entry came so many ms before.
    pub fn ended_with_lag(&self, end: &End<'_>, ns: u64, lag_ms: u64) {
        let mut counts = self.over.0.lock();
        counts.end(end, ns);
        counts.last_lag_ms = lag_ms;
        counts.total_lag_ms = counts.total_lag_ms.saturating_add(lag_ms);
    }

    /// None runs, for this reason.
    pub fn can_not_run(&self, why: &str) {
        self.over.0.lock().last_error = Some(Arc::from(why));
    }

    /// One that was wanted and run in one go.
    pub fn ran(&self, end: &End<'_>, ns: u64) {
        let mut counts = self.over.0.lock();
        self.triggered();
        counts.end(end, ns);
    }

    /// So many were wanted, and not run because one was under way or the moment had passed.
    pub fn skipped(&self, count: u64) {
        if count > 0 {
            let mut counts = self.over.0.lock();
            self.triggered.0.fetch_add(count, Ordering::AcqRel);
            counts.aborted += count;
        }
    }

    /// The numbers now. What is over was wanted before, so that is looked at last.
    pub fn counts(&self) -> Counts {
        let counts = self.over.0.lock();
        Counts {
            triggered: self.triggered.0.load(Ordering::Acquire),
            ..counts.clone()
        }
    }

    /// From zero again; what is under way stays counted as requested.
    pub fn clear(&self) {
        let mut counts = self.over.0.lock();
        self.triggered.0.fetch_sub(counts.finished(), Ordering::AcqRel);
        *counts = Counts::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_averages() {
        let stats = Stats::default();
        assert_eq!(stats.counts().average_ms(), 0.0);
        stats.triggered();
        stats.triggered();
        stats.ended(&End::Failure("no"), 20_000_000);
        assert_eq!(stats.counts().last_error.as_deref(), Some("no"));
        stats.ended(&End::Aborted, 0);
        assert_eq!(
            stats.counts().last_error.as_deref(),
            Some("no"),
            "only a success clears it"
        );
        stats.ran(&End::Success, 5_999_999);
        let counts = stats.counts();
        assert_eq!(
            (counts.triggered, counts.success, counts.failures, counts.aborted),
            (3, 1, 1, 1)
        );
        assert_eq!((counts.last_ms(), counts.total_ms()), (5, 25));
        assert_eq!(counts.average_ms(), 25.0 / 3.0);
        assert_eq!(counts.last_error, None);
    }

    #[test]
    fn what_was_lost_stays_visible() {
        let stats = Stats::default();
        stats.ran(&End::Refused("lost"), 0);
        stats.ran(&End::Success, 0);
        assert_eq!(stats.counts().last_error.as_deref(), Some("lost"));
        assert_eq!(stats.counts().aborted, 1);
        stats.ran(&End::Failure("no"), 0);
        stats.ran(&End::Success, 0);
        assert_eq!(stats.counts().last_error, None);
    }

    #[test]
    fn what_was_skipped_leaves_the_durations_alone() {
        let stats = Stats::default();
        stats.ran(&End::Success, 7_000_000);
        stats.skipped(2);
        let counts = stats.counts();
        assert_eq!((counts.triggered, counts.success, counts.aborted), (3, 1, 2));
        assert_eq!((counts.last_ms(), counts.total_ms()), (7, 7));
    }

    #[test]
    fn clearing_keeps_what_is_under_way() {
        let stats = Stats::default();
        for _ in 0..5 {
            stats.triggered();
        }
        stats.ended(&End::Success, 1);
        stats.ended(&End::Failure("x"), 1);
        stats.clear();
        assert_eq!(
            stats.counts(),
            Counts {
                triggered: 3,
                ..Counts::default()
            }
        );
        stats.clear();
        assert_eq!(stats.counts().triggered, 3);
    }
}
