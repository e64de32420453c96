//! An execution with its surroundings: the state machine, its job, who waits for it, and the worker's loop.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{Engine, Interrupt, pool::panic_text};
use crate::{
    codec::RecordBatch,
    execution::{Command, Machine, Outcome, Phase},
    message::ExecutionId,
    plan::{Output, Plan, Stage},
    stage::{Input, Job, Route, RunState, SourceState, StageRunner, StageSink},
    topology::{NO_OWNER, NodeId, Slot, Topology},
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
    pub plan: Plan,
    /// Made by a `run()` inside a running function.
    pub nested: bool,
    pub(super) machine: Mutex<Machine>,
    job: Mutex<Option<ActiveJob>>,
    worker: AtomicU8,
    /// Steps should stop soon.
    pub(super) stopping: AtomicBool,
    pub(super) interrupt: Arc<dyn Interrupt>,
    waiters: Mutex<Vec<Waiter>>,
    /// Slot -> participant; set when the topology that the execution is bound to is known here.
    owners: OnceLock<Arc<[u16]>>,
    /// Time on worker threads and in the reader, in ns.
    pub total_ns: AtomicU64,
    /// Time in the reader, in ns.
    pub read_ns: AtomicU64,
    step_ns: Mutex<Vec<Vec<u64>>>,
    /// Drop it from the lists as soon as it is over.
    pub(super) drop_when_over: AtomicBool,
}

impl Execution {
    pub(super) fn new(plan: Plan, nested: bool, machine: Machine, interrupt: Arc<dyn Interrupt>) -> Arc<Execution> {
        Arc::new(Execution {
            id: machine.setup().id.clone(),
            plan,
            nested,
            machine: Mutex::new(machine),
            job: Mutex::new(None),
            worker: AtomicU8::new(IDLE),
            stopping: AtomicBool::new(false),
            interrupt,
            waiters: Mutex::new(Vec::new()),
            owners: OnceLock::new(),
            total_ns: AtomicU64::new(0),
            read_ns: AtomicU64::new(0),
            step_ns: Mutex::new(Vec::new()),
            drop_when_over: AtomicBool::new(false),
        })
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
        self.machine.lock().setup().participants.len() > 1
    }

    /// Acknowledged and completed participants, see `Machine::counts`.
    pub fn counts(&self) -> (usize, usize) {
        self.machine.lock().counts()
    }

    /// Nanoseconds per local step of each stage; empty before the end.
    pub fn step_durations_ns(&self) -> Vec<Vec<u64>> {
        self.step_ns.lock().clone()
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
        let job = ActiveJob::new(job, &self.machine.lock().setup().stages);
        *self.job.lock() = Some(job);
    }

    /// A worker thread is on it.
    pub(super) fn is_on_thread(&self) -> bool {
        self.worker.load(Ordering::Acquire) >= RUNNING
    }

    /// Does something with the machine, then carries its commands out.
    pub(super) fn drive<T>(self: &Arc<Self>, engine: &Arc<Engine>, f: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.machine.lock();
        let value = f(&mut machine);
        let commands = machine.take_commands();
        let participants = machine.setup().participants.clone();
        let mut over = false;
        let mut run = false;
        let mut lost = Vec::new();
        for command in commands {
            match command {
                Command::Send(to, message) => {
                    // Sent under the lock, so that the order on the link is the machine's.
                    if let Err(reason) = engine.send(&participants[to], &self.id, message) {
                        lost.push((participants[to].clone(), reason));
                    }
                }
                Command::Run => run = true,
                Command::Over => over = true,
            }
        }
        drop(machine);
        if run {
            self.schedule(engine);
        }
        if over {
            self.over(engine);
        } else if let Some((node, reason)) = lost.pop() {
            self.peer_lost(engine, &node, &reason);
        }
        value
    }

    /// A participant is gone.
    pub(super) fn peer_lost(self: &Arc<Self>, engine: &Arc<Engine>, node: &NodeId, reason: &str) {
        self.drive(engine, |m| m.on_peer_lost(node, reason));
    }

    fn over(self: &Arc<Self>, engine: &Arc<Engine>) {
        self.stopping.store(true, Ordering::Release);
        self.free_job(engine);
        self.log_failure(engine);
        let waiters = std::mem::take(&mut *self.waiters.lock());
        engine.execution_over(self);
        if !waiters.is_empty() {
            let execution = self.clone();
            engine
                .replying
                .submit(move || waiters.into_iter().for_each(|waiter| waiter(&execution)));
        }
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

    fn work(self: &Arc<Self>, engine: &Arc<Engine>) {
        loop {
            self.worker.store(RUNNING, Ordering::Release);
            self.machine.lock().picked_up(engine.host.now_ms());
            let start = engine.host.now_ns();
            if let Some(mut job) = self.job.try_lock()
                && let Some(job_ref) = job.as_mut()
            {
                let run = catch_unwind(AssertUnwindSafe(|| self.work_stages(engine, job_ref)));
                drop(job);
                if let Err(panic) = run {
                    let reason = format!("met an internal error: {}", panic_text(panic.as_ref()));
                    self.drive(engine, |m| m.fail_here(&reason));
                }
            }
            self.total_ns
                .fetch_add(engine.host.now_ns().saturating_sub(start), Ordering::Relaxed);
            self.machine.lock().set_parked(true, engine.host.now_ms());
            if self
                .worker
                .compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                break;
            }
        }
        if self.phase().is_over() {
            self.free_job(engine);
        }
    }

