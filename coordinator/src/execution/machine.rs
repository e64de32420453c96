//! One execution on one shard.
//!
//! The initiator sends the plan, waits until every participant is ready, starts them, runs its own part, waits for
//! their reports and ends them. Nothing runs anywhere unless all are ready. Any loss ends the execution everywhere
//! with a text that names shard, step and phase.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    cut_text,
    exchange::{Exchange, ExchangeKind, Sends},
};
use crate::{
    codec::RecordBatch,
    message::{BatchKind, ExecutionId, ExecutionMessage, Work},
    plan::{Output, Stage},
    stage::Route,
    topology::NodeId,
};

/// The statuses of RG.GETEXECUTION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Phase {
    Created,
    PendingReceive,
    PendingRun,
    Running,
    PendingCluster,
    PendingTermination,
    Done,
    Aborted,
}

impl Phase {
    /// The status text.
    pub fn status(self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::PendingReceive => "pending_receive",
            Phase::PendingRun => "pending_run",
            Phase::Running => "running",
            Phase::PendingCluster => "pending_cluster",
            Phase::PendingTermination => "pending_termination",
            Phase::Done => "done",
            Phase::Aborted => "aborted",
        }
    }

    /// Nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, Phase::Done | Phase::Aborted)
    }
}

/// What the surroundings have to do.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Send to the participant with this number.
    Send(usize, ExecutionMessage),
    /// Let a worker thread look for work.
    Run,
    /// The execution is over on this shard: tell who waits, free what it holds.
    Over,
}

/// What an execution is made from.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its id.
    pub id: ExecutionId,
    /// All participants; the same order on every shard.
    pub participants: Arc<[NodeId]>,
    /// This shard's number among them.
    pub me: usize,
    /// The initiator's number among them.
    pub initiator: usize,
    /// The topology that it is bound to.
    pub epoch: u64,
    /// The stages.
    pub stages: Vec<Stage>,
    /// Longest silence of the others, in ms.
    pub idle_limit_ms: u64,
}

/// Told to whoever gets what an aborted execution had gathered and can not see its status. The outcome itself does not
/// hold it: with an error it would count as a failure.
pub const ABORTED: &str = "the execution was aborted";

/// What the execution gave on this shard.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    /// Encoded results, in order. Mostly one batch, which has room here.
    pub results: SmallVec<[RecordBatch; 1]>,
    /// Error texts.
    pub errors: Vec<String>,
    /// Nanoseconds per local step of each stage that has ended; may be empty if that was not measured.
    pub steps_ns: Vec<Vec<u64>>,
}

impl Setup {
    /// No other shard takes part.
    pub fn is_alone(&self) -> bool {
        self.participants.len() == 1
    }

    /// This shard made the execution.
    pub fn is_initiator(&self) -> bool {
        self.me == self.initiator
    }

    /// The last stage does nothing but to take what a collect brings.
    pub fn last_stage_passes(&self) -> bool {
        self.stages.len() > 1 && self.stages.last().is_some_and(|last| last.passes)
    }
}

/// The state machine.
pub struct Machine {
    setup: Arc<Setup>,
    /// What the others are told to run; only on an initiator that has not told them yet.
    work: Option<Work>,
    phase: Phase,
    exchanges: Vec<Exchange>,
    stage_complete: Vec<bool>,
    ready: Vec<bool>,
    reported: Vec<bool>,
    outcome: Outcome,
    /// A worker thread has taken a batch for the last stage, which only passes, and has not handed it on yet.
    in_hand: bool,
    /// See `Setup::last_stage_passes`.
    passes: bool,
    /// This shard's own error list was filled by its own steps.
    own_errors: bool,
    parked: bool,
    /// Records of this shard were postponed.
    pending: bool,
    last_activity_ms: u64,
    last_progress_ms: u64,
    commands: Vec<Command>,
}

