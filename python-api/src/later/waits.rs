//! What the postponed records of one chain share: who is woken when they come back, and whether anybody still waits.

use std::sync::atomic::{AtomicBool, Ordering};

use oxigears_coordinator::stage::Waker;
use parking_lot::Mutex;

/// Shared by a chain, its tickets and the code that will complete them. Knows no Python objects.
#[derive(Default)]
pub(crate) struct Waits {
    waker: Mutex<Option<Waker>>,
    /// Somebody came back before there was a waker.
    early: AtomicBool,
    /// The execution was ended: its coroutines are to stop.
    ended: AtomicBool,
}

impl Waits {
    /// Gives the waker; calls it if records have come back already.
    pub(crate) fn set_waker(&self, waker: Waker) {
        let mut slot = self.waker.lock();
        *slot = Some(waker.clone());
        let early = self.early.swap(false, Ordering::AcqRel);
        drop(slot);
        if early {
            waker();
        }
    }

    /// A record that is waited for has come back.
    pub(super) fn wake(&self) {
        let slot = self.waker.lock();
        let Some(waker) = slot.clone() else {
            self.early.store(true, Ordering::Release);
            return;
        };
        drop(slot);
        waker();
    }

    /// Nobody waits any more, and what runs for it is to stop.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}
