//! What the main thread does at the two ends of a turn of its event loop. Listened to only once somebody needs it.

use std::{
    ffi::c_void,
    sync::atomic::{AtomicU8, Ordering},
};

use redis_module::raw;

use super::{
    ffi::{api, guarded},
    later,
    lock::{self, ServerLock},
    replicate, sharing,
};

/// Not tried yet.
const NEW: u8 = 0;
const LISTENS: u8 = 1;
/// The server does not tell (before 7.0).
const REFUSED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(NEW);

/// Nobody has listened yet.
pub(super) fn is_new() -> bool {
    STATE.load(Ordering::Acquire) == NEW
}

/// The event loop tells of its turns from now on; false if the server can not.
pub(super) fn listen(guard: &ServerLock) -> bool {
    if is_new() {
        let event = raw::RedisModuleEvent {
            id: raw::REDISMODULE_EVENT_EVENTLOOP,
            dataver: 1,
        };
        // SAFETY: the context names this module; the callback lives as long as the module.
        let outcome = unsafe { api!(RedisModule_SubscribeToServerEvent)(guard.ctx(), event, Some(turn)) };
        let state = if outcome == raw::REDISMODULE_OK as i32 {
            LISTENS
        } else {
            REFUSED
        };
        STATE.store(state, Ordering::Release);
    }
    STATE.load(Ordering::Acquire) == LISTENS
}

extern "C" fn turn(_: *mut raw::RedisModuleCtx, _: raw::RedisModuleEvent, sub: u64, _: *mut c_void) {
    if sub == raw::REDISMODULE_SUBEVENT_EVENTLOOP_AFTER_SLEEP {
        if sharing::turn_begins() {
            guarded("sharing the server lock", || {
                // Who borrows may write.
                if !replicate::is_paused(&lock::lock()) {
                    sharing::lend();
                }
            });
        }
    } else if sub == raw::REDISMODULE_SUBEVENT_EVENTLOOP_BEFORE_SLEEP {
        if later::is_asked() {
            guarded("work before the event loop sleeps", || later::work(&lock::lock()));
        }
        sharing::turn_ends();
    }
}
