//! Worker threads and events: records of many are read in one hold of the server lock, then the steps run for one after
//! the other in one hold of the GIL. Each is an execution of its own.
//!
//! One thread is fastest as long as handlers compute. Where one waits for something (a sleep, a connection), a spare task
//! notices that the line does not move and helps, up to the number of worker threads.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Instant,
};

use bytes::Bytes;
use oxigears_coordinator::{codec::RecordBatch, execution::Outcome};
use oxigears_python_api::{self as python, Invoked};

use smallvec::SmallVec;

use super::{
    fire::{self, Event},
    index::Entry,
    queue::{self, Ready},
    record,
};
use crate::{
    host::PythonInterrupt,
    identity,
    module::module,
    redis::{
        event_loop,
        guarded::Guarded,
        key::with_strings_of,
        lock::{self, ServerLock},
    },
    registrations::{
        active::{Active, Core},
        depth, is_master, limits,
        stats::End,
        sync::ABORTED,
    },
};

const REPLICA: &str = "ERR the server has become a replica, the event was not handled";

/// A worker thread will handle the events of the registration. It is counted as one of its workers.
pub fn submit(entry: Arc<Entry>) {
    module().engine.submit(move || work(&entry));
}

fn work(entry: &Arc<Entry>) {
    let begun = Instant::now();
    loop {
        if !is_master() {
            entry.active.core.give_up(&End::Refused(REPLICA));
        }
        let queue = &entry.active.core.events;
        if !queue.is_ready() && !fill(entry) {
            let mut line = queue.line.0.lock();
            if line.waiting.is_empty() && queue.nothing_ready() {
                line.workers -= 1;
                return;
            }
            continue;
        }
        want_spare(entry);
        python::with_interpreter(|| run_ready(entry));
        if begun.elapsed() >= limits::EVENTS_TURN {
            // Others wait for the thread.
            return submit(entry.clone());
        }
    }
}

/// Events have come to this registration in this turn of the event loop; `idle`: and no task handles them.
struct Came {
    entry: Arc<Entry>,
    idle: bool,
}

static CAME: Guarded<Vec<Came>> = Guarded::new(Vec::new());

/// At load.
pub fn start() {
    event_loop::at_end(read_ahead);
}

/// An event has come. The main thread reads its record before it sleeps: then the key is still in its cache, and no
/// thread has to wait for the lock. `idle`: no task handles the line.
pub(super) fn came(guard: &ServerLock, entry: &Arc<Entry>, idle: bool) {
    let queue = &entry.active.core.events;
    let announced = queue.announced.0.load(Ordering::Relaxed);
    if !announced && !event_loop::want_end() {
        if idle {
            submit(entry.clone());
        }
        return;
    }
    queue.announced.0.store(true, Ordering::Relaxed);
    if !announced || idle {
        let entry = entry.clone();
        CAME.borrow_mut(guard).push(Came { entry, idle });
    }
}

/// Reads the records of events that have come, where few are ready. On the main thread, at the end of a turn.
fn read_ahead(guard: &ServerLock) {
    let came = std::mem::take(&mut *CAME.borrow_mut(guard));
    let end = Instant::now() + limits::EVENTS_SLICE;
    for Came { entry, idle } in came {
        let queue = &entry.active.core.events;
        if queue.ready.0.lock().events.len() < limits::EVENTS_READY && Instant::now() < end {
            read_some(guard, &entry, end);
        }
        {
            // What is left the workers read.
            let _ready = queue.ready.0.lock();
            queue.announced.0.store(false, Ordering::Relaxed);
            queue.arrived.notify_all();
        }
        if idle {
            submit(entry);
        }
    }
}

/// Reads the records of events that wait, as many as fit into one hold of the lock; false if there are none.
fn fill(entry: &Entry) -> bool {
    if entry.active.core.events.line.0.lock().waiting.is_empty() {
        return false;
    }
    read_some(&lock::lock(), entry, Instant::now() + limits::EVENTS_SLICE);
    true
}

