//! Python objects to record bytes and back, for exact builtin types; everything else is pickled.

mod decode;
mod encode;
mod kept;

pub(crate) use decode::{DecodeError, Decoder, new_text};
pub(crate) use encode::{Encoder, key_bytes};
pub(crate) use kept::Kept;
