//! The record of one event: its name, then the key as KeysReader gives it. In one hold of the lock, but for huge values that
//! nobody's command waits for.

use std::time::Duration;

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
#[derive(Clone, Copy)]
pub struct Huge(Kind);

/// A key whose value is exchanged for another one while it is read is looked up at most so often.
const LOOKUPS: u32 = 8;

/// Such a value has more elements, or more bytes in them.
const HUGE_ELEMENTS: usize = 50_000;
const HUGE_BYTES: usize = 4 << 20;
/// The bytes are looked at that often.
const PIECE: Duration = Duration::from_millis(1);

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
        let most = if whole { usize::MAX } else { HUGE_BYTES };
        if !put_big(guard, out, key, kind, wish, most) {
            out.truncate(begin);
            return Err(Huge(kind));
        }
    }
    Ok(())
}

/// A record with such a value, while it is read in slices.
pub struct HugeRecord {
    slices: Slices,
    big: BigValue,
    lookups: u32,
}

impl HugeRecord {
    /// Begins with what the key holds.
    pub fn new(key: &[u8], Huge(kind): Huge) -> HugeRecord {
        HugeRecord {
            slices: Slices::default(),
            big: BigValue::new(key.to_vec(), kind),
            lookups: 1,
        }
    }

    /// Reads on for some milliseconds, in slices; gives the record when it is whole. Without the lock.
    pub fn go_on(&mut self, name: &str, wish: Wish) -> Option<Vec<u8>> {
        self.slices.begin_batch();
        while !self.slices.batch_is_late() {
            let (big, lookups) = (&mut self.big, &mut self.lookups);
            let mut out = Vec::new();
            let progress = self.slices.run(|guard, deadline| {
                let progress = big.read(guard, deadline).unwrap_or(Progress::Gone);
                if !matches!(progress, Progress::Gone) {
                    return progress;
                }
                // Something else may be there by now.
                *lookups += 1;
                let (place, whole) = ((name, big.name()), *lookups >= LOOKUPS);
                match put(guard, &mut out, place, wish, None, &mut ElementScan::new(), whole) {
                    Ok(()) => Progress::Gone,
                    Err(Huge(kind)) => {
                        *big = BigValue::new(big.name().to_vec(), kind);
                        Progress::More
                    }
                }
            });
            match progress {
                Progress::More => {}
                Progress::Gone => return Some(out),
                Progress::Done => {
                    put_tagged(&mut out, tag::KEY_EVENT, name.as_bytes());
                    values::put_key_head(&mut out, big.name(), values::type_code(big.kind(), wish.all_types));
                    let empty = BigValue::new(Vec::new(), Kind::Empty);
                    std::mem::replace(big, empty).put(&mut out);
                    return Some(out);
                }
            }
        }
        None
    }
}

fn put_missing(out: &mut Vec<u8>, key: &[u8]) {
    values::put_key_head(out, key, values::type_code(Kind::Empty, false));
    out.push(tag::NONE);
}

/// A value that other readers would read in slices: here its moment counts. False if it has more bytes.
fn put_big(guard: &ServerLock, out: &mut Vec<u8>, key: &[u8], kind: Kind, wish: Wish, most_bytes: usize) -> bool {
    let mut big = BigValue::new(key.to_vec(), kind);
    loop {
        match big.read(guard, &mut Deadline::after(PIECE)) {
            Ok(Progress::More) if big.len() <= most_bytes => {}
            Ok(Progress::More) => return false,
            Ok(Progress::Done) => break,
            Ok(Progress::Gone) | Err(_) => {
                put_missing(out, key);
                return true;
            }
        }
    }
    values::put_key_head(out, key, values::type_code(kind, wish.all_types));
    big.put(out);
    true
}
