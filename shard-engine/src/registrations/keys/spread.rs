//! Mode `async` in a cluster: an execution on all shards, whose input is the event here and nothing elsewhere.
//!
//! So many of them are under way at once; what comes beyond waits, or a burst would fill the links to the other shards.

use std::{
    cell::Cell,
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use oxigears_coordinator::{
    codec::RecordBatch,
    engine::{Execution, Fired, Order},
    execution::Phase,
    stage::Input,
};
use parking_lot::Mutex;

use super::{
    fire::Event,
    index::Entry,
    queue,
    record::{EventInput, Stage},
    worker::REPLICA,
};
use crate::{
    module::module,
    redis::lock::ServerLock,
    registrations::{active::Core, depth, is_master, limits, occasion::Occasion, registrations, stats::End},
};

type Waiting = VecDeque<(Arc<Entry>, Event)>;

/// What waits, and how much is under way.
struct Line {
    waiting: Waiting,
    under_way: usize,
}

static LINE: Mutex<Line> = Mutex::new(Line {
    waiting: VecDeque::new(),
    under_way: 0,
});

thread_local! {
    static STARTING: Cell<bool> = const { Cell::new(false) };
}

impl Line {
    /// Another one may begin. Those that wait for something (futures, coroutines) need no room, and it may be a later event
    /// that they wait for.
    fn has_room(&self) -> bool {
        let pending = module().engine.pending();
        self.under_way.saturating_sub(pending) < limits::EVENTS_SPREAD && pending < limits::EVENTS_SLOW / 2
    }

    /// Takes all that waits apart: what is for this registration, and the rest.
    fn part(&mut self, core: &Core) -> (Waiting, Waiting) {
        let all = std::mem::take(&mut self.waiting).into_iter();
        all.partition(|(entry, _)| std::ptr::eq(&*entry.active.core, core))
    }

    fn take(&mut self) -> Option<(Arc<Entry>, Event)> {
        let first = self.waiting.pop_front()?;
        first.0.active.core.events.spread.fetch_sub(1, Ordering::Relaxed);
        self.under_way += 1;
        Some(first)
    }
}

/// An event for all shards; it is counted as triggered already.
pub fn push(guard: &ServerLock, entry: &Arc<Entry>, event: Event) {
    {
        let mut line = LINE.lock();
        if !(line.has_room() && line.waiting.is_empty()) {
            if queue::joins(guard, &entry.active) {
                entry.active.core.events.spread.fetch_add(1, Ordering::Relaxed);
                line.waiting.push_back((entry.clone(), event));
            }
            return;
        }
        line.under_way += 1;
    }
    start(entry, event);
}

/// While it lives this thread starts what waits.
struct Starting;

impl Drop for Starting {
    fn drop(&mut self) {
        STARTING.set(false);
    }
}

/// Starts what waits, as far as there is room.
fn start_waiting() {
    // An execution that is over at once ends up here again.
    if STARTING.replace(true) {
        return;
    }
    let _starting = Starting;
    loop {
        let next = {
            let mut line = LINE.lock();
            line.has_room().then(|| line.take()).flatten()
        };
        let Some((entry, event)) = next else { return };
        begin(&entry, event);
    }
}

/// It does not wait any more.
fn begin(entry: &Arc<Entry>, event: Event) {
    queue::left(1);
    if is_master() {
        return start(entry, event);
    }
    entry.active.core.stats.ended(&End::Refused(REPLICA), 0);
    over();
}

fn over() {
    let mut line = LINE.lock();
    line.under_way -= 1;
    let nobody_waits = line.waiting.is_empty();
    drop(line);
    if !nobody_waits {
        start_waiting();
    }
}

/// Some of those under way may wait for something by now. Called now and then.
pub fn look(guard: &ServerLock) {
    queue::taken(guard);
    let nobody_waits = LINE.lock().waiting.is_empty();
    if !nobody_waits {
        start_waiting();
    }
}

/// The registration is gone. Its events come first: other shards let go of it when they have not heard of it for a while.
pub fn comes_first(core: &Core) {
    let mut line = LINE.lock();
    if core.events.spread.load(Ordering::Relaxed) > 0 {
        let (its, others) = line.part(core);
        line.waiting = its;
        line.waiting.extend(others);
    }
}

/// Takes out what waits for this registration.
pub(super) fn withdraw(core: &Core) -> Vec<Event> {
    let mut line = LINE.lock();
    if core.events.spread.swap(0, Ordering::Relaxed) == 0 {
        return Vec::new();
    }
    let (its, others) = line.part(core);
    line.waiting = others;
    drop(line);
    its.into_iter().map(|(_, event)| event).collect()
}

/// Starts one; it is counted as under way.
fn start(entry: &Arc<Entry>, event: Event) {
    let active = &entry.active;
    let Ok(code) = active.code() else { return over() };
    let (origin, event_depth, wish) = (event.origin(), event.depth, event.wish(entry));
    let input = EventInput {
        active: active.clone(),
        name: event.name,
        key: event.key,
        wish,
        stage: Stage::New,
    };
    let occasion = Occasion::with_input(Input::Source(Box::new(input)), origin);
    let order = Order {
        plan: active.core.loaded.plan.clone(),
        local: code.local.clone(),
        nested: false,
        held: false,
        fired: Some(Fired {
            registration: active.registration.id.clone(),
            index: registrations().activation.index(),
            input: RecordBatch::default(),
            here: occasion.carried(),
            idle_limit_ms: active.core.idle_limit_ms,
            spent_ns: None,
            reads_on: None,
        }),
    };
    let (fired, tied) = (active.clone(), event.tied);
    let waiter = Box::new(move |execution: &Arc<Execution>| {
        let total_ns = execution.total_ns.load(Ordering::Relaxed);
        let aborted = execution.phase() == Phase::Aborted;
        execution.with_outcome(|outcome| {
            let end = match outcome.errors.first() {
                Some(text) => End::Failure(text),
                None if aborted => End::Aborted,
                None => End::Success,
            };
            fired.core.stats.ended(&end, total_ns);
        });
        let config = &module().config;
        let is_gone = registrations()
            .activation
            .table()
            .read()
            .get(&fired.registration.id)
            .is_none();
        if is_gone {
            module().engine.forget(&execution.id);
        } else {
            // Their number is not a matter of that, but whether there is a limit is.
            let most = match (config.max_executions_per_registration(), config.max_executions()) {
                (..=0, _) => 0,
                (_, ..=0) => i64::MAX,
                (_, most) => most,
            };
            fired.core.remembered.lock().add(execution, most);
        }
        drop(tied);
        over();
    });
    // The engine takes it from the thread, and along to the other shards.
    let _depth = depth::enter(event_depth);
    if let Err(e) = module().engine.create(order, Some(waiter)) {
        let text = format!("ERR Could not trigger execution, {e}");
        active.core.stats.ended(&End::Refused(&text), 0);
        over();
    }
}
