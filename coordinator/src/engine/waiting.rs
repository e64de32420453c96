//! Executions with records that were postponed: woken when some come back, counted, and alive for the other shards.
//!
//! No thread waits for such records: an execution that can not go on without them leaves its worker thread.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{Engine, Execution};
use crate::stage::Waker;

impl Execution {
    /// What a runner calls when postponed records have come back: a worker thread looks at it.
    pub(super) fn waker(self: &Arc<Self>, engine: &Arc<Engine>, woken: Arc<AtomicBool>) -> Waker {
        // Weak: who completes a record late, or never, keeps nothing alive.
        let (execution, engine) = (Arc::downgrade(self), Arc::downgrade(engine));
        Arc::new(move || {
            woken.store(true, Ordering::Release);
            if let (Some(execution), Some(engine)) = (execution.upgrade(), engine.upgrade())
                && !execution.stopping.load(Ordering::Acquire)
            {
                execution.schedule(&engine);
            }
        })
    }

    /// Records of some stage were postponed, or all have come back.
    pub(super) fn set_pending(self: &Arc<Self>, engine: &Arc<Engine>, pending: bool) {
        self.machine.lock().set_pending(pending);
        if !pending {
            return self.is_pending_no_more(engine);
        }
        if !self.counted_pending.swap(true, Ordering::AcqRel) {
            engine.pending.fetch_add(1, Ordering::AcqRel);
        }
        // It may have ended meanwhile.
        if self.stopping.load(Ordering::Acquire) {
            self.is_pending_no_more(engine);
        }
    }

    /// It waits for no records, or is over.
    pub(super) fn is_pending_no_more(&self, engine: &Engine) {
        if self.counted_pending.swap(false, Ordering::AcqRel) {
            engine.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Engine {
    /// Executions of this shard with records that were postponed and have not come back.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// An execution that its maker bounds waits from now on, until `waits_apart_no_more`: it takes no room of others.
    pub fn waits_apart(&self) {
        self.waiting_apart.fetch_add(1, Ordering::AcqRel);
    }

    /// See `waits_apart`.
    pub fn waits_apart_no_more(&self) {
        self.waiting_apart.fetch_sub(1, Ordering::AcqRel);
    }
}
