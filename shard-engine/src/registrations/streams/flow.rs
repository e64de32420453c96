//! One stream as one registration sees it: how much waits, whether a batch is under way, when to look again.
//!
//! A state machine: it is told what happened and says what to do next. It never touches the server and reads no clock;
//! times are handed in, in ms.

use crate::redis::key::StreamId;

/// What the registration asks for.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Entries of a full batch; at least 1.
    pub batch: u64,
    /// An incomplete batch is started when its first entry has waited this long; 0: never.
    pub duration_ms: u64,
    /// Pause before a failed batch is tried again.
    pub retry_ms: u64,
    /// Tries after the first before a batch is given up; `None`: it is tried for ever.
    pub max_retries: Option<u64>,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the next event decides.
    Wait,
    /// Somebody has to look at the stream and say what is there (`looked`). The flow is taken until then.
    Look,
    /// Say `rang` with this number, so many ms later.
    Ring(u64, u64),
}

/// What to read from the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// At most so many entries; the number does not count for a batch that failed.
    pub count: u64,
    /// A batch that failed is tried again: up to this entry, its last one.
    pub until: Option<StreamId>,
    /// First of all, what the group has pending from before.
    pub fresh: bool,
    /// There are enough new ones, as far as events tell, or any number will do.
    pub new: bool,
}

/// What was found by who looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Entries that were read.
    pub read: u64,
    /// Others follow.
    pub more: bool,
    /// They were taken out of a group, so they can not be left for later.
    pub taken: bool,
    /// New ones were looked for: with none read, none waits. Else only what the group had pending was, or is, read.
    pub new: bool,
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It is acknowledged.
    Acknowledged,
    /// It failed and is to be tried again; its last entry.
    Failed(StreamId),
    /// The same, by no fault of its own: it does not count as a try.
    Hindered(StreamId),
    /// It did not run to its end, and is not acknowledged.
    Dropped,
}

/// A batch that failed.
#[derive(Debug, Clone, Copy)]
struct Failed {
    until: StreamId,
    /// How often it failed.
    tries: u64,
    /// It is being tried again, or about to be.
    due: bool,
}

/// The state of one stream.
#[derive(Debug, Default)]
pub struct Flow {
    /// Entries that wait, as far as events tell; those of the batch under way are not counted.
    waiting: u64,
    /// Since when the first of them has waited.
    since_ms: u64,
    /// Somebody looks at the stream, or a batch is under way.
    taken: bool,
    /// There may be more than was counted: entries from before. Incomplete batches are run at once then.
    behind: bool,
    /// What the group has pending is still to be asked for.
    fresh: bool,
    /// The batch under way was taken out of a group.
    taken_out: bool,
    failed: Option<Failed>,
    /// The time of an incomplete batch is over.
    due: bool,
    /// The stream may not be read; nobody looks before the timer is over.
    barred: bool,
    /// Number of the timer that is set; others are stale.
    timer: u64,
    is_set: bool,
    /// The timer is there because somebody who looked did nothing.
    is_postponed: bool,
}

impl Flow {
    /// A stream that is seen for the first time. `behind`: it holds more than what is told by `added`.
    pub fn new(behind: bool) -> Flow {
        Flow {
            behind,
            fresh: true,
            ..Flow::default()
        }
    }

    /// A batch failed, or the stream could not be read, and the next try is waited for.
    pub fn waits_for_retry(&self) -> bool {
        self.barred || self.failed.is_some_and(|failed| !failed.due)
    }

    /// Full batches that wait, as far as events tell.
    pub fn full_batches(&self, rules: &Rules) -> u64 {
        self.waiting / rules.batch
    }

    /// Nothing is known that would be lost by forgetting it.
    pub fn is_idle(&self) -> bool {
        !self.taken && !self.barred && self.waiting == 0 && !self.behind && self.failed.is_none()
    }

    /// An entry came.
    pub fn added(&mut self, rules: &Rules, now_ms: u64) -> Next {
        if self.waiting == 0 {
            self.since_ms = now_ms;
        }
        self.waiting += 1;
        self.next(rules, now_ms)
    }

    /// A timer is over.
    pub fn rang(&mut self, number: u64, rules: &Rules, now_ms: u64) -> Next {
        if !self.is_set || number != self.timer {
            return Next::Wait;
        }
        self.is_set = false;
        self.barred = false;
        match &mut self.failed {
            // Whatever was the reason to look is one still.
            _ if self.is_postponed => {}
            Some(failed) => failed.due = true,
            None => self.due = true,
        }
        self.next(rules, now_ms)
    }

