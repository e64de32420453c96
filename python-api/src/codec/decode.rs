//! Record bytes to Python objects. The bytes may come from the network: everything is checked.

use oxigears_coordinator::{
    codec::{CodecError, Cursor, Item, TextEvent},
    limits::CODEC_DEPTH,
};
use pyo3::ffi;

use super::{kept::Kept, templates};
use crate::{obj::Obj, runtime::runtime};

/// Why a record can not be decoded.
pub(crate) enum DecodeError {
    /// The bytes are no record; what follows is lost as well.
    Codec(CodecError),
    /// A Python exception is set; the records after this one are intact.
    Python,
}

impl From<CodecError> for DecodeError {
    fn from(e: CodecError) -> DecodeError {
        DecodeError::Codec(e)
    }
}

type Decoded = Result<Obj, DecodeError>;

/// Decodes records of one session.
#[derive(Clone, Copy)]
pub(crate) struct Decoder {
    /// The session's globals, for pickled values.
    pub(crate) globals: *mut ffi::PyObject,
    /// Objects that earlier stages left on this shard; null if there are none.
    pub(crate) kept: *const Kept,
}

/// Longer texts are left to Python, which looks at more bytes at once.
const SHORT_TEXT: usize = 64;

/// A `str` of some ASCII characters: half the work of the general way, and most texts are such ones.
///
/// # Safety
/// The GIL is held.
#[inline]
unsafe fn short_text(bytes: &[u8]) -> Option<Obj> {
    // Python has the shorter ones ready.
    if !(2..=SHORT_TEXT).contains(&bytes.len()) || !bytes.is_ascii() {
        return None;
    }
    // SAFETY: the GIL is held; a new text for ASCII holds as many bytes as characters, and nobody else has seen it.
    unsafe {
        let Some(text) = Obj::from_owned(ffi::PyUnicode_New(bytes.len() as ffi::Py_ssize_t, 0x7f)) else {
            ffi::PyErr_Clear();
            return None;
        };
        let data = ffi::PyUnicode_1BYTE_DATA(text.as_ptr());
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        Some(text)
    }
}

/// A `str` from UTF-8 in which lone surrogates may be encoded.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(crate) unsafe fn new_text(bytes: &[u8]) -> Option<Obj> {
    // SAFETY: as for this function.
    if let Some(text) = unsafe { short_text(bytes) } {
        return Some(text);
    }
    // SAFETY: pointer and length are those of a slice; the GIL is held.
    unsafe {
        Obj::from_owned(ffi::PyUnicode_DecodeUTF8(
            bytes.as_ptr().cast(),
            bytes.len() as ffi::Py_ssize_t,
            c"surrogatepass".as_ptr(),
        ))
    }
}

/// `str` if the bytes are UTF-8, else what `fallback` makes.
#[inline]
unsafe fn keyspace_text(
    bytes: &[u8],
    fallback: unsafe extern "C" fn(*const std::os::raw::c_char, ffi::Py_ssize_t) -> *mut ffi::PyObject,
) -> Decoded {
    // SAFETY: the GIL is held.
    if let Some(text) = unsafe { short_text(bytes) } {
        return Ok(text);
    }
    let (start, len) = (bytes.as_ptr().cast(), bytes.len() as ffi::Py_ssize_t);
    // SAFETY: pointer and length are those of a slice; the GIL is held.
    unsafe {
        match Obj::from_owned(ffi::PyUnicode_DecodeUTF8(start, len, std::ptr::null())) {
            Some(text) => Ok(text),
            None if ffi::PyErr_ExceptionMatches(ffi::PyExc_UnicodeDecodeError) != 0 => {
                ffi::PyErr_Clear();
                made(fallback(start, len))
            }
            None => Err(DecodeError::Python),
        }
    }
}

/// An argument of a command: `str`, or `bytearray` if it is not UTF-8. On failure an exception is set.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(crate) unsafe fn argument_text(bytes: &[u8]) -> Option<Obj> {
    // SAFETY: the GIL is held.
    unsafe { keyspace_text(bytes, ffi::PyByteArray_FromStringAndSize) }.ok()
}

