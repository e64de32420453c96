//! What the main thread does at the two ends of a turn of its event loop. Listened to only once somebody needs it.

use std::{
    cell::Cell,
    ffi::c_void,
    ptr::null_mut,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis_module::raw;

use super::{
    ffi::{api, guarded},
    filter, later,
    lock::{self, ServerLock},
    log, replicate, sharing,
};

/// Not tried yet.
const NEW: u8 = 0;
const LISTENS: u8 = 1;
/// The server does not tell (before 7.0).
const REFUSED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(NEW);

type Work = fn(&ServerLock);

/// A turn has been asked for.
static WOKEN: AtomicBool = AtomicBool::new(false);

static AT_END: OnceLock<Work> = OnceLock::new();

/// What the main thread waits for at the end of a turn.
struct Awaited {
    is_done: fn() -> bool,
    most: Duration,
    /// For the log, if that takes longer.
    late: &'static str,
}

static AWAITED: Mutex<Option<Awaited>> = Mutex::new(None);

/// Of the thread whose event loop it is.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    /// It has none, or the loop sleeps.
    None,
    Began,
    /// Its end is waited for.
    Wanted,
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::None) };
}

/// Names the work that may be wanted at the end of a turn. At load.
pub fn at_end(work: Work) {
    let _ = AT_END.set(work);
}

/// The work is done when the turn of the event loop ends in which this thread is. False if it is in none: another thread,
/// or nobody has listened yet.
#[inline]
pub fn want_end() -> bool {
    let is_in_one = is_in_turn();
    if is_in_one {
        TURN.set(Turn::Wanted);
    }
    is_in_one
}

/// As long as this stays, the main thread is in one turn of its event loop.
pub fn turn_number(guard: &ServerLock) -> u64 {
    listen(guard);
    sharing::turns()
}

/// This thread is in a turn of the event loop, whose end is still to come.
pub fn is_in_turn() -> bool {
    TURN.get() != Turn::None
}

/// Nobody has listened yet.
pub(super) fn is_new() -> bool {
    STATE.load(Ordering::Acquire) == NEW
}

/// The event loop tells of its turns from now on; false if the server can not.
pub fn listen(guard: &ServerLock) -> bool {
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

/// At the end of this turn, before answers go out and new commands come, the main thread lends the lock until `is_done`,
/// but not for longer than `most`, nor while writes are paused; `late` is logged then. Does nothing if the server does not tell
/// of its turns.
pub fn await_at_end(guard: &ServerLock, is_done: fn() -> bool, most: Duration, late: &'static str) {
    if listen(guard) {
        *AWAITED.lock() = Some(Awaited { is_done, most, late });
    }
}

fn lend_until_done(awaited: &Awaited) {
    let start = Instant::now();
    while !(awaited.is_done)() && start.elapsed() < awaited.most && !replicate::is_paused(&lock::lock()) {
        sharing::lend(true);
    }
    if !(awaited.is_done)() {
        log::warning(awaited.late);
    }
}

/// Who borrows may write, so nobody does while writes are paused.
fn lend(late: bool) {
    if !replicate::is_paused(&lock::lock()) {
        sharing::lend(late);
    }
}

/// The main thread makes a turn soon, though nothing has come for it. From any thread, without the lock.
pub(super) fn wake() {
    // SAFETY: the pointer is filled at load and not changed after.
    if let Some(add) = unsafe { raw::RedisModule_EventLoopAddOneShot }
        && !WOKEN.swap(true, Ordering::AcqRel)
    {
        // SAFETY: the server lets any thread call it; the callback lives as long as the module.
        let outcome = unsafe { add(Some(awake), null_mut()) };
        if outcome != raw::REDISMODULE_OK as i32 {
            WOKEN.store(false, Ordering::Release);
        }
    }
}

extern "C" fn awake(_: *mut c_void) {
    WOKEN.store(false, Ordering::Release);
}

extern "C" fn turn(_: *mut raw::RedisModuleCtx, _: raw::RedisModuleEvent, sub: u64, _: *mut c_void) {
    if sub == raw::REDISMODULE_SUBEVENT_EVENTLOOP_AFTER_SLEEP {
        TURN.set(Turn::Began);
        if sharing::turn_begins() {
            guarded("sharing the server lock", || {
                lend(false);
            });
        }
    } else if sub == raw::REDISMODULE_SUBEVENT_EVENTLOOP_BEFORE_SLEEP {
        filter::others_come();
        if sharing::is_wanted_late() {
            guarded("sharing the server lock", || lend(true));
        }
        let awaited = AWAITED.lock().take();
        if let Some(awaited) = awaited {
            guarded("lending the server lock", || lend_until_done(&awaited));
        }
        if later::is_asked() {
            guarded("work before the event loop sleeps", || later::work(&lock::lock()));
        }
        if TURN.replace(Turn::None) == Turn::Wanted
            && let Some(work) = AT_END.get()
        {
            guarded("work at the end of a turn", || work(&lock::lock()));
        }
        sharing::turn_ends();
    }
}
