//! Servers that keep the keys of each slot in a table of their own: in a cluster, Redis from 7.4 and Valkey from 8 on.
//!
//! While a client's command with a key runs, such a server looks for *every* key in the table of that command's slot (it is
//! known there as valkey issue 4398). Code within the command that uses a key of another slot would read nothing, and
//! write where nobody finds it. So what can wait runs when the command itself is over, still before its reply goes out and
//! before any other command; and as long as it is not, keys of other slots are refused.

use std::{
    ffi::c_void,
    ptr::null_mut,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

use oxigears_coordinator::topology::{Slot, key_slot};
use redis_module::raw;

use super::{
    call::{Flags, call},
    cluster, context,
    ffi::{OwnedString, api, guarded},
    later,
    lock::{self, ServerLock},
    notify,
    version::at_least,
};

/// Outside of such commands.
const NONE: i32 = -1;
/// In a transaction or a script, which may have a slot: the server does not tell a command without keys.
const UNKNOWN: i32 = -2;

/// The slot of the client's command that runs now. Used under the server lock only, also by one who borrows it.
static SLOT: AtomicI32 = AtomicI32::new(NONE);
/// It is of a transaction or a script.
static IN_ONE_GO: AtomicBool = AtomicBool::new(false);
/// Some of what was left for later is of a transaction or a script.
static MUST_END: AtomicBool = AtomicBool::new(false);
/// The client of the command at hand is parked: for the server its command is not over when it has returned.
static PARKED: AtomicBool = AtomicBool::new(false);
static WORK: OnceLock<Work> = OnceLock::new();

/// What is left for later; whether it must end before anything else happens.
type Work = fn(&ServerLock, bool);

/// A client's command is under way; see `enter`.
pub struct Inside(i32);

/// A client's command runs, with this key; until the result is dropped. To be called by the main thread, for a command
/// that no module calls. `flags`: those of the command's context.
pub fn enter(flags: context::Flags, key: Option<&[u8]>) -> Inside {
    let in_one_go = flags.multi || flags.lua;
    let slot = match key {
        // Compatible servers tell the Redis version that they follow, 7.2.
        _ if !(flags.cluster && at_least(7, 2)) => NONE,
        Some(key) => i32::from(key_slot(key)),
        None if in_one_go => UNKNOWN,
        None => NONE,
    };
    IN_ONE_GO.store(in_one_go, Ordering::Relaxed);
    PARKED.store(false, Ordering::Relaxed);
    let before = SLOT.load(Ordering::Relaxed);
    SLOT.store(slot, Ordering::Relaxed);
    Inside(before)
}

impl Drop for Inside {
    fn drop(&mut self) {
        SLOT.store(self.0, Ordering::Relaxed);
    }
}

/// The client of the command at hand is parked.
pub(super) fn client_is_parked() {
    PARKED.store(true, Ordering::Relaxed);
}

/// The server would look for keys in the wrong place now, unless they are in the slot of the command at hand.
pub(super) fn is_inside(_guard: &ServerLock) -> bool {
    SLOT.load(Ordering::Relaxed) != NONE
}

/// The server would look for this key in the wrong place now.
pub fn is_out_of_reach(guard: &ServerLock, key: &[u8]) -> bool {
    match SLOT.load(Ordering::Relaxed) {
        NONE => false,
        UNKNOWN => is_elsewhere(guard, key_slot(key)),
        slot => slot != i32::from(key_slot(key)),
    }
}

/// Finds that out by a key that is there for a moment: does it go where the server counts the keys of its slot?
fn is_elsewhere(guard: &ServerLock, slot: Slot) -> bool {
    let number = slot.to_string();
    let count = || call(guard, &["CLUSTER", "COUNTKEYSINSLOT", &number], Flags::default());
    let count = || count().ok()?.int();
    let name = OwnedString::new(format!("oxigears probe {{{}}}", cluster::tag_of(slot)).as_bytes());
    let mode = raw::REDISMODULE_READ | raw::REDISMODULE_WRITE;
    let before = count();
    // SAFETY: context and name are alive under the lock; the key is empty, so nothing of anybody is touched, and closed once.
    let after = notify::silently(|| unsafe {
        let key = api!(RedisModule_OpenKey)(guard.ctx(), name.as_ptr(), mode as i32).cast();
        let is_empty = api!(RedisModule_KeyType)(key) == raw::REDISMODULE_KEYTYPE_EMPTY as i32;
        let after = is_empty.then(|| {
            api!(RedisModule_StringSet)(key, name.as_ptr());
            let after = count();
            api!(RedisModule_DeleteKey)(key);
            after
        });
        api!(RedisModule_CloseKey)(key);
        after.flatten()
    });
    before.is_some() && before == after
}

/// Names the work that `after_command` leaves for later. At load.
pub fn when_over(work: Work) {
    let _ = WORK.set(work);
}

/// Does the work when the client's command at hand, its transaction or its script is over, if that matters here. False if
/// nothing is left for later. `must_end`: the work must end before anything else happens; so must that of a transaction.
pub fn after_command(guard: &ServerLock, must_end: bool) -> bool {
    if !is_inside(guard) {
        return false;
    }
    // SAFETY: the guard's context is alive, the callback lives as long as the module and gets no data.
    let outcome =
        unsafe { raw::RedisModule_AddPostNotificationJob.map(|add| add(guard.ctx(), Some(over), null_mut(), None)) };
    let is_left = outcome == Some(raw::REDISMODULE_OK as i32);
    if is_left && (must_end || IN_ONE_GO.load(Ordering::Relaxed)) {
        MUST_END.store(true, Ordering::Relaxed);
    }
    is_left
}

extern "C" fn over(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    guarded("what a command has left for later", || {
        let guard = lock::lock();
        if PARKED.swap(false, Ordering::Relaxed) {
            return later::ask(&guard);
        }
        if let Some(work) = WORK.get() {
            work(&guard, MUST_END.swap(false, Ordering::Relaxed));
        }
    });
}
