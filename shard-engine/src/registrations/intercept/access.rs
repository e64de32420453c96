//! Which internal command may stand in front of a client's one.
//!
//! The server asks whether the caller may run the internal command. Restricted users may not, although they may run the
//! command behind. While the default user needs no password there is no client that has not proved who it is; then a
//! form of the internal command is used for which the server does not ask. The wrapper asks for the command behind.
//!
//! Otherwise the form is used for which it asks. What must not fail for that (sync handlers, links) is not taken over
//! then, unless all users may run the internal commands.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
    time::Instant,
};

use parking_lot::Mutex;

use super::super::limits;
use crate::identity;
use crate::redis::{
    call::{self, Flags, Reply, call},
    context::server_flags,
    event_loop, filter,
    front::CHECKED,
    lock::ServerLock,
    replicate,
};

/// What is known of the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// There is no client that has not proved who it is.
    Open,
    /// There may be, but whoever has may run the internal commands.
    Granted,
    /// Some users may not run them.
    Restricted,
}

const UNKNOWN: u8 = 0;

static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
/// A command that changes rights, or a transaction that may have one, is under way, or was until the next command of a
/// client: what is seen meanwhile does not hold for longer.
static IN_DOUBT: AtomicBool = AtomicBool::new(false);
/// Commands that change rights came while writes were paused.
static HELD_UP: Mutex<Option<HeldUp>> = Mutex::new(None);

/// How long they are held up.
#[derive(Clone, Copy)]
enum HeldUp {
    /// The pause was not over at the last look.
    Paused,
    /// It was, for the first time, at this moment and in this turn of the event loop.
    Since(Instant, u64),
}

/// Commands that change rights may have been queued in a transaction.
static MAY_BE_QUEUED: AtomicBool = AtomicBool::new(false);

/// A command that changes who may do what is over, or has been queued in a transaction.
pub fn rights_change() {
    KNOWN.store(UNKNOWN, Ordering::Release);
    IN_DOUBT.store(true, Ordering::Release);
    MAY_BE_QUEUED.store(true, Ordering::Release);
}

/// A command passes that changes who may do what.
#[cold]
pub fn rights_will_change(guard: &ServerLock) {
    rights_change();
    mind_pause(guard);
}

/// A transaction is run.
pub fn transaction_runs(guard: &ServerLock) {
    if MAY_BE_QUEUED.load(Ordering::Acquire) {
        KNOWN.store(UNKNOWN, Ordering::Release);
        IN_DOUBT.store(true, Ordering::Release);
        mind_pause(guard);
    }
}

/// What passes may be held up until the end of a pause, and newer servers do not show it to the filter again then.
fn mind_pause(guard: &ServerLock) {
    if replicate::was_ever_paused(guard) {
        *HELD_UP.lock() = Some(HeldUp::Paused);
    }
}

/// A command passes: if no code and no script runs it, then all those before it are over, but for those that are held up.
#[inline]
pub fn settle(guard: &ServerLock) {
    if IN_DOUBT.load(Ordering::Acquire) && !call::in_nested_call() && !server_flags(guard).lua {
        KNOWN.store(UNKNOWN, Ordering::Release);
        IN_DOUBT.store(is_held_up(guard), Ordering::Release);
    }
}

/// Commands that change rights may still be held up by a pause.
#[cold]
fn is_held_up(guard: &ServerLock) -> bool {
    let mut held_up = HELD_UP.lock();
    if held_up.is_none() {
        return false;
    }
    let turn = event_loop::turn_number(guard);
    *held_up = match *held_up {
        _ if replicate::is_paused(guard) => Some(HeldUp::Paused),
        // They run at the end of the turn in which the server sees that the pause is over.
        Some(HeldUp::Since(start, first)) if turn > first + 1 && start.elapsed() >= limits::PAUSE_IS_OVER => None,
        Some(HeldUp::Paused) => Some(HeldUp::Since(Instant::now(), turn)),
        since => since,
    };
    held_up.is_some()
}

/// What holds now. In the command filter, where the lock is held.
#[inline]
pub fn now() -> Access {
    match KNOWN.load(Ordering::Acquire) {
        1 => Access::Open,
        2 => Access::Granted,
        3 => Access::Restricted,
        _ => filter::in_callback(look),
    }
}

#[cold]
fn look(guard: &ServerLock) -> Access {
    let (access, number) = match () {
        () if is_open(guard) => (Access::Open, 1),
        () if all_may(guard) => (Access::Granted, 2),
        () => (Access::Restricted, 3),
    };
    if !IN_DOUBT.load(Ordering::Acquire) {
        KNOWN.store(number, Ordering::Release);
    }
    access
}

/// The default user is on and needs no password, and no change of that can go unseen.
fn is_open(guard: &ServerLock) -> bool {
    // Under another name such a command would not be recognised.
    let known = |name: &str| {
        let reply = call(guard, &["COMMAND", "INFO", name], Flags::default());
        reply.is_ok_and(|reply| {
            reply
                .array()
                .is_some_and(|list| list.iter().any(|one| one.array().is_some()))
        })
    };
    if !(known("acl") && known("config")) {
        return false;
    }
    let Ok(reply) = call(guard, &["ACL", "GETUSER", "default"], Flags::default()) else {
        return false;
    };
    let pairs = reply.pairs();
    let flags = pairs.iter().find(|(key, _)| key.text() == Some("flags"));
    let flags: Vec<&str> = flags
        .and_then(|(_, value)| value.array())
        .into_iter()
        .flatten()
        .filter_map(Reply::text)
        .collect();
    flags.contains(&"on") && flags.contains(&"nopass")
}

/// Every user may run the internal commands.
fn all_may(guard: &ServerLock) -> bool {
    let Ok(reply) = call(guard, &["ACL", "USERS"], Flags::default()) else {
        return false;
    };
    let users: Vec<&str> = reply.array().into_iter().flatten().filter_map(Reply::text).collect();
    let may = |user: &str, command: &str| {
        let reply = call(guard, &["ACL", "DRYRUN", user, command, "x"], Flags::default());
        matches!(reply, Ok(Reply::Simple(text)) if text == b"OK")
    };
    users.len() <= limits::USERS_LOOKED_AT
        && users
            .iter()
            .all(|user| CHECKED.iter().all(|command| may(user, command)) && identity::selectors_allow_all(guard, user))
}

/// Commands that are counted as changes of rights unless they are known to be none.
pub fn changes_rights(count: usize, part: &[u8]) -> bool {
    const HARMLESS: [&str; 12] = [
        "get",
        "resetstat",
        "whoami",
        "cat",
        "genpass",
        "list",
        "users",
        "getuser",
        "log",
        "dryrun",
        "help",
        "save",
    ];
    count > 1 && !call::is_one_of(&HARMLESS, part)
}
