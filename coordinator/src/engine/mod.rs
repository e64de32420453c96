//! All executions of one shard: creation, the lists, messages, queries between shards, worker threads.
//!
//! Joins the state machine with its surroundings, which it knows as traits: `Host` (the server and the language) and
//! `Transport` (the mesh).

mod create;
mod execution;
mod job;
mod join;
mod lists;
mod owed;
mod pool;
mod queries;
mod stopper;
mod swift;
#[cfg(test)]
mod tests;
mod waiting;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;

pub use self::{
    create::{Fired, Order, RegisteredPlan},
    execution::{Execution, Waiter},
    lists::Listed,
    pool::{PYTHON_STACK_BYTES, Pool, panic_text},
    queries::{Gathered, question},
    swift::{Swift, Waiting},
};
use self::{
    join::Arriving,
    lists::Lists,
    owed::Owed,
    queries::Queries,
    stopper::{Stopper, Target},
    swift::{Abort, Swifts},
};
use crate::{
    execution::{Machine, Phase},
    limits,
    message::{ExecutionId, ExecutionMessage, Message},
    plan::{Plan, PlanError, Stage},
    stage::Job,
    topology::{NodeId, Topology},
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
    /// What this shard keeps of it: original functions on the initiator, those of the registration. `None` if the
    /// functions have to be loaded from the plan.
    pub local: Option<Arc<dyn std::any::Any + Send + Sync>>,
    /// The registration that fired it, and what its reader gives.
    pub fired: Option<&'a Fired>,
    /// How many events caused each other up to it; 0: none did.
    pub depth: u32,
    /// The interrupt to serve.
    pub interrupt: Arc<dyn Interrupt>,
}

/// The server and the language around the engine.
pub trait Host: Send + Sync + 'static {
    /// Makes an interrupt for one execution.
    fn new_interrupt(&self) -> Arc<dyn Interrupt>;
    /// Loads functions, opens the reader. On a thread with a large stack, which may wait; but for an execution that a
    /// registration fired on any thread, the mesh's too: then it must not wait, nor run what scripts have written.
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
    /// The registration, if the registry's state of this index, or a later one, is active here. Must not wait.
    fn registered(&self, registration: &str, index: u64) -> Option<RegisteredPlan>;
    /// Waits until the state of this index is active here; false if it was not in time.
    fn await_active(&self, index: u64, deadline_ms: u64) -> bool;
    /// Answers a question about this shard, see `queries`: calls `then`, now or later, and waits for nothing but locks.
    /// `asked`: the listed execution that it is about.
    fn answer(
        &self,
        engine: &Arc<Engine>,
        what: &str,
        argument: &[u8],
        asked: Option<Arc<Execution>>,
        then: Box<dyn FnOnce(Result<Vec<u8>, String>) + Send>,
    );
    /// How many events caused each other up to what runs on this thread.
    fn event_depth(&self) -> u32 {
        0
    }
    /// Writes a line to the server's log.
    fn log_warning(&self, text: &str);
}

/// The mesh.
pub trait Transport: Send + Sync {
    /// Queues a message; never blocks.
    fn send(&self, to: &NodeId, message: Message) -> Result<(), String>;
    /// How long the link to the peer has not been up; `None` if it is.
    fn down_for(&self, to: &NodeId) -> Option<Duration>;
    /// So many messages wait for the peer that none should be added but for what is under way.
    fn is_crowded(&self, to: &NodeId) -> bool;
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
    pub(self) pending: AtomicUsize,
    /// Executions that wait and have a bound of their own.
    pub(self) waiting_apart: AtomicUsize,
    pub(self) pool: Pool,
    /// When one of the worker threads has done something last.
    pub(self) got_on_ms: AtomicU64,
    /// Waits for links, but never for code of scripts: what has begun has a limit for that.
    pub(self) beginning: Pool,
    pub(self) preparing: Pool,
    /// Tells those who wait; large replies must not hold up a thread of the mesh.
    pub(self) replying: Pool,
    management: Pool,
    pub(self) stopper: Stopper,
    queries: Queries,
    owed: Arc<Owed>,
    pub(self) arriving: Arriving,
    pub(self) swifts: Swifts,
}

