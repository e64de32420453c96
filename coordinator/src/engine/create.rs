//! How an execution of this shard comes to be: ordered, held, begun, prepared.
//!
//! What stays on this shard is prepared and run by one worker thread in one go. What a registration fires on all
//! shards begins on the thread that fired it, where nothing has to be waited for.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{CreateError, Engine, Execution, JobRequest, Waiter, pool::panic_text};
use crate::{
    codec::RecordBatch,
    execution::{Machine, Setup},
    limits,
    message::{ExecutionId, Work},
    plan::{Mode, Output, Plan, Reader, Stage},
    stage::Job,
    topology::{NO_OWNER, NodeId, Topology},
};

/// An execution that is asked for.
pub struct Order {
    /// What to run.
    pub plan: Arc<Plan>,
    /// Given back to `Host::prepare` on this shard.
    pub local: Arc<dyn Any + Send + Sync>,
    /// Made by a `run()` inside a running function: dropped everywhere when it is over.
    pub nested: bool,
    /// Listed, but begins only with `Engine::release`.
    pub held: bool,
    /// A registration fired it.
    pub fired: Option<Fired>,
}

/// What fires an execution of a registration.
#[derive(Debug, Clone)]
pub struct Fired {
    /// Id of the registration.
    pub registration: Arc<str>,
    /// Index of the registry that is active here.
    pub index: u64,
    /// What the reader gives on every shard, but for this one if it has an occasion.
    pub input: RecordBatch,
    /// What fired it, as this shard's host knows it. Does not travel.
    pub here: Option<Arc<dyn Any + Send + Sync>>,
    /// `ExecutionMaxIdleTime` when the registration became active here.
    pub idle_limit_ms: u64,
    /// It is the rest of a run that began before the execution was made, and that took so long until then.
    pub spent_ns: Option<u64>,
    /// After which errors this shard's reader goes on; by itself after none.
    pub reads_on: Option<fn(&str) -> bool>,
}

/// A registration as a shard that takes part in its executions knows it.
pub struct RegisteredPlan {
    /// What to run.
    pub plan: Arc<Plan>,
    /// Given back to `Host::prepare` on this shard.
    pub local: Arc<dyn Any + Send + Sync>,
    /// `ExecutionMaxIdleTime` when it became active there.
    pub idle_limit_ms: u64,
}

/// What an execution of this shard needs to begin.
pub(super) struct Start {
    local: Arc<dyn Any + Send + Sync>,
    /// This shard reads the keyspace.
    reads: bool,
}

impl Engine {
    /// Creates an execution and sets it going, unless it is to be held.
    pub fn create(self: &Arc<Self>, order: Order, waiter: Option<Waiter>) -> Result<Arc<Execution>, CreateError> {
        self.create_as(order, None, waiter)
    }

