//! The parts of a chain that need no Python objects, and so no GIL: counting, summing, passing on, and writing the
//! tables of `count` and `countby`.

use oxigears_coordinator::{
    codec::{CodecError, Cursor, Item as Encoded, RecordBatch, put_head, put_int, put_tagged, tag},
    plan::Stage,
    stage::{Route, StageSink},
};
use pyo3::{ffi, prelude::*};

use super::{
    output::Out,
    step::{Kind, Step},
};
use crate::{codec::new_text, obj::Obj};

/// How the first step takes whole batches natively.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NativeInput {
    /// It does not.
    None,
    /// Batches pass.
    Forward,
    /// `CountRecords`
    Count,
    /// `SumCounts`
    SumCounts,
    /// `SumTable`
    SumTable,
}

/// How what a step keeps is written natively, steps after it included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tail {
    /// Keyed ints to the owners of the keys.
    Keyed,
    /// `{'key': ..., 'value': ...}`
    Dict,
    /// The text of that.
    DictText,
    /// An int.
    Int,
    /// Its text.
    IntText,
}

pub(super) fn native_input(steps: &[Step], stage: &Stage) -> NativeInput {
    match steps.first().map(|s| &s.kind) {
        None if stage.passes => NativeInput::Forward,
        Some(Kind::CountRecords { .. }) => NativeInput::Count,
        Some(Kind::SumCounts { .. }) => NativeInput::SumCounts,
        Some(Kind::SumTable { .. }) if stage.keyed_input => NativeInput::SumTable,
        _ => NativeInput::None,
    }
}

/// The native form of step `i` and all steps after it.
pub(super) fn tail(steps: &[Step], i: usize, out: &Out) -> Option<Tail> {
    let after: Vec<&Kind> = steps.get(i + 1..)?.iter().map(|s| &s.kind).collect();
    match (&steps[i].kind, after.as_slice()) {
        (Kind::CountTable { .. } | Kind::SumTable { .. }, []) if out.is_keyed_shuffle() => Some(Tail::Keyed),
        (Kind::CountTable { .. } | Kind::SumTable { .. }, [Kind::KeyedToDict]) if out.is_plain() => Some(Tail::Dict),
        (Kind::CountTable { .. } | Kind::SumTable { .. }, [Kind::KeyedToDict, Kind::ToStr]) if out.is_plain() => {
            Some(Tail::DictText)
        }
        (Kind::CountRecords { .. } | Kind::SumCounts { .. }, []) if out.is_plain() => Some(Tail::Int),
        (Kind::CountRecords { .. } | Kind::SumCounts { .. }, [Kind::ToStr]) if out.is_plain() => Some(Tail::IntText),
        _ => None,
    }
}

