//! The user for whom a command runs.

use redis_module::raw;

use super::{
    call_reply::CallReply,
    context::Flags,
    ffi::{OwnedString, api},
    filter,
    refusal::{Fault, judge_error},
};

/// The user of the client or script that runs the command of a context; `None` if that is code of a module.
///
/// # Safety
/// The context is alive and the lock is held.
pub(super) unsafe fn user_name(ctx: *mut raw::RedisModuleCtx) -> Option<String> {
    // SAFETY: the pointers are filled at load; the caller says so of the context.
    let name = unsafe {
        // A client that may wait is a real one. Valkey's clients for scripts and modules may have the number of another one
        // that they served before.
        let flags = Flags::of(ctx);
        let by_number = raw::RedisModule_GetClientUserNameById.filter(|_| !(flags.deny_blocking || flags.lua));
        let name = by_number.and_then(|f| OwnedString::adopt(f(ctx, api!(RedisModule_GetClientId)(ctx))));
        match name {
            // Asking for the context's user ends a 7.0 server if it has none.
            None if has_user(ctx) => raw::RedisModule_GetCurrentUserName
                .map(|f| f(ctx))
                .and_then(OwnedString::adopt),
            name => name,
        }
    }?;
    Some(match std::str::from_utf8(name.bytes()) {
        Ok(name) => name.to_owned(),
        // No user has a space in the name, so this is nobody with rights.
        Err(_) => format!("{} (no UTF-8)", String::from_utf8_lossy(name.bytes())),
    })
}

/// The context has a user; a script's one has, that of code of another module has none. The server looks for it first,
/// and says so, even if there is no such command; one that there is would be noted if the user may not run it.
///
/// # Safety
/// As for `user_name`.
unsafe fn has_user(ctx: *mut raw::RedisModuleCtx) -> bool {
    let _unseen = filter::unseen();
    // SAFETY: the caller says so; there are no arguments.
    let reply = unsafe { api!(RedisModule_Call)(ctx, c"oxigears.nothing".as_ptr(), c"CE".as_ptr()) };
    let error = CallReply::adopt(reply).and_then(|reply| reply.error());
    error.is_some_and(|text| !matches!(judge_error(&text), Fault::NoUser))
}
