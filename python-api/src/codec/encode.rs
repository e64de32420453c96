//! Python objects to record bytes: exact builtin types as they are, anything else as one pickled item.

use oxigears_coordinator::{
    codec::{put_bytes, put_float, put_head, put_int, put_tagged, put_varint, tag},
    limits::CODEC_DEPTH,
};
use pyo3::ffi;

use super::kept::Kept;
use crate::{obj::Obj, runtime::runtime};

/// A Python exception is set.
pub(crate) struct Raised;

enum Stop {
    /// Nested too deep for the typed form.
    TooDeep,
    /// A Python exception is set.
    Raised,
}

/// Encodes records of one session.
#[derive(Clone, Copy)]
pub(crate) struct Encoder {
    /// The session's globals, for pickled values.
    pub(crate) globals: *mut ffi::PyObject,
    /// A reply is all that becomes of the record.
    pub(crate) is_result: bool,
    /// What can not be pickled gets a placeholder: the record does not leave this shard.
    pub(crate) opaque: bool,
    /// Where objects are left when the record does not leave this shard; null otherwise.
    pub(crate) kept: *const Kept,
}

/// The text of a key as UTF-8 (lone surrogates like other code points). `key` is a `str`.
///
/// # Safety
/// The GIL is held; `key` is a live `str` and stays alive while the bytes are used.
#[inline]
pub(crate) unsafe fn key_bytes(key: *mut ffi::PyObject, spare: &mut Vec<u8>) -> Result<&[u8], Raised> {
    let mut len = 0;
    // SAFETY: `key` is a str; the buffer belongs to it and lives as long (see the promise).
    unsafe {
        let start = ffi::PyUnicode_AsUTF8AndSize(key, &mut len);
        if !start.is_null() {
            return Ok(std::slice::from_raw_parts(start.cast(), len as usize));
        }
        if ffi::PyErr_ExceptionMatches(ffi::PyExc_UnicodeEncodeError) == 0 {
            return Err(Raised);
        }
        ffi::PyErr_Clear();
        let encoded = ffi::PyUnicode_AsEncodedString(key, c"utf-8".as_ptr(), c"surrogatepass".as_ptr());
        let encoded = Obj::from_owned(encoded).ok_or(Raised)?;
        spare.clear();
        spare.extend_from_slice(bytes_of(encoded.as_ptr()));
    }
    Ok(spare)
}

/// # Safety
/// `bytes` is a live `bytes` object; the slice must not outlive it.
unsafe fn bytes_of<'a>(bytes: *mut ffi::PyObject) -> &'a [u8] {
    // SAFETY: buffer and length belong to the object.
    unsafe { std::slice::from_raw_parts(ffi::PyBytes_AS_STRING(bytes).cast(), ffi::PyBytes_Size(bytes) as usize) }
}

impl Encoder {
    /// Appends one item. On failure nothing is appended and an exception is set.
    ///
    /// # Safety
    /// The GIL is held; `value` is alive.
    pub(crate) unsafe fn encode(&self, out: &mut Vec<u8>, value: *mut ffi::PyObject) -> Result<(), Raised> {
        let start = out.len();
        // SAFETY: as for this function.
        let result = unsafe {
            match self.value(out, value, 0) {
                Err(Stop::TooDeep) => {
                    out.truncate(start);
                    self.pickle(out, value)
                }
                other => other,
            }
        };
        result.map_err(|_| {
            out.truncate(start);
            Raised
        })
    }

