//! The data of a Raft snapshot: who is a member, and the registry.

use std::collections::BTreeMap;

use crate::{
    limits,
    registry::{Registry, StateError},
    topology::NodeId,
};

/// Numbers of the members and their nodes.
pub(super) type Members = BTreeMap<u64, NodeId>;

/// Bytes of the members' table at most: some 10,000 nodes.
const MEMBERS_BYTES: usize = 1024 * 1024;

/// The bytes of members and state.
pub(super) fn encode(members: &Members, registry: &Registry) -> Vec<u8> {
    let table = encode_members(members);
    let state = registry.encode();
    let mut bytes = Vec::with_capacity(4 + table.len() + state.len());
    bytes.extend_from_slice(&(table.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&table);
    bytes.extend_from_slice(&state);
    bytes
}

/// Reads what `encode` made.
pub(super) fn decode(bytes: &[u8]) -> Result<(Members, Registry), StateError> {
    let damaged = || StateError::Damaged("the members of the group".into());
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (table, state) = rest
        .split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or_else(damaged)?;
    let members = decode_members(table).ok_or_else(damaged)?;
    Ok((members, Registry::decode(state)?))
}

/// The bytes of a table of members; in the context of a change of membership, those that are new.
pub(super) fn encode_members(members: &Members) -> Vec<u8> {
    let list: Vec<(u64, &str)> = members.iter().map(|(id, node)| (*id, node.as_str())).collect();
    // Numbers and texts can always be written.
    postcard::to_allocvec(&list).unwrap_or_default()
}

/// Reads a table of members.
pub(super) fn decode_members(bytes: &[u8]) -> Option<Members> {
    if bytes.len() > MEMBERS_BYTES {
        return None;
    }
    let list: Vec<(u64, &str)> = postcard::from_bytes(bytes).ok()?;
    let fine = |(id, node): &(u64, &str)| *id != 0 && !node.is_empty() && node.len() <= limits::NODE_ID_BYTES;
    list.iter()
        .all(fine)
        .then(|| list.iter().map(|(id, node)| (*id, NodeId::new(node))).collect())
}
