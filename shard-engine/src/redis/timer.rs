//! Work on the main thread that repeats.

use std::{ffi::c_void, time::Duration};

use redis_module::raw;

use super::{
    ffi::{api, catch, guarded},
    lock::{self, ServerLock},
};

/// Runs `work` on the main thread, under the server lock, `every` so often. It can not be stopped.
pub fn every(guard: &ServerLock, every: Duration, work: impl FnMut(&ServerLock) + Send + 'static) {
    arm(
        guard,
        Box::new(Repeating {
            every,
            work: Box::new(work),
        }),
    );
}

struct Repeating {
    every: Duration,
    work: Box<dyn FnMut(&ServerLock) + Send>,
}

fn arm(guard: &ServerLock, timer: Box<Repeating>) {
    let period = timer.every.as_millis().max(1) as raw::mstime_t;
    // SAFETY: the guard proves that the lock is held; the box is taken back in `tick`, which is called once.
    unsafe { api!(RedisModule_CreateTimer)(guard.ctx(), period, Some(tick), Box::into_raw(timer).cast()) };
}

extern "C" fn tick(_: *mut raw::RedisModuleCtx, data: *mut c_void) {
    guarded("a timer", || {
        // SAFETY: `arm` let go of this box, and each timer fires once.
        let mut timer = unsafe { Box::from_raw(data.cast::<Repeating>()) };
        let guard = lock::lock();
        // A panic in the work must not end the timer.
        catch("a timer", || (timer.work)(&guard));
        arm(&guard, timer);
    });
}
