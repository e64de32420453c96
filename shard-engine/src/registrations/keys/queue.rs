//! Events that wait for a worker thread of this shard: a line for each registration, and one bound for all lines.
//!
//! At `EVENTS_SLOW` writers are to be slowed down: the interception asks `is_full` and parks clients until there is
//! room. What can not be slowed goes on up to `EVENTS_MOST`; beyond, an event is counted as aborted, with a text. Events
//! whose handlers have begun and await something count as well.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use oxigears_coordinator::{codec::RecordBatch, engine::Waiting, execution::Outcome, registry::RegisterMode};
use parking_lot::{Condvar, Mutex};

use super::{fire::Event, held, index::Entry, reading, spread};
use crate::{
    module::module,
    readers::event::Huge,
    redis::{
        lock::{self, ServerLock},
        log,
    },
    registrations::{
        active::{Active, Core},
        intercept::see_to_filter,
        limits,
        padded::Padded,
        stats::End,
    },
};

/// The events of one registration.
///
/// Writers and workers touch different cache lines for most events. `ready` is locked after `line`.
#[derive(Default)]
pub struct Queue {
    pub(super) line: Padded<Mutex<Line>>,
    /// Those whose records have been read.
    pub(super) ready: Padded<Mutex<ReadyLine>>,
    /// The main thread is about to read records of events that wait. Taken back with `ready` locked.
    pub(super) announced: Padded<AtomicBool>,
    /// It has.
    pub(super) arrived: Condvar,
    /// Events that wait in the line for executions on all shards (`spread`). Changed with that line locked.
    pub(super) spread: AtomicUsize,
    /// When an event began last, in ns of the engine's clock.
    pub(super) progress_ns: Padded<AtomicU64>,
    /// Workers that are on their way to the next event.
    pub(super) coming: Padded<AtomicU32>,
    /// How the worker that ran steps last is known as holder of the GIL.
    pub(super) holder: Padded<AtomicUsize>,
}

#[derive(Default)]
pub(super) struct ReadyLine {
    events: VecDeque<Ready>,
    /// Of their records.
    bytes: usize,
    /// Events that were taken out and are still counted as waiting.
    taken: usize,
}

impl ReadyLine {
    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// So few that more may be read before they are needed.
    pub fn is_short(&self) -> bool {
        self.len() < limits::EVENTS_READY && self.bytes < limits::EVENTS_READY_BYTES
    }

    /// Puts one at the end.
    pub fn push(&mut self, ready: Ready) {
        self.bytes += ready.bytes();
        self.events.push_back(ready);
    }

    fn find(&self, number: u64) -> Option<usize> {
        let at = self.events.binary_search_by_key(&number, |ready| ready.event.number);
        at.ok()
    }

    /// Takes one out, and how many are to be counted off now, itself not among them.
    fn remove(&mut self, at: usize) -> Option<(Event, usize)> {
        let ready = self.events.remove(at)?;
        self.bytes -= ready.bytes();
        let count = if self.events.is_empty() {
            mem::take(&mut self.taken)
        } else {
            0
        };
        Some((ready.event, count))
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        self.events.iter().map(|ready| ready.event.number)
    }

    /// The next one, and how many are to be counted off now: several at once. `begins` is told its number before it stops
    /// to wait.
    pub fn pop(&mut self, begins: impl FnOnce(u64)) -> Option<(Ready, usize)> {
        begins(self.events.front()?.event.number);
        let ready = self.events.pop_front()?;
        self.bytes -= ready.bytes();
        self.taken += 1;
        let count_now = self.taken >= COUNTED_AT_ONCE || self.events.is_empty();
        let count = if count_now { mem::take(&mut self.taken) } else { 0 };
        Some((ready, count))
    }
}

#[derive(Default)]
pub(super) struct Line {
    pub waiting: VecDeque<Event>,
    /// Some are in neither line, because their records are being read.
    pub reading: bool,
    /// The number of an event whose value was found to be huge when it was the first one.
    pub found_huge: Option<(u64, Huge)>,
    /// A worker reads the record of the first one in slices.
    pub huge: bool,
    /// Tasks that handle them, running or queued.
    pub workers: u32,
    /// A task looks whether they are held up.
    pub spare: bool,
}

impl Line {
    /// Where the event with this number waits. They are in the order of their numbers.
    fn find(&self, number: u64) -> Option<usize> {
        let at = self.waiting.binary_search_by_key(&number, |event| event.number);
        at.ok()
    }

    /// A task should look after the line, and none does: counts it.
    pub fn takes_spare(&mut self) -> bool {
        let takes = !self.spare && self.workers < module().config.execution_threads() as u32;
        self.spare |= takes;
        takes
    }
}

