//! The client's command that is under way. Its client may have said ASKING: then what functions do for it may use keys of a
//! slot that is on its way here, but only in the context of that client.

use std::{
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicPtr, Ordering},
};

use redis_module::raw;

/// Changed and used under the server lock only, which is held, or lent, as long as the command runs.
static CTX: AtomicPtr<raw::RedisModuleCtx> = AtomicPtr::new(null_mut());

/// Until it goes, the command is the one at hand; then the one before.
pub struct AtHand(*mut raw::RedisModuleCtx);

/// A client's command begins in this context, which is alive until the result goes.
pub(super) fn enter(ctx: *mut raw::RedisModuleCtx) -> AtHand {
    AtHand(CTX.swap(ctx, Ordering::Relaxed))
}

/// Until the result goes, functions use what the server lets everybody use.
pub(super) fn set_aside() -> AtHand {
    AtHand(CTX.swap(null_mut(), Ordering::Relaxed))
}

impl Drop for AtHand {
    fn drop(&mut self) {
        CTX.store(self.0, Ordering::Relaxed);
    }
}

/// Its context.
pub(super) fn ctx() -> Option<NonNull<raw::RedisModuleCtx>> {
    NonNull::new(CTX.load(Ordering::Relaxed))
}
