//! Whose rights running code has: those of the user who submitted it.
//!
//! The name travels with the plan. On a thread that runs code of an execution it is the thread's identity, which
//! `execute()` takes. Threads that a script starts itself have none and run with all rights, as SECURITY.md says.

use std::{any::Any, cell::RefCell, sync::Arc};

use oxigears_coordinator::{
    codec::RecordBatch,
    plan::Reader,
    stage::{RunState, StageRunner, StageSink, Waker},
};
use oxigears_python_api::Acting;

use crate::{
    readers::values::has_value,
    redis::{
        call::{CallError, Flags, Reply, call},
        key::{Key, Kind},
        lock::{self, ServerLock},
        register::Call,
    },
    registrations::depth,
};

/// Whose code a thread runs.
struct Who {
    user: Option<Arc<str>>,
    /// How many functions called each other up to it.
    nesting: u32,
}

thread_local! {
    static CURRENT: RefCell<Who> = const { RefCell::new(Who { user: None, nesting: 0 }) };
}

/// The thread's identity until the guard goes.
pub struct Identity(Option<Arc<str>>);

/// Gives this thread an identity; `None`: all rights.
#[inline]
pub fn enter(user: Option<Arc<str>>) -> Identity {
    CURRENT.with_borrow_mut(|who| {
        who.nesting += 1;
        Identity(std::mem::replace(&mut who.user, user))
    })
}

impl Drop for Identity {
    #[inline]
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|who| {
            who.nesting -= 1;
            who.user = self.0.take();
        });
    }
}

/// How many functions with an identity of their own called each other up to the one that this thread runs: a handler
/// that a command of a function fires is one more.
pub fn nesting() -> u32 {
    CURRENT.with_borrow(|who| who.nesting)
}

/// What code takes along to another thread.
struct Taken {
    user: Option<Arc<str>>,
    depth: u32,
}

/// Identity and depth of this thread, for code that goes on elsewhere; `None`: all rights, no event.
pub fn acting() -> Acting {
    taken(current(), depth::current())
}

/// Gives this thread the identity and the depth that were taken along; gives those that it had.
pub fn act_as(acting: Acting) -> Acting {
    let all = Taken { user: None, depth: 0 };
    let given = acting.as_ref().and_then(|acting| acting.downcast_ref()).unwrap_or(&all);
    let before = CURRENT.with_borrow_mut(|who| std::mem::replace(&mut who.user, given.user.clone()));
    taken(before, depth::replace(given.depth))
}

fn taken(user: Option<Arc<str>>, depth: u32) -> Acting {
    (user.is_some() || depth > 0).then(|| Arc::new(Taken { user, depth }) as Arc<dyn Any + Send + Sync>)
}

/// The thread's identity.
pub fn current() -> Option<Arc<str>> {
    CURRENT.with_borrow(|who| who.user.clone())
}

/// The user of a client, unless it is the default user with all rights.
pub fn of_caller(client: &Call) -> Option<Arc<str>> {
    let name = client.user_name()?;
    let unlimited = name == "default" && is_unlimited(client.guard(), &name);
    (!unlimited).then(|| name.into())
}

/// What ACL GETUSER says of a user.
struct Rules(Reply);

impl Rules {
    fn of(guard: &ServerLock, name: &str) -> Option<Rules> {
        call(guard, &["ACL", "GETUSER", name], Flags::default()).ok().map(Rules)
    }

    /// The rules of one kind; `None` if the server has no such kind.
    fn get(&self, kind: &str) -> Option<String> {
        let pairs = self.0.pairs();
        let (_, value) = pairs.iter().find(|(key, _)| key.text() == Some(kind))?;
        value.text().map(str::to_owned)
    }
}

impl Rules {
    /// The rules of one kind that each selector has.
    fn of_selectors(&self, kind: &str) -> Vec<String> {
        let pairs = self.0.pairs();
        let selectors = pairs.iter().find(|(key, _)| key.text() == Some("selectors"));
        let selectors = selectors.and_then(|(_, list)| list.array()).unwrap_or_default();
        let rules = |selector: &Reply| Rules(selector.clone()).get(kind).unwrap_or_default();
        selectors.iter().map(rules).collect()
    }

    /// These, or those of one of the selectors, are for all keys.
    fn give_all_keys(&self) -> bool {
        let all = |keys: &String| {
            keys.split_whitespace()
                .any(|rule| matches!(rule, "~*" | "%R~*" | "%RW~*"))
        };
        self.get("keys").iter().any(all) || self.of_selectors("keys").iter().any(all)
    }
}

/// The user has no selectors, or all commands with whatever keys the selectors and the rules beside them give.
pub fn selectors_allow_all(guard: &ServerLock, name: &str) -> bool {
    let allows_all = |commands: &String| commands == "+@all";
    Rules::of(guard, name).is_some_and(|rules| {
        let of_selectors = rules.of_selectors("commands");
        of_selectors.is_empty() || rules.get("commands").iter().chain(&of_selectors).all(allows_all)
    })
}

