//! `call_next`, `get_command`, `override_reply`: what code that an event fired may do about its cause.

use oxigears_coordinator::codec::RecordBatch;
use pyo3::{
    prelude::*,
    types::{PyList, PyTuple},
};

use super::execute::{argument, reply_to_python, text_to_python};
use crate::{
    codec::Encoder,
    context,
    errors::{gears_error, take_error_text},
    gil,
    origin::{NO_COMMAND, NO_HOOK},
    server::{Reply, server},
};

/// Runs the next hook on the hooked command, or the command itself.
#[pyfunction]
#[pyo3(signature = (*args))]
pub(crate) fn call_next<'py>(py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    let Some(origin) = context::origin() else {
        return Err(gears_error(py, NO_HOOK));
    };
    let arguments = args.iter().map(|arg| argument(&arg)).collect::<PyResult<Vec<_>>>()?;
    let reply = if server().lock_held() {
        origin.call_next(&arguments)
    } else {
        gil::without(py, || origin.call_next(&arguments))
    };
    match reply {
        Ok(Reply::Error(text)) | Err(text) => Err(gears_error(py, text.trim_end_matches(['\r', '\n']))),
        Ok(reply) => reply_to_python(py, reply),
    }
}

/// The client's command, name first.
#[pyfunction]
pub(crate) fn get_command(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    match context::origin().and_then(|origin| origin.command()) {
        Some(args) => PyList::new(py, args.iter().map(|arg| text_to_python(py, arg))),
        None => Err(gears_error(py, NO_COMMAND)),
    }
}

/// Sets the reply that the client gets instead of the command's own.
#[pyfunction]
#[pyo3(signature = (*args))]
pub(crate) fn override_reply(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
    if args.len() != 1 {
        return Err(gears_error(py, "Override reply must get a single argument"));
    }
    let (Some(origin), Some(session)) = (context::origin(), context::session()) else {
        return Err(gears_error(py, NO_COMMAND));
    };
    let encoder = Encoder {
        globals: session.globals().as_ptr(),
        is_result: true,
        opaque: true,
        kept: std::ptr::null(),
    };
    let mut bytes = Vec::new();
    // SAFETY: the GIL is held; the value and the globals are alive.
    if unsafe { encoder.encode(&mut bytes, args.get_item(0)?.as_ptr()) }.is_err() {
        return Err(gears_error(py, take_error_text(py)));
    }
    let reply = RecordBatch {
        bytes: bytes.into(),
        records: 1,
    };
    origin.override_reply(reply).map_err(|text| gears_error(py, text))
}