impl Engine {
    /// Starts the worker threads.
    pub fn start(host: Arc<dyn Host>, threads: usize) -> std::io::Result<Arc<Engine>> {
        let on_panic = |host: Arc<dyn Host>| {
            move |text: String| host.log_warning(&format!("a worker thread met an internal error: {text}"))
        };
        Ok(Arc::new(Engine {
            pool: Pool::start("oxi-worker", threads, on_panic(host.clone()))?,
            beginning: Pool::start("oxi-begin", 2, on_panic(host.clone()))?,
            preparing: Pool::start("oxi-prepare", 2, on_panic(host.clone()))?,
            replying: Pool::start("oxi-reply", 1, on_panic(host.clone()))?,
            management: Pool::start("oxi-manage", 2, on_panic(host.clone()))?,
            stopper: Stopper::start(on_panic(host.clone()))?,
            host,
            transport: RwLock::new(None),
            topology: RwLock::new(Arc::new(Topology::single())),
            lists: Mutex::new(Lists::default()),
            counter: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            waiting_apart: AtomicUsize::new(0),
            got_on_ms: AtomicU64::new(0),
            queries: Queries::default(),
            owed: Arc::default(),
            arriving: Arriving::default(),
            swifts: Swifts::default(),
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
                let setup = &execution.setup;
                // A worker that has not acknowledged waits until it sees the initiator's topology.
                let bound = setup.is_initiator() || execution.phase() != Phase::Created;
                !setup.is_alone() && bound && setup.epoch != epoch
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
                // Found now: what comes behind the question may end it, and then it leaves the lists.
                let asked = ExecutionId::parse(&argument).and_then(|id| self.lists.lock().get(&id));
                // Answers may wait for locks, which a thread of the mesh must not.
                self.management.submit(move || {
                    let its = engine.clone();
                    let answered = Box::new(move |answer: Result<Vec<u8>, String>| {
                        let result = answer.map(Bytes::from);
                        if let Some(transport) = its.transport.read().as_ref() {
                            // A peer that is gone does not wait for the answer any more.
                            let _ = transport.send(&from, Message::Answer { id, result });
                        }
                    });
                    engine.host.answer(&engine, &what, &argument, asked, answered);
                });
            }
            Message::Answer { id, result } => self.queries.on_answer(from, id, result),
            // The registry is not the engine's.
            Message::Registry(_) => {}
        }
    }

    fn on_execution_message(self: &Arc<Self>, from: &NodeId, id: ExecutionId, body: ExecutionMessage) {
        let mut known = self.lists.lock().get(&id);
        if let Some(execution) = &known
            && matches!(body, ExecutionMessage::Prepare { .. })
            && execution.setup.participants[execution.setup.initiator] == *from
        {
            // The initiator has been restarted, and counts anew.
            execution.peer_lost(self, from, "it was restarted");
            self.forget(&id);
            known = None;
        }
        match known {
            Some(execution) => {
                let number = execution.setup.participants.iter().position(|p| p == from);
                if let Some(number) = number {
                    execution.drive(self, |m| m.on_message(number, body, self.host.now_ms()));
                }
            }
            None => self.invited(from, &id, body),
        }
    }

    /// A peer's link broke or fell silent.
    pub fn on_peer_lost(self: &Arc<Self>, peer: &NodeId, reason: &str) {
        for execution in self.unfinished() {
            execution.peer_lost(self, peer, reason);
        }
        self.queries.on_peer_lost(peer, reason);
    }

    /// Looks at idle limits and at what other shards are to be told; to be called every `limits::TICK`.
    pub fn on_tick(self: &Arc<Self>) {
        let now_ms = self.host.now_ms();
        let preparing_ms = self.preparing.stands().as_millis() as u64;
        for execution in self.unfinished() {
            // Threads that are stuck, all of them, are no sign of life.
            let standing_ms = now_ms.saturating_sub(self.got_on_ms.load(Ordering::Relaxed));
            let limit_ms = execution.setup.idle_limit_ms;
            let in_queue = match execution.phase() {
                // Another shard waits until this one is ready.
                Phase::Created => !execution.setup.is_initiator() && preparing_ms <= limit_ms,
                _ => execution.is_queued() && standing_ms <= limit_ms,
            };
            execution.drive(self, |m| m.on_tick(now_ms, in_queue));
        }
        self.queries.on_tick(now_ms);
        self.tell_owed();
    }

    /// Runs a management job (abort, ...) on a thread that may wait for locks. It must not wait for other shards: they
    /// may wait for this thread.
    pub fn manage(&self, job: impl FnOnce() + Send + 'static) {
        self.management.submit(job);
    }

    /// Aborts executions of a registration that this shard made and that have not started; how many.
    pub fn abort_unstarted(self: &Arc<Self>, registration: &str) -> usize {
        let is_its = |e: &Arc<Execution>| {
            e.fired
                .as_ref()
                .is_some_and(|f| *f.registration == *registration && f.spent_ns.is_none())
        };
        let its = self.unfinished().into_iter().filter(is_its);
        its.filter(|e| e.drive(self, Machine::abort_unstarted)).count()
    }

    /// Aborts the execution on this shard; `then` is called when it has left its thread. `asked`: found when the abort
    /// was asked for; the lists may have lost it since.
    pub fn abort_here(
        self: &Arc<Self>,
        id: &ExecutionId,
        asked: Option<Arc<Execution>>,
        then: impl FnOnce(Result<(), String>) + Send + 'static,
    ) {
        let engine = self.clone();
        match self.abort_swift(id) {
            Abort::Unknown => {}
            Abort::Done => return then(Ok(())),
            Abort::Stops(swift, number) => {
                let left = move || engine.manage(move || then(Ok(())));
                return self.stopper.interrupt(Target::Event(swift, number), left);
            }
        }
        // What was found may only have shown one that has gone on as the one in the lists.
        let listed = self.lists.lock().get(id);
        let Some(execution) = listed.or(asked).or_else(|| self.find(id)) else {
            return then(Err(question::UNKNOWN.into()));
        };
        let (engine, its) = (self.clone(), execution.clone());
        let abort = move || {
            its.drive(&engine, Machine::abort);
            then(Ok(()));
        };
        // One that was aborted elsewhere may be over and on its thread still.
        if execution.phase() == Phase::Done || !execution.is_on_thread() {
            return abort();
        }
        let engine = self.clone();
        self.stopper
            .interrupt(Target::Execution(execution), move || engine.manage(abort));
    }
}
