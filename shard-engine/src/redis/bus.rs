//! Messages on the cluster bus: only members of the cluster speak there.

use std::ffi::{CString, c_char, c_uchar};

use oxigears_coordinator::topology::NodeId;
use parking_lot::RwLock;
use redis_module::raw;

use super::{
    cluster::ID_BYTES,
    ffi::{api, bytes_at, guarded},
    lock::{self, ServerLock},
    log,
};

/// Longest message that is sent; the bus has been tried with 100 KB.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Gets the sender's id and the bytes.
type Receiver = fn(&ServerLock, &NodeId, &[u8]);

static RECEIVERS: RwLock<Vec<(u8, Receiver)>> = RwLock::new(Vec::new());

/// Calls `receiver` with each message of type `kind`, on the main thread.
pub fn on_bus_message(guard: &ServerLock, kind: u8, receiver: Receiver) {
    RECEIVERS.write().push((kind, receiver));
    // SAFETY: the context names this module; the callback lives as long as the module.
    unsafe { api!(RedisModule_RegisterClusterMessageReceiver)(guard.ctx(), kind, Some(received)) };
}

extern "C" fn received(
    _: *mut raw::RedisModuleCtx,
    sender: *const c_char,
    kind: u8,
    payload: *const c_uchar,
    len: u32,
) {
    guarded("a cluster message", || {
        // SAFETY: the sender's id has forty bytes and no NUL; payload and length belong together.
        let (sender, payload) = unsafe { (bytes_at(sender, ID_BYTES), bytes_at(payload.cast(), len as usize)) };
        let Ok(sender) = std::str::from_utf8(sender) else {
            return;
        };
        let (guard, sender) = (lock::lock(), NodeId::new(sender));
        let receivers = RECEIVERS.read().clone();
        for (_, receiver) in receivers.iter().filter(|(wanted, _)| *wanted == kind) {
            receiver(&guard, &sender, payload);
        }
    });
}

/// Sends a message to one node; false if there is no link. It may be lost although this says that it was sent: repeat
/// until answered.
pub fn send_bus_message(guard: &ServerLock, to: &NodeId, kind: u8, payload: &[u8]) -> bool {
    // A copy with a NUL behind: ids from the server have none, yet the call takes a C string.
    let Ok(target) = CString::new(to.as_str()) else {
        return false;
    };
    if payload.len() > MESSAGE_BYTES {
        log::warning(&format!("{} bytes are too many for the cluster bus", payload.len()));
        return false;
    }
    // SAFETY: the lock is held; target is a C string, pointer and length are those of a slice.
    let outcome = unsafe {
        api!(RedisModule_SendClusterMessage)(
            guard.ctx(),
            target.as_ptr(),
            kind,
            payload.as_ptr().cast(),
            payload.len() as u32,
        )
    };
    outcome == raw::REDISMODULE_OK as i32
}
