//! Data of the module in dumps, beside the keys.
//!
//! Saving may happen in a forked child: whoever gives the bytes must wait for nothing and take no lock.

use std::{
    ffi::{c_char, c_void},
    mem::zeroed,
    ptr::null_mut,
    sync::OnceLock,
};

use redis_module::raw;

use super::{
    ffi::{api, bytes_at, c_string, guarded},
    lock::{self, ServerLock},
    log,
};

/// The data: how it is called and who makes and takes it.
pub struct AuxData {
    /// Nine characters, unique among all modules.
    pub name: &'static str,
    /// Version of the bytes, 0 to 1023.
    pub encoding: i32,
    /// Gives the bytes; `None`: there is nothing worth keeping. May run in a forked child.
    pub save: fn() -> Option<Vec<u8>>,
    /// Takes encoding and bytes, none if there was nothing; an error ends the load.
    pub load: Load,
}

/// Takes what a dump holds.
pub type Load = fn(&ServerLock, i32, Option<&[u8]>) -> Result<(), String>;

static DATA: OnceLock<AuxData> = OnceLock::new();

/// Registers the data. At load, once.
pub fn register(guard: &ServerLock, data: AuxData) -> Result<(), String> {
    let (name, encoding) = (c_string(data.name), data.encoding);
    if DATA.set(data).is_err() {
        return Err("the data for dumps is registered already".into());
    }
    // SAFETY: all fields are numbers or optional functions: zero is none.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { zeroed() };
    methods.version = u64::from(raw::REDISMODULE_TYPE_METHOD_VERSION);
    // There are no keys of this type, but a hostile RESTORE may claim so.
    methods.rdb_load = Some(load_key);
    methods.free = Some(free);
    methods.aux_load = Some(load);
    methods.aux_save = Some(save_always);
    // Servers before 7.2 do not look here, and write a head even if we write nothing. Newer ones then write nothing
    // at all, and the dump can be loaded without the module.
    methods.aux_save2 = Some(save_if_any);
    // Before the keys: bad data is noticed before the keys have been read.
    methods.aux_save_triggers = raw::REDISMODULE_AUX_BEFORE_RDB as i32;
    // SAFETY: the context is that of the load, the name is a C string, the server copies the methods.
    let kind = unsafe { api!(RedisModule_CreateDataType)(guard.ctx(), name.as_ptr(), encoding, &mut methods) };
    if kind.is_null() {
        return Err(format!(
            "the server refused the data type {}: is the name taken, or is the module loaded too late?",
            name.to_string_lossy()
        ));
    }
    let options = raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS
        | raw::REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD
        | raw::REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED;
    // SAFETY: the context names this module. A broken link while loading is an error that `load` reports, and reads
    // go on during a load beside the dataset: without these options no module's server could do either. Keys that are
    // opened for writing are told to be modified where they are.
    unsafe { api!(RedisModule_SetModuleOptions)(guard.ctx(), options as i32) };
    Ok(())
}

/// Null refuses the key.
extern "C" fn load_key(_: *mut raw::RedisModuleIO, _: i32) -> *mut c_void {
    null_mut()
}

/// Nothing was ever made.
extern "C" fn free(_: *mut c_void) {}

extern "C" fn save_always(io: *mut raw::RedisModuleIO, _: i32) {
    // An empty string stands for nothing: the reader must find what it reads.
    save(io, Some(Vec::new()));
}

extern "C" fn save_if_any(io: *mut raw::RedisModuleIO, _: i32) {
    save(io, None);
}

fn save(io: *mut raw::RedisModuleIO, otherwise: Option<Vec<u8>>) {
    guarded("saving", || {
        let Some(data) = DATA.get() else {
            return;
        };
        if let Some(bytes) = (data.save)().or(otherwise) {
            // SAFETY: the server's own dump; pointer and length are those of a slice.
            unsafe { api!(RedisModule_SaveStringBuffer)(io, bytes.as_ptr().cast(), bytes.len()) };
        }
    });
}

extern "C" fn load(io: *mut raw::RedisModuleIO, encoding: i32, _: i32) -> i32 {
    let outcome = guarded("loading", || {
        let guard = lock::lock();
        let data = DATA.get().ok_or("the module is not ready")?;
        if encoding > data.encoding {
            return Err(format!(
                "it was written by a newer version of the module (format {encoding}, this one knows {}); load it with \
                 that version",
                data.encoding
            ));
        }
        // SAFETY: the server's own dump.
        let bytes = unsafe { Loaded::read(io) }.ok_or("it ends too early, or the link to the master is lost")?;
        let bytes = bytes.bytes();
        (data.load)(&guard, encoding, (!bytes.is_empty()).then_some(bytes))
    });
    match outcome {
        Some(Ok(())) => raw::REDISMODULE_OK as i32,
        Some(Err(reason)) => {
            log::warning(&format!("the dump's data of this module can not be loaded: {reason}"));
            raw::REDISMODULE_ERR as i32
        }
        None => raw::REDISMODULE_ERR as i32,
    }
}

/// A string out of a dump, in the server's memory.
struct Loaded {
    start: *mut c_char,
    len: usize,
}

impl Loaded {
    /// # Safety
    /// `io` is the dump that is being loaded.
    unsafe fn read(io: *mut raw::RedisModuleIO) -> Option<Loaded> {
        let mut len = 0;
        // SAFETY: the caller says so.
        let start = unsafe { api!(RedisModule_LoadStringBuffer)(io, &mut len) };
        let loaded = Loaded { start, len };
        // SAFETY: as above.
        let broken = unsafe { api!(RedisModule_IsIOError)(io) } != 0;
        (!broken && !start.is_null()).then_some(loaded)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the server gave pointer and length of one buffer, which is ours.
        unsafe { bytes_at(self.start, self.len) }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: the buffer is ours and nothing refers to it any more.
            unsafe { api!(RedisModule_Free)(self.start.cast()) };
        }
    }
}