/// An event with its record, or why there is none.
pub(super) struct Ready {
    pub event: Event,
    pub record: Result<RecordBatch, String>,
}

impl Ready {
    fn bytes(&self) -> usize {
        self.record.as_ref().map_or(0, |record| record.bytes.len())
    }
}

/// See `ReadyLine::pop`.
const COUNTED_AT_ONCE: usize = 16;

static WAITING: AtomicUsize = AtomicUsize::new(0);
/// Events of mode `sync` whose handlers wait for something. Of other modes they stay among those that wait.
static POSTPONED: AtomicUsize = AtomicUsize::new(0);
static MOST_WAITING: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// See `is_long`. Changed under the server lock.
static LONG: AtomicBool = AtomicBool::new(false);
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
    /// Of mode `sync`, whose handlers wait for something now.
    pub postponed: u64,
}

/// Numbers for INFO.
pub fn numbers() -> Numbers {
    Numbers {
        waiting: WAITING.load(Ordering::Relaxed) as u64,
        most: MOST_WAITING.load(Ordering::Relaxed) as u64,
        refused: REFUSED.load(Ordering::Relaxed),
        postponed: POSTPONED.load(Ordering::Relaxed) as u64,
    }
}

/// Writers whose commands may raise events for the queue should wait.
#[inline]
pub fn is_full() -> bool {
    WAITING.load(Ordering::Relaxed) >= limits::EVENTS_SLOW
}

/// Writers whose commands may raise events for handlers of mode `sync` should wait.
#[inline]
pub fn is_full_of_postponed() -> bool {
    POSTPONED.load(Ordering::Relaxed) >= limits::EVENTS_SLOW
}

/// The queue may be full soon: commands are to be looked at.
pub fn is_long() -> bool {
    LONG.load(Ordering::Relaxed)
}

/// Sees whether the queue is long. `waiting`: its length.
#[inline]
fn judge_length(guard: &ServerLock, waiting: usize) {
    let long = match is_long() {
        true => waiting >= limits::EVENTS_SHORT,
        false => waiting >= limits::EVENTS_LONG,
    };
    if long != is_long() {
        LONG.store(long, Ordering::Relaxed);
        see_to_filter(guard);
    }
}

/// Events are taken out to be read.
pub(super) fn taken(guard: &ServerLock) {
    judge_length(guard, WAITING.load(Ordering::Relaxed));
}

/// Calls `then` once there is room, on any thread; now if there is. It must not wait.
pub fn when_room(then: Waiter) {
    let mut waiters = WAITERS.lock();
    if is_full() || is_full_of_postponed() {
        return waiters.push(then);
    }
    drop(waiters);
    then();
}

/// So many events do not wait any more.
pub(super) fn left(count: usize) {
    count_off(&WAITING, count);
}

fn count_off(waiting: &AtomicUsize, count: usize) {
    let before = waiting.fetch_sub(count, Ordering::AcqRel);
    let room = limits::EVENTS_SLOW - limits::EVENTS_ROOM;
    if before > room && before - count <= room {
        let waiters = mem::take(&mut *WAITERS.lock());
        waiters.into_iter().for_each(|then| then());
    }
}

