//! Executions that the host runs in one go, thousands a second: events of keys, and calls of clients. They have ids, outcomes and places in
//! the lists like others, but neither a machine nor a job; a full `Execution` is made of one only when somebody looks.
//! Those that wait for their turn are kept by the host, which is asked for them (`Waiting`).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicI64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};

use super::{Engine, Execution, Fired, Interrupt, Listed};
use crate::{
    codec::RecordBatch,
    execution::{Machine, Outcome, Phase, Setup},
    limits,
    message::ExecutionId,
    plan::Plan,
};

/// Executions of one registration that wait for a thread. Its calls must not come back to the engine, but for `withdraw`.
pub trait Waiting: Send + Sync {
    /// Their numbers, oldest first.
    fn numbers(&self) -> Vec<u64>;
    /// How many they are.
    fn count(&self) -> usize;
    /// The one with this number waits.
    fn waits(&self, number: u64) -> bool;
    /// It is not to run: counts it as aborted and calls `Swift::withdrawn`. False if it does not wait (any more).
    fn withdraw(&self, number: u64) -> bool;
}

/// The executions of one registration that run and that have ended.
pub struct Swift {
    waiting: OnceLock<Weak<dyn Waiting>>,
    registration: Arc<str>,
    plan: Arc<Plan>,
    inner: Mutex<Inner>,
    all: Arc<AtomicI64>,
}

#[derive(Default)]
struct Inner {
    /// Oldest first.
    ended: VecDeque<Ended>,
    /// What these gave.
    bytes: usize,
    running: Vec<Running>,
    /// The number of the last one that has begun.
    newest: Option<u64>,
    /// Those that wait and that somebody looks at.
    promised: HashMap<u64, Arc<Execution>>,
}

struct Ended {
    number: u64,
    /// What its outcome takes.
    bytes: usize,
    outcome: Outcome,
    total_ns: u64,
    aborted: bool,
}

struct Running {
    number: u64,
    interrupt: Arc<dyn Interrupt>,
    /// It is to stop.
    stopped: bool,
    /// Somebody looks at it, and may wait for its end.
    shown: Option<Arc<Execution>>,
}

/// All of a shard.
#[derive(Default)]
pub(super) struct Swifts {
    by_registration: Mutex<Vec<Weak<Swift>>>,
    /// Ended ones that are kept.
    kept: Arc<AtomicI64>,
}

