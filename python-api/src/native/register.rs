//! `register()`: freezes a builder's steps into a registration.

use std::sync::Arc;

use bytes::Bytes;
use oxigears_coordinator::{
    limits::PLAN_BYTES,
    plan::{Mode, Reader},
    registry::{EventSource, RegisterMode},
};
use pyo3::{
    prelude::*,
    types::{PyList, PyString, PyTuple},
};

use super::table::Table;
use crate::{
    context::{self, Place},
    errors::gears_error,
    registration::RegistrationDraft,
    server::server,
    session::Session,
};

/// Makes a registration and gives its id. Those of a script body take effect together after it; one of running code
/// takes effect here before this returns.
#[pyfunction]
#[pyo3(signature = (source, steps, mode, description, on_registered, on_unregistered))]
pub(crate) fn register(
    py: Python<'_>,
    source: &Bound<'_, PyTuple>,
    steps: &Bound<'_, PyList>,
    mode: &str,
    description: Option<&Bound<'_, PyString>>,
    on_registered: Bound<'_, PyAny>,
    on_unregistered: Bound<'_, PyAny>,
) -> PyResult<String> {
    let Some(session) = context::session().filter(|_| context::registered()) else {
        return Err(gears_error(
            py,
            "Can only register execution on registered gears thread",
        ));
    };
    let (mode, plan_mode) = match mode {
        "sync" => (RegisterMode::Sync, Mode::AsyncLocal),
        "async_local" => (RegisterMode::AsyncLocal, Mode::AsyncLocal),
        _ => (RegisterMode::Async, Mode::Async),
    };
    let (source, reader) = event_source(source)?;
    let mut table = Table::default();
    let ops = table.ops(steps)?;
    let on_registered = table.optional(on_registered);
    let on_unregistered = table.optional(on_unregistered);
    let (plan, functions) = table.plan(py, (reader, ops, plan_mode), &session, true)?;
    if plan.code.len() > PLAN_BYTES {
        let text = format!(
            "the functions of the registration have {} bytes, at most {PLAN_BYTES} are allowed",
            plan.code.len()
        );
        return Err(gears_error(py, text));
    }
    let draft = RegistrationDraft {
        id: String::new(),
        plan,
        functions,
        session,
        source,
        mode,
        description: description.map(|text| text.to_string_lossy().into_owned()),
        on_registered,
        on_unregistered,
    };
    let id = match context::place() {
        Place::Script => keep(draft),
        _ => apply(py, draft),
    };
    id.map_err(|text| gears_error(py, text))
}

/// The script body may still fail: the registration waits for its end.
fn keep(mut draft: RegistrationDraft) -> Result<String, String> {
    let mut registrations = context::take_registrations();
    let id = new_id(&draft.session, &draft.source, &registrations);
    if let Ok(id) = &id {
        draft.id.clone_from(id);
        registrations.push(draft);
    }
    context::set_registrations(registrations);
    id
}

fn apply(py: Python<'_>, mut draft: RegistrationDraft) -> Result<String, String> {
    let id = new_id(&draft.session, &draft.source, &[])?;
    draft.id.clone_from(&id);
    py.detach(|| server().register_now(draft))?;
    Ok(id)
}

fn new_id(session: &Arc<Session>, source: &EventSource, earlier: &[RegistrationDraft]) -> Result<String, String> {
    server().new_registration(session, source, earlier)
}

/// What the builder's words mean: so far `("command", trigger, inorder)`.
fn event_source(source: &Bound<'_, PyTuple>) -> PyResult<(EventSource, Reader)> {
    let trigger: Vec<u8> = source.get_item(1)?.extract()?;
    let source = EventSource::Command {
        trigger: Bytes::from(trigger),
        inorder: source.get_item(2)?.extract()?,
    };
    Ok((source, Reader::Command))
}
