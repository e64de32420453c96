//! Parked clients: a command parks its client, and any thread answers it later, exactly once.

use std::{
    collections::HashMap,
    ffi::c_void,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use redis_module::raw;

use super::{
    context::server_info,
    ffi::{api, catch, guarded},
    lock::ServerLock,
    register::Call,
    reply::ReplyWriter,
    slot_tables,
};

type OnDisconnect = Box<dyn FnOnce() + Send>;

/// What to do when a parked client leaves, by handle.
static DISCONNECTS: Mutex<Option<HashMap<usize, Watch>>> = Mutex::new(None);

/// Clients that are parked and have not left.
static PARKED: AtomicU64 = AtomicU64::new(0);

/// Clients wait that we have not parked: for keys, mostly.
pub fn are_others(guard: &ServerLock) -> bool {
    let all = server_info(guard, "clients", "blocked_clients").unwrap_or(0);
    // Exact under the server lock.
    all > PARKED.load(Ordering::Relaxed)
}

struct Watch {
    gone: Arc<AtomicBool>,
    action: Option<OnDisconnect>,
}

/// A command that runs now and may park its client.
pub trait Client {
    /// Its context.
    fn ctx(&self) -> *mut raw::RedisModuleCtx;
    /// Its client can be parked.
    fn may_block(&self) -> bool;
    /// Notes that the client has its answer or waits for it.
    fn answered(&mut self);
    /// Answers with an error.
    fn refuse(&mut self, text: &str);
}

impl Client for Call {
    fn ctx(&self) -> *mut raw::RedisModuleCtx {
        Call::ctx(self)
    }

    fn may_block(&self) -> bool {
        self.context_flags().may_block()
    }

    fn answered(&mut self) {
        Call::answered(self);
    }

    fn refuse(&mut self, text: &str) {
        self.reply().error(text);
    }
}

/// A parked client. Dropping it without an answer answers with an error, so that nobody waits for ever.
pub struct BlockedClient {
    /// `None` after the answer.
    parked: Option<Parked>,
}

struct Parked {
    handle: NonNull<raw::RedisModuleBlockedClient>,
    gone: Arc<AtomicBool>,
}

// SAFETY: the server lets any thread unblock a client and write to its thread-safe context; we are the only owner.
unsafe impl Send for Parked {}

impl BlockedClient {
    /// Parks the client of `call`. `on_disconnect` runs on the main thread if the client leaves before its answer.
    /// Where blocking is not allowed the client gets an error at once, and a later answer goes nowhere.
    pub fn block(call: &mut impl Client, on_disconnect: Option<OnDisconnect>) -> BlockedClient {
        let parked = if call.may_block() {
            // SAFETY: the context is that of the command that runs now.
            unsafe { park(call.ctx(), on_disconnect) }
        } else {
            None
        };
        if parked.is_some() {
            slot_tables::client_is_parked();
            call.answered();
        } else {
            call.refuse("ERR the client can not wait here: blocking is not allowed");
        }
        BlockedClient { parked }
    }

    /// Answers from this thread: the reply is written here, without the server lock; the main thread only moves the
    /// bytes. The way for replies of any size.
    pub fn reply(mut self, write: impl FnOnce(&mut ReplyWriter)) {
        self.answer(write);
    }

    /// Works with the client's context, and may write the answer, without sending it yet; `reply` does that. `None` if
    /// there is nobody to answer, or the work panicked.
    pub fn writing<R>(&self, work: impl FnOnce(&mut ReplyWriter) -> R) -> Option<R> {
        let mut done = None;
        self.parked.as_ref()?.write_here(|writer| done = Some(work(writer)));
        done
    }

    fn answer(&mut self, write: impl FnOnce(&mut ReplyWriter)) {
        if let Some(parked) = self.parked.take() {
            if !parked.gone.load(Ordering::Relaxed) {
                parked.write_here(write);
            }
            parked.unblock();
        }
    }
}

impl Drop for BlockedClient {
    fn drop(&mut self) {
        self.answer(|reply| reply.error("ERR internal error: the command ended without an answer, see the server log"));
    }
}

/// Parks the client of `ctx`; `None` if the server refuses.
///
/// # Safety
/// `ctx` is the context of a command that runs now, has not been answered, and may block.
unsafe fn park(ctx: *mut raw::RedisModuleCtx, action: Option<OnDisconnect>) -> Option<Parked> {
    // No callbacks for replies: the thread that answers writes the reply itself.
    // SAFETY: the caller says so.
    let handle = unsafe { api!(RedisModule_BlockClient)(ctx, None, None, Some(unblocked), 0) };
    let handle = NonNull::new(handle)?;
    PARKED.fetch_add(1, Ordering::Relaxed);
    let gone = Arc::new(AtomicBool::new(false));
    let watch = Watch {
        gone: gone.clone(),
        action,
    };
    DISCONNECTS
        .lock()
        .get_or_insert_default()
        .insert(handle.as_ptr() as usize, watch);
    // SAFETY: the handle is new and ours until it is unblocked.
    unsafe {
        api!(RedisModule_SetDisconnectCallback)(handle.as_ptr(), Some(disconnected));
        if let Some(start) = raw::RedisModule_BlockedClientMeasureTimeStart {
            start(handle.as_ptr());
        }
    }
    Some(Parked { handle, gone })
}

impl Parked {
    fn write_here(&self, write: impl FnOnce(&mut ReplyWriter)) {
        // SAFETY: the handle is alive until it is unblocked.
        let ctx = unsafe { api!(RedisModule_GetThreadSafeContext)(self.handle.as_ptr()) };
        // SAFETY: this context is ours alone until it is freed below.
        let mut writer = unsafe { ReplyWriter::new(ctx) };
        catch("a reply", || write(&mut writer));
        // SAFETY: the writer is not used any more.
        unsafe { api!(RedisModule_FreeThreadSafeContext)(ctx) };
    }

    fn unblock(self) {
        let handle = self.handle.as_ptr();
        // Before the handle is given back, after which it may come again for another client.
        let watch = DISCONNECTS
            .lock()
            .as_mut()
            .and_then(|watches| watches.remove(&(handle as usize)));
        drop(watch);
        // SAFETY: the handle is alive and unblocked only here, once, as `self` is consumed.
        unsafe {
            if let Some(end) = raw::RedisModule_BlockedClientMeasureTimeEnd {
                end(handle);
            }
            // `unblocked` is called only if there is something to free.
            api!(RedisModule_UnblockClient)(handle, handle.cast());
        }
    }
}

/// The server lets a client go on, or forgets one that has left.
unsafe extern "C" fn unblocked(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the context is alive in its callback; the lock is held.
    let left = unsafe { api!(RedisModule_BlockedClientDisconnected)(ctx) } != 0;
    if !left {
        PARKED.fetch_sub(1, Ordering::Relaxed);
    }
}

extern "C" fn disconnected(_: *mut raw::RedisModuleCtx, handle: *mut raw::RedisModuleBlockedClient) {
    PARKED.fetch_sub(1, Ordering::Relaxed);
    guarded("a disconnect", || {
        let action = DISCONNECTS.lock().as_mut().and_then(|watches| {
            let watch = watches.get_mut(&(handle as usize))?;
            watch.gone.store(true, Ordering::Relaxed);
            watch.action.take()
        });
        if let Some(action) = action {
            action();
        }
    });
}