    /// # Safety
    /// As `encode`.
    unsafe fn value(&self, out: &mut Vec<u8>, value: *mut ffi::PyObject, depth: usize) -> Result<(), Stop> {
        // SAFETY: the GIL is held and `value` is alive; each branch uses it as the exact type it has.
        unsafe {
            let kind = ffi::Py_TYPE(value);
            if kind == &raw mut ffi::PyUnicode_Type {
                let mut spare = Vec::new();
                put_tagged(out, tag::STR, key_bytes(value, &mut spare).map_err(|_| Stop::Raised)?);
            } else if kind == &raw mut ffi::PyLong_Type {
                return int(out, value);
            } else if kind == &raw mut ffi::PyDict_Type {
                return self.dict(out, value, depth);
            } else if kind == &raw mut ffi::PyList_Type {
                return self.list(out, value, depth);
            } else if kind == &raw mut ffi::PyTuple_Type {
                return self.tuple(out, value, depth);
            } else if kind == &raw mut ffi::PyFloat_Type {
                put_float(out, ffi::PyFloat_AS_DOUBLE(value));
            } else if value == ffi::Py_None() {
                out.push(tag::NONE);
            } else if kind == &raw mut ffi::PyBool_Type {
                out.push(if value == ffi::Py_True() { tag::TRUE } else { tag::FALSE });
            } else if kind == &raw mut ffi::PyBytes_Type {
                put_tagged(out, tag::BYTES, bytes_of(value));
            } else if kind == &raw mut ffi::PyByteArray_Type {
                let start = ffi::PyByteArray_AsString(value);
                let len = ffi::PyByteArray_Size(value) as usize;
                put_tagged(out, tag::BYTE_ARRAY, std::slice::from_raw_parts(start.cast(), len));
            } else if kind == &raw mut ffi::PySet_Type {
                return self.set(out, tag::SET, value, depth);
            } else if kind == &raw mut ffi::PyFrozenSet_Type {
                return self.set(out, tag::FROZEN_SET, value, depth);
            } else if kind == &raw mut ffi::PyComplex_Type {
                out.push(tag::COMPLEX);
                out.extend_from_slice(&ffi::PyComplex_RealAsDouble(value).to_le_bytes());
                out.extend_from_slice(&ffi::PyComplex_ImagAsDouble(value).to_le_bytes());
            } else {
                if self.is_result {
                    self.shown(out, value, depth)?;
                }
                return self.pickle(out, value);
            }
        }
        Ok(())
    }

    // Pickling runs Python code, which may change a container that is being written: items are held while they are
    // written, sizes are read anew, and a count that came out wrong fails the record.

    /// # Safety
    /// As `encode`; `list` is a list.
    unsafe fn list(&self, out: &mut Vec<u8>, list: *mut ffi::PyObject, depth: usize) -> Result<(), Stop> {
        descend(depth)?;
        // SAFETY: the index is below the size read just before; the item is held while in use.
        unsafe {
            let count = ffi::PyList_GET_SIZE(list);
            put_head(out, tag::LIST, count as usize);
            let mut i = 0;
            while i < ffi::PyList_GET_SIZE(list) && i < count {
                let item = Obj::from_borrowed(ffi::PyList_GET_ITEM(list, i));
                self.value(out, item.as_ptr(), depth + 1)?;
                i += 1;
            }
            unchanged(i, count, ffi::PyList_GET_SIZE(list))
        }
    }

