//! Python objects to record bytes and back, for exact builtin types; everything else is pickled.

mod decode;
mod encode;
mod kept;
mod templates;

use oxigears_coordinator::codec::{RecordBatch, put_head, put_tagged, tag};

pub(crate) use decode::{DecodeError, Decoder, argument_text, new_text};
pub(crate) use encode::{Encoder, key_bytes};
pub(crate) use kept::Kept;
pub(crate) use templates::{Lent, version};

/// One record: the list of a command's arguments, `str` or (not UTF-8) `bytearray`. Needs no Python.
pub fn encode_arguments(args: &[Vec<u8>]) -> RecordBatch {
    let mut bytes = Vec::with_capacity(8 + args.iter().map(|arg| arg.len() + 8).sum::<usize>());
    put_head(&mut bytes, tag::LIST, args.len());
    for arg in args {
        put_tagged(&mut bytes, tag::TEXT, arg);
    }
    RecordBatch {
        bytes: bytes.into(),
        records: 1,
    }
}
