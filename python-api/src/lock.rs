//! The server lock as Python code sees it: taken without ever waiting for it while holding the GIL for long.

use std::{cell::Cell, time::Duration};

use pyo3::prelude::*;

use crate::{
    gil,
    precedence::{self, Turn},
    server::{LogLevel, server},
};

/// The GIL is kept this long while the lock is tried; most holders give it back within a slice of this order.
const SPIN: Duration = Duration::from_millis(5);
const DETACHED_PAUSE: Duration = Duration::from_millis(1);

/// Takes the server lock with the GIL held. Waiting for the GIL with the lock held would block the server, so the
/// lock is only tried, and the GIL is given to others between rounds: at once to one who has the lock, until that has no
/// more use for it. `gives_way`: to one of those whose turn is first.
fn lock_server(py: Python<'_>, mut gives_way: bool) {
    let is_first = |gives_way: bool| !(gives_way && precedence::is_turn_wanted());
    loop {
        if !is_first(gives_way) {
            // Once: those whose turn is first may be many.
            gives_way = false;
            gil::without(py, precedence::give_way);
        }
        if server().try_lock(SPIN, &|| !precedence::is_claimed() && is_first(gives_way)) {
            break;
        }
        if is_first(gives_way) {
            gil::without(py, || {
                if !precedence::wait_for_end() {
                    std::thread::sleep(DETACHED_PAUSE);
                }
            });
        }
    }
    precedence::begin();
}

/// The same for a script's body, whose turn is before that of code that runs already.
pub(crate) fn lock_server_for_body(py: Python<'_>) {
    let _turn = Turn::want();
    lock_server(py, false);
}

/// Gives it back.
pub(crate) fn unlock_server() {
    server().unlock();
    precedence::end();
}

/// This thread's `with atomic()` block.
struct AtomicBlock(Cell<bool>);

impl Drop for AtomicBlock {
    fn drop(&mut self) {
        // A thread that ends inside the block would keep the server locked for ever.
        if self.0.get() {
            unlock_server();
        }
    }
}

thread_local! {
    static ATOMIC: AtomicBlock = const { AtomicBlock(Cell::new(false)) };
}

/// While code runs that was called from other code: the caller's atomic block is not its own. What it leaves open is
/// closed.
pub(crate) struct Outside {
    before: bool,
}

/// Begins such a call.
#[inline]
pub(crate) fn outside() -> Outside {
    Outside {
        before: ATOMIC.with(|a| a.0.replace(false)),
    }
}

impl Drop for Outside {
    #[inline]
    fn drop(&mut self) {
        close_left_open();
        ATOMIC.with(|a| a.0.set(self.before));
    }
}

/// Code has ended that may have left its block open.
pub(crate) fn close_left_open() {
    if leave_atomic() {
        server().log(
            LogLevel::Warning,
            "a function left its atomic block open; the server lock was given back",
        );
    }
}

/// Inside `with atomic()` on this thread.
pub(crate) fn in_atomic() -> bool {
    ATOMIC.with(|a| a.0.get())
}

/// Enters the block; false if inside already.
pub(crate) fn enter_atomic(py: Python<'_>) -> bool {
    if in_atomic() {
        return false;
    }
    lock_server(py, !server().lock_held());
    ATOMIC.with(|a| a.0.set(true));
    true
}

/// Leaves the block; false if outside.
pub(crate) fn leave_atomic() -> bool {
    if !ATOMIC.with(|a| a.0.replace(false)) {
        return false;
    }
    unlock_server();
    true
}

/// Takes the GIL, then the server lock without ever waiting for it with the GIL held, and runs `f` with both.
pub fn with_server_locked<R>(f: impl FnOnce() -> R) -> R {
    /// Gives the lock back, even if `f` panics.
    struct Locked;
    impl Drop for Locked {
        fn drop(&mut self) {
            unlock_server();
        }
    }
    let turn = Turn::want();
    gil::attach(|py| {
        lock_server(py, false);
        let _locked = Locked;
        drop(turn);
        f()
    })
}

/// Takes the GIL, however long that takes, and runs `f` with it.
pub fn with_interpreter<R>(f: impl FnOnce() -> R) -> R {
    gil::attach(|_| f())
}

/// Who holds the GIL at this moment, as an opaque number; 0: nobody. Tells whether it changes hands. Never waits.
pub fn gil_holder() -> usize {
    // SAFETY: see `gil_is_free`.
    let holder = unsafe { pyo3::ffi::compat::PyThreadState_GetUnchecked() };
    holder as usize
}

/// Nobody holds the GIL at this moment; it may be taken again at once. Never waits.
pub fn gil_is_free() -> bool {
    // SAFETY: reads one pointer atomically; may be called by any thread. CPython 3.11 keeps the state of the thread
    // that holds the GIL there; from 3.12 on it is the state of the calling thread, which says less.
    unsafe { pyo3::ffi::compat::PyThreadState_GetUnchecked() }.is_null()
}
