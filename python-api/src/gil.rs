//! Threads that come back to the interpreter again and again keep their state there.
//!
//! By itself each visit of a thread that Python has not made would make a state and throw it away, with memory that
//! is mapped and unmapped for it: more than what a small function takes. Threads that scripts made have their own.

use std::cell::Cell;

use pyo3::{ffi, prelude::*};

/// A thread's state, until the thread ends.
struct Kept {
    before: ffi::PyGILState_STATE,
    state: *mut ffi::PyThreadState,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: the state is this thread's own, made by `keep`; nothing of the interpreter is in use on the thread
        // that ends.
        unsafe {
            ffi::PyEval_RestoreThread(self.state);
            ffi::PyGILState_Release(self.before);
        }
    }
}

thread_local! {
    static KNOWN: Cell<bool> = const { Cell::new(false) };
    static KEPT: Cell<Option<Kept>> = const { Cell::new(None) };
}

/// Like `Python::attach`, for threads of ours that will do it again.
#[inline]
pub(crate) fn attach<R>(f: impl for<'py> FnOnce(Python<'py>) -> R) -> R {
    if !KNOWN.get() {
        keep();
    }
    Python::attach(f)
}

#[cold]
fn keep() {
    KNOWN.set(true);
    // SAFETY: the interpreter is initialised; the thread has no state, so it does not hold the GIL. It gets a state
    // and gives the GIL back with it in place.
    unsafe {
        if !ffi::PyGILState_GetThisThreadState().is_null() {
            return;
        }
        let before = ffi::PyGILState_Ensure();
        let state = ffi::PyEval_SaveThread();
        KEPT.set(Some(Kept { before, state }));
    }
}
