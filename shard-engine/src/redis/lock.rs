//! The server lock as a token: a function that needs the lock takes a `ServerLock`.
//!
//! The lock is re-entrant per thread. Inside a callback of the server (command, timer, event) it is held already.
//! A thread that waits here must not hold the GIL.

use std::{
    cell::Cell,
    marker::PhantomData,
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering},
};

use redis_module::raw;

use super::ffi::api;

/// Proof that this thread holds the server lock; one hold is given back when it is dropped.
pub struct ServerLock {
    _not_send: PhantomData<*mut ()>,
}

impl ServerLock {
    /// The context to work with: database 0, no client. Valid while the lock is held.
    pub(super) fn ctx(&self) -> *mut raw::RedisModuleCtx {
        detached()
    }
}

impl Drop for ServerLock {
    fn drop(&mut self) {
        exit();
    }
}

/// What this thread has of the lock.
#[derive(Clone, Copy)]
struct State {
    /// Times that this thread took the lock and has not given it back.
    depth: u32,
    /// The lock was really taken at depth 0, so it is really given back there.
    owned: bool,
    /// Callbacks of the server that this thread is in; the lock is held inside.
    callbacks: u32,
    /// Depth at which the innermost callback began: it can give back only what it took itself.
    floor: u32,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State { depth: 0, owned: false, callbacks: 0, floor: 0 }) };
}

/// The context that belongs to no client. One is enough: it is used under the lock only (logging needs just its name).
static DETACHED: AtomicPtr<raw::RedisModuleCtx> = AtomicPtr::new(null_mut());

/// Makes the context that all threads share. Called once at load.
pub(super) fn init(load_ctx: *mut raw::RedisModuleCtx) {
    // SAFETY: `load_ctx` is the context of OnLoad.
    let ctx = unsafe { api!(RedisModule_GetDetachedThreadSafeContext)(load_ctx) };
    DETACHED.store(ctx, Ordering::Release);
}

/// The shared context; null before `init`.
pub(super) fn detached() -> *mut raw::RedisModuleCtx {
    DETACHED.load(Ordering::Acquire)
}

/// Waits for the lock.
pub fn lock() -> ServerLock {
    enter();
    ServerLock { _not_send: PhantomData }
}

/// This thread holds the lock.
pub fn is_held() -> bool {
    let state = STATE.get();
    state.depth > 0 || state.callbacks > 0
}

/// Takes the lock without a guard; `exit` gives it back, on the same thread.
pub fn enter() {
    let mut state = STATE.get();
    if state.depth == 0 && state.callbacks == 0 {
        // SAFETY: this thread does not hold the lock; the context outlives the module's use.
        unsafe { api!(RedisModule_ThreadSafeContextLock)(detached()) };
        state.owned = true;
    }
    state.depth += 1;
    STATE.set(state);
}

/// Takes the lock without a guard if that needs no waiting.
pub fn try_enter() -> bool {
    let mut state = STATE.get();
    if state.depth == 0 && state.callbacks == 0 {
        // SAFETY: as in `enter`.
        let outcome = unsafe { api!(RedisModule_ThreadSafeContextTryLock)(detached()) };
        if outcome != raw::REDISMODULE_OK as i32 {
            return false;
        }
        state.owned = true;
    }
    state.depth += 1;
    STATE.set(state);
    true
}

/// Gives one hold back; false if this thread has none to give.
pub fn exit() -> bool {
    let mut state = STATE.get();
    if state.depth <= state.floor {
        return false;
    }
    state.depth -= 1;
    let release = state.depth == 0 && state.owned;
    state.owned &= !release;
    STATE.set(state);
    if release {
        // SAFETY: this thread took the lock in `enter` or `try_enter`.
        unsafe { api!(RedisModule_ThreadSafeContextUnlock)(detached()) };
    }
    true
}

/// Marks that this thread is inside a callback of the server. Holds that the callback forgot end with it.
pub(super) fn enter_callback() -> Callback {
    let before = STATE.get();
    STATE.set(State {
        callbacks: before.callbacks + 1,
        floor: before.depth,
        ..before
    });
    Callback { before }
}

/// See `enter_callback`.
pub(super) struct Callback {
    before: State,
}

impl Drop for Callback {
    fn drop(&mut self) {
        STATE.set(self.before);
    }
}