/// An event whose handler has begun and waits for something (it awaits a future): as long as this lives it counts, so that what
/// waits there is bounded as well.
pub(super) struct Postponed(&'static AtomicUsize);

impl Postponed {
    /// One more, of this mode.
    pub fn new(mode: RegisterMode) -> Postponed {
        let waiting = match mode {
            RegisterMode::Sync => &POSTPONED,
            _ => &WAITING,
        };
        waiting.fetch_add(1, Ordering::AcqRel);
        module().engine.waits_apart();
        Postponed(waiting)
    }
}

impl Drop for Postponed {
    fn drop(&mut self) {
        module().engine.waits_apart_no_more();
        count_off(self.0, 1);
    }
}

/// One more handler of mode `sync` may run; if too many wait for something, the event is counted as aborted.
#[inline]
pub(super) fn takes_sync(active: &Active) -> bool {
    let takes = POSTPONED.load(Ordering::Relaxed) < limits::EVENTS_MOST;
    if !takes {
        refuse(active);
    }
    takes
}

/// Counts an event that is to wait; false if there are too many, then it is counted as aborted.
pub(super) fn joins(guard: &ServerLock, active: &Active) -> bool {
    let waiting = WAITING.fetch_add(1, Ordering::AcqRel) + 1;
    if waiting > limits::EVENTS_MOST {
        left(1);
        refuse(active);
        return false;
    }
    if waiting > MOST_WAITING.load(Ordering::Relaxed) {
        MOST_WAITING.store(waiting, Ordering::Relaxed);
    }
    judge_length(guard, waiting);
    true
}

/// An event waits from now on; it is counted as triggered already.
pub fn push(guard: &ServerLock, entry: &Arc<Entry>, mut event: Event) {
    event.number = module().engine.next_number();
    if !joins(guard, &entry.active) {
        return;
    }
    let mut line = entry.active.core.events.line.0.lock();
    line.waiting.push_back(event);
    let idle = line.workers == 0;
    line.workers += u32::from(idle);
    drop(line);
    reading::came(guard, entry, idle);
}

#[cold]
fn refuse(active: &Active) {
    active.core.stats.ended(&End::Refused(FULL), 0);
    if REFUSED.fetch_add(1, Ordering::Relaxed) == 0 {
        log::warning(&format!(
            "{} events wait for worker threads or for what they await, more are not taken: handlers are slower than writers",
            limits::EVENTS_MOST
        ));
    }
}

impl Core {
    /// What waits does not run; it counts as aborted.
    pub fn abort_waiting(&self) {
        self.abort_calls();
        // Else some may be out of the lines, because their records are being read.
        let _guard = lock::lock_within(limits::WITHDRAW_WAIT);
        self.give_up(&End::Aborted);
    }

    /// The same, with what `end` says.
    pub(super) fn give_up(&self, end: &End<'_>) {
        let (waiting, ready, taken) = {
            let mut line = self.events.line.0.lock();
            let mut ready = self.events.ready.0.lock();
            let ready = mem::take(&mut *ready);
            // With nothing behind them, those that were taken out are counted off as well.
            (mem::take(&mut line.waiting), ready.events, ready.taken)
        };
        let count = waiting.len() + ready.len();
        for event in ready.into_iter().map(|ready| ready.event).chain(waiting) {
            self.gone(event.number, end);
        }
        let mut elsewhere = spread::withdraw(self);
        elsewhere.append(&mut held::withdraw(self));
        elsewhere.iter().for_each(|_| self.stats.ended(end, 0));
        let count = count + elsewhere.len();
        if count + taken > 0 {
            left(count + taken);
        }
    }

    /// It waits, or may do so again in a moment.
    fn may_wait(&self, number: u64) -> bool {
        let line = self.events.line.0.lock();
        line.reading || self.is_in(&line, number)
    }

    fn is_in(&self, line: &Line, number: u64) -> bool {
        let ready = self.events.ready.0.lock();
        ready.find(number).is_some() || line.find(number).is_some()
    }

    /// An event does not run.
    fn gone(&self, number: u64, end: &End<'_>) {
        self.stats.ended(end, 0);
        let (engine, keep) = (&module().engine, module().config.max_executions_per_registration());
        self.swift.withdrawn(engine, number);
        self.swift.keep(engine, number, Outcome::default(), 0, true, keep);
    }
}

/// Events of keys wait here, calls in their own line; a registration has one or the other.
impl Waiting for Core {
    fn numbers(&self) -> Vec<u64> {
        let calls = self.calls.numbers();
        if !calls.is_empty() {
            return calls;
        }
        let line = self.events.line.0.lock();
        let ready = self.events.ready.0.lock();
        let waiting = line.waiting.iter().map(|event| event.number);
        ready.numbers().chain(waiting).collect()
    }

    fn count(&self) -> usize {
        let line = self.events.line.0.lock();
        self.calls.count() + line.waiting.len() + self.events.ready.0.lock().len()
    }

    fn waits(&self, number: u64) -> bool {
        self.calls.waits(number) || self.is_in(&self.events.line.0.lock(), number)
    }

    fn withdraw(&self, number: u64) -> bool {
        if self.withdraw_call(number) {
            return true;
        }
        if !self.may_wait(number) {
            return false;
        }
        // Under the server lock an event is always in one of the lines, and no command sees it in neither state. Not for
        // ever: what holds that lock may be what somebody wants to abort next.
        let _guard = lock::lock_within(limits::WITHDRAW_WAIT);
        let found = {
            let mut line = self.events.line.0.lock();
            let mut ready = self.events.ready.0.lock();
            match ready.find(number).and_then(|at| ready.remove(at)) {
                Some(found) => Some(found),
                None => {
                    let found = line.find(number).and_then(|at| line.waiting.remove(at));
                    found.map(|event| (event, 0))
                }
            }
        };
        // Dropped without the locks: a client may wait for its end.
        let is_found = found.is_some();
        if let Some((_, taken)) = &found {
            left(1 + taken);
            self.gone(number, &End::Aborted);
        }
        drop(found);
        is_found
    }
}
