//! Events of the server: what its life and role do.

use parking_lot::RwLock;
use redis_module::raw;

use super::{
    ffi::{api, guarded},
    lock::ServerLock,
};

/// What happened to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ServerEvent {
    NowMaster,
    NowReplica,
    LoadingStarted,
    LoadingEnded,
    LoadingFailed,
    FlushStarted,
    FlushEnded,
    Shutdown,
}

type Listener = Box<dyn Fn(ServerEvent) + Send + Sync>;

static LISTENERS: RwLock<Vec<Listener>> = RwLock::new(Vec::new());

/// Events that are subscribed to; all have version 1.
const EVENTS: [u64; 4] = [
    raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED,
    raw::REDISMODULE_EVENT_LOADING,
    raw::REDISMODULE_EVENT_FLUSHDB,
    raw::REDISMODULE_EVENT_SHUTDOWN,
];

/// Calls `listener` for every event, under the server lock, on the thread that caused it. It must return fast.
pub fn listen(guard: &ServerLock, listener: impl Fn(ServerEvent) + Send + Sync + 'static) {
    let first = {
        let mut listeners = LISTENERS.write();
        listeners.push(Box::new(listener));
        listeners.len() == 1
    };
    if !first {
        return;
    }
    for id in EVENTS {
        let event = raw::RedisModuleEvent { id, dataver: 1 };
        // SAFETY: the context names this module; a server without the event refuses it.
        unsafe { api!(RedisModule_SubscribeToServerEvent)(guard.ctx(), event, Some(happened)) };
    }
}

fn read(id: u64, sub: u64) -> Option<ServerEvent> {
    Some(match (id, sub) {
        (raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, 0) => ServerEvent::NowMaster,
        (raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, 1) => ServerEvent::NowReplica,
        (raw::REDISMODULE_EVENT_LOADING, raw::REDISMODULE_SUBEVENT_LOADING_ENDED) => ServerEvent::LoadingEnded,
        (raw::REDISMODULE_EVENT_LOADING, raw::REDISMODULE_SUBEVENT_LOADING_FAILED) => ServerEvent::LoadingFailed,
        (raw::REDISMODULE_EVENT_LOADING, _) => ServerEvent::LoadingStarted,
        (raw::REDISMODULE_EVENT_FLUSHDB, raw::REDISMODULE_SUBEVENT_FLUSHDB_START) => ServerEvent::FlushStarted,
        (raw::REDISMODULE_EVENT_FLUSHDB, raw::REDISMODULE_SUBEVENT_FLUSHDB_END) => ServerEvent::FlushEnded,
        (raw::REDISMODULE_EVENT_SHUTDOWN, _) => ServerEvent::Shutdown,
        _ => return None,
    })
}

extern "C" fn happened(_: *mut raw::RedisModuleCtx, event: raw::RedisModuleEvent, sub: u64, _: *mut std::ffi::c_void) {
    guarded("a server event", || {
        if let Some(event) = read(event.id, sub) {
            LISTENERS.read().iter().for_each(|listener| listener(event));
        }
    });
}