/// The user may do everything.
pub fn is_unlimited(guard: &ServerLock, name: &str) -> bool {
    let all = [("commands", "+@all"), ("keys", "~*"), ("channels", "&*")];
    Rules::of(guard, name).is_some_and(|rules| {
        all.iter().all(|(kind, all)| rules.get(kind).as_deref() == Some(*all))
            // Only some servers know rights for databases.
            && rules.get("databases").is_none_or(|databases| databases == "alldbs")
    })
}

/// Refuses a native reader to a user who could not read the same by commands; see `denied_values` for what it reads.
pub fn check_reader(user: &str, reader: &Reader) -> Result<(), String> {
    let guard = lock::lock();
    let dry_run = |command: &[&[u8]]| dry_run(&guard, user, command);
    match reader {
        Reader::Keys(args) if args.no_scan => may_look_at(&guard, user, &args.pattern),
        Reader::KeysOnly {
            no_scan: true, pattern, ..
        } => dry_run(&[b"EXISTS", pattern]),
        Reader::Stream { key, .. } => dry_run(&[b"XRANGE", key, b"-", b"+"]),
        Reader::Keys(_) | Reader::KeysOnly { .. } => dry_run(&[b"SCAN", b"0"]).and_then(|()| {
            match Rules::of(&guard, user).is_some_and(|rules| rules.give_all_keys()) {
                true => Ok(()),
                false => Err("a walk over all keys needs the right to read all keys (~* or %R~*)".to_owned()),
            }
        }),
        Reader::Python { .. } | Reader::ShardsId | Reader::Command => Ok(()),
    }
    .map_err(|why| refused(user, &why))
}

fn refused(user: &str, why: &str) -> String {
    format!("NOPERM user '{user}' may not read what the reader reads: {why}")
}

/// Types of which a KeysReader may not give values to a user, who could not read them by commands, and why.
pub fn denied_values(user: &str, reader: &Reader) -> Vec<(Kind, String)> {
    let Reader::Keys(args) = reader else { return Vec::new() };
    let guard = lock::lock();
    let keys: &[&[u8]] = if args.no_scan { &[&args.pattern] } else { &ANY_KEY };
    let denied = |kind: &Kind| {
        let mut refusals = keys.iter().map(|key| dry_run(&guard, user, &reading(*kind, key)).err());
        refusals.find_map(|refusal| refusal)
    };
    let values = VALUES
        .iter()
        .filter(|kind| args.read_value && has_value(**kind, args.all_types));
    values
        .filter_map(|kind| Some((*kind, refused(user, &denied(kind)?))))
        .collect()
}

/// Types that may have values.
const VALUES: [Kind; 6] = [
    Kind::String,
    Kind::Hash,
    Kind::List,
    Kind::Set,
    Kind::SortedSet,
    Kind::Stream,
];
/// Only patterns that all keys fit are for the first one, but for the one that only it fits.
const ANY_KEY: [&[u8]; 2] = [b"", b"\x01oxigears: any key\x02"];

/// A command that reads what a KeysReader reads of a key of this type.
fn reading(kind: Kind, key: &[u8]) -> Vec<&[u8]> {
    let words: &[&[u8]] = match kind {
        Kind::String => &[b"GET"],
        Kind::Hash => &[b"HGETALL"],
        Kind::List => &[b"LRANGE", b"0", b"-1"],
        Kind::Set => &[b"SMEMBERS"],
        Kind::SortedSet => &[b"ZRANGE", b"0", b"-1"],
        Kind::Stream => &[b"XRANGE", b"-", b"+"],
        Kind::Empty | Kind::Module | Kind::Unknown => &[b"TYPE"],
    };
    [&words[..1], &[key], &words[1..]].concat()
}

/// Refuses the record of a key to a user who could not read the same by a command.
pub fn check_record(
    guard: &ServerLock,
    user: &str,
    key: &[u8],
    read_value: bool,
    all_types: bool,
) -> Result<(), String> {
    let kind = Key::open(guard, key).filter(|_| read_value).map(|key| key.kind());
    match kind.filter(|kind| has_value(*kind, all_types)) {
        Some(kind) => dry_run(guard, user, &reading(kind, key)),
        None => may_look_at(guard, user, key),
    }
    .map_err(|why| refused(user, &why))
}

/// The user may learn whether the key is there, and of which type, by some command.
fn may_look_at(guard: &ServerLock, user: &str, key: &[u8]) -> Result<(), String> {
    dry_run(guard, user, &[b"TYPE", key]).or_else(|why| {
        let by_another = [b"EXISTS".as_slice(), b"GET"]
            .iter()
            .any(|name| dry_run(guard, user, &[name, key]).is_ok());
        by_another.then_some(()).ok_or(why)
    })
}