impl Machine {
    /// A new execution; `begin` (initiator) or `local_ready` (worker) sets it going.
    pub fn new(setup: Arc<Setup>, work: Option<Work>, now_ms: u64) -> Machine {
        let n = setup.participants.len();
        // Nobody acknowledges where nobody else takes part.
        let flags = if n == 1 { 0 } else { n };
        let exchanges = setup
            .stages
            .iter()
            .enumerate()
            .filter_map(|(number, stage)| {
                let kind = match stage.output {
                    Output::Result => return None,
                    Output::Collect => ExchangeKind::Collect,
                    Output::Shuffle { .. } => ExchangeKind::Shuffle,
                };
                Some(Exchange::new(kind, number, setup.me, setup.initiator, n))
            })
            .collect();
        Machine {
            phase: Phase::Created,
            exchanges,
            stage_complete: vec![false; setup.stages.len()],
            ready: vec![false; flags],
            reported: vec![false; flags],
            outcome: Outcome::default(),
            own_errors: false,
            parked: false,
            pending: false,
            last_activity_ms: now_ms,
            last_progress_ms: now_ms,
            commands: Vec::new(),
            passes: setup.last_stage_passes(),
            in_hand: false,
            work,
            setup,
        }
    }

    /// One that does nothing: it shows what runs, or has run, elsewhere.
    pub fn shown(setup: Arc<Setup>, phase: Phase, outcome: Outcome) -> Machine {
        Machine {
            phase,
            outcome,
            ..Machine::new(setup, None, 0)
        }
    }

    /// What it shows runs from now on.
    pub fn show_begin(&mut self) {
        self.phase = Phase::Running;
    }

    /// What it shows has ended.
    pub fn show_end(&mut self, phase: Phase, outcome: Outcome) {
        (self.phase, self.outcome) = (phase, outcome);
    }

    /// The commands since the last call.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What it was made from.
    pub fn setup(&self) -> &Arc<Setup> {
        &self.setup
    }

    /// Results and errors so far.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Gives results and errors away.
    pub fn take_outcome(&mut self) -> Outcome {
        std::mem::take(&mut self.outcome)
    }

    /// Participants, this one excluded, that acknowledged and that completed; 0 on workers.
    pub fn counts(&self) -> (usize, usize) {
        if !self.is_initiator() {
            return (0, 0);
        }
        let others = |flags: &[bool]| {
            flags
                .iter()
                .enumerate()
                .filter(|&(i, &f)| f && i != self.setup.me)
                .count()
        };
        (others(&self.ready), others(&self.reported))
    }

    fn is_initiator(&self) -> bool {
        self.setup.is_initiator()
    }

    fn is_alone(&self) -> bool {
        self.setup.is_alone()
    }

    /// This shard's own steps have failed on a record and the error stays here: its reader stops.
    pub fn has_own_errors(&self) -> bool {
        self.own_errors
    }

    // ---- events ----

    /// Initiator: sends the plan.
    pub fn begin(&mut self, now_ms: u64) {
        self.last_activity_ms = now_ms;
        if self.phase.is_over() || self.is_alone() {
            return;
        }
        let Some(work) = self.work.take() else { return };
        self.phase = Phase::PendingReceive;
        for to in self.others() {
            let message = ExecutionMessage::Prepare {
                epoch: self.setup.epoch,
                participants: self.setup.participants.to_vec(),
                work: work.clone(),
                idle_limit_ms: self.setup.idle_limit_ms,
            };
            self.commands.push(Command::Send(to, message));
        }
    }

    /// This shard's functions are loaded and its reader is open, or why they are not.
    pub fn local_ready(&mut self, result: Result<(), String>, now_ms: u64) {
        if self.phase.is_over() {
            return;
        }
        self.last_activity_ms = now_ms;
        match result {
            Ok(()) if self.is_initiator() => {
                let me = self.setup.me;
                self.ready.get_mut(me).into_iter().for_each(|ready| *ready = true);
                self.start_if_ready();
            }
            Ok(()) => {
                self.phase = Phase::PendingRun;
                self.send_initiator(ExecutionMessage::Prepared {
                    refusal: None,
                    retry: false,
                });
            }
            Err(reason) if self.is_initiator() => self.fail(format!("the plan can not run: {reason}")),
            Err(reason) => {
                self.send_initiator(ExecutionMessage::Prepared {
                    refusal: Some(reason.clone()),
                    retry: false,
                });
                self.finish(Phase::Aborted, Some(reason));
            }
        }
    }

