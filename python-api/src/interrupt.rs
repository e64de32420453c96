//! Raising `GearsForceStopped` in the thread that runs an execution's Python code now.

use std::{os::raw::c_long, sync::OnceLock};

use parking_lot::Mutex;
use pyo3::{ffi, prelude::*};

use crate::{gil, runtime::runtime};

/// Knows the thread that runs Python of one execution.
#[derive(Default)]
pub struct Interrupt {
    /// Changed only with the GIL held, so a holder of the GIL sees it stable.
    running: Mutex<Option<Runner>>,
}

struct Runner {
    thread: Target,
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
        gil::attach(|py| {
            if let Some(runner) = self.running.lock().as_mut() {
                runner.requested = true;
                runner.thread.stop(py);
            }
        });
    }

    /// Does work that may run code of scripts, which can be interrupted meanwhile. It must not wait for the server lock.
    pub fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        gil::attach(|py| {
            let _running = self.enter(py);
            work()
        })
    }

    /// Marks this thread as the runner until the guard goes. The GIL must be held at both ends.
    pub(crate) fn enter<'py>(&self, py: Python<'py>) -> Running<'_, 'py> {
        *self.running.lock() = Some(Runner {
            thread: Target::here(py),
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

/// A thread that may get `GearsForceStopped`.
pub(crate) struct Target {
    /// Python's id of the thread.
    id: c_long,
    /// Address of its state.
    state: usize,
}

impl Target {
    /// This thread.
    pub(crate) fn here(_py: Python<'_>) -> Target {
        // SAFETY: the GIL is held.
        let (id, state) = unsafe { (ffi::PyThread_get_thread_ident() as c_long, ffi::PyThreadState_Get()) };
        Target {
            id,
            state: state as usize,
        }
    }

    /// Raises the exception soon. Or does not: while the thread starts another one, that has its id, until it runs, and
    /// would get the exception, end with it and be waited for, for ever. So whoever asks has to ask again.
    pub(crate) fn stop(&self, py: Python<'_>) {
        if self.is_first(py) {
            // SAFETY: the GIL is held; the exception class lives as long as the process.
            unsafe { ffi::PyThreadState_SetAsyncExc(self.id, runtime().force_stopped.as_ptr()) };
        }
    }

    /// Its state is the first one with its id: that one gets the exception.
    fn is_first(&self, _py: Python<'_>) -> bool {
        let Some(place) = *PLACE.get_or_init(|| self.place_of_id()) else {
            return true;
        };
        // SAFETY: the GIL is held, so states are only added, in front; each is as large as the one that was looked at.
        unsafe {
            let mut state = ffi::PyInterpreterState_ThreadHead(ffi::PyInterpreterState_Get());
            while !state.is_null() && *state.cast::<c_long>().add(place) != self.id {
                state = ffi::PyThreadState_Next(state);
            }
            state as usize == self.state
        }
    }

    /// Where states keep the id, in words: the layout is not public. `None` if that can not be told.
    fn place_of_id(&self) -> Option<usize> {
        // SAFETY: the state is alive; states of CPython 3.7 to 3.13 have more words than that.
        let words = unsafe { std::slice::from_raw_parts(self.state as *const c_long, 28) };
        let mut places = words.iter().enumerate().filter(|(_, word)| **word == self.id);
        match (places.next(), places.next()) {
            (Some((place, _)), None) => Some(place),
            _ => None,
        }
    }
}

static PLACE: OnceLock<Option<usize>> = OnceLock::new();

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::tests::start_interpreter;

    #[test]
    fn a_thread_that_is_being_started_does_not_get_it() {
        start_interpreter();
        Python::attach(|py| {
            let target = Target::here(py);
            assert!(target.is_first(py));
            assert!(PLACE.get().is_some_and(Option::is_some), "the layout is known");
            // What the starting of a thread does first: a state that has the starter's id.
            // SAFETY: the GIL is held; the new state is never run, and deleted here.
            unsafe {
                let state = ffi::PyThreadState_New(ffi::PyInterpreterState_Get());
                assert!(!target.is_first(py));
                ffi::PyThreadState_Clear(state);
                ffi::PyThreadState_Delete(state);
            }
            assert!(target.is_first(py));
        });
        // Other threads are none of its business.
        let (tell, hear) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            Python::attach(|py| {
                tell.send(()).unwrap();
                py.detach(move || wait.recv().unwrap());
            });
        });
        hear.recv().unwrap();
        Python::attach(|py| assert!(Target::here(py).is_first(py)));
        go_on.send(()).unwrap();
        other.join().unwrap();
    }
}
