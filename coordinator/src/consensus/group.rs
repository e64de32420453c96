//! A node's part in one group: the Raft node, its log, what is applied.
//!
//! Events in, `Effects` out; writes to its disk, but reads no clock and sends nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use bytes::Bytes;
use protobuf::Message as _;
use raft::{
    Config, RawNode, SnapshotStatus, StateRole,
    eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, Snapshot},
};

use super::{
    disk::Disk,
    guard,
    mutants::{Mutant, is_on},
    snapshot::{self, Members},
    source::{Source, Wanted},
    storage::{Identity, LogStorage, StorageError},
};
use crate::{
    limits,
    message::GroupId,
    registry::{Proposal, Refusal, Registry, RequestId},
    topology::NodeId,
};

/// What came of an event.
#[derive(Default)]
pub(super) struct Effects {
    /// Raft messages by number of the member.
    pub messages: Vec<Message>,
    /// Requests that were applied.
    pub outcomes: Vec<(RequestId, u64, Result<(), Refusal>)>,
    /// The whole state was replaced.
    pub jumped: bool,
    /// Worth a line in the log.
    pub notes: Vec<String>,
}

/// The part.
pub(super) struct Group<D: Disk> {
    pub id: GroupId,
    pub raft_id: u64,
    pub registry: Registry,
    pub members: Members,
    raw: RawNode<Source<D>>,
    storage: LogStorage<D>,
    /// Members for which the snapshot on disk is too old.
    wanted: Wanted,
    /// What election timeouts are drawn from, besides the term.
    seed: u64,
    /// Election timeouts that ran out or were put back.
    waits: u64,
    /// Proposals that are in the log and not applied yet: copies are not appended again while this node leads.
    appended: BTreeSet<RequestId>,
    appended_term: u64,
    /// Ticks since a member was sent a snapshot that it has not confirmed.
    snapshot_ticks: BTreeMap<u64, u64>,
    /// Ticks before a snapshot that could not be written is tried again.
    postponed_ticks: u64,
}

