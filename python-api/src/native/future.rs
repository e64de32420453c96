//! `gearsFuture()`, `isAsyncAllow()`, `runCoroutine()`: how scripts postpone records and use the event loop.

use pyo3::{prelude::*, types::PyTuple};

use crate::{
    context,
    errors::{self, gears_error},
    later::{Driver, Message, Situation, Ticket, post},
    obj::Obj,
    server::server,
    session::PyExecutionSession,
};

const NOT_IN_STEP: &str = "Future object can only be created inside certain execution steps";
const ONE_OBJECT: &str = "Continue function expect an object";

/// A postponed record in the hands of a script.
#[pyclass(name = "PyFuture", module = "redisgears", frozen, weakref)]
pub(crate) struct PyFuture {
    ticket: Ticket,
}

impl PyFuture {
    pub(crate) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    fn complete(&self, py: Python<'_>, later: Result<Obj, String>) -> PyResult<()> {
        self.ticket.complete(later).map_err(|text| gears_error(py, text))
    }
}

#[pymethods]
impl PyFuture {
    /// The record goes on with this value.
    #[pyo3(name = "continueRun", signature = (*args))]
    fn continue_run(&self, py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let value = one_object(py, args)?;
        // SAFETY: the GIL is held; the value is alive.
        self.complete(py, Ok(unsafe { Obj::from_borrowed(value.as_ptr()) }))
    }

    /// The record becomes an error with the text of this value.
    #[pyo3(name = "continueFailed", signature = (*args))]
    fn continue_failed(&self, py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let text = errors::value_text(&one_object(py, args)?);
        self.complete(py, Err(text))
    }
}

impl Drop for PyFuture {
    fn drop(&mut self) {
        self.ticket.lose();
    }
}

fn one_object<'py>(py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    match args.len() {
        1 => args.get_item(0),
        _ => Err(gears_error(py, ONE_OBJECT)),
    }
}

/// A future bound to the record at hand.
#[pyfunction]
#[pyo3(name = "gearsFuture", signature = (*args))]
pub(crate) fn gears_future(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<PyFuture> {
    if !args.is_empty() {
        return Err(gears_error(py, "Future gets no arguments"));
    }
    let moment = context::moment();
    let made = moment.map_or(Err(NOT_IN_STEP), |moment| moment.make_future());
    match made {
        Ok(ticket) => Ok(PyFuture { ticket }),
        Err(text) => Err(gears_error(py, text)),
    }
}

/// True in a step that may go on asynchronously.
#[pyfunction]
#[pyo3(name = "isAsyncAllow")]
pub(crate) fn is_async_allow() -> bool {
    context::moment().is_some_and(|moment| moment.is_able())
}

/// Runs a coroutine on the event loop; `future` gets what it gives.
#[pyfunction]
pub(crate) fn run_coroutine(
    py: Python<'_>,
    coroutine: Bound<'_, PyAny>,
    future: Option<Bound<'_, PyAny>>,
    delay: f64,
    session: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    if let Some(text) = server().coroutine_refusal() {
        return Err(gears_error(py, text));
    }
    let mut situation = Situation::here(py, None);
    if let Some(session) = session {
        match session.cast::<PyExecutionSession>() {
            Ok(session) => situation = situation.within(session.clone().unbind()),
            Err(_) => return Err(gears_error(py, "Given object is not of type GearsSession")),
        }
    }
    if !coroutine.hasattr("send")? || !coroutine.hasattr("throw")? || coroutine.is_callable() {
        let text = format!("a coroutine was expected, got {}", coroutine.get_type().name()?);
        return Err(gears_error(py, text));
    }
    let driver = Driver::of_script(coroutine.unbind(), situation, future.map(Bound::unbind));
    let driver = Py::new(py, driver)?;
    post(py, Message::Start { driver, delay })
}

/// The event loop of the process; starts it at the first call.
#[pyfunction]
pub(crate) fn event_loop(py: Python<'_>) -> PyResult<Py<PyAny>> {
    Ok(crate::later::event_loop(py)?.object.clone_ref(py))
}
