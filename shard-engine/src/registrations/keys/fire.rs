//! One registration and one event: counted, and put where it will be handled. Runs nothing of the user's.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use oxigears_coordinator::{
    execution::Outcome,
    registry::{RegisterMode, RegistrationId},
};
use oxigears_python_api::{Continuation, Origin};
use smallvec::SmallVec;

use super::{
    held,
    index::Entry,
    link::{self, Tie},
    names::Name,
    queue::{self, Postponed},
    spread,
    sync::SyncShot,
};
use crate::{
    module::module,
    readers::event::Wish,
    redis::{lock::ServerLock, log, notify::Told},
    registrations::{
        active::Active,
        continuing::{self, Over},
        depth,
        due::{self, Due},
        stats::End,
    },
};

static TOO_DEEP: AtomicU64 = AtomicU64::new(0);
/// Keys that registrations may be about and that have gone. Changed under the server lock.
static GONE: AtomicU64 = AtomicU64::new(0);

/// One more. In a notification.
pub fn key_is_gone() {
    GONE.fetch_add(1, Ordering::Relaxed);
}

/// The name of a key; most have room here.
pub type Key = SmallVec<[u8; 32]>;

/// An event that a registration handles.
pub struct Event {
    /// Its name in lower case.
    pub name: Name,
    /// The key.
    pub key: Key,
    /// Number of its execution, if it waits for a worker.
    pub number: u64,
    /// See `depth`.
    pub depth: u32,
    /// The key holds a string most likely, unless keys have gone since: how many had.
    pub string_at: Option<u64>,
    /// The client that waits for it.
    pub tied: Option<Box<Tied>>,
}

/// The client that waits for an execution; it hears of the end when this goes.
pub struct Tied {
    /// What the code may ask of the command.
    origin: Arc<dyn Origin>,
    tie: Arc<dyn Tie>,
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.tie.ended();
    }
}

impl Event {
    /// What the code may ask of its cause.
    pub fn origin(&self) -> Option<Arc<dyn Origin>> {
        self.tied.as_ref().map(|tied| tied.origin.clone())
    }
}

impl Event {
    /// The event itself; what stays has no client.
    pub fn take(&mut self) -> Event {
        Event {
            name: self.name.clone(),
            key: std::mem::take(&mut self.key),
            tied: self.tied.take(),
            ..*self
        }
    }

    /// The key holds a string most likely. Asking for one that has gone would count as a miss.
    pub fn is_likely_string(&self) -> bool {
        self.string_at.is_some_and(|gone| gone == GONE.load(Ordering::Relaxed))
    }

    /// What its record holds.
    pub fn wish(&self, entry: &Entry) -> Wish {
        Wish {
            read_value: entry.read_value,
            all_types: entry.all_types,
            likely_string: self.is_likely_string(),
        }
    }
}

/// Events and commands that were not handled because they are too deep.
pub fn too_deep() -> u64 {
    TOO_DEEP.load(Ordering::Relaxed)
}

/// The event concerns the registration. In a notification.
pub fn fire(guard: &ServerLock, entry: &Arc<Entry>, name: &Name, told: &Told<'_>) {
    let active = &entry.active;
    let depth = depth::of_event();
    // The limit is 1 at least.
    if depth > 1 && i64::from(depth) > module().config.max_event_depth() {
        return refuse_depth(active, name);
    }
    if let Err(text) = active.code() {
        return active.core.stats.ran(&End::Failure(&text), 0);
    }
    active.core.stats.triggered();
    let event = Event {
        name: name.clone(),
        // In one copy, not byte by byte.
        key: Key::from_slice(told.key),
        number: 0,
        depth,
        string_at: told.is_of_string().then(|| GONE.load(Ordering::Relaxed)),
        tied: tied(entry),
    };
    // Who waits for one has read, and is answered even now.
    match event.tied.is_none() && held::is_to_wait(guard, told) {
        true => held::push(guard, entry, event),
        false => dispatch(guard, entry, event),
    }
}

/// The event, which is counted as triggered, goes to where it will be handled.
#[inline]
pub(super) fn dispatch(guard: &ServerLock, entry: &Arc<Entry>, event: Event) {
    match entry.mode() {
        RegisterMode::Sync if !queue::takes_sync(&entry.active) => {}
        RegisterMode::Sync => due::push(guard, Due::Event(SyncShot::new(entry.clone(), event))),
        RegisterMode::Async if module().is_cluster => spread::push(guard, entry, event),
        _ => queue::push(guard, entry, event),
    }
}

fn tied(entry: &Entry) -> Option<Box<Tied>> {
    if !entry.is_linked() {
        return None;
    }
    link::at_hand(|linked| {
        let origin = linked.tie.fired(entry.mode())?;
        let tie = linked.tie.clone();
        Some(Box::new(Tied { origin, tie }))
    })
    .flatten()
}

#[cold]
fn refuse_depth(active: &Active, name: &str) {
    let most = module().config.max_event_depth();
    let text = format!(
        "ERR the event '{name}' was not handled: it is the end of a chain of {most} events that handlers caused (MaxEventDepth); \
         a handler that writes keys which fire it again needs a prefix or eventTypes that leave them out"
    );
    count_too_deep(active, &text);
}

/// Something did not run because it is too deep, with this text.
#[cold]
pub fn count_too_deep(active: &Active, text: &str) {
    active.core.stats.ran(&End::Refused(text), 0);
    if TOO_DEEP.fetch_add(1, Ordering::Relaxed) == 0 {
        let id: &RegistrationId = &active.registration.id;
        log::warning(&format!("registration {id}: {text}"));
    }
}

/// What was postponed goes on; its client, if any, waits.
pub fn go_on(entry: &Arc<Entry>, event: Event, rest: Box<Continuation>) {
    let its = entry.clone();
    let postponed = Postponed::new(entry.mode());
    let Event { number, depth, .. } = event;
    let Active { registration, core, .. } = &*entry.active;
    continuing::go_on(&registration.id, core, rest, Some(number), depth, move |over| {
        let active = &its.active;
        over.count(&active.core.stats);
        let keep = module().config.max_executions_per_registration();
        let Over {
            outcome,
            aborted,
            total_ns,
        } = over;
        let engine = &module().engine;
        active.core.swift.keep(engine, number, outcome, total_ns, aborted, keep);
        drop((event, postponed));
    });
}

/// An event that ran in one go is over.
pub fn ended(active: &Active, number: u64, outcome: Outcome, total_ns: u64) {
    active.core.stats.ended(&End::of(&outcome, false), total_ns);
    let keep = module().config.max_executions_per_registration();
    let engine = &module().engine;
    active.core.swift.keep(engine, number, outcome, total_ns, false, keep);
}
