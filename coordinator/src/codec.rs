//! The typed codec of records: what crosses stage edges and shards.
//!
//! A record is one self-delimiting item: a tag byte, then its payload. Lengths and counts are LEB128 varints.
//! Builtin Python types have tags of their own; anything else is one pickled item. Readers write `Text`,
//! `KeyRecord` and `StreamRecord`, which the Python side turns into the records that scripts see.

use bytes::Bytes;
use thiserror::Error;

use crate::limits::CODEC_DEPTH;

/// Tag bytes.
pub mod tag {
    #![allow(missing_docs)]
    pub const NONE: u8 = 0;
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    /// Zigzag varint of an i64.
    pub const INT: u8 = 3;
    /// Length, then little-endian two's complement.
    pub const BIG_INT: u8 = 4;
    /// Eight bytes, little-endian.
    pub const FLOAT: u8 = 5;
    /// Two floats.
    pub const COMPLEX: u8 = 6;
    /// Length, UTF-8 (lone surrogates encoded like other code points).
    pub const STR: u8 = 7;
    pub const BYTES: u8 = 8;
    pub const BYTE_ARRAY: u8 = 9;
    /// Count, items.
    pub const LIST: u8 = 10;
    pub const TUPLE: u8 = 11;
    /// Count, then key and value alternating.
    pub const DICT: u8 = 12;
    pub const SET: u8 = 13;
    pub const FROZEN_SET: u8 = 14;
    /// Length, pickle.
    pub const PICKLE: u8 = 15;
    /// Bytes from the keyspace: `str` if UTF-8, else `bytearray`.
    pub const TEXT: u8 = 16;
    /// The same as a dict key: `str` if UTF-8, else `bytes`.
    pub const TEXT_KEY: u8 = 17;
    /// KeysReader's record: key (length, bytes), type code, value item.
    pub const KEY_RECORD: u8 = 18;
    /// KeysReader's record without value: key (length, bytes).
    pub const KEY_NAME_RECORD: u8 = 19;
    /// StreamReader's record: key (length, bytes), id (length, bytes), value item.
    pub const STREAM_RECORD: u8 = 20;
    /// A value with a builtin form for replies: that form as an item, then the value as a `PICKLE` item.
    pub const SHOWN: u8 = 22;
    /// An object that stays on its shard: its number there.
    pub const LOCAL: u8 = 23;
    /// Name of an event (length, UTF-8), then the key's record (`KEY_RECORD` or `KEY_NAME_RECORD`). Only at the top.
    pub const KEY_EVENT: u8 = 24;
    /// The text (`str()`) of the `KEY_EVENT` item that follows, whose texts Python prints as they are, between single quotes.
    /// Only at the top.
    pub const EVENT_TEXT: u8 = 25;
    /// A record that moves with its key: key text (length, UTF-8), then the item. Only at the top.
    pub const KEYED: u8 = 21;
}

/// Type codes of `KEY_RECORD` and the words that scripts see.
pub const TYPE_WORDS: [&str; 9] = [
    "empty", "string", "list", "hash", "set", "zset", "module", "stream", "unknown",
];

/// Encoded records, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordBatch {
    /// The items.
    pub bytes: Bytes,
    /// Number of items.
    pub records: u32,
}

/// Bytes that are no record.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub enum CodecError {
    #[error("an encoded record ends too early")]
    Truncated,
    #[error("an encoded record has the unknown tag {0}")]
    UnknownTag(u8),
    #[error("an encoded record is nested deeper than {CODEC_DEPTH}")]
    TooDeep,
    #[error("an encoded record holds a number out of range")]
    BadNumber,
}

/// Appends a LEB128 varint.
pub fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends length and bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends tag, length and bytes (`STR`, `BYTES`, `TEXT`, ...).
pub fn put_tagged(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_bytes(out, bytes);
}

/// Appends an `INT` item.
pub fn put_int(out: &mut Vec<u8>, n: i64) {
    out.push(tag::INT);
    put_varint(out, ((n << 1) ^ (n >> 63)) as u64);
}

/// Appends a `FLOAT` item.
pub fn put_float(out: &mut Vec<u8>, x: f64) {
    out.push(tag::FLOAT);
    out.extend_from_slice(&x.to_le_bytes());
}

/// Appends the head of a container: tag and count.
pub fn put_head(out: &mut Vec<u8>, tag: u8, count: usize) {
    out.push(tag);
    put_varint(out, count as u64);
}

