//! All executions of one shard: creation, the lists, messages, queries between shards, worker threads.
//!
//! Joins the state machine with its surroundings, which it knows as traits: `Host` (the server and the language) and
//! `Transport` (the mesh).

mod execution;
mod lists;
mod pool;
mod queries;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;

pub use self::{
    execution::{Execution, Waiter},
    lists::Listed,
    pool::{PYTHON_STACK_BYTES, Pool, panic_text},
    queries::{Gathered, question},
};
use self::{lists::Lists, queries::Queries};
use crate::{
    execution::{Machine, Phase, Setup},
    limits,
    message::{ExecutionId, ExecutionMessage, Message},
    plan::{Mode, Output, Plan, PlanError, Reader, Stage},
    stage::Job,
    topology::{NO_OWNER, NodeId, Topology},
};

/// Stops the code that an execution runs at the moment.
pub trait Interrupt: Send + Sync {
    /// Asks once; repeated until the execution has left its thread.
    fn request(&self);
    /// For the host, which knows what it made.
    fn as_any(self: Arc<Self>) -> Arc<dyn std::any::Any + Send + Sync>;
}

/// What a shard is asked to get ready for.
pub struct JobRequest<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its stages.
    pub stages: &'a [Stage],
    /// Reads the keyspace here (a master that owns slots, or a server that is alone).
    pub reads: bool,
    /// Number of participants.
    pub participants: usize,
    /// This shard's number among them.
    pub me: usize,
    /// This shard made the execution.
    pub is_initiator: bool,
    /// The topology that it is bound to; `None` when it stays on this shard.
    pub epoch: Option<u64>,
    /// What the initiator keeps for its own part (original functions); `None` on workers.
    pub local: Option<Arc<dyn std::any::Any + Send + Sync>>,
    /// The interrupt to serve.
    pub interrupt: Arc<dyn Interrupt>,
}

/// The server and the language around the engine.
pub trait Host: Send + Sync + 'static {
    /// Makes an interrupt for one execution.
    fn new_interrupt(&self) -> Arc<dyn Interrupt>;
    /// Loads functions, opens the reader. On a thread with a large stack.
    fn prepare(&self, request: JobRequest<'_>) -> Result<Job, String>;
    /// Milliseconds of a clock that never goes back.
    fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }
    /// Nanoseconds of the same clock.
    fn now_ns(&self) -> u64;
    /// `ExecutionMaxIdleTime`, in ms.
    fn idle_limit_ms(&self) -> u64;
    /// `MaxExecutions`; 0 or less: no limit.
    fn max_executions(&self) -> i64;
    /// Reads the topology again; may take the server lock.
    fn refresh_topology(&self);
    /// Answers a question about this shard, see `queries`.
    fn answer(&self, engine: &Arc<Engine>, what: &str, argument: &[u8]) -> Result<Vec<u8>, String>;
    /// Writes a line to the server's log.
    fn log_warning(&self, text: &str);
}

/// The mesh.
pub trait Transport: Send + Sync {
    /// Queues a message; never blocks.
    fn send(&self, to: &NodeId, message: Message) -> Result<(), String>;
    /// How long the link to the peer has not been up; `None` if it is.
    fn down_for(&self, to: &NodeId) -> Option<Duration>;
}

/// An execution that cannot be created.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CreateError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("slot {0} is served by no shard: the result could not be complete (see CLUSTER SLOTS)")]
    Uncovered(u16),
    #[error("{0} executions wait already, at most {max} are allowed", max = limits::QUEUED_EXECUTIONS)]
    TooMany(usize),
    #[error("the cluster has {0} shards, at most {max} can take part", max = limits::PARTICIPANTS)]
    TooManyShards(usize),
}

/// Why an execution ends that was bound to another topology.
const SLOTS_MOVED: &str = "saw the slots of the cluster move";

/// All executions of this shard.
pub struct Engine {
    pub(self) host: Arc<dyn Host>,
    transport: RwLock<Option<Arc<dyn Transport>>>,
    topology: RwLock<Arc<Topology>>,
    lists: Mutex<Lists>,
    counter: AtomicU64,
    pub(self) pool: Pool,
    pub(self) preparing: Pool,
    /// Tells those who wait; large replies must not hold up a thread of the mesh.
    pub(self) replying: Pool,
    management: Pool,
    queries: Queries,
}

