//! The command filter: looks at every command before the server does, and may put one of our internal commands in front.
//!
//! Says nothing of which commands: that is the judge's matter. Runs under the server lock, for clients on the main thread,
//! for commands of functions and scripts on whichever thread runs those. Never runs user code, never blocks.

use std::{
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use redis_module::raw;

use super::{
    ffi::{api, catch, string_bytes},
    front::Front,
    lock::{self, ServerLock},
};

/// A command that passes.
pub struct Passing<'a> {
    filter: *mut raw::RedisModuleCommandFilterCtx,
    guard: &'a ServerLock,
}

impl Passing<'_> {
    /// The server lock, to look at what it guards. What runs commands has to go through `in_callback`.
    pub fn guard(&self) -> &ServerLock {
        self.guard
    }

    /// Number of arguments, the name included.
    pub fn len(&self) -> usize {
        // SAFETY: the server's context is alive while the filter runs.
        let count = unsafe { api!(RedisModule_CommandFilterArgsCount)(self.filter) };
        usize::try_from(count).unwrap_or(0)
    }

    /// An argument; empty if there is none.
    #[inline]
    pub fn arg(&self, at: usize) -> &[u8] {
        // SAFETY: as above; the strings live as long as the command, which the filter outlives not.
        unsafe {
            let string = api!(RedisModule_CommandFilterArgGet)(self.filter, at as i32);
            if string.is_null() { &[] } else { string_bytes(string) }
        }
    }

    /// The first byte of an argument; zero if it is empty, or there is none. To read its length costs as much again.
    #[inline]
    pub fn first_byte(&self, at: usize) -> u8 {
        // SAFETY: as above; behind the text of a string of the server there is a zero.
        unsafe {
            let string = api!(RedisModule_CommandFilterArgGet)(self.filter, at as i32);
            if string.is_null() {
                return 0;
            }
            api!(RedisModule_StringPtrLen)(string, null_mut()).cast::<u8>().read()
        }
    }

    fn pointer(&self, at: i32) -> *mut raw::RedisModuleString {
        // SAFETY: as above.
        unsafe { api!(RedisModule_CommandFilterArgGet)(self.filter, at) }
    }
}

/// Says what is put in front of a command, if anything.
pub type Judge = fn(&Passing<'_>) -> Option<Front>;

static JUDGE: AtomicPtr<()> = AtomicPtr::new(null_mut());
static FILTER: AtomicPtr<raw::RedisModuleCommandFilter> = AtomicPtr::new(null_mut());

/// The next command that the holder of the server lock runs passes as it is. Only used under that lock.
static PASS: AtomicBool = AtomicBool::new(false);

/// Lets `judge` look at every command from now on.
pub fn install(guard: &ServerLock, judge: Judge) {
    JUDGE.store(judge as *mut (), Ordering::Release);
    if !FILTER.load(Ordering::Acquire).is_null() {
        return;
    }
    // SAFETY: the context names this module; the callback lives as long as the module.
    let filter = unsafe { api!(RedisModule_RegisterCommandFilter)(guard.ctx(), Some(passing), 0) };
    FILTER.store(filter, Ordering::Release);
}

/// Commands are looked at.
pub fn is_installed() -> bool {
    !FILTER.load(Ordering::Acquire).is_null()
}

/// Commands are looked at no more.
pub fn uninstall(guard: &ServerLock) {
    let filter = FILTER.swap(null_mut(), Ordering::AcqRel);
    if !filter.is_null() {
        // SAFETY: the filter was registered by `install` and is given back once.
        unsafe { api!(RedisModule_UnregisterCommandFilter)(guard.ctx(), filter) };
    }
}

/// While it lives, the next command that this thread runs, which has the server lock, is not looked at.
pub(super) struct Unseen(bool);

/// See `Unseen`.
pub(super) fn unseen() -> Unseen {
    Unseen(PASS.swap(true, Ordering::Relaxed))
}

impl Drop for Unseen {
    fn drop(&mut self) {
        PASS.store(self.0, Ordering::Relaxed);
    }
}

/// For what a judge does seldom: with the lock, which its caller holds. Elsewhere this waits for ever.
pub fn in_callback<R>(work: impl FnOnce(&ServerLock) -> R) -> R {
    let _callback = lock::enter_callback();
    work(&lock::lock())
}

extern "C" fn passing(filter: *mut raw::RedisModuleCommandFilterCtx) {
    // Only the first command: those that it runs itself (a script) are looked at.
    if PASS.load(Ordering::Relaxed) {
        return PASS.store(false, Ordering::Relaxed);
    }
    let judge = JUDGE.load(Ordering::Acquire);
    if judge.is_null() {
        return;
    }
    // SAFETY: `install` stored a function of this type.
    let judge: Judge = unsafe { std::mem::transmute::<*mut (), Judge>(judge) };
    // SAFETY: the server calls; the judge takes no lock, but through `in_callback`.
    let guard = unsafe { lock::in_quick_callback() };
    let command = Passing { filter, guard: &guard };
    let Some(front) = catch("the command filter", || judge(&command)).flatten() else {
        return;
    };
    // It was held up before (CLIENT PAUSE) and is looked at again.
    if Front::of(command.pointer(0)).is_some() {
        return;
    }
    if let Some(name) = front.retained() {
        // SAFETY: the context is alive; the string is retained for the command, which lets it go.
        unsafe { api!(RedisModule_CommandFilterArgInsert)(filter, 0, name) };
    }
}