impl<D: Disk> Group<D> {
    /// Goes on with a log.
    pub fn resume(storage: LogStorage<D>, seed: u64) -> Result<Group<D>, String> {
        let Identity { group: id, raft_id, .. } = storage.identity();
        let applied = storage.snapshot_metadata().index;
        let (members, mut registry) = match applied {
            0 => Default::default(),
            _ => {
                let data = storage.snapshot_data().map_err(|e| e.to_string())?;
                snapshot::decode(&data).map_err(|e| e.to_string())?
            }
        };
        registry.advance(applied);
        let config = Config {
            id: raft_id,
            applied,
            election_tick: limits::RAFT_ELECTION_TICKS,
            heartbeat_tick: limits::RAFT_HEARTBEAT_TICKS,
            max_size_per_msg: limits::RAFT_MESSAGE_BYTES,
            max_inflight_msgs: limits::RAFT_INFLIGHT,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: limits::RAFT_UNCOMMITTED_BYTES,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let wanted = Wanted::default();
        let source = Source::new(storage.clone(), wanted.clone());
        let raw = RawNode::new(&config, source, &logger).map_err(|e| e.to_string())?;
        let mut group = Group {
            id,
            raft_id,
            registry,
            members,
            raw,
            storage,
            wanted,
            seed,
            waits: 0,
            appended: BTreeSet::new(),
            appended_term: 0,
            snapshot_ticks: BTreeMap::new(),
            postponed_ticks: 0,
        };
        group.choose_timeout();
        Ok(group)
    }

    /// A log of a new group that this node founds, holding the state that it brings.
    pub fn founding_snapshot(raft_id: u64, me: &NodeId, mut registry: Registry) -> Snapshot {
        let index = registry.index().max(1);
        registry.advance(index);
        let members = Members::from([(raft_id, me.clone())]);
        let mut founding = Snapshot {
            data: snapshot::encode(&members, &registry).into(),
            ..Snapshot::default()
        };
        let metadata = founding.mut_metadata();
        (metadata.index, metadata.term) = (index, 1);
        metadata.mut_conf_state().voters = vec![raft_id];
        founding
    }

    pub fn tick(&mut self) {
        let waited = self.raw.raft.election_elapsed;
        self.raw.tick();
        self.waits += u64::from(self.raw.raft.election_elapsed <= waited);
        self.choose_timeout();
        self.postponed_ticks = self.postponed_ticks.saturating_sub(1);
        if !self.is_leader() {
            self.snapshot_ticks.clear();
            return;
        }
        self.send_snapshots_again();
        if !self.raw.raft.has_pending_conf() && !self.conf_state().voters_outgoing.is_empty() {
            // The last leader may have gone before it ended the transition.
            let _ = self.raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }

    /// A snapshot may be refused or lost without a word.
    fn send_snapshots_again(&mut self) {
        let is_sent =
            |(id, progress): (&u64, &raft::Progress)| (progress.state == raft::ProgressState::Snapshot).then_some(*id);
        let sent: BTreeSet<u64> = self.raw.raft.prs().iter().filter_map(is_sent).collect();
        self.snapshot_ticks.retain(|id, _| sent.contains(id));
        let patience = limits::RAFT_SNAPSHOT_TICKS + self.storage.snapshot_bytes() / limits::RAFT_SNAPSHOT_TICK_BYTES;
        for id in sent {
            let ticks = self.snapshot_ticks.entry(id).or_default();
            *ticks += 1;
            if *ticks > patience {
                self.snapshot_ticks.remove(&id);
                self.raw.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// Election timeouts follow from our seed, so that a simulation can be repeated; Raft's own choice is overwritten
    /// wherever it may have made one.
    fn choose_timeout(&mut self) {
        let mut hasher = DefaultHasher::new();
        (self.seed, self.raft_id, self.raw.raft.term, self.waits).hash(&mut hasher);
        let ticks = limits::RAFT_ELECTION_TICKS;
        let more = hasher.finish() % ticks as u64;
        self.raw.raft.set_randomized_election_timeout(ticks + more as usize);
    }

    /// Becomes the leader without waiting, if it is the only voter.
    pub fn lead_at_once(&mut self) {
        if self.is_sole_voter() && !self.is_leader() {
            // Fails only where it must not campaign.
            let _ = self.raw.campaign();
            self.choose_timeout();
        }
    }

    /// What guards need to know.
    pub fn ours(&self) -> guard::Ours {
        guard::Ours {
            raft_id: self.raft_id,
            term: self.raw.raft.term,
            leader: self.raw.raft.leader_id,
            last: self.raw.raft.raft_log.last_index(),
        }
    }

    /// Takes a message that was judged.
    pub fn step(&mut self, message: Message) {
        // Errors are about messages of non-members and proposals that are dropped: nothing to be done.
        let _ = self.raw.step(message);
        self.choose_timeout();
    }

    /// The leader appends a proposal, unless it is in the log already; false if it can not.
    pub fn propose(&mut self, bytes: &Bytes) -> bool {
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return false;
        }
        let Ok(Proposal { request, .. }) = Proposal::decode(bytes) else {
            return false;
        };
        if self.appended_term != self.term() {
            // What an earlier leader had appended may have been replaced.
            self.appended_term = self.term();
            self.appended.clear();
        }
        if self.appended.contains(&request) || self.registry.outcome(request).is_some() {
            return true;
        }
        let room = self.appended.len() < limits::RAFT_QUEUE;
        let taken = room && self.raw.propose(Vec::new(), bytes.to_vec()).is_ok();
        if taken {
            self.appended.insert(request);
        }
        taken
    }

    /// The leader proposes a change of the members, unless one is under way.
    pub fn propose_change(&mut self, change: ConfChangeV2) {
        if !self.is_changing() {
            let _ = self.raw.propose_conf_change(Vec::new(), change);
        }
    }

    /// A change of the members is under way.
    pub fn is_changing(&self) -> bool {
        let members = self.conf_state();
        self.raw.raft.has_pending_conf() || !members.voters_outgoing.is_empty()
    }

    pub fn transfer(&mut self, heir: u64) {
        self.raw.transfer_leader(heir);
    }

    /// Messages to a member may be lost.
    pub fn unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
        let in_snapshot = self
            .raw
            .raft
            .prs()
            .get(id)
            .is_some_and(|p| p.state == raft::ProgressState::Snapshot);
        if in_snapshot {
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    /// It has the group's state, not only a number in it.
    pub fn holds(&self) -> bool {
        self.commit() > 0
    }

    /// No other member votes.
    pub fn is_sole_voter(&self) -> bool {
        let members = self.conf_state();
        members.voters_outgoing.is_empty() && members.voters == [self.raft_id]
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub fn role(&self) -> &'static str {
        match self.raw.raft.state {
            StateRole::Leader => "leader",
            StateRole::Candidate | StateRole::PreCandidate => "candidate",
            StateRole::Follower if self.voters().contains(&self.raft_id) => "follower",
            StateRole::Follower if self.members.contains_key(&self.raft_id) => "learner",
            StateRole::Follower => "joining",
        }
    }

    /// Number of the leader; 0 if none is known.
    pub fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// Something of this term is committed.
    pub fn commits_in_term(&self) -> bool {
        self.raw.raft.commit_to_current_term()
    }

    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    pub fn log_range(&self) -> (u64, u64) {
        self.storage.range()
    }

    pub fn disk_bytes(&self) -> u64 {
        self.storage.disk_bytes()
    }

    fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    pub fn voters(&self) -> BTreeSet<u64> {
        self.conf_state().voters.into_iter().collect()
    }

    /// The sets of voters of which each must agree: two while the members are changing.
    pub fn quorums(&self) -> Vec<BTreeSet<u64>> {
        let members = self.conf_state();
        let sets = [members.voters, members.voters_outgoing].into_iter();
        sets.filter(|set| !set.is_empty())
            .map(|set| set.into_iter().collect())
            .collect()
    }

    /// A change of the members is in the log and not applied here: the voters may be others soon.
    #[cfg(test)]
    pub fn has_change_in_log(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        let context = raft::GetEntriesContext::empty(false);
        let entries = log.entries(log.applied + 1, None, context).unwrap_or_default();
        entries
            .iter()
            .any(|e| e.get_entry_type() == EntryType::EntryConfChangeV2)
    }

    /// Whether the members for which `is_there` says so could decide.
    pub fn has_quorum(&self, is_there: impl Fn(u64) -> bool) -> bool {
        let quorums = self.quorums();
        let most = |ids: &BTreeSet<u64>| ids.iter().filter(|id| is_there(**id)).count() * 2 > ids.len();
        !quorums.is_empty() && quorums.iter().all(most)
    }

    /// How far the leader knows each member's log to be equal.
    pub fn matched(&self) -> BTreeMap<u64, u64> {
        if !self.is_leader() {
            return BTreeMap::new();
        }
        self.raw
            .raft
            .prs()
            .iter()
            .map(|(id, progress)| (*id, progress.matched))
            .collect()
    }

    /// The disk, to open it again or to set it aside.
    pub fn take_disk(&self) -> Option<D> {
        self.storage.take_disk()
    }

    /// Carries out what the events since the last call ask for: writes, then sends and applies. `early` gets what a
    /// leader sends while it writes itself.
    pub fn flush(
        &mut self,
        effects: &mut Effects,
        early: &mut dyn FnMut(&Members, Vec<Message>),
    ) -> Result<(), StorageError> {
        self.carry_out(effects, early)?;
        let (entries, bytes) = self.storage.behind_snapshot();
        let many_bytes = limits::LOG_BYTES.max(2 * self.storage.snapshot_bytes());
        let wanted = self.wanted.lock().clone();
        if wanted.is_empty() && entries < limits::LOG_ENTRIES && bytes < many_bytes {
            return Ok(());
        }
        if self.postponed_ticks > 0 || !self.compact(effects)? {
            return Ok(());
        }
        self.wanted.lock().clear();
        for id in wanted {
            if self.is_leader() && self.raw.raft.prs().get(id).is_some() {
                self.raw.raft.send_append(id);
            }
        }
        self.carry_out(effects, early)
    }

    fn carry_out(
        &mut self,
        effects: &mut Effects,
        early: &mut dyn FnMut(&Members, Vec<Message>),
    ) -> Result<(), StorageError> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let messages = ready.take_messages();
            if !messages.is_empty() {
                early(&self.members, messages);
            }
            if *ready.snapshot() != Snapshot::default() {
                self.storage.apply_snapshot(ready.snapshot())?;
                self.restore(ready.snapshot(), effects)?;
            }
            self.apply(ready.take_committed_entries(), effects);
            self.storage.append(ready.entries(), ready.hs())?;
            effects.messages.append(&mut ready.take_persisted_messages());
            let mut light = self.raw.advance(ready);
            if let Some(index) = light.commit_index() {
                self.storage.commit(index)?;
            }
            effects.messages.append(&mut light.take_messages());
            self.apply(light.take_committed_entries(), effects);
            self.raw.advance_apply();
            self.choose_timeout();
        }
        Ok(())
    }

    fn restore(&mut self, snapshot: &Snapshot, effects: &mut Effects) -> Result<(), StorageError> {
        // It was decoded once before it was let in.
        let (members, mut registry) =
            snapshot::decode(&snapshot.data).map_err(|e| StorageError::Write(format!("the leader's snapshot: {e}")))?;
        registry.advance(snapshot.get_metadata().index);
        (self.members, self.registry) = (members, registry);
        effects.jumped = true;
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>, effects: &mut Effects) {
        for entry in entries {
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {}
                EntryType::EntryNormal => self.apply_proposal(&entry, effects),
                EntryType::EntryConfChangeV2 if guard::is_plain(&entry.data, 1) => {
                    if let Ok(change) = ConfChangeV2::parse_from_bytes(&entry.data) {
                        self.apply_change(&change, effects);
                    }
                }
                _ => effects.notes.push(format!(
                    "entry {} of the log can not be read and changes nothing",
                    entry.index
                )),
            }
            self.registry.advance(entry.index);
        }
    }

    fn apply_proposal(&mut self, entry: &Entry, effects: &mut Effects) {
        match Proposal::decode(&entry.data) {
            Ok(proposal) => {
                let request = proposal.request;
                let proposal = match is_on(Mutant::ApplyAgain) {
                    true => Proposal {
                        request: RequestId(entry.index.into()),
                        ..proposal
                    },
                    false => proposal,
                };
                let outcome = self.registry.apply(entry.index, &proposal);
                self.appended.remove(&request);
                effects.outcomes.push((request, entry.index, outcome));
            }
            Err(e) => effects
                .notes
                .push(format!("entry {} of the log changes nothing: {e}", entry.index)),
        }
    }

    fn apply_change(&mut self, change: &ConfChangeV2, effects: &mut Effects) {
        let members = match self.raw.apply_conf_change(change) {
            Ok(members) => members,
            Err(e) => {
                effects
                    .notes
                    .push(format!("a change of the members was not possible: {e}"));
                return;
            }
        };
        self.members
            .extend(snapshot::decode_members(&change.context).unwrap_or_default());
        let lists = [
            &members.voters,
            &members.learners,
            &members.voters_outgoing,
            &members.learners_next,
        ];
        let present: BTreeSet<u64> = lists.into_iter().flatten().copied().collect();
        self.members.retain(|id, _| present.contains(id));
    }

    /// Makes a snapshot; false if that is not possible now.
    fn compact(&mut self, effects: &mut Effects) -> Result<bool, StorageError> {
        let data = snapshot::encode(&self.members, &self.registry);
        match self.storage.compact(self.registry.index(), &self.conf_state(), &data) {
            Err(StorageError::Postponed(text)) => {
                self.postponed_ticks = limits::RAFT_ELECTION_TICKS as u64;
                effects.notes.push(StorageError::Postponed(text).to_string());
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }
}
