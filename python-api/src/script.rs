//! Running the body of a script.

use std::sync::Arc;

use pyo3::{
    prelude::*,
    types::{PyBytes, PyCode, PyCodeMethods},
};

use crate::{
    context::{self, Place},
    errors::error_text,
    functions::RunRequest,
    gil, lock,
    registration::RegistrationDraft,
    session::{self, Session},
};

/// What a script body left behind.
#[derive(Debug)]
pub struct ScriptOutcome {
    /// The execution that it asked for.
    pub run: Option<RunRequest>,
    /// The registrations that it asked for, in order.
    pub registrations: Vec<RegistrationDraft>,
}

/// Runs a script body with the GIL and the server lock held. Called on a thread with a big stack, without both.
pub fn run_script(session: &Arc<Session>, code: &[u8]) -> Result<ScriptOutcome, String> {
    gil::attach(|py| {
        session::collect_ended(py);
        let body = compile(py, code).map_err(|e| error_text(py, e))?;
        lock::lock_server_for_body(py);
        let entered = context::enter(Place::Script, session);
        let result = body.run(Some(session.globals().bind(py)), None);
        lock::leave_atomic();
        lock::unlock_server();
        let (run, registrations) = (entered.take_request(), entered.take_registrations());
        drop(entered);
        match result {
            Ok(_) => Ok(ScriptOutcome { run, registrations }),
            Err(e) => Err(error_text(py, e)),
        }
    })
}

/// Bytes, not text: so that a coding cookie, a byte order mark and NUL bytes get the interpreter's own answers.
fn compile<'py>(py: Python<'py>, code: &[u8]) -> PyResult<Bound<'py, PyCode>> {
    let arguments = (PyBytes::new(py, code), "<string>", "exec", 0, true);
    Ok(py
        .import("builtins")?
        .getattr("compile")?
        .call1(arguments)?
        .cast_into::<PyCode>()?)
}