/// Commands look at the lines under this lock, too: to them an event is always in one of them.
fn read_some(guard: &ServerLock, entry: &Entry, end: Instant) {
    let queue = &entry.active.core.events;
    queue::taken(guard);
    let mut taken: Vec<Event> = {
        let mut line = queue.line.0.lock();
        let count = line.waiting.len().min(limits::EVENTS_AT_ONCE);
        line.waiting.drain(..count).rev().collect()
    };
    let mut ready = Vec::with_capacity(taken.len());
    let mut reading = Reading::default();
    while !taken.is_empty() {
        reading.some(guard, entry, &mut taken, &mut ready);
        if Instant::now() >= end {
            break;
        }
    }
    reading.unpack(&mut ready);
    let mut line = queue.line.0.lock();
    queue.ready.0.lock().events.extend(ready);
    // What was not read goes back to its place; the last one taken is the first in line.
    taken.into_iter().for_each(|event| line.waiting.push_front(event));
}

/// Reads records, several at once where that is possible.
#[derive(Default)]
struct Reading {
    /// How many strings to ask for in one command: few while they are large, and a very large one is read by itself, with
    /// no copy in between. 0: not known yet.
    at_once: usize,
    /// The strings of some events, one after the other.
    bytes: Vec<u8>,
    /// Where each one is.
    places: Vec<Option<(usize, usize)>>,
    /// Small records, one after the other: they share their memory.
    packed: Vec<u8>,
    /// Which ones they are, and where their ends are.
    packed_ends: Vec<(usize, usize)>,
}

impl Reading {
    /// Moves some events from the end of `taken` to `ready`, with their records.
    fn some(&mut self, guard: &ServerLock, entry: &Entry, taken: &mut Vec<Event>, ready: &mut Vec<Ready>) {
        let from = taken.len().saturating_sub(limits::STRINGS_AT_ONCE);
        let count = taken.len() - from;
        let strings = entry.read_value && !module().is_cluster && taken[from..].iter().all(|event| event.likely_string);
        let (alone, strings) = (strings && self.at_once == 1, strings && self.at_once != 1);
        let count = match (alone, strings) {
            (true, _) => 1,
            (_, true) => self.ask(guard, taken, count),
            _ => count,
        };
        for at in 0..count {
            let Some(event) = taken.pop() else { return };
            let place = self.places.get(at).copied().flatten();
            let known = place.map(|(start, end)| &self.bytes[start..end]);
            let (known, place, wish) = (
                known.filter(|_| strings),
                (&*event.name, &*event.key),
                event.wish(entry),
            );
            let record = match strings {
                true => {
                    let read = record::read_behind(guard, &entry.active, place, wish, known, &mut self.packed);
                    self.packed_ends.push((ready.len(), self.packed.len()));
                    read.map(|()| RecordBatch::default())
                }
                false => record::read(guard, &entry.active, place, wish, known),
            };
            if alone {
                self.adapt(record.as_ref().map_or(1, |record| record.bytes.len()));
            }
            ready.push(Ready { event, record });
        }
        if self.packed.len() >= limits::RECORDS_PACKED {
            self.unpack(ready);
        }
    }

    /// Gives the records that were packed to their events.
    fn unpack(&mut self, ready: &mut [Ready]) {
        let bytes = Bytes::from(std::mem::take(&mut self.packed));
        let mut start = 0;
        for (at, end) in self.packed_ends.drain(..) {
            if let Ok(record) = &mut ready[at].record {
                *record = RecordBatch {
                    bytes: bytes.slice(start..end),
                    records: 1,
                };
            }
            start = end;
        }
    }

    /// Asks for the strings of at most so many of the next events; gives how many.
    fn ask(&mut self, guard: &ServerLock, taken: &[Event], most: usize) -> usize {
        let count = most.min(self.at_once).max(1);
        let names: SmallVec<[&[u8]; limits::STRINGS_AT_ONCE]> =
            taken.iter().rev().take(count).map(|event| &*event.key).collect();
        self.bytes.clear();
        self.places.clear();
        self.places.resize(count, None);
        let mut largest = 1;
        with_strings_of(guard, &names, |at, text| {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(text);
            self.places[at] = Some((start, self.bytes.len()));
            largest = largest.max(text.len());
        });
        self.adapt(largest);
        count
    }

    fn adapt(&mut self, largest: usize) {
        self.at_once = (limits::STRINGS_BYTES / largest).clamp(1, limits::STRINGS_AT_ONCE);
    }
}