/// A batch of error texts.
pub fn error_batch<S: AsRef<str>>(texts: &[S]) -> RecordBatch {
    let mut out = Vec::new();
    for text in texts {
        put_tagged(&mut out, tag::STR, text.as_ref().as_bytes());
    }
    RecordBatch {
        bytes: out.into(),
        records: texts.len() as u32,
    }
}

/// Reads items from encoded bytes; never reads past the end.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A decoded item that borrows from the encoded bytes. Containers are read by `Cursor` one by one.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Item<'a> {
    None,
    Bool(bool),
    Int(i64),
    BigInt(&'a [u8]),
    Float(f64),
    Complex(f64, f64),
    Str(&'a [u8]),
    Bytes(&'a [u8]),
    ByteArray(&'a [u8]),
    List(usize),
    Tuple(usize),
    /// Number of pairs.
    Dict(usize),
    Set(usize),
    FrozenSet(usize),
    Pickle(&'a [u8]),
    Text(&'a [u8]),
    TextKey(&'a [u8]),
    /// The value item follows.
    KeyRecord {
        key: &'a [u8],
        type_code: u8,
    },
    KeyNameRecord {
        key: &'a [u8],
    },
    /// The value item follows.
    StreamRecord {
        key: &'a [u8],
        id: &'a [u8],
    },
    /// The form for replies and the value follow.
    Shown,
    Local(u64),
    /// The key's record follows.
    KeyEvent {
        event: &'a [u8],
    },
    /// The event's item follows.
    EventText,
    /// The record's item follows.
    Keyed {
        key: &'a [u8],
    },
}

/// The record of an event of a key whose value is a text, or none, or was not read: most are such ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextEvent<'a> {
    /// Its name.
    pub event: &'a [u8],
    /// The key.
    pub key: &'a [u8],
    /// Number of the type and the value, where they were read.
    pub read: Option<(u8, Option<&'a [u8]>)>,
}

impl<'a> Cursor<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Reads from offset `at` of `bytes`.
    pub fn at(bytes: &'a [u8], at: usize) -> Cursor<'a> {
        Cursor {
            bytes,
            at: at.min(bytes.len()),
        }
    }

    /// Offset of the next byte.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, CodecError> {
        let b = *self.bytes.get(self.at).ok_or(CodecError::Truncated)?;
        self.at += 1;
        Ok(b)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, CodecError> {
        match self.byte()? {
            // Most are small.
            small @ ..0x80 => Ok(u64::from(small)),
            first => self.long_varint(u64::from(first & 0x7f)),
        }
    }

    /// What follows the first byte.
    fn long_varint(&mut self, mut n: u64) -> Result<u64, CodecError> {
        for shift in (7..64).step_by(7) {
            let b = self.byte()?;
            if shift == 63 && b > 1 {
                return Err(CodecError::BadNumber);
            }
            n |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(CodecError::BadNumber)
    }

    #[inline]
    fn take(&mut self, n: usize) -> Result<&'a [u8], CodecError> {
        let end = self.at.checked_add(n).ok_or(CodecError::Truncated)?;
        let slice = self.bytes.get(self.at..end).ok_or(CodecError::Truncated)?;
        self.at = end;
        Ok(slice)
    }

    #[inline]
    fn sized(&mut self) -> Result<&'a [u8], CodecError> {
        let n = usize::try_from(self.varint()?).map_err(|_| CodecError::Truncated)?;
        self.take(n)
    }

    /// A container's count: every item takes one byte at least, so a count beyond the rest is refused at once.
    fn count(&mut self) -> Result<usize, CodecError> {
        let n = usize::try_from(self.varint()?).map_err(|_| CodecError::Truncated)?;
        if n > self.bytes.len() - self.at {
            return Err(CodecError::Truncated);
        }
        Ok(n)
    }

    fn float(&mut self) -> Result<f64, CodecError> {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(self.take(8)?);
        Ok(f64::from_le_bytes(eight))
    }

    /// The next item's head; the items of a container follow and are read by further calls.
    pub fn next_item(&mut self) -> Result<Item<'a>, CodecError> {
        Ok(match self.byte()? {
            tag::NONE => Item::None,
            tag::TRUE => Item::Bool(true),
            tag::FALSE => Item::Bool(false),
            tag::INT => {
                let n = self.varint()?;
                Item::Int((n >> 1) as i64 ^ -((n & 1) as i64))
            }
            tag::BIG_INT => Item::BigInt(self.sized()?),
            tag::FLOAT => Item::Float(self.float()?),
            tag::COMPLEX => Item::Complex(self.float()?, self.float()?),
            tag::STR => Item::Str(self.sized()?),
            tag::BYTES => Item::Bytes(self.sized()?),
            tag::BYTE_ARRAY => Item::ByteArray(self.sized()?),
            tag::LIST => Item::List(self.count()?),
            tag::TUPLE => Item::Tuple(self.count()?),
            tag::DICT => Item::Dict(self.count()?),
            tag::SET => Item::Set(self.count()?),
            tag::FROZEN_SET => Item::FrozenSet(self.count()?),
            tag::PICKLE => Item::Pickle(self.sized()?),
            tag::TEXT => Item::Text(self.sized()?),
            tag::TEXT_KEY => Item::TextKey(self.sized()?),
            tag::KEY_RECORD => {
                let key = self.sized()?;
                let type_code = self.byte()?;
                if usize::from(type_code) >= TYPE_WORDS.len() {
                    return Err(CodecError::BadNumber);
                }
                Item::KeyRecord { key, type_code }
            }
            tag::KEY_NAME_RECORD => Item::KeyNameRecord { key: self.sized()? },
            tag::STREAM_RECORD => Item::StreamRecord {
                key: self.sized()?,
                id: self.sized()?,
            },
            tag::SHOWN => Item::Shown,
            tag::LOCAL => Item::Local(self.varint()?),
            tag::KEY_EVENT => Item::KeyEvent { event: self.sized()? },
            tag::EVENT_TEXT => Item::EventText,
            tag::KEYED => Item::Keyed { key: self.sized()? },
            unknown => return Err(CodecError::UnknownTag(unknown)),
        })
    }

    /// The next item, if it is such a record: at once what takes several items else. If it is not, nothing is read.
    #[inline]
    pub fn text_event(&mut self) -> Option<TextEvent<'a>> {
        if *self.bytes.get(self.at)? != tag::KEY_EVENT {
            return None;
        }
        let mut next = Cursor::at(self.bytes, self.at + 1);
        let event = next.sized().ok()?;
        let head = next.byte().ok()?;
        let key = next.sized().ok()?;
        let read = match head {
            tag::KEY_NAME_RECORD => None,
            tag::KEY_RECORD => {
                let type_code = next.byte().ok()?;
                if usize::from(type_code) >= TYPE_WORDS.len() {
                    return None;
                }
                let value = match next.byte().ok()? {
                    tag::NONE => None,
                    tag::TEXT => Some(next.sized().ok()?),
                    _ => return None,
                };
                Some((type_code, value))
            }
            _ => return None,
        };
        self.at = next.at;
        Some(TextEvent { event, key, read })
    }

    /// The text that an `EventText` stands for; the cursor is behind its head.
    pub fn event_text(&mut self) -> Result<Vec<u8>, CodecError> {
        let TextEvent { event, key, read } = self.text_event().ok_or(CodecError::UnknownTag(tag::EVENT_TEXT))?;
        let rest = match read {
            None => Vec::new(),
            Some((type_code, value)) => {
                let kind = TYPE_WORDS[usize::from(type_code)].as_bytes();
                let value = value.map_or(b"None".to_vec(), |text| [b"'", text, b"'"].concat());
                [b", 'type': '", kind, b"', 'value': ", &value].concat()
            }
        };
        Ok([b"{'event': '", event, b"', 'key': '", key, b"'", &rest, b"}"].concat())
    }

    /// Steps over one whole item.
    pub fn skip(&mut self) -> Result<(), CodecError> {
        self.skip_nested(0)
    }

    fn skip_nested(&mut self, depth: usize) -> Result<(), CodecError> {
        // Records are written with at most CODEC_DEPTH levels inside a key record or keyed record.
        if depth > CODEC_DEPTH + 2 {
            return Err(CodecError::TooDeep);
        }
        let items = match self.next_item()? {
            Item::List(n) | Item::Tuple(n) | Item::Set(n) | Item::FrozenSet(n) => n,
            Item::Dict(n) => n * 2,
            Item::Shown => 2,
            Item::KeyRecord { .. } | Item::StreamRecord { .. } | Item::KeyEvent { .. } => 1,
            Item::EventText | Item::Keyed { .. } => 1,
            _ => 0,
        };
        for _ in 0..items {
            self.skip_nested(depth + 1)?;
        }
        Ok(())
    }
}

impl RecordBatch {
    /// Checks a batch from the network: exactly `records` well-formed items.
    pub fn check(&self) -> Result<(), CodecError> {
        let mut cursor = Cursor::new(&self.bytes);
        for _ in 0..self.records {
            cursor.skip()?;
        }
        if cursor.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Truncated)
        }
    }

    /// The texts of an error batch.
    pub fn texts(&self) -> Vec<String> {
        let mut cursor = Cursor::new(&self.bytes);
        let mut texts = Vec::with_capacity(self.records as usize);
        while let Ok(Item::Str(text)) = cursor.next_item() {
            texts.push(String::from_utf8_lossy(text).into_owned());
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ints_survive() {
        for n in [0, 1, -1, 63, -64, 1 << 40, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            put_int(&mut out, n);
            assert_eq!(Cursor::new(&out).next_item(), Ok(Item::Int(n)));
        }
    }

    #[test]
    fn events_of_texts_are_read_at_once_or_not_at_all() {
        let event = |tail: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            put_tagged(&mut out, tag::KEY_EVENT, b"set");
            tail(&mut out);
            out
        };
        let valued = |value: &'static [u8]| {
            event(&move |out| {
                put_tagged(out, tag::KEY_RECORD, &[b'k'; 200]);
                out.push(1);
                out.extend_from_slice(value);
            })
        };
        let wanted = [
            (valued(&[tag::TEXT, 1, b'v']), Some(Some((1, Some(&b"v"[..]))))),
            (valued(&[tag::NONE]), Some(Some((1, None)))),
            (
                event(&|out| put_tagged(out, tag::KEY_NAME_RECORD, &[b'k'; 200])),
                Some(None),
            ),
            (valued(&[tag::LIST, 0]), None),
            (event(&|out| put_tagged(out, tag::TEXT, b"k")), None),
            (vec![tag::TEXT, 1, b'v'], None),
        ];
        for (bytes, wanted) in wanted {
            let mut cursor = Cursor::new(&bytes);
            let found = cursor.text_event();
            assert_eq!(found.map(|found| found.read), wanted);
            assert_eq!(cursor.position(), if found.is_some() { bytes.len() } else { 0 });
            if let Some(found) = found {
                assert_eq!((found.event, found.key), (&b"set"[..], &[b'k'; 200][..]));
            }
            for end in 0..bytes.len() {
                let mut cursor = Cursor::new(&bytes[..end]);
                assert_eq!((cursor.text_event(), cursor.position()), (None, 0));
            }
        }
        let mut unknown = valued(&[tag::NONE]);
        let type_code = unknown.len() - 2;
        unknown[type_code] = TYPE_WORDS.len() as u8;
        assert_eq!(Cursor::new(&unknown).text_event(), None);
    }

    #[test]
    fn every_truncation_is_an_error_and_none_panics() {
        let mut out = Vec::new();
        put_head(&mut out, tag::DICT, 2);
        put_tagged(&mut out, tag::STR, b"key");
        put_head(&mut out, tag::LIST, 3);
        put_int(&mut out, 300);
        put_float(&mut out, 1.5);
        out.push(tag::NONE);
        put_tagged(&mut out, tag::TEXT_KEY, b"k\xff");
        put_tagged(&mut out, tag::PICKLE, b"abc");
        let whole = RecordBatch {
            bytes: out.clone().into(),
            records: 1,
        };
        assert_eq!(whole.check(), Ok(()));
        for cut in 0..out.len() {
            let part = RecordBatch {
                bytes: out[..cut].to_vec().into(),
                records: 1,
            };
            assert!(part.check().is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn depth_and_counts_are_bounded() {
        let mut deep = Vec::new();
        for _ in 0..100_000 {
            put_head(&mut deep, tag::LIST, 1);
        }
        deep.push(tag::NONE);
        assert_eq!(
            RecordBatch {
                bytes: deep.into(),
                records: 1
            }
            .check(),
            Err(CodecError::TooDeep)
        );
        let mut huge = Vec::new();
        put_head(&mut huge, tag::LIST, usize::MAX >> 1);
        assert_eq!(
            RecordBatch {
                bytes: huge.into(),
                records: 1
            }
            .check(),
            Err(CodecError::Truncated)
        );
        assert_eq!(
            RecordBatch {
                bytes: vec![99].into(),
                records: 1
            }
            .check(),
            Err(CodecError::UnknownTag(99))
        );
    }

    #[test]
    fn error_texts_come_back() {
        assert_eq!(error_batch(&["a", "é"]).texts(), ["a", "é"]);
    }
}
