//! The record of one event: its name, then the key as KeysReader gives it, in one hold of the lock.

use oxigears_coordinator::codec::{put_tagged, tag};

use super::{
    big::{BigValue, Progress},
    slices::Deadline,
    values,
};
use crate::redis::{
    key::{Key, Kind, with_string_of},
    keyspace::ElementScan,
    lock::ServerLock,
};

/// What the record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Type and value of the key.
    pub read_value: bool,
    /// Values of all types.
    pub all_types: bool,
    /// The key holds a string most likely.
    pub likely_string: bool,
}

/// Appends the record. `known`: the string that the key holds, if that is at hand.
pub fn put(
    guard: &ServerLock,
    out: &mut Vec<u8>,
    name: &str,
    key: &[u8],
    wish: Wish,
    known: Option<&[u8]>,
    scan: &mut ElementScan,
) {
    put_tagged(out, tag::KEY_EVENT, name.as_bytes());
    if !wish.read_value {
        return put_tagged(out, tag::KEY_NAME_RECORD, key);
    }
    if let Some(text) = known {
        values::put_key_head(out, key, values::type_code(Kind::String, wish.all_types));
        return put_tagged(out, tag::TEXT, text);
    }
    if wish.likely_string {
        let start = out.len();
        values::put_key_head(out, key, values::type_code(Kind::String, wish.all_types));
        // One look-up instead of two.
        if with_string_of(guard, key, |text| put_tagged(out, tag::TEXT, text)).is_some() {
            return;
        }
        out.truncate(start);
    }
    let Some(open) = Key::open(guard, key) else {
        return put_missing(out, key);
    };
    let (kind, start) = (open.kind(), out.len());
    values::put_key_head(out, key, values::type_code(kind, wish.all_types));
    if !values::put_value(out, &open, kind, wish.all_types, scan) {
        drop(open);
        out.truncate(start);
        put_big(guard, out, key, kind, wish);
    }
}

fn put_missing(out: &mut Vec<u8>, key: &[u8]) {
    values::put_key_head(out, key, values::type_code(Kind::Empty, false));
    out.push(tag::NONE);
}

/// A value that other readers would read in slices: here its moment counts, so it is read as a whole.
fn put_big(guard: &ServerLock, out: &mut Vec<u8>, key: &[u8], kind: Kind, wish: Wish) {
    let mut big = BigValue::new(key.to_vec(), kind);
    loop {
        match big.read(guard, &mut Deadline::far()) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => break,
            Ok(Progress::Gone) | Err(_) => return put_missing(out, key),
        }
    }
    values::put_key_head(out, key, values::type_code(kind, wish.all_types));
    big.put(out);
}
