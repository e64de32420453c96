//! A job on its worker thread: its stages, their input, and the sink that hands what they emit to the machine.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{Engine, Execution};
use crate::{
    codec::RecordBatch,
    execution::{Machine, Setup},
    limits,
    stage::{Input, Job, Route, SourceState, StageRunner, StageSink},
    topology::{NO_OWNER, Slot},
};

/// A job under way.
pub(super) struct ActiveJob {
    pub input: Input,
    pub stages: Vec<ActiveStage>,
}

pub(super) struct ActiveStage {
    /// `None`: nothing to do but to hand on, or done.
    pub runner: Option<Box<dyn StageRunner>>,
    pub hungry: bool,
    pub closed: bool,
    pub done: bool,
    /// Records were postponed.
    pub pending: bool,
    /// It can not go on before some of them come back.
    pub waiting: bool,
    /// Some have come back; there from the first postponed record on.
    pub woken: Option<Arc<AtomicBool>>,
}

impl ActiveStage {
    /// Records that were postponed have come back.
    pub fn is_woken(&self) -> bool {
        self.woken.as_ref().is_some_and(|woken| woken.load(Ordering::Acquire))
    }

    /// It goes on; true if it does because it was woken.
    pub fn go_on(&mut self) -> bool {
        let woken = self.woken.as_ref();
        let woken = woken.is_some_and(|woken| woken.swap(false, Ordering::AcqRel));
        self.waiting &= !woken;
        woken
    }

    pub fn close(&mut self) {
        self.closed = true;
        self.hungry = false;
        match &mut self.runner {
            Some(runner) => runner.close(),
            None => self.done = true,
        }
    }
}

impl ActiveJob {
    /// Records of some stage were postponed and have not come back.
    pub fn is_pending(&self) -> bool {
        self.stages.iter().any(|stage| stage.pending)
    }

    pub fn new(job: Job, setup: &Setup) -> ActiveJob {
        let self_fed = matches!(job.input, Input::Runner);
        let passing = setup.last_stage_passes().then(|| setup.stages.len() - 1);
        let stages = job.runners.into_iter().take(setup.stages.len()).enumerate();
        let stages = stages.map(|(number, runner)| ActiveStage {
            runner: (Some(number) != passing).then_some(runner),
            hungry: number > 0 || !self_fed,
            closed: false,
            done: false,
            pending: false,
            waiting: false,
            woken: None,
        });
        ActiveJob {
            stages: stages.collect(),
            input: job.input,
        }
    }
}

pub(super) enum Next {
    Batch(RecordBatch),
    /// All that there is.
    Whole(RecordBatch),
    Error(String),
    Broken(String),
    /// What was there went another way (`Machine::pass`).
    Nothing,
    End,
}

pub(super) fn next_input(execution: &Arc<Execution>, engine: &Arc<Engine>, input: &mut Input, stage: usize) -> Next {
    if stage > 0 {
        return execution.drive(engine, |m| match m.take_input(stage) {
            Some(batch) => Next::Batch(batch),
            None if m.input_complete(stage) => Next::End,
            None => Next::Nothing,
        });
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
        Input::Batch(batch) => {
            let batch = std::mem::take(batch);
            *input = Input::Nothing;
            Next::Whole(batch)
        }
        Input::Runner | Input::Nothing => Next::End,
    }
}

/// The worker's sink: hands batches to the machine.
pub(super) struct Sink<'a> {
    pub execution: &'a Arc<Execution>,
    pub engine: &'a Arc<Engine>,
    pub stage: usize,
    pub errors: Vec<String>,
    pub full: bool,
    pub own: bool,
    pub errors_stay: bool,
}

impl Sink<'_> {
    pub fn flush(&mut self) {
        let errors = std::mem::take(&mut self.errors);
        if !errors.is_empty() {
            let (stage, own) = (self.stage, self.own);
            self.execution.drive(self.engine, |m| m.emit_errors(stage, errors, own));
        }
    }
}

impl StageSink for Sink<'_> {
    fn emit(&mut self, route: Route, batch: RecordBatch) {
        let stage = self.stage;
        let is_small = batch.bytes.len() <= limits::SMALL_BATCH_BYTES;
        let emit = |m: &mut Machine| {
            m.emit(stage, route, batch);
            !m.can_emit(stage)
        };
        // A small one leaves with what follows: the slice ends soon, with a look at the machine's commands.
        self.full |= match is_small {
            true => emit(&mut self.execution.machine.lock()),
            false => self.execution.drive(self.engine, emit),
        };
    }

    fn error(&mut self, text: String) {
        let reads_on = self.execution.fired.as_ref().and_then(|fired| fired.reads_on);
        self.own |= self.errors_stay && !reads_on.is_some_and(|reads_on| reads_on(&text));
        self.lost(text);
    }

    fn lost(&mut self, text: String) {
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
