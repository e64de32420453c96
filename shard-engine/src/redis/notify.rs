//! Notifications of key events: the server tells the module of each, in the middle of the command that causes it.
//!
//! Subscribed to only when somebody wants them, because each costs the server a context (a tenth of a SET); a subscription
//! can not be taken back, so a gate stays behind. The listener must be quick and runs nothing: the command is still under
//! way.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int},
    marker::PhantomData,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use redis_module::raw;

use super::{
    ffi::{api, guarded, string_bytes},
    key::{Key, Kind},
    lock::{self, ServerLock},
};

/// Classes of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classes {
    /// What a registration without filter is told: all ordinary events, misses, keys that leave with their slot. But
    /// for those of `Values`.
    Ordinary,
    /// Ordinary events that nothing but a command on that very key raises: those of strings, lists, sets and sorted sets.
    /// Fields of hashes expire by themselves, so hashes are not among them.
    Values,
    /// Events that come beside an ordinary one: `new`, `overwritten`, `type_changed`.
    Beside,
}

/// Names of the events that come beside others.
pub const BESIDE: [&[u8]; 3] = [b"new", b"overwritten", b"type_changed"];

impl Classes {
    fn mask(self) -> u32 {
        let values = raw::REDISMODULE_NOTIFY_STRING
            | raw::REDISMODULE_NOTIFY_LIST
            | raw::REDISMODULE_NOTIFY_SET
            | raw::REDISMODULE_NOTIFY_ZSET;
        let mask = match self {
            Classes::Ordinary => {
                raw::REDISMODULE_NOTIFY_ALL & !values
                    | raw::REDISMODULE_NOTIFY_KEY_MISS
                    | raw::REDISMODULE_NOTIFY_KEY_TRIMMED
                    | raw::REDISMODULE_NOTIFY_TRIMMED
            }
            Classes::Values => values,
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

    /// It was not there before.
    fn is_new(&self) -> bool {
        self.class & raw::REDISMODULE_NOTIFY_NEW as u32 != 0
    }

    /// Most likely it holds a string now.
    pub fn is_of_string(&self) -> bool {
        self.class & raw::REDISMODULE_NOTIFY_STRING as u32 != 0
    }

    /// The key is no more, at least under this name.
    pub fn is_gone(&self) -> bool {
        match self.class as i32 {
            class if class & raw::REDISMODULE_NOTIFY_GENERIC != 0 => {
                matches!(self.event, b"del" | b"rename_from" | b"move_from")
            }
            class => class & (raw::REDISMODULE_NOTIFY_EXPIRED | raw::REDISMODULE_NOTIFY_EVICTED) != 0,
        }
    }

    /// No command causes it, but the server: the key expires or is evicted, or fields of its hash expire.
    pub fn is_of_server(&self) -> bool {
        let mask = raw::REDISMODULE_NOTIFY_EXPIRED | raw::REDISMODULE_NOTIFY_EVICTED;
        self.class & mask as u32 != 0 || self.event == b"hexpired"
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
    if !is_told(classes) {
        // SAFETY: the context names this module; the callback lives as long as the module.
        let outcome = unsafe { api!(RedisModule_SubscribeToKeyspaceEvents)(guard.ctx(), mask as c_int, Some(told)) };
        if outcome != raw::REDISMODULE_OK as i32 {
            return Err("the server does not tell of events of keys".to_owned());
        }
        SUBSCRIBED.fetch_or(mask, Ordering::AcqRel);
    }
    Ok(())
}

/// A write comes at which nobody has looked: whoever wants events is to hear of all that it may raise.
#[inline]
pub fn tell_of_all(guard: &ServerLock) {
    if is_told(Classes::Ordinary) && !is_told(Classes::Values) {
        // What was subscribed to once is not refused later.
        let _ = subscribe(guard, Classes::Values);
    }
}

/// The server tells of events of these classes.
#[inline]
pub fn is_told(classes: Classes) -> bool {
    SUBSCRIBED.load(Ordering::Acquire) & classes.mask() != 0
}

/// Classes that the server knows.
fn known() -> u32 {
    // SAFETY: the pointer is filled at load; the call takes nothing.
    let known = unsafe { raw::RedisModule_GetKeyspaceNotificationFlagsAll.map(|all| all()) };
    known.map_or(u32::MAX, |flags| flags as u32)
}

/// Which keys may be wanted, by their first two bytes: one bit each. Most events of others end here, for the price of
/// one look. A name of one byte counts as one with a zero behind.
static GATE: [AtomicU64; GATE_WORDS] = [const { AtomicU64::new(0) }; GATE_WORDS];
const GATE_WORDS: usize = 65536 / 64;

fn place(key: &[u8]) -> usize {
    match key {
        [] => 0,
        [one] => usize::from(*one) << 8,
        [one, two, ..] => usize::from(*one) << 8 | usize::from(*two),
    }
}

/// Events of these keys pass the gate from now on, and no others. Under the server lock.
pub fn set_gate(_guard: &ServerLock, wanted: &[Start]) {
    let mut gate = vec![0u64; GATE_WORDS];
    for start in wanted {
        let at = place(&start.bytes);
        match (start.bytes.len(), start.is_whole) {
            (_, true) | (2.., _) => gate[at / 64] |= 1 << (at % 64),
            // All second bytes: whole words.
            (1, _) => gate[at / 64..][..256 / 64].fill(u64::MAX),
            (0, _) => {
                gate.fill(u64::MAX);
                // The others add nothing.
                break;
            }
        }
    }
    GATE.iter()
        .zip(gate)
        .for_each(|(word, bits)| word.store(bits, Ordering::Release));
}

/// The start of names, or a whole one.
pub struct Start {
    /// The bytes.
    pub bytes: Bytes,
    /// It is the whole name.
    pub is_whole: bool,
}

impl Start {
    /// From a registration's pattern: a prefix with `*` at its end, or a name.
    pub fn of_pattern(pattern: &Bytes) -> Start {
        match pattern.strip_suffix(b"*") {
            Some(start) => Start {
                bytes: pattern.slice_ref(start),
                is_whole: false,
            },
            None => Start {
                bytes: pattern.clone(),
                is_whole: true,
            },
        }
    }
}

/// Runs `work`, whose own looks at keys are no misses, and whose own keys are none. Servers before 7.2 tell of all looks.
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
    // SAFETY: the server gives a string, alive while it tells.
    let bytes = unsafe { string_bytes(key) };
    let at = place(bytes);
    if GATE[at / 64].load(Ordering::Relaxed) & 1 << (at % 64) != 0
        && let Some(listener) = LISTENER.get()
    {
        guarded("an event of a key", || {
            let class = class as u32;
            let told = Told {
                // SAFETY: the server gives a C string, alive while it tells.
                event: unsafe { CStr::from_ptr(event) }.to_bytes(),
                key: bytes,
                class,
                name: key,
                ctx,
                _told: PhantomData,
            };
            if !(SILENT.get() && (told.is_miss() || told.is_new())) {
                listener(&lock::lock(), &told);
            }
        });
    }
    raw::REDISMODULE_OK as c_int
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_tell_names_apart() {
        assert_eq!(place(b""), 0);
        assert_eq!(place(b"k"), place(b"k\0"));
        assert_eq!(place(b"ke"), place(b"key"));
        assert_ne!(place(b"k"), place(b"ke"));
        assert_eq!(place(b"\xff\xff"), 65535);
    }

    #[test]
    fn patterns_are_prefixes_or_names() {
        let start = |pattern: &'static [u8]| Start::of_pattern(&Bytes::from_static(pattern));
        assert!(start(b"k").is_whole && !start(b"k*").is_whole);
        assert_eq!(
            (&*start(b"k*").bytes, &*start(b"*").bytes, &*start(b"").bytes),
            (&b"k"[..], &b""[..], &b""[..])
        );
    }
}
