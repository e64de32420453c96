//! How this shard takes part in an execution of another one.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use super::{Engine, Execution, Fired, RegisteredPlan, SLOTS_MOVED};
use crate::{
    execution::{Machine, Setup},
    limits,
    message::{ExecutionId, ExecutionMessage, Work},
    plan::Plan,
    topology::{NodeId, Topology},
};

/// Executions that wait for their registration to become active here; true: the initiator has given it up.
#[derive(Default)]
pub(super) struct Arriving(Mutex<HashMap<ExecutionId, bool>>);

/// What a peer asks this shard to take part in.
pub(super) struct Invitation {
    pub from: NodeId,
    pub id: ExecutionId,
    pub epoch: u64,
    pub participants: Vec<NodeId>,
    pub idle_limit_ms: u64,
    me: usize,
    initiator: usize,
    /// How many events caused each other up to it.
    depth: u32,
}

impl Invitation {
    /// Looks at what the peer says.
    fn check(
        topology: &Topology,
        from: &NodeId,
        id: &ExecutionId,
        epoch: u64,
        participants: Vec<NodeId>,
        idle_limit_ms: u64,
    ) -> Result<Invitation, String> {
        let number_of = |node: &NodeId| participants.iter().position(|p| p == node);
        let me = number_of(&topology.me).ok_or("this shard is not among the participants")?;
        let initiator = number_of(from).ok_or("the initiator is not among the participants")?;
        if participants.len() > limits::PARTICIPANTS || me == initiator || !id.as_str().starts_with(from.as_str()) {
            return Err("the execution's id or its participants are not plausible".into());
        }
        Ok(Invitation {
            from: from.clone(),
            id: id.clone(),
            epoch,
            participants,
            idle_limit_ms,
            me,
            initiator,
            depth: 0,
        })
    }
}

impl Engine {
    /// Worker: a peer asks for our part in an execution that is not known here.
    pub(super) fn invited(self: &Arc<Self>, from: &NodeId, id: &ExecutionId, body: ExecutionMessage) {
        let ExecutionMessage::Prepare {
            epoch,
            participants,
            work,
            idle_limit_ms,
        } = body
        else {
            if matches!(body, ExecutionMessage::Abort { .. }) {
                self.arriving.given_up(from, id);
            }
            return;
        };
        let invitation = Invitation::check(&self.topology(), from, id, epoch, participants, idle_limit_ms);
        let accepted = invitation.and_then(|invitation| match work {
            Work::Plan(plan) => self.accept_plan(invitation, &plan),
            Work::Registered {
                registration,
                index,
                input,
                depth,
            } => {
                input
                    .check()
                    .map_err(|e| format!("what fired it can not be decoded ({e})"))?;
                let fired = Fired {
                    registration,
                    index,
                    input,
                    here: None,
                    idle_limit_ms,
                    spent_ns: None,
                    reads_on: None,
                };
                self.accept_fired(Invitation { depth, ..invitation }, fired);
                Ok(())
            }
        });
        if let Err(reason) = accepted {
            self.refuse(from, id, reason);
        }
    }

    fn refuse(&self, to: &NodeId, id: &ExecutionId, reason: String) {
        let refusal = ExecutionMessage::Prepared {
            refusal: Some(reason),
            retry: false,
        };
        // An initiator that is gone needs no refusal.
        let _ = self.send(to, id, refusal);
    }

    fn accept_plan(self: &Arc<Self>, invitation: Invitation, plan: &[u8]) -> Result<(), String> {
        let plan = Plan::decode(plan).map_err(|e| e.to_string())?;
        let execution = self.join(invitation, Arc::new(plan), None);
        let (engine, since_ms) = (self.clone(), self.host.now_ms());
        self.preparing
            .submit(move || engine.get_ready(&execution, None, since_ms));
        Ok(())
    }

    /// The registration is here, as a rule, and nothing is to be waited for.
    fn accept_fired(self: &Arc<Self>, invitation: Invitation, fired: Fired) {
        let Some(registered) = self.host.registered(&fired.registration, fired.index) else {
            return self.accept_late(invitation, fired);
        };
        let epoch = invitation.epoch;
        let execution = self.join_fired(invitation, &registered, fired);
        let topology = self.topology();
        if topology.epoch == epoch && self.links_are_up(&execution.setup) {
            self.get_ready_bound(&execution, &topology, Some(registered));
        } else {
            let (engine, since_ms) = (self.clone(), self.host.now_ms());
            self.preparing
                .submit(move || engine.get_ready(&execution, Some(registered), since_ms));
        }
    }

