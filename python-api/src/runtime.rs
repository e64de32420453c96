//! Python objects that the Rust half keeps at hand; made once when the interpreter starts.

use std::sync::OnceLock;

use oxigears_coordinator::codec::TYPE_WORDS;
use pyo3::{
    ffi, intern,
    prelude::*,
    types::{PyDict, PyString},
};

/// Interned texts that records are made of.
pub(crate) struct Words {
    pub(crate) event: Py<PyString>,
    pub(crate) key: Py<PyString>,
    pub(crate) kind: Py<PyString>,
    pub(crate) value: Py<PyString>,
    pub(crate) id: Py<PyString>,
    pub(crate) types: [Py<PyString>; TYPE_WORDS.len()],
    pub(crate) close: Py<PyString>,
    pub(crate) bit_length: Py<PyString>,
}

/// The objects.
pub(crate) struct Runtime {
    pub(crate) base_environment: Py<PyDict>,
    pub(crate) gears_error: Py<PyAny>,
    pub(crate) force_stopped: Py<PyAny>,
    /// `describe(exception, traceback_wanted)` gives the text of an error.
    pub(crate) describe: Py<PyAny>,
    /// `text_of(value)`: `str()` that never raises.
    pub(crate) text_of: Py<PyAny>,
    /// `dumps(object, session_globals)`
    pub(crate) dumps: Py<PyAny>,
    /// `dumps_result(object, session_globals)`: never fails on objects that can not be pickled.
    pub(crate) dumps_result: Py<PyAny>,
    /// `loads(bytes, session_globals)`
    pub(crate) loads: Py<PyAny>,
    /// `dumps_functions(functions, session_globals)`
    pub(crate) dumps_functions: Py<PyAny>,
    pub(crate) deepcopy: Py<PyAny>,
    /// `sort_records(list, ascending)`
    pub(crate) sort_records: Py<PyAny>,
    /// `do_nothing()`
    pub(crate) do_nothing: Py<PyAny>,
    /// `reraise(exception)`
    pub(crate) reraise: Py<PyAny>,
    pub(crate) collect_garbage: Py<PyAny>,
    pub(crate) words: Words,
    /// KeysReader's record with all values `None`, to be copied.
    pub(crate) key_record: Py<PyDict>,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// The objects; only after `initialize`, which comes before all other calls.
#[inline]
pub(crate) fn runtime() -> &'static Runtime {
    RUNTIME.get().expect("the interpreter is initialised")
}

/// Collects the objects from the embedded Python modules.
pub(crate) fn set(py: Python<'_>) -> PyResult<()> {
    let get = |module: &str, name: &str| -> PyResult<Py<PyAny>> { Ok(py.import(module)?.getattr(name)?.unbind()) };
    let words = Words {
        event: word(py, "event"),
        key: word(py, "key"),
        kind: word(py, "type"),
        value: word(py, "value"),
        id: word(py, "id"),
        types: TYPE_WORDS.map(|t| word(py, t)),
        close: word(py, "close"),
        bit_length: word(py, "bit_length"),
    };
    let key_record = PyDict::new(py);
    for name in ["event", "key", "type", "value"] {
        key_record.set_item(word(py, name), py.None())?;
    }
    let runtime = Runtime {
        base_environment: get("oxigears.environment", "base_environment")?
            .bind(py)
            .cast::<PyDict>()?
            .clone()
            .unbind(),
        gears_error: get("oxigears.errors", "error")?,
        force_stopped: get("oxigears.errors", "forcestopped")?,
        describe: get("oxigears.errors", "describe")?,
        text_of: get("oxigears.errors", "text_of")?,
        dumps: get("oxigears.pickling", "dumps")?,
        dumps_result: get("oxigears.pickling", "dumps_result")?,
        loads: get("oxigears.pickling", "loads")?,
        dumps_functions: get("oxigears.pickling", "dumps_functions")?,
        sort_records: get("oxigears.operations", "sort_records")?,
        do_nothing: get("oxigears.operations", "do_nothing")?,
        reraise: get("oxigears.operations", "reraise")?,
        deepcopy: get("copy", "deepcopy")?,
        collect_garbage: get("gc", "collect")?,
        words,
        key_record: key_record.unbind(),
    };
    let _ = RUNTIME.set(runtime);
    // What lives from the start on is never garbage: later collections need not look at it.
    py.import("gc")?.call_method0(intern!(py, "collect"))?;
    py.import("gc")?.call_method0(intern!(py, "freeze"))?;
    Ok(())
}

fn word(py: Python<'_>, text: &str) -> Py<PyString> {
    PyString::intern(py, text).unbind()
}

/// An interpreter runs in this process.
pub(crate) fn has_interpreter() -> bool {
    // SAFETY: may be called at any time.
    unsafe { ffi::Py_IsInitialized() != 0 }
}
