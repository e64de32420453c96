//! Parked clients: a command parks its client, and any thread answers it later, exactly once.

use std::{
    collections::HashMap,
    ffi::c_void,
    ptr::{NonNull, null_mut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use redis_module::raw;

use super::{
    ffi::{api, catch, guarded},
    register::Call,
    reply::ReplyWriter,
};

type OnDisconnect = Box<dyn FnOnce() + Send>;
type OnMain = Box<dyn FnOnce(&mut ReplyWriter) + Send>;

/// What to do when a parked client leaves, by handle.
static DISCONNECTS: Mutex<Option<HashMap<usize, Watch>>> = Mutex::new(None);

struct Watch {
    gone: Arc<AtomicBool>,
    action: Option<OnDisconnect>,
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
    pub fn block(call: &mut Call, on_disconnect: Option<OnDisconnect>) -> BlockedClient {
        let parked = if call.context_flags().may_block() {
            // SAFETY: the context is that of the command that runs now.
            unsafe { park(call.ctx(), on_disconnect) }
        } else {
            None
        };
        if parked.is_some() {
            call.answered();
        } else {
            call.reply()
                .error("ERR the client can not wait here: blocking is not allowed");
        }
        BlockedClient { parked }
    }

    /// The client has left; an answer is still due, and goes nowhere.
    pub fn is_gone(&self) -> bool {
        self.parked.as_ref().is_none_or(|p| p.gone.load(Ordering::Relaxed))
    }

    /// Answers from this thread: the reply is written here, without the server lock; the main thread only moves the
    /// bytes. The way for replies of any size.
    pub fn reply(mut self, write: impl FnOnce(&mut ReplyWriter)) {
        self.answer(write);
    }

    /// Answers on the main thread, inside the server lock.
    pub fn reply_on_main(mut self, write: impl FnOnce(&mut ReplyWriter) + Send + 'static) {
        if let Some(parked) = self.parked.take() {
            let boxed: Box<OnMain> = Box::new(Box::new(write));
            parked.unblock(Box::into_raw(boxed).cast());
        }
    }

    fn answer(&mut self, write: impl FnOnce(&mut ReplyWriter)) {
        if let Some(parked) = self.parked.take() {
            if !parked.gone.load(Ordering::Relaxed) {
                parked.write_here(write);
            }
            parked.unblock(null_mut());
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
    // SAFETY: the caller says so; the callbacks match what `unblock` is given.
    let handle = unsafe { api!(RedisModule_BlockClient)(ctx, Some(on_reply), None, Some(free_private_data), 0) };
    let handle = NonNull::new(handle)?;
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

    fn unblock(self, private: *mut c_void) {
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
            api!(RedisModule_UnblockClient)(handle, private);
        }
    }
}

/// Number of clients that are parked now.
pub fn parked() -> usize {
    DISCONNECTS.lock().as_ref().map_or(0, HashMap::len)
}

/// The main thread answers. A reply that another thread has written needs nothing more.
extern "C" fn on_reply(ctx: *mut raw::RedisModuleCtx, _: *mut *mut raw::RedisModuleString, _: i32) -> i32 {
    guarded("a reply", || {
        // SAFETY: the context is that of a reply callback; its private data is what `unblock` handed over.
        let private: *mut OnMain = unsafe { api!(RedisModule_GetBlockedClientPrivateData)(ctx) }.cast();
        if private.is_null() {
            return;
        }
        // SAFETY: the box is freed only in `free_private_data`, later; the action in it is replaced.
        let write = std::mem::replace(unsafe { &mut *private }, Box::new(|_| {}));
        // SAFETY: this callback is the only one that writes to the client now.
        write(&mut unsafe { ReplyWriter::new(ctx) });
    });
    raw::REDISMODULE_OK as i32
}

extern "C" fn free_private_data(_: *mut raw::RedisModuleCtx, private: *mut c_void) {
    guarded("a reply", || {
        if !private.is_null() {
            // SAFETY: it is the box that `reply_on_main` let go of, and the server frees it once.
            drop(unsafe { Box::from_raw(private.cast::<OnMain>()) });
        }
    });
}

extern "C" fn disconnected(_: *mut raw::RedisModuleCtx, handle: *mut raw::RedisModuleBlockedClient) {
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
