//! Raising `GearsForceStopped` in the thread that runs an execution's Python code now.

use std::os::raw::c_long;

use parking_lot::Mutex;
use pyo3::{ffi, prelude::*};

use crate::runtime::runtime;

/// Knows the thread that runs Python of one execution.
#[derive(Default)]
pub struct Interrupt {
    /// Changed only with the GIL held, so a holder of the GIL sees it stable.
    running: Mutex<Option<Runner>>,
}

struct Runner {
    /// Python's id of the thread.
    thread: c_long,
    /// The exception was asked for; it may not have been raised yet.
    requested: bool,
}

impl Interrupt {
    /// Nothing runs yet.
    pub fn new() -> Interrupt {
        Interrupt::default()
    }

    /// Raises the exception if Python of the execution runs. May be called every millisecond, by any thread that
    /// does not hold the GIL.
    pub fn request(&self) {
        if self.running.lock().is_none() {
            return;
        }
        Python::attach(|_| {
            if let Some(runner) = self.running.lock().as_mut() {
                runner.requested = true;
                // SAFETY: the GIL is held; the exception class lives as long as the process.
                unsafe { ffi::PyThreadState_SetAsyncExc(runner.thread, runtime().force_stopped.as_ptr()) };
            }
        });
    }

    /// Marks this thread as the runner until the guard goes. The GIL must be held at both ends.
    pub(crate) fn enter<'py>(&self, py: Python<'py>) -> Running<'_, 'py> {
        // SAFETY: no preconditions.
        let thread = unsafe { ffi::PyThread_get_thread_ident() } as c_long;
        *self.running.lock() = Some(Runner {
            thread,
            requested: false,
        });
        Running { interrupt: self, py }
    }
}

/// The time in which the exception may be raised.
pub(crate) struct Running<'a, 'py> {
    interrupt: &'a Interrupt,
    py: Python<'py>,
}

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        let ended = self.interrupt.running.lock().take();
        if ended.is_some_and(|runner| runner.requested) {
            // A request that was not raised yet must not hit what this thread runs next. It is let out here:
            // taking it back (PyThreadState_SetAsyncExc with NULL) would leave the interpreter's flag for it set,
            // and all code slow, for ever.
            let _ = runtime().do_nothing.call0(self.py);
        }
    }
}
