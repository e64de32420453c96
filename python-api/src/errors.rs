//! Exceptions as texts: what error records, command errors and `lastError` say.

use oxigears_coordinator::limits::ERROR_TEXT_BYTES;
use pyo3::{exceptions::PyBaseException, ffi, prelude::*, types::PyString};

use crate::{obj::Obj, runtime::runtime, server::server};

/// An exception of class `redisgears.GearsError`.
pub(crate) fn gears_error(py: Python<'_>, text: impl Into<String>) -> PyErr {
    let class = runtime().gears_error.bind(py);
    match class.call1((text.into(),)) {
        Ok(exception) => PyErr::from_value(exception),
        Err(e) => e,
    }
}

/// The text of an exception: bare for `flat_error`; else the list of traceback lines, if wanted and there; else
/// class and value.
pub fn error_text(py: Python<'_>, error: PyErr) -> String {
    let value = error.value(py);
    if let Some(traceback) = error.traceback(py) {
        // PyO3 keeps them apart; a failure leaves a text without traceback.
        // SAFETY: both are alive and of the right kinds; the GIL is held.
        unsafe { ffi::PyException_SetTraceback(value.as_ptr(), traceback.as_ptr()) };
    }
    describe(py, value.as_ptr())
}

/// The text of an exception of a coroutine: its `str()`, or its class if that says nothing.
pub(crate) fn bare_text(py: Python<'_>, error: &PyErr) -> String {
    value_text(error.value(py))
}

/// `str()` of a value; of an exception that says nothing its class.
pub(crate) fn value_text(value: &Bound<'_, PyAny>) -> String {
    let text = runtime().text_of.bind(value.py()).call1((value,));
    let text = text.and_then(|text| Ok(text.cast_into::<PyString>()?.to_string_lossy().into_owned()));
    match text {
        Ok(text) if !text.is_empty() || !value.is_instance_of::<PyBaseException>() => cut(text),
        _ => {
            let name = value.get_type().name();
            name.map_or_else(|_| "?".to_owned(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// Sets an exception for `take_error_text`.
pub(crate) fn restore(py: Python<'_>, error: PyErr) {
    error.restore(py);
}

/// Takes the exception that a raw call left behind and gives its text.
pub(crate) fn take_error_text(py: Python<'_>) -> String {
    let mut class = std::ptr::null_mut();
    let mut value = std::ptr::null_mut();
    let mut traceback = std::ptr::null_mut();
    // SAFETY: the GIL is held; the three references are owned from here on.
    let value = unsafe {
        ffi::PyErr_Fetch(&mut class, &mut value, &mut traceback);
        ffi::PyErr_NormalizeException(&mut class, &mut value, &mut traceback);
        if !value.is_null() && !traceback.is_null() {
            ffi::PyException_SetTraceback(value, traceback);
        }
        drop(Obj::from_owned(class));
        drop(Obj::from_owned(traceback));
        Obj::from_owned(value)
    };
    match value {
        Some(value) => describe(py, value.as_ptr()),
        None => "a step failed without an exception".to_owned(),
    }
}

fn describe(py: Python<'_>, value: *mut ffi::PyObject) -> String {
    // SAFETY: `value` is alive, its owner is the caller.
    let value = unsafe { Bound::from_borrowed_ptr(py, value) };
    // A forced stop may hit the description itself; it comes back every millisecond, so a few tries suffice.
    for _ in 0..5 {
        let text = runtime()
            .describe
            .bind(py)
            .call1((&value, server().traceback_enabled()));
        if let Ok(text) = text.and_then(|t| Ok(t.cast_into::<PyString>()?)) {
            return cut(text.to_string_lossy().into_owned());
        }
    }
    let class = value
        .get_type()
        .name()
        .map_or_else(|_| "?".to_owned(), |n| n.to_string_lossy().into_owned());
    format!("Error type: <class '{class}'>, Value: (the exception can not be shown)")
}

/// Keeps error texts below the limit.
fn cut(mut text: String) -> String {
    const NOTE: &str = " ... (cut)";
    if text.len() > ERROR_TEXT_BYTES {
        let mut end = ERROR_TEXT_BYTES - NOTE.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(NOTE);
    }
    text
}