    /// A message of another participant.
    pub fn on_message(&mut self, from: usize, message: ExecutionMessage, now_ms: u64) {
        if self.phase.is_over() || from >= self.setup.participants.len() || from == self.setup.me {
            return;
        }
        self.last_activity_ms = now_ms;
        match message {
            ExecutionMessage::Prepare { .. } | ExecutionMessage::Progress { .. } => {}
            // They come one level deep only, see `net`.
            ExecutionMessage::Several(parts) => {
                for part in parts {
                    if !matches!(part, ExecutionMessage::Several(_)) {
                        self.on_message(from, part, now_ms);
                    }
                }
            }
            ExecutionMessage::Prepared { refusal, .. } => self.on_prepared(from, refusal),
            ExecutionMessage::Start if from == self.setup.initiator => self.on_start(),
            ExecutionMessage::Batch {
                exchange,
                sequence,
                kind,
                batch,
            } => {
                self.on_batch(from, exchange, sequence, kind, batch);
            }
            ExecutionMessage::EndOfInput { exchange, sequence } => {
                self.with_exchange(exchange, |e, _| e.on_end(from, sequence));
                self.arrived(exchange);
            }
            ExecutionMessage::Credit { exchange, bytes } => {
                self.with_exchange(exchange, |e, sends| e.on_credit(from, bytes, sends));
                self.wake();
                self.check_complete();
            }
            ExecutionMessage::Report => {
                self.reported[from] = true;
                self.check_complete();
            }
            ExecutionMessage::Finish if from == self.setup.initiator => self.finish(Phase::Done, None),
            ExecutionMessage::Abort { reason, user } => self.on_abort(from, reason, user),
            ExecutionMessage::Start | ExecutionMessage::Finish => {}
        }
    }

    fn on_prepared(&mut self, from: usize, refusal: Option<String>) {
        match refusal {
            None => {
                self.ready[from] = true;
                self.start_if_ready();
            }
            Some(reason) => {
                let shard = &self.setup.participants[from];
                self.fail(format!(
                    "shard {shard} can not run the plan, phase plan sent, step reader: {reason}"
                ));
            }
        }
    }

    fn start_if_ready(&mut self) {
        let waiting = matches!(self.phase, Phase::Created | Phase::PendingReceive);
        if !waiting || !self.is_initiator() || !self.ready.iter().all(|&r| r) {
            return;
        }
        // Alone it stays `created` until a worker thread picks it up.
        if !self.is_alone() {
            self.phase = Phase::Running;
        }
        for to in self.others() {
            self.commands.push(Command::Send(to, ExecutionMessage::Start));
        }
        self.commands.push(Command::Run);
    }

    fn on_start(&mut self) {
        if self.phase == Phase::PendingRun {
            self.phase = Phase::Running;
            self.commands.push(Command::Run);
        }
    }

    fn on_batch(&mut self, from: usize, exchange: u32, sequence: u64, kind: BatchKind, batch: RecordBatch) {
        let mut taken = Ok(Vec::new());
        self.with_exchange(exchange, |e, sends| {
            taken = e.on_batch(from, sequence, kind, batch, sends)
        });
        match taken {
            Ok(errors) => {
                for batch in errors {
                    self.outcome.errors.extend(batch.texts());
                }
                self.arrived(exchange);
            }
            Err(why) => self.fail_at(from, &format!("broke the protocol: {why}")),
        }
    }

    fn on_abort(&mut self, from: usize, reason: String, user: bool) {
        if self.is_initiator() {
            let message = ExecutionMessage::Abort {
                reason: reason.clone(),
                user,
            };
            for to in self.others().filter(|&to| to != from).collect::<Vec<_>>() {
                self.commands.push(Command::Send(to, message.clone()));
            }
        }
        self.finish(Phase::Aborted, (!user).then_some(reason));
    }

    /// The link to a participant broke or fell silent.
    pub fn on_peer_lost(&mut self, node: &NodeId, reason: &str) {
        let Some(from) = self.setup.participants.iter().position(|p| p == node) else {
            return;
        };
        if !self.phase.is_over() && from != self.setup.me {
            self.fail_at(from, &format!("was lost ({reason})"));
        }
    }

    /// The slots moved, the reader can not be complete, a message can not be sent, ...
    pub fn fail_here(&mut self, reason: &str) {
        if !self.phase.is_over() {
            let me = self.setup.me;
            self.fail_at(me, reason);
        }
    }

