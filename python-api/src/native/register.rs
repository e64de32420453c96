//! `register()`: freezes a builder's steps into a registration.

use std::sync::Arc;

use bytes::Bytes;
use oxigears_coordinator::{
    cron::Cron,
    limits::PLAN_BYTES,
    plan::{Mode, Reader},
    registry::{EventSource, FailurePolicy, RegisterMode, Schedule, StreamOptions},
};
use pyo3::{
    prelude::*,
    types::{PyList, PyString, PyTuple},
};

use super::table::Table;
use crate::{
    context::{self, Place},
    errors::gears_error,
    gil,
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
    let source = event_source(source)?;
    let mut table = Table::default();
    let ops = table.ops(steps)?;
    let on_registered = table.optional(on_registered);
    let on_unregistered = table.optional(on_unregistered);
    let (plan, functions) = table.plan(py, (Reader::Command, ops, plan_mode), &session, true)?;
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
    gil::without(py, || server().register_now(draft))?;
    Ok(id)
}

fn new_id(session: &Arc<Session>, source: &EventSource, earlier: &[RegistrationDraft]) -> Result<String, String> {
    server().new_registration(session, source, earlier)
}

/// What the words of `oxigears.registering` mean.
fn event_source(source: &Bound<'_, PyTuple>) -> PyResult<EventSource> {
    let word = |at: usize| source.get_item(at);
    let bytes = |at: usize| Ok::<_, PyErr>(Bytes::from(word(at)?.extract::<Vec<u8>>()?));
    let optional = |at: usize| Ok::<_, PyErr>(word(at)?.extract::<Option<Vec<u8>>>()?.map(Bytes::from));
    Ok(match word(0)?.extract::<&str>()? {
        "command" => EventSource::Command {
            trigger: bytes(1)?,
            inorder: word(2)?.extract()?,
        },
        "hook" => EventSource::Hook {
            command: word(1)?.extract()?,
            key_prefix: optional(2)?,
            inorder: word(3)?.extract()?,
        },
        "keys" => EventSource::Keys {
            prefix: bytes(1)?,
            event_types: word(2)?.extract()?,
            key_types: word(3)?.extract()?,
            read_value: word(4)?.extract()?,
            all_types: word(5)?.extract()?,
            commands: word(6)?.extract()?,
        },
        "stream" => EventSource::Stream {
            prefix: bytes(1)?,
            batch: word(2)?.extract()?,
            duration_ms: word(3)?.extract()?,
            on_failed: match word(4)?.extract::<&str>()? {
                "abort" => FailurePolicy::Abort,
                "retry" => FailurePolicy::Retry,
                _ => FailurePolicy::Continue,
            },
            retry_interval_s: word(5)?.extract()?,
            trim: word(6)?.extract()?,
            more: StreamOptions {
                group: optional(7)?,
                exactly_once: word(8)?.extract()?,
                max_retries: word(9)?.extract()?,
                dead_letter: optional(10)?,
            },
        },
        _ => EventSource::Timer {
            schedule: match word(1)?.extract::<u64>() {
                Ok(ms) => Schedule::Every { ms },
                Err(_) => {
                    let expression: String = word(1)?.extract()?;
                    Cron::parse(&expression).map_err(|e| gears_error(source.py(), e.to_string()))?;
                    Schedule::Cron { expression }
                }
            },
            everywhere: word(2)?.extract()?,
        },
    })
}
