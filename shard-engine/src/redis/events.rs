//! Events of the server: loads, emptied and swapped databases, changes of the role, forks, the link to the master.

use std::{ffi::c_void, sync::OnceLock};

use parking_lot::RwLock;
use redis_module::raw;

use super::{
    ffi::{api, catch, guarded},
    lock::{self, ServerLock},
};

/// What the server loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadKind {
    /// An RDB file: at the start, or by DEBUG RELOAD.
    Dump,
    /// The AOF, whatever its files hold.
    AppendOnlyFile,
    /// The dataset of the master.
    FullSync,
}

/// What happened. Loads begin and end in pairs; so do loads beside the dataset, which surround a load of the kind
/// `FullSync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A load begins.
    LoadStarted(LoadKind),
    /// It is complete.
    LoadEnded,
    /// It failed; what was loaded so far is dropped, or the server ends.
    LoadFailed,
    /// A full sync begins that keeps the old dataset until it is complete (`repl-diskless-load swapdb`).
    SwapStarted,
    /// The old dataset stays.
    SwapAborted,
    /// The new dataset has taken the place of the old one. Comes before `LoadEnded`.
    SwapCompleted,
    /// All keys of database 0 are gone, or those of another one took their place.
    Replaced,
    /// The server is a master from now on.
    NowMaster,
    /// The server is a replica from now on (or follows another master).
    NowReplica,
    /// A child was forked that saves or rewrites; this is the parent, right after the fork.
    ForkChildBorn,
    /// It has ended.
    ForkChildDied,
    /// A replica follows its master.
    MasterLinkUp,
    /// A replica has lost its master.
    MasterLinkDown,
    /// Another module was loaded or unloaded.
    ModulesChanged,
}

type Listener = fn(&ServerLock, Event);

static LISTENERS: RwLock<Vec<Listener>> = RwLock::new(Vec::new());

/// The events that are listened to, with the version of their data that we know.
const SOURCES: [u64; 8] = [
    raw::REDISMODULE_EVENT_LOADING,
    raw::REDISMODULE_EVENT_FLUSHDB,
    raw::REDISMODULE_EVENT_SWAPDB,
    raw::REDISMODULE_EVENT_REPL_ASYNC_LOAD,
    raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED,
    raw::REDISMODULE_EVENT_FORK_CHILD,
    raw::REDISMODULE_EVENT_MASTER_LINK_CHANGE,
    raw::REDISMODULE_EVENT_MODULE_CHANGE,
];
const DATA_VERSION: u64 = 1;

/// Calls `listener` with each event, on the main thread. At load.
pub fn subscribe(guard: &ServerLock, listener: Listener) -> Result<(), String> {
    let first = {
        let mut listeners = LISTENERS.write();
        listeners.push(listener);
        listeners.len() == 1
    };
    if !first {
        return Ok(());
    }
    SOURCES.into_iter().try_for_each(|id| subscribe_to(guard, id, happened))
}

static AT_CRON: OnceLock<fn(&ServerLock)> = OnceLock::new();

/// Calls `work` in each turn of the server's cron, on the main thread: ten times a second as a rule, at least once. By the
/// monotonic clock, unlike the server's timers. For one caller, at load.
pub fn on_cron(guard: &ServerLock, work: fn(&ServerLock)) -> Result<(), String> {
    let _ = AT_CRON.set(work);
    subscribe_to(guard, raw::REDISMODULE_EVENT_CRON_LOOP, cron)
}

extern "C" fn cron(_: *mut raw::RedisModuleCtx, _: raw::RedisModuleEvent, _: u64, _: *mut c_void) {
    guarded("the server's cron", || {
        if let Some(work) = AT_CRON.get() {
            work(&lock::lock());
        }
    });
}

type Callback = extern "C" fn(*mut raw::RedisModuleCtx, raw::RedisModuleEvent, u64, *mut c_void);

fn subscribe_to(guard: &ServerLock, id: u64, callback: Callback) -> Result<(), String> {
    let event = raw::RedisModuleEvent {
        id,
        dataver: DATA_VERSION,
    };
    // SAFETY: the context names this module; the callback lives as long as the module.
    let outcome = unsafe { api!(RedisModule_SubscribeToServerEvent)(guard.ctx(), event, Some(callback)) };
    match outcome == raw::REDISMODULE_OK as i32 {
        true => Ok(()),
        false => Err(format!("the server does not tell of its event {id}")),
    }
}