/// Refuses a key that the user could not write by SET.
pub fn check_write(guard: &ServerLock, user: &str, key: &[u8]) -> Result<(), String> {
    dry_run(guard, user, &[b"SET", key, b""])
        .map_err(|why| format!("NOPERM user '{user}' may not write the key: {why}"))
}

/// Refuses a stream that the user could not trim.
pub fn check_trim(guard: &ServerLock, user: &str, stream: &[u8]) -> Result<(), String> {
    dry_run(guard, user, &[b"XTRIM", stream, b"MINID", b"0-1"]).map_err(|why| {
        format!("NOPERM user '{user}' may not trim the stream, which is done unless trimStream is False: {why}")
    })
}

/// Refuses a stream that the user could not read as a member of a group that others know.
pub fn check_group(guard: &ServerLock, user: &str, stream: &[u8], group: &[u8]) -> Result<(), String> {
    let read: [&[u8]; 7] = [b"XREADGROUP", b"GROUP", group, b"oxigears", b"STREAMS", stream, b">"];
    let acknowledge: [&[u8]; 4] = [b"XACK", stream, group, b"0-1"];
    dry_run(guard, user, &read)
        .and_then(|()| dry_run(guard, user, &acknowledge))
        .map_err(|why| format!("NOPERM user '{user}' may not read the stream as a member of a group: {why}"))
}

/// Refuses a stream to which the user could not add dead letters.
pub fn check_dead_letters(guard: &ServerLock, user: &str, stream: &[u8]) -> Result<(), String> {
    dry_run(guard, user, &[b"XADD", stream, b"*", b"stream", b""])
        .map_err(|why| format!("NOPERM user '{user}' may not write the stream that deadLetter names: {why}"))
}

/// Refuses a command that the user could not run in a database.
pub fn check_command<A: AsRef<[u8]>>(guard: &ServerLock, user: &str, args: &[A], database: i32) -> Result<(), String> {
    let args: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
    let refused = |reason| CallError::NotAllowed {
        user: user.to_owned(),
        command: String::from_utf8_lossy(args[0]).into_owned(),
        reason,
    };
    dry_run_in(guard, user, &args, database).map_err(|reason| refused(reason).to_string())
}

/// The command consists of subcommands.
pub fn has_subcommands(guard: &ServerLock, command: &str) -> bool {
    let told = call(guard, &["COMMAND", "INFO", command], Flags::default());
    let subcommands = |command: &Reply| command.array()?.get(9)?.array().map(|list| !list.is_empty());
    told.is_ok_and(|told| told.array().and_then(|list| subcommands(list.first()?)) == Some(true))
}

/// Most arguments that a command needs before the server says whether a user may run it.
const ARGUMENTS_TRIED: usize = 8;

/// Refuses who could not run the command of these words, whatever its arguments are.
pub fn check_permission(guard: &ServerLock, user: &str, words: &[&str]) -> Result<(), String> {
    let mut args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    loop {
        match dry_run(guard, user, &args) {
            Err(why) if why.contains("wrong number of arguments") && args.len() < words.len() + ARGUMENTS_TRIED => {
                args.push(b"1");
            }
            // The command is allowed, but not with this key or channel.
            Err(why) if why.contains(" permissions to access ") => return Ok(()),
            outcome => return outcome,
        }
    }
}

/// Whether the user may run a command.
fn dry_run(guard: &ServerLock, user: &str, command: &[&[u8]]) -> Result<(), String> {
    dry_run_in(guard, user, command, 0)
}

/// The same in a database, where users may have rules for them.
fn dry_run_in(guard: &ServerLock, user: &str, command: &[&[u8]], database: i32) -> Result<(), String> {
    let mut args: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", user.as_bytes()];
    args.extend(command);
    let flags = Flags {
        database,
        ..Flags::default()
    };
    match call(guard, &args, flags) {
        Ok(Reply::Simple(text)) if text == b"OK" => Ok(()),
        Ok(reply) => Err(reply.text().unwrap_or("no permission").to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// A runner whose steps have the rights of a user.
pub struct AsUser {
    /// The runner.
    pub runner: Box<dyn StageRunner>,
    /// The user.
    pub user: Arc<str>,
}

impl StageRunner for AsUser {
    fn feed(&mut self, batch: RecordBatch) {
        self.runner.feed(batch);
    }

    fn close(&mut self) {
        self.runner.close();
    }

    fn run(&mut self, sink: &mut dyn StageSink) -> RunState {
        let _identity = enter(Some(self.user.clone()));
        self.runner.run(sink)
    }

    fn is_pending(&self) -> bool {
        self.runner.is_pending()
    }

    fn set_waker(&mut self, waker: Waker) {
        self.runner.set_waker(waker);
    }

    fn satisfied(&self) -> bool {
        self.runner.satisfied()
    }

    fn read_ns(&self) -> u64 {
        self.runner.read_ns()
    }

    fn durations_ns(&self) -> Vec<u64> {
        self.runner.durations_ns()
    }
}