/// Runs what is ready, with the GIL, until the turn is over: from now on, because the wait for the GIL may have been long.
fn run_ready(entry: &Arc<Entry>) {
    let active = &entry.active;
    let Some(invoker) = active.code().ok().and_then(|code| code.invoker.as_ref()) else {
        // The code was there when the event was taken; it does not go.
        return active.core.give_up(&End::Aborted);
    };
    let _identity = identity::enter(active.core.loaded.user.clone());
    let (engine, keep) = (&module().engine, module().config.max_executions_per_registration());
    let mut interrupt = PythonInterrupt::new();
    // One look at the clock for each event: where one ends the next one begins.
    let mut now_ns = engine.now_ns();
    let turn_ends = now_ns + limits::EVENTS_TURN.as_nanos() as u64;
    while let Some(Ready { event, record }) = next_ready(active, &interrupt) {
        let start_ns = now_ns;
        active.core.events.progress_ns.0.store(start_ns, Ordering::Relaxed);
        let number = event.number;
        let ran = {
            let _depth = depth::enter(event.depth);
            match record {
                Ok(batch) => invoker.call_event(batch, event.origin(), &interrupt.0),
                Err(text) => Invoked::Done(Outcome {
                    errors: vec![text],
                    ..Outcome::default()
                }),
            }
        };
        let outcome = match ran {
            Invoked::Done(outcome) => outcome,
            Invoked::Continues(rest) if active.core.swift.handed_over(engine, number) => {
                fire::go_on(entry, event, number, rest);
                now_ns = engine.now_ns();
                if now_ns >= turn_ends {
                    return;
                }
                continue;
            }
            // It is to stop, and what it has postponed with it.
            Invoked::Continues(_) => Outcome {
                errors: vec![ABORTED.to_owned()],
                ..Outcome::default()
            },
        };
        now_ns = engine.now_ns();
        let total_ns = now_ns - start_ns;
        let first_error = outcome.errors.first().cloned();
        let aborted = active.core.swift.ended(engine, number, outcome, total_ns, keep);
        let end = match &first_error {
            _ if aborted => End::Aborted,
            None => End::Success,
            Some(text) => End::Failure(text),
        };
        active.core.stats.ended(&end, total_ns);
        drop(event);
        if Arc::strong_count(&interrupt) > 1 {
            // Somebody may still use it, to stop what is over.
            interrupt = PythonInterrupt::new();
        }
        if now_ns >= turn_ends {
            return;
        }
    }
}

/// Takes the next event, whose execution begins.
fn next_ready(active: &Active, interrupt: &Arc<PythonInterrupt>) -> Option<Ready> {
    let Core { events, swift, .. } = &*active.core;
    let (ready, over) = events
        .ready
        .0
        .lock()
        .pop(|number| swift.begun(number, interrupt.clone()))?;
    if over > 0 {
        queue::left(over);
    }
    Some(ready)
}

impl queue::Queue {
    fn nothing_ready(&self) -> bool {
        self.ready.0.lock().events.is_empty()
    }

    /// There are records; waits a moment for those that the main thread is about to read.
    fn is_ready(&self) -> bool {
        let mut ready = self.ready.0.lock();
        if ready.events.is_empty() && self.announced.0.load(Ordering::Relaxed) {
            self.arrived.wait_for(&mut ready, limits::EVENTS_COME);
        }
        !ready.events.is_empty()
    }
}

/// Sees to it that a task looks after the line while a thread is in it.
fn want_spare(entry: &Arc<Entry>) {
    let threads = module().config.execution_threads() as u32;
    let events = &entry.active.core.events;
    let mut line = events.line.0.lock();
    if line.spare || line.workers >= threads || line.waiting.len() + events.ready.0.lock().events.len() < 2 {
        return;
    }
    line.spare = true;
    drop(line);
    let entry = entry.clone();
    module().engine.submit(move || look_after(&entry));
}

fn look_after(entry: &Arc<Entry>) {
    let queue = &entry.active.core.events;
    for _ in 0..limits::EVENTS_LOOKS {
        {
            let mut line = queue.line.0.lock();
            if line.waiting.is_empty() && queue.nothing_ready() {
                line.spare = false;
                return;
            }
            let since = module()
                .engine
                .now_ns()
                .saturating_sub(queue.progress_ns.0.load(Ordering::Relaxed));
            if since > limits::EVENT_STUCK.as_nanos() as u64 {
                line.spare = false;
                line.workers += 1;
                drop(line);
                return work(entry);
            }
        }
        thread::sleep(limits::EVENT_STUCK / 2);
        if module().engine.queued() > 0 {
            break;
        }
    }
    let entry = entry.clone();
    module().engine.submit(move || look_after(&entry));
}
