//! One node's part in agreeing on the registry: its log, the group, formation, membership, its own proposals.
//!
//! Events in, outputs out. Reads no clock, starts no thread, draws from a generator that it is given: so all of it runs
//! in simulations. Each event is followed by `flush`, before which nothing is written to disk.

mod groups;
mod newest;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::Message;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::newest::Awaited;
use super::{
    ClusterView,
    disk::Disk,
    formation,
    group::{Effects, Group},
    guard::{self, Verdict},
    membership::{self, Known, Step},
    mutants::{Mutant, is_on},
    proposals::{Proposals, Ticket},
    service::ProposeError,
    snapshot::Members,
    storage::{LogStorage, Opened, StorageError},
};
use crate::{
    limits,
    message::{GroupHello, GroupId, RegistryMessage},
    net::LogLevel,
    registry::{Command, Registry, RequestId},
    topology::NodeId,
};

/// What a member wants done.
pub(super) enum Output {
    /// Send it; tell `on_send_failed` if that is not possible.
    Send(NodeId, RegistryMessage),
    /// The applied state is newer.
    Published(Arc<Registry>),
    /// A proposal has its outcome.
    Done(Ticket, Result<u64, ProposeError>),
    /// A line for the log.
    Log(LogLevel, String),
}

/// Where the node stands.
enum Part<D: Disk> {
    /// In no group. `None`: the disk is being moved.
    Outside(Option<D>),
    In(Box<Group<D>>),
    /// The disk can not be used now.
    Failed {
        disk: Option<D>,
        error: String,
        retry_ms: u64,
        /// What is on the disk must not be trusted.
        lost: bool,
        /// This node was the only voter of this group: nobody is left whom it could join.
        sole: Option<GroupId>,
    },
}

/// What a node said last.
struct Said {
    hello: GroupHello,
    /// Its link is up since then.
    valid: bool,
}

/// The part.
pub(super) struct Member<D: Disk> {
    me: NodeId,
    rng: StdRng,
    now_ms: u64,
    part: Part<D>,
    /// The number under which this node is in its group, or will join one.
    raft_id: u64,
    /// Applied here, or held alone before there was a group.
    registry: Arc<Registry>,
    view: ClusterView,
    said: BTreeMap<NodeId, Said>,
    up: BTreeSet<NodeId>,
    /// Members whose node is not in the cluster, and since when.
    gone_since: BTreeMap<u64, u64>,
    proposals: Proposals,
    /// Another group is about.
    hold: bool,
    last_leader: u64,
    /// No other member of the group has been known since then.
    dead_since: Option<u64>,
    /// The group to which the own one should give way, and since when that is so.
    giving_way: Option<(GroupId, u64)>,
    /// The lead is not handed over again before.
    transfer_ms: u64,
    raft_tick_ms: u64,
    hello_ms: u64,
    /// The state that was the newest one when this process started, until that is long ago.
    awaited: Option<Awaited>,
    outputs: Vec<Output>,
}

impl<D: Disk> Member<D> {
    /// Opens what is on the disk. `alone` is the state that this node holds without a group.
    pub fn open(me: NodeId, seed: u64, alone: Arc<Registry>, disk: D, now_ms: u64) -> Member<D> {
        let mut rng = StdRng::seed_from_u64(seed);
        let raft_id = match is_on(Mutant::KeepNumber) {
            true => me.as_str().bytes().fold(1, |sum, byte| sum * 31 + u64::from(byte)),
            false => number(&mut rng),
        };
        let mut member = Member {
            view: ClusterView {
                nodes: Vec::new(),
                slot_zero: None,
            },
            me,
            raft_id,
            rng,
            now_ms,
            part: Part::Outside(None),
            registry: alone,
            said: BTreeMap::new(),
            up: BTreeSet::new(),
            gone_since: BTreeMap::new(),
            proposals: Proposals::default(),
            hold: false,
            last_leader: 0,
            dead_since: None,
            giving_way: None,
            transfer_ms: 0,
            raft_tick_ms: now_ms,
            hello_ms: now_ms,
            awaited: None,
            outputs: Vec::new(),
        };
        member.open_disk(disk);
        member.flush();
        member
    }