impl Swifts {
    fn all(&self) -> Vec<Arc<Swift>> {
        let mut all = self.by_registration.lock();
        all.retain(|swift| swift.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Forgets the oldest ones of all registrations until `max` are left; several at once, if they are many.
    #[inline]
    fn trim(&self, max: i64) {
        if self.kept.load(Ordering::Relaxed) <= max + max / 16 {
            return;
        }
        self.trim_now(max);
    }

    #[cold]
    fn trim_now(&self, max: i64) {
        let all = self.all();
        let mut numbers: Vec<u64> = Vec::new();
        for swift in &all {
            numbers.extend(swift.inner.lock().ended.iter().map(|ended| ended.number));
        }
        let excess = numbers.len().saturating_sub(usize::try_from(max).unwrap_or(usize::MAX));
        if excess == 0 {
            return;
        }
        let (_, newest, _) = numbers.select_nth_unstable(excess - 1);
        all.iter().for_each(|swift| swift.forget_until(*newest));
    }
}

/// What came of stopping one.
pub(super) enum Abort {
    /// There is none with this id.
    Unknown,
    /// It does not run.
    Done,
    /// It runs, and is to be stopped.
    Stops(Arc<Swift>, u64),
}

fn phase_of(aborted: bool) -> Phase {
    if aborted { Phase::Aborted } else { Phase::Done }
}

impl Swift {
    /// Names who keeps those that wait; once.
    pub fn set_waiting(&self, waiting: Weak<dyn Waiting>) {
        // Only the first one counts.
        let _ = self.waiting.set(waiting);
    }

    fn waiting(&self) -> Option<Arc<dyn Waiting>> {
        self.waiting.get()?.upgrade()
    }

    /// One begins on this thread; it can be stopped. To be called before it stops to wait.
    pub fn begun(&self, number: u64, interrupt: Arc<dyn Interrupt>) {
        let mut inner = self.inner.lock();
        inner.newest = inner.newest.max(Some(number));
        let shown = match inner.promised.is_empty() {
            true => None,
            false => inner.promised.remove(&number),
        };
        if let Some(execution) = &shown {
            execution.show_begin();
        }
        inner.running.push(Running {
            number,
            interrupt,
            shown,
            stopped: false,
        });
    }

    /// One that waited does not run. Those who looked at it hear of it.
    pub fn withdrawn(&self, engine: &Arc<Engine>, number: u64) {
        let promised = self.inner.lock().promised.remove(&number);
        if let Some(execution) = promised {
            execution.show_end(engine, Phase::Aborted, Outcome::default());
        }
    }

    /// One that has begun is over, and is listed from now on as such. `aborted`: it was ended before it was complete. `keep`:
    /// `MaxExecutionsPerRegistration`.
    pub fn ended(&self, engine: &Arc<Engine>, number: u64, outcome: Outcome, total_ns: u64, aborted: bool, keep: i64) {
        let inner = self.leaves(engine, number, &outcome, total_ns, aborted);
        let ended = Ended {
            number,
            bytes: outcome.bytes(),
            outcome,
            total_ns,
            aborted,
        };
        self.keep_in(inner, engine, ended, keep);
    }

    /// The same for one that is listed no more.
    pub fn over(&self, engine: &Arc<Engine>, number: u64, outcome: &Outcome, total_ns: u64, aborted: bool) {
        drop(self.leaves(engine, number, outcome, total_ns, aborted));
    }

    fn leaves(
        &self,
        engine: &Arc<Engine>,
        number: u64,
        outcome: &Outcome,
        total_ns: u64,
        aborted: bool,
    ) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock();
        let at = inner.running.iter().position(|running| running.number == number);
        let running = at.map(|at| inner.running.swap_remove(at));
        if let Some(execution) = running.and_then(|running| running.shown) {
            drop(inner);
            execution.total_ns.store(total_ns, Ordering::Relaxed);
            execution.show_end(engine, phase_of(aborted), outcome.clone());
            inner = self.inner.lock();
        }
        inner
    }

    /// One that has begun is to stop: what it has postponed is not to go on.
    pub fn is_to_stop(&self, number: u64) -> bool {
        let inner = self.inner.lock();
        inner
            .running
            .iter()
            .any(|running| running.number == number && running.stopped)
    }

    /// One that has begun, if it is known here, goes on as this execution, which has its number and is held.
    pub fn goes_on(&self, engine: &Arc<Engine>, number: u64, rest: &Arc<Execution>) {
        let take = |stopped_too: bool| {
            let mut inner = self.inner.lock();
            let at = inner.running.iter().position(|running| running.number == number)?;
            (stopped_too || !inner.running[at].stopped).then(|| inner.running.swap_remove(at))
        };
        let mut running = take(false);
        if running.is_none() && self.is_to_stop(number) {
            // Before it leaves: who has it stopped waits for that.
            rest.drive(engine, Machine::abort);
            running = take(true);
        }
        if let Some(shown) = running.and_then(|running| running.shown) {
            let engine = engine.clone();
            rest.when_over(Box::new(move |rest| {
                let total_ns = rest.total_ns.load(Ordering::Relaxed);
                shown.total_ns.store(total_ns, Ordering::Relaxed);
                shown.show_end(&engine, rest.phase(), rest.with_outcome(Clone::clone));
            }));
        }
    }

    /// One has run that nobody could have seen before: it is listed from now on.
    pub fn keep(&self, engine: &Engine, number: u64, outcome: Outcome, total_ns: u64, aborted: bool, keep: i64) {
        let ended = Ended {
            number,
            bytes: outcome.bytes(),
            outcome,
            total_ns,
            aborted,
        };
        self.keep_in(self.inner.lock(), engine, ended, keep);
    }

    fn keep_in(&self, mut inner: MutexGuard<'_, Inner>, engine: &Engine, ended: Ended, keep: i64) {
        let max = engine.host.max_executions();
        let mut gone = None;
        // What the number of all changes by: mostly one comes and one goes.
        let mut change = 1;
        let bytes = ended.bytes;
        while let Some(its_bytes) = inner.ended.front().map(|oldest| oldest.bytes) {
            let too_many = inner.ended.len() as i64 >= keep || inner.bytes + bytes > limits::KEPT_BYTES;
            let of_all = max > 0 && self.all.load(Ordering::Relaxed) + change > max;
            if !(of_all || keep > 0 && too_many) {
                break;
            }
            inner.bytes -= its_bytes;
            gone = inner.ended.pop_front();
            change -= 1;
        }
        inner.bytes += bytes;
        inner.ended.push_back(ended);
        if change != 0 {
            self.all.fetch_add(change, Ordering::Relaxed);
        }
        drop(inner);
        // Outside of the lock.
        drop(gone);
        if max > 0 {
            engine.swifts.trim(max);
        }
    }

    /// Forgets those that have ended with this number or a lower one.
    fn forget_until(&self, number: u64) {
        let mut inner = self.inner.lock();
        let ended = std::mem::take(&mut inner.ended).into_iter();
        let (gone, kept): (Vec<Ended>, _) = ended.partition(|ended| ended.number <= number);
        inner.ended = VecDeque::from(kept);
        inner.bytes -= gone.iter().map(|ended| ended.bytes).sum::<usize>();
        self.all.fetch_sub(gone.len() as i64, Ordering::Relaxed);
        drop(inner);
        // Outside of the lock.
        drop(gone);
    }

    fn list(&self, prefix: &crate::topology::NodeId, out: &mut Vec<Listed>) {
        // First, so that none is missed that begins meanwhile; it is not to be listed twice either.
        let waiting = self.waiting().map_or_else(Vec::new, |waiting| waiting.numbers());
        let inner = self.inner.lock();
        // They begin in their order: what is not newer than one that has begun has begun too, and may have been dropped
        // already. An aborted one may not have begun.
        let newest = inner.newest;
        let aborted = inner.ended.iter().filter(|ended| ended.aborted);
        let aborted: HashSet<u64> = aborted.map(|ended| ended.number).collect();
        let still = |number: &&u64| Some(**number) > newest && !aborted.contains(*number);
        let waiting = waiting.iter().filter(still).map(|number| (*number, Phase::Created));
        let ended = inner.ended.iter().map(|ended| (ended.number, phase_of(ended.aborted)));
        let running = inner.running.iter().map(|running| (running.number, Phase::Running));
        out.extend(ended.chain(running).chain(waiting).map(|(number, phase)| Listed {
            id: ExecutionId::new(prefix, number),
            status: phase.status(),
            registered: true,
        }));
    }

    fn show(&self, engine: &Engine, id: &ExecutionId, number: u64) -> Option<Arc<Execution>> {
        let waiting = self.waiting();
        let waits = || waiting.as_ref().is_some_and(|waiting| waiting.waits(number));
        let does_wait = waits();
        let found = self.show_known(engine, id, number, does_wait);
        if !does_wait || waits() {
            return found;
        }
        // It has begun meanwhile, before or after it was promised.
        self.inner.lock().promised.remove(&number);
        self.show_known(engine, id, number, false)
    }

    fn show_known(&self, engine: &Engine, id: &ExecutionId, number: u64, waits: bool) -> Option<Arc<Execution>> {
        let mut inner = self.inner.lock();
        if let Some(running) = inner.running.iter_mut().find(|running| running.number == number) {
            let interrupt = running.interrupt.clone();
            let make = || self.execution(engine, id, interrupt, Phase::Running, Outcome::default());
            return Some(running.shown.get_or_insert_with(make).clone());
        }
        let Some(ended) = inner.ended.iter().find(|ended| ended.number == number) else {
            if !waits {
                return None;
            }
            let interrupt = engine.host.new_interrupt();
            let make = || self.execution(engine, id, interrupt, Phase::Created, Outcome::default());
            return Some(inner.promised.entry(number).or_insert_with(make).clone());
        };
        let (interrupt, phase) = (engine.host.new_interrupt(), phase_of(ended.aborted));
        let execution = self.execution(engine, id, interrupt, phase, ended.outcome.clone());
        execution.total_ns.store(ended.total_ns, Ordering::Relaxed);
        Some(execution)
    }

    fn execution(
        &self,
        engine: &Engine,
        id: &ExecutionId,
        interrupt: Arc<dyn Interrupt>,
        phase: Phase,
        outcome: Outcome,
    ) -> Arc<Execution> {
        let topology = engine.topology();
        let setup = Setup {
            id: id.clone(),
            participants: Arc::from([topology.me.clone()]),
            me: 0,
            initiator: 0,
            epoch: topology.epoch,
            stages: self.plan.stages(false),
            idle_limit_ms: 0,
        };
        let fired = Fired {
            registration: self.registration.clone(),
            index: 0,
            input: RecordBatch::default(),
            here: None,
            idle_limit_ms: 0,
            spent_ns: None,
            reads_on: None,
        };
        let machine = Machine::shown(Arc::new(setup), phase, outcome);
        Execution::new(self.plan.clone(), false, Some(fired), machine, interrupt)
    }

    /// Notes that it is to stop, if it has begun and is not over.
    fn must_stop(&self, number: u64) -> bool {
        let mut inner = self.inner.lock();
        let running = inner.running.iter_mut().find(|running| running.number == number);
        running.map(|running| running.stopped = true).is_some()
    }

    /// It has begun and is not over.
    pub(super) fn runs(&self, number: u64) -> bool {
        let inner = self.inner.lock();
        inner.running.iter().any(|running| running.number == number)
    }

    /// Interrupts one that runs.
    pub(super) fn interrupt(&self, number: u64) {
        let inner = self.inner.lock();
        let running = inner.running.iter().find(|running| running.number == number);
        let interrupt = running.map(|running| running.interrupt.clone());
        drop(inner);
        if let Some(interrupt) = interrupt {
            interrupt.request();
        }
    }

    fn withdraw(&self, number: u64) -> bool {
        self.waiting().is_some_and(|waiting| waiting.withdraw(number))
    }

    fn forget(&self, number: u64) -> bool {
        let mut inner = self.inner.lock();
        let at = inner.ended.iter().position(|ended| ended.number == number);
        let gone = at.and_then(|at| inner.ended.remove(at));
        inner.bytes -= gone.as_ref().map_or(0, |gone| gone.bytes);
        self.all.fetch_sub(i64::from(gone.is_some()), Ordering::Relaxed);
        drop(inner);
        gone.is_some()
    }
}

impl Drop for Swift {
    fn drop(&mut self) {
        let kept = self.inner.get_mut().ended.len() as i64;
        self.all.fetch_sub(kept, Ordering::Relaxed);
    }
}

impl Engine {
    /// A place for the executions of a registration. They are listed as long as it lives.
    pub fn swift(&self, registration: Arc<str>, plan: Arc<Plan>) -> Arc<Swift> {
        let swift = Arc::new(Swift {
            registration,
            plan,
            waiting: OnceLock::new(),
            inner: Mutex::default(),
            all: self.swifts.kept.clone(),
        });
        let mut all = self.swifts.by_registration.lock();
        // Not each time: there may be many.
        if all.len() == all.capacity() {
            all.retain(|swift| swift.strong_count() > 0);
        }
        all.push(Arc::downgrade(&swift));
        swift
    }

