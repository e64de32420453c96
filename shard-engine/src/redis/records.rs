//! Records to RESP, straight from the codec, without Python.
//!
//! The table: `str` that begins with `+` or `-` is a simple string or error, other `str` and `bytes` are bulk, `int`
//! and `bool` integers, `float` bulk with six decimals, `list` an array. Anything else is the bulk `PY RECORD`.

use std::borrow::Cow;

use oxigears_coordinator::codec::{Cursor, Item, RecordBatch};

use super::{reply::ReplyWriter, value::Reply};

/// What stands for a record that has no RESP form.
const OPAQUE: &[u8] = b"PY RECORD";
/// Longer integers are opaque: writing them as decimal text takes time that grows with the square.
const BIG_INT_BYTES: usize = 16 * 1024;

impl ReplyWriter {
    /// Writes the next record of `cursor` as one element. A malformed one becomes an error element, and false tells
    /// that nothing more can be read from the cursor.
    pub fn write_record(&mut self, cursor: &mut Cursor<'_>) -> bool {
        // An array must be whole before its head is written.
        let mut ahead = cursor.clone();
        if let Err(error) = ahead.skip() {
            self.error(&format!("ERR {error}"));
            return false;
        }
        self.item(cursor);
        *cursor = ahead;
        true
    }

    /// Writes one array with all records of `batches`.
    pub fn write_records(&mut self, batches: &[RecordBatch]) {
        self.array(batches.iter().map(|batch| batch.records as usize).sum());
        for batch in batches {
            let mut cursor = Cursor::new(&batch.bytes);
            for _ in 0..batch.records {
                self.write_record(&mut cursor);
            }
        }
    }

    /// The item at the cursor, which is well-formed. The cursor stops anywhere inside it unless it is a list.
    fn item(&mut self, cursor: &mut Cursor<'_>) {
        match cursor.next_item() {
            Ok(Item::List(n)) => {
                self.array(n);
                for _ in 0..n {
                    let mut ahead = cursor.clone();
                    // It was stepped over once already, so this can not fail.
                    let _ = ahead.skip();
                    self.item(cursor);
                    *cursor = ahead;
                }
            }
            Ok(Item::Keyed { .. } | Item::Shown) => self.item(cursor),
            Ok(Item::Str(text)) => self.str(text),
            Ok(Item::EventText) => match cursor.event_text() {
                Ok(text) => self.str(&text),
                Err(error) => self.error(&format!("ERR {error}")),
            },
            Ok(Item::Bytes(bytes)) => self.bulk(bytes),
            Ok(item) => self.value(&scalar(item)),
            Err(error) => self.error(&format!("ERR {error}")),
        }
    }

    fn str(&mut self, text: &[u8]) {
        let text = without_surrogates(text);
        match text.split_first() {
            Some((b'+', rest)) if !rest.is_empty() => self.simple(rest),
            Some((b'-', rest)) if !rest.is_empty() => self.error_bytes(rest),
            _ => self.bulk(&text),
        }
    }
}

/// The next record of `cursor` as a reply, by the same table; but `None` is null.
pub fn to_reply(cursor: &mut Cursor<'_>) -> Reply {
    let mut ahead = cursor.clone();
    match ahead.skip() {
        Ok(()) => item_to_reply(cursor),
        Err(error) => Reply::Error(format!("ERR {error}")),
    }
}

/// The item at the cursor, which is well-formed. The cursor stops anywhere inside it unless it is a list.
fn item_to_reply(cursor: &mut Cursor<'_>) -> Reply {
    match cursor.next_item() {
        Ok(Item::None) => Reply::Null,
        Ok(Item::List(n)) => {
            let element = |_| {
                let mut ahead = cursor.clone();
                // It was stepped over once already, so this can not fail.
                let _ = ahead.skip();
                let value = item_to_reply(cursor);
                *cursor = ahead;
                value
            };
            Reply::Array((0..n).map(element).collect())
        }
        Ok(Item::Keyed { .. } | Item::Shown) => item_to_reply(cursor),
        Ok(Item::EventText) => match cursor.event_text() {
            Ok(text) => str_to_reply(&text),
            Err(error) => Reply::Error(format!("ERR {error}")),
        },
        Ok(item) => scalar(item),
        Err(error) => Reply::Error(format!("ERR {error}")),
    }
}

/// An item that holds no others.
fn scalar(item: Item<'_>) -> Reply {
    match item {
        Item::Bool(b) => Reply::Int(b.into()),
        Item::Int(n) => Reply::Int(n),
        Item::BigInt(bytes) => match big_int(bytes) {
            Some(BigInt::Small(n)) => Reply::Int(n),
            Some(BigInt::Text(text)) => Reply::Bulk(text.into_bytes()),
            None => Reply::Bulk(OPAQUE.to_vec()),
        },
        Item::Float(x) => Reply::Bulk(fixed(x).into_bytes()),
        Item::Str(text) => str_to_reply(text),
        Item::Bytes(bytes) => Reply::Bulk(bytes.to_vec()),
        // Such a text is a `bytearray` (or, as a dict key, `bytes`) if it is not UTF-8.
        Item::Text(text) | Item::TextKey(text) if std::str::from_utf8(text).is_ok() => str_to_reply(text),
        Item::TextKey(bytes) => Reply::Bulk(bytes.to_vec()),
        _ => Reply::Bulk(OPAQUE.to_vec()),
    }
}

