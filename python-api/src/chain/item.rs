//! What moves along a chain.

use pyo3::{ffi, prelude::*};

use crate::{
    codec::{key_bytes, new_text},
    later::{close, is_coroutine},
    obj::Obj,
    runtime::runtime,
};

/// The key of a keyed record.
pub(super) enum Key {
    /// A plain record has none.
    None,
    /// A `str`.
    Text(Obj),
    /// UTF-8 bytes in the input batch or in a table; both outlive the push of the record.
    Raw(*const u8, usize),
}

/// One record.
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) value: Obj,
}

/// A Python exception is set.
pub(crate) struct Raised;

impl Item {
    #[inline]
    pub(super) fn plain(value: Obj) -> Item {
        Item { key: Key::None, value }
    }

    pub(super) fn keyed(key: &[u8], value: Obj) -> Item {
        Item {
            key: Key::Raw(key.as_ptr(), key.len()),
            value,
        }
    }
}

impl Item {
    /// The same, with a key of its own: for a record that stays when its batch goes.
    ///
    /// # Safety
    /// As `Key::bytes`.
    pub(super) unsafe fn detached(self) -> Result<Item, Raised> {
        let key = match &self.key {
            // SAFETY: as for this function.
            Key::Raw(..) => Key::Text(unsafe { self.key.object() }?),
            _ => self.key,
        };
        Ok(Item { key, value: self.value })
    }
}

impl Key {
    /// The key's bytes.
    ///
    /// # Safety
    /// The GIL is held; raw bytes are still alive.
    #[inline]
    pub(super) unsafe fn bytes<'a>(&'a self, spare: &'a mut Vec<u8>) -> Result<&'a [u8], Raised> {
        match self {
            Key::None => Ok(b""),
            // SAFETY: a str that this key owns.
            Key::Text(text) => unsafe { key_bytes(text.as_ptr(), spare) }.map_err(|_| Raised),
            // SAFETY: alive, see the variant.
            Key::Raw(start, len) => Ok(unsafe { std::slice::from_raw_parts(*start, *len) }),
        }
    }

    /// The key as a `str`.
    ///
    /// # Safety
    /// As `bytes`.
    #[inline]
    pub(super) unsafe fn object(&self) -> Result<Obj, Raised> {
        match self {
            // SAFETY: the GIL is held.
            Key::None => Ok(unsafe { Obj::none() }),
            // SAFETY: owned by this key.
            Key::Text(text) => Ok(unsafe { Obj::from_borrowed(text.as_ptr()) }),
            Key::Raw(start, len) => {
                // SAFETY: alive, see the variant; the GIL is held.
                unsafe { new_text(std::slice::from_raw_parts(*start, *len)) }.ok_or(Raised)
            }
        }
    }
}

/// Calls a function with the arguments after the first slot, which the callee may use as scratch space.
///
/// # Safety
/// The GIL is held; all objects are alive.
#[inline]
pub(super) unsafe fn call<const N: usize>(
    function: *mut ffi::PyObject,
    mut args: [*mut ffi::PyObject; N],
) -> Result<Obj, Raised> {
    let count = (N - 1) | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET;
    // SAFETY: one scratch slot before the arguments, as the flag says.
    unsafe {
        let result = ffi::PyObject_Vectorcall(function, args.as_mut_ptr().add(1), count, std::ptr::null_mut());
        Obj::from_owned(result).ok_or(Raised)
    }
}

/// `f(a)`
///
/// # Safety
/// As `call`.
#[inline]
pub(super) unsafe fn call1(function: *mut ffi::PyObject, a: &Obj) -> Result<Obj, Raised> {
    // SAFETY: as for this function.
    unsafe { call(function, [std::ptr::null_mut(), a.as_ptr()]) }
}

/// `f(a, b)`
///
/// # Safety
/// As `call`.
#[inline]
pub(super) unsafe fn call2(function: *mut ffi::PyObject, a: &Obj, b: &Obj) -> Result<Obj, Raised> {
    // SAFETY: as for this function.
    unsafe { call(function, [std::ptr::null_mut(), a.as_ptr(), b.as_ptr()]) }
}

/// `f(a, b, c)`
///
/// # Safety
/// As `call`.
#[inline]
pub(super) unsafe fn call3(function: *mut ffi::PyObject, a: &Obj, b: &Obj, c: &Obj) -> Result<Obj, Raised> {
    // SAFETY: as for this function.
    unsafe { call(function, [std::ptr::null_mut(), a.as_ptr(), b.as_ptr(), c.as_ptr()]) }
}

/// The text of a key: `str` as it is, everything else by `repr`.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(super) unsafe fn key_text(key: Obj) -> Result<Obj, Raised> {
    // SAFETY: `key` is alive and each call takes any object.
    unsafe {
        if ffi::PyUnicode_CheckExact(key.as_ptr()) != 0 {
            return Ok(key);
        }
        let text = match ffi::PyUnicode_Check(key.as_ptr()) {
            0 => ffi::PyObject_Repr(key.as_ptr()),
            // A subclass of str: its characters.
            _ => ffi::PyUnicode_FromObject(key.as_ptr()),
        };
        Obj::from_owned(text).ok_or(Raised)
    }
}

/// The object is a coroutine, where none is taken. It is closed then, so that nothing warns that it was never awaited.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(crate) unsafe fn refuses_coroutine(object: &Obj) -> bool {
    // SAFETY: as for this function.
    unsafe {
        let refused = is_coroutine(object);
        if refused {
            close(object);
        }
        refused
    }
}

/// `{'key': key, 'value': value}`
///
/// # Safety
/// The GIL is held.
pub(super) unsafe fn pair_dict(key: &Obj, value: &Obj) -> Result<Obj, Raised> {
    let words = &runtime().words;
    // SAFETY: all objects are alive; the dict is new.
    unsafe {
        let dict = Obj::from_owned(ffi::PyDict_New()).ok_or(Raised)?;
        if ffi::PyDict_SetItem(dict.as_ptr(), words.key.as_ptr(), key.as_ptr()) != 0
            || ffi::PyDict_SetItem(dict.as_ptr(), words.value.as_ptr(), value.as_ptr()) != 0
        {
            return Err(Raised);
        }
        Ok(dict)
    }
}

/// Gives the exception that is set a traceback if it has none: what fails inside the engine's own operations
/// should read like a failure inside the function that they stand for.
pub(super) fn add_traceback(py: Python<'_>) {
    let error = PyErr::fetch(py);
    if error.traceback(py).is_some() {
        error.restore(py);
        return;
    }
    match runtime().reraise.bind(py).call1((error.value(py),)) {
        Err(raised) => raised.restore(py),
        Ok(_) => error.restore(py),
    }
}
