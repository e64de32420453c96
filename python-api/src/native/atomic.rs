//! `with atomic():` holds the server lock from entry to exit.

use pyo3::prelude::*;

use crate::{errors::gears_error, lock};

/// The context manager.
#[pyclass(name = "PyAtomic", module = "_oxigears", frozen)]
pub(crate) struct PyAtomic;

#[pymethods]
impl PyAtomic {
    fn __enter__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        match lock::enter_atomic(slf.py()) {
            true => Ok(slf),
            false => Err(gears_error(slf.py(), "Already inside an atomic block")),
        }
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        match lock::leave_atomic() {
            true => Ok(()),
            false => Err(gears_error(py, "Not inside an atomic block")),
        }
    }
}

/// A context manager that holds the server lock.
#[pyfunction]
pub(crate) fn atomic() -> PyAtomic {
    PyAtomic
}

/// This thread is inside `with atomic()`.
#[pyfunction]
#[pyo3(name = "isInAtomicBlock")]
pub(crate) fn is_in_atomic_block() -> bool {
    lock::in_atomic()
}
