//! `str()` of plain containers without Python: dicts, lists and tuples of ASCII text, small numbers and `None`.
//!
//! Most records end as text (`convertToStr`), and most are such containers. Whatever could look otherwise in Python is
//! left to Python.

use oxigears_coordinator::codec::{TextEvent, put_varint, tag};
use pyo3::ffi;

use crate::{codec::new_text, obj::Obj, runtime::runtime};

/// Longer texts gain little.
const MOST_BYTES: usize = 4096;
/// Containers in containers.
const DEPTH: usize = 4;

/// The text of a container, if it is plain.
///
/// # Safety
/// The GIL is held; `value` is alive.
#[inline]
pub(super) unsafe fn of_container(value: *mut ffi::PyObject) -> Option<Obj> {
    // SAFETY: as for this function; nothing here runs Python code.
    unsafe {
        if !is_container(value) {
            return None;
        }
        let mut out = Vec::with_capacity(256);
        put(&mut out, value, DEPTH)?;
        new_text(&out)
    }
}

/// Appends the text of a container as an item of a record batch, with no `str` in between. False if the container is not
/// plain; then nothing is appended.
///
/// # Safety
/// The GIL is held; `value` is alive.
#[inline]
pub(super) unsafe fn put_item(out: &mut Vec<u8>, value: *mut ffi::PyObject) -> bool {
    // SAFETY: as for this function.
    if !unsafe { is_container(value) } {
        return false;
    }
    let start = out.len();
    // Most texts have a length of one byte.
    out.extend_from_slice(&[tag::STR, 0]);
    let text = out.len();
    // SAFETY: as for this function; nothing here runs Python code.
    if unsafe { put(out, value, DEPTH) }.is_none() {
        out.truncate(start);
        return false;
    }
    let len = out.len() - text;
    match u8::try_from(len) {
        Ok(len @ ..0x80) => out[text - 1] = len,
        _ => {
            let mut head = Vec::with_capacity(4);
            put_varint(&mut head, len as u64);
            out.splice(text - 1..text, head);
        }
    }
    true
}

/// The event's record has a text that Python prints as it is, and nothing in it but the record itself can change.
#[inline]
pub(super) fn is_plain_event(event: &TextEvent<'_>) -> bool {
    let value = event.read.and_then(|(_, value)| value);
    is_plain(event.event) && is_plain(event.key) && value.is_none_or(is_plain)
}

/// # Safety
/// `value` is alive.
#[inline]
unsafe fn is_container(value: *mut ffi::PyObject) -> bool {
    // SAFETY: as for this function; these look at the type only.
    unsafe {
        ffi::PyDict_CheckExact(value) != 0 || ffi::PyList_CheckExact(value) != 0 || ffi::PyTuple_CheckExact(value) != 0
    }
}

/// # Safety
/// As `of_container`.
unsafe fn put(out: &mut Vec<u8>, value: *mut ffi::PyObject, depth: usize) -> Option<()> {
    if out.len() > MOST_BYTES {
        return None;
    }
    // SAFETY: as for this function; the containers are not changed meanwhile, because nothing runs.
    unsafe {
        if ffi::PyUnicode_CheckExact(value) != 0 {
            return put_text(out, value);
        }
        if value == ffi::Py_None() {
            out.extend_from_slice(b"None");
            return Some(());
        }
        if ffi::PyLong_CheckExact(value) != 0 {
            return put_int(out, value);
        }
        let depth = depth.checked_sub(1)?;
        if ffi::PyDict_CheckExact(value) != 0 {
            put_dict(out, value, depth)
        } else if ffi::PyList_CheckExact(value) != 0 {
            let items = (0..ffi::PyList_GET_SIZE(value)).map(|i| ffi::PyList_GET_ITEM(value, i));
            put_items(out, [b'[', b']'], items, depth)
        } else if ffi::PyTuple_CheckExact(value) != 0 && ffi::PyTuple_GET_SIZE(value) != 1 {
            let items = (0..ffi::PyTuple_GET_SIZE(value)).map(|i| ffi::PyTuple_GET_ITEM(value, i));
            put_items(out, [b'(', b')'], items, depth)
        } else {
            None
        }
    }
}

