//! What a chain is at: which futures and coroutines its running callback may make, and which it has made.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
};

use parking_lot::Mutex;
use pyo3::{ffi, prelude::*};

use super::{Message, NOT_ALLOWED, Situation, driver::Driver, post, ticket::Ticket, waits::Waits};
use crate::{chain::Raised, native::PyFuture, obj::Obj, runtime::runtime};

/// Where the running callback stands.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Spot {
    /// It makes records.
    Reader,
    /// Its step can not wait.
    Unable,
    /// Its step can wait.
    Able,
}

/// What became of a call.
pub(crate) enum Called {
    Value(Obj),
    /// It comes back later.
    Later(Ticket),
    /// An exception is set.
    Raised,
    /// An error record with this text.
    Refused(&'static str),
}

/// What a chain is at. Changed only with the GIL held, by the thread that drives the chain.
#[derive(Default)]
pub(crate) struct Moment {
    spot: AtomicU8,
    /// Somebody can wait for postponed records.
    may_postpone: AtomicBool,
    made: AtomicBool,
    ticket: Mutex<Option<Ticket>>,
    waits: Arc<Waits>,
}

impl Moment {
    pub(crate) fn waits(&self) -> &Arc<Waits> {
        &self.waits
    }

    /// A callback is about to be called.
    #[inline]
    pub(crate) fn at(&self, spot: Spot) {
        self.spot.store(spot as u8, Relaxed);
    }

    /// Whether somebody can wait, from now on.
    pub(crate) fn allow(&self, may_postpone: bool) {
        self.may_postpone.store(may_postpone, Relaxed);
    }

    /// `isAsyncAllow()`
    pub(crate) fn is_able(&self) -> bool {
        self.spot.load(Relaxed) == Spot::Able as u8 && self.may_postpone.load(Relaxed)
    }

    /// `gearsFuture()`
    pub(crate) fn make_future(&self) -> Result<Ticket, &'static str> {
        let spot = self.spot.load(Relaxed);
        if spot == Spot::Reader as u8 {
            return Err("Can not create gearsFuture outside of step");
        }
        if spot != Spot::Able as u8 {
            return Err("Step does not support async");
        }
        if self.made.load(Relaxed) {
            return Err("Can not create async record twice on the same step");
        }
        if !self.may_postpone.load(Relaxed) {
            return Err(NOT_ALLOWED);
        }
        let ticket = Ticket::new(self.waits.clone());
        *self.ticket.lock() = Some(ticket.clone());
        self.made.store(true, Relaxed);
        Ok(ticket)
    }

    /// Looks at what a callback gave. The usual case costs two compares.
    ///
    /// # Safety
    /// The GIL is held.
    #[inline]
    pub(crate) unsafe fn called(&self, result: Result<Obj, Raised>) -> Called {
        match result {
            // SAFETY: the GIL is held; the value is alive.
            Ok(value) if !unsafe { is_coroutine(&value) } && !self.made.load(Relaxed) => Called::Value(value),
            // SAFETY: as for this function.
            other => unsafe { self.called_unusually(other) },
        }
    }

    /// # Safety
    /// The GIL is held.
    #[cold]
    unsafe fn called_unusually(&self, result: Result<Obj, Raised>) -> Called {
        // A future that is not returned does not count.
        self.made.store(false, Relaxed);
        let made = self.ticket.lock().take();
        // SAFETY: the GIL is held.
        let py = unsafe { Python::assume_attached() };
        if let (Some(ticket), Ok(value)) = (&made, &result)
            // SAFETY: the GIL is held; the value is alive.
            && let Ok(future) = unsafe { Bound::from_borrowed_ptr(py, value.as_ptr()) }.cast::<PyFuture>()
            && future.get().ticket().is(ticket)
        {
            ticket.returned();
            return Called::Later(ticket.clone());
        }
        if let Some(ticket) = made {
            ticket.not_returned();
        }
        match result {
            // SAFETY: the GIL is held; the value is alive.
            Ok(value) if unsafe { is_coroutine(&value) } => unsafe { self.postpone(value) },
            Ok(value) => Called::Value(value),
            Err(Raised) => Called::Raised,
        }
    }

    /// Hands a coroutine to the event loop.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn postpone(&self, coroutine: Obj) -> Called {
        if !self.may_postpone.load(Relaxed) {
            // SAFETY: the GIL is held.
            unsafe { close(&coroutine) };
            return Called::Refused(NOT_ALLOWED);
        }
        let ticket = Ticket::new(self.waits.clone());
        ticket.returned();
        // SAFETY: the GIL is held; the reference is given away.
        let (py, coroutine) = unsafe {
            let py = Python::assume_attached();
            (py, Bound::from_owned_ptr(py, coroutine.into_ptr()).unbind())
        };
        let situation = Situation::here(py, Some(self.waits.clone()));
        let driver = Driver::of_record(coroutine, situation, ticket.clone());
        let posted = Py::new(py, driver).and_then(|driver| post(py, Message::Start { driver, delay: 0.0 }));
        match posted {
            Ok(()) => Called::Later(ticket),
            Err(e) => {
                e.restore(py);
                Called::Raised
            }
        }
    }
}

/// The object is a coroutine.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(crate) unsafe fn is_coroutine(object: &Obj) -> bool {
    // SAFETY: `object` is alive.
    unsafe { ffi::Py_TYPE(object.as_ptr()) == &raw mut ffi::PyCoro_Type }
}

/// Closes a coroutine that nobody will run, so that nothing warns that it was never awaited.
///
/// # Safety
/// The GIL is held; `coroutine` is one.
pub(crate) unsafe fn close(coroutine: &Obj) {
    // SAFETY: as for this function.
    unsafe {
        let closed = ffi::PyObject_CallMethodNoArgs(coroutine.as_ptr(), runtime().words.close.as_ptr());
        if Obj::from_owned(closed).is_none() {
            ffi::PyErr_Clear();
        }
    }
}
