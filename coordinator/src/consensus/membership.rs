//! Who belongs to the group and who votes: the next change that the leader should propose.
//!
//! Masters with slots vote (masters without are taken when there are not enough), at most `limits::VOTERS`; those that
//! vote already are preferred, so that membership is quiet. All other nodes learn. Pure: looks, decides.

use std::collections::{BTreeMap, BTreeSet};

use protobuf::RepeatedField;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::{
    ClusterNode, ClusterView,
    snapshot::{self, Members},
};
use crate::{limits, topology::NodeId};

/// What the leader knows.
pub(super) struct Known<'a> {
    pub view: &'a ClusterView,
    /// Present members.
    pub members: &'a Members,
    /// Numbers of those that vote.
    pub voters: &'a BTreeSet<u64>,
    /// Numbers under which nodes say that they are in this group.
    pub present: &'a BTreeMap<NodeId, u64>,
    /// Members whose log is about as long as the leader's.
    pub caught_up: &'a BTreeSet<u64>,
    /// Members whose node has not been in the cluster for long enough.
    pub left: &'a BTreeSet<u64>,
    /// The leader's number.
    pub me: u64,
}

/// What should happen next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// Propose this.
    Change(ConfChangeV2),
    /// The leader should not vote any more: hand the lead to this member first.
    Lead(u64),
}

/// Decides the next step.
pub(super) fn next(known: &Known<'_>) -> Step {
    let mut changes = Vec::new();
    let mut added = Members::new();
    for (&id, node) in known.members {
        let renumbered = known.present.get(node).is_some_and(|now| *now != id);
        if id != known.me && (renumbered || known.left.contains(&id)) {
            changes.push(single(ConfChangeType::RemoveNode, id));
        }
    }
    let is_node = |id: &NodeId| known.view.nodes.iter().any(|node| node.id == *id);
    for (node, &id) in known.present {
        if !known.members.contains_key(&id) && is_node(node) {
            changes.push(single(ConfChangeType::AddLearnerNode, id));
            added.insert(id, node.clone());
        }
    }
    if changes.is_empty() {
        let wanted = voters(known);
        if !wanted.contains(&known.me)
            && let Some(&heir) = wanted
                .iter()
                .find(|id| known.voters.contains(id) && known.caught_up.contains(id))
        {
            return Step::Lead(heir);
        }
        let there = wanted
            .iter()
            .filter(|id| **id == known.me || known.caught_up.contains(id))
            .count();
        if there * 2 <= wanted.len() {
            // They could decide nothing, and the change would never be complete.
            return Step::Nothing;
        }
        for &id in &wanted {
            if !known.voters.contains(&id) {
                changes.push(single(ConfChangeType::AddNode, id));
            }
        }
        for &id in known.voters {
            // The leader goes only when it leads no more.
            if !wanted.contains(&id) && id != known.me && !wanted.is_empty() {
                changes.push(single(ConfChangeType::AddLearnerNode, id));
            }
        }
    }
    if changes.is_empty() {
        return Step::Nothing;
    }
    let mut change = ConfChangeV2::default();
    change.set_changes(RepeatedField::from_vec(changes));
    change.context = snapshot::encode_members(&added).into();
    Step::Change(change)
}

/// Who should vote.
fn voters(known: &Known<'_>) -> BTreeSet<u64> {
    let node_of = |id: &u64| {
        let node = known.members.get(id)?;
        known.view.nodes.iter().find(|n| n.id == *node)
    };
    let rank = |id: &u64, node: &ClusterNode| (!node.has_slots, !known.voters.contains(id), *id);
    let mut candidates: Vec<_> = known
        .members
        .keys()
        .filter_map(|id| Some((*id, node_of(id)?)))
        .filter(|(id, node)| {
            // One that failed over has lost its slots; one that only failed may come back.
            let fit = node.master && (node.has_slots || !node.failed);
            fit && (known.voters.contains(id) || *id == known.me || known.caught_up.contains(id))
        })
        .map(|(id, node)| rank(&id, node))
        .collect();
    candidates.sort();
    candidates.truncate(limits::VOTERS);
    candidates.into_iter().map(|(.., id)| id).collect()
}

