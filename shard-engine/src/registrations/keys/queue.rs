//! Events that wait for a worker thread of this shard: a line for each registration, and one bound for all lines.
//!
//! At `EVENTS_SLOW` writers are to be slowed down: the interception asks `is_full` and parks clients until there is
//! room. What can not be slowed goes on up to `EVENTS_MOST`; beyond, an event is counted as aborted, with a text.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use oxigears_coordinator::codec::RecordBatch;
use parking_lot::Mutex;

use super::{fire::Event, index::Entry, worker};
use crate::{
    redis::log,
    registrations::{active::Active, limits, padded::Padded, stats::End},
};

/// The events of one registration.
///
/// Writers and workers touch different cache lines for most events. `ready` is locked after `line`.
#[derive(Default)]
pub struct Queue {
    pub(super) line: Padded<Mutex<Line>>,
    /// Those whose records have been read.
    pub(super) ready: Padded<Mutex<ReadyLine>>,
    /// When an event began last, in ns of the engine's clock.
    pub(super) progress_ns: AtomicU64,
}

#[derive(Default)]
pub(super) struct ReadyLine {
    pub events: VecDeque<Ready>,
    /// Events that were taken out and are still counted as waiting.
    taken: usize,
}

impl ReadyLine {
    /// The next one, and how many are to be counted off now: several at once.
    pub fn pop(&mut self) -> Option<(Ready, usize)> {
        let ready = self.events.pop_front()?;
        self.taken += 1;
        let count_now = self.taken >= COUNTED_AT_ONCE || self.events.is_empty();
        let count = if count_now { std::mem::take(&mut self.taken) } else { 0 };
        Some((ready, count))
    }
}

#[derive(Default)]
pub(super) struct Line {
    pub waiting: VecDeque<Event>,
    /// Tasks that handle them, running or queued.
    pub workers: u32,
    /// A task looks whether they are held up.
    pub spare: bool,
}

/// An event with its record, or why there is none.
pub(super) struct Ready {
    pub event: Event,
    pub record: Result<RecordBatch, String>,
}

/// See `ReadyLine::pop`.
const COUNTED_AT_ONCE: usize = 16;

static WAITING: AtomicUsize = AtomicUsize::new(0);
static MOST_WAITING: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// Who waits for room.
static WAITERS: Mutex<Vec<Waiter>> = Mutex::new(Vec::new());

type Waiter = Box<dyn FnOnce() + Send>;

const FULL: &str = "ERR too many events wait on this shard, the event was not handled";

/// Numbers for INFO.
pub struct Numbers {
    /// Events that wait now.
    pub waiting: u64,
    /// The most that ever waited.
    pub most: u64,
    /// Aborted, because too many waited.
    pub refused: u64,
}

/// Numbers for INFO.
pub fn numbers() -> Numbers {
    Numbers {
        waiting: WAITING.load(Ordering::Relaxed) as u64,
        most: MOST_WAITING.load(Ordering::Relaxed) as u64,
        refused: REFUSED.load(Ordering::Relaxed),
    }
}

/// Writers whose commands may raise events for the queue should wait.
#[inline]
pub fn is_full() -> bool {
    WAITING.load(Ordering::Relaxed) >= limits::EVENTS_SLOW
}

/// Calls `then` once there is room, on any thread; now if there is. It must not wait.
pub fn when_room(then: Waiter) {
    let mut waiters = WAITERS.lock();
    if is_full() {
        return waiters.push(then);
    }
    drop(waiters);
    then();
}

/// So many events do not wait any more.
pub(super) fn left(count: usize) {
    let before = WAITING.fetch_sub(count, Ordering::AcqRel);
    let room = limits::EVENTS_SLOW - limits::EVENTS_ROOM;
    if before > room && before - count <= room {
        let waiters = std::mem::take(&mut *WAITERS.lock());
        waiters.into_iter().for_each(|then| then());
    }
}

/// An event waits from now on; it is counted as triggered already. Under the server lock.
pub fn push(entry: &Arc<Entry>, event: Event) {
    let waiting = WAITING.fetch_add(1, Ordering::AcqRel) + 1;
    if waiting > limits::EVENTS_MOST {
        left(1);
        return refuse(&entry.active);
    }
    if waiting > MOST_WAITING.load(Ordering::Relaxed) {
        MOST_WAITING.store(waiting, Ordering::Relaxed);
    }
    let mut line = entry.active.core.events.line.0.lock();
    line.waiting.push_back(event);
    let idle = line.workers == 0;
    line.workers += u32::from(idle);
    drop(line);
    if idle {
        worker::submit(entry.clone());
    }
}

#[cold]
fn refuse(active: &Active) {
    active.core.stats.ended(&End::Refused(FULL), 0);
    if REFUSED.fetch_add(1, Ordering::Relaxed) == 0 {
        log::warning(&format!(
            "{} events wait for worker threads, more are not taken: handlers are slower than writers",
            limits::EVENTS_MOST
        ));
    }
}

impl Queue {
    /// What waits does not run; it counts as aborted.
    pub fn abort_waiting(&self, active: &Active) {
        self.give_up(active, &End::Aborted);
    }

    /// The same, with what `end` says.
    pub(super) fn give_up(&self, active: &Active, end: &End<'_>) {
        let (waiting, ready) = {
            let mut line = self.line.0.lock();
            let mut ready = self.ready.0.lock();
            (std::mem::take(&mut line.waiting), std::mem::take(&mut ready.events))
        };
        let count = waiting.len() + ready.len();
        for _ in 0..count {
            active.core.stats.ended(end, 0);
        }
        // With nothing behind them, those that were taken out are counted off as well.
        let taken = std::mem::take(&mut self.ready.0.lock().taken);
        if count + taken > 0 {
            left(count + taken);
        }
    }
}