    /// This shard lags behind the initiator: it has a moment to catch up.
    fn accept_late(self: &Arc<Self>, invitation: Invitation, fired: Fired) {
        let deadline_ms = self.host.now_ms() + limits::TOPOLOGY_SETTLE.as_millis() as u64;
        if !self.arriving.add(&invitation.id) {
            let reason = "too many executions wait already for registrations that are not active on it yet";
            return self.refuse(&invitation.from, &invitation.id, reason.into());
        }
        let engine = self.clone();
        self.preparing.submit(move || {
            let is_awaited = !engine.arriving.is_given_up(&invitation.id);
            let is_active = is_awaited && engine.host.await_active(fired.index, deadline_ms);
            let registered = match is_active {
                true => engine.host.registered(&fired.registration, fired.index),
                false => None,
            };
            if engine.arriving.leave(&invitation.id) {
                return;
            }
            let Some(registered) = registered else {
                let Fired {
                    registration, index, ..
                } = &fired;
                let reason = match is_active {
                    true => format!("registration {registration} is not registered on it"),
                    false => format!(
                        "registration {registration} is not active on it yet: it lags behind change {index} of the \
                         registry; try again"
                    ),
                };
                return engine.refuse(&invitation.from, &invitation.id, reason);
            };
            let execution = engine.join_fired(invitation, &registered, fired);
            engine.get_ready(&execution, Some(registered), engine.host.now_ms());
        });
    }

    fn join_fired(self: &Arc<Self>, mut invitation: Invitation, plan: &RegisteredPlan, fired: Fired) -> Arc<Execution> {
        invitation.idle_limit_ms = plan.idle_limit_ms;
        self.join(invitation, plan.plan.clone(), Some(fired))
    }

    /// Lists our part.
    fn join(self: &Arc<Self>, invitation: Invitation, plan: Arc<Plan>, fired: Option<Fired>) -> Arc<Execution> {
        let invitation_depth = invitation.depth;
        let setup = Setup {
            id: invitation.id,
            me: invitation.me,
            initiator: invitation.initiator,
            epoch: invitation.epoch,
            stages: plan.stages(true),
            idle_limit_ms: invitation.idle_limit_ms,
            participants: invitation.participants.into(),
        };
        let (number, depth) = (setup.id.number(), invitation_depth);
        // What a registration fires is dropped with its reply, of which this shard does not hear.
        let is_dropped = fired.is_some();
        let machine = Machine::new(Arc::new(setup), None, self.host.now_ms());
        let execution = Execution::new(plan, false, fired, machine, self.host.new_interrupt());
        execution.depth.store(depth, Ordering::Relaxed);
        execution.drop_when_over.store(is_dropped, Ordering::Release);
        self.counter.fetch_max(number.saturating_add(1), Ordering::Relaxed);
        self.list(&execution);
        execution
    }

    /// On a thread that may wait. `since_ms`: when that began.
    fn get_ready(self: &Arc<Self>, execution: &Arc<Execution>, registered: Option<RegisteredPlan>, since_ms: u64) {
        self.wait_for_links(execution, since_ms);
        match self.wait_for_epoch(execution) {
            // Only now: the topology at the arrival of the plan may have been an older one.
            Some(topology) => self.get_ready_bound(execution, &topology, registered),
            None => {
                let reason = "another view of the cluster's slots than the initiator; try again".to_owned();
                execution.drive(self, |m| m.local_ready(Err(reason), self.host.now_ms()));
            }
        }
    }

    fn get_ready_bound(
        self: &Arc<Self>,
        execution: &Arc<Execution>,
        topology: &Topology,
        registered: Option<RegisteredPlan>,
    ) {
        execution.bind(topology);
        self.prepare(execution, true, registered.map(|r| r.local));
        if self.topology().epoch != execution.setup.epoch {
            execution.drive(self, |m| m.fail_here(SLOTS_MOVED));
        }
    }

    /// Waits until this shard sees the same topology as the initiator, and gives it; `None` if it does not.
    fn wait_for_epoch(&self, execution: &Arc<Execution>) -> Option<Arc<Topology>> {
        let deadline = self.host.now_ms() + limits::TOPOLOGY_SETTLE.as_millis() as u64;
        loop {
            let topology = self.topology();
            if topology.epoch == execution.setup.epoch {
                return Some(topology);
            }
            if self.host.now_ms() >= deadline || execution.phase().is_over() {
                return None;
            }
            self.host.refresh_topology();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Arriving {
    /// False if there are too many, or it is there already.
    fn add(&self, id: &ExecutionId) -> bool {
        let mut arriving = self.0.lock();
        if arriving.len() >= limits::QUEUED_EXECUTIONS || arriving.contains_key(id) {
            return false;
        }
        arriving.insert(id.clone(), false);
        true
    }

    fn given_up(&self, from: &NodeId, id: &ExecutionId) {
        // Only the initiator's word counts.
        if id.as_str().starts_with(from.as_str())
            && let Some(given_up) = self.0.lock().get_mut(id)
        {
            *given_up = true;
        }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub fn is_given_up(&self, id: &ExecutionId) -> bool {
        self.0.lock().get(id).copied().unwrap_or(true)
    }

    /// True if it was given up.
    fn leave(&self, id: &ExecutionId) -> bool {
        self.0.lock().remove(id).unwrap_or(true)
    }
}
