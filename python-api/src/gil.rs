//! Threads that come back to the interpreter again and again keep their state there.
//!
//! By itself each visit of a thread that Python has not made would make a state and throw it away, with memory that
//! is mapped and unmapped for it: more than what a small function takes. Threads that scripts made have their own.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Once,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
    time::Duration,
};

use pyo3::{ffi, prelude::*};

use crate::{
    precedence::{self, Outermost},
    server,
};

/// Who waits for the GIL asks for it after so long. That has to be less than the slices in which our threads work: CPython
/// begins that time anew whenever the GIL is given away, and who takes it back at once, slice after slice, would never be
/// asked.
const SWITCH_INTERVAL: Duration = Duration::from_millis(2);

/// Sets when the GIL is asked for. At the start.
pub(crate) fn set_up(py: Python<'_>) -> PyResult<()> {
    let interval = SWITCH_INTERVAL.as_secs_f64();
    py.import("sys")?
        .call_method1("setswitchinterval", (interval,))
        .map(drop)
}

/// A thread's state, until the thread ends.
struct Kept {
    before: ffi::PyGILState_STATE,
    state: *mut ffi::PyThreadState,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if HERE.with(|here| here.inside.get()) > 0 {
            // Code has ended the process (SHUTDOWN), and its thread is still in the interpreter: the state is in use, and
            // would be waited for without end.
            return;
        }
        // SAFETY: the state is this thread's own, made by `keep`; nothing of the interpreter is in use on the thread
        // that ends.
        unsafe {
            ffi::PyEval_RestoreThread(self.state);
            ffi::PyGILState_Release(self.before);
        }
    }
}

/// What each visit of a thread looks at: in one place, because a shared library has to ask for each value of a thread.
struct Here {
    /// It has a state, or its own way.
    known: Cell<bool>,
    /// Visits that it has begun and not ended.
    inside: Cell<u32>,
    /// See `precedence`.
    has_claim: Cell<bool>,
    /// It keeps the GIL from visit to visit, since then; see `attach_and_stay`.
    stays: Cell<Option<Stay>>,
}

thread_local! {
    static HERE: Here = const {
        Here { known: Cell::new(false), inside: Cell::new(0), has_claim: Cell::new(false), stays: Cell::new(None) }
    };
    static KEPT: Cell<Option<Kept>> = const { Cell::new(None) };
}

/// A visit of this thread.
struct Visit<'a>(&'a Here);

impl Visit<'_> {
    #[inline]
    fn begin(here: &Here) -> Visit<'_> {
        here.inside.set(here.inside.get() + 1);
        Visit(here)
    }
}

impl Drop for Visit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
    }
}

/// Like `Python::attach`, for threads of ours that will do it again. Who has the server lock comes first.
#[inline]
pub(crate) fn attach<R>(f: impl for<'py> FnOnce(Python<'py>) -> R) -> R {
    HERE.with(|here| {
        if !here.known.get() {
            keep(here);
        }
        let _visit = Visit::begin(here);
        let first = Outermost::claim(&here.has_claim, server::has_server_lock);
        // One call of `f` only: with a second one its code is not part of this, and deep recursion takes more stack.
        let waiting = (!first.is_inner).then(Waiting::begin);
        Python::attach(|py| {
            if let Some(waiting) = waiting {
                waiting.end();
            }
            f(py)
        })
    })
}

/// How a thread that keeps the GIL between its visits got it.
#[derive(Clone, Copy)]
struct Stay {
    before: ffi::PyGILState_STATE,
    since_ms: i64,
}

/// So long a thread may keep the GIL between visits. The clock has ticks of 4 ms, so it may be a tick more.
const STAY_MS: i64 = 4;

/// Like `attach`, for a thread that has the server lock, is not inside, and comes back at once as a rule: it keeps the GIL
/// afterwards. Whoever calls this sees to it that the thread calls `leave` before it does anything else for long, and before
/// it waits for any other thread. A fork is seen to here.
#[inline]
pub fn attach_and_stay<R>(f: impl FnOnce() -> R) -> R {
    HERE.with(|here| {
        if here.stays.get().is_none() {
            stay(here);
        }
    });
    attach(|_| f())
}

fn stay(here: &Here) {
    static FORKS: Once = Once::new();
    extern "C" fn before_fork() {
        leave();
    }
    // The child would have a GIL that nobody can give back. It can fail for want of memory only; then a child of the server
    // has it still, and never uses it.
    FORKS.call_once(|| {
        // SAFETY: the function is there as long as the process, and does nothing but for a thread that stays.
        let _ = unsafe { libc::pthread_atfork(Some(before_fork), None, None) };
    });
    if here.has_claim.get() || here.inside.get() > 0 {
        return;
    }
    if !here.known.get() {
        keep(here);
    }
    precedence::begin();
    here.has_claim.set(true);
    let waiting = Waiting::begin();
    // SAFETY: the interpreter is initialised.
    let before = unsafe { ffi::PyGILState_Ensure() };
    let since_ms = waiting.end();
    here.stays.set(Some(Stay { before, since_ms }));
}

/// This thread has the GIL from `attach_and_stay`. After some time it has it no more: others may wait for it, and have it for
/// as long as they like.
#[inline]
pub fn stays() -> bool {
    HERE.with(|here| {
        here.stays.get().is_some_and(|stay| {
            let is_over = here.inside.get() == 0 && coarse_ms() - stay.since_ms > STAY_MS;
            !(is_over && leave())
        })
    })
}

