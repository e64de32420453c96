//! What a peer's Raft message must look like before Raft looks at it.
//!
//! The Raft library trusts its peers: an implausible index or term makes it panic, or useless for ever. Nothing here
//! changes anything.

use protobuf::Message as _;
use raft::eraftpb::{ConfState, EntryType, Message, MessageType};

use super::snapshot;
use crate::limits;

/// What this node knows, to compare a message with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ours {
    /// Our number.
    pub raft_id: u64,
    /// Our term.
    pub term: u64,
    /// Number of the leader of this term, which may be ours; 0 if it is not known.
    pub leader: u64,
    /// Last index of our log.
    pub last: u64,
}

/// What to do with a message.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Let Raft have it.
    Step(Box<Message>),
    /// Forget it; the reason.
    Refuse(&'static str),
    /// The leader knows entries of our log that we do not have: our log lost its end.
    LostLog,
}

/// No index or term gets there by counting; beyond it, sums overflow.
const HIGHEST: u64 = u64::MAX / 4;
/// A mark of what a vote or a heartbeat is for.
const CONTEXT_BYTES: usize = 64;
/// Entries of the log besides their proposals.
const ENTRY_BYTES: usize = limits::PROPOSAL_BYTES + limits::MESSAGE_HEAD_BYTES;

/// Decodes and judges a message for a member of the group. `from` is the number that the sending node has.
pub(super) fn judge(bytes: &[u8], from: u64, ours: Ours) -> Verdict {
    if !is_plain(bytes, 0) || count(bytes, ENTRIES_FIELD) > limits::RAFT_MESSAGE_ENTRIES {
        return Verdict::Refuse("it is not well-formed");
    }
    let Ok(message) = Message::parse_from_bytes(bytes) else {
        return Verdict::Refuse("it is not well-formed");
    };
    if !message.has_snapshot() && bytes.len() > ENTRY_BYTES + limits::RAFT_MESSAGE_BYTES as usize {
        return Verdict::Refuse("it is too large");
    }
    if message.to != ours.raft_id {
        // Meant for who this node was before it lost its log.
        return Verdict::Refuse("it is for another number");
    }
    if message.from != from || from == 0 || from == ours.raft_id {
        return Verdict::Refuse("its sender is another member");
    }
    if let Some(reason) = wrong_numbers(&message, ours).or_else(|| wrong_body(&message, ours)) {
        return Verdict::Refuse(reason);
    }
    if message.get_msg_type() == MessageType::MsgHeartbeat && message.term >= ours.term && message.commit > ours.last {
        return Verdict::LostLog;
    }
    Verdict::Step(Box::new(message))
}

fn wrong_numbers(message: &Message, ours: Ours) -> Option<&'static str> {
    if message.term == 0 || message.term > ours.term.saturating_add(limits::RAFT_TERM_LEAP) {
        return Some("its term is not plausible");
    }
    let m = message;
    let numbers = [m.term, m.index, m.log_term, m.commit, m.commit_term, m.reject_hint];
    if numbers.into_iter().any(|n| n > HIGHEST) || m.log_term > m.term {
        return Some("its indexes are not plausible");
    }
    if m.request_snapshot != 0 || m.context.len() > CONTEXT_BYTES {
        return Some("its kind is not for peers");
    }
    None
}

fn wrong_body(message: &Message, ours: Ours) -> Option<&'static str> {
    use MessageType::*;
    let kind = message.get_msg_type();
    let leads = matches!(kind, MsgAppend | MsgHeartbeat | MsgSnapshot | MsgTimeoutNow);
    if leads && message.term == ours.term && ours.leader != 0 && ours.leader != message.from {
        return Some("its term has another leader");
    }
    let has_entries = !message.get_entries().is_empty();
    match kind {
        MsgAppend if message.has_snapshot() => Some("it has a snapshot out of place"),
        MsgAppend => wrong_entries(message),
        MsgSnapshot if has_entries => Some("it has entries out of place"),
        MsgSnapshot => wrong_snapshot(message, ours),
        _ if has_entries || message.has_snapshot() => Some("it has entries out of place"),
        MsgAppendResponse if message.index > ours.last || message.reject_hint > ours.last => {
            Some("it acknowledges what we never had")
        }
        MsgAppendResponse
        | MsgRequestVote
        | MsgRequestVoteResponse
        | MsgHeartbeat
        | MsgHeartbeatResponse
        | MsgTimeoutNow
        | MsgRequestPreVote
        | MsgRequestPreVoteResponse => None,
        _ => Some("its kind is not for peers"),
    }
}