    /// Somebody who had taken the flow did nothing; try again in so many ms.
    pub fn postponed(&mut self, ms: u64) -> Next {
        self.taken = false;
        let next = self.ring(ms);
        self.is_postponed = true;
        next
    }

    /// The stream may not be read, whatever comes: try again as after a failure, but not sooner than in so many ms.
    pub fn barred(&mut self, rules: &Rules, least_ms: u64) -> Next {
        self.barred = true;
        self.postponed(rules.retry_ms.max(least_ms))
    }

    /// What is to be read by who looks.
    pub fn wanted(&self, rules: &Rules) -> Wanted {
        Wanted {
            count: rules.batch,
            until: self.failed.map(|failed| failed.until),
            fresh: self.fresh,
            new: self.behind || self.due || self.waiting >= rules.batch,
        }
    }

    /// The stream was looked at, as wanted. True: what was read is a batch to be run, which ends with `ended`. False: the
    /// flow is free again, see `next`.
    pub fn looked(&mut self, found: Found, rules: &Rules, now_ms: u64) -> bool {
        let Found { read, more, taken, new } = found;
        self.fresh = false;
        self.is_set = false;
        let again = self.failed.is_some_and(|failed| failed.due);
        let may_be_small = self.behind || self.due || again || more || taken;
        if !more && self.failed.is_none() {
            // Now it is known what there is.
            self.behind = false;
        }
        self.due = false;
        if again && read == 0 {
            // Others have removed what failed.
            self.failed = None;
            self.behind = true;
            self.taken = false;
            return false;
        }
        if read == 0 || (read < rules.batch && !may_be_small) {
            self.taken = false;
            if new {
                self.waiting = read;
            }
            return false;
        }
        if !again && new {
            // Entries of which nobody told: the group was moved.
            self.behind |= more && self.waiting <= read;
            self.waiting = if more { self.waiting.saturating_sub(read) } else { 0 };
        }
        self.since_ms = now_ms;
        self.taken_out = taken;
        true
    }

    /// The batch is over.
    pub fn ended(&mut self, how: Ended, rules: &Rules, now_ms: u64) -> Next {
        self.taken = false;
        match how {
            Ended::Acknowledged => {
                self.failed = None;
                self.next(rules, now_ms)
            }
            Ended::Dropped => {
                // Its entries wait again, for the next event.
                self.behind = true;
                self.fresh |= self.taken_out;
                self.failed = None;
                Next::Wait
            }
            Ended::Failed(until) | Ended::Hindered(until) => {
                let tries = self.tries() + u64::from(matches!(how, Ended::Failed(_)));
                let due = false;
                self.failed = Some(Failed { until, tries, due });
                self.ring(rules.retry_ms)
            }
        }
    }

    /// A failure now is the last one that is allowed.
    pub fn is_last_try(&self, rules: &Rules) -> bool {
        rules.max_retries.is_some_and(|most| self.tries() >= most)
    }

    /// How often the batch at hand has failed before.
    pub fn tries(&self) -> u64 {
        self.failed.map_or(0, |failed| failed.tries)
    }

    /// What is to be done now.
    pub fn next(&mut self, rules: &Rules, now_ms: u64) -> Next {
        if self.taken || self.barred {
            return Next::Wait;
        }
        if let Some(failed) = self.failed {
            return self.take_if(failed.due);
        }
        let waits = self.waiting > 0;
        if self.fresh || self.behind || self.waiting >= rules.batch || (self.due && waits) {
            return self.take_if(true);
        }
        if waits && rules.duration_ms > 0 && !self.is_set {
            let end = self.since_ms.saturating_add(rules.duration_ms);
            return self.ring(end.saturating_sub(now_ms).max(1));
        }
        Next::Wait
    }

    fn take_if(&mut self, wanted: bool) -> Next {
        self.taken = wanted;
        if wanted { Next::Look } else { Next::Wait }
    }