fn str_to_reply(text: &[u8]) -> Reply {
    let text = without_surrogates(text);
    match text.split_first() {
        Some((b'+', rest)) if !rest.is_empty() => Reply::Simple(rest.to_vec()),
        Some((b'-', rest)) if !rest.is_empty() => Reply::Error(String::from_utf8_lossy(rest).into_owned()),
        _ => Reply::Bulk(text.into_owned()),
    }
}

/// As C's `%lf`.
fn fixed(x: f64) -> String {
    if x.is_nan() {
        "nan".to_owned()
    } else {
        format!("{x:.6}")
    }
}

/// Lone surrogates, which are encoded like other code points, become replacement characters.
fn without_surrogates(text: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(text).is_ok() {
        return Cow::Borrowed(text);
    }
    let mut clean = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        if let [0xed, 0xa0..=0xbf, 0x80..=0xbf, after @ ..] = rest {
            clean.extend_from_slice("\u{fffd}".as_bytes());
            rest = after;
        } else {
            clean.push(first);
            rest = tail;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&clean).into_owned().into_bytes())
}

#[derive(Debug, PartialEq)]
enum BigInt {
    Small(i64),
    Text(String),
}

/// Decimal text of a little-endian two's complement number; `None` if it is too long.
fn big_int(bytes: &[u8]) -> Option<BigInt> {
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    if bytes.len() > BIG_INT_BYTES {
        return None;
    }
    let fill = if negative { 0xff } else { 0 };
    if bytes.len() <= 8 {
        let mut eight = [fill; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        return Some(BigInt::Small(i64::from_le_bytes(eight)));
    }
    // Magnitude in 32-bit limbs, lowest first.
    let mut limbs: Vec<u32> = bytes
        .chunks(4)
        .map(|chunk| {
            let mut four = [fill; 4];
            four[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(four)
        })
        .collect();
    if negative {
        let mut carry = true;
        for limb in &mut limbs {
            let (flipped, overflow) = (!*limb).overflowing_add(carry.into());
            *limb = flipped;
            carry = overflow;
        }
    }
    let digits = decimal(limbs);
    let text = if negative { format!("-{digits}") } else { digits };
    Some(text.parse().map_or(BigInt::Text(text), BigInt::Small))
}

/// Divides by a billion until nothing is left.
fn decimal(mut limbs: Vec<u32>) -> String {
    const BASE: u64 = 1_000_000_000;
    let mut groups = Vec::new();
    while !limbs.is_empty() {
        let mut rest = 0u64;
        for limb in limbs.iter_mut().rev() {
            let whole = rest << 32 | u64::from(*limb);
            *limb = (whole / BASE) as u32;
            rest = whole % BASE;
        }
        groups.push(rest);
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
    }
    let mut text = groups.pop().unwrap_or(0).to_string();
    for group in groups.iter().rev() {
        text.push_str(&format!("{group:09}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_have_six_decimals() {
        for (x, text) in [
            (1.5, "1.500000"),
            (-0.0, "-0.000000"),
            (1e20, "100000000000000000000.000000"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
            (2.5e-7, "0.000000"),
        ] {
            assert_eq!(fixed(x), text);
        }
    }

    #[test]
    fn big_ints_are_decimal() {
        let cases: [(i128, &str); 5] = [
            (1 << 64, "18446744073709551616"),
            (-(1 << 64), "-18446744073709551616"),
            (i128::MAX, "170141183460469231731687303715884105727"),
            (i128::MIN, "-170141183460469231731687303715884105728"),
            (1_000_000_000_000_000_000_000, "1000000000000000000000"),
        ];
        for (n, text) in cases {
            assert_eq!(big_int(&n.to_le_bytes()), Some(BigInt::Text(text.into())));
        }
        assert_eq!(big_int(&(-5i128).to_le_bytes()), Some(BigInt::Small(-5)));
        assert_eq!(big_int(&[0xff]), Some(BigInt::Small(-1)));
        assert_eq!(big_int(&[]), Some(BigInt::Small(0)));
        assert_eq!(big_int(&vec![1; BIG_INT_BYTES + 1]), None);
        // 2^63 does not fit.
        assert_eq!(
            big_int(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0]),
            Some(BigInt::Text("9223372036854775808".into()))
        );
    }

    #[test]
    fn surrogates_are_replaced() {
        assert_eq!(&*without_surrogates("né".as_bytes()), "né".as_bytes());
        assert_eq!(&*without_surrogates(b"a\xed\xa0\x80b"), "a\u{fffd}b".as_bytes());
    }
}
