//! The doors that the server calls when it loads and unloads the module.

use std::slice;

use redis_module::raw;

use super::{
    ffi::{c_string, guarded, string_bytes},
    lock, log, version,
};
use crate::module;

/// Called by the server once.
#[unsafe(no_mangle)]
pub extern "C" fn RedisModule_OnLoad(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: i32,
) -> i32 {
    let name = c_string(module::MODULE_NAME);
    let api = raw::REDISMODULE_APIVER_1 as i32;
    // SAFETY: the server's own context; this fills the function pointers, before any other thread of ours exists.
    let status = unsafe { raw::Export_RedisModule_Init(ctx, name.as_ptr(), module::MODULE_VERSION, api) };
    if status != raw::REDISMODULE_OK as i32 {
        return raw::REDISMODULE_ERR as i32;
    }
    let loaded = guarded("loading the module", || {
        lock::init(ctx);
        let guard = lock::lock();
        version::init(&guard);
        // SAFETY: the server gives `argc` strings, alive during the load.
        let args = unsafe { arguments(argv, argc) };
        module::load(&guard, &args)
    });
    match loaded {
        Some(Ok(())) => raw::REDISMODULE_OK as i32,
        Some(Err(reason)) => {
            log::warning(&reason);
            raw::REDISMODULE_ERR as i32
        }
        None => raw::REDISMODULE_ERR as i32,
    }
}

/// Refuses: running threads and the interpreter can not be taken out of the process.
#[unsafe(no_mangle)]
pub extern "C" fn RedisModule_OnUnload(_: *mut raw::RedisModuleCtx) -> i32 {
    log::warning(
        "the module can not be unloaded: the Python interpreter and its threads stay in the process until it ends; \
         restart the server without the module instead",
    );
    raw::REDISMODULE_ERR as i32
}

/// Copies of the strings of an argument vector.
///
/// # Safety
/// `argv` is null or has `argc` live strings.
pub(super) unsafe fn arguments(argv: *mut *mut raw::RedisModuleString, argc: i32) -> Vec<Vec<u8>> {
    if argv.is_null() || argc <= 0 {
        return Vec::new();
    }
    // SAFETY: the caller says so.
    let strings = unsafe { slice::from_raw_parts(argv, argc as usize) };
    // SAFETY: as above.
    strings.iter().map(|&s| unsafe { string_bytes(s) }.to_vec()).collect()
}
