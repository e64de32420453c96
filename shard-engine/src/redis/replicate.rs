//! Commands that go to replicas and the AOF without being run here.
//!
//! The server writes them out when the outermost holder gives the lock back, or when the command or callback ends.

use std::sync::atomic::{AtomicBool, Ordering};

use redis_module::raw;

use super::{
    call::{CallError, Flags, call},
    ffi::{OwnedString, api, c_string},
    lock::ServerLock,
    register::Call,
    version::server_version,
};

static PAUSED_ONCE: AtomicBool = AtomicBool::new(false);

/// Where a command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Replicas and AOF.
    Everywhere,
    /// The AOF only, also on a replica.
    AppendOnlyFile,
}

/// Writes are paused: CLIENT PAUSE, or a fail-over by hand that waits for its replica. Nothing may be replicated now,
/// or the server ends itself. It can begin only while the lock is free.
pub fn is_paused(_guard: &ServerLock) -> bool {
    // SAFETY: the lock is held; the call takes nothing.
    let paused = unsafe { api!(RedisModule_AvoidReplicaTraffic)() != 0 };
    if paused {
        PAUSED_ONCE.store(true, Ordering::Relaxed);
    }
    paused
}

/// Somebody found writes paused since the start: commands may have been held up behind the command filter.
pub fn was_ever_paused(guard: &ServerLock) -> bool {
    is_paused(guard) || PAUSED_ONCE.load(Ordering::Relaxed)
}

/// What clients get for a write now, because the server can not write its files or too few replicas follow; `None` while it
/// takes writes. Servers before 7.0.3 do not tell.
pub fn refusal_of_writes(guard: &ServerLock) -> Option<String> {
    if server_version(guard) < (7, 0, 3) {
        return None;
    }
    let flags = Flags {
        respect_server_state: true,
        ..Flags::default()
    };
    // Changes nothing, as nobody has this key. If it is renamed away, or the key is another shard's, nothing is known.
    match call(guard, &["PERSIST", "\0oxigears"], flags) {
        Err(CallError::Answered(text)) if ["MISCONF ", "NOREPLICAS "].iter().any(|code| text.starts_with(code)) => {
            Some(text)
        }
        _ => None,
    }
}

/// Sends a command. False while replication is paused, or if the server does not know the command: nothing was sent.
pub fn replicate(guard: &ServerLock, name: &str, args: &[&[u8]], target: Target) -> bool {
    if is_paused(guard) {
        return false;
    }
    let strings: Vec<OwnedString> = args.iter().map(|arg| OwnedString::new(arg)).collect();
    let mut pointers: Vec<_> = strings.iter().map(OwnedString::as_ptr).collect();
    let format = match target {
        Target::Everywhere => c"v",
        Target::AppendOnlyFile => c"Rv",
    };
    let name = c_string(name);
    // SAFETY: the lock is held and the context alive; "v" takes an array of strings and its length.
    let outcome = unsafe {
        api!(RedisModule_Replicate)(
            guard.ctx(),
            name.as_ptr(),
            format.as_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
        )
    };
    outcome == raw::REDISMODULE_OK as i32
}

/// Who runs a command here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A client, a script, a function.
    Client,
    /// The master that this server follows.
    Master,
    /// The AOF that is being loaded.
    AppendOnlyFile,
}

/// Id of the client that stands for the AOF.
const AOF_CLIENT: u64 = u64::MAX;

impl Call {
    /// Who runs this command.
    pub fn sender(&self) -> Sender {
        let flags = self.context_flags();
        // SAFETY: the context is alive while the command runs.
        let client = unsafe { api!(RedisModule_GetClientId)(self.ctx()) };
        if client == AOF_CLIENT && flags.loading {
            Sender::AppendOnlyFile
        } else if flags.replicated && flags.replica {
            Sender::Master
        } else {
            Sender::Client
        }
    }

    /// Sends this command on as it came. For commands that came over replication or from the AOF; while that is loaded
    /// the server sends nothing.
    pub fn replicate_verbatim(&self) {
        // SAFETY: the context is alive while the command runs.
        unsafe { api!(RedisModule_ReplicateVerbatim)(self.ctx()) };
    }
}
