//! Copying the reply of a command out of the server.

use std::{
    ffi::c_char,
    ptr::{NonNull, null, null_mut},
};

use redis_module::raw;

use super::{
    ffi::{api, bytes_at},
    value::Reply,
};

/// Nesting depth of a reply that is taken.
const REPLY_DEPTH: usize = 512;

/// A reply that we own.
pub(super) struct CallReply(NonNull<raw::RedisModuleCallReply>);

impl CallReply {
    /// Takes over what a call gave.
    pub(super) fn adopt(reply: *mut raw::RedisModuleCallReply) -> Option<CallReply> {
        NonNull::new(reply).map(CallReply)
    }

    /// The server's reply, which stays ours.
    pub(super) fn as_ptr(&self) -> Ptr {
        self.0.as_ptr()
    }

    /// It is an error. Looks at its first byte only: to ask for its type has the server read all of it.
    #[inline]
    pub(super) fn is_error(&self) -> bool {
        // SAFETY: the reply is ours and alive.
        unsafe { proto_tag(self.0.as_ptr()) == Some(b'-') }
    }

    /// The server gave nothing.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        // SAFETY: the reply is ours and alive.
        unsafe { proto_tag(self.0.as_ptr()).is_none() }
    }

    /// It is this text.
    pub(super) fn is_text(&self, text: &[u8]) -> bool {
        // SAFETY: the reply is ours and alive.
        unsafe {
            let kind = api!(RedisModule_CallReplyType)(self.0.as_ptr()) as isize;
            kind == raw::REDISMODULE_REPLY_STRING && reply_string(self.0.as_ptr()) == text
        }
    }

    /// The text of an error.
    pub(super) fn error(&self) -> Option<String> {
        // SAFETY: the reply is ours and alive.
        let text = || unsafe { reply_string(self.0.as_ptr()) };
        self.is_error().then(|| String::from_utf8_lossy(text()).into_owned())
    }

    /// A copy; `None` if it is nested too deeply.
    pub(super) fn read(&self) -> Option<Reply> {
        // SAFETY: the reply is ours and alive.
        unsafe { read_reply(self.0.as_ptr(), 0) }
    }
}

impl Drop for CallReply {
    fn drop(&mut self) {
        // SAFETY: it is the outermost reply, and nothing borrows from it any more.
        unsafe { api!(RedisModule_FreeCallReply)(self.0.as_ptr()) }
    }
}

type Ptr = *mut raw::RedisModuleCallReply;

/// Copies a reply; `None` if it is nested too deeply.
///
/// # Safety
/// `reply` is null or a live reply or element of one.
unsafe fn read_reply(reply: Ptr, depth: usize) -> Option<Reply> {
    if reply.is_null() {
        return Some(Reply::Null);
    }
    if depth > REPLY_DEPTH {
        return None;
    }
    // SAFETY: the reply is alive (as the caller says), and so are the elements taken from it.
    unsafe {
        let kind = api!(RedisModule_CallReplyType)(reply) as isize;
        Some(match kind {
            raw::REDISMODULE_REPLY_STRING => {
                let bytes = reply_string(reply).to_vec();
                if proto_tag(reply) == Some(b'+') {
                    Reply::Simple(bytes)
                } else {
                    Reply::Bulk(bytes)
                }
            }
            raw::REDISMODULE_REPLY_ERROR => {
                let text = String::from_utf8_lossy(reply_string(reply)).into_owned();
                Reply::Error(text.trim_start_matches('-').trim_end_matches(['\r', '\n']).to_owned())
            }
            raw::REDISMODULE_REPLY_INTEGER => Reply::Int(api!(RedisModule_CallReplyInteger)(reply)),
            raw::REDISMODULE_REPLY_ARRAY => Reply::Array(read_items(reply, depth, |r, i| {
                api!(RedisModule_CallReplyArrayElement)(r, i)
            })?),
            raw::REDISMODULE_REPLY_SET => Reply::Set(read_items(reply, depth, |r, i| {
                api!(RedisModule_CallReplySetElement)(r, i)
            })?),
            raw::REDISMODULE_REPLY_MAP => Reply::Map(read_pairs(reply, depth)?),
            raw::REDISMODULE_REPLY_BOOL => Reply::Bool(api!(RedisModule_CallReplyBool)(reply) != 0),
            raw::REDISMODULE_REPLY_DOUBLE => Reply::Double(api!(RedisModule_CallReplyDouble)(reply)),
            raw::REDISMODULE_REPLY_BIG_NUMBER => {
                let mut len = 0;
                let text = api!(RedisModule_CallReplyBigNumber)(reply, &mut len);
                Reply::BigNumber(String::from_utf8_lossy(bytes_at(text, len)).into_owned())
            }
            raw::REDISMODULE_REPLY_VERBATIM_STRING => {
                let mut len = 0;
                let mut format: *const c_char = null();
                let text = api!(RedisModule_CallReplyVerbatim)(reply, &mut len, &mut format);
                Reply::Bulk(bytes_at(text, len).to_vec())
            }
            _ => Reply::Null,
        })
    }
}

/// # Safety
/// `reply` is a live reply of kind string or error.
unsafe fn reply_string<'a>(reply: Ptr) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: the caller says so; the bytes live as long as the reply.
    unsafe { bytes_at(api!(RedisModule_CallReplyStringPtr)(reply, &mut len), len) }
}

/// First byte of the reply as it came: tells simple strings from bulk ones.
///
/// # Safety
/// `reply` is a live reply.
unsafe fn proto_tag(reply: Ptr) -> Option<u8> {
    let mut len = 0;
    // SAFETY: the caller says so.
    let proto = unsafe { bytes_at(api!(RedisModule_CallReplyProto)(reply, &mut len), len) };
    proto.first().copied()
}

/// # Safety
/// `reply` is a live reply with elements that `element` gives.
unsafe fn read_items(reply: Ptr, depth: usize, element: impl Fn(Ptr, usize) -> Ptr) -> Option<Vec<Reply>> {
    // SAFETY: the caller says so.
    let len = unsafe { api!(RedisModule_CallReplyLength)(reply) };
    // SAFETY: elements live as long as the reply.
    (0..len)
        .map(|i| unsafe { read_reply(element(reply, i), depth + 1) })
        .collect()
}

/// # Safety
/// `reply` is a live reply of kind map.
unsafe fn read_pairs(reply: Ptr, depth: usize) -> Option<Vec<(Reply, Reply)>> {
    // SAFETY: the caller says so.
    let len = unsafe { api!(RedisModule_CallReplyLength)(reply) };
    (0..len)
        .map(|i| {
            let (mut key, mut value): (Ptr, Ptr) = (null_mut(), null_mut());
            // SAFETY: elements live as long as the reply; both places are ours.
            unsafe {
                api!(RedisModule_CallReplyMapElement)(reply, i, &mut key, &mut value);
                Some((read_reply(key, depth + 1)?, read_reply(value, depth + 1)?))
            }
        })
        .collect()
}