    /// The same, under a number that was taken before (`next_number`).
    pub fn create_as(
        self: &Arc<Self>,
        order: Order,
        number: Option<u64>,
        waiter: Option<Waiter>,
    ) -> Result<Arc<Execution>, CreateError> {
        let plan = order.plan;
        // A registration's plan was looked at when it was registered.
        if order.fired.is_none() {
            plan.validate()?;
        }
        // What goes on has been let in before.
        if order.fired.as_ref().is_none_or(|fired| fired.spent_ns.is_none()) {
            self.has_room()?;
        }
        let mut topology = self.topology();
        if order.fired.is_some() && plan.mode == Mode::Async && topology.is_cluster() && topology.my_number().is_none()
        {
            // Masters fire, so this one was promoted a moment ago: what is known is from before.
            self.host.refresh_topology();
            topology = self.topology();
        }
        let distributed = plan.mode == Mode::Async && topology.is_cluster();
        let reads = !distributed || topology.my_number().is_some();
        let (participants, me) = if distributed {
            participants(&topology)?
        } else {
            (Arc::from([topology.me.clone()]), 0)
        };
        let stages = plan.stages(distributed);
        // One that has just joined, or has been cut off, knows no others, and has no slots either.
        let is_lost = plan.mode == Mode::Async && topology.me != NodeId::single() && topology.my_number().is_none();
        if (distributed || is_lost) && needs_all_slots(&plan, &stages) {
            topology
                .uncovered_slot()
                .map_or(Ok(()), |slot| Err(CreateError::Uncovered(slot)))?;
        }
        let setup = Setup {
            id: ExecutionId::new(
                &topology.execution_prefix(),
                number.unwrap_or_else(|| self.next_number()),
            ),
            me,
            initiator: me,
            epoch: topology.epoch,
            stages,
            idle_limit_ms: match &order.fired {
                Some(fired) => fired.idle_limit_ms,
                None => self.host.idle_limit_ms(),
            },
            participants,
        };
        let depth = self.host.event_depth();
        let work = match &order.fired {
            _ if !distributed => None,
            None => Some(Work::Plan(plan.encode()?.into())),
            Some(fired) => Some(Work::Registered {
                registration: fired.registration.clone(),
                index: fired.index,
                input: fired.input.clone(),
                depth,
            }),
        };
        let machine = Machine::new(Arc::new(setup), work, self.host.now_ms());
        let execution = Execution::new(plan, order.nested, order.fired, machine, self.host.new_interrupt());
        execution.depth.store(depth, Ordering::Relaxed);
        execution.bind(&topology);
        if let Some(waiter) = waiter {
            execution.when_over(waiter);
        }
        let start = Start {
            local: order.local,
            reads,
        };
        execution.hold(start);
        // Listed before it begins: its messages and an abort find it.
        self.list(&execution);
        if !order.held {
            self.release(&execution);
        }
        Ok(execution)
    }

    /// One more can wait for its turn.
    pub fn has_room(&self) -> Result<(), CreateError> {
        let all = self.pool.queued() + self.beginning.queued() + self.preparing.queued() + self.pending();
        let queued = all.saturating_sub(self.waiting_apart.load(Ordering::Acquire));
        match queued < limits::QUEUED_EXECUTIONS {
            true => Ok(()),
            false => Err(CreateError::TooMany(queued)),
        }
    }

    /// Sets a held execution going; nothing if it is over or was released before.
    pub fn release(self: &Arc<Self>, execution: &Arc<Execution>) {
        if let Some(start) = execution.take_start()
            && !execution.phase().is_over()
        {
            self.go(execution, start);
        }
    }

    fn go(self: &Arc<Self>, execution: &Arc<Execution>, start: Start) {
        let (engine, started) = (self.clone(), execution.clone());
        if execution.setup.is_alone() {
            execution.run_here(self, move || engine.prepare(&started, start.reads, Some(start.local)));
        } else if execution.fired.is_some() && self.links_are_up(&execution.setup) {
            self.begin(execution, start);
        } else {
            let since_ms = self.host.now_ms();
            self.beginning.submit(move || {
                engine.wait_for_links(&started, since_ms);
                engine.begin_there(&started);
                let its = engine.clone();
                engine
                    .preparing
                    .submit(move || its.prepare(&started, start.reads, Some(start.local)));
            });
        }
    }

    /// Initiator: tells the others what to run.
    fn begin_there(self: &Arc<Self>, execution: &Arc<Execution>) {
        execution.drive(self, |m| m.begin(self.host.now_ms()));
    }

    /// The same, and gets ready itself.
    fn begin(self: &Arc<Self>, execution: &Arc<Execution>, start: Start) {
        self.begin_there(execution);
        self.prepare(execution, start.reads, Some(start.local));
    }

    /// Gets this shard ready.
    pub(super) fn prepare(
        self: &Arc<Self>,
        execution: &Arc<Execution>,
        reads: bool,
        local: Option<Arc<dyn Any + Send + Sync>>,
    ) {
        if execution.phase().is_over() {
            return;
        }
        let result = self.make_job(execution, reads, local).map(|job| execution.set_job(job));
        execution.drive(self, |m| m.local_ready(result, self.host.now_ms()));
        if execution.phase().is_over() {
            execution.free_job(self);
        }
    }

