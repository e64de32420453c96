//! A type of values of our own for keys: how such values are saved, loaded, copied and freed.
//!
//! Saving may happen in a forked child and freeing on a thread of the server: what the values do there must wait for
//! nothing and needs no lock.

use std::{
    any::Any,
    ffi::{CStr, c_char, c_void},
    mem::zeroed,
    ptr::null_mut,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicPtr, Ordering},
    },
};

use redis_module::raw;

use super::{
    ffi::{OwnedString, api, bytes_at, c_string, catch, guarded, string_bytes},
    key::quiet,
    lock::{self, ServerLock},
    log, notify,
    register::Call,
};

/// What a key of the type holds.
pub trait Held: Send + Sync {
    /// The bytes for dumps and the AOF. May be called in a forked child.
    fn saved(&self) -> Vec<u8>;
    /// A copy for another key; `None` refuses.
    fn copied(&self, to: &[u8]) -> Option<Arc<dyn Held>>;
    /// Its key in database 0 has another name now.
    fn renamed(&self, key: &[u8]);
    /// For those who know what it is.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// The type.
pub struct DataType {
    /// Nine characters, unique among all modules.
    pub name: &'static str,
    /// Version of the bytes, 0 to 1023.
    pub encoding: i32,
    /// Command that makes a value when the AOF is loaded, and the word between key and bytes.
    pub command: (&'static str, &'static str),
    /// Makes a value for a key from its bytes; an error refuses the key, and ends the load of a dump.
    pub load: Load,
}

/// Takes a key and what a dump holds for it.
pub type Load = fn(&ServerLock, &[u8], &[u8]) -> Result<Arc<dyn Held>, String>;

/// What the server's pointers to values point to.
struct Holder(Arc<dyn Held>);

static TYPE: OnceLock<DataType> = OnceLock::new();
static HANDLE: AtomicPtr<raw::RedisModuleType> = AtomicPtr::new(null_mut());
/// New names of keys are listened to.
static LISTENS: AtomicBool = AtomicBool::new(false);

/// Registers the type. At load, once.
pub fn register(guard: &ServerLock, data_type: DataType) -> Result<(), String> {
    let (name, encoding) = (c_string(data_type.name), data_type.encoding);
    if TYPE.set(data_type).is_err() {
        return Err("the type of values is registered already".into());
    }
    // SAFETY: all fields are numbers or optional functions: zero is none.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { zeroed() };
    methods.version = u64::from(raw::REDISMODULE_TYPE_METHOD_VERSION);
    methods.rdb_load = Some(load);
    methods.rdb_save = Some(save);
    methods.aof_rewrite = Some(rewrite);
    methods.mem_usage = Some(memory);
    methods.digest = Some(digest);
    methods.free = Some(free);
    methods.copy = Some(copy);
    // SAFETY: the context is that of the load, the name is a C string, the server copies the methods.
    let kind = unsafe { api!(RedisModule_CreateDataType)(guard.ctx(), name.as_ptr(), encoding, &mut methods) };
    if kind.is_null() {
        return Err(format!(
            "the server refused the data type {}: is the name taken, or is the module loaded too late?",
            name.to_string_lossy()
        ));
    }
    HANDLE.store(kind, Ordering::Release);
    Ok(())
}

/// What a key of database 0 holds, if that is a value of the type (an expired key holds none).
pub fn get(guard: &ServerLock, key: &[u8]) -> Option<Arc<dyn Held>> {
    Opened::open(guard.ctx(), key, quiet()).held()
}

/// Puts a value under a key of database 0; false if there is something already.
pub fn put(guard: &ServerLock, key: &[u8], held: Arc<dyn Held>) -> bool {
    let opened = Opened::open(guard.ctx(), key, raw::REDISMODULE_READ | raw::REDISMODULE_WRITE);
    opened.is_empty() && opened.set(guard, held)
}

/// Something is there, of whatever type, in database 0.
pub fn exists(guard: &ServerLock, key: &[u8]) -> bool {
    !Opened::open(guard.ctx(), key, quiet()).is_empty()
}

/// Puts a value under a key of the command's database, in place of what is there.
pub fn put_by(call: &Call, key: &[u8], held: Arc<dyn Held>) -> bool {
    let opened = Opened::open(call.ctx(), key, raw::REDISMODULE_READ | raw::REDISMODULE_WRITE);
    opened.set(call.guard(), held)
}

/// What a key of the command's database holds.
pub fn get_by(call: &Call, key: &[u8]) -> Option<Arc<dyn Held>> {
    Opened::open(call.ctx(), key, quiet()).held()
}

/// An open key; used and closed under the lock.
struct Opened {
    key: *mut raw::RedisModuleKey,
    ctx: *mut raw::RedisModuleCtx,
    name: OwnedString,
}

impl Opened {
    fn open(ctx: *mut raw::RedisModuleCtx, name: &[u8], mode: u32) -> Opened {
        let name = OwnedString::new(name);
        // SAFETY: all callers hold the lock and give a context that is alive; the name outlives the open key.
        let key = notify::silently(|| unsafe { api!(RedisModule_OpenKey)(ctx, name.as_ptr(), mode as i32) });
        Opened { key, ctx, name }
    }

