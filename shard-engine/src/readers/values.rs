//! Values of keys as items of the codec. Small ones are written in one hold of the lock; `big` reads the others.

use std::ops::ControlFlow;

use oxigears_coordinator::codec::{put_float, put_head, put_tagged, put_varint, tag};

use crate::redis::{
    key::{Fields, Key, Kind},
    keyspace::ElementScan,
};

/// A collection with more elements is read in several slices.
pub const BIG_ELEMENTS: usize = 10_000;
/// So is one with more bytes. A single string is always one copy.
pub const BIG_BYTES: usize = 1024 * 1024;

/// Number of the type in the codec's list of type words.
pub fn type_code(kind: Kind, all_types: bool) -> u8 {
    match kind {
        Kind::Empty => 0,
        Kind::String => 1,
        Kind::List => 2,
        Kind::Hash => 3,
        Kind::Set => 4,
        Kind::SortedSet => 5,
        Kind::Module => 6,
        Kind::Stream if all_types => 7,
        // Scripts know streams by this word.
        Kind::Stream | Kind::Unknown => 8,
    }
}

/// The value of keys of this kind is read.
pub fn has_value(kind: Kind, all_types: bool) -> bool {
    match kind {
        Kind::String | Kind::List | Kind::Hash => true,
        Kind::Set | Kind::SortedSet | Kind::Stream => all_types,
        _ => false,
    }
}

/// Appends the value; false if it is too big for one hold of the lock, then nothing has been appended.
pub fn put_value(out: &mut Vec<u8>, key: &Key<'_>, kind: Kind, all_types: bool, scan: &mut ElementScan) -> bool {
    if !has_value(kind, all_types) {
        out.push(tag::NONE);
        return true;
    }
    if kind == Kind::String {
        key.with_string(|text| put_tagged(out, tag::TEXT, text));
        return true;
    }
    if key.len() > BIG_ELEMENTS {
        return false;
    }
    let start = out.len();
    let whole = match kind {
        Kind::List => put_list(out, key),
        Kind::SortedSet => put_sorted_set(out, key),
        Kind::Stream => put_stream(out, key),
        _ => put_elements(out, key, kind, scan),
    };
    if !whole {
        out.truncate(start);
    }
    whole
}

/// Writes a container whose number of items is known only at the end: items first, then the head is put before them.
/// `None` if `items` gave up.
fn with_count(out: &mut Vec<u8>, tag: u8, items: impl FnOnce(&mut Vec<u8>) -> Option<usize>) -> bool {
    let start = out.len();
    let Some(count) = items(out) else {
        return false;
    };
    let mut head = Vec::with_capacity(8);
    put_head(&mut head, tag, count);
    out.splice(start..start, head);
    true
}

fn put_list(out: &mut Vec<u8>, key: &Key<'_>) -> bool {
    let (start, len) = (out.len(), key.len());
    put_head(out, tag::LIST, len);
    for index in 0..len {
        // The length holds while the lock does.
        match key.list_element(index) {
            Some(element) => put_tagged(out, tag::TEXT, &element),
            None => put_tagged(out, tag::TEXT, b""),
        }
        if out.len() - start > BIG_BYTES {
            return false;
        }
    }
    true
}

fn put_elements(out: &mut Vec<u8>, key: &Key<'_>, kind: Kind, scan: &mut ElementScan) -> bool {
    let container = if kind == Kind::Hash { tag::DICT } else { tag::SET };
    let start = out.len();
    scan.restart();
    with_count(out, container, |out| {
        let mut count = 0;
        loop {
            let more = scan.step(key, &mut |element, value| {
                put_element(out, kind, element, value);
                count += 1;
            });
            match more {
                Ok(true) if out.len() - start <= BIG_BYTES => {}
                Ok(false) => return Some(count),
                _ => return None,
            }
        }
    })
}

/// A field with its value, or a member.
pub fn put_element(out: &mut Vec<u8>, kind: Kind, element: &[u8], value: Option<&[u8]>) {
    put_tagged(out, tag::TEXT_KEY, element);
    if kind == Kind::Hash {
        put_tagged(out, tag::TEXT, value.unwrap_or_default());
    }
}

