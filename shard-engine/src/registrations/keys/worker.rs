//! Worker threads and events: the steps run for one after the other in one hold of the GIL. Each is an execution of its own.
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
    fire,
    index::Entry,
    queue::{self, Queue, Ready},
    reading::fill,
};
use crate::{
    host::PythonInterrupt,
    identity,
    module::module,
    registrations::{
        active::{Active, Core},
        depth, is_master, limits,
        stats::End,
    },
};

pub(super) const REPLICA: &str = "ERR the server has become a replica, the event was not handled";

/// A worker thread will handle the events of the registration. It is counted as one of its workers.
pub fn submit(entry: Arc<Entry>) {
    module().engine.submit(move || work(&entry));
}

fn work(entry: &Arc<Entry>) {
    let begun = Instant::now();
    loop {
        let coming = Coming::new(&entry.active.core.events);
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
        want_spare(entry, 2);
        python::with_interpreter(|| {
            drop(coming);
            run_ready(entry);
        });
        if begun.elapsed() >= limits::EVENTS_TURN {
            // Others wait for the thread.
            return submit(entry.clone());
        }
    }
}

/// While it lives a worker is on its way to the next event: it reads records, or waits for them or for the GIL. A spare one
/// would be there no sooner.
struct Coming<'a>(&'a Queue);

impl Coming<'_> {
    fn new(queue: &Queue) -> Coming<'_> {
        queue.coming.0.fetch_add(1, Ordering::Relaxed);
        Coming(queue)
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.coming.0.fetch_sub(1, Ordering::Relaxed);
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
    active
        .core
        .events
        .holder
        .0
        .store(python::gil_holder(), Ordering::Relaxed);
    let mut interrupt = PythonInterrupt::new();
    // One look at the clock for each event: where one ends the next one begins.
    let mut now_ns = engine.now_ns();
    engine.gets_on(now_ns);
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
        let (outcome, aborted) = match ran {
            Invoked::Done(outcome) => (outcome, false),
            // It is to stop, and what it has postponed with it.
            Invoked::Continues(rest) if active.core.swift.is_to_stop(number) => (rest.given_up(), true),
            Invoked::Continues(mut rest) => {
                now_ns = engine.now_ns();
                rest.spent_ns = now_ns - start_ns;
                fire::go_on(entry, event, rest);
                if now_ns >= turn_ends {
                    return;
                }
                continue;
            }
        };
        now_ns = engine.now_ns();
        let total_ns = now_ns - start_ns;
        // Counted first: who sees that it has ended may look at the counters.
        active.core.stats.ended(&End::of(&outcome, aborted), total_ns);
        active
            .core
            .swift
            .ended(engine, number, outcome, total_ns, aborted, keep);
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

/// Sees to it that a task looks after the line while a thread is in it, if at least so many events wait.
pub fn want_spare(entry: &Arc<Entry>, least: usize) {
    let events = &entry.active.core.events;
    let mut line = events.line.0.lock();
    if line.waiting.len() + events.ready.0.lock().len() < least {
        return;
    }
    if line.workers == 0 {
        // The last one left while the records were being read.
        line.workers = 1;
        drop(line);
        submit(entry.clone());
    } else if line.takes_spare() {
        drop(line);
        submit_look(entry.clone());
    }
}

fn submit_look(entry: Arc<Entry>) {
    module().engine.submit(move || look_after(&entry));
}

impl Queue {
    /// The workers are all in handlers, one of them for long, and it does not compute: then others could run meanwhile.
    fn is_stuck(&self) -> bool {
        if self.coming.0.load(Ordering::Relaxed) > 0 || python::gil_holder() == self.holder.0.load(Ordering::Relaxed) {
            return false;
        }
        let since = module()
            .engine
            .now_ns()
            .saturating_sub(self.progress_ns.0.load(Ordering::Relaxed));
        since > limits::EVENT_STUCK.as_nanos() as u64
    }
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
            if queue.is_stuck() {
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
    submit_look(entry.clone());
}