/// Gives back what `attach_and_stay` has kept, unless this thread is inside. It has nothing of that any more.
pub fn leave() -> bool {
    HERE.with(|here| {
        let Some(stay) = here.stays.get() else {
            return true;
        };
        if here.inside.get() > 0 {
            return false;
        }
        here.stays.set(None);
        // SAFETY: the state is of this thread's last call, and nothing of the interpreter is in use on it.
        unsafe { ffi::PyGILState_Release(stay.before) };
        here.has_claim.set(false);
        precedence::end();
        true
    })
}

/// The event loop runs, and asks whether somebody waits.
static LOOP_RUNS: AtomicBool = AtomicBool::new(false);

/// The event loop is about to run.
pub(crate) fn loop_runs() {
    LOOP_RUNS.store(true, Ordering::Relaxed);
}

/// Threads of ours that wait for the GIL.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// One of them.
struct Waiting {
    start_ms: i64,
    is_counted: bool,
}

impl Waiting {
    #[inline]
    fn begin() -> Waiting {
        let is_counted = LOOP_RUNS.load(Ordering::Relaxed);
        if is_counted {
            WAITING.fetch_add(1, Ordering::Relaxed);
        }
        let start_ms = coarse_ms();
        Waiting { start_ms, is_counted }
    }

    /// It has it, at this moment of the coarse clock.
    #[inline]
    fn end(self) -> i64 {
        let now = coarse_ms();
        if now - self.start_ms >= LONG_MS {
            KEPT_LONG.store(now, Ordering::Relaxed);
        }
        now
    }
}

impl Drop for Waiting {
    #[inline]
    fn drop(&mut self) {
        if self.is_counted {
            WAITING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Gives the GIL away while `work` runs. Like `Python::detach`, but who comes back counts as one who waits.
pub(crate) fn without<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> R {
    let result = py.detach(|| {
        let result = work();
        WAITING.fetch_add(1, Ordering::Relaxed);
        result
    });
    WAITING.fetch_sub(1, Ordering::Relaxed);
    result
}

/// Lets those have the GIL who wait for it. A thread that gives it away for a moment again and again, as an event loop does,
/// has it back before they have woken, and by CPython's rules nobody asks it for more: each time they begin to wait anew.
#[pyfunction]
pub(crate) fn give_way(py: Python<'_>) {
    if WAITING.load(Ordering::Relaxed) > 0 {
        py.detach(|| std::thread::sleep(WAY));
    }
}

/// Long enough for a thread to wake.
const WAY: Duration = Duration::from_micros(50);

/// Who waits for the GIL for so long waits for one thread, not for its turn among some: each gives it away after five, unless
/// it is in C code.
const LONG_MS: i64 = 50;
/// One that did may do it again for so long.
const WARY_MS: i64 = 1000;
/// When somebody last got the GIL after having waited for long; 0: never.
static KEPT_LONG: AtomicI64 = AtomicI64::new(0);

/// Lately some thread has kept the GIL for long. That nobody has it says little then: the next moment it may be taken again,
/// and who would wait for it then must not be one that others wait for.
#[inline]
pub fn is_kept_long() -> bool {
    let last = KEPT_LONG.load(Ordering::Relaxed);
    last != 0 && coarse_ms() - last < WARY_MS
}

/// A clock of a few ms, which costs next to nothing.
#[inline]
fn coarse_ms() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

/// A value that is used only with the GIL held, and for moments in which no Python code runs: that needs no lock.
pub(crate) struct WithGil<T>(RefCell<T>);

// SAFETY: the GIL, which every use has to show, lets one thread at a time reach the value.
unsafe impl<T: Send> Sync for WithGil<T> {}

impl<T: Default> Default for WithGil<T> {
    fn default() -> WithGil<T> {
        WithGil::new(T::default())
    }
}

impl<T> WithGil<T> {
    pub(crate) const fn new(value: T) -> WithGil<T> {
        WithGil(RefCell::new(value))
    }

    /// Works with the value. `f` must not run Python code, which could come back here.
    #[inline]
    pub(crate) fn with<R>(&self, _py: Python<'_>, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }
}

#[cold]
fn keep(here: &Here) {
    here.known.set(true);
    // SAFETY: the interpreter is initialised; the thread has no state, so it does not hold the GIL. It gets a state
    // and gives the GIL back with it in place.
    unsafe {
        if !ffi::PyGILState_GetThisThreadState().is_null() {
            return;
        }
        let waiting = Waiting::begin();
        let before = ffi::PyGILState_Ensure();
        drop(waiting);
        let state = ffi::PyEval_SaveThread();
        KEPT.set(Some(Kept { before, state }));
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::tests::start_interpreter;

    fn state() -> usize {
        // SAFETY: the GIL is held.
        attach(|_| unsafe { ffi::PyThreadState_Get() }) as usize
    }

    fn states() -> usize {
        attach(|_| {
            // SAFETY: the GIL is held, so the list stays as it is.
            let mut next = unsafe { ffi::PyInterpreterState_ThreadHead(ffi::PyInterpreterState_Get()) };
            let mut count = 0;
            while !next.is_null() {
                count += 1;
                // SAFETY: as above.
                next = unsafe { ffi::PyThreadState_Next(next) };
            }
            count
        })
    }

    #[test]
    fn a_thread_keeps_its_state_but_not_the_gil() {
        start_interpreter();
        let (tell, hear) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let first = state();
            tell.send(()).unwrap();
            wait.recv().unwrap();
            (first, state())
        });
        hear.recv().unwrap();
        // It waits without the GIL, and others may have states of their own meanwhile.
        assert_ne!(thread::spawn(state).join().unwrap(), 0);
        go_on.send(()).unwrap();
        let (first, second) = thread.join().unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn threads_that_end_leave_nothing() {
        start_interpreter();
        let before = states();
        for _ in 0..300 {
            thread::spawn(state).join().unwrap();
        }
        // Other tests have threads of their own.
        assert!(states() < before + 100, "{before} states became {}", states());
    }
}
