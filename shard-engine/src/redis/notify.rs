//! Notifications of key events: the server tells the module of each, in the middle of the command that causes it.
//!
//! Subscribed to only when somebody wants them, because each costs the server a context; a subscription can not be
//! taken back, so a gate stays behind. The listener must be quick and runs nothing: the command is still under way.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int},
    marker::PhantomData,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use redis_module::raw;

use super::{
    ffi::{api, guarded, string_bytes},
    key::{Key, Kind},
    lock::{self, ServerLock},
};

/// Classes of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classes {
    /// What a registration without filter is told: all ordinary events, misses, keys that leave with their slot.
    Ordinary,
    /// Events that come beside an ordinary one: `new`, `overwritten`, `type_changed`.
    Beside,
}

/// Names of the events that come beside others.
pub const BESIDE: [&[u8]; 3] = [b"new", b"overwritten", b"type_changed"];

impl Classes {
    fn mask(self) -> u32 {
        let mask = match self {
            Classes::Ordinary => {
                raw::REDISMODULE_NOTIFY_ALL
                    | raw::REDISMODULE_NOTIFY_KEY_MISS
                    | raw::REDISMODULE_NOTIFY_KEY_TRIMMED
                    | raw::REDISMODULE_NOTIFY_TRIMMED
            }
            Classes::Beside => {
                raw::REDISMODULE_NOTIFY_NEW | raw::REDISMODULE_NOTIFY_OVERWRITTEN | raw::REDISMODULE_NOTIFY_TYPE_CHANGED
            }
        };
        mask as u32
    }
}

/// One event, as long as the server tells of it.
pub struct Told<'a> {
    /// Its name, as the server writes it.
    pub event: &'a [u8],
    /// The key.
    pub key: &'a [u8],
    class: u32,
    name: *mut raw::RedisModuleString,
    ctx: *mut raw::RedisModuleCtx,
    _told: PhantomData<&'a ()>,
}

impl Told<'_> {
    /// Number of the database.
    pub fn db(&self) -> i32 {
        // SAFETY: the context is alive while the server tells.
        unsafe { api!(RedisModule_GetSelectedDb)(self.ctx) }
    }

    /// It comes beside an ordinary event.
    pub fn is_beside(&self) -> bool {
        self.class & Classes::Beside.mask() != 0
    }

    /// Somebody looked for a key that is not there.
    pub fn is_miss(&self) -> bool {
        self.class & raw::REDISMODULE_NOTIFY_KEY_MISS as u32 != 0
    }

    /// What the key holds now, in the database of the event. Leaves no trace.
    pub fn kind(&self, _guard: &ServerLock) -> Kind {
        if self.is_miss() {
            return Kind::Empty;
        }
        // SAFETY: context and name are alive while the server tells, under the lock.
        let key = unsafe { Key::open_in(self.ctx, self.name) };
        key.map_or(Kind::Empty, |key| key.kind())
    }
}

type Listener = fn(&ServerLock, &Told<'_>);

static LISTENER: OnceLock<Listener> = OnceLock::new();
static SUBSCRIBED: AtomicU32 = AtomicU32::new(0);
static OPEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Names the listener. At load.
pub fn listen(listener: Listener) {
    let _ = LISTENER.set(listener);
}

/// Events of these classes are wanted from now on.
pub fn subscribe(guard: &ServerLock, classes: Classes) -> Result<(), String> {
    let mask = classes.mask() & known();
    if SUBSCRIBED.load(Ordering::Acquire) & mask != mask {
        // SAFETY: the context names this module; the callback lives as long as the module.
        let outcome = unsafe { api!(RedisModule_SubscribeToKeyspaceEvents)(guard.ctx(), mask as c_int, Some(told)) };
        if outcome != raw::REDISMODULE_OK as i32 {
            return Err("the server does not tell of events of keys".to_owned());
        }
        SUBSCRIBED.fetch_or(mask, Ordering::AcqRel);
    }
    Ok(())
}

/// Classes that the server knows.
fn known() -> u32 {
    // SAFETY: the pointer is filled at load; the call takes nothing.
    let known = unsafe { raw::RedisModule_GetKeyspaceNotificationFlagsAll.map(|all| all()) };
    known.map_or(u32::MAX, |flags| flags as u32)
}

/// Lets events through, or not: where nobody wants any they end here.
pub fn set_open(open: bool) {
    OPEN.store(open, Ordering::Release);
}

/// Runs `work`, whose own looks at keys are no misses. Servers before 7.2 tell of them all.
pub(super) fn silently<R>(work: impl FnOnce() -> R) -> R {
    /// Also when a panic passes.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            SILENT.set(self.0);
        }
    }
    let _before = Before(SILENT.replace(true));
    work()
}

extern "C" fn told(
    ctx: *mut raw::RedisModuleCtx,
    class: c_int,
    event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> c_int {
    if OPEN.load(Ordering::Acquire)
        && let Some(listener) = LISTENER.get()
    {
        guarded("an event of a key", || {
            let class = class as u32;
            // SAFETY: the server gives a C string and a string, alive while it tells.
            let (event, bytes) = unsafe { (CStr::from_ptr(event).to_bytes(), string_bytes(key)) };
            let told = Told {
                event,
                key: bytes,
                class,
                name: key,
                ctx,
                _told: PhantomData,
            };
            if !(SILENT.get() && told.is_miss()) {
                listener(&lock::lock(), &told);
            }
        });
    }
    raw::REDISMODULE_OK as c_int
}
