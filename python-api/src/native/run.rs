//! `run()`: freezes a builder's steps into a plan and hands it to the engine.

use std::sync::Arc;

use oxigears_coordinator::plan::Mode;
use pyo3::{
    prelude::*,
    types::{PyList, PyTuple},
};

use super::table::Table;
use crate::{
    codec::Kept,
    context::{self, Place},
    errors::gears_error,
    functions::RunRequest,
    gil,
    later::{self, Message},
    server::server,
    session::Session,
};

/// The body of a script runs on this thread.
#[pyfunction]
pub(crate) fn is_script_body() -> bool {
    context::place() == Place::Script
}

/// Makes the plan and starts it; the future, if any, gets results and errors; gives the execution's id unless a script body asked, whose run starts later.
#[pyfunction]
pub(crate) fn run(
    py: Python<'_>,
    reader: &Bound<'_, PyTuple>,
    steps: &Bound<'_, PyList>,
    local: bool,
    future: Option<Py<PyAny>>,
) -> PyResult<Option<String>> {
    let Some(session) = context::session().filter(|_| context::registered()) else {
        return Err(gears_error(py, "Can only run execution on registered gears thread"));
    };
    let nested = context::place() != Place::Script;
    if !nested && context::has_request() {
        return Err(gears_error(py, "Can not run more then 1 executions in a single script"));
    }
    let mut request = request(py, reader, steps, local, session.clone(), nested)?;
    if !nested {
        context::set_request(request);
        return Ok(None);
    }
    let kept = Arc::new(Kept::default());
    request.functions = request.functions.keeping(kept.clone());
    let when_over = move |over| {
        if let Some(future) = future {
            later::tell(Message::RunOver {
                future,
                over,
                session,
                kept,
            });
        }
    };
    match gil::without(py, || server().start_run(request, Box::new(when_over))) {
        Ok(id) => Ok(Some(id)),
        Err(text) => Err(gears_error(py, text)),
    }
}

fn request(
    py: Python<'_>,
    reader: &Bound<'_, PyTuple>,
    steps: &Bound<'_, PyList>,
    local: bool,
    session: Arc<Session>,
    nested: bool,
) -> PyResult<RunRequest> {
    let mut table = Table::default();
    let reader = table.reader(reader)?;
    let ops = table.ops(steps)?;
    let shards = server().cluster_size();
    if shards == 0 {
        return Err(gears_error(py, "Cluster is not initialized, can not start executions."));
    }
    let mode = if local { Mode::AsyncLocal } else { Mode::Async };
    let (plan, functions) = table.plan(py, (reader, ops, mode), &session, !local && shards > 1)?;
    Ok(RunRequest {
        plan,
        functions,
        session,
        nested,
    })
}
