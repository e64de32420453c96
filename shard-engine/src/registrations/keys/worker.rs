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

use oxigears_coordinator::execution::Outcome;
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
        if !fill(entry) {
            let mut line = entry.active.core.events.line.0.lock();
            if line.waiting.is_empty() && entry.active.core.events.nothing_ready() {
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

/// Reads the records of events that wait, as many as fit into one hold of the lock; false if none is ready.
fn fill(entry: &Entry) -> bool {
    let queue = &entry.active.core.events;
    if !queue.nothing_ready() {
        return true;
    }
    if queue.line.0.lock().waiting.is_empty() {
        return false;
    }
    // Commands look at the lines under this lock, too: to them an event is always in one of them.
    let guard = lock::lock();
    let mut taken: Vec<Event> = {
        let mut line = queue.line.0.lock();
        let count = line.waiting.len().min(limits::EVENTS_AT_ONCE);
        line.waiting.drain(..count).rev().collect()
    };
    let mut ready = Vec::with_capacity(taken.len());
    let (start, mut reading) = (Instant::now(), Reading::default());
    while !taken.is_empty() {
        reading.some(&guard, entry, &mut taken, &mut ready);
        if start.elapsed() >= limits::EVENTS_SLICE {
            break;
        }
    }
    let mut line = queue.line.0.lock();
    queue.ready.0.lock().events.extend(ready);
    // What was not read goes back to its place; the last one taken is the first in line.
    taken.into_iter().for_each(|event| line.waiting.push_front(event));
    true
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
            let record = record::read(
                guard,
                &entry.active,
                (&event.name, &event.key),
                event.wish(entry),
                known.filter(|_| strings),
            );
            if alone {
                self.adapt(record.as_ref().map_or(1, |record| record.bytes.len()));
            }
            ready.push(Ready { event, record });
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
    let begun = Instant::now();
    let active = &entry.active;
    let Some(invoker) = active.code().ok().and_then(|code| code.invoker.as_ref()) else {
        // The code was there when the event was taken; it does not go.
        return active.core.give_up(&End::Aborted);
    };
    let _identity = identity::enter(active.core.loaded.user.clone());
    let (engine, keep) = (&module().engine, module().config.max_executions_per_registration());
    let mut interrupt = PythonInterrupt::new();
    while let Some(Ready { event, record }) = next_ready(active, &interrupt) {
        let start_ns = engine.now_ns();
        active.core.events.progress_ns.store(start_ns, Ordering::Relaxed);
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
                if begun.elapsed() >= limits::EVENTS_TURN {
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
        let total_ns = engine.now_ns() - start_ns;
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
        if begun.elapsed() >= limits::EVENTS_TURN {
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
                .saturating_sub(queue.progress_ns.load(Ordering::Relaxed));
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
