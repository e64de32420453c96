//! What goes in and out of the group's part of a node, besides messages: the cluster as the server sees it, status.

use crate::topology::NodeId;

/// A node of the cluster, this one included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its id.
    pub id: NodeId,
    /// It is a master (with or without slots).
    pub master: bool,
    /// It owns slots.
    pub has_slots: bool,
    /// Most masters say that it does not answer.
    pub failed: bool,
}

/// The cluster as this server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// All nodes that are known, by id; this one is always among them.
    pub nodes: Vec<ClusterNode>,
    /// Who owns slot 0.
    pub slot_zero: Option<NodeId>,
}

/// A member of the group, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its node id.
    pub node: NodeId,
    /// Its number in the group; new after a lost log.
    pub raft_id: u64,
    /// Votes; else it only learns.
    pub voter: bool,
    /// Index up to which the leader knows its log to be equal; only the leader knows.
    pub matched: Option<u64>,
    /// Entries that it lacks; only the leader knows.
    pub lag: Option<u64>,
}

/// Where the registry of this node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryStatus {
    /// `alone`, `joining`, `follower`, `candidate`, `leader`, `learner` or `failed`.
    pub role: &'static str,
    /// Hex id of the group.
    pub group: Option<String>,
    /// This node's number in it.
    pub raft_id: u64,
    /// Raft's term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// Last index known to be on a majority's disks.
    pub commit: u64,
    /// Last index that is applied here.
    pub applied: u64,
    /// First and last index of the log on disk.
    pub log: (u64, u64),
    /// Bytes of log and snapshot on disk.
    pub disk_bytes: u64,
    /// The members.
    pub members: Vec<MemberStatus>,
    /// Why this node can not take part now.
    pub error: Option<String>,
}