    /// Looks at the idle limit. `in_queue`: it waits for a thread of this shard, and these get on.
    pub fn on_tick(&mut self, now_ms: u64, in_queue: bool) {
        if (self.pending || in_queue) && matches!(self.phase, Phase::Created | Phase::Running) {
            // It is alive: neither this shard nor the others count the time.
            self.last_activity_ms = now_ms;
            return self.progress(now_ms);
        }
        let waits = match self.phase {
            Phase::PendingReceive | Phase::PendingRun | Phase::PendingCluster | Phase::PendingTermination => true,
            Phase::Running => self.parked,
            _ => false,
        };
        let silent_ms = now_ms.saturating_sub(self.last_activity_ms);
        if !waits || self.is_alone() || silent_ms <= self.setup.idle_limit_ms {
            return;
        }
        let awaited = self.awaited().into_iter();
        let awaited: Vec<_> = awaited.map(|p| self.setup.participants[p].to_string()).collect();
        let (shards, step, phase) = (awaited.join(", "), self.step(), self.phase_word());
        let text = format!(
            "Execution max idle reached: nothing heard for {silent_ms} ms from shard {shards}, step {step}, phase {phase}"
        );
        match self.phase {
            // The others have all that they need of this shard.
            Phase::PendingTermination => self.finish(Phase::Aborted, Some(text)),
            _ => self.fail(text),
        }
    }

    /// Ends it if this shard made it and nothing runs yet anywhere; true if it did.
    pub fn abort_unstarted(&mut self) -> bool {
        let is_unstarted = matches!(self.phase, Phase::Created | Phase::PendingReceive) && self.is_initiator();
        if is_unstarted {
            self.abort();
        }
        is_unstarted
    }

    /// RG.ABORTEXECUTION while no thread works on it: ends it here and tells the others.
    pub fn abort(&mut self) {
        if self.phase.is_over() {
            return;
        }
        let message = ExecutionMessage::Abort {
            reason: "aborted by RG.ABORTEXECUTION".into(),
            user: true,
        };
        if self.phase != Phase::Created {
            for to in self.others().collect::<Vec<_>>() {
                self.commands.push(Command::Send(to, message.clone()));
            }
        }
        self.finish(Phase::Aborted, None);
    }

    // ---- calls of the worker thread ----

    /// The stage may emit: every window behind it has room.
    pub fn can_emit(&self, stage: usize) -> bool {
        self.exchanges.get(stage).is_none_or(Exchange::has_room)
            && self.error_exchange(stage).is_none_or(|e| self.exchanges[e].has_room())
    }

    /// Records leave a stage.
    pub fn emit(&mut self, stage: usize, route: Route, batch: RecordBatch) {
        if self.phase.is_over() {
            return;
        }
        if stage >= self.exchanges.len() {
            self.outcome.results.push(batch);
            if std::mem::take(&mut self.in_hand) && self.pass() {
                self.check_complete();
            }
            return;
        }
        let to = match route {
            Route::Participant(to) => to,
            Route::Default => self.setup.initiator,
        };
        self.with_exchange(stage as u32, |e, sends| e.emit(to, BatchKind::Records, batch, sends));
        self.pass();
    }

    /// Test of the simulation's own checks: a result that nobody sent.
    #[cfg(test)]
    pub(super) fn force_result(&mut self, batch: RecordBatch) {
        self.outcome.results.push(batch);
    }

    /// Error records leave a stage: to the initiator by the next collect, or to this shard's list; `own`: its steps failed.
    pub fn emit_errors(&mut self, stage: usize, texts: Vec<String>, own: bool) {
        if self.phase.is_over() || texts.is_empty() {
            return;
        }
        match self.error_exchange(stage) {
            Some(exchange) => {
                let to = self.setup.initiator;
                let batch = crate::codec::error_batch(&texts);
                self.with_exchange(exchange as u32, |e, sends| e.emit(to, BatchKind::Errors, batch, sends));
            }
            None => {
                self.own_errors |= own;
                self.outcome.errors.extend(texts);
            }
        }
    }

    /// The collect that carries this shard's errors away, if any.
    fn error_exchange(&self, stage: usize) -> Option<usize> {
        if self.is_initiator() {
            return None;
        }
        (stage..self.exchanges.len()).find(|&e| self.exchanges[e].kind == ExchangeKind::Collect)
    }

    /// The error records of a stage stay on this shard.
    pub fn errors_stay(&self, stage: usize) -> bool {
        self.error_exchange(stage).is_none()
    }

