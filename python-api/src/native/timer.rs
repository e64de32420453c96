//! `registerTE()`: a function that is called again and again.

use oxigears_coordinator::limits::{PLAN_BYTES, TIMER_PERIOD_MS};
use pyo3::prelude::*;

use super::{execute::argument, outside};
use crate::{
    context,
    errors::gears_error,
    functions::{Functions, dump_functions},
    server::server,
};

/// A timer that code asked for.
#[derive(Debug)]
pub struct TimerDraft {
    /// Milliseconds from the end of a call to the next one.
    pub period_ms: u64,
    /// The key that is to hold it; `None`: it has none.
    pub key: Option<Vec<u8>>,
    /// The callback, as function 0.
    pub functions: Functions,
    /// The pickled callback, if there is a key.
    pub code: Vec<u8>,
}

/// Makes a timer; False if its key holds something already. What was given has been checked.
#[pyfunction]
pub(crate) fn register_timer(
    py: Python<'_>,
    seconds: &Bound<'_, PyAny>,
    callback: Bound<'_, PyAny>,
    key: Option<&Bound<'_, PyAny>>,
) -> PyResult<bool> {
    let Some(session) = context::session() else {
        return Err(gears_error(py, "can not create time event on a python created thread"));
    };
    let period_ms = seconds.extract::<u64>().ok().and_then(|s| s.checked_mul(1000));
    let Some(period_ms) = period_ms.filter(|&ms| ms <= TIMER_PERIOD_MS) else {
        let most = TIMER_PERIOD_MS / 1000;
        return Err(gears_error(
            py,
            format!("time argument must be between 0 and {most} seconds"),
        ));
    };
    let key = key.map(argument).transpose()?;
    let objects = vec![callback.unbind()];
    let code = match &key {
        Some(_) => dump_functions(py, &objects, &session)?,
        None => Vec::new(),
    };
    if code.len() > PLAN_BYTES {
        let text = format!(
            "the timer's function has {} bytes, at most {PLAN_BYTES} are allowed",
            code.len()
        );
        return Err(gears_error(py, text));
    }
    let draft = TimerDraft {
        period_ms,
        key,
        functions: Functions::new(objects, session),
        code,
    };
    let made = outside(py, || server().register_timer(draft));
    made.map_err(|text| gears_error(py, text))
}