    /// Null is an empty key for the server.
    fn is_empty(&self) -> bool {
        // SAFETY: the key is open or null.
        unsafe { api!(RedisModule_KeyType)(self.key) == raw::REDISMODULE_KEYTYPE_EMPTY as i32 }
    }

    fn held(&self) -> Option<Arc<dyn Held>> {
        if self.key.is_null() {
            return None;
        }
        // SAFETY: the key is open; a value of our type is a `Holder` that lives as long as the key is open.
        unsafe {
            if api!(RedisModule_ModuleTypeGetType)(self.key) != HANDLE.load(Ordering::Acquire) {
                return None;
            }
            let holder: *const Holder = api!(RedisModule_ModuleTypeGetValue)(self.key).cast();
            holder.as_ref().map(|holder| holder.0.clone())
        }
    }

    fn set(&self, guard: &ServerLock, held: Arc<dyn Held>) -> bool {
        listen(guard);
        let value = Box::into_raw(Box::new(Holder(held)));
        // SAFETY: the key is open for writing; the server owns the value from here on, unless it refuses.
        let outcome =
            unsafe { api!(RedisModule_ModuleTypeSetValue)(self.key, HANDLE.load(Ordering::Acquire), value.cast()) };
        let taken = outcome == raw::REDISMODULE_OK as i32;
        if !taken {
            // SAFETY: the server refused it, so it is still ours.
            drop(unsafe { Box::from_raw(value) });
        } else {
            // SAFETY: context and name are alive as long as the key is open.
            unsafe { api!(RedisModule_SignalModifiedKey)(self.ctx, self.name.as_ptr()) };
        }
        taken
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: the key is ours; null does nothing.
        unsafe { api!(RedisModule_CloseKey)(self.key) };
    }
}

/// From the first value on the module hears of keys that get other names.
fn listen(guard: &ServerLock) {
    if LISTENS.swap(true, Ordering::AcqRel) {
        return;
    }
    // SAFETY: the context names this module; the callback lives as long as the module.
    let outcome = unsafe {
        api!(RedisModule_SubscribeToKeyspaceEvents)(guard.ctx(), raw::REDISMODULE_NOTIFY_GENERIC, Some(happened))
    };
    if outcome != raw::REDISMODULE_OK as i32 {
        LISTENS.store(false, Ordering::Release);
        log::warning("the server does not tell of keys that are renamed");
    }
}

extern "C" fn happened(
    ctx: *mut raw::RedisModuleCtx,
    _: i32,
    event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> i32 {
    // SAFETY: the server gives a C string.
    let moved = !event.is_null() && matches!(unsafe { CStr::from_ptr(event) }.to_bytes(), b"rename_to" | b"move_to");
    if moved {
        guarded("a key with a new name", || {
            // SAFETY: the string is alive during the callback.
            let key = unsafe { string_bytes(key) }.to_vec();
            let _guard = lock::lock();
            // In whatever database that is: it may become the one where values count.
            if let Some(held) = Opened::open(ctx, &key, quiet()).held() {
                held.renamed(&key);
            }
        });
    }
    raw::REDISMODULE_OK as i32
}

/// The value behind a pointer of the server.
///
/// # Safety
/// `value` came from this module and has not been freed.
unsafe fn held<'a>(value: *const c_void) -> &'a dyn Held {
    // SAFETY: the caller says so; every value is a `Holder`.
    &*unsafe { &*value.cast::<Holder>() }.0
}

extern "C" fn load(io: *mut raw::RedisModuleIO, encoding: i32) -> *mut c_void {
    let loaded = guarded("loading a key", || {
        let guard = lock::lock();
        let data_type = TYPE.get().ok_or("the module is not ready")?;
        if encoding != data_type.encoding {
            return Err(format!(
                "its format is {encoding}, this version of the module knows {} only",
                data_type.encoding
            ));
        }
        listen(&guard);
        let mut len = 0;
        // SAFETY: the server's own dump; the buffer is ours and freed here, once; the name is alive meanwhile.
        unsafe {
            let start = api!(RedisModule_LoadStringBuffer)(io, &mut len);
            if start.is_null() || api!(RedisModule_IsIOError)(io) != 0 {
                return Err("it ends too early, or the link to the master is lost".to_owned());
            }
            let name = api!(RedisModule_GetKeyNameFromIO)(io);
            let key = if name.is_null() { &[] } else { string_bytes(name) };
            let held = (data_type.load)(&guard, key, bytes_at(start, len));
            api!(RedisModule_Free)(start.cast());
            held
        }
    });
    match loaded {
        Some(Ok(held)) => Box::into_raw(Box::new(Holder(held))).cast(),
        Some(Err(reason)) => {
            log::warning(&format!("a key that holds a timer can not be loaded: {reason}"));
            null_mut()
        }
        None => null_mut(),
    }
}

extern "C" fn save(io: *mut raw::RedisModuleIO, value: *mut c_void) {
    catch("saving a key", || {
        // SAFETY: a value of ours, alive while it is saved.
        let bytes = unsafe { held(value) }.saved();
        // SAFETY: the server's own dump; pointer and length are those of a slice.
        unsafe { api!(RedisModule_SaveStringBuffer)(io, bytes.as_ptr().cast(), bytes.len()) };
    });
}

extern "C" fn rewrite(io: *mut raw::RedisModuleIO, key: *mut raw::RedisModuleString, value: *mut c_void) {
    catch("rewriting a key", || {
        let Some(data_type) = TYPE.get() else { return };
        // SAFETY: a value of ours, alive while it is written.
        let bytes = unsafe { held(value) }.saved();
        let (command, word) = (c_string(data_type.command.0), c_string(data_type.command.1));
        // SAFETY: the server's own file; "scb" takes a string of the server, a C string, and a buffer with its length.
        unsafe {
            api!(RedisModule_EmitAOF)(
                io,
                command.as_ptr(),
                c"scb".as_ptr(),
                key,
                word.as_ptr(),
                bytes.as_ptr().cast::<c_char>(),
                bytes.len(),
            )
        };
    });
}

extern "C" fn memory(value: *const c_void) -> usize {
    let size = catch("the size of a key", || {
        // SAFETY: a value of ours.
        let held = unsafe { held(value) };
        held.saved().len() + size_of::<Holder>()
    });
    size.unwrap_or(0)
}

extern "C" fn digest(digest: *mut raw::RedisModuleDigest, value: *mut c_void) {
    catch("the digest of a key", || {
        // SAFETY: a value of ours.
        let bytes = unsafe { held(value) }.saved();
        // SAFETY: pointer and length are those of a slice.
        unsafe {
            api!(RedisModule_DigestAddStringBuffer)(digest, bytes.as_ptr().cast(), bytes.len());
            api!(RedisModule_DigestEndSequence)(digest);
        }
    });
}

/// On whatever thread frees values.
extern "C" fn free(value: *mut c_void) {
    catch("freeing a key", || {
        // SAFETY: the server gives each value back once.
        let holder = unsafe { Box::from_raw(value.cast::<Holder>()) };
        drop(holder);
    });
}

extern "C" fn copy(
    _: *mut raw::RedisModuleString,
    to: *mut raw::RedisModuleString,
    value: *const c_void,
) -> *mut c_void {
    let copied = guarded("copying a key", || {
        // SAFETY: a value of ours, and a string that is alive during the callback.
        let (held, to) = unsafe { (held(value), string_bytes(to)) };
        held.copied(to)
    });
    copied
        .flatten()
        .map_or(null_mut(), |held| Box::into_raw(Box::new(Holder(held))).cast())
}