    fn log(&mut self, level: LogLevel, text: impl Into<String>) {
        self.outputs.push(Output::Log(level, text.into()));
    }

    /// What is to be done now.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// This node is in a group, whose log decides about the state.
    pub fn is_bound(&self) -> bool {
        matches!(self.part, Part::In(_)) && !self.registry_is_alone()
    }

    fn registry_is_alone(&self) -> bool {
        matches!(&self.part, Part::In(group) if group.registry.index() == 0)
    }

    /// The state held alone has changed (a dump was loaded) before there is a group.
    pub fn set_alone(&mut self, state: Arc<Registry>) {
        if !self.is_bound() {
            self.registry = state;
        }
    }

    // Disk

    fn open_disk(&mut self, disk: D) {
        match LogStorage::open(disk, &self.me) {
            Opened::Empty(disk) => self.part = Part::Outside(Some(disk)),
            Opened::Existing(storage) => self.enter(storage),
            Opened::Damaged(disk, reason) => {
                self.log(
                    LogLevel::Warning,
                    format!(
                        "registry: the log is damaged ({reason}); it is put aside, the node joins again from its peers"
                    ),
                );
                self.start_over(disk, "damaged");
            }
            Opened::Failed(disk, error) => self.fail(Some(disk), &error),
        }
    }

    fn enter(&mut self, storage: LogStorage<D>) {
        match Group::resume(storage.clone(), self.rng.random()) {
            Ok(mut group) => {
                self.raft_id = group.raft_id;
                group.lead_at_once();
                self.part = Part::In(Box::new(group));
            }
            Err(reason) => {
                self.log(
                    LogLevel::Warning,
                    format!("registry: the log can not be used ({reason}); it is put aside"),
                );
                match storage.take_disk() {
                    Some(disk) => self.start_over(disk, "damaged"),
                    None => self.fail(None, &StorageError::Write(reason)),
                }
            }
        }
    }

    /// The disk can not be used: reads go on, the group has to do without this node.
    fn fail(&mut self, disk: Option<D>, error: &StorageError) {
        self.log(
            LogLevel::Warning,
            format!("registry: {error}; this node does not take part until that is mended"),
        );
        self.part = Part::Failed {
            disk,
            error: error.to_string(),
            retry_ms: self.now_ms + limits::DISK_RETRY.as_millis() as u64,
            lost: matches!(error, StorageError::Sync(_)),
            sole: None,
        };
    }

    fn retry_disk(&mut self) {
        if let Part::Failed {
            disk,
            retry_ms,
            lost,
            sole,
            ..
        } = &mut self.part
            && *retry_ms <= self.now_ms
            && let Some(disk) = disk.take()
        {
            let sole = *sole;
            match *lost {
                true => self.start_over(disk, "unsynced"),
                false => self.open_disk(disk),
            }
            if let Some(group) = sole {
                self.found_after(group);
            }
        }
    }

    /// If the log of a group's only voter is lost, nobody is left whom it could join, but its state is here: a new group
    /// takes the old one's place.
    fn found_after(&mut self, group: GroupId) {
        if matches!(self.part, Part::Outside(_)) {
            self.found(formation::generation(group).saturating_add(1), "founded anew");
        }
        if let Part::Failed { sole, .. } = &mut self.part {
            *sole = Some(group);
        }
    }

    /// Puts the log aside; this node will join under a new number.
    fn start_over(&mut self, mut disk: D, kind: &str) {
        if !is_on(Mutant::KeepNumber) {
            self.raft_id = number(&mut self.rng);
        }
        match disk.set_aside(kind) {
            Ok(Some(name)) => {
                self.log(LogLevel::Warning, format!("registry: the old log is kept as {name}"));
                self.part = Part::Outside(Some(disk));
            }
            Ok(None) => self.part = Part::Outside(Some(disk)),
            Err(e) => {
                let error = StorageError::Sync(e.to_string());
                self.fail(Some(disk), &error);
            }
        }
        self.hello_ms = self.now_ms;
    }