    /// The next input of a stage behind an exchange.
    pub fn take_input(&mut self, stage: usize) -> Option<RecordBatch> {
        let mut batch = None;
        self.with_exchange(stage as u32 - 1, |e, sends| batch = e.take(sends));
        self.in_hand = self.passes && stage == self.exchanges.len() && batch.is_some();
        batch
    }

    /// A stage behind an exchange has input.
    pub fn has_input(&self, stage: usize) -> bool {
        stage > 0 && self.exchanges[stage - 1].has_input()
    }

    /// A stage behind an exchange gets nothing more.
    pub fn input_complete(&self, stage: usize) -> bool {
        stage > 0 && self.exchanges[stage - 1].is_complete()
    }

    /// A stage behind an exchange has seen enough (a limit): what still comes is thrown away.
    pub fn discard_input(&mut self, stage: usize) {
        if stage > 0 {
            self.with_exchange(stage as u32 - 1, |e, sends| e.discard(sends));
        }
    }

    /// How long the steps of a stage took, in ns.
    pub fn measured(&mut self, stage: usize, steps_ns: Vec<u64>) {
        let all = &mut self.outcome.steps_ns;
        all.resize(all.len().max(stage + 1), Vec::new());
        all[stage] = steps_ns;
    }

    /// A stage has emitted everything.
    pub fn stage_done(&mut self, stage: usize) {
        if self.phase.is_over() {
            return;
        }
        self.stage_complete[stage] = true;
        // It may have had enough of an input that goes on: who sends the rest must not wait for room.
        self.discard_input(stage);
        let initiator = self.setup.initiator;
        if stage < self.exchanges.len() {
            self.with_exchange(stage as u32, |e, sends| e.end(initiator, sends));
        }
        self.pass();
        self.check_complete();
    }

    /// A worker thread takes it on.
    pub fn picked_up(&mut self, now_ms: u64) {
        if self.phase == Phase::Created {
            self.phase = Phase::Running;
        }
        self.set_parked(false, now_ms);
    }

    /// The worker thread has left (`true`) or comes back.
    pub fn set_parked(&mut self, parked: bool, now_ms: u64) {
        if parked != self.parked {
            self.parked = parked;
            self.last_activity_ms = self.last_activity_ms.max(now_ms);
        }
    }

    /// Records of this shard were postponed, and nobody knows for how long; or all have come back.
    pub fn set_pending(&mut self, pending: bool) {
        self.pending = pending;
    }

    /// The worker thread has done something: the others are told now and then, so that they wait.
    pub fn progress(&mut self, now_ms: u64) {
        let pause_ms = (self.setup.idle_limit_ms / 4).max(20);
        let is_at_it = matches!(self.phase, Phase::Created | Phase::Running);
        if self.is_alone() || !is_at_it || now_ms < self.last_progress_ms + pause_ms {
            return;
        }
        self.last_progress_ms = now_ms;
        let step = self.step().to_owned();
        for to in self.others().collect::<Vec<_>>() {
            self.commands
                .push(Command::Send(to, ExecutionMessage::Progress { step: step.clone() }));
        }
    }

