//! A coroutine that runs in its situation: around each step of it the thread has the session, the cause and the rights of
//! the code that made it. What it gives in the end completes its record.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pyo3::{
    PyTraverseError, PyVisit,
    call::PyCallArgs,
    exceptions::{
        PyAttributeError, PyException, PyKeyboardInterrupt, PyStopIteration, PySystemExit, asyncio::CancelledError,
    },
    ffi, intern,
    prelude::*,
    types::{PyString, PyTuple},
};

use super::{
    NEVER_CONTINUED,
    situation::Situation,
    ticket::{Later, Ticket},
    watch,
};
use crate::{
    errors, lock,
    obj::Obj,
    runtime::runtime,
    server::{LogLevel, server},
};

/// The text is part of the interface.
const IN_ATOMIC: &str = "await is not allow inside atomic block";

/// Who gets what the coroutine gives.
enum Target {
    /// The task, as usual.
    Task,
    /// A postponed record.
    Record(Ticket),
    /// The object with `continueRun` and `continueFailed` that a script named.
    Object(Py<PyAny>),
    /// Nobody.
    Nobody,
}

/// The coroutine in its wrapping; asyncio takes it for a coroutine.
#[pyclass(name = "Driver", module = "_oxigears", weakref)]
pub(crate) struct Driver {
    /// `None` after the collector has taken it.
    inner: Option<Py<PyAny>>,
    situation: Situation,
    target: Mutex<Option<Target>>,
    /// It has been told that its execution has ended.
    was_cancelled: AtomicBool,
}

impl Driver {
    fn new(coroutine: Py<PyAny>, situation: Situation, target: Target) -> Driver {
        Driver {
            inner: Some(coroutine),
            situation,
            target: Mutex::new(Some(target)),
            was_cancelled: AtomicBool::new(false),
        }
    }

    /// A coroutine that a step returned.
    pub(crate) fn of_record(coroutine: Py<PyAny>, situation: Situation, ticket: Ticket) -> Driver {
        Driver::new(coroutine, situation, Target::Record(ticket))
    }

    /// One that a script starts; `object` gets what it gives.
    pub(crate) fn of_script(coroutine: Py<PyAny>, situation: Situation, object: Option<Py<PyAny>>) -> Driver {
        Driver::new(coroutine, situation, object.map_or(Target::Nobody, Target::Object))
    }

    /// One that a coroutine makes a task of.
    pub(crate) fn of_task(coroutine: Py<PyAny>, situation: Situation) -> Driver {
        Driver::new(coroutine, situation, Target::Task)
    }

    /// The record that it will complete.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        match &*self.target.lock() {
            Some(Target::Record(ticket)) => Some(ticket.clone()),
            _ => None,
        }
    }

    /// Its execution was ended, or that of the coroutine that made this task. What goes on all the same is to stop.
    fn is_stopped(&self) -> bool {
        self.situation.waits().is_some_and(|waits| waits.has_ended())
            || matches!(&*self.target.lock(), Some(Target::Record(ticket)) if ticket.waits().has_ended())
    }

    fn inner<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.inner {
            Some(inner) => Ok(inner.bind(py).clone()),
            None => Err(PyAttributeError::new_err("the coroutine is gone")),
        }
    }

    /// One step of the coroutine.
    fn step<'py>(
        &self,
        py: Python<'py>,
        first: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<Stepped<'py>>,
    ) -> PyResult<Py<PyAny>> {
        let inner = self.inner(py)?;
        let result = {
            let _inside = self.situation.enter(py);
            let _watched = watch::enter(py, &self.situation);
            let result = first(&inner);
            match lock::in_atomic() {
                true => refuse_waiting(&inner, result),
                false => result,
            }
        };
        match result {
            Ok(Stepped::Awaits(awaited)) => Ok(awaited.unbind()),
            Ok(Stepped::Ended(value)) => self.finish(py, Ok(value)),
            Err(e) => self.finish(py, Err(unharmful(py, e))),
        }
    }

    /// The coroutine has ended.
    fn finish(&self, py: Python<'_>, outcome: PyResult<Bound<'_, PyAny>>) -> PyResult<Py<PyAny>> {
        let target = self.target.lock().take();
        if !matches!(target, None | Some(Target::Task))
            && let Some(session) = self.situation.session()
        {
            session.let_go();
        }
        let end = |value: Py<PyAny>| Err(PyStopIteration::new_err((value,)));
        match (target, outcome) {
            (Some(Target::Record(ticket)), outcome) => ticket.settle(later(py, outcome)),
            (Some(Target::Object(object)), outcome) => tell(object.bind(py), outcome),
            (Some(Target::Nobody), Err(e)) => {
                let text = format!(
                    "GEARS: a coroutine of session {} that nobody waits for failed: {}",
                    self.situation.name(),
                    errors::bare_text(py, &e)
                );
                py.detach(|| server().log(LogLevel::Verbose, &text));
            }
            (Some(Target::Nobody), Ok(_)) => {}
            (_, Ok(value)) => return end(value.unbind()),
            (_, Err(e)) => return Err(e),
        }
        end(py.None())
    }

    /// It will not run any more.
    fn let_go(&self) {
        // An object has a ticket of its own, which says the same when nobody holds it any more.
        let target = self.target.lock().take();
        if let Some(Target::Record(ticket)) = target {
            ticket.settle(Err(NEVER_CONTINUED.to_owned()));
        }
    }
}

