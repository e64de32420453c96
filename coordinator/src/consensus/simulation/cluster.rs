//! What each node believes of the cluster: who is in it, who is a master, who owns slots. Beliefs spread by gossip, so
//! they are late, and differ where the network is cut.

use std::collections::{BTreeMap, BTreeSet};

use super::net::Place;
use crate::{
    consensus::{ClusterNode, ClusterView},
    topology::NodeId,
};

/// A node that has not answered for so long is taken for failed by those who see most masters.
const NODE_TIMEOUT_MS: u64 = 3000;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    /// Higher ones are newer.
    pub version: u64,
    pub master: bool,
    pub slots: bool,
}

/// What one node believes.
#[derive(Debug, Clone, Default)]
pub(super) struct Belief {
    pub roles: BTreeMap<Place, Role>,
    /// Owner of slot 0, with the version.
    pub slot_zero: Option<(u64, Place)>,
    /// Last answers.
    heard_ms: BTreeMap<Place, u64>,
    failed: BTreeSet<Place>,
    /// Not to be met again.
    pub forgotten: BTreeSet<Place>,
}

impl Belief {
    pub fn knows(&self, other: Place) -> bool {
        self.roles.contains_key(&other)
    }

    pub fn take_role(&mut self, node: Place, role: Role) {
        let known = self.roles.entry(node).or_insert(role);
        if known.version < role.version {
            *known = role;
        }
    }

    pub fn forget(&mut self, node: Place) {
        self.roles.remove(&node);
        self.heard_ms.remove(&node);
        self.failed.remove(&node);
        self.forgotten.insert(node);
        if self.slot_zero.is_some_and(|(_, owner)| owner == node) {
            self.slot_zero = None;
        }
    }

    /// Takes over what a neighbour believes.
    pub fn learn(&mut self, me: Place, from: Place, other: &Belief, now_ms: u64) {
        self.heard_ms.insert(from, now_ms);
        for (&node, &role) in &other.roles {
            if !self.forgotten.contains(&node) {
                self.take_role(node, role);
            }
        }
        if let Some(zero) = other.slot_zero
            && !self.forgotten.contains(&zero.1)
            && self.slot_zero.is_none_or(|own| own.0 < zero.0)
        {
            self.slot_zero = Some(zero);
        }
        debug_assert!(self.roles.contains_key(&me));
    }

    /// Decides who has failed, as the majority of the masters would.
    pub fn judge(&mut self, me: Place, now_ms: u64) {
        let answers = |node: &Place, heard: &BTreeMap<Place, u64>| {
            *node == me || heard.get(node).is_some_and(|at| now_ms < at + NODE_TIMEOUT_MS)
        };
        for node in self.roles.keys() {
            self.heard_ms.entry(*node).or_insert(now_ms);
        }
        let masters: Vec<Place> = self.roles.iter().filter(|(_, r)| r.slots).map(|(n, _)| *n).collect();
        let there = masters.iter().filter(|n| answers(n, &self.heard_ms)).count();
        let nodes: Vec<Place> = self.roles.keys().copied().collect();
        for node in nodes {
            if answers(&node, &self.heard_ms) {
                self.failed.remove(&node);
            } else if there * 2 > masters.len() {
                self.failed.insert(node);
            }
        }
    }

    pub fn view(&self, ids: &[NodeId]) -> ClusterView {
        let node = |(&place, role): (&Place, &Role)| ClusterNode {
            id: ids[place].clone(),
            master: role.master,
            has_slots: role.slots,
            failed: self.failed.contains(&place),
        };
        let mut nodes: Vec<ClusterNode> = self.roles.iter().map(node).collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        ClusterView {
            nodes,
            slot_zero: self.slot_zero.map(|(_, owner)| ids[owner].clone()),
        }
    }
}
