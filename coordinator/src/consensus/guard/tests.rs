//! Hostile messages: what the guard lets through must not make Raft panic.

use protobuf::RepeatedField;
use raft::{
    Config, RawNode, StateRole,
    eraftpb::{ConfChangeSingle, ConfChangeV2, Entry, Snapshot},
    storage::MemStorage,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{consensus::snapshot::Members, registry::Registry, topology::NodeId};

const OURS: Ours = Ours {
    raft_id: 1,
    term: 5,
    leader: 2,
    last: 10,
};

fn message(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.to, message.from, message.term) = (1, 2, 5);
    message
}

fn entry(index: u64, term: u64) -> Entry {
    let mut entry = Entry::default();
    (entry.index, entry.term) = (index, term);
    entry
}

fn append(index: u64, log_term: u64, entries: &[(u64, u64)]) -> Message {
    let mut message = message(MessageType::MsgAppend);
    (message.index, message.log_term) = (index, log_term);
    message.set_entries(entries.iter().map(|&(index, term)| entry(index, term)).collect());
    message
}

fn snapshot(voters: &[u64], learners: &[u64]) -> Message {
    let mut message = message(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (20, 4);
    metadata.mut_conf_state().voters = voters.to_vec();
    metadata.mut_conf_state().learners = learners.to_vec();
    let members = Members::from([(1, NodeId::new("a"))]);
    message.mut_snapshot().data = crate::consensus::snapshot::encode(&members, &Registry::default()).into();
    message
}

fn judged(message: &Message) -> Verdict {
    judge(&message.write_to_bytes().unwrap(), 2, OURS)
}

#[track_caller]
fn passes(message: Message) {
    let verdict = judged(&message);
    assert!(matches!(verdict, Verdict::Step(_)), "{verdict:?}");
}

#[track_caller]
fn refused(message: Message) {
    let verdict = judged(&message);
    assert!(matches!(verdict, Verdict::Refuse(_)), "{verdict:?}");
}

fn with(kind: MessageType, change: impl FnOnce(&mut Message)) -> Message {
    let mut message = message(kind);
    change(&mut message);
    message
}

#[test]
fn ordinary_messages_pass() {
    use MessageType::*;
    for kind in [MsgHeartbeat, MsgHeartbeatResponse, MsgAppendResponse, MsgTimeoutNow] {
        passes(message(kind));
    }
    for kind in [
        MsgRequestVote,
        MsgRequestPreVote,
        MsgRequestVoteResponse,
        MsgRequestPreVoteResponse,
    ] {
        passes(message(kind));
    }
    passes(append(0, 0, &[(1, 1), (2, 5)]));
    passes(append(30, 4, &[]));
    passes(snapshot(&[1, 2], &[3]));
    passes(snapshot(&[2], &[1]));
}

#[test]
fn kinds_that_are_no_peers_business_are_refused() {
    use MessageType::*;
    for kind in [
        MsgHup,
        MsgBeat,
        MsgPropose,
        MsgUnreachable,
        MsgSnapStatus,
        MsgCheckQuorum,
    ] {
        refused(message(kind));
    }
    for kind in [MsgTransferLeader, MsgReadIndex, MsgReadIndexResp] {
        refused(message(kind));
    }
    refused(with(MsgAppendResponse, |m| m.request_snapshot = 3));
}

#[test]
fn senders_and_terms_must_be_right() {
    use MessageType::MsgHeartbeat;
    refused(with(MsgHeartbeat, |m| m.to = 9));
    refused(with(MsgHeartbeat, |m| m.from = 3));
    refused(with(MsgHeartbeat, |m| m.term = 0));
    refused(with(MsgHeartbeat, |m| m.term = u64::MAX));
    refused(with(MsgHeartbeat, |m| m.term = 6 + limits::RAFT_TERM_LEAP));
    passes(with(MsgHeartbeat, |m| m.term = 6));
    // Another leader of the same term.
    let bytes = with(MsgHeartbeat, |m| m.from = 3).write_to_bytes().unwrap();
    assert!(matches!(judge(&bytes, 3, OURS), Verdict::Refuse(_)));
    // Ourselves.
    let bytes = with(MsgHeartbeat, |m| m.from = 1).write_to_bytes().unwrap();
    assert!(matches!(judge(&bytes, 1, OURS), Verdict::Refuse(_)));
}

#[test]
fn a_commit_beyond_the_log_tells_that_its_end_is_lost() {
    use MessageType::MsgHeartbeat;
    passes(with(MsgHeartbeat, |m| m.commit = 10));
    assert_eq!(judged(&with(MsgHeartbeat, |m| m.commit = 11)), Verdict::LostLog);
    // Whoever led once can not say that.
    passes(with(MsgHeartbeat, |m| (m.commit, m.term) = (11, 4)));
    refused(with(MsgHeartbeat, |m| m.commit = u64::MAX));
}

#[test]
fn entries_must_follow_each_other() {
    refused(append(4, 2, &[(6, 2)]));
    refused(append(4, 2, &[(5, 2), (5, 2)]));
    refused(append(4, 2, &[(5, 3), (6, 2)]));
    refused(append(4, 2, &[(5, 6)]));
    refused(append(4, 2, &[(5, 1)]));
    refused(append(4, 6, &[]));
    // An index that we do not have, with the term that Raft gives to such ones.
    refused(append(30, 0, &[(31, 5)]));
    refused(append(0, 3, &[]));
    refused(append(u64::MAX, 5, &[]));
    let mut old_change = append(4, 2, &[(5, 3)]);
    old_change.mut_entries()[0].set_entry_type(EntryType::EntryConfChange);
    refused(old_change);
    refused(with(MessageType::MsgHeartbeat, |m| {
        m.set_entries(vec![entry(1, 1)].into())
    }));
}

#[test]
fn snapshots_must_be_such_that_raft_can_take_them() {
    refused(snapshot(&[], &[1]));
    refused(snapshot(&[2, 3], &[]));
    refused(snapshot(&[1, 1], &[]));
    refused(snapshot(&[1, 0], &[]));
    refused(snapshot(&[1, 2], &[2]));
    let mut joint = snapshot(&[1, 2], &[]);
    joint.mut_snapshot().mut_metadata().mut_conf_state().learners_next = vec![7];
    refused(joint.clone());
    joint.mut_snapshot().mut_metadata().mut_conf_state().voters_outgoing = vec![1, 7];
    passes(joint.clone());
    joint.mut_snapshot().mut_metadata().index = 0;
    refused(joint);
    let mut leave = snapshot(&[1, 2], &[]);
    leave.mut_snapshot().mut_metadata().mut_conf_state().auto_leave = true;
    refused(leave);
    let mut unreadable = snapshot(&[1], &[]);
    unreadable.mut_snapshot().data = b"what".as_slice().into();
    refused(unreadable);
}

#[test]
fn groups_of_the_wire_format_are_refused_at_every_depth() {
    let nested = vec![0x0b; 1_000_000];
    assert_eq!(judge(&nested, 2, OURS), Verdict::Refuse("it is not well-formed"));
    let wrap = |field: u8, inner: &[u8]| {
        let mut bytes = vec![field << 3 | 2];
        let mut length = inner.len();
        while length > 127 {
            bytes.push(length as u8 | 128);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend_from_slice(inner);
        bytes
    };
    let (entries, snapshot, metadata, members) = (7, 9, 2, 1);
    assert!(!is_plain(&wrap(entries, &nested), 0));
    assert!(!is_plain(&wrap(snapshot, &nested), 0));
    assert!(!is_plain(&wrap(snapshot, &wrap(metadata, &nested)), 0));
    assert!(!is_plain(&wrap(snapshot, &wrap(metadata, &wrap(members, &nested))), 0));
    // The members' changes in an entry.
    let mut change = append(4, 2, &[(5, 3)]);
    change.mut_entries()[0].set_entry_type(EntryType::EntryConfChangeV2);
    passes(change.clone());
    change.mut_entries()[0].data = wrap(2, &nested).into();
    refused(change);
    assert!(!is_plain(&[0x12, 0x05, 1], 1), "a length beyond the end");
    assert!(!is_plain(&[0x80], 1), "a number without an end");
    assert!(!is_plain(&[0x88, 0x01, 1], 0), "a field that no message has");
}

/// An index about where the log is, or an absurd one.
fn number(rng: &mut StdRng, last: u64) -> u64 {
    match rng.random_range(0..60) {
        0 => 0,
        1 => u64::MAX,
        2 => HIGHEST,
        3 => u64::from(u32::MAX),
        _ => rng.random_range(0..last + 3),
    }
}

/// A message that is right in most respects.
fn hostile(rng: &mut StdRng, raft: &raft::Raft<MemStorage>) -> Message {
    let mut message = Message::default();
    let kinds = <MessageType as protobuf::ProtobufEnum>::values();
    message.set_msg_type(kinds[rng.random_range(0..kinds.len())]);
    let (term, last) = (raft.term, raft.raft_log.last_index());
    let others = rng.random_range(2..6);
    message.to = 1;
    message.from = if raft.leader_id > 1 && rng.random() {
        raft.leader_id
    } else {
        others
    };
    message.term = match rng.random_range(0..16) {
        0 => number(rng, last),
        1 | 2 => term + 1,
        _ => term.max(1),
    };
    message.index = number(rng, last);
    message.log_term = match rng.random_range(0..4) {
        0 => rng.random_range(0..=message.term.min(term + 1)),
        _ => raft.raft_log.term(message.index).unwrap_or(1),
    };
    (message.commit, message.commit_term) = (number(rng, last), rng.random_range(0..term + 2));
    if message.get_msg_type() == MessageType::MsgHeartbeat {
        message.commit %= last + 1;
    }
    message.reject = rng.random();
    message.reject_hint = number(rng, last.saturating_sub(3));
    if rng.random_range(0..40) == 0 {
        message.request_snapshot = number(rng, last);
    }
    if rng.random_range(0..6) == 0 {
        message.context = b"CampaignTransfer".as_slice().into();
    }
    let mut entry_term = message.log_term;
    let appends = message.get_msg_type() == MessageType::MsgAppend || rng.random_range(0..20) == 0;
    for index in 0..rng.random_range(0..4) * u64::from(appends) {
        entry_term = (entry_term + rng.random_range(0..2)).min(message.term);
        let mut new = entry(message.index.wrapping_add(1 + index), entry_term.max(1));
        if rng.random_range(0..20) == 0 {
            new.index = number(rng, last);
        }
        if rng.random_range(0..5) == 0 {
            new.set_entry_type(EntryType::EntryConfChangeV2);
            new.data = hostile_change(rng).write_to_bytes().unwrap().into();
        }
        message.mut_entries().push(new);
    }
    if message.get_msg_type() == MessageType::MsgSnapshot {
        message.set_snapshot(hostile_snapshot(rng, last, message.term));
        message.mut_entries().clear();
    }
    message
}

fn hostile_change(rng: &mut StdRng) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    let single = |rng: &mut StdRng| {
        let mut single = ConfChangeSingle::default();
        let kinds = <raft::eraftpb::ConfChangeType as protobuf::ProtobufEnum>::values();
        single.set_change_type(kinds[rng.random_range(0..3)]);
        single.node_id = rng.random_range(0..6);
        single
    };
    let changes: Vec<ConfChangeSingle> = (0..rng.random_range(0..4)).map(|_| single(rng)).collect();
    change.set_changes(RepeatedField::from_vec(changes));
    change
}

fn hostile_snapshot(rng: &mut StdRng, last: u64, term: u64) -> Snapshot {
    let list = |rng: &mut StdRng, most: u64| -> Vec<u64> {
        (0..rng.random_range(0..4)).map(|_| rng.random_range(0..most)).collect()
    };
    let mut voters = list(rng, 6);
    if rng.random() {
        voters = vec![1, 2, rng.random_range(0..5)];
    }
    let mut new = snapshot(&voters, &[rng.random_range(2..7)]).take_snapshot();
    let metadata = new.mut_metadata();
    (metadata.index, metadata.term) = (number(rng, last + 20), rng.random_range(0..=term.min(40)));
    if rng.random_range(0..3) == 0 {
        let members = metadata.mut_conf_state();
        (members.voters_outgoing, members.learners_next) = (list(rng, 6), list(rng, 6));
        members.auto_leave = rng.random();
    }
    new
}

/// Writes and applies what Raft asks for, as a member does.
fn settle(raw: &mut RawNode<MemStorage>) {
    while raw.has_ready() {
        let mut ready = raw.ready();
        let store = raw.raft.raft_log.store.clone();
        if !ready.snapshot().is_empty() {
            store.wl().apply_snapshot(ready.snapshot().clone()).unwrap();
        }
        let mut committed = ready.take_committed_entries();
        store.wl().append(ready.entries()).unwrap();
        if let Some(state) = ready.hs() {
            store.wl().set_hardstate(state.clone());
        }
        let mut light = raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            store.wl().mut_hard_state().commit = commit;
        }
        committed.append(&mut light.take_committed_entries());
        for entry in committed {
            if entry.get_entry_type() == EntryType::EntryConfChangeV2
                && let Ok(change) = ConfChangeV2::parse_from_bytes(&entry.data)
                && let Ok(members) = raw.apply_conf_change(&change)
            {
                store.wl().set_conf_state(members);
            }
        }
        raw.advance_apply();
    }
}