extern "C" fn happened(_: *mut raw::RedisModuleCtx, event: raw::RedisModuleEvent, sub: u64, data: *mut c_void) {
    guarded("a server event", || {
        // SAFETY: the server hands over the data of that event.
        if !unsafe { is_of_database_0(event.id, data) } {
            return;
        }
        let Some(event) = translate(event.id, sub) else {
            return;
        };
        let guard = lock::lock();
        let listeners = LISTENERS.read().clone();
        for listener in listeners {
            catch("a server event", || listener(&guard, event));
        }
    });
}

/// It concerns the only database that functions see.
///
/// # Safety
/// `data` is that of an event with this id, in the version that was asked for.
unsafe fn is_of_database_0(id: u64, data: *mut c_void) -> bool {
    match id {
        raw::REDISMODULE_EVENT_FLUSHDB => {
            let info = data.cast::<raw::RedisModuleFlushInfo>();
            // SAFETY: see above. -1 stands for all databases.
            unsafe { info.as_ref() }.is_none_or(|info| info.dbnum <= 0)
        }
        raw::REDISMODULE_EVENT_SWAPDB => {
            let info = data.cast::<raw::RedisModuleSwapDbInfo>();
            // SAFETY: see above.
            unsafe { info.as_ref() }.is_none_or(|info| info.dbnum_first == 0 || info.dbnum_second == 0)
        }
        _ => true,
    }
}

fn translate(id: u64, sub: u64) -> Option<Event> {
    Some(match (id, sub) {
        (raw::REDISMODULE_EVENT_FLUSHDB, raw::REDISMODULE_SUBEVENT_FLUSHDB_END) => Event::Replaced,
        (raw::REDISMODULE_EVENT_SWAPDB, _) => Event::Replaced,
        (raw::REDISMODULE_EVENT_MODULE_CHANGE, _) => Event::ModulesChanged,
        (raw::REDISMODULE_EVENT_LOADING, sub) => match sub {
            raw::REDISMODULE_SUBEVENT_LOADING_RDB_START => Event::LoadStarted(LoadKind::Dump),
            raw::REDISMODULE_SUBEVENT_LOADING_AOF_START => Event::LoadStarted(LoadKind::AppendOnlyFile),
            raw::REDISMODULE_SUBEVENT_LOADING_REPL_START => Event::LoadStarted(LoadKind::FullSync),
            raw::REDISMODULE_SUBEVENT_LOADING_ENDED => Event::LoadEnded,
            raw::REDISMODULE_SUBEVENT_LOADING_FAILED => Event::LoadFailed,
            _ => return None,
        },
        (raw::REDISMODULE_EVENT_REPL_ASYNC_LOAD, raw::REDISMODULE_SUBEVENT_REPL_ASYNC_LOAD_STARTED) => {
            Event::SwapStarted
        }
        (raw::REDISMODULE_EVENT_REPL_ASYNC_LOAD, raw::REDISMODULE_SUBEVENT_REPL_ASYNC_LOAD_ABORTED) => {
            Event::SwapAborted
        }
        (raw::REDISMODULE_EVENT_REPL_ASYNC_LOAD, raw::REDISMODULE_SUBEVENT_REPL_ASYNC_LOAD_COMPLETED) => {
            Event::SwapCompleted
        }
        (raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, raw::REDISMODULE_EVENT_REPLROLECHANGED_NOW_MASTER) => {
            Event::NowMaster
        }
        (raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, raw::REDISMODULE_EVENT_REPLROLECHANGED_NOW_REPLICA) => {
            Event::NowReplica
        }
        (raw::REDISMODULE_EVENT_FORK_CHILD, raw::REDISMODULE_SUBEVENT_FORK_CHILD_BORN) => Event::ForkChildBorn,
        (raw::REDISMODULE_EVENT_FORK_CHILD, raw::REDISMODULE_SUBEVENT_FORK_CHILD_DIED) => Event::ForkChildDied,
        (raw::REDISMODULE_EVENT_MASTER_LINK_CHANGE, raw::REDISMODULE_SUBEVENT_MASTER_LINK_UP) => Event::MasterLinkUp,
        (raw::REDISMODULE_EVENT_MASTER_LINK_CHANGE, raw::REDISMODULE_SUBEVENT_MASTER_LINK_DOWN) => {
            Event::MasterLinkDown
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_events_are_passed_over() {
        assert_eq!(translate(raw::REDISMODULE_EVENT_LOADING, 99), None);
        assert_eq!(translate(12345, 0), None);
        assert_eq!(
            translate(raw::REDISMODULE_EVENT_LOADING, 1),
            Some(Event::LoadStarted(LoadKind::AppendOnlyFile))
        );
    }
}