    // ---- inside ----

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.setup.me;
        (0..self.setup.participants.len()).filter(move |&p| p != me)
    }

    fn send_initiator(&mut self, message: ExecutionMessage) {
        self.commands.push(Command::Send(self.setup.initiator, message));
    }

    fn wake(&mut self) {
        if self.phase == Phase::Running {
            self.commands.push(Command::Run);
        }
    }

    /// Something has come for the stage behind an exchange: a worker thread takes it, unless it only passes.
    fn arrived(&mut self, exchange: u32) {
        let is_last = exchange as usize + 1 == self.exchanges.len();
        if is_last && self.pass() {
            self.check_complete();
        } else {
            self.wake();
        }
    }

    /// Takes small batches for a last stage that does nothing but to take them. True if a worker thread has nothing
    /// to do for the stage, or is at it: what it has in hand comes before what follows, the end of the input included.
    fn pass(&mut self) -> bool {
        let is_on = matches!(self.phase, Phase::Running | Phase::PendingCluster);
        let last = self.exchanges.len();
        if !self.passes || !is_on || self.stage_complete[last] {
            return false;
        }
        if self.in_hand {
            return true;
        }
        let mut sends = Vec::new();
        let exchange = &mut self.exchanges[last - 1];
        let mut broken = None;
        while let Some((from, batch)) = exchange.take_small(&mut sends) {
            match batch.check() {
                Ok(()) => self.outcome.results.push(batch),
                Err(e) => broken = Some((from, e)),
            }
        }
        let done = exchange.is_complete();
        let idle = !exchange.has_input();
        self.stage_complete[last] = done;
        let sends = sends.into_iter().map(|(to, message)| Command::Send(to, message));
        self.commands.extend(sends);
        if let Some((from, e)) = broken {
            self.fail_at(from, &format!("sent records that can not be decoded ({e})"));
        }
        idle
    }

    fn with_exchange(&mut self, number: u32, f: impl FnOnce(&mut Exchange, &mut Sends)) {
        let mut sends = Vec::new();
        // A number beyond the plan can come only from a broken peer; its message has no effect.
        if let Some(exchange) = self.exchanges.get_mut(number as usize) {
            f(exchange, &mut sends);
        }
        self.commands
            .extend(sends.into_iter().map(|(to, message)| Command::Send(to, message)));
    }

    fn check_complete(&mut self) {
        let mine = self.stage_complete.iter().all(|&c| c) && self.exchanges.iter().all(Exchange::is_flushed);
        if !mine || !matches!(self.phase, Phase::Running | Phase::PendingCluster) {
            return;
        }
        if !self.is_initiator() {
            self.phase = Phase::PendingTermination;
            return self.send_initiator(ExecutionMessage::Report);
        }
        let me = self.setup.me;
        self.reported
            .get_mut(me)
            .into_iter()
            .for_each(|reported| *reported = true);
        self.phase = Phase::PendingCluster;
        if self.reported.iter().all(|&r| r) {
            for to in self.others() {
                self.commands.push(Command::Send(to, ExecutionMessage::Finish));
            }
            self.finish(Phase::Done, None);
        }
    }

    fn fail_at(&mut self, shard: usize, what: &str) {
        let id = &self.setup.participants[shard];
        let (step, phase) = (self.step(), self.phase_word());
        self.fail(format!("shard {id} {what}, step {step}, phase {phase}"));
    }

    /// Ends the execution everywhere with an error.
    fn fail(&mut self, reason: String) {
        for to in self.others() {
            let message = ExecutionMessage::Abort {
                reason: reason.clone(),
                user: false,
            };
            self.commands.push(Command::Send(to, message));
        }
        self.finish(Phase::Aborted, Some(reason));
    }

    fn finish(&mut self, phase: Phase, error: Option<String>) {
        if self.phase.is_over() {
            return;
        }
        self.phase = phase;
        self.outcome.errors.extend(error.map(cut_text));
        for exchange in &mut self.exchanges {
            exchange.clear();
        }
        self.commands.push(Command::Over);
    }

    /// Participants that this shard waits for.
    fn awaited(&self) -> Vec<usize> {
        let me = self.setup.me;
        let lacking = |flags: &[bool]| (0..flags.len()).filter(|&p| p != me && !flags[p]).collect();
        match self.phase {
            Phase::PendingReceive => lacking(&self.ready),
            Phase::PendingCluster => lacking(&self.reported),
            Phase::Running => {
                let waiting = self.exchanges.iter().find(|e| e.missing().any(|p| p != me));
                waiting.map_or(vec![self.setup.initiator], |e| {
                    e.missing().filter(|&p| p != me).collect()
                })
            }
            _ => vec![self.setup.initiator],
        }
    }

    /// The user's word for the step at hand.
    fn step(&self) -> &'static str {
        if matches!(self.phase, Phase::Created | Phase::PendingReceive | Phase::PendingRun) {
            return "reader";
        }
        let stage = self.stage_complete.iter().position(|&c| !c);
        stage
            .or(self.setup.stages.len().checked_sub(1))
            .map_or("reader", |s| self.setup.stages[s].last_step)
    }

    fn phase_word(&self) -> &'static str {
        match self.phase {
            Phase::Created | Phase::PendingReceive | Phase::PendingRun => "plan sent",
            Phase::PendingCluster | Phase::PendingTermination => "done but not acknowledged",
            _ => match self.stage_complete.iter().position(|&c| !c) {
                Some(0) => "reading",
                Some(s) if self.exchanges[s - 1].kind == ExchangeKind::Shuffle => "in shuffle",
                _ => "in collect",
            },
        }
    }
}
