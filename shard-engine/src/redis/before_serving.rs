//! When a thread may write on a server before 7.2, though clients wait for keys (BLPOP, XREADGROUP).
//!
//! Such a server serves clients that wait for a key which a thread has written after the *next* command, or before its
//! event loop sleeps. If that command is CLIENT PAUSE or FAILOVER, or a fail-over by hand begins at that moment, it would
//! serve them, and replicate that, inside the pause, and ends itself. What is written at the end of a turn is served before
//! requests are read, so while clients wait for keys, threads write there: in late slices (`sharing`). Between the two only
//! clients go on that were let go by a blocking command a moment before: those that have sent CLIENT PAUSE behind it, in
//! one go, can still end the server.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{blocked, event_loop, lock::ServerLock, replicate, sharing, version::at_least};

/// What was found last: number of the turn, and whether clients waited.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A thread that wants to write now, with the lock in its hands, must not unless that is a late slice.
pub(super) fn is_end_of_turn_needed(guard: &ServerLock) -> bool {
    // Writes that are paused are refused.
    !at_least(7, 2) && event_loop::listen(guard) && do_clients_wait(guard) && !replicate::is_paused(guard)
}

/// It was so when it was looked at last. Without the lock.
pub(super) fn was_end_of_turn_needed() -> bool {
    LAST.load(Ordering::Relaxed) & 1 == 1
}

/// Clients wait that we have not parked.
fn do_clients_wait(guard: &ServerLock) -> bool {
    // While the main thread runs no command no client begins to wait.
    let turn = sharing::turns() << 1;
    let last = LAST.load(Ordering::Relaxed);
    if last & !1 == turn && turn > 0 {
        return last & 1 == 1;
    }
    let wait = blocked::are_others(guard);
    LAST.store(turn | u64::from(wait), Ordering::Relaxed);
    wait
}