    /// Queues a task for the threads of executions.
    pub fn submit(&self, task: impl FnOnce() + Send + 'static) {
        self.pool.submit(task);
    }

    /// Queues a task of several that come at once; `wake` is to follow soon.
    pub fn submit_soon(&self, task: impl FnOnce() + Send + 'static) {
        self.pool.submit_soon(task);
    }

    /// Wakes a thread of executions for tasks that wait, if one is needed.
    pub fn wake(&self) {
        self.pool.wake();
    }

    /// A thread of executions begins something at this time of the engine's clock.
    pub fn gets_on(&self, now_ns: u64) {
        self.got_on_ms.store(now_ns / 1_000_000, Ordering::Relaxed);
    }

    /// Tasks that wait for them.
    pub fn queued(&self) -> usize {
        self.pool.queued()
    }

    /// Nanoseconds of the engine's clock.
    pub fn now_ns(&self) -> u64 {
        self.host.now_ns()
    }

    pub(super) fn list_swifts(&self, out: &mut Vec<Listed>) {
        let prefix = self.topology().execution_prefix();
        self.swifts.all().iter().for_each(|swift| swift.list(&prefix, out));
    }

    pub(super) fn find_swift(&self, id: &ExecutionId) -> Option<Arc<Execution>> {
        let number = self.own_number(id)?;
        self.swifts.all().iter().find_map(|swift| swift.show(self, id, number))
    }

