//! `execute(cmd, *args)`: runs a command on this shard and gives its reply as Python objects.

use pyo3::{
    prelude::*,
    types::{PyByteArray, PyBytes, PyDict, PyFrozenSet, PyList, PySet, PyString, PyTuple},
};

use crate::{
    errors::gears_error,
    gil,
    server::{Reply, server},
};

/// Runs a command on this shard.
#[pyfunction]
#[pyo3(signature = (*args))]
pub(crate) fn execute<'py>(py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    if args.is_empty() {
        return Ok(PyList::empty(py).into_any());
    }
    if !args.get_item(0)?.is_instance_of::<PyString>() {
        return Err(gears_error(py, "the given command must be a string"));
    }
    let arguments = args.iter().map(|arg| argument(&arg)).collect::<PyResult<Vec<_>>>()?;
    let reply = if server().lock_held() {
        // Waiting for the GIL afterwards would keep the server locked meanwhile.
        server().execute(&arguments)
    } else {
        // A loop of calls keeps the GIL: giving it away for each one would cost more than the call.
        let reply = server().execute_now(&arguments);
        reply.unwrap_or_else(|| gil::without(py, || server().execute(&arguments)))
    };
    match reply {
        Ok(Reply::Error(text)) | Err(text) => Err(gears_error(py, text.trim_end_matches(['\r', '\n']))),
        Ok(reply) => reply_to_python(py, reply),
    }
}

/// The bytes of an argument: bytes as they are, everything else by `str()`.
pub(crate) fn argument(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    if let Ok(bytes) = value.cast::<PyByteArray>() {
        return Ok(bytes.to_vec());
    }
    let text = value.str()?;
    match text.to_str() {
        Ok(text) => Ok(text.as_bytes().to_vec()),
        // Lone surrogates: bytes that the file system encoding hid, or else an error that says so.
        Err(_) => {
            let bytes = text.call_method1("encode", ("utf-8", "surrogateescape"))?;
            Ok(bytes.cast::<PyBytes>()?.as_bytes().to_vec())
        }
    }
}

pub(crate) fn text_to_python<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyAny> {
    match std::str::from_utf8(bytes) {
        Ok(text) => PyString::new(py, text).into_any(),
        Err(_) => PyByteArray::new(py, bytes).into_any(),
    }
}

/// A reply as scripts see it.
pub(crate) fn reply_to_python<'py>(py: Python<'py>, reply: Reply) -> PyResult<Bound<'py, PyAny>> {
    Ok(match reply {
        Reply::Null => py.None().into_bound(py),
        Reply::Int(n) => n.into_pyobject(py)?.into_any(),
        Reply::Bulk(bytes) | Reply::Simple(bytes) => text_to_python(py, &bytes),
        Reply::Error(text) => PyString::new(py, text.trim_end_matches(['\r', '\n'])).into_any(),
        Reply::Array(items) => list(py, items)?,
        Reply::Map(pairs) => {
            let dict = PyDict::new(py);
            for (key, value) in pairs {
                dict.set_item(hashable(reply_to_python(py, key)?)?, reply_to_python(py, value)?)?;
            }
            dict.into_any()
        }
        Reply::Set(items) => {
            let set = PySet::empty(py)?;
            for item in items {
                set.add(hashable(reply_to_python(py, item)?)?)?;
            }
            set.into_any()
        }
        Reply::Double(x) => x.into_pyobject(py)?.into_any(),
        Reply::Bool(b) => b.into_pyobject(py)?.to_owned().into_any(),
        Reply::BigNumber(digits) => py.get_type::<pyo3::types::PyInt>().call1((digits,))?,
    })
}

fn list<'py>(py: Python<'py>, items: Vec<Reply>) -> PyResult<Bound<'py, PyAny>> {
    let list = PyList::empty(py);
    for item in items {
        list.append(reply_to_python(py, item)?)?;
    }
    Ok(list.into_any())
}

/// Keys of maps and members of sets must be hashable: the immutable twin of each container.
fn hashable(value: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let py = value.py();
    if let Ok(bytes) = value.cast::<PyByteArray>() {
        return Ok(PyBytes::new(py, &bytes.to_vec()).into_any());
    }
    if let Ok(list) = value.cast::<PyList>() {
        let items = list.iter().map(hashable).collect::<PyResult<Vec<_>>>()?;
        return Ok(PyTuple::new(py, items)?.into_any());
    }
    if let Ok(set) = value.cast::<PySet>() {
        return Ok(PyFrozenSet::new(py, set.iter())?.into_any());
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        let mut pairs = Vec::with_capacity(dict.len());
        for (key, value) in dict.iter() {
            pairs.push((key, hashable(value)?));
        }
        return Ok(PyTuple::new(py, pairs)?.into_any());
    }
    Ok(value)
}