/// What a step of a coroutine came to.
enum Stepped<'py> {
    Awaits(Bound<'py, PyAny>),
    Ended(Bound<'py, PyAny>),
}

/// `inner.send(value)`, without an exception for the end.
fn send<'py>(inner: &Bound<'py, PyAny>, value: &Bound<'py, PyAny>) -> PyResult<Stepped<'py>> {
    let py = inner.py();
    let mut result = std::ptr::null_mut();
    // SAFETY: the GIL is held, both objects are alive; the result is a new reference unless the call failed.
    unsafe {
        match ffi::PyIter_Send(inner.as_ptr(), value.as_ptr(), &mut result) {
            ffi::PySendResult::PYGEN_NEXT => Ok(Stepped::Awaits(Bound::from_owned_ptr(py, result))),
            ffi::PySendResult::PYGEN_RETURN => Ok(Stepped::Ended(Bound::from_owned_ptr(py, result))),
            ffi::PySendResult::PYGEN_ERROR => Err(PyErr::fetch(py)),
        }
    }
}

/// `inner.throw(...)`
fn throw<'py>(inner: &Bound<'py, PyAny>, args: impl PyCallArgs<'py>) -> PyResult<Stepped<'py>> {
    let py = inner.py();
    match inner.call_method1(intern!(py, "throw"), args) {
        Ok(awaited) => Ok(Stepped::Awaits(awaited)),
        Err(e) if e.is_instance_of::<PyStopIteration>(py) => {
            Ok(Stepped::Ended(e.value(py).getattr(intern!(py, "value"))?))
        }
        Err(e) => Err(e),
    }
}

/// The coroutine waits inside of its atomic block: it gets an exception there instead, as often as it tries, and does not
/// keep the lock in any case.
fn refuse_waiting<'py>(inner: &Bound<'py, PyAny>, mut result: PyResult<Stepped<'py>>) -> PyResult<Stepped<'py>> {
    let py = inner.py();
    for _ in 0..ATTEMPTS {
        let Ok(Stepped::Awaits(awaited)) = &result else { break };
        if !lock::in_atomic() {
            break;
        }
        // Whoever awaits this future later sees it as new.
        let _ = awaited.setattr(intern!(py, "_asyncio_future_blocking"), false);
        let refusal = PyException::new_err(IN_ATOMIC).into_value(py);
        result = throw(inner, (refusal,));
    }
    // If it is still in the block the end of the visit gives the lock back, and says so.
    result
}

/// Ends a coroutine that is not to go on, as code on a thread is ended; one that will not end is left where it is.
fn stop<'py>(inner: &Bound<'py, PyAny>) -> PyResult<Stepped<'py>> {
    let py = inner.py();
    let kind = runtime().force_stopped.bind(py);
    for _ in 0..ATTEMPTS {
        let reason = kind.call1(("the execution has ended",))?;
        match throw(inner, (reason,)) {
            Ok(Stepped::Awaits(awaited)) => {
                let _ = awaited.setattr(intern!(py, "_asyncio_future_blocking"), false);
            }
            ended => return ended,
        }
    }
    // The collector would only ask it once more to end, in the middle of other work: it stays.
    std::mem::forget(inner.clone());
    Err(PyErr::from_value(kind.call1(("the execution has ended",))?))
}

