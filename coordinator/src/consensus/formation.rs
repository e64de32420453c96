//! Which group is the cluster's: who founds one, who joins which.
//!
//! Clusters are made by nodes that meet one by one, are merged and restored from backups, so nodes may know of no
//! group or of several. Two groups must never both count as the cluster's. The rule:
//!
//! 1. A group has a random id, stamped in its log and in all its messages.
//! 2. A node founds a group only if it is the master that owns slot 0, and every node that it knows of and that has not
//!    failed has told it that it has no group. A cluster whose slots are complete has one owner of slot 0; parts of a
//!    cluster that has not met yet do not own slot 0. The founder brings the state that it held alone.
//! 3. A node without a group that hears of one joins it, under a fresh number.
//! 4. While a node hears of another group than its own, its leader takes no changes.
//! 5. Of several groups the one of the highest generation counts (only an operator's `RECOVER` makes a higher one), then
//!    the one to which most masters with slots belong, then that of the owner of slot 0, then the smaller id. A node whose
//!    group does not count puts its log aside and joins the one that does. It decides so only when it has heard of
//!    most masters with slots, or of a higher generation: a lone stray must not draw members away.
//! 6. A node whose log is lost, damaged or could not be synced joins under a fresh number: under the old one it might
//!    vote against what it had acknowledged.

use std::collections::BTreeMap;

use super::{ClusterNode, ClusterView};
use crate::{message::GroupId, topology::NodeId};

/// What nodes have said of their groups lately; this node is not among them.
pub(super) type Heard = BTreeMap<NodeId, Option<GroupId>>;

/// What a node should do about groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Nothing.
    Stay,
    /// Take no changes: another group is about.
    Hold,
    /// Found a group.
    Found,
    /// Join this one; leave the own one if there is one.
    Join(GroupId),
}

/// Times that an operator founded the group anew.
pub(super) fn generation(group: GroupId) -> u16 {
    (group.0 >> 112) as u16
}

/// A group id of a generation, with random bits.
pub(super) fn new_group(generation: u16, random: u128) -> GroupId {
    GroupId((u128::from(generation) << 112) | (random & (u128::MAX >> 16)))
}

/// What the rule says to node `me` with group `own`.
pub(super) fn advise(me: &NodeId, own: Option<GroupId>, view: &ClusterView, heard: &Heard) -> Advice {
    let is_me = |node: &&ClusterNode| node.id == *me;
    let Some(myself) = view.nodes.iter().find(is_me) else { return Advice::Stay };
    let group_of = |node: &ClusterNode| if node.id == *me { own } else { heard.get(&node.id).copied().flatten() };
    let mut groups: Vec<GroupId> = view.nodes.iter().filter_map(group_of).collect();
    groups.sort();
    groups.dedup();
    let rank = |group: &GroupId| {
        let slots = view.nodes.iter().filter(|node| node.has_slots && group_of(node) == Some(*group)).count();
        let zero = view.nodes.iter().any(|node| Some(&node.id) == view.slot_zero.as_ref() && group_of(node) == Some(*group));
        (generation(*group), slots, zero, u128::MAX - group.0)
    };
    let best = groups.iter().copied().max_by_key(rank);
    match (own, best) {
        (None, Some(best)) => Advice::Join(best),
        (None, None) => {
            let others = view.nodes.iter().filter(|node| !is_me(node) && !node.failed);
            let all_heard = others.clone().all(|node| heard.contains_key(&node.id));
            let owns_zero = view.slot_zero.as_ref() == Some(me);
            match myself.master && owns_zero && all_heard && others.count() > 0 {
                true => Advice::Found,
                false => Advice::Stay,
            }
        }
        (Some(own), Some(best)) if best != own => {
            let masters = view.nodes.iter().filter(|node| node.has_slots);
            let heard_of = masters.clone().filter(|node| is_me(node) || heard.contains_key(&node.id)).count();
            let most = heard_of * 2 > masters.count();
            match most || generation(best) > generation(own) {
                true => Advice::Join(best),
                false => Advice::Hold,
            }
        }
        (Some(_), _) if groups.len() > 1 => Advice::Hold,
        _ => Advice::Stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: GroupId = GroupId(7);
    const B: GroupId = GroupId(9);

    /// Nodes `a`, `b`, ...: masters with slots, unless the letter is `r` or later (a replica); `!`: failed.
    fn view(nodes: &str, zero: &str) -> ClusterView {
        let node = |word: &str| ClusterNode {
            id: NodeId::new(word.trim_end_matches('!')),
            master: word < "r",
            has_slots: word < "r",
            failed: word.ends_with('!'),
        };
        ClusterView {
            nodes: nodes.split_whitespace().map(node).collect(),
            slot_zero: Some(zero).filter(|z| !z.is_empty()).map(NodeId::new),
        }
    }

    fn check(own: Option<GroupId>, nodes: &str, zero: &str, heard: &[(&str, Option<GroupId>)], expected: Advice) {
        let heard = heard.iter().map(|(id, group)| (NodeId::new(id), *group)).collect();
        let advice = advise(&NodeId::new("a"), own, &view(nodes, zero), &heard);
        assert_eq!(advice, expected, "{own:?} {nodes} slot 0 of {zero}, heard {heard:?}");
    }

    #[test]
    fn only_the_owner_of_slot_zero_founds_when_nobody_has_a_group() {
        check(None, "a b", "a", &[("b", None)], Advice::Found);
        check(None, "a b", "b", &[("b", None)], Advice::Stay);
        check(None, "a b", "", &[("b", None)], Advice::Stay);
        check(None, "a b c", "a", &[("b", None)], Advice::Stay);
        check(None, "a b c!", "a", &[("b", None)], Advice::Found);
        check(None, "a", "a", &[], Advice::Stay);
        check(None, "a b r", "a", &[("b", None)], Advice::Stay);
        check(None, "a b c", "a", &[("b", None), ("c", Some(B))], Advice::Join(B));
    }

    #[test]
    fn of_two_groups_one_counts() {
        check(Some(A), "a b c", "a", &[("b", Some(A)), ("c", Some(A))], Advice::Stay);
        check(Some(A), "a b c", "a", &[("b", Some(A)), ("c", None)], Advice::Stay);
        check(Some(A), "a b c", "a", &[("b", Some(A)), ("c", Some(B))], Advice::Hold);
        check(Some(A), "a b c", "a", &[("b", Some(B)), ("c", Some(B))], Advice::Join(B));
        check(Some(A), "a b", "b", &[("b", Some(B))], Advice::Join(B));
        check(Some(A), "a b", "a", &[("b", Some(B))], Advice::Hold);
    }

    #[test]
    fn a_stray_draws_nobody_away() {
        check(Some(A), "a b c d", "b", &[("b", Some(B))], Advice::Hold);
        check(Some(A), "a b c d", "b", &[("b", Some(B)), ("c", Some(B))], Advice::Join(B));
    }

    #[test]
    fn a_recovered_group_wins() {
        let recovered = new_group(1, u128::MAX);
        check(Some(A), "a b c d", "a", &[("b", Some(recovered))], Advice::Join(recovered));
        check(Some(recovered), "a b c", "b", &[("b", Some(A)), ("c", Some(A))], Advice::Hold);
    }
}
