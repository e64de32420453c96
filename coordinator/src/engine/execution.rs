//! An execution with its surroundings: the state machine, its job, who waits for it, and the worker's loop.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    Engine, Fired, Interrupt,
    create::Start,
    job::{ActiveJob, ActiveStage, Next, Sink, next_input},
    pool::panic_text,
};
use crate::{
    codec::RecordBatch,
    execution::{Command, Machine, Outcome, Phase, Setup},
    limits,
    message::{ExecutionId, ExecutionMessage},
    plan::Plan,
    stage::{Job, Route, RunState, StageSink},
    topology::{NodeId, Topology},
};

/// Worker states: nobody, queued, on a thread, on a thread and to be looked at again.
const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const AGAIN: u8 = 3;

/// Called once when the execution is over.
pub type Waiter = Box<dyn FnOnce(&Arc<Execution>) + Send>;

/// One execution on one shard.
pub struct Execution {
    /// Its id.
    pub id: ExecutionId,
    /// What it runs.
    pub plan: Arc<Plan>,
    /// Made by a `run()` inside a running function.
    pub nested: bool,
    /// How many events caused each other up to it.
    pub(super) depth: AtomicU32,
    /// The registration that fired it.
    pub(super) fired: Option<Fired>,
    pub(super) setup: Arc<Setup>,
    pub(super) machine: Mutex<Machine>,
    /// Held until `Engine::release`.
    start: Mutex<Option<Start>>,
    job: Mutex<Option<ActiveJob>>,
    worker: AtomicU8,
    /// Its functions are being loaded, which may run code of its script.
    pub(super) in_preparation: AtomicBool,
    /// Steps should stop soon.
    pub(super) stopping: AtomicBool,
    pub(super) interrupt: Arc<dyn Interrupt>,
    waiters: Mutex<Vec<Waiter>>,
    /// Slot -> participant; set when the topology that the execution is bound to is known here.
    pub(super) owners: OnceLock<Arc<[u16]>>,
    /// Time on worker threads, and what ran before it was made, in ns.
    pub total_ns: AtomicU64,
    /// Since when a worker thread is on it and the time has not been added; 0: none is.
    on_thread_since_ns: AtomicU64,
    /// Time in the reader, in ns.
    pub read_ns: AtomicU64,
    /// Drop it from the lists as soon as it is over.
    pub(super) drop_when_over: AtomicBool,
    /// It is one of `Engine::pending`.
    pub(super) counted_pending: AtomicBool,
}

impl Execution {
    pub(super) fn new(
        plan: Arc<Plan>,
        nested: bool,
        fired: Option<Fired>,
        machine: Machine,
        interrupt: Arc<dyn Interrupt>,
    ) -> Arc<Execution> {
        let setup = machine.setup().clone();
        let spent_ns = fired.as_ref().and_then(|fired| fired.spent_ns);
        Arc::new(Execution {
            id: setup.id.clone(),
            plan,
            nested,
            depth: AtomicU32::new(0),
            fired,
            setup,
            machine: Mutex::new(machine),
            start: Mutex::new(None),
            job: Mutex::new(None),
            worker: AtomicU8::new(IDLE),
            stopping: AtomicBool::new(false),
            interrupt,
            waiters: Mutex::new(Vec::new()),
            owners: OnceLock::new(),
            total_ns: AtomicU64::new(spent_ns.unwrap_or(0)),
            on_thread_since_ns: AtomicU64::new(0),
            read_ns: AtomicU64::new(0),
            in_preparation: AtomicBool::new(false),
            drop_when_over: AtomicBool::new(false),
            counted_pending: AtomicBool::new(false),
        })
    }

    /// One that only shows what ran elsewhere has ended there.
    pub(super) fn show_begin(&self) {
        self.machine.lock().show_begin();
    }

    /// What it shows has ended.
    pub(super) fn show_end(self: &Arc<Self>, engine: &Arc<Engine>, phase: Phase, outcome: Outcome) {
        self.machine.lock().show_end(phase, outcome);
        self.over(engine);
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.machine.lock().phase()
    }

    /// Runs `f` on results and errors so far.
    pub fn with_outcome<T>(&self, f: impl FnOnce(&Outcome) -> T) -> T {
        f(self.machine.lock().outcome())
    }

    /// Results and errors, given away: for an execution that is dropped with its reply.
    pub fn take_outcome(&self) -> Outcome {
        self.machine.lock().take_outcome()
    }

    /// Other shards take part.
    pub fn is_distributed(&self) -> bool {
        !self.setup.is_alone()
    }