impl Engine {
    /// Starts the worker threads.
    pub fn start(host: Arc<dyn Host>, threads: usize) -> std::io::Result<Arc<Engine>> {
        let on_panic = |host: Arc<dyn Host>| {
            move |text: String| host.log_warning(&format!("a worker thread met an internal error: {text}"))
        };
        Ok(Arc::new(Engine {
            pool: Pool::start("oxi-worker", threads, on_panic(host.clone()))?,
            preparing: Pool::start("oxi-prepare", 2, on_panic(host.clone()))?,
            replying: Pool::start("oxi-reply", 1, on_panic(host.clone()))?,
            management: Pool::start("oxi-manage", 2, on_panic(host.clone()))?,
            host,
            transport: RwLock::new(None),
            topology: RwLock::new(Arc::new(Topology::single())),
            lists: Mutex::new(Lists::default()),
            counter: AtomicU64::new(0),
            queries: Queries::default(),
        }))
    }

    /// Sets the mesh once it is there.
    pub fn set_transport(&self, transport: Arc<dyn Transport>) {
        *self.transport.write() = Some(transport);
    }

    /// The topology as known.
    pub fn topology(&self) -> Arc<Topology> {
        self.topology.read().clone()
    }

    /// Takes a new topology; executions bound to another one can not be complete any more.
    pub fn set_topology(self: &Arc<Self>, topology: Topology) {
        let epoch = topology.epoch;
        *self.topology.write() = Arc::new(topology);
        for execution in self.unfinished() {
            let broken = {
                let machine = execution.machine.lock();
                // A worker that has not acknowledged waits until it sees the initiator's topology.
                let bound = machine.is_initiator() || machine.phase() != Phase::Created;
                machine.setup().participants.len() > 1 && bound && machine.setup().epoch != epoch
            };
            if broken {
                execution.drive(self, |m| m.fail_here(SLOTS_MOVED));
            }
        }
    }

    /// The next number for an execution or an internal job of this shard.
    pub fn next_number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Creates an execution and sets it going.
    ///
    /// `local` is given back to `Host::prepare` on this shard.
    pub fn create(
        self: &Arc<Self>,
        plan: Plan,
        local: Arc<dyn std::any::Any + Send + Sync>,
        nested: bool,
        waiter: Option<Waiter>,
    ) -> Result<Arc<Execution>, CreateError> {
        plan.validate()?;
        let queued = self.pool.queued();
        if queued >= limits::QUEUED_EXECUTIONS {
            return Err(CreateError::TooMany(queued));
        }
        let topology = self.topology();
        let distributed = plan.mode == Mode::Async && topology.is_cluster();
        let reads = !distributed || topology.my_number().is_some();
        let (participants, me) = if distributed {
            participants(&topology)?
        } else {
            (vec![topology.me.clone()], 0)
        };
        let stages = plan.stages(distributed);
        if distributed && needs_all_slots(&plan, &stages) {
            topology
                .uncovered_slot()
                .map_or(Ok(()), |slot| Err(CreateError::Uncovered(slot)))?;
        }
        let setup = Setup {
            id: ExecutionId::new(&topology.execution_prefix(), self.next_number()),
            me,
            initiator: me,
            epoch: topology.epoch,
            plan: if distributed {
                plan.encode()?.into()
            } else {
                Bytes::new()
            },
            stages,
            idle_limit_ms: self.host.idle_limit_ms(),
            participants,
        };
        let machine = Machine::new(setup, self.host.now_ms());
        let execution = Execution::new(plan, nested, machine, self.host.new_interrupt());
        execution.bind(&topology);
        if let Some(waiter) = waiter {
            execution.when_over(waiter);
        }
        self.list(&execution);
        let (engine, started) = (self.clone(), execution.clone());
        self.preparing
            .submit(move || engine.begin(&started, reads, distributed, local));
        Ok(execution)
    }

    /// Initiator, on a thread for preparation: sends the plan, gets ready itself.
    fn begin(
        self: &Arc<Self>,
        execution: &Arc<Execution>,
        reads: bool,
        distributed: bool,
        local: Arc<dyn std::any::Any + Send + Sync>,
    ) {
        if distributed {
            self.wait_for_links(execution);
        }
        execution.drive(self, |m| m.begin(self.host.now_ms()));
        self.prepare(execution, reads, distributed, Some(local));
    }