fn single(kind: ConfChangeType, id: u64) -> ConfChangeSingle {
    let mut change = ConfChangeSingle::default();
    change.set_change_type(kind);
    change.node_id = id;
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        view: ClusterView,
        members: Members,
        voters: BTreeSet<u64>,
        present: BTreeMap<NodeId, u64>,
        caught_up: BTreeSet<u64>,
        left: BTreeSet<u64>,
    }

    /// Nodes `n1`, `n2`, ... with the same numbers in the group; kinds: `m` master with slots, `e` empty master, `r`
    /// replica, `f` failed master without slots, `x` failed master with slots.
    fn case(kinds: &str, voters: &[u64]) -> Case {
        let nodes = kinds.chars().zip(1..).map(|(kind, n)| ClusterNode {
            id: NodeId::new(&format!("n{n}")),
            master: kind != 'r',
            has_slots: kind == 'm' || kind == 'x',
            failed: kind == 'f' || kind == 'x',
        });
        let nodes: Vec<ClusterNode> = nodes.collect();
        let members: Members = nodes.iter().zip(1..).map(|(node, n)| (n, node.id.clone())).collect();
        Case {
            present: members.iter().map(|(id, node)| (node.clone(), *id)).collect(),
            caught_up: members.keys().copied().collect(),
            view: ClusterView { nodes, slot_zero: None },
            voters: voters.iter().copied().collect(),
            left: BTreeSet::new(),
            members,
        }
    }

    impl Case {
        fn next(&self) -> Step {
            next(&Known {
                view: &self.view,
                members: &self.members,
                voters: &self.voters,
                present: &self.present,
                caught_up: &self.caught_up,
                left: &self.left,
                me: 1,
            })
        }

        fn check(&self, expected: &[(ConfChangeType, u64)]) {
            match self.next() {
                Step::Nothing => assert!(expected.is_empty(), "nothing, not {expected:?}"),
                Step::Lead(heir) => panic!("hands the lead to {heir}"),
                Step::Change(change) => {
                    let changes = change.get_changes().iter().map(|c| (c.get_change_type(), c.node_id));
                    assert_eq!(changes.collect::<Vec<_>>(), expected);
                }
            }
        }
    }

    use ConfChangeType::*;

    #[test]
    fn masters_vote_and_replicas_learn() {
        case("mmmrrr", &[1, 2, 3]).check(&[]);
        case("mmmrrr", &[1]).check(&[(AddNode, 2), (AddNode, 3)]);
        case("mmrmm", &[1, 2, 3]).check(&[(AddNode, 4), (AddNode, 5), (AddLearnerNode, 3)]);
        case("mmmmmmmmm", &[1, 3, 4, 5, 6, 7, 8]).check(&[]);
        case("mmxm", &[1, 2, 3, 4]).check(&[]);
        case("mmfm", &[1, 2, 3, 4]).check(&[(AddLearnerNode, 3)]);
    }

    #[test]
    fn who_lags_does_not_vote_yet() {
        let mut case = case("mmm", &[1]);
        case.caught_up = [1, 3].into();
        case.check(&[(AddNode, 3)]);
    }

    #[test]
    fn new_and_renumbered_nodes() {
        let mut case = case("mmm", &[1, 2, 3]);
        case.present.insert(NodeId::new("n2"), 22);
        case.check(&[(RemoveNode, 2), (AddLearnerNode, 22)]);
        // A stranger is not let in.
        case.present.clear();
        case.present.insert(NodeId::new("stranger"), 9);
        case.check(&[]);
        case.left = [3].into();
        case.check(&[(RemoveNode, 3)]);
    }

    #[test]
    fn a_leader_that_became_a_replica_hands_over() {
        assert_eq!(case("rmm", &[1, 2, 3]).next(), Step::Lead(2));
        let mut alone = case("rmm", &[1, 2, 3]);
        alone.caught_up.clear();
        assert_eq!(alone.next(), Step::Nothing);
    }
}
