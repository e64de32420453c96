//! The embedded Python sources and the native module `_oxigears` that they build on.

use std::path::PathBuf;

use pyo3::{
    ffi::c_str,
    prelude::*,
    types::{PyDict, PyModule},
};

use crate::native;

/// (name, is a package, source)
type Source = (&'static str, bool, &'static str);

macro_rules! source {
    ($name:literal, $package:literal, $path:literal) => {
        ($name, $package, include_str!(concat!("../python/", $path)))
    };
}

/// The package `oxigears`; found before anything installed.
const OWN: &[Source] = &[
    source!("oxigears", true, "oxigears/__init__.py"),
    source!("oxigears.builder", false, "oxigears/builder.py"),
    source!("oxigears.environment", false, "oxigears/environment.py"),
    source!("oxigears.errors", false, "oxigears/errors.py"),
    source!("oxigears.event_loop", false, "oxigears/event_loop.py"),
    source!("oxigears.futures", false, "oxigears/futures.py"),
    source!("oxigears.native_module", false, "oxigears/native_module.py"),
    source!("oxigears.operations", false, "oxigears/operations.py"),
    source!("oxigears.output", false, "oxigears/output.py"),
    source!("oxigears.pickling", false, "oxigears/pickling.py"),
    source!("oxigears.profiling", false, "oxigears/profiling.py"),
    source!("oxigears.registering", false, "oxigears/registering.py"),
    source!("oxigears.timers", false, "oxigears/timers.py"),
    // A private copy under a name of its own, so that all shards agree on the pickler.
    source!("oxigears.cloudpickle", false, "vendor/cloudpickle/cloudpickle.py"),
];

/// Importable by scripts unless the same is installed.
const FALLBACK: &[Source] = &[
    source!("cloudpickle", true, "vendor/cloudpickle/__init__.py"),
    source!("cloudpickle.cloudpickle", false, "vendor/cloudpickle/cloudpickle.py"),
    source!(
        "cloudpickle.cloudpickle_fast",
        false,
        "vendor/cloudpickle/cloudpickle_fast.py"
    ),
];

/// Makes the environment of scripts, which may set a recursion limit up to `deepest`.
pub(crate) fn run(py: Python<'_>, site_dirs: &[PathBuf], deepest: u64) -> PyResult<()> {
    let site = py.import("site")?;
    for folder in site_dirs {
        site.call_method1("addsitedir", (folder.as_os_str(),))?;
    }
    let modules = py.import("sys")?.getattr("modules")?;
    modules.set_item("_oxigears", native::module(py)?)?;
    let importing = PyModule::from_code(
        py,
        c_str!(include_str!("../python/oxigears/importing.py")),
        c_str!("<oxigears/importing.py>"),
        c_str!("oxigears.importing"),
    )?;
    importing.call_method1("install", (sources(py, OWN)?, sources(py, FALLBACK)?))?;
    py.import("oxigears.environment")?
        .call_method1("prepare_process", (deepest,))?;
    Ok(())
}

fn sources<'py>(py: Python<'py>, list: &[Source]) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    for (name, package, text) in list {
        all.set_item(name, (package, text))?;
    }
    Ok(all)
}