    fn prepare(
        self: &Arc<Self>,
        execution: &Arc<Execution>,
        reads: bool,
        distributed: bool,
        local: Option<Arc<dyn std::any::Any + Send + Sync>>,
    ) {
        let setup = execution.machine.lock().setup().clone();
        let request = JobRequest {
            plan: &execution.plan,
            stages: &setup.stages,
            reads,
            participants: setup.participants.len(),
            me: setup.me,
            is_initiator: setup.me == setup.initiator,
            epoch: distributed.then_some(setup.epoch),
            local,
            interrupt: execution.interrupt.clone(),
        };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.host.prepare(request)));
        let result = caught.unwrap_or_else(|panic| Err(format!("internal error: {}", panic_text(panic.as_ref()))));
        let result = result.map(|job| execution.set_job(job));
        execution.drive(self, |m| m.local_ready(result, self.host.now_ms()));
        if execution.phase().is_over() {
            execution.free_job(self);
        }
    }

    /// Gives peers that were lost or are being connected a moment; one that has been away for longer gets a glance, as
    /// others wait behind.
    fn wait_for_links(&self, execution: &Arc<Execution>) {
        let setup = execution.machine.lock().setup().clone();
        let start_ms = self.host.now_ms();
        let worth_waiting =
            |down_for: Duration, waited: Duration| down_for < limits::LINK_WAIT || waited < limits::LINK_GLANCE;
        loop {
            let waited = Duration::from_millis(self.host.now_ms().saturating_sub(start_ms));
            let others = setup
                .participants
                .iter()
                .enumerate()
                .filter(|(number, _)| *number != setup.me);
            let mut down = others.filter_map(|(_, node)| match self.transport.read().as_ref() {
                Some(transport) => transport.down_for(node),
                None => Some(waited),
            });
            let wait = match down.next() {
                None => false,
                Some(first) => down.chain([first]).all(|down_for| worth_waiting(down_for, waited)),
            };
            if !wait || execution.phase().is_over() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(self) fn send(&self, to: &NodeId, id: &ExecutionId, body: ExecutionMessage) -> Result<(), String> {
        let message = Message::Execution {
            execution: id.clone(),
            body,
        };
        match self.transport.read().as_ref() {
            Some(transport) => transport.send(to, message),
            None => Err("the mesh is not up".into()),
        }
    }

    /// A message of an authenticated peer.
    pub fn on_message(self: &Arc<Self>, from: &NodeId, message: Message) {
        match message {
            Message::Execution { execution, body } => self.on_execution_message(from, execution, body),
            Message::Query { id, what, argument } => {
                let (engine, from) = (self.clone(), from.clone());
                // Answers may wait for locks or for an abort, which a thread of the mesh must not.
                self.management.submit(move || {
                    let result = engine.host.answer(&engine, &what, &argument).map(Bytes::from);
                    if let Some(transport) = engine.transport.read().as_ref() {
                        // A peer that is gone does not wait for the answer any more.
                        let _ = transport.send(&from, Message::Answer { id, result });
                    }
                });
            }
            Message::Answer { id, result } => self.queries.on_answer(from, id, result),
            // The registry is not the engine's.
            Message::Registry(_) => {}
        }
    }

    fn on_execution_message(self: &Arc<Self>, from: &NodeId, id: ExecutionId, body: ExecutionMessage) {
        let known = self.lists.lock().get(&id);
        if let Some(execution) = known {
            let number = execution
                .machine
                .lock()
                .setup()
                .participants
                .iter()
                .position(|p| p == from);
            if let Some(number) = number {
                execution.drive(self, |m| m.on_message(number, body, self.host.now_ms()));
            }
        } else if let ExecutionMessage::Prepare {
            epoch,
            participants,
            plan,
            idle_limit_ms,
        } = body
            && let Err(reason) = self.accept(from, &id, epoch, participants, &plan, idle_limit_ms)
        {
            let refusal = ExecutionMessage::Prepared {
                refusal: Some(reason),
                retry: false,
            };
            // An initiator that is gone needs no refusal.
            let _ = self.send(from, &id, refusal);
        }
    }

    /// Worker: takes part in a peer's execution.
    fn accept(
        self: &Arc<Self>,
        from: &NodeId,
        id: &ExecutionId,
        epoch: u64,
        participants: Vec<NodeId>,
        plan: &[u8],
        idle_limit_ms: u64,
    ) -> Result<(), String> {
        let topology = self.topology();
        let number_of = |node: &NodeId| participants.iter().position(|p| p == node);
        let me = number_of(&topology.me).ok_or("this shard is not among the participants")?;
        let initiator = number_of(from).ok_or("the initiator is not among the participants")?;
        if participants.len() > limits::PARTICIPANTS || !id.as_str().starts_with(from.as_str()) {
            return Err("the execution's id or its participants are not plausible".into());
        }
        let plan = Plan::decode(plan).map_err(|e| e.to_string())?;
        let setup = Setup {
            id: id.clone(),
            me,
            initiator,
            epoch,
            plan: Bytes::new(),
            stages: plan.stages(true),
            idle_limit_ms,
            participants,
        };
        let machine = Machine::new(setup, self.host.now_ms());
        let execution = Execution::new(plan, false, machine, self.host.new_interrupt());
        self.counter.fetch_max(id.number() + 1, Ordering::Relaxed);
        self.list(&execution);
        let engine = self.clone();
        self.preparing.submit(move || {
            engine.wait_for_links(&execution);
            if let Some(topology) = engine.wait_for_epoch(&execution, epoch) {
                // Only now: the topology at the arrival of the plan may have been an older one.
                execution.bind(&topology);
                engine.prepare(&execution, true, true, None);
                if engine.topology().epoch != epoch {
                    execution.drive(&engine, |m| m.fail_here(SLOTS_MOVED));
                }
            } else {
                let reason = "another view of the cluster's slots than the initiator; try again".to_owned();
                execution.drive(&engine, |m| m.local_ready(Err(reason), engine.host.now_ms()));
            }
        });
        Ok(())
    }

    /// Waits until this shard sees the same topology as the initiator, and gives it; `None` if it does not.
    fn wait_for_epoch(&self, execution: &Arc<Execution>, epoch: u64) -> Option<Arc<Topology>> {
        let deadline = self.host.now_ms() + limits::TOPOLOGY_SETTLE.as_millis() as u64;
        loop {
            let topology = self.topology();
            if topology.epoch == epoch {
                return Some(topology);
            }
            if self.host.now_ms() >= deadline || execution.phase().is_over() {
                return None;
            }
            self.host.refresh_topology();
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A peer's link broke or fell silent.
    pub fn on_peer_lost(self: &Arc<Self>, peer: &NodeId, reason: &str) {
        for execution in self.unfinished() {
            execution.peer_lost(self, peer, reason);
        }
        self.queries.on_peer_lost(peer, reason);
    }

    /// Looks at idle limits; to be called every `limits::TICK`.
    pub fn on_tick(self: &Arc<Self>) {
        let now_ms = self.host.now_ms();
        for execution in self.unfinished() {
            execution.drive(self, |m| m.on_tick(now_ms));
        }
        self.queries.on_tick(now_ms);
    }

    /// Runs a management job (abort, ...) on a thread that may wait.
    pub fn manage(&self, job: impl FnOnce() + Send + 'static) {
        self.management.submit(job);
    }

    /// Aborts the execution on this shard; returns when it has left its thread.
    pub fn abort_here(self: &Arc<Self>, id: &ExecutionId) -> Result<(), String> {
        let Some(execution) = self.find(id) else {
            return Err("execution does not exist".into());
        };
        while !execution.phase().is_over() {
            if execution.is_on_thread() {
                execution.interrupt.request();
            } else {
                execution.drive(self, Machine::abort);
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// All shards with slots, and this node if it has none.
fn participants(topology: &Topology) -> Result<(Vec<NodeId>, usize), CreateError> {
    let mut participants: Vec<NodeId> = topology.shards.iter().map(|s| s.id.clone()).collect();
    if participants.len() >= limits::PARTICIPANTS.min(usize::from(NO_OWNER)) {
        return Err(CreateError::TooManyShards(participants.len()));
    }
    let me = topology.my_number().unwrap_or_else(|| {
        participants.push(topology.me.clone());
        participants.len() - 1
    });
    Ok((participants, me))
}

/// The plan reads the keyspace or routes by slot.
fn needs_all_slots(plan: &Plan, stages: &[Stage]) -> bool {
    !matches!(plan.reader, Reader::ShardsId | Reader::Python { .. })
        || stages.iter().any(|s| matches!(s.output, Output::Shuffle { .. }))
}
