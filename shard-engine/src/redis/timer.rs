//! Work on the main thread: repeating timers, and closures that other threads send there.

use std::{ffi::c_void, time::Duration};

use redis_module::raw;

use super::{
    ffi::{api, catch, guarded},
    lock::{self, ServerLock},
};

/// What a timer does.
type Tick = fn(&ServerLock);

/// Pause before a timer whose work panicked is tried again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Runs `work` on the main thread, under the server lock, once, after `delay`. Work that repeats sets its timer anew;
/// if it panics it is called again after a while, so that an internal error does not end it for good.
pub fn once(guard: &ServerLock, delay: Duration, work: Tick) {
    let boxed = Box::into_raw(Box::new(work));
    let period = delay.as_millis() as raw::mstime_t;
    // SAFETY: the guard proves that the lock is held; the box is taken back in `fire`, which is called once.
    unsafe { api!(RedisModule_CreateTimer)(guard.ctx(), period, Some(fire), boxed.cast()) };
}

extern "C" fn fire(_: *mut raw::RedisModuleCtx, data: *mut c_void) {
    guarded("a timer", || {
        // SAFETY: `once` let go of this box, and each timer fires once.
        let work = unsafe { Box::from_raw(data.cast::<Tick>()) };
        let guard = lock::lock();
        if catch("a timer", || work(&guard)).is_none() {
            once(&guard, AFTER_PANIC, *work);
        }
    });
}

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

type Work = Box<dyn FnOnce() + Send>;

/// Runs `work` on the main thread, under the server lock, soon. May be called from any thread; before 7.0 it waits for
/// the server lock.
pub fn run_on_main(work: impl FnOnce() + Send + 'static) {
    let boxed: Box<Work> = Box::new(Box::new(work));
    let data: *mut c_void = Box::into_raw(boxed).cast();
    // SAFETY: the pointer is filled at load.
    if let Some(add) = unsafe { raw::RedisModule_EventLoopAddOneShot } {
        // SAFETY: the function takes its own lock; the box is taken back in `one_shot`, which is called once.
        unsafe { add(Some(one_shot), data) };
    } else {
        let guard = lock::lock();
        // SAFETY: the lock is held; the box is taken back in `one_shot_timer`, which is called once.
        unsafe { api!(RedisModule_CreateTimer)(guard.ctx(), 0, Some(one_shot_timer), data) };
    }
}

extern "C" fn one_shot(data: *mut c_void) {
    guarded("work for the main thread", || {
        // SAFETY: `run_on_main` let go of this box, and it comes once.
        let work = unsafe { Box::from_raw(data.cast::<Work>()) };
        work();
    });
}

extern "C" fn one_shot_timer(_: *mut raw::RedisModuleCtx, data: *mut c_void) {
    one_shot(data);
}