    /// Leaves the group, if there is one.
    fn leave(&mut self, kind: &str) {
        if let Part::In(group) = &mut self.part
            && let Some(disk) = group.take_disk()
        {
            self.start_over(disk, kind);
        }
    }

    // Events

    /// Time goes on; to be called every `limits::RAFT_TICK`, about.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.await_no_longer();
        self.retry_disk();
        let length = limits::RAFT_TICK.as_millis() as u64;
        // After a pause of the process it is not all made up for: the others must get a chance to be heard.
        self.raft_tick_ms = self.raft_tick_ms.max(now_ms.saturating_sub(2 * length));
        while self.raft_tick_ms + length <= now_ms {
            self.raft_tick_ms += length;
            if let Part::In(group) = &mut self.part {
                group.tick();
            }
        }
        self.leave_dead_group();
        self.follow_advice();
        self.tend_members();
        if self.hello_ms <= now_ms {
            self.say_hello();
        }
    }

    /// The link to a node came up or was lost.
    pub fn on_peer(&mut self, node: &NodeId, up: bool) {
        if up {
            self.up.insert(node.clone());
            let hello = self.hello(true);
            self.outputs
                .push(Output::Send(node.clone(), RegistryMessage::Hello(hello)));
        } else {
            self.up.remove(node);
            if let Some(said) = self.said.get_mut(node) {
                said.valid = false;
            }
            self.on_send_failed(node);
        }
    }

    /// Something for the node was not sent.
    pub fn on_send_failed(&mut self, node: &NodeId) {
        if let Part::In(group) = &mut self.part {
            let ids: Vec<u64> = group
                .members
                .iter()
                .filter(|(_, n)| *n == node)
                .map(|(id, _)| *id)
                .collect();
            for id in ids {
                group.unreachable(id);
            }
        }
    }

    /// The cluster as the server sees it.
    pub fn set_view(&mut self, view: ClusterView) {
        self.said.retain(|node, _| view.nodes.iter().any(|n| n.id == *node));
        if self.view.slot_zero != view.slot_zero {
            // Who agreed before must agree again.
            let free = self.said.values_mut().filter(|said| said.hello.group.is_none());
            free.for_each(|said| said.hello.leader = None);
            self.hello_ms = self.now_ms;
        }
        self.view = view;
        self.count_from_now();
    }

    /// A message of an authenticated node.
    pub fn on_message(&mut self, from: &NodeId, message: RegistryMessage) {
        match message {
            RegistryMessage::Hello(hello) => self.on_hello(from, hello),
            RegistryMessage::Raft { group, message } => self.on_raft(from, group, &message),
            RegistryMessage::Forward { group, proposal } => {
                if self.own_group() == Some(group) {
                    self.append(&proposal);
                }
            }
            RegistryMessage::Ask { .. } | RegistryMessage::Tell { .. } => {}
        }
    }

    fn on_hello(&mut self, from: &NodeId, hello: GroupHello) {
        if hello.raft_id == 0 {
            return;
        }
        if hello.wants_answer {
            let answer = self.hello(false);
            self.outputs
                .push(Output::Send(from.clone(), RegistryMessage::Hello(answer)));
        }
        self.leader_told(from, &hello);
        self.said.insert(from.clone(), Said { hello, valid: true });
        self.follow_advice();
        self.tend_members();
    }

    /// The number under which a node speaks in our group; 0 if it does not. The table of members here may be old: who
    /// became a member since, the leader perhaps, is known by what it says of itself.
    fn number_of(&self, node: &NodeId, group: &Group<D>) -> u64 {
        let said = self.said.get(node).filter(|said| said.hello.group == Some(group.id));
        if let Some(said) = said {
            let number = said.hello.raft_id;
            let free = group.members.get(&number).is_none_or(|owner| owner == node);
            return if free { number } else { 0 };
        }
        let entry = group.members.iter().find(|(_, owner)| *owner == node);
        entry.map_or(0, |(id, _)| *id)
    }

    fn on_raft(&mut self, from: &NodeId, group_id: GroupId, message: &Bytes) {
        let number = match &self.part {
            Part::In(group) if group.id == group_id => self.number_of(from, group),
            _ => return,
        };
        let Part::In(group) = &mut self.part else { return };
        match guard::judge(message, number, group.ours()) {
            Verdict::Step(message) => group.step(*message),
            Verdict::Refuse(reason) => {
                self.log(
                    LogLevel::Debug,
                    format!("registry: a message of {from} is refused: {reason}"),
                );
            }
            Verdict::LostLog => {
                self.log(
                    LogLevel::Warning,
                    "registry: the leader knows entries of this node's log that are not in it: the log lost its end; it is put aside",
                );
                self.leave("damaged");
            }
        }
    }

    /// This node is its group's only voter, and the group is the cluster's as far as it knows.
    pub(super) fn decides_alone(&self) -> bool {
        let Part::In(group) = &self.part else { return false };
        group.is_sole_voter() && (self.is_most(group) || !self.hold)
    }

    // Members

    fn tend_members(&mut self) {
        let Part::In(group) = &mut self.part else { return };
        if !group.is_leader() || group.is_changing() || self.hold {
            return;
        }
        let is_node = |node: &NodeId| self.view.nodes.iter().any(|n| n.id == *node);
        for (id, node) in &group.members {
            match is_node(node) {
                true => self.gone_since.remove(id),
                false => Some(*self.gone_since.entry(*id).or_insert(self.now_ms)),
            };
        }
        self.gone_since.retain(|id, _| group.members.contains_key(id));
        let leave_ms = limits::LEAVE_AFTER.as_millis() as u64;
        let left = self
            .gone_since
            .iter()
            .filter(|(_, since)| **since + leave_ms <= self.now_ms);
        let left: BTreeSet<u64> = left.map(|(id, _)| *id).collect();
        let in_group = self
            .said
            .iter()
            .filter(|(_, said)| said.valid && said.hello.group == Some(group.id));
        let mut present: BTreeMap<NodeId, u64> = in_group
            .map(|(node, said)| (node.clone(), said.hello.raft_id))
            .collect();
        present.insert(self.me.clone(), self.raft_id);
        let commit = group.commit();
        // A number that has acknowledged nothing may be one that its node gave up already.
        let near = |(id, matched): (u64, u64)| {
            let caught_up = matched > 0 && matched + limits::LOG_ENTRIES / 32 >= commit;
            caught_up.then_some(id)
        };
        let up = |id: &u64| {
            let speaks = |node: &NodeId| self.up.contains(node) && present.get(node) == Some(id);
            group
                .members
                .get(id)
                .is_some_and(|node| *node == self.me || speaks(node))
        };
        let caught_up: BTreeSet<u64> = group.matched().into_iter().filter_map(near).filter(up).collect();
        let known = Known {
            view: &self.view,
            members: &group.members,
            voters: &group.voters(),
            present: &present,
            caught_up: &caught_up,
            left: &left,
            me: self.raft_id,
        };
        match membership::next(&known) {
            Step::Nothing => {}
            Step::Change(change) => group.propose_change(change),
            // No changes are taken meanwhile: not again and again to one that does not take it.
            Step::Lead(heir) if self.transfer_ms <= self.now_ms => {
                self.transfer_ms = self.now_ms + limits::TRANSFER_AGAIN.as_millis() as u64;
                group.transfer(heir);
            }
            Step::Lead(_) => {}
        }
    }

    // Proposals

    /// Asks for a change; `Output::Done` tells the outcome.
    pub fn propose(&mut self, ticket: Ticket, command: Command, now_ms: u64) {
        self.now_ms = now_ms;
        let request = RequestId(self.rng.random());
        let basis = self.is_bound().then(|| self.registry.index());
        if let Err(e) = self.proposals.add(ticket, command, request, basis, now_ms) {
            self.outputs.push(Output::Done(ticket, Err(e)));
        }
    }

    /// The leader takes a proposal; false if it does not.
    fn append(&mut self, proposal: &Bytes) -> bool {
        let may = self.may_decide();
        match &mut self.part {
            Part::In(group) if may.is_ok() => group.propose(proposal),
            _ => false,
        }
    }

    /// Most masters with slots have this group's log, and most of them vote, or as many as may. Before that what it
    /// decides could be given up: another part of the cluster may have founded a group as well. After `RECOVER` the
    /// operator has decided which group counts.
    fn is_most(&self, group: &Group<D>) -> bool {
        if formation::generation(group.id) > 0 || is_on(Mutant::DecideAsFew) {
            return true;
        }
        let (voters, matched) = (group.voters(), group.matched());
        let has_log = |id| !group.is_leader() || matched.get(id).is_some_and(|matched| *matched > 0);
        let (mut having, mut voting) = (BTreeSet::new(), BTreeSet::new());
        for (id, node) in &group.members {
            if voters.contains(id) {
                voting.insert(node);
            }
            if voters.contains(id) || has_log(id) {
                having.insert(node);
            }
        }
        let owners = self.view.nodes.iter().filter(|node| node.has_slots);
        let (mut all, mut have, mut vote) = (0, 0, 0);
        for owner in owners {
            all += 1;
            have += usize::from(having.contains(&owner.id));
            vote += usize::from(voting.contains(&owner.id));
        }
        let is_most = have * 2 > all && (vote * 2 > all || vote >= limits::VOTERS);
        // Without slots anywhere there is one cluster still; without a view nothing is known.
        is_most || (all == 0 && !self.view.nodes.is_empty())
    }

    /// Why no change can be decided now, as far as this node sees.
    fn may_decide(&self) -> Result<(), &'static str> {
        match &self.part {
            Part::Failed { .. } => Err("this node's log can not be written, see the server log"),
            Part::Outside(_) => Err("this node is not yet in the cluster's group"),
            Part::In(group) if !group.holds() => Err("this node is not yet in the cluster's group"),
            Part::In(_) if self.hold && !is_on(Mutant::IgnoreOtherGroup) => {
                Err("nodes of another group are in the cluster, which has to be settled first")
            }
            Part::In(group) if !self.is_most(group) => Err("most masters do not take part in this node's group yet"),
            Part::In(group) => {
                let is_there = |id| {
                    let node = group.members.get(&id);
                    id == self.raft_id || node.is_some_and(|node| self.up.contains(node))
                };
                match group.has_quorum(is_there) {
                    true if group.leader() == 0 => Err("the group has no leader at the moment"),
                    true => Ok(()),
                    false => Err("the majority of the masters can not be reached"),
                }
            }
        }
    }

    fn hand_in(&mut self) {
        if self.proposals.is_empty() {
            return;
        }
        let may = self.may_decide();
        if may.is_ok() {
            let (due, refused) = self.proposals.due(self.now_ms, self.registry.index());
            for (ticket, bytes) in due {
                let handed_in = self.hand_in_one(&bytes);
                self.proposals.tried(ticket, handed_in, self.now_ms);
            }
            self.fail_proposals(refused);
        }
        let expired = self
            .proposals
            .expired(self.now_ms, may.err().unwrap_or("no leader took the change"));
        self.fail_proposals(expired);
    }

    fn fail_proposals(&mut self, errors: Vec<(Ticket, ProposeError)>) {
        let outputs = errors
            .into_iter()
            .map(|(ticket, error)| Output::Done(ticket, Err(error)));
        self.outputs.extend(outputs);
    }

    fn hand_in_one(&mut self, bytes: &Bytes) -> bool {
        let Part::In(group) = &self.part else { return false };
        if group.is_leader() {
            return self.append(bytes);
        }
        let leader = group
            .members
            .get(&group.leader())
            .filter(|node| self.up.contains(*node));
        let Some(leader) = leader.cloned() else { return false };
        let forward = RegistryMessage::Forward {
            group: group.id,
            proposal: bytes.clone(),
        };
        self.outputs.push(Output::Send(leader, forward));
        true
    }

    // Carrying out

    /// Carries out what the events since the last call ask for; `take_outputs` gives what is to be done then.
    pub fn flush(&mut self) {
        let mut early = Vec::new();
        self.flush_with(&mut |output| early.push(output));
        early.append(&mut self.outputs);
        self.outputs = early;
    }

    /// The same, but `sink` gets at once what need not wait for this node's disk.
    pub fn flush_with(&mut self, sink: &mut dyn FnMut(Output)) {
        self.hand_in();
        self.outputs.drain(..).for_each(&mut *sink);
        let Part::In(group) = &mut self.part else { return };
        let (id, said) = (group.id, &self.said);
        let mut effects = Effects::default();
        let mut early = |members: &Members, messages: Vec<Message>| {
            messages
                .into_iter()
                .filter_map(|m| addressed(id, members, said, m))
                .for_each(&mut *sink);
        };
        let result = group.flush(&mut effects, &mut early);
        let leader = group.leader();
        self.take_effects(effects);
        self.look_for_newest();
        if leader != self.last_leader {
            self.last_leader = leader;
            self.proposals.hurry();
            self.hello_ms = self.now_ms;
        }
        if let Err(error) = result {
            let sole = self.decides_alone();
            let disk = match &mut self.part {
                Part::In(group) => group.take_disk(),
                _ => None,
            };
            self.fail(disk, &error);
            if let Part::Failed { sole: group, .. } = &mut self.part {
                *group = sole.then_some(id);
            }
        }
    }

    fn take_effects(&mut self, effects: Effects) {
        let Part::In(group) = &mut self.part else { return };
        let messages = effects.messages.into_iter();
        let sends = messages.filter_map(|m| addressed(group.id, &group.members, &self.said, m));
        self.outputs.extend(sends);
        let newer = group.registry.index() > 0 && (group.registry.index() != self.registry.index() || effects.jumped);
        if newer {
            self.registry = Arc::new(group.registry.clone());
            self.outputs.push(Output::Published(self.registry.clone()));
        }
        for (request, index, outcome) in effects.outcomes {
            if let Some(ticket) = self.proposals.applied(request) {
                let result = outcome.map(|()| index).map_err(ProposeError::from);
                self.outputs.push(Output::Done(ticket, result));
            }
        }
        if effects.jumped {
            let index = self.registry.index();
            for (ticket, outcome) in self.proposals.remembered(&self.registry) {
                let result = outcome.map(|()| index).map_err(ProposeError::from);
                self.outputs.push(Output::Done(ticket, result));
            }
        }
        for note in effects.notes {
            self.log(LogLevel::Warning, format!("registry: {note}"));
        }
    }
}

/// A Raft message on its way to the node that has the number.
fn addressed(group: GroupId, members: &Members, said: &BTreeMap<NodeId, Said>, message: Message) -> Option<Output> {
    let speaks = |said: &Said| said.hello.group == Some(group) && said.hello.raft_id == message.to;
    // A member that is not in the table yet is known by what it said.
    let node = members
        .get(&message.to)
        .or_else(|| said.iter().find(|(_, said)| speaks(said)).map(|(node, _)| node))?;
    let message = message.write_to_bytes().ok()?.into();
    Some(Output::Send(node.clone(), RegistryMessage::Raft { group, message }))
}

/// A fresh number; never 0.
fn number(rng: &mut StdRng) -> u64 {
    rng.random_range(1..=u64::MAX >> 1)
}