    /// The number of one that this shard has made.
    fn own_number(&self, id: &ExecutionId) -> Option<u64> {
        let number = id.number();
        (ExecutionId::new(&self.topology().execution_prefix(), number) == *id).then_some(number)
    }

    pub(super) fn forget_swift(&self, id: &ExecutionId) {
        if let Some(number) = self.own_number(id) {
            let _ = self.swifts.all().iter().any(|swift| swift.forget(number));
        }
    }

    /// Stops one that runs, or one that waits.
    pub(super) fn abort_swift(&self, id: &ExecutionId) -> Abort {
        let Some(number) = self.own_number(id) else {
            return Abort::Unknown;
        };
        let all = self.swifts.all();
        let running = || all.iter().find(|swift| swift.must_stop(number));
        let stopped = |swift: &Arc<Swift>| Abort::Stops(swift.clone(), number);
        if let Some(swift) = running() {
            return stopped(swift);
        }
        if all.iter().any(|swift| swift.withdraw(number)) {
            return Abort::Done;
        }
        // It may have begun in between.
        running().map_or(Abort::Unknown, stopped)
    }

    pub(super) fn count_swifts(&self) -> usize {
        let under_way = |swift: &Arc<Swift>| {
            let waiting = swift.waiting().map_or(0, |waiting| waiting.count());
            waiting + swift.inner.lock().running.len()
        };
        let kept = usize::try_from(self.swifts.kept.load(Ordering::Relaxed)).unwrap_or(0);
        kept + self.swifts.all().iter().map(under_way).sum::<usize>()
    }
}
