//! Stream registrations: entries of streams go through the steps in batches, in order, at least once.
//!
//! * `flow`: one stream of one registration, without I/O; `consumer`: one registration with its flows
//! * `group`: the consumer group on the server; `batch`: what is read for a batch and done at its end
//! * `running`: executions of batches; `locked`: batches under the server lock; `transaction`: those that are one
//! * `scan`: finding streams; `room`: how much of them is in memory at once
//!
//! Where a registration stands on a stream is kept by the server only, in a consumer group: so it survives restarts and
//! fail-overs. Only masters consume. An entry is removed when the groups of all registrations on its stream have passed it.

mod batch;
mod consumer;
mod flow;
mod group;
pub mod locked;
mod room;
mod running;
mod scan;
pub mod transaction;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use hashbrown::HashSet;
use oxigears_coordinator::registry::RegistrationId;
use parking_lot::RwLock;

pub use self::consumer::own_group;
use self::{
    batch::now_ms,
    consumer::{Consumer, Status},
    running::{Place, Threads},
};
use super::{
    active::{Active, unloadable},
    depth, is_master, keys, limits, registrations,
    table::Changes,
};
use crate::{
    module::module,
    redis::{
        key::{Key, Kind},
        lock::ServerLock,
        log,
    },
};

/// All stream registrations that are active here.
pub struct Streams {
    /// In the order in which they were made.
    consumers: RwLock<Arc<Vec<Arc<Consumer>>>>,
    /// How many; to be looked at without the lock.
    count: AtomicUsize,
    /// One of them has dead letters.
    has_dead_letters: AtomicBool,
    /// A dataset is being loaded.
    loading: AtomicBool,
    threads: Threads,
    waiting: scan::Waiting,
}

/// All of it.
fn all() -> &'static Streams {
    &registrations().streams
}

impl Streams {
    /// None so far; at load.
    pub fn start() -> std::io::Result<Streams> {
        keys::set_stream_listener(on_event);
        Ok(Streams {
            consumers: RwLock::default(),
            count: AtomicUsize::new(0),
            has_dead_letters: AtomicBool::new(false),
            loading: AtomicBool::new(false),
            threads: Threads::start()?,
            waiting: scan::Waiting::default(),
        })
    }

    fn list(&self) -> Arc<Vec<Arc<Consumer>>> {
        self.consumers.read().clone()
    }

    fn change(&self, work: impl FnOnce(&mut Vec<Arc<Consumer>>)) {
        let mut consumers = self.consumers.write();
        let mut list = consumers.to_vec();
        work(&mut list);
        self.count.store(list.len(), Ordering::Release);
        let has_dead_letters = list.iter().any(|consumer| consumer.has_dead_letters());
        self.has_dead_letters.store(has_dead_letters, Ordering::Release);
        *consumers = Arc::new(list);
    }

    /// Failed entries of some registration go to the stream of this name.
    fn takes_dead_letters(&self, key: &[u8]) -> bool {
        let has_dead_letters = self.has_dead_letters.load(Ordering::Acquire);
        has_dead_letters && self.list().iter().any(|consumer| consumer.buries_in(key))
    }

    /// The registrations that the stream belongs to, in the order in which they were made.
    fn of_stream(&self, key: &[u8]) -> Vec<Arc<Consumer>> {
        let dead = self.takes_dead_letters(key);
        let list = self.list();
        list.iter()
            .filter(|consumer| consumer.wants(key, dead))
            .cloned()
            .collect()
    }

    /// One of the registrations that the stream belongs to wants entries to be removed.
    fn is_trimmed(&self, key: &[u8]) -> bool {
        self.of_stream(key).iter().any(|consumer| consumer.trim)
    }

    /// The groups of all registrations that the stream belongs to.
    fn groups_of(&self, key: &[u8]) -> HashSet<Bytes> {
        let list = self.of_stream(key);
        list.iter().map(|consumer| consumer.group.clone()).collect()
    }
}

/// Registrations came and went, in this hold of the lock.
pub fn changed(guard: &ServerLock, changes: &Changes) {
    let streams = all();
    let gone = changes.removed.iter().map(|(active, _)| &active.registration.id);
    let gone: HashSet<&RegistrationId> = gone.collect();
    let mut left: Vec<Arc<Consumer>> = Vec::new();
    if !gone.is_empty() {
        streams.change(|list| {
            list.retain(|consumer| {
                let stays = !gone.contains(&consumer.registration.id);
                if !stays {
                    consumer.set_status(Status::Gone);
                    consumer.forget_executions();
                    left.push(consumer.clone());
                }
                stays
            });
        });
    }
    for active in &changes.changed {
        paused_or_not(guard, active);
    }
    let new = changes.added.iter();
    let new: Vec<Arc<Consumer>> = new
        .filter_map(|active| Consumer::new(&active.registration, &active.core))
        .map(Arc::new)
        .collect();
    for consumer in &new {
        if let Err(why) = &consumer.core.loaded.code {
            consumer.core.stats.can_not_run(&unloadable(why));
        }
    }
    if !new.is_empty() {
        streams.change(|list| list.extend(new.iter().cloned()));
    }
    for consumer in &new {
        begin(guard, consumer);
    }
    if left.iter().any(|consumer| consumer.has_dead_letters()) {
        // Its dead letters are streams as others are now.
        for consumer in streams.list().iter() {
            consumer.forget_those(|key| left.iter().any(|left| left.buries_in(key)));
            begin(guard, consumer);
        }
    }
    // A walk over all keys is only worth while if something may be left to do.
    let list = streams.list();
    let is_trimmed = list.iter().any(|consumer| consumer.trim);
    for consumer in left {
        // The next version of a script goes on with it.
        let is_followed = list.iter().any(|other| other.follows(&consumer));
        let is_worth = !is_followed && (is_trimmed || consumer.is_alone_with_its_group());
        if is_worth && is_master() && !is_loading() {
            scan::start(guard, &consumer);
        }
    }
}