    /// Id of the registration that fired it.
    pub fn registration(&self) -> Option<&Arc<str>> {
        self.fired.as_ref().map(|fired| &fired.registration)
    }

    pub(super) fn hold(&self, start: Start) {
        *self.start.lock() = Some(start);
    }

    pub(super) fn take_start(&self) -> Option<Start> {
        self.start.lock().take()
    }

    /// Acknowledged and completed participants, see `Machine::counts`.
    pub fn counts(&self) -> (usize, usize) {
        self.machine.lock().counts()
    }

    /// Calls `waiter` when the execution is over; now if it is.
    pub fn when_over(self: &Arc<Self>, waiter: Waiter) {
        let machine = self.machine.lock();
        if !machine.phase().is_over() {
            self.waiters.lock().push(waiter);
            return;
        }
        drop(machine);
        waiter(self);
    }

    /// Routes by the owners of this topology, whose epoch is the execution's.
    pub(super) fn bind(&self, topology: &Topology) {
        self.owners.get_or_init(|| topology.owners());
    }

    pub(super) fn set_job(&self, job: Job) {
        let job = ActiveJob::new(job, &self.setup);
        *self.job.lock() = Some(job);
    }

    /// A thread is on it, and may be in code of its script.
    pub(super) fn is_on_thread(&self) -> bool {
        self.worker.load(Ordering::Acquire) >= RUNNING || self.in_preparation.load(Ordering::Acquire)
    }

    /// It waits for a worker thread.
    pub(super) fn is_queued(&self) -> bool {
        self.worker.load(Ordering::Acquire) == QUEUED
    }

    /// Does something with the machine, then carries its commands out.
    pub(super) fn drive<T>(self: &Arc<Self>, engine: &Arc<Engine>, f: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.machine.lock();
        let value = f(&mut machine);
        let commands = machine.take_commands();
        if commands.is_empty() {
            return value;
        }
        let mut over = false;
        let mut run = false;
        let mut lost = None;
        let mut sends = Vec::new();
        for command in commands {
            match command {
                Command::Send(to, message) => sends.push((to, message)),
                Command::Run => run = true,
                Command::Over => over = true,
            }
        }
        for (to, message) in joined(sends) {
            let node = &self.setup.participants[to];
            // Sent under the lock, so that the order on the link is the machine's.
            if let Err(reason) = engine.send(node, &self.id, message) {
                lost = Some((node, reason));
            }
        }
        drop(machine);
        if run {
            self.schedule(engine);
        }
        if over {
            self.over(engine);
        } else if let Some((node, reason)) = lost {
            self.peer_lost(engine, node, &reason);
        }
        value
    }

    /// A participant is gone.
    pub(super) fn peer_lost(self: &Arc<Self>, engine: &Arc<Engine>, node: &NodeId, reason: &str) {
        self.drive(engine, |m| m.on_peer_lost(node, reason));
    }

    fn over(self: &Arc<Self>, engine: &Arc<Engine>) {
        self.stopping.store(true, Ordering::Release);
        self.is_pending_no_more(engine);
        // Whoever hears of the end wants to know how long it took.
        let now_ns = engine.host.now_ns();
        self.add_time(now_ns, now_ns);
        drop(self.take_start());
        self.free_job(engine);
        if self.phase() == Phase::Aborted && self.is_on_thread() {
            engine.stopper.stop(self);
        }
        self.log_failure(engine);
        let mut waiters = std::mem::take(&mut *self.waiters.lock());
        // Who made it may take the outcome away: after all others.
        waiters.reverse();
        engine.execution_over(self);
        if waiters.is_empty() {
            return;
        }
        if self.is_answered_here() {
            let answer = || waiters.into_iter().for_each(|waiter| waiter(self));
            if let Err(panic) = catch_unwind(AssertUnwindSafe(answer)) {
                let text = panic_text(panic.as_ref());
                engine
                    .host
                    .log_warning(&format!("an answer met an internal error: {text}"));
            }
        } else {
            let execution = self.clone();
            engine
                .replying
                .submit(move || waiters.into_iter().for_each(|waiter| waiter(&execution)));
        }
    }

    /// The small outcome of a trigger does not need another thread. Whoever aborts may hold locks, so that is left to
    /// another thread always.
    fn is_answered_here(&self) -> bool {
        let machine = self.machine.lock();
        let outcome = machine.outcome();
        let results: usize = outcome.results.iter().map(|batch| batch.bytes.len()).sum();
        let errors: usize = outcome.errors.iter().map(String::len).sum();
        self.fired.is_some() && machine.phase() == Phase::Done && results + errors <= limits::SMALL_REPLY_BYTES
    }

