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
    redis::lock,
    registrations::{depth, is_master, limits, stats::End, sync::ABORTED},
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
            entry.active.core.events.give_up(&entry.active, &End::Refused(REPLICA));
        }
        if !fill(entry) {
            let mut line = entry.active.core.events.line.lock();
            if line.waiting.is_empty() && line.ready.is_empty() {
                line.workers -= 1;
                return;
            }
            continue;
        }
        want_spare(entry);
        python::with_interpreter(|| run_ready(entry, begun));
        if begun.elapsed() >= limits::EVENTS_TURN {
            // Others wait for the thread.
            return submit(entry.clone());
        }
    }
}

/// Reads the records of events that wait, as many as fit into one hold of the lock; false if none is ready.
fn fill(entry: &Entry) -> bool {
    let queue = &entry.active.core.events;
    let mut taken: Vec<Event> = {
        let mut line = queue.line.lock();
        if !line.ready.is_empty() {
            return true;
        }
        let count = line.waiting.len().min(limits::EVENTS_AT_ONCE);
        line.waiting.drain(..count).rev().collect()
    };
    if taken.is_empty() {
        return false;
    }
    let mut ready = Vec::with_capacity(taken.len());
    {
        let guard = lock::lock();
        let start = Instant::now();
        while let Some(event) = taken.pop() {
            let record = record::read(&guard, &entry.active, &event.name, &event.key, event.wish(entry));
            ready.push(Ready { event, record });
            if ready.len() % 16 == 0 && start.elapsed() >= limits::EVENTS_SLICE {
                break;
            }
        }
    }
    let mut line = queue.line.lock();
    line.ready.extend(ready);
    // What was not read goes back to its place; the last one taken is the first in line.
    taken.into_iter().for_each(|event| line.waiting.push_front(event));
    true
}

/// Runs what is ready, with the GIL, until the turn is over.
fn run_ready(entry: &Arc<Entry>, begun: Instant) {
    let active = &entry.active;
    let Some(invoker) = active.code().ok().and_then(|code| code.invoker.as_ref()) else {
        // The code was there when the event was taken; it does not go.
        return active.core.events.give_up(active, &End::Aborted);
    };
    let _identity = identity::enter(active.core.loaded.user.clone());
    let (engine, keep) = (&module().engine, module().config.max_executions_per_registration());
    let mut interrupt = PythonInterrupt::new();
    while let Some(Ready { event, record }) = active.core.events.next_ready() {
        let start_ns = engine.now_ns();
        active.core.events.progress_ns.store(start_ns, Ordering::Relaxed);
        let number = engine.next_number();
        active.core.swift.begun(number, interrupt.clone());
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

impl queue::Queue {
    fn next_ready(&self) -> Option<Ready> {
        let ready = self.line.lock().ready.pop_front()?;
        queue::left(1);
        Some(ready)
    }
}

/// Sees to it that a task looks after the line while a thread is in it.
fn want_spare(entry: &Arc<Entry>) {
    let threads = module().config.execution_threads() as u32;
    let mut line = entry.active.core.events.line.lock();
    if line.spare || line.workers >= threads || line.waiting.len() + line.ready.len() < 2 {
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
            let mut line = queue.line.lock();
            if line.waiting.is_empty() && line.ready.is_empty() {
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