    /// Frees functions and records; elsewhere, because that may wait for the interpreter. A worker thread that is on
    /// the job does it itself when it leaves.
    pub(super) fn free_job(&self, engine: &Arc<Engine>) {
        if let Some(mut slot) = self.job.try_lock()
            && let Some(job) = slot.take()
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
            self.drive(engine, |m| m.progress(engine.host.now_ms()));
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
        !stage.hungry || number == 0 || machine.has_input(number) || machine.input_complete(number)
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
        if stage.hungry {
            match next_input(self, engine, &mut job.input, number) {
                Next::Batch(batch) => match &mut stage.runner {
                    Some(runner) => {
                        runner.feed(batch);
                        stage.hungry = false;
                    }
                    None => return self.hand_on(engine, &mut sink, batch),
                },
                Next::Broken(reason) => return self.drive(engine, |m| m.fail_here(&reason)),
                Next::Error(text) => {
                    sink.error(text);
                    stage.close();
                }
                Next::End => stage.close(),
            }
        }
        if let Some(runner) = &mut stage.runner {
            match runner.run(&mut sink) {
                RunState::NeedInput => stage.hungry = !stage.closed,
                RunState::Yield => {}
                RunState::Done => stage.done = true,
            }
            if !stage.closed && !stage.done && runner.satisfied() {
                stage.close();
                self.drive(engine, |m| m.discard_input(number));
            }
        }
        sink.flush();
        if stage.done {
            if let Some(runner) = &stage.runner {
                let mut all = self.step_ns.lock();
                let length = all.len().max(number + 1);
                all.resize(length, Vec::new());
                all[number] = runner.durations_ns();
                self.read_ns.fetch_add(runner.read_ns(), Ordering::Relaxed);
            }
            self.drive(engine, |m| m.stage_done(number));
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

/// A job under way.
struct ActiveJob {
    input: Input,
    stages: Vec<ActiveStage>,
}

struct ActiveStage {
    /// `None`: nothing to do but to hand on.
    runner: Option<Box<dyn StageRunner>>,
    hungry: bool,
    closed: bool,
    done: bool,
}

impl ActiveStage {
    fn close(&mut self) {
        self.closed = true;
        self.hungry = false;
        match &mut self.runner {
            Some(runner) => runner.close(),
            None => self.done = true,
        }
    }
}

impl ActiveJob {
    fn new(job: Job, stages: &[Stage]) -> ActiveJob {
        let self_fed = matches!(job.input, Input::Runner);
        let stages = job
            .runners
            .into_iter()
            .zip(stages)
            .enumerate()
            .map(|(number, (runner, stage))| {
                let passes =
                    number > 0 && stage.locals.is_empty() && stage.output == Output::Result && !stage.keyed_input;
                ActiveStage {
                    runner: (!passes).then_some(runner),
                    hungry: number > 0 || !self_fed,
                    closed: false,
                    done: false,
                }
            });
        ActiveJob {
            stages: stages.collect(),
            input: job.input,
        }
    }
}

enum Next {
    Batch(RecordBatch),
    Error(String),
    Broken(String),
    End,
}

fn next_input(execution: &Arc<Execution>, engine: &Arc<Engine>, input: &mut Input, stage: usize) -> Next {
    if stage > 0 {
        return match execution.drive(engine, |m| m.take_input(stage)) {
            Some(batch) => Next::Batch(batch),
            None => Next::End,
        };
    }
    match input {
        Input::Source(source) => {
            let start = engine.host.now_ns();
            let state = source.next_batch();
            execution
                .read_ns
                .fetch_add(engine.host.now_ns().saturating_sub(start), Ordering::Relaxed);
            match state {
                SourceState::Batch(batch) => Next::Batch(batch),
                SourceState::Error(text) => Next::Error(text),
                SourceState::Broken(reason) => Next::Broken(reason),
                SourceState::End => Next::End,
            }
        }
        Input::Runner | Input::Nothing => Next::End,
    }
}

/// The worker's sink: hands batches to the machine.
struct Sink<'a> {
    execution: &'a Arc<Execution>,
    engine: &'a Arc<Engine>,
    stage: usize,
    errors: Vec<String>,
    full: bool,
    own: bool,
    errors_stay: bool,
}

impl Sink<'_> {
    fn flush(&mut self) {
        let errors = std::mem::take(&mut self.errors);
        if !errors.is_empty() {
            let stage = self.stage;
            self.execution.drive(self.engine, |m| m.emit_errors(stage, errors));
        }
    }
}

impl StageSink for Sink<'_> {
    fn emit(&mut self, route: Route, batch: RecordBatch) {
        let stage = self.stage;
        self.full |= self.execution.drive(self.engine, |m| {
            m.emit(stage, route, batch);
            !m.can_emit(stage)
        });
    }

    fn error(&mut self, text: String) {
        self.own |= self.errors_stay;
        self.errors.push(text);
        if self.errors.len() >= 256 {
            self.flush();
            self.full |= !self.execution.machine.lock().can_emit(self.stage);
        }
    }

    fn full(&self) -> bool {
        self.full
    }

    fn has_own_errors(&self) -> bool {
        self.own
    }

    fn owner(&self, slot: Slot) -> usize {
        let owner = self
            .execution
            .owners
            .get()
            .map_or(NO_OWNER, |owners| owners[usize::from(slot)]);
        usize::from(owner)
    }

    fn aborted(&self) -> bool {
        self.execution.stopping.load(Ordering::Relaxed)
    }
}