fn wrong_entries(message: &Message) -> Option<&'static str> {
    // Raft takes the term of an index that it does not have for 0: such a pair would fit anywhere.
    if (message.index == 0) != (message.log_term == 0) {
        return Some("its indexes are not plausible");
    }
    let mut term = message.log_term.max(1);
    for (entry, index) in message.get_entries().iter().zip(message.index + 1..) {
        if entry.index != index || entry.term < term || entry.term > message.term {
            return Some("its entries do not follow each other");
        }
        if entry.data.len() + entry.context.len() > ENTRY_BYTES {
            return Some("an entry is too large");
        }
        let readable = match entry.get_entry_type() {
            EntryType::EntryNormal => true,
            EntryType::EntryConfChangeV2 => is_plain(&entry.data, 1),
            EntryType::EntryConfChange => false,
        };
        if !readable {
            return Some("a change of the members is not well-formed");
        }
        term = entry.term;
    }
    None
}

fn wrong_snapshot(message: &Message, ours: Ours) -> Option<&'static str> {
    let metadata = message.get_snapshot().get_metadata();
    let plausible = (1..=HIGHEST).contains(&metadata.index) && (1..=message.term).contains(&metadata.term);
    if !plausible {
        return Some("its snapshot is not plausible");
    }
    if !are_members(metadata.get_conf_state(), ours.raft_id) {
        return Some("the members of its snapshot are not plausible");
    }
    let Ok((_, registry)) = snapshot::decode(&message.get_snapshot().data) else {
        return Some("its snapshot can not be read");
    };
    (registry.index() > metadata.index).then_some("its snapshot is not plausible")
}

/// Whether Raft can take over these members: it panics where it can not. `me` is one of them.
fn are_members(members: &ConfState, me: u64) -> bool {
    let sorted = |list: &[u64]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        let distinct = list.windows(2).all(|pair| pair[0] < pair[1]) && list.first() != Some(&0);
        (list.len() <= limits::GROUP_MEMBERS && distinct).then_some(list)
    };
    let (Some(voters), Some(learners), Some(outgoing), Some(next)) = (
        sorted(members.get_voters()),
        sorted(members.get_learners()),
        sorted(members.get_voters_outgoing()),
        sorted(members.get_learners_next()),
    ) else {
        return false;
    };
    let has = |list: &[u64], id: &u64| list.binary_search(id).is_ok();
    let apart = !learners.iter().any(|id| has(&voters, id) || has(&outgoing, id));
    let staged = next
        .iter()
        .all(|id| has(&outgoing, id) && !has(&voters, id) && !has(&learners, id));
    let joint = !outgoing.is_empty() || !members.auto_leave;
    let mine = [&voters, &learners, &outgoing].into_iter().any(|list| has(list, &me));
    !voters.is_empty() && apart && staged && joint && mine
}

const ENTRIES_FIELD: u64 = 7;
/// No message of the protocol has a field beyond this one.
const HIGHEST_FIELD: u64 = 16;

/// Walks the wire format: known fields only, no groups, all lengths right. Parsing an unknown group recurses without a
/// bound in the protobuf library (RUSTSEC-2024-0437), so such bytes never get there.
///
/// See <https://protobuf.dev/programming-guides/encoding/>.
pub(super) fn is_plain(mut bytes: &[u8], depth: u32) -> bool {
    while !bytes.is_empty() {
        let Some((field, part)) = next_field(&mut bytes) else {
            return false;
        };
        let Some(part) = part else { continue };
        if is_message(field, depth) && !is_plain(part, depth + 1) {
            return false;
        }
    }
    true
}

/// How often a field is there.
fn count(mut bytes: &[u8], wanted: u64) -> usize {
    let mut found = 0;
    while let Some((field, _)) = next_field(&mut bytes) {
        found += usize::from(field == wanted);
    }
    found
}

/// Number of the next field, and its bytes if it has a length; `None` if it is not in order.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let tag = varint(bytes)?;
    let (field, kind) = (tag >> 3, tag & 7);
    let length = match kind {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (part, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let known = (1..=HIGHEST_FIELD).contains(&field);
    known.then_some((field, (kind == 2).then_some(part)))
}

/// Fields that hold messages: at the top `entries` and `snapshot`; in a snapshot `metadata` (in a change of the members
/// `changes`); in metadata the members. An entry has field 2 as well, but as a number.
fn is_message(field: u64, depth: u32) -> bool {
    match depth {
        0 => field == ENTRIES_FIELD || field == 9,
        1 => field == 2,
        2 => field == 1,
        _ => false,
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests;
