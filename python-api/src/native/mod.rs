//! The native module `_oxigears`: what the embedded Python sources and scripts call.

mod atomic;
mod execute;
mod future;
mod origin;
mod register;
mod run;
mod session;
mod table;
mod timer;

use pyo3::{
    prelude::*,
    types::{PyModule, PyString},
};

pub(crate) use execute::argument;
pub(crate) use future::PyFuture;
pub use timer::TimerDraft;

use crate::{
    context, gil, later,
    server::{LogLevel, server},
    session::PyExecutionSession,
};

/// Makes the module.
pub(crate) fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    let module = PyModule::new(py, "_oxigears")?;
    module.add_class::<atomic::PyAtomic>()?;
    module.add_class::<PyExecutionSession>()?;
    module.add_function(wrap_pyfunction!(atomic::atomic, &module)?)?;
    module.add_function(wrap_pyfunction!(atomic::is_in_atomic_block, &module)?)?;
    module.add_function(wrap_pyfunction!(execute::execute, &module)?)?;
    module.add_function(wrap_pyfunction!(origin::call_next, &module)?)?;
    module.add_function(wrap_pyfunction!(origin::get_command, &module)?)?;
    module.add_function(wrap_pyfunction!(origin::override_reply, &module)?)?;
    module.add_function(wrap_pyfunction!(run::run, &module)?)?;
    module.add_function(wrap_pyfunction!(register::register, &module)?)?;
    module.add_function(wrap_pyfunction!(timer::register_timer, &module)?)?;
    module.add_function(wrap_pyfunction!(builder_made, &module)?)?;
    module.add_function(wrap_pyfunction!(session::get_gears_session, &module)?)?;
    module.add_function(wrap_pyfunction!(session::set_gears_session, &module)?)?;
    module.add_function(wrap_pyfunction!(session::register_gears_thread, &module)?)?;
    module.add_function(wrap_pyfunction!(session::check_thread, &module)?)?;
    module.add_function(wrap_pyfunction!(hashtag, &module)?)?;
    module.add_function(wrap_pyfunction!(log, &module)?)?;
    module.add_function(wrap_pyfunction!(config_get, &module)?)?;
    module.add_class::<PyFuture>()?;
    module.add_class::<later::Driver>()?;
    module.add_function(wrap_pyfunction!(future::is_async_allow, &module)?)?;
    module.add_function(wrap_pyfunction!(future::gears_future, &module)?)?;
    module.add_function(wrap_pyfunction!(future::run_coroutine, &module)?)?;
    module.add_function(wrap_pyfunction!(future::event_loop, &module)?)?;
    module.add_function(wrap_pyfunction!(run::is_script_body, &module)?)?;
    module.add_function(wrap_pyfunction!(later::drain, &module)?)?;
    module.add_function(wrap_pyfunction!(gil::give_way, &module)?)?;
    module.add_function(wrap_pyfunction!(context::turn_over, &module)?)?;
    module.add_function(wrap_pyfunction!(later::drive, &module)?)?;
    module.add_function(wrap_pyfunction!(later::caller, &module)?)?;
    Ok(module)
}

/// Runs `work` without the GIL, unless this thread has the server lock: to wait for the GIL afterwards would keep the server
/// locked meanwhile.
pub(crate) fn outside<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> R {
    match server().lock_held() {
        true => work(),
        false => gil::without(py, work),
    }
}

/// A short text whose slot is the lowest slot of this shard.
#[pyfunction]
fn hashtag(py: Python<'_>) -> Option<String> {
    outside(py, || server().hashtag())
}

#[pyfunction]
fn log(py: Python<'_>, level: &str, message: &Bound<'_, PyString>) {
    let level = match level {
        "debug" => LogLevel::Debug,
        "verbose" => LogLevel::Verbose,
        "warning" => LogLevel::Warning,
        _ => LogLevel::Notice,
    };
    let text = message.to_string_lossy();
    outside(py, || server().log(level, &text));
}

#[pyfunction]
fn config_get(py: Python<'_>, key: &Bound<'_, PyString>) -> Option<String> {
    let key = key.to_string_lossy();
    outside(py, || server().config_get(&key))
}

/// A builder takes one number of the registration counter.
#[pyfunction]
fn builder_made() {
    server().builder_made();
}
