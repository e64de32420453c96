//! The record of one event: its name, then the key as KeysReader gives it. In one hold of the lock, but for huge values that
//! nobody's command waits for.

use oxigears_coordinator::codec::{put_tagged, tag};

use super::{
    big::{BigValue, Progress},
    slices::{Deadline, Slices},
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

/// A value that is read as a whole only if it must be: that would keep the server from its clients for long.
pub struct Huge(Kind);

/// Elements of such a value.
const HUGE_ELEMENTS: usize = 50_000;

/// Appends the record. `known`: the string that the key holds, if that is at hand. `whole`: a huge value, too.
pub fn put(
    guard: &ServerLock,
    out: &mut Vec<u8>,
    (name, key): (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
    scan: &mut ElementScan,
    whole: bool,
) -> Result<(), Huge> {
    let begin = out.len();
    put_tagged(out, tag::KEY_EVENT, name.as_bytes());
    if !wish.read_value {
        put_tagged(out, tag::KEY_NAME_RECORD, key);
        return Ok(());
    }
    if let Some(text) = known {
        values::put_key_head(out, key, values::type_code(Kind::String, wish.all_types));
        put_tagged(out, tag::TEXT, text);
        return Ok(());
    }
    if wish.likely_string {
        let start = out.len();
        values::put_key_head(out, key, values::type_code(Kind::String, wish.all_types));
        // One look-up instead of two.
        if with_string_of(guard, key, |text| put_tagged(out, tag::TEXT, text)).is_some() {
            return Ok(());
        }
        out.truncate(start);
    }
    let Some(open) = Key::open(guard, key) else {
        put_missing(out, key);
        return Ok(());
    };
    let (kind, start) = (open.kind(), out.len());
    let is_read = kind != Kind::String && values::has_value(kind, wish.all_types);
    if !whole && is_read && open.len() > HUGE_ELEMENTS {
        out.truncate(begin);
        return Err(Huge(kind));
    }
    values::put_key_head(out, key, values::type_code(kind, wish.all_types));
    if !values::put_value(out, &open, kind, wish.all_types, scan) {
        drop(open);
        out.truncate(start);
        put_big(guard, out, key, kind, wish);
    }
    Ok(())
}

/// The record with such a value, which is read in slices. Without the lock.
pub fn huge(name: &str, key: &[u8], wish: Wish, Huge(kind): Huge) -> Vec<u8> {
    let (mut slices, mut big) = (Slices::default(), BigValue::new(key.to_vec(), kind));
    let is_there = loop {
        match slices.run(|guard, deadline| big.read(guard, deadline)) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => break true,
            Ok(Progress::Gone) | Err(_) => break false,
        }
    };
    let mut out = Vec::new();
    put_tagged(&mut out, tag::KEY_EVENT, name.as_bytes());
    if is_there {
        values::put_key_head(&mut out, key, values::type_code(kind, wish.all_types));
        big.put(&mut out);
    } else {
        put_missing(&mut out, key);
    }
    out
}

fn put_missing(out: &mut Vec<u8>, key: &[u8]) {
    values::put_key_head(out, key, values::type_code(Kind::Empty, false));
    out.push(tag::NONE);
}

/// A value that other readers would read in slices: here its moment counts.
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