/// Times that a coroutine may swallow an exception that must not be swallowed.
const ATTEMPTS: usize = 100;

/// An exception that would end the event loop becomes one that does not.
fn unharmful(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PySystemExit>(py) && !error.is_instance_of::<PyKeyboardInterrupt>(py) {
        return error;
    }
    let instead = PyException::new_err(errors::bare_text(py, &error));
    instead.set_cause(py, Some(error));
    instead
}

fn later(py: Python<'_>, outcome: PyResult<Bound<'_, PyAny>>) -> Later {
    match outcome {
        // SAFETY: the GIL is held; the reference is given away.
        Ok(value) => unsafe { Obj::from_owned(value.into_ptr()) }.ok_or_else(String::new),
        Err(e) => Err(errors::bare_text(py, &e)),
    }
}

/// Calls `continueRun` or `continueFailed`.
fn tell(object: &Bound<'_, PyAny>, outcome: PyResult<Bound<'_, PyAny>>) {
    let py = object.py();
    if let Ok(future) = object.cast::<crate::native::PyFuture>() {
        return future.get().ticket().settle(later(py, outcome));
    }
    let told = match outcome {
        Ok(value) => object.call_method1(intern!(py, "continueRun"), (value,)),
        Err(e) => object.call_method1(intern!(py, "continueFailed"), (e.into_value(py),)),
    };
    if let Err(e) = told {
        let text = format!(
            "GEARS: a coroutine's result can not be handed on: {}",
            errors::bare_text(py, &e)
        );
        py.detach(|| server().log(LogLevel::Warning, &text));
    }
}

/// What calls callbacks as running code would (`call`); None on a thread without a session.
#[pyfunction]
pub(crate) fn caller(py: Python<'_>) -> Option<Driver> {
    let situation = Situation::here(py, None);
    situation.session().is_some().then(|| Driver {
        inner: None,
        situation,
        target: Mutex::default(),
        was_cancelled: AtomicBool::new(false),
    })
}

#[pymethods]
impl Driver {
    fn send<'py>(&self, py: Python<'py>, value: Bound<'py, PyAny>) -> PyResult<Py<PyAny>> {
        self.step(py, |inner| match self.is_stopped() {
            false => send(inner, &value),
            true => stop(inner),
        })
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.send(py, py.None().into_bound(py))
    }

    #[pyo3(signature = (*args))]
    fn throw<'py>(&self, py: Python<'py>, args: Bound<'py, PyTuple>) -> PyResult<Py<PyAny>> {
        // The end of its execution cancels it, once.
        let may_pass = || {
            let is_cancel = args
                .get_item(0)
                .is_ok_and(|error| error.is_instance_of::<CancelledError>());
            is_cancel && !self.was_cancelled.swap(true, Ordering::Relaxed)
        };
        match self.is_stopped() && !may_pass() {
            false => self.step(py, |inner| throw(inner, args)),
            true => self.step(py, stop),
        }
    }

    /// `f(*args)`, as the coroutine would call it: for callbacks that it has given to the event loop.
    #[pyo3(signature = (f, *args))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        f: &Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = self.situation.enter(py);
        let _watched = watch::enter(py, &self.situation);
        f.call1(args)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let closed = {
            let _inside = self.situation.enter(py);
            self.inner(py)?.call_method0(intern!(py, "close"))
        };
        self.let_go();
        closed.map(|_| ())
    }

    fn __await__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Names, frames and the like are those of the coroutine.
    fn __getattr__<'py>(&self, py: Python<'py>, name: Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        self.inner(py)?.getattr(name)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.inner)?;
        self.situation.traverse(&visit)?;
        // A locked target is being changed by a thread that holds the GIL, so this can not be.
        if let Some(target) = self.target.try_lock()
            && let Some(Target::Object(object)) = &*target
        {
            visit.call(object)?;
        }
        Ok(())
    }

    fn __clear__(&mut self) {
        self.let_go();
        self.inner = None;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Makes a task's coroutine run in the situation of the code that makes the task.
#[pyfunction]
pub(crate) fn drive<'py>(py: Python<'py>, coroutine: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if coroutine.is_instance_of::<Driver>() {
        return Ok(coroutine);
    }
    let situation = crate::context::situation(py).unwrap_or_else(|| Situation::here(py, None));
    Ok(Bound::new(py, Driver::of_task(coroutine.unbind(), situation))?.into_any())
}
