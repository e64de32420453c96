//! What a peer's Raft message must look like before Raft looks at it.
//!
//! The Raft library trusts its peers: an implausible index or term makes it panic or useless for ever. Nothing here
//! changes anything.

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::snapshot;
use crate::limits;

/// What this node knows, to compare a message with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ours {
    /// Our number.
    pub raft_id: u64,
    /// Our term.
    pub term: u64,
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

/// Decodes and judges a message for a member of the group. `from` is the number that the sending node has.
pub(super) fn judge(bytes: &[u8], from: u64, ours: Ours) -> Verdict {
    if !is_plain(bytes, 0) {
        return Verdict::Refuse("it is not well-formed");
    }
    let Ok(message) = Message::parse_from_bytes(bytes) else {
        return Verdict::Refuse("it is not well-formed");
    };
    if message.to != ours.raft_id {
        // Meant for who this node was before it lost its log.
        return Verdict::Refuse("it is for another number");
    }
    if message.from != from || from == 0 {
        return Verdict::Refuse("its sender is another member");
    }
    if message.term == 0 || message.term > ours.term.saturating_add(limits::RAFT_TERM_LEAP) {
        return Verdict::Refuse("its term is not plausible");
    }
    if let Some(reason) = wrong_body(&message, ours) {
        return Verdict::Refuse(reason);
    }
    if message.get_msg_type() == MessageType::MsgHeartbeat && message.term >= ours.term && message.commit > ours.last {
        return Verdict::LostLog;
    }
    Verdict::Step(Box::new(message))
}

fn wrong_body(message: &Message, ours: Ours) -> Option<&'static str> {
    use MessageType::*;
    let has_entries = !message.get_entries().is_empty();
    let has_snapshot = message.has_snapshot();
    match message.get_msg_type() {
        MsgAppend => wrong_entries(message),
        MsgSnapshot => wrong_snapshot(message),
        _ if has_entries || has_snapshot => Some("it has entries out of place"),
        MsgAppendResponse if !message.reject && message.index > ours.last => Some("it acknowledges what we never had"),
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
    if message.has_snapshot() {
        return Some("it has a snapshot out of place");
    }
    let entries = message.get_entries();
    let Some(first) = message.index.checked_add(1) else {
        return Some("its indexes are not plausible");
    };
    if first.checked_add(entries.len() as u64).is_none() || message.log_term > message.term {
        return Some("its indexes are not plausible");
    }
    let mut term = message.log_term;
    for (entry, index) in entries.iter().zip(first..) {
        if entry.index != index || entry.term < term || entry.term > message.term {
            return Some("its entries do not follow each other");
        }
        if entry.data.len() > limits::PROPOSAL_BYTES + limits::MESSAGE_HEAD_BYTES {
            return Some("an entry is too large");
        }
        term = entry.term;
    }
    None
}

fn wrong_snapshot(message: &Message) -> Option<&'static str> {
    let metadata = message.get_snapshot().get_metadata();
    let members = metadata.get_conf_state();
    if metadata.index == 0 || metadata.index == u64::MAX || metadata.term == 0 || metadata.term > message.term {
        return Some("its snapshot is not plausible");
    }
    if members.get_voters().is_empty() || members.get_voters().contains(&0) {
        return Some("its snapshot has no voters");
    }
    snapshot::decode(&message.get_snapshot().data).is_err().then_some("its snapshot can not be read")
}

/// Walks the wire format: no groups, all lengths right. Parsing an unknown group recurses without a bound in the
/// protobuf library (RUSTSEC-2024-0437), so such bytes never get there.
///
/// See <https://protobuf.dev/programming-guides/encoding/>.
pub(super) fn is_plain(mut bytes: &[u8], depth: u32) -> bool {
    while !bytes.is_empty() {
        let Some(tag) = varint(&mut bytes) else { return false };
        let length = match tag & 7 {
            0 => match varint(&mut bytes) {
                Some(_) => 0,
                None => return false,
            },
            1 => 8,
            2 => match varint(&mut bytes).and_then(|n| usize::try_from(n).ok()) {
                Some(length) => length,
                None => return false,
            },
            5 => 4,
            _ => return false,
        };
        let Some((part, rest)) = bytes.split_at_checked(length) else { return false };
        if tag & 7 == 2 && is_message(tag >> 3, depth) && !is_plain(part, depth + 1) {
            return false;
        }
        bytes = rest;
    }
    true
}

/// Fields that hold messages: at the top `entries` and `snapshot`; in a snapshot `metadata`; in that the members. An
/// entry has field 2 as well, but as a number.
fn is_message(field: u64, depth: u32) -> bool {
    match depth {
        0 => field == 7 || field == 9,
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