/// # Safety
/// As `of_container`; the items are alive.
unsafe fn put_items(
    out: &mut Vec<u8>,
    [open, close]: [u8; 2],
    items: impl Iterator<Item = *mut ffi::PyObject>,
    depth: usize,
) -> Option<()> {
    out.push(open);
    for (number, item) in items.enumerate() {
        if number > 0 {
            out.extend_from_slice(b", ");
        }
        // SAFETY: as for this function.
        unsafe { put(out, item, depth)? };
    }
    out.push(close);
    Some(())
}

/// # Safety
/// As `of_container`; `dict` is a dict.
unsafe fn put_dict(out: &mut Vec<u8>, dict: *mut ffi::PyObject, depth: usize) -> Option<()> {
    let (mut position, mut key, mut value) = (0, std::ptr::null_mut(), std::ptr::null_mut());
    let mut first = true;
    out.push(b'{');
    // SAFETY: as for this function.
    unsafe {
        while ffi::PyDict_Next(dict, &mut position, &mut key, &mut value) != 0 {
            if !std::mem::take(&mut first) {
                out.extend_from_slice(b", ");
            }
            match word(key) {
                Some(quoted) => out.extend_from_slice(quoted),
                None => put(out, key, depth)?,
            }
            out.extend_from_slice(b": ");
            put(out, value, depth)?;
        }
    }
    out.push(b'}');
    Some(())
}

/// The text of a key that the records of readers have, which is always the same object.
#[inline]
fn word(key: *mut ffi::PyObject) -> Option<&'static [u8]> {
    let words = &runtime().words;
    match () {
        () if key == words.event.as_ptr() => Some(b"'event'"),
        () if key == words.key.as_ptr() => Some(b"'key'"),
        () if key == words.kind.as_ptr() => Some(b"'type'"),
        () if key == words.value.as_ptr() => Some(b"'value'"),
        () if key == words.id.as_ptr() => Some(b"'id'"),
        () => None,
    }
}

/// # Safety
/// As `of_container`; `text` is a `str`.
unsafe fn put_text(out: &mut Vec<u8>, text: *mut ffi::PyObject) -> Option<()> {
    let mut len = 0;
    // SAFETY: as for this function; the bytes live as long as the text.
    let bytes: &[u8] = unsafe {
        // Longer ones are not worth a look, and text that is not ASCII would keep a second form of itself.
        let chars = ffi::PyUnicode_GET_LENGTH(text) as usize;
        if chars > MOST_BYTES {
            return None;
        }
        let start = ffi::PyUnicode_AsUTF8AndSize(text, &mut len);
        if start.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        std::slice::from_raw_parts(start.cast(), len as usize)
    };
    if !is_plain(bytes) {
        return None;
    }
    out.reserve(bytes.len() + 2);
    out.push(b'\'');
    out.extend_from_slice(bytes);
    out.push(b'\'');
    Some(())
}

/// Python prints the text as it is, between quotes: ASCII without control characters, quotes and backslashes.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    // The last ones may be looked at twice.
    if let Some(last) = text.last_chunk::<8>() {
        let (eights, _) = text.as_chunks::<8>();
        return are_plain(u64::from_le_bytes(*last))
            && eights.iter().all(|eight| are_plain(u64::from_le_bytes(*eight)));
    }
    let eight = match (text.first_chunk::<4>(), text.last_chunk::<4>(), text) {
        (Some(&[a, b, c, d]), Some(&[e, f, g, h]), _) => [a, b, c, d, e, f, g, h],
        // Filled up with something plain.
        (_, _, [first, .., last]) => [*first, text[text.len() / 2], *last, b'x', b'x', b'x', b'x', b'x'],
        (_, _, [one]) => [*one, b'x', b'x', b'x', b'x', b'x', b'x', b'x'],
        _ => return true,
    };
    are_plain(u64::from_le_bytes(eight))
}

