//! The flags of a context: where a command runs and what the server is.

use std::mem::MaybeUninit;

use redis_module::raw;

use super::{
    ffi::{api, c_string},
    lock::ServerLock,
    version::is_valkey,
};

/// Flags of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// Inside MULTI/EXEC.
    pub multi: bool,
    /// Inside a script.
    pub lua: bool,
    /// Blocking is refused: by the server, or because a function runs the command.
    pub deny_blocking: bool,
    /// The dataset is being loaded.
    pub loading: bool,
    /// The server is a replica.
    pub replica: bool,
    /// Ordinary clients may not write: a replica that is read-only.
    pub read_only: bool,
    /// The server is in cluster mode.
    pub cluster: bool,
    /// The command came over the replication link or from the AOF.
    pub replicated: bool,
    /// At `maxmemory` the server makes room by evicting keys.
    pub evicts: bool,
    /// More memory is used than `maxmemory` allows.
    pub out_of_memory: bool,
    /// The client speaks RESP3.
    pub resp3: bool,
}

impl Flags {
    /// Flags of `ctx`.
    ///
    /// # Safety
    /// `ctx` is alive and the server lock is held.
    pub(super) unsafe fn of(ctx: *mut raw::RedisModuleCtx) -> Flags {
        // SAFETY: the caller says so.
        let flags = unsafe { api!(RedisModule_GetContextFlags)(ctx) } as u32;
        let has = |flag: u32| flags & flag != 0;
        let resp3 = has(raw::REDISMODULE_CTX_FLAGS_RESP3);
        // SAFETY: as for this function.
        let is_refused = || unsafe { is_valkey() && is_subscriber(ctx) };
        Flags {
            multi: has(raw::REDISMODULE_CTX_FLAGS_MULTI),
            lua: has(raw::REDISMODULE_CTX_FLAGS_LUA),
            // Valkey lets nobody park a client that has subscribed to something; others may send commands only in RESP3.
            deny_blocking: has(raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING) || (resp3 && is_refused()),
            loading: has(raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING),
            replica: has(raw::REDISMODULE_CTX_FLAGS_SLAVE),
            read_only: has(raw::REDISMODULE_CTX_FLAGS_READONLY),
            cluster: has(raw::REDISMODULE_CTX_FLAGS_CLUSTER),
            replicated: has(raw::REDISMODULE_CTX_FLAGS_REPLICATED),
            evicts: has(raw::REDISMODULE_CTX_FLAGS_EVICT),
            out_of_memory: has(raw::REDISMODULE_CTX_FLAGS_OOM),
            resp3,
        }
    }

    /// A client can be parked here.
    pub fn may_block(self) -> bool {
        !(self.multi || self.lua || self.deny_blocking)
    }
}

/// The client has subscribed to channels.
///
/// # Safety
/// `ctx` is alive and the server lock is held.
unsafe fn is_subscriber(ctx: *mut raw::RedisModuleCtx) -> bool {
    let mut info = MaybeUninit::<raw::RedisModuleClientInfoV1>::zeroed();
    // SAFETY: the place is ours and is told to be of version 1, of which all fields may be zero; the caller says so of the
    // context.
    unsafe {
        (*info.as_mut_ptr()).version = 1;
        let Some(ask) = raw::RedisModule_GetClientInfoById else {
            return false;
        };
        let number = api!(RedisModule_GetClientId)(ctx);
        let outcome = ask(info.as_mut_ptr().cast(), number);
        outcome == raw::REDISMODULE_OK as i32 && info.assume_init().flags & SUBSCRIBED != 0
    }
}

/// Flag of a client.
const SUBSCRIBED: u64 = 1 << 1;

/// What the server is: cluster, replica, loading. Says nothing of a client.
pub fn server_flags(guard: &ServerLock) -> Flags {
    // SAFETY: the guard proves that the lock is held and the context alive.
    unsafe { Flags::of(guard.ctx()) }
}

/// A number out of INFO; `None` if the server does not show it.
pub fn server_info(guard: &ServerLock, section: &str, field: &str) -> Option<u64> {
    let (section, field) = (c_string(section), c_string(field));
    let mut error = 0;
    // SAFETY: the lock is held, the texts are C strings; the data is freed here, once.
    let value = unsafe {
        let info = api!(RedisModule_GetServerInfo)(guard.ctx(), section.as_ptr());
        let value = api!(RedisModule_ServerInfoGetFieldUnsigned)(info, field.as_ptr(), &mut error);
        api!(RedisModule_FreeServerInfo)(guard.ctx(), info);
        value
    };
    (error == 0).then_some(value)
}