    /// Operators look for these lines.
    fn log_failure(&self, engine: &Arc<Engine>) {
        let reason = match self.phase() {
            Phase::Aborted => self.with_outcome(|o| o.errors.last().cloned()),
            _ => None,
        };
        match reason {
            Some(text) if text.starts_with("Execution max idle reached") => {
                engine
                    .host
                    .log_warning(&format!("Execution max idle reached, ep_id={} ({text})", self.id));
            }
            Some(text) => engine
                .host
                .log_warning(&format!("execution {} failed: {text}", self.id)),
            None => {}
        }
    }

    /// Lets a worker thread look at it.
    pub(super) fn schedule(self: &Arc<Self>, engine: &Arc<Engine>) {
        let step = |state| match state {
            IDLE => Some(QUEUED),
            RUNNING => Some(AGAIN),
            _ => None,
        };
        if self.worker.fetch_update(Ordering::AcqRel, Ordering::Acquire, step) == Ok(IDLE) {
            let (execution, engine) = (self.clone(), engine.clone());
            engine.clone().pool.submit(move || execution.work(&engine));
        }
    }

    /// A worker thread prepares it and goes on with it.
    pub(super) fn run_here(self: &Arc<Self>, engine: &Arc<Engine>, prepare: impl FnOnce() + Send + 'static) {
        self.worker.store(QUEUED, Ordering::Release);
        let (execution, engine) = (self.clone(), engine.clone());
        engine.clone().pool.submit(move || {
            prepare();
            execution.work(&engine);
        });
    }

    /// Adds the time on a worker thread up to now. `from_now_on` is 0 when the thread leaves.
    fn add_time(&self, now_ns: u64, from_now_on: u64) {
        let step = |since: u64| (since != 0).then_some(from_now_on);
        let since = self
            .on_thread_since_ns
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
        if let Ok(since) = since {
            self.total_ns.fetch_add(now_ns.saturating_sub(since), Ordering::AcqRel);
        }
    }