/// The same for eight bytes at once. The tests for a byte that is zero, or less than a number, are those of "Bit Twiddling
/// Hacks" (S. E. Anderson, Stanford); they see no byte wrongly as long as none has its highest bit set.
#[inline]
fn are_plain(eight: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGHS;
    let of = |byte: u8| ONES * u64::from(byte);
    let below_space = eight.wrapping_sub(of(b' ')) & !eight & HIGHS;
    let odd = eight & HIGHS | below_space | zero(eight ^ of(b'\'')) | zero(eight ^ of(b'\\')) | zero(eight ^ of(0x7f));
    odd == 0
}

/// # Safety
/// As `of_container`; `number` is an `int`.
unsafe fn put_int(out: &mut Vec<u8>, number: *mut ffi::PyObject) -> Option<()> {
    let mut overflow = 0;
    // SAFETY: as for this function; an exact int raises nothing.
    let n = unsafe { ffi::PyLong_AsLongLongAndOverflow(number, &mut overflow) };
    if overflow != 0 {
        return None;
    }
    out.extend_from_slice(n.to_string().as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use oxigears_coordinator::codec::put_tagged;
    use pyo3::{prelude::*, types::PyDict};

    use super::*;

    #[test]
    fn every_byte_at_every_place() {
        let is_one_plain = |b: u8| matches!(b, b' '..=b'~') && !matches!(b, b'\'' | b'\\');
        for byte in 0..=255u8 {
            for len in 1..=17 {
                for at in 0..len {
                    let mut text = vec![b'a'; len];
                    text[at] = byte;
                    assert_eq!(is_plain(&text), is_one_plain(byte), "{byte} at {at} of {len}");
                    // Neighbours that borrow from it.
                    text.iter_mut()
                        .enumerate()
                        .filter(|(i, _)| *i != at)
                        .for_each(|(_, b)| *b = b' ');
                    assert_eq!(is_plain(&text), is_one_plain(byte), "{byte} at {at} of {len}, spaces");
                }
            }
        }
        assert!(is_plain(b""));
    }

    #[test]
    fn looks_as_python_writes_it_or_is_left_to_python() {
        crate::tests::start_interpreter();
        Python::attach(|py| {
            let globals = PyDict::new(py);
            for (code, plain) in [
                (c"{'event': 'set', 'key': 'k', 'type': 'string', 'value': None}", true),
                (c"{'a': {'b': [1, -2, 3]}, 'c': (1, 2), 5: ()}", true),
                (c"['x' * 122]", true),
                (c"['x' * 123]", true),
                (c"['x' * 124]", true),
                (c"['x' * 4000, 'y' * 1000]", true),
                (c"[]", true),
                (c"{}", true),
                (c"[[[['deep']]]]", true),
                (c"[[[[['too deep']]]]]", false),
                (c"(1,)", false),
                (c"['it is', 'it\\'s']", false),
                (c"['back\\\\slash']", false),
                (c"['\\n']", false),
                (c"['é']", false),
                (c"['\\x7f']", false),
                (c"[True]", false),
                (c"[1.5]", false),
                (c"[b'x']", false),
                (c"[2 ** 70]", false),
                (c"['x' * 5000]", false),
                (c"'text'", false),
                (c"7", false),
                (c"['\\ud800']", false),
            ] {
                let value = py.eval(code, Some(&globals), None).expect("an expression");
                // SAFETY: the GIL is held, the value is alive.
                let text = unsafe { of_container(value.as_ptr()) };
                assert_eq!(text.is_some(), plain, "{code:?}");
                let mut item = vec![7];
                // SAFETY: as above.
                assert_eq!(unsafe { put_item(&mut item, value.as_ptr()) }, plain, "{code:?}");
                let mut wanted = vec![7];
                if plain {
                    put_tagged(&mut wanted, tag::STR, value.to_string().as_bytes());
                }
                assert_eq!(item, wanted, "{code:?}");
                if let Some(text) = text {
                    // SAFETY: as above.
                    let text = unsafe { Bound::from_borrowed_ptr(py, text.as_ptr()) };
                    assert!(text.eq(value.str().expect("a text")).expect("no error"), "{code:?}");
                }
                assert!(!PyErr::occurred(py), "{code:?}");
            }
        });
    }
}
