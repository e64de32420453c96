//! Whether a user may run an intercepted command.

use std::ptr::NonNull;

use redis_module::raw;

use super::Wrapped;
use crate::redis::{
    call::{self, CallError},
    ffi::OwnedString,
    lock::ServerLock,
    refusal::no_permission,
    value::Reply,
    version::at_least,
};

/// Whether a user may run a command.
pub enum Verdict {
    /// The user may.
    Allowed,
    /// The user may not.
    Denied(Denial),
    /// The server has no such command or subcommand.
    Unknown,
}

/// Why a user may not run a command.
pub struct Denial {
    /// The server's error text.
    pub text: String,
    /// What is in the log of rights then: the full name of the command, or a channel.
    logged: Option<(raw::RedisModuleACLLogEntryReason, String)>,
}

impl Wrapped {
    /// Whether a user may run the command, which has a right number of arguments. A client's one that is denied is in
    /// ACL LOG then: for its keys the server has seen to that.
    pub fn permits(&self, user: &str) -> Verdict {
        let args: Vec<&[u8]> = (0..self.argc).map(|at| self.arg(at)).collect();
        // SAFETY: the vector has `argc` strings, alive during the command.
        let verdict = unsafe { permits(&self.guard, user, self.argv, &args, self.database()) };
        if let Verdict::Denied(Denial {
            logged: Some((reason, what)),
            ..
        }) = &verdict
            && !call::in_nested_call()
        {
            self.log_denial(user, *reason, what);
        }
        verdict
    }

    fn log_denial(&self, user: &str, reason: raw::RedisModuleACLLogEntryReason, what: &str) {
        let (name, object) = (OwnedString::new(user.as_bytes()), OwnedString::new(what.as_bytes()));
        // SAFETY: the pointers are filled at load; the context is alive and its client a real one, the lock is held, the
        // strings are alive during the calls; the user is freed once.
        unsafe {
            let functions = raw::RedisModule_GetModuleUserFromUserName
                .zip(raw::RedisModule_ACLAddLogEntry)
                .zip(raw::RedisModule_FreeModuleUser);
            let Some(((find, log), free)) = functions else { return };
            if let Some(user) = NonNull::new(find(name.as_ptr())) {
                log(self.ctx, user.as_ptr(), object.as_ptr(), reason);
                free(user.as_ptr());
            }
        }
    }
}

/// The same for any command, in a database.
///
/// # Safety
/// The vector has the strings of `args`, alive during the call.
pub(super) unsafe fn permits(
    guard: &ServerLock,
    user: &str,
    argv: *mut *mut raw::RedisModuleString,
    args: &[&[u8]],
    database: i32,
) -> Verdict {
    // SAFETY: the pointers are filled at load.
    let functions = unsafe {
        raw::RedisModule_GetModuleUserFromUserName
            .zip(raw::RedisModule_ACLCheckCommandPermissions)
            .zip(raw::RedisModule_FreeModuleUser)
    };
    let Some(((find, check), free)) = functions else {
        let text = CallError::NoUserSupport(user.to_owned()).to_string();
        return Verdict::Denied(Denial { text, logged: None });
    };
    let name = OwnedString::new(user.as_bytes());
    // SAFETY: the name is alive and the lock is held; the caller says so of the vector; the user is freed once.
    let refused = unsafe {
        NonNull::new(find(name.as_ptr())).map_or(Some(libc::EACCES), |user| {
            let outcome = check(user.as_ptr(), argv, args.len() as i32);
            let refused = (outcome != raw::REDISMODULE_OK as i32).then(call::errno);
            free(user.as_ptr());
            refused
        })
    };
    match refused {
        None => Verdict::Allowed,
        Some(libc::ENOENT) => Verdict::Unknown,
        Some(_) => ask_again(guard, user, args, database),
    }
}

/// Whether the user may not run it indeed, and why, in the words that clients know: where users may have rules for
/// databases the function for modules asks for all of them.
fn ask_again(guard: &ServerLock, user: &str, args: &[&[u8]], database: i32) -> Verdict {
    let mut dry_run: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", user.as_bytes()];
    dry_run.extend(args);
    let flags = call::Flags {
        database,
        ..call::Flags::default()
    };
    let told = match call::call(guard, &dry_run, flags) {
        Ok(Reply::Simple(text)) if text == b"OK" => return Verdict::Allowed,
        Ok(reply) => reply.text().map(str::to_owned).unwrap_or_default(),
        // Of a subcommand; the number is right for what it belongs to.
        Err(CallError::Answered(text)) if text.contains("wrong number of arguments") => {
            return Verdict::Denied(Denial { text, logged: None });
        }
        Err(_) => String::new(),
    };
    // 7.0 has other words than later servers, which tell administrators more than clients.
    let newer = at_least(7, 2);
    let (of_command, of_channel) = (told.contains("permissions to run"), told.contains("channel"));
    let reason = match () {
        () if told.contains("access database") => "No permissions to access the database",
        () if of_command && newer => &told,
        () if of_command => "run this command or subcommand",
        () if of_channel && newer => "No permissions to access a channel",
        () if of_channel => "access at least one of the channels",
        () if newer => "No permissions to access a key",
        () => "access at least one of the keys",
    };
    let name = told.split('\'').nth(1).unwrap_or_default();
    let text = no_permission(reason, name);
    // Keys that are refused the server has noted: it knows them of the internal command, too.
    let logged = match () {
        () if of_command => Some(raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_CMD),
        () if of_channel => Some(raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_CHANNEL),
        () => None,
    };
    let logged = logged.map(|reason| (reason, name.to_owned()));
    Verdict::Denied(Denial { text, logged })
}