fn put_sorted_set(out: &mut Vec<u8>, key: &Key<'_>) -> bool {
    let start = out.len();
    with_count(out, tag::LIST, |out| {
        let (mut count, mut whole) = (0, true);
        key.sorted_members(|member, score| {
            put_scored(out, member, score);
            count += 1;
            whole = out.len() - start <= BIG_BYTES;
            if whole {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        whole.then_some(count)
    })
}

/// A member with its score.
pub fn put_scored(out: &mut Vec<u8>, member: &[u8], score: f64) {
    put_head(out, tag::TUPLE, 2);
    put_tagged(out, tag::TEXT_KEY, member);
    put_float(out, score);
}

fn put_stream(out: &mut Vec<u8>, key: &Key<'_>) -> bool {
    let start = out.len();
    with_count(out, tag::LIST, |out| {
        let (mut count, mut whole) = (0, true);
        key.stream_entries(None, None, |id, fields| {
            put_entry(out, &id.to_string(), fields);
            count += 1;
            whole = out.len() - start <= BIG_BYTES;
            if whole {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        whole.then_some(count)
    })
}

/// A stream entry as `{'id', 'value'}`.
pub fn put_entry(out: &mut Vec<u8>, id: &str, fields: &mut Fields<'_>) {
    put_head(out, tag::DICT, 2);
    put_tagged(out, tag::STR, b"id");
    put_tagged(out, tag::STR, id.as_bytes());
    put_tagged(out, tag::STR, b"value");
    put_fields(out, fields);
}

/// The fields of a stream entry; of a field that occurs twice the last value counts.
pub fn put_fields(out: &mut Vec<u8>, fields: &mut Fields<'_>) {
    put_head(out, tag::DICT, fields.len());
    for (field, value) in fields {
        put_tagged(out, tag::TEXT_KEY, &field);
        put_tagged(out, tag::TEXT, &value);
    }
}

/// The head of a key's record; the value's item follows.
pub fn put_key_head(out: &mut Vec<u8>, name: &[u8], type_code: u8) {
    out.push(tag::KEY_RECORD);
    put_varint(out, name.len() as u64);
    out.extend_from_slice(name);
    out.push(type_code);
}

#[cfg(test)]
mod tests {
    use oxigears_coordinator::codec::{Cursor, Item, TYPE_WORDS};

    use super::*;

    #[test]
    fn type_words_are_those_that_scripts_know() {
        let word = |kind, all_types| TYPE_WORDS[usize::from(type_code(kind, all_types))];
        for (kind, by_default, with_all_types) in [
            (Kind::Empty, "empty", "empty"),
            (Kind::String, "string", "string"),
            (Kind::List, "list", "list"),
            (Kind::Hash, "hash", "hash"),
            (Kind::Set, "set", "set"),
            (Kind::SortedSet, "zset", "zset"),
            (Kind::Module, "module", "module"),
            (Kind::Stream, "unknown", "stream"),
            (Kind::Unknown, "unknown", "unknown"),
        ] {
            assert_eq!((word(kind, false), word(kind, true)), (by_default, with_all_types));
        }
    }

    #[test]
    fn heads_stand_before_items() {
        let mut out = b"before".to_vec();
        assert!(with_count(&mut out, tag::DICT, |out| {
            for n in 0..200u32 {
                put_element(out, Kind::Hash, &n.to_le_bytes(), Some(b"v"));
            }
            Some(200)
        }));
        let mut cursor = Cursor::at(&out, 6);
        assert_eq!(cursor.next_item(), Ok(Item::Dict(200)));
        assert_eq!(cursor.next_item(), Ok(Item::TextKey(&[0, 0, 0, 0])));
        assert_eq!(cursor.next_item(), Ok(Item::Text(b"v")));
        let mut whole = Cursor::at(&out, 6);
        assert_eq!((whole.skip(), whole.is_empty()), (Ok(()), true));
        assert!(!with_count(&mut out, tag::LIST, |_| None));
    }

    #[test]
    fn a_key_record_is_head_and_value() {
        let mut out = Vec::new();
        put_key_head(&mut out, b"k", 1);
        put_tagged(&mut out, tag::TEXT, b"v");
        put_scored(&mut out, b"m", 2.5);
        let mut cursor = Cursor::new(&out);
        assert_eq!(
            cursor.next_item(),
            Ok(Item::KeyRecord {
                key: b"k",
                type_code: 1
            })
        );
        assert_eq!(cursor.next_item(), Ok(Item::Text(b"v")));
        assert_eq!(cursor.next_item(), Ok(Item::Tuple(2)));
        assert_eq!(cursor.next_item(), Ok(Item::TextKey(b"m")));
        assert_eq!(cursor.next_item(), Ok(Item::Float(2.5)));
    }
}
