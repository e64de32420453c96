//! Which shard owns which slot, as the server told; an execution is bound to one topology.

use std::{fmt, sync::Arc};

use crc::{CRC_16_XMODEM, Crc, Table};
use serde::{Deserialize, Serialize};

/// Number of a hash slot.
pub type Slot = u16;
/// Number of hash slots of a cluster.
pub const SLOTS: usize = 16384;

/// Cluster node id (40 hex digits); forty `0` outside a cluster.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Takes the id as the server writes it.
    pub fn new(id: &str) -> NodeId {
        NodeId(Arc::from(id))
    }

    /// The id outside a cluster.
    pub fn single() -> NodeId {
        NodeId::new(&"0".repeat(40))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..8).unwrap_or(&self.0))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A master that owns slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its node id.
    pub id: NodeId,
    /// IP address or host name that peers use.
    pub host: String,
    /// Its Redis port.
    pub port: u16,
    /// Slot ranges, inclusive, ascending.
    pub ranges: Vec<(Slot, Slot)>,
}

/// One view of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// This node.
    pub me: NodeId,
    /// Masters with slots, ordered by id.
    pub shards: Vec<Shard>,
    /// Digest of who owns what; equal on all shards with the same view.
    pub epoch: u64,
    /// Slot -> number in `shards`; `NO_OWNER` if nobody has it.
    owners: Arc<[u16]>,
}

/// Nobody owns the slot.
pub const NO_OWNER: u16 = u16::MAX;

impl Topology {
    /// The topology of a server that is alone.
    pub fn single() -> Topology {
        Topology::new(NodeId::single(), Vec::new())
    }

    /// Builds the slot table and the digest.
    pub fn new(me: NodeId, mut shards: Vec<Shard>) -> Topology {
        shards.sort_by(|a, b| a.id.cmp(&b.id));
        let mut owners = vec![NO_OWNER; SLOTS];
        let mut digest = Fnv::default();
        for (number, shard) in shards.iter().enumerate() {
            digest.add(shard.id.as_str().as_bytes());
            for &(first, last) in &shard.ranges {
                digest.add(&first.to_le_bytes());
                digest.add(&last.to_le_bytes());
                for slot in first..=last.min(SLOTS as u16 - 1) {
                    owners[slot as usize] = number as u16;
                }
            }
        }
        Topology {
            me,
            shards,
            epoch: digest.0,
            owners: owners.into(),
        }
    }

    /// Executions run on several shards.
    pub fn is_cluster(&self) -> bool {
        self.shards.len() > 1
    }

    /// This node's number among the shards; `None` for a replica or a master without slots.
    pub fn my_number(&self) -> Option<usize> {
        self.shards.iter().position(|s| s.id == self.me)
    }

    /// The first slot that nobody owns.
    pub fn uncovered_slot(&self) -> Option<Slot> {
        self.owners.iter().position(|&o| o == NO_OWNER).map(|s| s as Slot)
    }

    /// Slot -> number in `shards`.
    pub fn owners(&self) -> Arc<[u16]> {
        self.owners.clone()
    }

    /// The id that executions created here carry.
    pub fn execution_prefix(&self) -> NodeId {
        if self.is_cluster() {
            self.me.clone()
        } else {
            NodeId::single()
        }
    }
}

/// FNV-1a, 64 bits: a digest that is the same on every build.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// CRC16 of Redis Cluster (XMODEM), see the cluster specification.
static CRC16: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_XMODEM);

/// The slot of a key: of the part inside the first `{...}` if that is not empty, else of the whole key.
pub fn key_slot(key: &[u8]) -> Slot {
    let mut hashed = key;
    if let Some(open) = key.iter().position(|&b| b == b'{') {
        let rest = &key[open + 1..];
        if let Some(close) = rest.iter().position(|&b| b == b'}')
            && close > 0
        {
            hashed = &rest[..close];
        }
    }
    CRC16.checksum(hashed) & (SLOTS as u16 - 1)
}

/// A short text without braces whose slot is `slot`: what `hashtag()` gives.
///
/// Tries base-36 texts in order of length; three characters reach nearly every slot, four all.
pub fn slot_tag(slot: Slot) -> String {
    if slot == 0 {
        return "06S".to_owned();
    }
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    for n in 0u32.. {
        let mut text = Vec::with_capacity(5);
        let mut rest = n;
        loop {
            text.push(DIGITS[(rest % 36) as usize]);
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        if key_slot(&text) == slot {
            return String::from_utf8_lossy(&text).into_owned();
        }
    }
    unreachable!("four characters reach every slot")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, ranges: &[(u16, u16)]) -> Shard {
        Shard {
            id: NodeId::new(id),
            host: "127.0.0.1".into(),
            port: 1,
            ranges: ranges.to_vec(),
        }
    }

    #[test]
    fn slots_as_in_the_cluster_specification() {
        assert_eq!(key_slot(b"123456789"), 0x31C3);
        assert_eq!(key_slot(b"{user1000}.following"), key_slot(b"user1000"));
        assert_eq!(key_slot(b"foo{}{bar}"), CRC16.checksum(b"foo{}{bar}") & 16383);
        assert_eq!(key_slot(b"foo{{bar}}zap"), key_slot(b"{bar"));
        assert_eq!(key_slot(b"06S"), 0);
    }

    #[test]
    fn every_slot_has_a_tag() {
        for slot in 0..SLOTS as u16 {
            assert_eq!(key_slot(slot_tag(slot).as_bytes()), slot);
        }
    }

    #[test]
    fn the_epoch_depends_on_ownership_only() {
        let me = NodeId::new("a");
        let one = Topology::new(me.clone(), vec![shard("a", &[(0, 99)]), shard("b", &[(100, 16383)])]);
        let same = Topology::new(
            NodeId::new("b"),
            vec![shard("b", &[(100, 16383)]), shard("a", &[(0, 99)])],
        );
        let moved = Topology::new(me, vec![shard("a", &[(0, 98)]), shard("b", &[(99, 16383)])]);
        assert_eq!(one.epoch, same.epoch);
        assert_ne!(one.epoch, moved.epoch);
        assert_eq!(one.uncovered_slot(), None);
        assert_eq!(
            Topology::new(NodeId::new("a"), vec![shard("a", &[(0, 5)])]).uncovered_slot(),
            Some(6)
        );
    }
}
