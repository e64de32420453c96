//! Replies that the server keeps back.
//!
//! While a module listens, Valkey 9 hands the reply of a command that tells of events on at the end of the command, and
//! GETSET and GETDEL of a key that holds no string return before that. Then a call of ours gives an empty reply, and the
//! next one gives the reply that is missing, in front of its own.

use std::ffi::CStr;

use redis_module::raw;

use super::{call_reply::CallReply, ffi::api, filter};

/// Answered by the server as it is.
const NOTHING: &CStr = c"oxigears: no reply was kept back";

/// The reply of a call in this context: the very one, or the one that was kept back. `None` if there is none.
///
/// # Safety
/// The context is alive and the lock is held; the call was the last one.
#[inline]
pub(super) unsafe fn complete(ctx: *mut raw::RedisModuleCtx, reply: CallReply) -> Option<CallReply> {
    if !reply.is_empty() {
        return Some(reply);
    }
    drop(reply);
    // SAFETY: the caller says so.
    unsafe { fetch(ctx) }
}

/// # Safety
/// As `complete`.
#[cold]
unsafe fn fetch(ctx: *mut raw::RedisModuleCtx) -> Option<CallReply> {
    let _unseen = filter::unseen();
    // SAFETY: the caller says so; "c" takes a C string.
    let reply = unsafe { api!(RedisModule_Call)(ctx, c"ECHO".as_ptr(), c"c".as_ptr(), NOTHING.as_ptr()) };
    CallReply::adopt(reply).filter(|reply| !reply.is_text(NOTHING.to_bytes()))
}
