//! Which internal command may stand in front of a client's one.
//!
//! The server asks whether the caller may run the internal command. Restricted users may not, although they may run the
//! command behind. While the default user needs no password there is no client that has not proved who it is; then a
//! form of the internal command is used for which the server does not ask. The wrapper asks for the command behind.
//!
//! Otherwise the form is used for which it asks. What must not fail for that (sync handlers, links) is not taken over
//! then, unless all users may run the internal commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::super::limits;
use crate::identity;
use crate::redis::{
    call::{self, Flags, Reply, call},
    context::{server_flags, server_info},
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
/// A transaction that may change rights is under way, or was until the next command of a client, or a change of rights is
/// held up: what is seen meanwhile holds until that command.
static IN_DOUBT: AtomicBool = AtomicBool::new(false);
/// Commands that change rights came while writes were paused.
static HELD_UP: Mutex<Option<HeldUp>> = Mutex::new(None);
/// Who may have queued commands that change rights in a transaction.
static QUEUED: Mutex<Queued> = Mutex::new(Queued {
    by: BTreeSet::new(),
    anybody: false,
    looked: None,
});

/// How long they are held up.
#[derive(Clone, Copy)]
enum HeldUp {
    /// The pause was not over at the last look.
    Paused,
    /// It was.
    Over {
        /// When that was seen first.
        since: Instant,
        /// When that was seen last.
        last: Instant,
        /// In which turn of the event loop.
        turn: u64,
    },
}

/// Clients that may have queued commands.
struct Queued {
    by: BTreeSet<u64>,
    /// Clients that are not known.
    anybody: bool,
    /// When the clients were looked at last.
    looked: Option<Instant>,
}

impl Queued {
    fn add(&mut self, client: Option<u64>) {
        match client {
            Some(id) if self.by.len() < limits::QUEUERS => {
                self.by.insert(id);
            }
            _ => self.anybody = true,
        }
    }

    /// The client's transaction may have such a command; it is over after that.
    fn take(&mut self, client: Option<u64>) -> bool {
        client.is_some_and(|id| self.by.remove(&id)) || self.anybody || (client.is_none() && !self.by.is_empty())
    }
}

/// A command that changes who may do what is over.
pub fn rights_changed() {
    KNOWN.store(UNKNOWN, Ordering::Release);
}

/// A command passes that changes who may do what: now, or in a transaction.
#[cold]
pub fn rights_will_change(guard: &ServerLock, client: Option<u64>) {
    KNOWN.store(UNKNOWN, Ordering::Release);
    if !is_within(guard) {
        QUEUED.lock().add(client);
        mind_pause(guard);
    }
}

/// Commands were not seen until now.
pub fn begin(guard: &ServerLock) {
    KNOWN.store(UNKNOWN, Ordering::Release);
    // Nor transactions, of which one may run now.
    IN_DOUBT.store(true, Ordering::Release);
    QUEUED.lock().anybody = true;
    mind_pause(guard);
}

/// A transaction is run.
pub fn transaction_runs(guard: &ServerLock, client: Option<u64>) {
    if QUEUED.lock().take(client) {
        IN_DOUBT.store(true, Ordering::Release);
        mind_pause(guard);
    }
}

/// Called now and then. As long as it is not known who may have queued such commands every transaction counts; where nobody
/// is in one, that ends.
pub fn look_at_clients(guard: &ServerLock) {
    {
        let mut queued = QUEUED.lock();
        let is_new = queued.looked.is_none_or(|last| last.elapsed() >= limits::CLIENTS_EVERY);
        if !(queued.anybody && is_new) {
            return;
        }
        queued.looked = Some(Instant::now());
    }
    if server_info(guard, "clients", "connected_clients").is_none_or(|count| count > limits::CLIENTS_LISTED) {
        return;
    }
    let Ok(list) = call(guard, &["CLIENT", "LIST"], Flags::default()) else {
        return;
    };
    let is_in_none = |client: &str| client.split(' ').any(|field| field == "multi=-1");
    if list.text().is_some_and(|list| list.lines().all(is_in_none)) {
        let mut queued = QUEUED.lock();
        queued.by.clear();
        queued.anybody = false;
    }
}

/// What passes is part of what code or a script does.
fn is_within(guard: &ServerLock) -> bool {
    call::in_nested_call() || server_flags(guard).lua
}

/// What passes may be held up until the end of a pause, and newer servers do not show it to the filter again then.
fn mind_pause(guard: &ServerLock) {
    if replicate::was_ever_paused(guard) {
        *HELD_UP.lock() = Some(HeldUp::Paused);
        IN_DOUBT.store(true, Ordering::Release);
    }
}

/// A command passes: if no code and no script runs it, then all those before it are over, but for those that are held up.
#[inline]
pub fn settle(guard: &ServerLock) {
    if IN_DOUBT.load(Ordering::Acquire) && !is_within(guard) {
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
    let (now, turn) = (Instant::now(), event_loop::turn_number(guard));
    *held_up = match *held_up {
        _ if replicate::is_paused(guard) => Some(HeldUp::Paused),
        // They run at the end of the turn in which the server sees that the pause is over. There may have been another one
        // since the last look, if that was long ago.
        Some(HeldUp::Over { since, last, turn: at }) if now - last < limits::PAUSE_MISSED => {
            let is_over = now - since >= limits::PAUSE_IS_OVER && turn > at;
            (!is_over).then_some(HeldUp::Over { since, last: now, turn })
        }
        _ => Some(HeldUp::Over {
            since: now,
            last: now,
            turn,
        }),
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
    KNOWN.store(number, Ordering::Release);
    access
}

/// The server knows the commands that change rights, or may do so, by these names: under others they would not be recognised.
fn are_changes_seen(guard: &ServerLock) -> bool {
    static SEEN: OnceLock<bool> = OnceLock::new();
    let known = |name: &str| {
        let reply = call(guard, &["COMMAND", "INFO", name], Flags::default());
        reply.is_ok_and(|reply| {
            reply
                .array()
                .is_some_and(|list| list.iter().any(|one| one.array().is_some()))
        })
    };
    *SEEN.get_or_init(|| ["acl", "config", "exec"].into_iter().all(known))
}

/// The default user is on and needs no password, and no change of that can go unseen.
fn is_open(guard: &ServerLock) -> bool {
    if !are_changes_seen(guard) {
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

/// Users as ACL LIST shows them, and whether they may run the internal commands.
static VERDICTS: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());

/// Every user may run the internal commands. Only users that have changed are asked about.
fn all_may(guard: &ServerLock) -> bool {
    let Ok(reply) = call(guard, &["ACL", "LIST"], Flags::default()) else {
        return false;
    };
    let lines = reply.array().unwrap_or_default();
    let users: Vec<&str> = lines.iter().filter_map(Reply::text).collect();
    // Some may have names that are no UTF-8.
    if users.len() < lines.len() || users.len() > limits::USERS_LOOKED_AT {
        return false;
    }
    // Not locked while the server is asked.
    let known = std::mem::take(&mut *VERDICTS.lock());
    let verdicts = users.iter().map(|user| {
        let verdict = known.get(*user).copied();
        ((*user).to_owned(), verdict.unwrap_or_else(|| may(guard, user)))
    });
    let verdicts: BTreeMap<String, bool> = verdicts.collect();
    let all = verdicts.values().all(|may| *may);
    *VERDICTS.lock() = verdicts;
    all
}

/// The user of this line, `user <name> <rules>`, may run the internal commands.
fn may(guard: &ServerLock, line: &str) -> bool {
    let Some(name) = line.split(' ').nth(1) else {
        return false;
    };
    let runs = |command: &str| {
        let reply = call(guard, &["ACL", "DRYRUN", name, command, "x"], Flags::default());
        matches!(reply, Ok(Reply::Simple(text)) if text == b"OK")
    };
    CHECKED.iter().all(|command| runs(command)) && identity::selectors_allow_all(guard, name)
}

/// Whether `acl` or `config` with these arguments may change who may do what.
pub fn changes_rights<'a>(count: usize, arg: impl Fn(usize) -> &'a [u8]) -> bool {
    const HARMLESS: [&str; 10] = [
        "whoami", "cat", "genpass", "list", "users", "getuser", "log", "dryrun", "help", "save",
    ];
    if arg(0).eq_ignore_ascii_case(b"config") {
        let mut names = (2..count).step_by(2);
        return arg(1).eq_ignore_ascii_case(b"set") && names.any(|at| arg(at).eq_ignore_ascii_case(b"requirepass"));
    }
    count > 1 && !call::is_one_of(&HARMLESS, arg(1))
}