#[inline]
pub(super) unsafe fn made(ptr: *mut ffi::PyObject) -> Decoded {
    // SAFETY: `ptr` is a new reference or NULL with an exception set.
    unsafe { Obj::from_owned(ptr) }.ok_or(DecodeError::Python)
}

#[inline]
pub(super) unsafe fn put(dict: &Obj, key: *mut ffi::PyObject, value: *mut ffi::PyObject) -> Result<(), DecodeError> {
    // SAFETY: all three are live objects and `dict` is a dict of our own; the GIL is held.
    match unsafe { ffi::PyDict_SetItem(dict.as_ptr(), key, value) } {
        0 => Ok(()),
        _ => Err(DecodeError::Python),
    }
}

/// The record of a key.
///
/// # Safety
/// The GIL is held.
#[inline]
unsafe fn key_record(event: Option<&[u8]>, type_code: u8, key: &Obj, value: &Obj) -> Decoded {
    let words = &runtime().words;
    // SAFETY: the GIL is held; the words live as long as the process.
    unsafe {
        let dict = templates::key_record(event, type_code)?;
        put(&dict, words.key.as_ptr(), key.as_ptr())?;
        put(&dict, words.value.as_ptr(), value.as_ptr())?;
        Ok(dict)
    }
}

/// That of an event whose value is a text, or none.
///
/// # Safety
/// The GIL is held.
#[inline]
unsafe fn text_event(event: &[u8], key: &[u8], (type_code, value): (u8, Option<&[u8]>)) -> Decoded {
    // SAFETY: as for this function.
    unsafe {
        let key = keyspace_text(key, ffi::PyByteArray_FromStringAndSize)?;
        let value = match value {
            Some(text) => keyspace_text(text, ffi::PyByteArray_FromStringAndSize)?,
            None => Obj::none(),
        };
        key_record(Some(event), type_code, &key, &value)
    }
}

impl Decoder {
    /// Decodes the next item.
    ///
    /// # Safety
    /// The GIL is held and `globals` is alive.
    pub(crate) unsafe fn next(&self, cursor: &mut Cursor<'_>) -> Decoded {
        // Events of strings are the most frequent records of all.
        let mut behind = cursor.clone();
        let event = behind.text_event();
        // SAFETY: the GIL is held.
        if let Some(decoded) = event.and_then(|event| unsafe { self.event(&event) }) {
            *cursor = behind;
            return decoded;
        }
        let item = cursor.next_item()?;
        // SAFETY: as for this function.
        unsafe { self.item(item, cursor, 0) }
    }

    /// Decodes an event whose record has been read; `None` if it has no type and value.
    ///
    /// # Safety
    /// The GIL is held.
    #[inline]
    pub(crate) unsafe fn event(&self, event: &TextEvent<'_>) -> Option<Decoded> {
        let read = event.read?;
        // SAFETY: the GIL is held.
        Some(unsafe { text_event(event.event, event.key, read) })
    }

