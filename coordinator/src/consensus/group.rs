//! A node's part in one group: the Raft node, its log, what is applied.
//!
//! Events in, `Effects` out; writes to its disk, but reads no clock and sends nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use protobuf::Message as _;
use raft::{
    Config, RawNode, SnapshotStatus, StateRole,
    eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, Snapshot},
};
use rand::{RngExt, rngs::StdRng};

use super::{
    disk::Disk,
    guard,
    snapshot::{self, Members},
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
    raw: RawNode<LogStorage<D>>,
    storage: LogStorage<D>,
    /// Term and role for which the election timeout was chosen.
    timeout_for: (u64, StateRole),
    /// A snapshot could not be written: not tried again before the log has grown to this index.
    postponed: u64,
}

impl<D: Disk> Group<D> {
    /// Goes on with a log.
    pub fn resume(storage: LogStorage<D>) -> Result<Group<D>, String> {
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
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, storage.clone(), &logger).map_err(|e| e.to_string())?;
        Ok(Group {
            id,
            raft_id,
            registry,
            members,
            raw,
            storage,
            timeout_for: (u64::MAX, StateRole::Follower),
            postponed: 0,
        })
    }

    /// A log of a new group that this node founds, holding the state that it brings.
    pub fn founding_snapshot(raft_id: u64, me: &NodeId, mut registry: Registry) -> Snapshot {
        let index = registry.index().max(1);
        registry.advance(index);
        let members = Members::from([(raft_id, me.clone())]);
        let mut founding = Snapshot::default();
        founding.data = snapshot::encode(&members, &registry).into();
        let metadata = founding.mut_metadata();
        (metadata.index, metadata.term) = (index, 1);
        metadata.mut_conf_state().voters = vec![raft_id];
        founding
    }

    pub fn tick(&mut self) {
        self.raw.tick();
    }

    /// Becomes the leader without waiting, if it is the only voter.
    pub fn lead_at_once(&mut self) {
        let alone = self.voters().iter().eq([&self.raft_id]);
        if alone && !self.is_leader() {
            // Fails only where it must not campaign.
            let _ = self.raw.campaign();
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
    }

    /// The leader appends a proposal; false if it can not.
    pub fn propose(&mut self, bytes: Vec<u8>) -> bool {
        self.is_leader() && self.raw.raft.lead_transferee.is_none() && self.raw.propose(Vec::new(), bytes).is_ok()
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
        let in_snapshot = self.raw.raft.prs().get(id).is_some_and(|p| p.state == raft::ProgressState::Snapshot);
        if in_snapshot {
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
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

    /// Whether the members for which `is_there` says so could decide.
    pub fn has_quorum(&self, is_there: impl Fn(u64) -> bool) -> bool {
        let members = self.conf_state();
        let most = |ids: &[u64]| ids.is_empty() || ids.iter().filter(|id| is_there(**id)).count() * 2 > ids.len();
        !members.voters.is_empty() && most(&members.voters) && most(&members.voters_outgoing)
    }

    /// How far the leader knows each member's log to be equal.
    pub fn matched(&self) -> BTreeMap<u64, u64> {
        if !self.is_leader() {
            return BTreeMap::new();
        }
        self.raw.raft.prs().iter().map(|(id, progress)| (*id, progress.matched)).collect()
    }

    /// The disk, to open it again or to set it aside.
    pub fn take_disk(&self) -> Option<D> {
        self.storage.take_disk()
    }

    /// Carries out what the events since the last call ask for: writes, then sends and applies.
    pub fn flush(&mut self, rng: &mut StdRng, effects: &mut Effects) -> Result<(), StorageError> {
        self.choose_timeout(rng);
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            // A leader's messages need not wait for its own disk.
            effects.messages.append(&mut ready.take_messages());
            if *ready.snapshot() != Snapshot::default() {
                self.storage.apply_snapshot(ready.snapshot())?;
                self.restore(ready.snapshot(), effects)?;
            }
            self.apply(ready.take_committed_entries(), effects)?;
            self.storage.append(ready.entries(), ready.hs())?;
            effects.messages.append(&mut ready.take_persisted_messages());
            let mut light = self.raw.advance(ready);
            if let Some(index) = light.commit_index() {
                self.storage.commit(index)?;
            }
            effects.messages.append(&mut light.take_messages());
            self.apply(light.take_committed_entries(), effects)?;
            self.raw.advance_apply();
            self.choose_timeout(rng);
        }
        self.compact_if_long(effects)
    }

    /// Election timeouts come from our generator, so that a simulation can be repeated.
    fn choose_timeout(&mut self, rng: &mut StdRng) {
        let now = (self.raw.raft.term, self.raw.raft.state);
        if now != self.timeout_for {
            self.timeout_for = now;
            let ticks = rng.random_range(limits::RAFT_ELECTION_TICKS..2 * limits::RAFT_ELECTION_TICKS);
            self.raw.raft.set_randomized_election_timeout(ticks);
        }
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

    fn apply(&mut self, entries: Vec<Entry>, effects: &mut Effects) -> Result<(), StorageError> {
        for entry in entries {
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {}
                EntryType::EntryNormal => self.apply_proposal(&entry, effects),
                EntryType::EntryConfChangeV2 if guard::is_plain(&entry.data, 1) => {
                    if let Ok(change) = ConfChangeV2::parse_from_bytes(&entry.data) {
                        self.apply_change(entry.index, &change, effects)?;
                    }
                }
                _ => effects.notes.push(format!("entry {} of the log can not be read and changes nothing", entry.index)),
            }
            self.registry.advance(entry.index);
        }
        Ok(())
    }

    fn apply_proposal(&mut self, entry: &Entry, effects: &mut Effects) {
        match Proposal::decode(&entry.data) {
            Ok(proposal) => {
                let outcome = self.registry.apply(entry.index, &proposal);
                effects.outcomes.push((proposal.request, entry.index, outcome));
            }
            Err(e) => effects.notes.push(format!("entry {} of the log changes nothing: {e}", entry.index)),
        }
    }

    fn apply_change(&mut self, index: u64, change: &ConfChangeV2, effects: &mut Effects) -> Result<(), StorageError> {
        let members = match self.raw.apply_conf_change(change) {
            Ok(members) => members,
            Err(e) => {
                effects.notes.push(format!("a change of the members was not possible: {e}"));
                return Ok(());
            }
        };
        self.members.extend(snapshot::decode_members(&change.context).unwrap_or_default());
        let lists = [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next];
        let present: BTreeSet<u64> = lists.into_iter().flatten().copied().collect();
        self.members.retain(|id, _| present.contains(id));
        self.registry.advance(index);
        // A new member takes only a snapshot that names it.
        self.compact(effects)
    }

    fn compact_if_long(&mut self, effects: &mut Effects) -> Result<(), StorageError> {
        let (entries, bytes) = self.storage.behind_snapshot();
        let many_bytes = limits::LOG_BYTES.max(2 * self.storage.snapshot_bytes());
        let long = entries >= limits::LOG_ENTRIES || bytes >= many_bytes;
        match long && self.registry.index() >= self.postponed {
            true => self.compact(effects),
            false => Ok(()),
        }
    }

    fn compact(&mut self, effects: &mut Effects) -> Result<(), StorageError> {
        let data = snapshot::encode(&self.members, &self.registry);
        match self.storage.compact(self.registry.index(), &self.conf_state(), &data) {
            Err(StorageError::Postponed(text)) => {
                self.postponed = self.registry.index() + limits::LOG_ENTRIES / 8;
                effects.notes.push(StorageError::Postponed(text).to_string());
                Ok(())
            }
            other => other,
        }
    }
}
