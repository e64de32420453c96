//! Raising `GearsForceStopped` in the thread that runs an execution's Python code now.

use std::os::raw::c_long;

use parking_lot::Mutex;
use pyo3::{ffi, prelude::*};

use crate::runtime::runtime;

/// Knows the thread that runs Python of one execution.
#[derive(Default)]
pub struct Interrupt {
    /// Python's id of the thread. Changed only with the GIL held, so a holder of the GIL sees it stable.
    running: Mutex<Option<c_long>>,
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
            let running = self.running.lock();
            if let Some(thread) = *running {
                // SAFETY: the GIL is held; the exception class lives as long as the process.
                unsafe { ffi::PyThreadState_SetAsyncExc(thread, runtime().force_stopped.as_ptr()) };
            }
        });
    }

    /// Marks this thread as the runner until the guard goes. The GIL must be held at both ends.
    pub(crate) fn enter<'py>(&self, _py: Python<'py>) -> Running<'_, 'py> {
        // SAFETY: no preconditions.
        let thread = unsafe { ffi::PyThread_get_thread_ident() } as c_long;
        *self.running.lock() = Some(thread);
        Running { interrupt: self, thread, _py }
    }
}

/// The time in which the exception may be raised.
pub(crate) struct Running<'a, 'py> {
    interrupt: &'a Interrupt,
    thread: c_long,
    _py: Python<'py>,
}

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        *self.interrupt.running.lock() = None;
        // SAFETY: the GIL is held (`_py`). Clears an exception that was requested but not raised yet, so that it
        // does not hit what this thread runs next.
        unsafe { ffi::PyThreadState_SetAsyncExc(self.thread, std::ptr::null_mut()) };
    }
}