    /// # Safety
    /// As `encode`; `tuple` is a tuple.
    unsafe fn tuple(&self, out: &mut Vec<u8>, tuple: *mut ffi::PyObject, depth: usize) -> Result<(), Stop> {
        descend(depth)?;
        // SAFETY: tuples do not change; the index is below the size.
        unsafe {
            let count = ffi::PyTuple_GET_SIZE(tuple);
            put_head(out, tag::TUPLE, count as usize);
            for i in 0..count {
                self.value(out, ffi::PyTuple_GET_ITEM(tuple, i), depth + 1)?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// As `encode`; `dict` is a dict.
    unsafe fn dict(&self, out: &mut Vec<u8>, dict: *mut ffi::PyObject, depth: usize) -> Result<(), Stop> {
        descend(depth)?;
        // SAFETY: PyDict_Next checks its position against the dict as it is now; key and value are held.
        unsafe {
            let count = ffi::PyDict_Size(dict);
            if count == 4 && depth == 0 && self.key_record(out, dict)? {
                return Ok(());
            }
            put_head(out, tag::DICT, count as usize);
            let (mut position, mut written) = (0, 0);
            let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
            while written < count && ffi::PyDict_Next(dict, &mut position, &mut key, &mut value) != 0 {
                let (key, value) = (Obj::from_borrowed(key), Obj::from_borrowed(value));
                self.value(out, key.as_ptr(), depth + 1)?;
                self.value(out, value.as_ptr(), depth + 1)?;
                written += 1;
            }
            unchanged(written, count, ffi::PyDict_Size(dict))
        }
    }

    /// Writes a record of KeysReader in its short form, which is decoded fastest; false, with nothing written, if
    /// the dict is none. Such records hold the interned words, so comparing pointers is enough.
    ///
    /// # Safety
    /// As `encode`; `dict` is a dict of four.
    unsafe fn key_record(&self, out: &mut Vec<u8>, dict: *mut ffi::PyObject) -> Result<bool, Stop> {
        let words = &runtime().words;
        let names = [&words.event, &words.key, &words.kind, &words.value];
        let mut values = [std::ptr::null_mut(); 4];
        let (mut position, mut key) = (0, std::ptr::null_mut());
        // SAFETY: no Python code runs before the values are held; the key is a str when it is read as one.
        unsafe {
            for (name, value) in names.iter().zip(&mut values) {
                if ffi::PyDict_Next(dict, &mut position, &mut key, value) == 0 || key != name.as_ptr() {
                    return Ok(false);
                }
            }
            let [event, key, kind, value] = values;
            let Some(type_code) = words.types.iter().position(|word| word.as_ptr() == kind) else {
                return Ok(false);
            };
            if event != ffi::Py_None() || ffi::PyUnicode_CheckExact(key) == 0 {
                return Ok(false);
            }
            let mut len = 0;
            let start = ffi::PyUnicode_AsUTF8AndSize(key, &mut len);
            if start.is_null() {
                // Lone surrogates; the long form takes them.
                ffi::PyErr_Clear();
                return Ok(false);
            }
            out.push(tag::KEY_RECORD);
            put_bytes(out, std::slice::from_raw_parts(start.cast(), len as usize));
            out.push(type_code as u8);
            let value = Obj::from_borrowed(value);
            self.value(out, value.as_ptr(), 1)?;
        }
        Ok(true)
    }

    /// # Safety
    /// As `encode`; `set` is a set or frozenset.
    unsafe fn set(&self, out: &mut Vec<u8>, tag: u8, set: *mut ffi::PyObject, depth: usize) -> Result<(), Stop> {
        descend(depth)?;
        // SAFETY: the iterator notices changes and raises; it and its items are owned.
        unsafe {
            let count = ffi::PySet_GET_SIZE(set);
            put_head(out, tag, count as usize);
            let items = Obj::from_owned(ffi::PyObject_GetIter(set)).ok_or(Stop::Raised)?;
            let mut written = 0;
            while let Some(item) = Obj::from_owned(ffi::PyIter_Next(items.as_ptr())) {
                self.value(out, item.as_ptr(), depth + 1)?;
                written += 1;
            }
            if !ffi::PyErr_Occurred().is_null() {
                return Err(Stop::Raised);
            }
            unchanged(written, count, ffi::PySet_GET_SIZE(set))
        }
    }

    /// Instances of subclasses of builtin types look like these in replies: their builtin form goes before them.
    ///
    /// # Safety
    /// As `encode`.
    unsafe fn shown(&self, out: &mut Vec<u8>, value: *mut ffi::PyObject, depth: usize) -> Result<(), Stop> {
        // SAFETY: the GIL is held and `value` is alive; each branch uses it as the type that it has.
        unsafe {
            if ffi::PyList_Check(value) != 0 {
                out.push(tag::SHOWN);
                return self.list(out, value, depth);
            } else if ffi::PyUnicode_Check(value) != 0 {
                let mut spare = Vec::new();
                let text = key_bytes(value, &mut spare).map_err(|_| Stop::Raised)?;
                out.push(tag::SHOWN);
                put_tagged(out, tag::STR, text);
            } else if ffi::PyLong_Check(value) != 0 {
                out.push(tag::SHOWN);
                return int(out, value);
            } else if ffi::PyFloat_Check(value) != 0 {
                out.push(tag::SHOWN);
                put_float(out, ffi::PyFloat_AsDouble(value));
            } else if ffi::PyBytes_Check(value) != 0 {
                out.push(tag::SHOWN);
                put_tagged(out, tag::BYTES, bytes_of(value));
            }
        }
        Ok(())
    }

    /// # Safety
    /// As `encode`.
    unsafe fn pickle(&self, out: &mut Vec<u8>, value: *mut ffi::PyObject) -> Result<(), Stop> {
        // SAFETY: null, or alive for as long as the encoder is used; the GIL is held.
        if let Some(kept) = unsafe { self.kept.as_ref() } {
            out.push(tag::LOCAL);
            // SAFETY: the GIL is held; `value` is alive.
            put_varint(out, unsafe { kept.keep(value) });
            return Ok(());
        }
        let dumps = if self.opaque {
            &runtime().dumps_result
        } else {
            &runtime().dumps
        };
        let args = [value, self.globals];
        // SAFETY: the GIL is held; the arguments live across the call; the result is checked to be bytes.
        unsafe {
            let pickled = ffi::PyObject_Vectorcall(dumps.as_ptr(), args.as_ptr(), 2, std::ptr::null_mut());
            let pickled = Obj::from_owned(pickled).ok_or(Stop::Raised)?;
            if ffi::PyBytes_Check(pickled.as_ptr()) == 0 {
                ffi::PyErr_SetString(ffi::PyExc_TypeError, c"pickling gave no bytes".as_ptr());
                return Err(Stop::Raised);
            }
            out.push(tag::PICKLE);
            put_bytes(out, bytes_of(pickled.as_ptr()));
        }
        Ok(())
    }
}

fn descend(depth: usize) -> Result<(), Stop> {
    if depth >= CODEC_DEPTH {
        Err(Stop::TooDeep)
    } else {
        Ok(())
    }
}

/// # Safety
/// The GIL is held.
unsafe fn unchanged(written: isize, before: isize, after: isize) -> Result<(), Stop> {
    if written == before && after == before {
        return Ok(());
    }
    // SAFETY: the GIL is held; the text is a C string.
    unsafe {
        ffi::PyErr_SetString(
            ffi::PyExc_RuntimeError,
            c"a container changed its size while the record was encoded".as_ptr(),
        );
    }
    Err(Stop::Raised)
}

/// # Safety
/// The GIL is held; `value` is an int.
unsafe fn int(out: &mut Vec<u8>, value: *mut ffi::PyObject) -> Result<(), Stop> {
    let mut overflow = 0;
    // SAFETY: `value` is an int; the buffer has room for all bits and the sign.
    unsafe {
        let n = ffi::PyLong_AsLongLongAndOverflow(value, &mut overflow);
        if overflow == 0 {
            put_int(out, n);
            return Ok(());
        }
        let bits = ffi::PyObject_CallMethodNoArgs(value, runtime().words.bit_length.as_ptr());
        let bits = Obj::from_owned(bits).ok_or(Stop::Raised)?;
        let mut bytes = vec![0u8; ffi::PyLong_AsSize_t(bits.as_ptr()) / 8 + 1];
        if ffi::_PyLong_AsByteArray(value.cast(), bytes.as_mut_ptr(), bytes.len(), 1, 1) != 0 {
            return Err(Stop::Raised);
        }
        put_tagged(out, tag::BIG_INT, &bytes);
    }
    Ok(())
}