    fn ring(&mut self, ms: u64) -> Next {
        self.timer += 1;
        (self.is_set, self.is_postponed) = (true, false);
        Next::Ring(self.timer, ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: StreamId = StreamId { ms: 9, seq: 0 };

    fn rules(batch: u64, duration_ms: u64) -> Rules {
        Rules {
            batch,
            duration_ms,
            retry_ms: 1000,
            max_retries: None,
        }
    }

    fn found(read: u64, more: bool) -> Found {
        Found {
            read,
            more,
            taken: false,
            new: true,
        }
    }

    /// In a group with other members.
    fn taken(read: u64, more: bool, new: bool) -> Found {
        Found {
            taken: true,
            new,
            ..found(read, more)
        }
    }

    /// A stream on which everything so far has been seen and handled.
    fn caught_up(rules: &Rules) -> Flow {
        let mut flow = Flow::new(true);
        assert_eq!(flow.next(rules, 0), Next::Look);
        assert!(flow.wanted(rules).fresh);
        assert!(!flow.looked(found(0, false), rules, 0));
        assert_eq!(flow.next(rules, 0), Next::Wait);
        assert!(flow.is_idle());
        flow
    }

    #[test]
    fn full_batches_start_and_the_rest_waits() {
        let rules = rules(3, 0);
        let mut flow = caught_up(&rules);
        assert_eq!(flow.added(&rules, 1), Next::Wait);
        assert_eq!(flow.added(&rules, 2), Next::Wait);
        assert_eq!(flow.added(&rules, 3), Next::Look);
        assert_eq!(flow.added(&rules, 4), Next::Wait, "somebody looks already");
        assert!(flow.looked(found(3, true), &rules, 4));
        assert_eq!(flow.ended(Ended::Acknowledged, &rules, 5), Next::Wait);
        assert_eq!(flow.added(&rules, 6), Next::Wait);
        assert_eq!(flow.added(&rules, 7), Next::Look);
    }

    #[test]
    fn a_stream_that_may_not_be_read_is_tried_again_when_it_is_time() {
        let rules = rules(3, 0);
        let mut flow = Flow::new(true);
        assert_eq!(flow.next(&rules, 0), Next::Look);
        assert_eq!(flow.barred(&rules, 50), Next::Ring(1, 1000));
        assert!(flow.waits_for_retry() && !flow.is_idle());
        for now_ms in 1..9 {
            assert_eq!(flow.added(&rules, now_ms), Next::Wait);
        }
        assert_eq!(flow.rang(1, &rules, 1000), Next::Look);
        assert!(flow.wanted(&rules).fresh && !flow.waits_for_retry());
    }

    #[test]
    fn the_first_entry_of_a_new_stream_is_no_backlog() {
        let rules = rules(3, 0);
        let mut flow = Flow::new(false);
        assert_eq!(flow.added(&rules, 1), Next::Look, "what is pending is asked for");
        assert!(!flow.looked(found(1, false), &rules, 1));
        assert_eq!(flow.next(&rules, 1), Next::Wait);
        flow.added(&rules, 1);
        assert_eq!(flow.added(&rules, 1), Next::Look);
    }

    #[test]
    fn what_waits_stays_counted_while_only_pending_entries_are_looked_for() {
        let rules = rules(3, 100);
        let mut flow = Flow::new(false);
        assert_eq!(flow.added(&rules, 1), Next::Look);
        assert!(!flow.wanted(&rules).new);
        assert!(!flow.looked(taken(0, true, false), &rules, 1));
        let Next::Ring(..) = flow.next(&rules, 1) else {
            panic!("no timer")
        };
        assert_eq!(flow.added(&rules, 2), Next::Wait);
        assert_eq!(flow.added(&rules, 3), Next::Look);
        assert!(flow.wanted(&rules).new);
        assert!(flow.looked(taken(3, false, true), &rules, 3));
        assert_eq!(flow.added(&rules, 4), Next::Wait);
        assert_eq!(
            flow.ended(Ended::Acknowledged, &rules, 4),
            Next::Ring(2, 100),
            "one waits"
        );
    }

    #[test]
    fn pending_entries_are_none_of_those_that_wait() {
        let rules = rules(2, 0);
        let mut flow = Flow::new(false);
        assert_eq!(flow.added(&rules, 1), Next::Look);
        assert!(flow.looked(taken(5, true, false), &rules, 1));
        assert_eq!(
            flow.ended(Ended::Acknowledged, &rules, 1),
            Next::Wait,
            "one waits for another"
        );
        assert_eq!(flow.added(&rules, 2), Next::Look);
        assert!(flow.wanted(&rules).new);
    }

    #[test]
    fn a_backlog_runs_in_incomplete_batches_too() {
        let rules = rules(2, 0);
        let mut flow = Flow::new(true);
        assert_eq!(flow.next(&rules, 0), Next::Look);
        assert!(flow.looked(found(2, true), &rules, 0));
        assert_eq!(flow.ended(Ended::Acknowledged, &rules, 0), Next::Look);
        assert!(flow.looked(found(1, false), &rules, 0));
        assert_eq!(flow.ended(Ended::Acknowledged, &rules, 0), Next::Wait);
        assert_eq!(flow.added(&rules, 0), Next::Wait, "now only full batches");
    }

    #[test]
    fn an_incomplete_batch_starts_when_its_time_is_over() {
        let rules = rules(3, 100);
        let mut flow = caught_up(&rules);
        let Next::Ring(number, 100) = flow.added(&rules, 1000) else {
            panic!("no timer")
        };
        assert_eq!(flow.added(&rules, 1050), Next::Wait, "there is one timer");
        assert_eq!(flow.rang(number + 1, &rules, 1100), Next::Wait, "a stale number");
        assert_eq!(flow.rang(number, &rules, 1100), Next::Look);
        assert!(flow.looked(found(2, false), &rules, 1100));
        assert_eq!(flow.ended(Ended::Acknowledged, &rules, 1101), Next::Wait);
        let Next::Ring(number, 100) = flow.added(&rules, 2000) else {
            panic!("no timer")
        };
        flow.added(&rules, 2001);
        assert_eq!(flow.added(&rules, 2002), Next::Look, "full before");
        assert!(flow.looked(found(3, false), &rules, 2002));
        assert_eq!(flow.rang(number, &rules, 2100), Next::Wait);
        assert_eq!(flow.ended(Ended::Acknowledged, &rules, 2101), Next::Wait);
    }

    #[test]
    fn deleted_entries_do_not_count() {
        let rules = rules(2, 0);
        let mut flow = caught_up(&rules);
        flow.added(&rules, 0);
        assert_eq!(flow.added(&rules, 0), Next::Look);
        assert!(!flow.looked(found(1, false), &rules, 0), "others deleted one");
        assert_eq!(flow.next(&rules, 0), Next::Wait);
        assert_eq!(flow.added(&rules, 0), Next::Look);
        assert!(flow.looked(found(2, false), &rules, 0));
    }

    #[test]
    fn a_failed_batch_is_tried_again_alone_and_after_a_pause() {
        let rules = Rules {
            max_retries: Some(1),
            ..rules(2, 0)
        };
        let mut flow = Flow::new(true);
        flow.next(&rules, 0);
        assert!(flow.looked(found(2, true), &rules, 0));
        assert!(!flow.is_last_try(&rules));
        let Next::Ring(number, 1000) = flow.ended(Ended::Failed(LAST), &rules, 0) else {
            panic!("no timer")
        };
        assert!(flow.waits_for_retry());
        assert_eq!(flow.added(&rules, 0), Next::Wait, "nothing overtakes it");
        assert_eq!(flow.rang(number, &rules, 1000), Next::Look);
        assert_eq!(flow.wanted(&rules).until, Some(LAST));
        assert!(flow.looked(found(2, true), &rules, 1000));
        assert!(flow.is_last_try(&rules) && flow.tries() == 1);
        let Next::Ring(number, 1000) = flow.ended(Ended::Hindered(LAST), &rules, 1000) else {
            panic!("no timer")
        };
        assert_eq!(flow.rang(number, &rules, 2000), Next::Look);
        assert!(flow.looked(found(2, true), &rules, 2000));
        assert_eq!(flow.tries(), 1, "that was no try");
        assert_eq!(
            flow.ended(Ended::Acknowledged, &rules, 2000),
            Next::Look,
            "the rest goes on"
        );
        assert!(!flow.waits_for_retry());
    }

    #[test]
    fn an_aborted_batch_waits_for_the_next_event() {
        let rules = rules(1, 0);
        let mut flow = caught_up(&rules);
        assert_eq!(flow.added(&rules, 0), Next::Look);
        assert!(flow.looked(found(1, false), &rules, 0));
        assert_eq!(flow.ended(Ended::Dropped, &rules, 0), Next::Wait);
        assert_eq!(flow.added(&rules, 0), Next::Look);
    }

    #[test]
    fn who_can_not_look_now_looks_later() {
        let rules = rules(1, 0);
        let mut flow = caught_up(&rules);
        assert_eq!(flow.added(&rules, 0), Next::Look);
        let Next::Ring(number, 50) = flow.postponed(50) else {
            panic!("no timer")
        };
        assert_eq!(flow.rang(number, &rules, 50), Next::Look);
        assert!(flow.looked(found(1, false), &rules, 50));
    }
}