    /// Decodes an item whose head has been read.
    ///
    /// # Safety
    /// The GIL is held and `globals` is alive.
    pub(crate) unsafe fn item(&self, item: Item<'_>, cursor: &mut Cursor<'_>, depth: usize) -> Decoded {
        if depth > CODEC_DEPTH + 2 {
            return Err(CodecError::TooDeep.into());
        }
        let len = |bytes: &[u8]| bytes.len() as ffi::Py_ssize_t;
        // SAFETY: the GIL is held; every pointer and length pair comes from one slice; `made` takes new references.
        unsafe {
            match item {
                Item::KeyRecord { key, type_code } => self.key_record(None, (key, type_code), cursor, depth),
                Item::Text(b) => keyspace_text(b, ffi::PyByteArray_FromStringAndSize),
                Item::TextKey(b) => keyspace_text(b, ffi::PyBytes_FromStringAndSize),
                Item::Str(b) => new_text(b).ok_or(DecodeError::Python),
                Item::None => Ok(Obj::none()),
                Item::Bool(true) => Ok(Obj::from_borrowed(ffi::Py_True())),
                Item::Bool(false) => Ok(Obj::from_borrowed(ffi::Py_False())),
                Item::Int(n) => made(ffi::PyLong_FromLongLong(n)),
                Item::BigInt(b) => made(ffi::_PyLong_FromByteArray(b.as_ptr(), b.len(), 1, 1)),
                Item::Float(x) => made(ffi::PyFloat_FromDouble(x)),
                Item::Complex(re, im) => made(ffi::PyComplex_FromDoubles(re, im)),
                Item::Bytes(b) => made(ffi::PyBytes_FromStringAndSize(b.as_ptr().cast(), len(b))),
                Item::ByteArray(b) => made(ffi::PyByteArray_FromStringAndSize(b.as_ptr().cast(), len(b))),
                Item::List(n) => self.list(n, cursor, depth),
                Item::Tuple(n) => self.tuple(n, cursor, depth),
                Item::Dict(n) => self.dict(n, cursor, depth),
                Item::Set(n) => self.set(made(ffi::PySet_New(std::ptr::null_mut()))?, n, cursor, depth),
                Item::FrozenSet(n) => self.set(made(ffi::PyFrozenSet_New(std::ptr::null_mut()))?, n, cursor, depth),
                Item::Pickle(b) => self.unpickle(b),
                Item::Shown => {
                    // The form for replies; the value is behind it.
                    cursor.skip()?;
                    self.nested(cursor, depth)
                }
                // A null pointer takes nothing; a number that nobody left can come only from a broken peer.
                Item::Local(number) => self
                    .kept
                    .as_ref()
                    .and_then(|kept| kept.take(number))
                    .ok_or_else(|| CodecError::UnknownTag(oxigears_coordinator::codec::tag::LOCAL).into()),
                Item::KeyNameRecord { key } => {
                    let words = &runtime().words;
                    let dict = made(ffi::PyDict_New())?;
                    put(&dict, words.event.as_ptr(), ffi::Py_None())?;
                    let key = keyspace_text(key, ffi::PyByteArray_FromStringAndSize)?;
                    put(&dict, words.key.as_ptr(), key.as_ptr())?;
                    Ok(dict)
                }
                Item::StreamRecord { key, id } => self.stream_record(key, id, cursor, depth),
                Item::KeyEvent { event } if depth == 0 => self.key_event(event, cursor),
                Item::KeyEvent { .. } => {
                    Err(CodecError::UnknownTag(oxigears_coordinator::codec::tag::KEY_EVENT).into())
                }
                Item::EventText if depth == 0 => {
                    let text = cursor.event_text()?;
                    new_text(&text).ok_or(DecodeError::Python)
                }
                Item::EventText => Err(CodecError::UnknownTag(oxigears_coordinator::codec::tag::EVENT_TEXT).into()),
                // Only at the top, where the chain takes it apart.
                Item::Keyed { .. } => Err(CodecError::UnknownTag(oxigears_coordinator::codec::tag::KEYED).into()),
            }
        }
    }

    /// # Safety
    /// As `item`.
    unsafe fn nested(&self, cursor: &mut Cursor<'_>, depth: usize) -> Decoded {
        let item = cursor.next_item()?;
        // SAFETY: as for this function.
        unsafe { self.item(item, cursor, depth + 1) }
    }

    /// # Safety
    /// As `item`.
    unsafe fn key_record(
        &self,
        event: Option<&[u8]>,
        (key, type_code): (&[u8], u8),
        cursor: &mut Cursor<'_>,
        depth: usize,
    ) -> Decoded {
        // SAFETY: the GIL is held.
        unsafe {
            let key = keyspace_text(key, ffi::PyByteArray_FromStringAndSize)?;
            let value = self.nested(cursor, depth)?;
            key_record(event, type_code, &key, &value)
        }
    }

    /// The record of a key with the name of its event.
    ///
    /// # Safety
    /// As `item`.
    unsafe fn key_event(&self, event: &[u8], cursor: &mut Cursor<'_>) -> Decoded {
        let record = match cursor.next_item()? {
            // SAFETY: as for this function.
            Item::KeyRecord { key, type_code } => unsafe {
                return self.key_record(Some(event), (key, type_code), cursor, 1);
            },
            record @ Item::KeyNameRecord { .. } => record,
            _ => return Err(CodecError::UnknownTag(oxigears_coordinator::codec::tag::KEY_EVENT).into()),
        };
        // SAFETY: as for this function; the record is a new dict, in which the event has its place.
        unsafe {
            let dict = self.item(record, cursor, 1)?;
            let event = new_text(event).ok_or(DecodeError::Python)?;
            put(&dict, runtime().words.event.as_ptr(), event.as_ptr())?;
            Ok(dict)
        }
    }

