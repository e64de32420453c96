//! One postponed record: completed once, by any thread that holds the GIL, and taken by the chain that waits for it.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::{Py, PyAny};

use super::{NEVER_CONTINUED, waits::Waits};
use crate::obj::Obj;

/// What comes back: a value, or the text of an error record.
pub(crate) type Later = Result<Obj, String>;

const NOT_RETURNED: &str = "Can not handle future untill it returned from the callback";
const TWICE: &str = "Can not continue with the same future twice";

/// A handle on a postponed record. Dropped with the GIL held, as it may hold the value.
#[derive(Clone)]
pub(crate) struct Ticket(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    waits: Arc<Waits>,
    /// A weak reference to the task that will complete it, to cancel that.
    task: Mutex<Option<Py<PyAny>>>,
}

enum State {
    /// The callback has not returned its future.
    Made,
    /// Completed before that, by the engine's own means.
    Early(Later),
    /// The callback has ended without returning it. Keeps no value, which may be what keeps the future that a script has.
    Unreturned,
    /// The chain waits; it wants to be woken, or will look by itself.
    Awaited {
        armed: bool,
    },
    Done(Later),
    /// Taken, or not wanted any more.
    Over {
        continued: bool,
    },
}

impl Ticket {
    pub(crate) fn new(waits: Arc<Waits>) -> Ticket {
        Ticket(Arc::new(Inner {
            state: Mutex::new(State::Made),
            waits,
            task: Mutex::new(None),
        }))
    }

    /// The same record.
    pub(crate) fn is(&self, other: &Ticket) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn waits(&self) -> &Arc<Waits> {
        &self.0.waits
    }

    /// The chain waits for it from now on.
    pub(crate) fn returned(&self) {
        let mut state = self.0.state.lock();
        *state = match std::mem::replace(&mut *state, State::Awaited { armed: false }) {
            State::Early(later) => State::Done(later),
            State::Made => State::Awaited { armed: false },
            other => other,
        };
    }

    /// The callback has returned something else.
    pub(crate) fn not_returned(&self) {
        let before = std::mem::replace(&mut *self.0.state.lock(), State::Unreturned);
        // Outside of the lock: finalisers are code of scripts.
        drop(before);
    }

    /// A script completes it.
    pub(crate) fn complete(&self, later: Later) -> Result<(), &'static str> {
        let mut state = self.0.state.lock();
        let armed = match &mut *state {
            State::Made | State::Early(_) | State::Unreturned => return Err(NOT_RETURNED),
            State::Done(_) | State::Over { continued: true } => return Err(TWICE),
            // Nobody waits any more: silently.
            State::Over { continued } => {
                *continued = true;
                return Ok(());
            }
            State::Awaited { armed } => *armed,
        };
        *state = State::Done(later);
        drop(state);
        if armed {
            self.0.waits.wake();
        }
        Ok(())
    }

    /// The engine completes it: before the callback has returned, too.
    pub(crate) fn settle(&self, later: Later) {
        let mut state = self.0.state.lock();
        if matches!(*state, State::Made) {
            *state = State::Early(later);
            return;
        }
        drop(state);
        // Completed by somebody else already: that counts.
        let _ = self.complete(later);
    }

    /// Whoever could complete it is gone.
    pub(crate) fn lose(&self) {
        if matches!(*self.0.state.lock(), State::Awaited { .. }) {
            self.settle(Err(NEVER_CONTINUED.to_owned()));
        }
    }

    /// What has come back, once.
    pub(crate) fn take(&self) -> Option<Later> {
        let mut state = self.0.state.lock();
        if !matches!(*state, State::Done(_)) {
            return None;
        }
        match std::mem::replace(&mut *state, State::Over { continued: true }) {
            State::Done(later) => Some(later),
            _ => None,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(*self.0.state.lock(), State::Done(_))
    }

    /// Asks for a call of the waker; true if it is done already.
    pub(crate) fn arm(&self) -> bool {
        match &mut *self.0.state.lock() {
            State::Awaited { armed } => {
                *armed = true;
                false
            }
            State::Done(_) => true,
            _ => false,
        }
    }

    /// Nobody waits for it any more. Gives the task, to be cancelled.
    pub(crate) fn give_up(&self) -> Option<Py<PyAny>> {
        let mut state = self.0.state.lock();
        let before = match &*state {
            State::Over { .. } => None,
            State::Done(_) => Some(std::mem::replace(&mut *state, State::Over { continued: true })),
            _ => Some(std::mem::replace(&mut *state, State::Over { continued: false })),
        };
        drop(state);
        // A value that had come back: freed outside of the lock, as finalisers are code of scripts.
        drop(before);
        self.0.task.lock().take()
    }

    /// The task that will complete it.
    pub(crate) fn set_task(&self, task: Py<PyAny>) {
        *self.0.task.lock() = Some(task);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn failed(text: &str) -> Later {
        Err(text.to_owned())
    }

    fn text(later: Option<Later>) -> Option<String> {
        later.map(|later| later.err().expect("an error"))
    }

    #[test]
    fn is_completed_once_and_only_when_returned() {
        let ticket = Ticket::new(Arc::default());
        assert_eq!(ticket.complete(failed("a")), Err(NOT_RETURNED));
        ticket.lose();
        ticket.returned();
        assert!(ticket.take().is_none() && !ticket.is_done());
        assert_eq!(ticket.complete(failed("b")), Ok(()));
        assert_eq!(ticket.complete(failed("c")), Err(TWICE));
        ticket.settle(failed("d"));
        ticket.lose();
        assert_eq!(text(ticket.take()).as_deref(), Some("b"));
        assert!(ticket.take().is_none());
        assert_eq!(ticket.complete(failed("e")), Err(TWICE));
    }

    #[test]
    fn what_comes_early_or_not_at_all() {
        let ticket = Ticket::new(Arc::default());
        ticket.settle(failed("early"));
        assert!(!ticket.is_done());
        ticket.returned();
        assert_eq!(text(ticket.take()).as_deref(), Some("early"));
        let ticket = Ticket::new(Arc::default());
        ticket.returned();
        ticket.lose();
        assert_eq!(text(ticket.take()).as_deref(), Some(NEVER_CONTINUED));
    }

    #[test]
    fn late_results_are_ignored_and_told_once() {
        let ticket = Ticket::new(Arc::default());
        ticket.returned();
        assert!(ticket.give_up().is_none());
        assert_eq!(ticket.complete(failed("late")), Ok(()));
        assert_eq!(ticket.complete(failed("later")), Err(TWICE));
        assert!(ticket.take().is_none());
    }

    #[test]
    fn wakes_only_who_waits() {
        let woken = Arc::new(AtomicUsize::new(0));
        let waits: Arc<Waits> = Arc::default();
        let tickets: Vec<Ticket> = (0..3).map(|_| Ticket::new(waits.clone())).collect();
        tickets.iter().for_each(Ticket::returned);
        // Not armed: the chain looks by itself. Armed without a waker: told when there is one.
        assert_eq!(tickets[0].complete(failed("")), Ok(()));
        assert!(tickets[0].arm());
        assert!(!tickets[1].arm());
        assert_eq!(tickets[1].complete(failed("")), Ok(()));
        let count = woken.clone();
        waits.set_waker(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert!(!tickets[2].arm());
        assert_eq!(tickets[2].complete(failed("")), Ok(()));
        assert_eq!(woken.load(Ordering::Relaxed), 2);
    }
}
