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
    redis::{
        call::{Flags, Reply, call},
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
pub fn enter(user: Option<Arc<str>>) -> Identity {
    CURRENT.with_borrow_mut(|who| {
        who.nesting += 1;
        Identity(std::mem::replace(&mut who.user, user))
    })
}

impl Drop for Identity {
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

/// The user may do everything.
pub fn is_unlimited(guard: &ServerLock, name: &str) -> bool {
    let all = [("commands", "+@all"), ("keys", "~*"), ("channels", "&*")];
    Rules::of(guard, name).is_some_and(|rules| {
        all.iter().all(|(kind, all)| rules.get(kind).as_deref() == Some(*all))
            // Only some servers know rights for databases.
            && rules.get("databases").is_none_or(|databases| databases == "alldbs")
    })
}

/// Refuses a native reader to a user who could not read the same by commands.
pub fn check_reader(user: &str, reader: &Reader) -> Result<(), String> {
    let guard = lock::lock();
    let dry_run = |command: &[&[u8]]| dry_run(&guard, user, command);
    let refused = |why: String| format!("NOPERM user '{user}' may not read what the reader reads: {why}");
    match reader {
        Reader::Keys(args) if args.no_scan => dry_run(&[b"GET", &args.pattern]),
        Reader::KeysOnly {
            no_scan: true, pattern, ..
        } => dry_run(&[b"EXISTS", pattern]),
        Reader::Stream { key, .. } => dry_run(&[b"XRANGE", key, b"-", b"+"]),
        Reader::Keys(_) | Reader::KeysOnly { .. } => dry_run(&[b"SCAN", b"0"]).and_then(|()| {
            let all = |keys: &str| {
                keys.split_whitespace()
                    .any(|rule| matches!(rule, "~*" | "%R~*" | "%RW~*"))
            };
            match Rules::of(&guard, user).and_then(|rules| rules.get("keys")) {
                Some(keys) if all(&keys) => Ok(()),
                _ => Err("a walk over all keys needs the right to read all keys (~* or %R~*)".to_owned()),
            }
        }),
        Reader::Python { .. } | Reader::ShardsId | Reader::Command => Ok(()),
    }
    .map_err(refused)
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

/// Refuses a stream to which the user could not add dead letters.
pub fn check_dead_letters(guard: &ServerLock, user: &str, stream: &[u8]) -> Result<(), String> {
    dry_run(guard, user, &[b"XADD", stream, b"*", b"stream", b""])
        .map_err(|why| format!("NOPERM user '{user}' may not write the stream that deadLetter names: {why}"))
}

/// Whether the user may run a command.
fn dry_run(guard: &ServerLock, user: &str, command: &[&[u8]]) -> Result<(), String> {
    let mut args: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", user.as_bytes()];
    args.extend(command);
    match call(guard, &args, Flags::default()) {
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
