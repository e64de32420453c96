//! Sessions and threads as scripts see them.

use pyo3::{prelude::*, types::PyTuple};

use crate::{context, errors::gears_error, session::PyExecutionSession};

/// The session of the running code.
#[pyfunction]
#[pyo3(name = "getGearsSession")]
pub(crate) fn get_gears_session(py: Python<'_>) -> Option<Py<PyExecutionSession>> {
    context::session().map(|session| session.handle().clone_ref(py))
}

/// Sets the session of this thread.
#[pyfunction]
#[pyo3(name = "setGearsSession", signature = (*args))]
pub(crate) fn set_gears_session(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
    if args.len() != 1 {
        return Err(gears_error(py, "Wrong number of args given to setGearsSession"));
    }
    let session = args.get_item(0)?;
    if session.is_none() {
        context::set_session(None);
        return Ok(());
    }
    match session.cast::<PyExecutionSession>() {
        Ok(session) => {
            context::set_session(Some(PyExecutionSession::session(session)));
            Ok(())
        }
        Err(_) => Err(gears_error(py, "Given object is not of type GearsSession")),
    }
}

/// Makes the calling thread known to the engine.
#[pyfunction]
#[pyo3(name = "registerGearsThread")]
pub(crate) fn register_gears_thread() {
    context::register_thread();
}

/// Refuses builders on threads that have no session or are not registered.
#[pyfunction]
pub(crate) fn check_thread(py: Python<'_>) -> PyResult<()> {
    if context::session().is_none() {
        return Err(gears_error(py, "Can not create a gearsCtx on a python created thread"));
    }
    if !context::registered() {
        return Err(gears_error(py, "Can only create a gearsCtx on registered gears thread"));
    }
    Ok(())
}