/// Finds and reads the streams of a registration that runs.
fn begin(guard: &ServerLock, consumer: &Arc<Consumer>) {
    if is_master() && !is_loading() && consumer.is_ok() {
        scan::start(guard, consumer);
    }
}

fn is_loading() -> bool {
    all().loading.load(Ordering::Acquire)
}

/// The user has paused or unpaused it. What runs already goes on.
fn paused_or_not(guard: &ServerLock, active: &Active) {
    let list = all().list();
    let Some(consumer) = list.iter().find(|c| c.registration.id == active.registration.id) else {
        return;
    };
    if active.registration.paused {
        consumer.set_status(Status::Paused);
        module().engine.abort_unstarted(&active.registration.id);
    } else if consumer.unpause() {
        begin(guard, consumer);
    }
}

/// The server became a master or a replica.
pub fn role_changed(guard: &ServerLock, master: bool) {
    let list = all().list();
    if list.is_empty() {
        return;
    }
    if master {
        log::notice("Become master, trigger a scan on each stream registration.");
    }
    for consumer in list.iter().filter(|consumer| consumer.is_ok()) {
        // What was known belongs to the time before.
        consumer.set_status(Status::Ok);
        begin(guard, consumer);
    }
}

/// All keys of the database went away, or others took their place: FLUSHALL, SWAPDB. That raises no events of keys.
pub fn replaced(guard: &ServerLock) {
    batch::lost(None);
    for consumer in all().list().iter().filter(|consumer| consumer.is_ok()) {
        consumer.set_status(Status::Ok);
        begin(guard, consumer);
    }
}

/// A dataset is about to be loaded.
pub fn load_started() {
    all().loading.store(true, Ordering::Release);
    batch::lost(None);
    for consumer in all().list().iter().filter(|consumer| consumer.is_ok()) {
        consumer.set_status(Status::Ok);
    }
}

/// It is there. What is registered may be the same as before.
pub fn load_ended(guard: &ServerLock) {
    all().loading.store(false, Ordering::Release);
    for consumer in all().list().iter() {
        begin(guard, consumer);
    }
}

/// The status that clients see; `None` if the registration is not active here.
pub fn status(id: &str) -> Option<&'static str> {
    let list = all().list();
    let consumer = list.iter().find(|consumer| *consumer.registration.id == *id)?;
    Some(consumer.status())
}

/// Some event of some key. Called inside notifications: must be quick, and runs nothing.
#[inline]
pub fn on_event(guard: &ServerLock, event: &[u8], key: &[u8], db: i32) {
    if db == 0 && all().count.load(Ordering::Acquire) > 0 {
        happened(guard, event, key);
    }
}

fn happened(guard: &ServerLock, event: &[u8], key: &[u8]) {
    match event {
        b"xadd" => added(guard, key),
        b"del" | b"expired" | b"evicted" | b"rename_from" | b"move_from" | b"set" => {
            for consumer in all().of_stream(key) {
                consumer.forget(key);
            }
            batch::lost(Some(key));
        }
        b"xdel" | b"xtrim" if !group::is_trimming() => {
            for consumer in all().of_stream(key) {
                consumer.entries_removed(key);
            }
        }
        b"restore" | b"rename_to" | b"copy_to" | b"move_to" => arrived(guard, key),
        _ => {}
    }
}

fn added(guard: &ServerLock, key: &[u8]) {
    if is_loading() || !is_master() {
        return;
    }
    let (now, depth) = (now_ms(), depth::of_event());
    let length = || Key::open(guard, key).map_or(0, |key| key.len());
    // Streams may feed each other for ever, as queues do; but not while a client waits.
    let place = match i64::from(depth) > module().config.max_event_depth() {
        true => Place::Elsewhere,
        false => Place::Event,
    };
    // The later ones first: in a group that they share, the last one that was registered takes everything, as ever.
    for consumer in all().of_stream(key).iter().rev() {
        if let Some((key, next)) = consumer.added(key, depth, length, now) {
            running::act(guard, consumer, &key, next, place);
        }
    }
}

/// A key came with all that it holds.
fn arrived(guard: &ServerLock, key: &[u8]) {
    if is_loading() || !is_master() {
        return;
    }
    if Key::open(guard, key).is_none_or(|key| key.kind() != Kind::Stream) {
        return;
    }
    batch::lost(Some(key));
    for consumer in &all().of_stream(key) {
        consumer.forget(key);
        if let Some((key, next)) = consumer.found(key, now_ms()) {
            running::act(guard, consumer, &key, next, Place::Elsewhere);
        }
    }
}