    fn work(self: &Arc<Self>, engine: &Arc<Engine>) {
        loop {
            self.worker.store(RUNNING, Ordering::Release);
            let start = engine.host.now_ns().max(1);
            self.on_thread_since_ns.store(start, Ordering::Release);
            engine.got_on_ms.store(start / 1_000_000, Ordering::Relaxed);
            self.machine.lock().picked_up(start / 1_000_000);
            let mut job = self.job.try_lock();
            if let Some(job) = job.as_mut()
                && let Some(job_ref) = job.as_mut()
            {
                let run = catch_unwind(AssertUnwindSafe(|| self.work_stages(engine, job_ref)));
                if let Err(panic) = run {
                    let reason = format!("met an internal error: {}", panic_text(panic.as_ref()));
                    self.drive(engine, |m| m.fail_here(&reason));
                }
                // Here, because this thread may wait for the interpreter.
                let done = job_ref.stages.iter_mut().filter(|stage| stage.done);
                done.for_each(|stage| stage.runner = None);
            }
            drop(job);
            let end = engine.host.now_ns();
            self.add_time(end, 0);
            self.machine.lock().set_parked(true, end / 1_000_000);
            if self
                .worker
                .compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                break;
            }
        }
        if self.phase().is_over()
            && let Some(mut job) = self.job.try_lock()
        {
            drop(job.take());
        }
    }

    /// Frees functions and records; elsewhere, because that may wait for the interpreter. A worker thread that is on
    /// the job does it itself when it leaves.
    pub(super) fn free_job(&self, engine: &Arc<Engine>) {
        if let Some(mut slot) = self.job.try_lock()
            && let Some(job) = slot.take()
            && job.stages.iter().any(|stage| stage.runner.is_some())
        {
            engine.preparing.submit(move || drop(job));
        }
    }

    /// Works until nothing is to be done now.
    fn work_stages(self: &Arc<Self>, engine: &Arc<Engine>, job: &mut ActiveJob) {
        while !self.stopping.load(Ordering::Acquire) && !self.phase().is_over() {
            // The last stage first: what it frees lets the others go on.
            let Some(stage) = (0..job.stages.len())
                .rev()
                .find(|&s| self.is_runnable(s, &job.stages[s]))
            else {
                return;
            };
            self.work_on(engine, job, stage);
            let now_ms = engine.host.now_ms();
            engine.got_on_ms.store(now_ms, Ordering::Relaxed);
            self.drive(engine, |m| m.progress(now_ms));
        }
        if self.stopping.load(Ordering::Acquire) && !self.phase().is_over() {
            self.drive(engine, Machine::abort);
        }
    }

    fn is_runnable(&self, number: usize, stage: &ActiveStage) -> bool {
        let machine = self.machine.lock();
        if stage.done || !machine.can_emit(number) {
            return false;
        }
        if stage.waiting || stage.pending && stage.hungry && stage.is_woken() {
            return stage.is_woken();
        }
        !stage.hungry || may_take_input(&machine, number)
    }

    fn work_on(self: &Arc<Self>, engine: &Arc<Engine>, job: &mut ActiveJob, number: usize) {
        let mut sink = {
            let machine = self.machine.lock();
            let (own, errors_stay) = (machine.has_own_errors(), machine.errors_stay(number));
            Sink {
                execution: self,
                engine,
                stage: number,
                errors: Vec::new(),
                full: false,
                own,
                errors_stay,
            }
        };
        let stage = &mut job.stages[number];
        let woken = stage.go_on();
        if stage.hungry && (!woken || may_take_input(&self.machine.lock(), number)) {
            match next_input(self, engine, &mut job.input, number) {
                Next::Batch(batch) => match &mut stage.runner {
                    Some(runner) => {
                        runner.feed(batch);
                        stage.hungry = false;
                    }
                    None => return self.hand_on(engine, &mut sink, batch),
                },
                Next::Whole(batch) => {
                    if let Some(runner) = &mut stage.runner {
                        runner.feed(batch);
                    }
                    stage.close();
                }
                Next::Broken(reason) => return self.drive(engine, |m| m.fail_here(&reason)),
                Next::Error(text) => {
                    sink.error(text);
                    stage.close();
                }
                Next::Nothing => {}
                Next::End => stage.close(),
            }
        }
        let mut changed = false;
        if let Some(runner) = &mut stage.runner {
            match runner.run(&mut sink) {
                RunState::NeedInput => stage.hungry = !stage.closed,
                RunState::Yield => {}
                RunState::Waiting => stage.waiting = true,
                RunState::Done => stage.done = true,
            }
            let pending = !stage.done && runner.is_pending();
            if pending && stage.woken.is_none() {
                let woken = Arc::new(AtomicBool::new(false));
                stage.woken = Some(woken.clone());
                runner.set_waker(self.waker(engine, woken));
            }
            changed = std::mem::replace(&mut stage.pending, pending) != pending;
            if !stage.closed && !stage.done && runner.satisfied() {
                stage.close();
                self.drive(engine, |m| m.discard_input(number));
            }
        }
        sink.flush();
        if stage.done {
            if let Some(runner) = &stage.runner {
                self.machine.lock().measured(number, runner.durations_ns());
                self.read_ns.fetch_add(runner.read_ns(), Ordering::Relaxed);
            }
            self.drive(engine, |m| m.stage_done(number));
        }
        if changed {
            self.set_pending(engine, job.is_pending());
        }
    }

    /// A stage without steps gives the batch on as it came.
    fn hand_on(self: &Arc<Self>, engine: &Arc<Engine>, sink: &mut Sink<'_>, batch: RecordBatch) {
        match batch.check() {
            Ok(()) => sink.emit(Route::Default, batch),
            Err(e) => self.drive(engine, |m| {
                m.fail_here(&format!("got records that can not be decoded ({e})"))
            }),
        }
    }
}

/// The next input of a stage is there, or its end is.
fn may_take_input(machine: &Machine, stage: usize) -> bool {
    stage == 0 || machine.has_input(stage) || machine.input_complete(stage)
}

/// Small messages to one participant that follow each other become one.
fn joined(sends: Vec<(usize, ExecutionMessage)>) -> Vec<(usize, ExecutionMessage)> {
    if sends.len() < 2 {
        return sends;
    }
    let mut joined: Vec<(usize, ExecutionMessage)> = Vec::with_capacity(sends.len());
    for (to, message) in sends {
        let last = joined.last_mut().filter(|(last, _)| *last == to).map(|(_, last)| last);
        match last {
            Some(ExecutionMessage::Several(parts)) if is_small(&message) && parts.len() < limits::MESSAGES_IN_ONE => {
                parts.push(message);
            }
            Some(last) if is_small(last) && is_small(&message) => {
                let first = std::mem::replace(last, ExecutionMessage::Report);
                *last = ExecutionMessage::Several(vec![first, message]);
            }
            _ => joined.push((to, message)),
        }
    }
    joined
}

fn is_small(message: &ExecutionMessage) -> bool {
    match message {
        ExecutionMessage::Batch { batch, .. } => batch.bytes.len() <= limits::SMALL_BATCH_BYTES,
        ExecutionMessage::EndOfInput { .. } | ExecutionMessage::Credit { .. } | ExecutionMessage::Report => true,
        _ => false,
    }
}
