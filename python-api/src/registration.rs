//! What `register()` leaves behind, and calling `onRegistered` and `onUnregistered`.

use std::sync::Arc;

use oxigears_coordinator::{
    plan::{FnId, Plan},
    registry::{EventSource, RegisterMode},
};
use pyo3::ffi;

use crate::{
    chain::refuses_coroutine,
    context::{self, Place},
    errors::take_error_text,
    functions::Functions,
    gil,
    obj::Obj,
    session::Session,
};

/// A registration that a script asked for; nothing has happened yet.
#[derive(Debug)]
pub struct RegistrationDraft {
    /// Its id.
    pub id: String,
    /// Reader and operations, with the pickled functions.
    pub plan: Plan,
    /// The functions as they are on this shard.
    pub functions: Functions,
    /// The session that it belongs to.
    pub session: Arc<Session>,
    /// What fires it.
    pub source: EventSource,
    /// Where it runs.
    pub mode: RegisterMode,
    /// The builder's `desc`.
    pub description: Option<String>,
    /// To call when it becomes active on a shard.
    pub on_registered: Option<FnId>,
    /// To call when it is gone from a shard.
    pub on_unregistered: Option<FnId>,
}

/// Calls a function without arguments. Takes the GIL, unless this thread has it; the error is the text for the log.
pub fn call_function(functions: &Functions, function: FnId, session: &Arc<Session>) -> Result<(), String> {
    let function = functions.get(function)?;
    gil::attach(|py| {
        let _visit = context::visit(Place::Callback, session);
        // SAFETY: the GIL is held; the table keeps the function alive.
        match unsafe { Obj::from_owned(ffi::PyObject_CallNoArgs(function)) } {
            None => Err(take_error_text(py)),
            // SAFETY: the GIL is held; the value is alive.
            Some(value) if unsafe { refuses_coroutine(&value) } => Err(COROUTINE.to_owned()),
            Some(_) => Ok(()),
        }
    })
}

const COROUTINE: &str = "a coroutine function is not allowed here: nothing waits for it; give a plain function";
