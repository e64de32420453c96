//! Work on the main thread: repeated, or later.

use std::{ffi::c_void, time::Duration};

use redis_module::raw;

use super::{
    ffi::{api, catch, guarded},
    lock::{self, ServerLock},
};

/// Runs `work` on the main thread, under the server lock, for the first time after `pause`, and again after the pause
/// that it gives. It can not be stopped.
pub fn repeat(guard: &ServerLock, pause: Duration, work: impl FnMut(&ServerLock) -> Duration + Send + 'static) {
    arm(
        guard,
        Box::new(Repeating {
            pause,
            work: Box::new(work),
        }),
    );
}

/// Runs `work` on the main thread, under the server lock, once, after `delay`.
pub fn once(guard: &ServerLock, delay: Duration, work: impl FnOnce(&ServerLock) + Send + 'static) {
    let work: Once = Box::new(work);
    let delay = delay.as_millis().max(1) as raw::mstime_t;
    // SAFETY: the guard proves that the lock is held; the box is taken back in `ring`, which is called once.
    unsafe { api!(RedisModule_CreateTimer)(guard.ctx(), delay, Some(ring), Box::into_raw(Box::new(work)).cast()) };
}

type Once = Box<dyn FnOnce(&ServerLock) + Send>;

extern "C" fn ring(_: *mut raw::RedisModuleCtx, data: *mut c_void) {
    guarded("work on the main thread", || {
        // SAFETY: `once` let go of this box, and each timer fires once.
        let work = unsafe { Box::from_raw(data.cast::<Once>()) };
        work(&lock::lock());
    });
}

struct Repeating {
    pause: Duration,
    work: Box<dyn FnMut(&ServerLock) -> Duration + Send>,
}

fn arm(guard: &ServerLock, timer: Box<Repeating>) {
    let period = timer.pause.as_millis().max(1) as raw::mstime_t;
    // SAFETY: the guard proves that the lock is held; the box is taken back in `tick`, which is called once.
    unsafe { api!(RedisModule_CreateTimer)(guard.ctx(), period, Some(tick), Box::into_raw(timer).cast()) };
}

extern "C" fn tick(_: *mut raw::RedisModuleCtx, data: *mut c_void) {
    guarded("a timer", || {
        // SAFETY: `arm` let go of this box, and each timer fires once.
        let mut timer = unsafe { Box::from_raw(data.cast::<Repeating>()) };
        let guard = lock::lock();
        // A panic in the work must not end the timer.
        if let Some(pause) = catch("a timer", || (timer.work)(&guard)) {
            timer.pause = pause;
        }
        arm(&guard, timer);
    });
}