    /// # Safety
    /// As `item`.
    unsafe fn stream_record(&self, key: &[u8], id: &[u8], cursor: &mut Cursor<'_>, depth: usize) -> Decoded {
        let words = &runtime().words;
        // SAFETY: the GIL is held; the words live as long as the process.
        unsafe {
            let dict = made(ffi::PyDict_New())?;
            let key = keyspace_text(key, ffi::PyByteArray_FromStringAndSize)?;
            put(&dict, words.key.as_ptr(), key.as_ptr())?;
            let id = keyspace_text(id, ffi::PyByteArray_FromStringAndSize)?;
            put(&dict, words.id.as_ptr(), id.as_ptr())?;
            let value = self.nested(cursor, depth)?;
            put(&dict, words.value.as_ptr(), value.as_ptr())?;
            Ok(dict)
        }
    }

    /// # Safety
    /// As `item`.
    unsafe fn list(&self, n: usize, cursor: &mut Cursor<'_>, depth: usize) -> Decoded {
        // SAFETY: the GIL is held; the list has room for `n` items, each is set once, unset ones are NULL.
        unsafe {
            let list = made(ffi::PyList_New(n as ffi::Py_ssize_t))?;
            for i in 0..n {
                let value = self.nested(cursor, depth)?;
                ffi::PyList_SET_ITEM(list.as_ptr(), i as ffi::Py_ssize_t, value.into_ptr());
            }
            Ok(list)
        }
    }

    /// # Safety
    /// As `item`.
    unsafe fn tuple(&self, n: usize, cursor: &mut Cursor<'_>, depth: usize) -> Decoded {
        // SAFETY: the GIL is held; the tuple has room for `n` items, each is set once, unset ones are NULL.
        unsafe {
            let tuple = made(ffi::PyTuple_New(n as ffi::Py_ssize_t))?;
            for i in 0..n {
                let value = self.nested(cursor, depth)?;
                ffi::PyTuple_SET_ITEM(tuple.as_ptr(), i as ffi::Py_ssize_t, value.into_ptr());
            }
            Ok(tuple)
        }
    }

    /// # Safety
    /// As `item`.
    unsafe fn dict(&self, n: usize, cursor: &mut Cursor<'_>, depth: usize) -> Decoded {
        // SAFETY: the GIL is held.
        unsafe {
            let dict = made(ffi::PyDict_New())?;
            for _ in 0..n {
                let key = self.nested(cursor, depth)?;
                let value = self.nested(cursor, depth)?;
                put(&dict, key.as_ptr(), value.as_ptr())?;
            }
            Ok(dict)
        }
    }

    /// # Safety
    /// As `item`; `set` is a new set or frozenset.
    unsafe fn set(&self, set: Obj, n: usize, cursor: &mut Cursor<'_>, depth: usize) -> Decoded {
        for _ in 0..n {
            // SAFETY: the GIL is held; a frozenset that nobody else has seen may be filled.
            unsafe {
                let value = self.nested(cursor, depth)?;
                if ffi::PySet_Add(set.as_ptr(), value.as_ptr()) != 0 {
                    return Err(DecodeError::Python);
                }
            }
        }
        Ok(set)
    }

    /// # Safety
    /// As `item`.
    unsafe fn unpickle(&self, bytes: &[u8]) -> Decoded {
        // SAFETY: the GIL is held; the arguments live across the call.
        unsafe {
            let data = made(ffi::PyBytes_FromStringAndSize(
                bytes.as_ptr().cast(),
                bytes.len() as ffi::Py_ssize_t,
            ))?;
            let args = [data.as_ptr(), self.globals];
            made(ffi::PyObject_Vectorcall(
                runtime().loads.as_ptr(),
                args.as_ptr(),
                2,
                std::ptr::null_mut(),
            ))
        }
    }
}