    fn make_job(
        &self,
        execution: &Execution,
        reads: bool,
        local: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Job, String> {
        let setup = &execution.setup;
        let request = JobRequest {
            plan: &execution.plan,
            stages: &setup.stages,
            reads,
            participants: setup.participants.len(),
            me: setup.me,
            is_initiator: setup.is_initiator(),
            epoch: (!setup.is_alone()).then_some(setup.epoch),
            local,
            fired: execution.fired.as_ref(),
            depth: execution.depth.load(Ordering::Relaxed),
            interrupt: execution.interrupt.clone(),
        };
        execution.in_preparation.store(true, Ordering::Release);
        let caught = catch_unwind(AssertUnwindSafe(|| self.host.prepare(request)));
        execution.in_preparation.store(false, Ordering::Release);
        caught.unwrap_or_else(|panic| Err(format!("internal error: {}", panic_text(panic.as_ref()))))
    }

    fn others(setup: &Setup) -> impl Iterator<Item = &NodeId> {
        let others = setup.participants.iter().enumerate();
        others.filter(|(number, _)| *number != setup.me).map(|(_, node)| node)
    }

    /// The links to all other participants are up, and have room for one execution more.
    pub(super) fn links_are_up(&self, setup: &Setup) -> bool {
        let transport = self.transport.read();
        let is_up = |node| {
            let transport = transport.as_ref();
            transport.is_some_and(|t| t.down_for(node).is_none() && !t.is_crowded(node))
        };
        Engine::others(setup).all(is_up)
    }

    /// The links to all other shards are up: an execution on all of them would not fail for want of one.
    pub fn reaches_all(&self) -> bool {
        let topology = self.topology();
        let transport = self.transport.read();
        let mut others = topology.shards.iter().filter(|shard| shard.id != topology.me);
        others.all(|shard| transport.as_ref().is_some_and(|t| t.down_for(&shard.id).is_none()))
    }

    /// Gives peers that were lost or are being connected a moment; one that has been away for longer gets a glance, as
    /// others wait behind. Waits until no link is crowded: a full one would end what is under way. `since_ms`: when it came
    /// here; what has waited behind others has had its time.
    pub(super) fn wait_for_links(&self, execution: &Arc<Execution>, since_ms: u64) {
        let worth_waiting =
            |down_for: Duration, waited: Duration| down_for < limits::LINK_WAIT || waited < limits::LINK_GLANCE;
        loop {
            let waited = Duration::from_millis(self.host.now_ms().saturating_sub(since_ms));
            let mut down = Engine::others(&execution.setup).filter_map(|node| match self.transport.read().as_ref() {
                Some(transport) => transport.down_for(node),
                None => Some(waited),
            });
            let transport = self.transport.read().clone();
            let is_crowded = |node| transport.as_ref().is_some_and(|t| t.is_crowded(node));
            let wait = match down.next() {
                None => Engine::others(&execution.setup).any(is_crowded),
                Some(first) => down.chain([first]).all(|down_for| worth_waiting(down_for, waited)),
            };
            if !wait || execution.phase().is_over() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// All shards with slots, and this node if it has none.
fn participants(topology: &Topology) -> Result<(Arc<[NodeId]>, usize), CreateError> {
    let count = topology.shards.len();
    if count >= limits::PARTICIPANTS.min(usize::from(NO_OWNER)) {
        return Err(CreateError::TooManyShards(count));
    }
    let ids = topology.shards.iter().map(|s| s.id.clone());
    Ok(match topology.my_number() {
        Some(me) => (ids.collect(), me),
        None => (ids.chain([topology.me.clone()]).collect(), count),
    })
}

/// The plan reads the keyspace or routes by slot.
fn needs_all_slots(plan: &Plan, stages: &[Stage]) -> bool {
    !matches!(plan.reader, Reader::ShardsId | Reader::Python { .. } | Reader::Command)
        || stages.iter().any(|s| matches!(s.output, Output::Shuffle { .. }))
}
