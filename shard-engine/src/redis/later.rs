//! A moment when the command at hand is over: its values are not used any more, and it has been handed to replicas.
//!
//! Servers from 7.2 on have jobs for that, which belong to the command that raised a notification; before, the moment
//! before the event loop sleeps is the next one that is known. Never runs anything inside a command.

use std::{
    ffi::c_void,
    ptr::null_mut,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis_module::raw;

use super::{
    event_loop,
    ffi::guarded,
    lock::{self, ServerLock},
    timer,
};

type Work = fn(&ServerLock);

static WORK: OnceLock<Work> = OnceLock::new();
/// A job is under way.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Names the work. At load.
pub fn when_over(work: Work) {
    let _ = WORK.set(work);
}

/// The work is wanted when the command at hand is over. Called in a notification, under the lock.
pub fn ask(guard: &ServerLock) {
    if !ASKED.swap(true, Ordering::AcqRel) && !by_job(guard) && !by_event_loop(guard) {
        // A server that knows neither, or refuses: the next turn of the event loop.
        timer::once(guard, Duration::from_millis(1), work);
    }
}

/// The work is wanted and has not been done.
pub(super) fn is_asked() -> bool {
    ASKED.load(Ordering::Acquire)
}

/// Does it.
pub(super) fn work(guard: &ServerLock) {
    ASKED.store(false, Ordering::Release);
    if let Some(work) = WORK.get() {
        work(guard);
    }
}

fn by_job(guard: &ServerLock) -> bool {
    // SAFETY: the pointer is filled at load; the context is alive, the callback lives as long as the module.
    let outcome =
        unsafe { raw::RedisModule_AddPostNotificationJob.map(|add| add(guard.ctx(), Some(over), null_mut(), None)) };
    outcome == Some(raw::REDISMODULE_OK as i32)
}

extern "C" fn over(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    guarded("work after a command", || work(&lock::lock()));
}

/// For servers without such jobs.
fn by_event_loop(guard: &ServerLock) -> bool {
    // SAFETY: the pointer is filled at load and not changed after.
    let has_jobs = unsafe { raw::RedisModule_AddPostNotificationJob };
    has_jobs.is_none() && event_loop::listen(guard)
}
