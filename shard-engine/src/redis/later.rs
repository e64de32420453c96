//! A moment when the command at hand is over: its values are not used any more, and it has been handed to replicas.
//!
//! The moment before the event loop sleeps is the next one that is known. The jobs that servers from 7.2 on have for that
//! are no use: where an event is raised by the server itself (fields of hashes expire, a slot is cleared) they run in the
//! middle of its walk, and a handler that deletes keys ends the server. Never runs anything inside a command.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{event_loop, lock::ServerLock, timer};

type Work = fn(&ServerLock);

static WORK: OnceLock<Work> = OnceLock::new();
/// The work is wanted.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Names the work. At load.
pub fn when_over(work: Work) {
    let _ = WORK.set(work);
}

/// The work is wanted when the command at hand is over. Called in a notification, under the lock.
pub fn ask(guard: &ServerLock) {
    // No exchange: who has the lock is alone here.
    if is_asked() {
        return;
    }
    ASKED.store(true, Ordering::Release);
    if !event_loop::listen(guard) {
        // A server before 7.0 does not tell: the next turn of the event loop.
        timer::once(guard, Duration::from_millis(1), work);
    } else if !event_loop::is_in_turn() {
        // The end of this turn is behind us: clients that wait are served, and keys expire, after that.
        event_loop::wake();
    }
}

/// The work is wanted and has not been done.
pub(super) fn is_asked() -> bool {
    ASKED.load(Ordering::Acquire)
}

/// Does it.
pub(super) fn work(guard: &ServerLock) {
    ASKED.store(false, Ordering::Release);
    if let Some(work) = WORK.get() {
        work(guard);
    }
}
