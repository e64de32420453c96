//! KeysReader registrations: from an event of a key to what runs for it.
//!
//! * `index`: which registrations an event concerns
//! * `fire`: one registration and one event; `sync`: handlers that run right after the command
//! * `queue`, `reading`, `worker`: events that wait for a worker thread of this shard, their records, and what it does
//! * `spread`: executions on all shards of a cluster; `held`: what the server causes while the cluster is down
//! * `record`: what scripts see of an event; `fresh`: a value that is at hand; `link`: the client's command that caused it
//! * `names`: names of events, each kept once
//!
//! Runs nothing of the user's inside a notification of the server.

pub mod fire;
pub mod fresh;
mod held;
pub mod index;
pub mod link;
mod names;
pub mod queue;
mod reading;
pub mod record;
mod spread;
pub mod sync;
mod worker;

use std::{
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{active::Core, intercept::facts, is_master, registrations};
use crate::module::MODULE_NAME;
use crate::redis::{
    blocked,
    call::{Flags, Reply, call},
    context::server_flags,
    event_loop,
    lock::ServerLock,
    log,
    notify::{self, Classes, Start, Told},
    replicate,
};

/// What stream registrations do with an event: its name, the key, the number of the database.
pub type StreamListener = fn(&ServerLock, &[u8], &[u8], i32);

static STREAMS: OnceLock<StreamListener> = OnceLock::new();
static HAS_STREAMS: AtomicBool = AtomicBool::new(false);

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// At load.
pub fn start() {
    notify::listen(told);
}

/// A turn of the event loop ends.
pub fn turn_ends(guard: &ServerLock) {
    reading::read_ahead(guard);
}

/// Called now and then.
pub fn look(guard: &ServerLock) {
    spread::look(guard);
}

/// A registration is gone, and what it has begun goes on.
pub fn comes_first(core: &Core) {
    spread::comes_first(core);
}

/// Stream registrations want to hear of all events, before others do. At load.
pub fn set_stream_listener(listener: StreamListener) {
    let _ = STREAMS.set(listener);
}

/// What is active has changed: the server tells of events of keys with these patterns, others end at the gate.
pub fn activated(guard: &ServerLock, patterns: &[Bytes], (streams, hooks): (bool, bool)) {
    HAS_STREAMS.store(streams, Ordering::Release);
    let wanted = index::wanted(guard);
    if wanted.any {
        // A server that can not tell of its turns leaves all to the workers.
        event_loop::listen(guard);
    }
    let mut classes = Vec::new();
    if streams || wanted.any {
        classes.push(Classes::Ordinary);
    }
    if wanted.beside {
        classes.push(Classes::Beside);
    }
    // Events of strings and the like, whose telling costs each SET something, wait for the first command that may raise
    // one for a registration (`intercept`), if all commands are looked at. Those that hooks hold back are so too early.
    if !(classes.is_empty() || notify::is_told(Classes::Values)) && (hooks || !are_writes_seen(guard)) {
        classes.push(Classes::Values);
    }
    let starts: Vec<Start> = patterns.iter().map(Start::of_pattern).collect();
    notify::set_gate(guard, &starts);
    for class in classes {
        if let Err(why) = notify::subscribe(guard, class) {
            log::warning(&format!("registrations of keys and streams can not fire: {why}"));
        }
    }
}

/// Whatever changes a key from now on passes the command filter first. Clients that wait for a key, or for the end of a
/// pause, have passed already, so have the commands of a transaction that runs, and other modules may write without a
/// command.
fn are_writes_seen(guard: &ServerLock) -> bool {
    let are_commands_known = !facts::all().is_empty();
    let nobody_waits = !replicate::was_ever_paused(guard) && !blocked::are_others(guard);
    are_commands_known && nobody_waits && !server_flags(guard).multi && has_no_other_modules(guard)
}

/// Modules that come with servers write in commands only.
fn has_no_other_modules(guard: &ServerLock) -> bool {
    const HARMLESS: [&str; 3] = [MODULE_NAME, "lua", "vectorset"];
    let Ok(reply) = call(guard, &["MODULE", "LIST"], Flags::default()) else {
        return false;
    };
    let mut modules = reply.array().into_iter().flatten().map(Reply::pairs);
    modules.all(|fields| {
        let name = fields.iter().find(|(key, _)| key.text() == Some("name"));
        name.and_then(|(_, value)| value.text())
            .is_some_and(|name| HARMLESS.contains(&name))
    })
}

/// Inside a handler of mode `sync`: its writes raise no events of keys, as ever.
struct Quiet(bool);

impl Quiet {
    fn enter() -> Quiet {
        Quiet(QUIET.replace(true))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(self.0);
    }
}

/// The server tells of an event, in the middle of a command.
fn told(guard: &ServerLock, told: &Told<'_>) {
    if HAS_STREAMS.load(Ordering::Acquire)
        && let Some(listener) = STREAMS.get()
    {
        listener(guard, told.event, told.key, told.db());
    }
    if told.is_gone() {
        fire::key_is_gone();
    }
    // That a key has expired is not the handler's doing.
    if QUIET.get() && told.event != b"expired" {
        return;
    }
    let (mut event, mut kind) = (None, None);
    index::look(guard).each(told.event, told.key, told.is_beside(), |entry| {
        // Here, and not for each event: most concern nobody.
        let event = event.get_or_insert_with(|| is_heard().then(|| names::of(guard, told.event)));
        if let Some(event) = event
            && entry.fits(|| *kind.get_or_insert_with(|| told.kind(guard)))
        {
            fire::fire(guard, entry, event, told);
        }
    });
}

/// Events fire something: not those that a master or a file tells of.
fn is_heard() -> bool {
    is_master() && !registrations().activation.is_loading()
}
