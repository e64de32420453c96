//! Commands of functions by which the server writes its files. What was written before in the same hold of the lock goes to
//! replicas and the log only when that ends: it would be in the file and once more behind it. So there the files are written
//! a moment later, as the server itself does it in a transaction.

use std::time::Duration;

use super::{
    call::{CallError, Flags, Reply, call},
    lock::{self, ServerLock},
    log, timer,
};

/// The command, if it has to wait, and what it answers then.
fn later<A: AsRef<[u8]>>(args: &[A]) -> Option<(&'static [&'static str], &'static str)> {
    let is = |at: usize, word: &str| args[at].as_ref().eq_ignore_ascii_case(word.as_bytes());
    match args.len() {
        1 if is(0, "bgrewriteaof") => Some((&["BGREWRITEAOF"], "Background append only file rewriting scheduled")),
        1 if is(0, "bgsave") => Some((&["BGSAVE", "SCHEDULE"], "Background saving scheduled")),
        2 if is(0, "bgsave") && is(1, "schedule") => Some((&["BGSAVE", "SCHEDULE"], "Background saving scheduled")),
        _ => None,
    }
}

/// Does what a function's command asks for a moment later, if something may be on its way that the file must not hold.
pub(super) fn postpone<A: AsRef<[u8]>>(
    guard: &ServerLock,
    args: &[A],
    flags: Flags<'_>,
) -> Option<Result<Reply, CallError>> {
    if !flags.replicate || lock::is_hold_of_its_own() {
        return None;
    }
    if args.len() == 1 && args[0].as_ref().eq_ignore_ascii_case(b"save") {
        let text =
            "ERR command 'SAVE' would write half of what this code does to the file, functions can not call it here";
        return Some(Err(CallError::Answered(text.to_owned())));
    }
    let (command, answer) = later(args)?;
    if let Some(refused) = flags.user.and_then(|user| refusal(guard, user, command)) {
        return Some(Err(refused));
    }
    timer::once(guard, Duration::ZERO, move |guard| {
        if let Err(why) = call(guard, command, Flags::default()) {
            log::warning(&format!("{}, which a function asked for: {why}", command[0]));
        }
    });
    Some(Ok(Reply::Simple(answer.into())))
}

fn refusal(guard: &ServerLock, user: &str, command: &[&str]) -> Option<CallError> {
    let dry_run = [&["ACL", "DRYRUN", user], command].concat();
    match call(guard, &dry_run, Flags::default()) {
        Ok(reply) if reply.text() == Some("OK") => None,
        Ok(reply) => Some(CallError::NotAllowed {
            user: user.to_owned(),
            command: command[0].to_owned(),
            reason: reply.text().unwrap_or_default().to_owned(),
        }),
        Err(_) => Some(CallError::NoSuchUser(user.to_owned())),
    }
}