#[test]
fn nothing_that_passes_makes_raft_panic() {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let config = Config {
        id: 1,
        check_quorum: true,
        pre_vote: true,
        max_inflight_msgs: 8,
        max_size_per_msg: 100,
        ..Config::default()
    };
    let (mut passed, mut led) = (0, 0);
    for seed in 0..400 {
        eprintln!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let store = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![4]));
        let mut raw = RawNode::new(&config, store, &logger).unwrap();
        for _ in 0..200 {
            let raft = &raw.raft;
            let ours = Ours {
                raft_id: 1,
                term: raft.term,
                leader: raft.leader_id,
                last: raft.raft_log.last_index(),
            };
            match rng.random_range(0..8) {
                0 => _ = raw.tick(),
                1 => _ = raw.campaign(),
                2 if raft.state == StateRole::Leader => _ = raw.propose(Vec::new(), vec![1; 60]),
                _ => {
                    let message = hostile(&mut rng, raft);
                    let bytes = message.write_to_bytes().unwrap();
                    if let Verdict::Step(message) = judge(&bytes, message.from, ours) {
                        passed += 1;
                        let _ = raw.step(*message);
                    }
                }
            }
            led += usize::from(raw.raft.state == StateRole::Leader);
            settle(&mut raw);
            raw.raft.set_randomized_election_timeout(config.election_tick + 1);
        }
    }
    assert!(
        passed > 20_000 && led > 2_000,
        "the test looked at too little: {passed} passed, {led} times leader"
    );
}
