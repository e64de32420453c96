//! Where the first step of a chain gets its records: encoded batches, or a generator of the script.

use std::time::Instant;

use bytes::Bytes;
use oxigears_coordinator::codec::{Cursor, Item as Encoded, RecordBatch, TextEvent};
use pyo3::{ffi, prelude::*};

use super::{
    item::{Item, Key, call, refuses_coroutine},
    native::undecodable,
    step::Function,
};
use crate::{
    codec::{DecodeError, Decoder},
    errors::take_error_text,
    obj::Obj,
};

/// One pull.
pub(super) enum Pulled {
    Record(Item),
    /// An error record; pulling may go on.
    Error(String),
    /// Nothing left for now.
    Nothing,
    /// The generator has ended.
    End,
}

/// A batch that is being read.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) bytes: Bytes,
    /// Where the last record began.
    last: usize,
    at: usize,
    left: u32,
}

impl Batch {
    pub(super) fn new(batch: RecordBatch) -> Batch {
        Batch {
            bytes: batch.bytes,
            last: 0,
            at: 0,
            left: batch.records,
        }
    }

    /// The same, or an empty one if all has been read: its memory may belong to many.
    pub(super) fn what_is_left(self) -> Batch {
        match self.left {
            0 => Batch::default(),
            _ => self,
        }
    }

    /// The record that was read last.
    pub(super) fn last(&self) -> &[u8] {
        &self.bytes[self.last..self.at]
    }

    /// Reads the next record.
    ///
    /// # Safety
    /// The GIL is held.
    #[inline]
    pub(super) unsafe fn pull(&mut self, py: Python<'_>, decoder: &Decoder, keyed: bool) -> Pulled {
        if self.left == 0 {
            return Pulled::Nothing;
        }
        self.left -= 1;
        let mut cursor = Cursor::at(&self.bytes, self.at);
        // SAFETY: the GIL is held.
        match unsafe { read(&mut cursor, decoder, keyed) } {
            Ok(item) => {
                self.last = std::mem::replace(&mut self.at, cursor.position());
                Pulled::Record(item)
            }
            Err(DecodeError::Python) => {
                let text = take_error_text(py);
                let mut cursor = Cursor::at(&self.bytes, self.at);
                match cursor.skip() {
                    Ok(()) => self.at = cursor.position(),
                    Err(_) => self.left = 0,
                }
                Pulled::Error(text)
            }
            Err(DecodeError::Codec(e)) => {
                let lost = std::mem::take(&mut self.left) + 1;
                Pulled::Error(undecodable(&e.to_string(), lost))
            }
        }
    }
}

/// Reads the one record that is there, which may have been seen to be an `event`; the error is a text.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(super) unsafe fn pull_one(
    py: Python<'_>,
    record: &[u8],
    event: Option<&TextEvent<'_>>,
    decoder: &Decoder,
) -> Result<Item, String> {
    // SAFETY: as for this function; the record has no key that would have to outlive it.
    let value = unsafe {
        match event.and_then(|event| decoder.event(event)) {
            Some(decoded) => decoded,
            None => decoder.next(&mut Cursor::new(record)),
        }
    };
    value.map(Item::plain).map_err(|error| match error {
        DecodeError::Python => take_error_text(py),
        DecodeError::Codec(e) => undecodable(&e.to_string(), 1),
    })
}

/// # Safety
/// The GIL is held.
#[inline]
unsafe fn read(cursor: &mut Cursor<'_>, decoder: &Decoder, keyed: bool) -> Result<Item, DecodeError> {
    // SAFETY: the GIL is held; a key borrows from the batch, which outlives the push of the record.
    unsafe {
        if !keyed {
            return Ok(Item::plain(decoder.next(cursor)?));
        }
        match cursor.next_item()? {
            Encoded::Keyed { key } => Ok(Item {
                key: Key::Raw(key.as_ptr(), key.len()),
                value: decoder.next(cursor)?,
            }),
            other => Ok(Item::plain(decoder.item(other, cursor, 0)?)),
        }
    }
}

/// PythonReader's function on this shard.
pub(super) enum Generator {
    NotStarted(Function),
    Running(Obj),
    Ended,
}

const NO_ITERATOR: &str = "PythonReader function must return an iterator";

impl Generator {
    /// The next value, and the time that it took; the function is called at the first pull.
    ///
    /// # Safety
    /// The GIL is held; the function is alive.
    pub(super) unsafe fn pull(&mut self, py: Python<'_>, spent_ns: &mut u64) -> Pulled {
        // SAFETY: as for this function; the iterator is owned.
        unsafe {
            if let Generator::NotStarted(function) = *self {
                *self = Generator::Ended;
                let Ok(result) = call(function, [std::ptr::null_mut()]) else {
                    return Pulled::Error(take_error_text(py));
                };
                if result.as_ptr() == ffi::Py_None() {
                    return Pulled::End;
                }
                if refuses_coroutine(&result) || ffi::PyIter_Check(result.as_ptr()) == 0 {
                    return Pulled::Error(NO_ITERATOR.to_owned());
                }
                *self = Generator::Running(result);
            }
            let Generator::Running(iterator) = self else {
                return Pulled::End;
            };
            let start = Instant::now();
            let next = Obj::from_owned(ffi::PyIter_Next(iterator.as_ptr()));
            *spent_ns += start.elapsed().as_nanos() as u64;
            match next {
                Some(value) => Pulled::Record(Item::plain(value)),
                None => {
                    let failed = !ffi::PyErr_Occurred().is_null();
                    let text = failed.then(|| take_error_text(py));
                    *self = Generator::Ended;
                    text.map_or(Pulled::End, Pulled::Error)
                }
            }
        }
    }
}
