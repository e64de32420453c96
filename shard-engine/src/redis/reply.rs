//! Writing replies: one method per RESP type. What is written is always well-formed RESP.

use std::ffi::CString;

use redis_module::raw;

use super::{ffi::api, value::Reply};

/// Writes the reply of one command. Works without the server lock on the context of a blocked client. Handed out only
/// by reference, so that it does not outlive its context.
pub struct ReplyWriter {
    ctx: *mut raw::RedisModuleCtx,
}

impl ReplyWriter {
    /// Writes to the client of `ctx`.
    ///
    /// # Safety
    /// `ctx` has a client to answer, outlives the writer, and nothing else writes to it meanwhile.
    pub(super) unsafe fn new(ctx: *mut raw::RedisModuleCtx) -> ReplyWriter {
        ReplyWriter { ctx }
    }

    /// The context of the client that is answered.
    pub(super) fn ctx(&self) -> *mut raw::RedisModuleCtx {
        self.ctx
    }

    /// A simple string. Line ends and NUL, which it can not hold, become spaces.
    pub fn simple(&mut self, text: impl AsRef<[u8]>) {
        let text = one_line(text.as_ref());
        // SAFETY: see `new`; the text is a C string.
        unsafe { api!(RedisModule_ReplyWithSimpleString)(self.ctx, text.as_ptr()) };
    }

    /// An error. Line ends and NUL become spaces; an empty text becomes `ERR`.
    pub fn error(&mut self, text: &str) {
        self.error_bytes(text.as_bytes());
    }

    /// An error from bytes.
    pub fn error_bytes(&mut self, text: &[u8]) {
        let text = one_line(if text.is_empty() { b"ERR" } else { text });
        // SAFETY: see `new`; the text is a C string.
        unsafe { api!(RedisModule_ReplyWithError)(self.ctx, text.as_ptr()) };
    }

    /// A bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        // SAFETY: see `new`; pointer and length are those of a slice.
        unsafe { api!(RedisModule_ReplyWithStringBuffer)(self.ctx, bytes.as_ptr().cast(), bytes.len()) };
    }

    /// A bulk string.
    pub fn text(&mut self, text: &str) {
        self.bulk(text.as_bytes());
    }

    /// A bulk string, or null.
    pub fn bulk_or_null(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.text(text),
            None => self.null(),
        }
    }

    /// Two elements: a name and a bulk string.
    pub fn named_bulk(&mut self, name: &str, value: &str) {
        self.text(name);
        self.text(value);
    }

    /// Two elements: a name and an integer.
    pub fn named_int(&mut self, name: &str, value: i64) {
        self.text(name);
        self.int(value);
    }

    /// An integer.
    pub fn int(&mut self, n: i64) {
        // SAFETY: see `new`.
        unsafe { api!(RedisModule_ReplyWithLongLong)(self.ctx, n) };
    }

    /// A double; for RESP2 its text.
    pub fn double(&mut self, x: f64) {
        // SAFETY: see `new`.
        unsafe { api!(RedisModule_ReplyWithDouble)(self.ctx, x) };
    }

    /// A null.
    pub fn null(&mut self) {
        // SAFETY: see `new`.
        unsafe { api!(RedisModule_ReplyWithNull)(self.ctx) };
    }

    /// A whole reply, as the client's version of RESP has it.
    pub fn value(&mut self, value: &Reply) {
        match value {
            Reply::Null => self.null(),
            Reply::Int(n) => self.int(*n),
            Reply::Bulk(bytes) => self.bulk(bytes),
            Reply::Simple(bytes) => self.simple(bytes),
            Reply::Error(text) => self.error(text),
            Reply::Array(items) => {
                self.array(items.len());
                items.iter().for_each(|item| self.value(item));
            }
            Reply::Set(items) => {
                // SAFETY: see `new`; the members follow.
                unsafe { api!(RedisModule_ReplyWithSet)(self.ctx, items.len() as _) };
                items.iter().for_each(|item| self.value(item));
            }
            Reply::Map(pairs) => {
                // SAFETY: see `new`; the pairs follow.
                unsafe { api!(RedisModule_ReplyWithMap)(self.ctx, pairs.len() as _) };
                for (key, value) in pairs {
                    self.value(key);
                    self.value(value);
                }
            }
            Reply::Double(x) => self.double(*x),
            // SAFETY: see `new`.
            Reply::Bool(b) => drop(unsafe { api!(RedisModule_ReplyWithBool)(self.ctx, (*b).into()) }),
            Reply::BigNumber(digits) => {
                // SAFETY: see `new`; pointer and length are those of a slice.
                unsafe { api!(RedisModule_ReplyWithBigNumber)(self.ctx, digits.as_ptr().cast(), digits.len()) };
            }
        }
    }

    /// Head of an array; exactly `n` elements must follow.
    pub fn array(&mut self, n: usize) {
        // SAFETY: see `new`.
        unsafe { api!(RedisModule_ReplyWithArray)(self.ctx, n as _) };
    }
}

/// A C string of one line.
fn one_line(text: &[u8]) -> CString {
    let clean = text
        .iter()
        .map(|&b| if matches!(b, b'\r' | b'\n' | 0) { b' ' } else { b });
    CString::new(clean.collect::<Vec<u8>>()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_strings_and_errors_stay_on_one_line() {
        assert_eq!(one_line(b"a\r\n+OK\0b").as_bytes(), b"a  +OK b");
    }
}
