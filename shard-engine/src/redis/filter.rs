//! The command filter: looks at every command before the server does, and may put one of our internal commands in front.
//!
//! Says nothing of which commands: that is the judge's matter. Runs under the server lock, for clients on the main thread,
//! for commands of functions and scripts on whichever thread runs those. Never runs user code, never blocks.

use std::{
    ptr::{NonNull, null_mut},
    slice,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use redis_module::raw;

use super::{
    ffi::{api, catch, missing},
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
    #[inline]
    pub fn guard(&self) -> &ServerLock {
        self.guard
    }

    /// Number of the client; `None` if the server does not tell (before 7.2).
    pub fn client(&self) -> Option<u64> {
        // SAFETY: the server's context is alive while the filter runs.
        unsafe { raw::RedisModule_CommandFilterGetClientId.map(|id| id(self.filter)) }
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
        let mut len = 0;
        self.text(at, &mut len).map_or(&[], |start| {
            // SAFETY: the server gives pointer and length of one buffer, which lives as long as the command, which the
            // filter outlives not.
            unsafe { slice::from_raw_parts(start.as_ptr(), len) }
        })
    }

    /// The first byte of an argument; zero if it is empty, or there is none. To read its length costs as much again.
    #[inline]
    pub fn first_byte(&self, at: usize) -> u8 {
        // SAFETY: as above; behind the text of a string of the server there is a zero.
        self.text(at, null_mut())
            .map_or(0, |start| unsafe { start.as_ptr().read() })
    }

    /// Where an argument begins, and its length, if that is asked for.
    #[inline]
    fn text(&self, at: usize, len: *mut usize) -> Option<NonNull<u8>> {
        // SAFETY: as above; there is no filter without these functions (`install`).
        unsafe {
            let string = raw::RedisModule_CommandFilterArgGet.unwrap_unchecked()(self.filter, at as i32);
            if string.is_null() {
                return None;
            }
            let start = raw::RedisModule_StringPtrLen.unwrap_unchecked()(string, len);
            NonNull::new(start.cast_mut().cast())
        }
    }

    fn pointer(&self, at: i32) -> *mut raw::RedisModuleString {
        // SAFETY: as above.
        unsafe { api!(RedisModule_CommandFilterArgGet)(self.filter, at) }
    }
}

/// Looks at commands. A type and no pointer: what each command costs is all in one function.
pub trait Judge {
    /// Says what is put in front of a command, if anything. What may panic goes through `seldom`.
    fn judge(command: &Passing<'_>) -> Option<Front>;
}

static FILTER: AtomicPtr<raw::RedisModuleCommandFilter> = AtomicPtr::new(null_mut());

/// The next command that the holder of the server lock runs passes as it is. Only used under that lock.
static PASS: AtomicBool = AtomicBool::new(false);

/// Lets a judge, which is always the same, look at every command from now on.
pub fn install<J: Judge>(guard: &ServerLock) {
    if !FILTER.load(Ordering::Acquire).is_null() {
        return;
    }
    // Each command asks for these.
    // SAFETY: written at load only.
    let fast = unsafe { (raw::RedisModule_CommandFilterArgGet, raw::RedisModule_StringPtrLen) };
    if !matches!(fast, (Some(_), Some(_))) {
        missing("functions for command filters");
    }
    // SAFETY: the context names this module; the callback lives as long as the module.
    let filter = unsafe { api!(RedisModule_RegisterCommandFilter)(guard.ctx(), Some(passing::<J>), 0) };
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
    let before = PASS.load(Ordering::Relaxed);
    PASS.store(true, Ordering::Relaxed);
    Unseen(before)
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

/// For what a judge does not do for most commands: out of their way. A panic ends here.
#[inline(never)]
pub fn seldom(look: impl FnOnce() -> Option<Front>) -> Option<Front> {
    catch("the command filter", look).flatten()
}

extern "C" fn passing<J: Judge>(filter: *mut raw::RedisModuleCommandFilterCtx) {
    // Only the first command: those that it runs itself (a script) are looked at.
    if PASS.load(Ordering::Relaxed) {
        return PASS.store(false, Ordering::Relaxed);
    }
    // SAFETY: the server calls; the judge takes no lock, but through `in_callback`.
    let guard = unsafe { lock::in_quick_callback() };
    let command = Passing { filter, guard: &guard };
    if let Some(front) = J::judge(&command) {
        put_in_front(&command, front);
    }
}

#[inline(never)]
fn put_in_front(command: &Passing<'_>, front: Front) {
    // It was held up before (CLIENT PAUSE) and is looked at again.
    if Front::of(command.pointer(0)).is_some() {
        return;
    }
    if let Some(name) = front.retained() {
        // SAFETY: the context is alive; the string is retained for the command, which lets it go.
        unsafe { api!(RedisModule_CommandFilterArgInsert)(command.filter, 0, name) };
    }
}
