//! Commands that go to replicas and the AOF without being run here.
//!
//! The server writes them out when the outermost holder gives the lock back, or when the command or callback ends.

use redis_module::raw;

use super::{
    ffi::{OwnedString, api, c_string},
    lock::ServerLock,
    register::Call,
};

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
    unsafe { api!(RedisModule_AvoidReplicaTraffic)() != 0 }
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