/// Takes a whole batch. The error is the text for an undecodable rest.
pub(super) fn take_batch(
    input: NativeInput,
    steps: &mut [Step],
    batch: RecordBatch,
    sink: &mut dyn StageSink,
) -> Result<(), String> {
    let fail = |e: CodecError, left: u32| Err(undecodable(&e.to_string(), left));
    match (input, steps.first_mut().map(|s| &mut s.kind)) {
        (NativeInput::Forward, _) if batch.records > 0 => sink.emit(Route::Default, batch),
        (NativeInput::Count, Some(Kind::CountRecords { records })) => *records += i64::from(batch.records),
        (NativeInput::SumCounts, Some(Kind::SumCounts { sum, any })) => {
            let mut cursor = Cursor::new(&batch.bytes);
            for done in 0..batch.records {
                match cursor.next_item() {
                    Ok(Encoded::Int(n)) => (*sum, *any) = (sum.saturating_add(n), true),
                    Ok(_) => return Err(undecodable("a count is no number", batch.records - done)),
                    Err(e) => return fail(e, batch.records - done),
                }
            }
        }
        (NativeInput::SumTable, Some(Kind::SumTable { table })) => {
            let mut cursor = Cursor::new(&batch.bytes);
            for done in 0..batch.records {
                let item = cursor.next_item().and_then(|key| Ok((key, cursor.next_item()?)));
                match item {
                    Ok((Encoded::Keyed { key }, Encoded::Int(n))) => {
                        let sum = table.entry(key, || 0);
                        *sum = sum.saturating_add(n);
                    }
                    Ok(_) => return Err(undecodable("a sum is no keyed number", batch.records - done)),
                    Err(e) => return fail(e, batch.records - done),
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// The error text for records that are lost because their bytes make no sense.
pub(crate) fn undecodable(reason: &str, records: u32) -> String {
    format!("{records} records can not be decoded: {reason}")
}

/// How far writing came.
pub(super) enum Written {
    All,
    /// A slice is over.
    Part,
    /// The next key's `repr` needs Python.
    NeedsPython,
}

/// Writes what a step keeps, from emission number `at` on; `over` ends the slice.
pub(super) fn write_tail(
    tail: Tail,
    kind: &mut Kind,
    at: &mut usize,
    out: &mut Out,
    sink: &mut dyn StageSink,
    python: Option<Python<'_>>,
    mut over: impl FnMut(&dyn StageSink) -> bool,
) -> Written {
    let table = match kind {
        Kind::CountTable { table, .. } | Kind::SumTable { table } => table,
        Kind::CountRecords { records: n } if *n > 0 => return write_int(tail, *n, out, sink),
        Kind::SumCounts { sum, any: true } => return write_int(tail, *sum, out, sink),
        _ => return Written::All,
    };
    let mut text = Vec::new();
    while *at < table.len() {
        if over(sink) {
            return Written::Part;
        }
        let (key, &mut n) = table.get(*at);
        match tail {
            Tail::Keyed => out.put_keyed(key, sink, |bytes| put_int(bytes, n)),
            Tail::Dict => out.put_plain(sink, |bytes| put_dict(bytes, key, n)),
            _ => {
                text.clear();
                text.extend_from_slice(b"{'key': ");
                if is_plain(key) {
                    text.push(b'\'');
                    text.extend_from_slice(key);
                    text.push(b'\'');
                } else if python.is_some() {
                    python_repr(&mut text, key);
                } else {
                    return Written::NeedsPython;
                }
                text.extend_from_slice(format!(", 'value': {n}}}").as_bytes());
                out.put_plain(sink, |bytes| put_tagged(bytes, tag::STR, &text));
            }
        }
        *at += 1;
    }
    table.clear();
    Written::All
}

fn write_int(tail: Tail, n: i64, out: &mut Out, sink: &mut dyn StageSink) -> Written {
    out.put_plain(sink, |bytes| match tail {
        Tail::IntText => put_tagged(bytes, tag::STR, n.to_string().as_bytes()),
        _ => put_int(bytes, n),
    });
    Written::All
}

fn put_dict(bytes: &mut Vec<u8>, key: &[u8], n: i64) {
    put_head(bytes, tag::DICT, 2);
    put_tagged(bytes, tag::STR, b"key");
    put_tagged(bytes, tag::STR, key);
    put_tagged(bytes, tag::STR, b"value");
    put_int(bytes, n);
}

/// Python's `repr` of the text is the text itself in single quotes.
fn is_plain(key: &[u8]) -> bool {
    if key
        .iter()
        .all(|&b| (0x20..0x7f).contains(&b) && b != b'\'' && b != b'\\')
    {
        return true;
    }
    // Letters of the common scripts: printable in every version of Unicode that Python had.
    std::str::from_utf8(key).is_ok_and(|text| {
        text.chars().all(|c| match c {
            '\'' | '\\' => false,
            ' '..='~' => true,
            '\u{c0}'..='\u{24f}' | '\u{370}'..='\u{52f}' | '\u{4e00}'..='\u{9ffc}' | '\u{ac00}'..='\u{d7a3}' => {
                c.is_alphabetic()
            }
            _ => false,
        })
    })
}

/// Appends Python's `repr` of a text; the GIL is held by the caller, who has the token.
fn python_repr(out: &mut Vec<u8>, key: &[u8]) {
    // SAFETY: the GIL is held; a repr has no surrogates, so its UTF-8 form exists and lives as long as it.
    unsafe {
        let repr = new_text(key).and_then(|text| Obj::from_owned(ffi::PyObject_Repr(text.as_ptr())));
        if let Some(repr) = repr {
            let mut len = 0;
            let start = ffi::PyUnicode_AsUTF8AndSize(repr.as_ptr(), &mut len);
            if !start.is_null() {
                out.extend_from_slice(std::slice::from_raw_parts(start.cast(), len as usize));
                return;
            }
        }
        ffi::PyErr_Clear();
    }
    // Only without memory, or for bytes that are no text: never valid Python, but never silent either.
    out.extend_from_slice(format!("{:?}", String::from_utf8_lossy(key)).as_bytes());
}
