//! Which group is the cluster's: who founds one, who joins which.
//!
//! Clusters are made by nodes that meet one by one, are merged and restored from backups, so nodes may know of no
//! group or of several. Two groups must never both count as the cluster's. The rule:
//!
//! 1. A group has a random id, stamped in its log and in all its messages.
//! 2. A node founds a group only if it is the master that owns slot 0, and every node that it knows of and that has not
//!    failed has told it that it has no group and takes it for the owner of slot 0. A cluster whose slots are complete
//!    has one owner of slot 0; parts of a cluster that have not met yet do not own slot 0. The only master with slots
//!    needs the word of failed nodes as well: that they have failed is nobody's word but its own. The founder brings the
//!    state that it held alone.
//! 3. A node without a group that hears of one joins it, under a fresh number. As long as it has nothing of the group's
//!    log it counts for nobody, and when nobody is left who has some, it gives up and is without a group again.
//! 4. A group takes changes only while most masters with slots have its log and most of them vote in it (or as many as
//!    may vote), and while its leader hears of no other group.
//! 5. Of several groups the one of the highest generation counts (only an operator's `RECOVER`, or the only voter's lost
//!    log, makes a higher one), then the one to which most masters with slots belong, then that of the owner of slot 0,
//!    then the smaller id. A node whose group does not count puts its log aside and joins the one that does. It does so
//!    only when those masters that it has not heard yet, failed ones too, can not turn the decision: after a restart
//!    links come up in any order, and a lone stray must not draw members away; when the leader of the other group has
//!    said that it leads it; and when all that has been so for a while (`limits::GIVE_WAY_AFTER`), unless the other's
//!    generation is higher.
//! 6. A node whose log is lost, damaged or could not be synced joins under a fresh number: under the old one it might
//!    vote against what it had acknowledged.
//! 7. A node that knows none of its group's other members any more (it was reset, or has forgotten them all) leaves the
//!    group, which it could never reach again, and is without a group with the state that it has.
//!
//! What follows: **in one cluster a group that acknowledged a change is never given up.** Two groups may be founded, if
//! slot 0 moves or the network is cut meanwhile, but most masters can be in one only (4), and to that one the other
//! gives way (5), whoever has failed. So nothing that was acknowledged is lost.
//!
//! Acts of an operator are outside of that:
//!
//! * **Two clusters with a group each are merged.** One registry stays as a whole; the other one is given up, with what
//!   it had acknowledged. Its nodes say so in their logs, with the registrations' ids, and keep their folders. From the
//!   moment when its leader hears of the other group it acknowledges nothing. That both are given up would need nodes
//!   of each to prefer the other one for `limits::GIVE_WAY_AFTER`. A node knows its own cluster first and the other one
//!   bit by bit, so it overrates its own group if any; only two clusters with as many masters each, whose nodes differ
//!   for so long over the owner of slot 0, could do that.
//! * **`RECOVER`** gives up what this node's log does not have.
//! * **Slots of most masters are taken over without their votes** (`FAILOVER TAKEOVER`) by nodes that never were in the
//!   group, while all of its members are down.

use std::collections::BTreeMap;

use super::{ClusterNode, ClusterView};
use crate::{message::GroupId, topology::NodeId};

/// What a node says of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub group: GroupId,
    /// It has the group's state, not only a number in it.
    pub holds: bool,
}

/// What a node said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    Claim(Claim),
    /// It has no group, and takes this node for the owner of slot 0.
    Free(Option<NodeId>),
}

/// What nodes whose links are up have said; this node is not among them.
pub(super) type Heard = BTreeMap<NodeId, Word>;

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

/// How much there is for a group.
type Rank = (u16, usize, bool, u128);

struct Census<'a> {
    me: &'a NodeId,
    own: Option<Claim>,
    view: &'a ClusterView,
    heard: &'a Heard,
}

impl Census<'_> {
    fn claim(&self, node: &NodeId) -> Option<Claim> {
        match self.heard.get(node) {
            _ if node == self.me => self.own,
            Some(Word::Claim(claim)) => Some(*claim),
            _ => None,
        }
    }

    fn is_of(&self, node: &NodeId, group: GroupId) -> bool {
        self.claim(node)
            .is_some_and(|claim| claim.holds && claim.group == group)
    }

    /// Groups of which somebody has the state, best first.
    fn groups(&self) -> Vec<GroupId> {
        let claims = self.view.nodes.iter().filter_map(|node| self.claim(&node.id));
        let mut groups: Vec<GroupId> = claims.filter(|claim| claim.holds).map(|claim| claim.group).collect();
        groups.sort();
        groups.dedup();
        groups.sort_by_key(|group| std::cmp::Reverse(self.rank(*group)));
        groups
    }

    fn rank(&self, group: GroupId) -> Rank {
        let owners = self.view.nodes.iter().filter(|node| node.has_slots);
        let slots = owners.filter(|node| self.is_of(&node.id, group)).count();
        let zero = self.view.slot_zero.as_ref().is_some_and(|node| self.is_of(node, group));
        (generation(group), slots, zero, u128::MAX - group.0)
    }

    /// Whether one group stays better than another, whatever those say who have not been heard. A failed master may
    /// come back with what it has acknowledged.
    fn is_settled(&self, better: GroupId, worse: GroupId) -> bool {
        let owners = self.view.nodes.iter().filter(|node| node.has_slots);
        let silent = owners
            .filter(|node| node.id != *self.me && !self.heard.contains_key(&node.id))
            .count();
        let (b, w) = (self.rank(better), self.rank(worse));
        b.0 > w.0 || (b.0 == w.0 && b.1 > w.1 + silent) || (silent == 0 && b > w)
    }

    fn may_found(&self, myself: &ClusterNode) -> bool {
        // Else most masters say of a node that it has failed, and those decide about changes too.
        let only_my_word = self
            .view
            .nodes
            .iter()
            .all(|node| !node.has_slots || node.id == *self.me);
        let others = self
            .view
            .nodes
            .iter()
            .filter(|node| node.id != *self.me && (!node.failed || only_my_word));
        let agreed = Word::Free(Some(self.me.clone()));
        let all_agree = others.into_iter().all(|node| self.heard.get(&node.id) == Some(&agreed));
        myself.master && self.view.slot_zero.as_ref() == Some(self.me) && all_agree
    }
}

/// What the rule says to node `me`.
pub(super) fn advise(me: &NodeId, own: Option<Claim>, view: &ClusterView, heard: &Heard) -> Advice {
    let Some(myself) = view.nodes.iter().find(|node| node.id == *me) else {
        return Advice::Stay;
    };
    let census = Census { me, own, view, heard };
    let groups = census.groups();
    let Some((&best, others)) = groups.split_first() else {
        return match own.is_none() && census.may_found(myself) {
            true => Advice::Found,
            false => Advice::Stay,
        };
    };
    match own {
        Some(own) if own.group == best && others.is_empty() => Advice::Stay,
        Some(own) if own.group == best => Advice::Hold,
        Some(own) if own.holds => match census.is_settled(best, own.group) {
            true => Advice::Join(best),
            false => Advice::Hold,
        },
        // Nothing is lost by joining.
        _ if others.iter().all(|other| census.is_settled(best, *other)) => Advice::Join(best),
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

    fn claim(group: GroupId, holds: bool) -> Option<Claim> {
        Some(Claim { group, holds })
    }

    fn check(own: Option<GroupId>, nodes: &str, zero: &str, heard: &[(&str, Option<GroupId>)], expected: Advice) {
        let own = own.and_then(|group| claim(group, true));
        let heard: Vec<_> = heard
            .iter()
            .map(|(id, group)| (*id, group.and_then(|group| claim(group, true))))
            .collect();
        check_claims(own, nodes, zero, &heard, expected);
    }

    /// Who has no group takes `zero` for the owner of slot 0.
    fn heard_of(heard: &[(&str, Option<Claim>)], zero: &str) -> Heard {
        let zero = Some(zero).filter(|z| !z.is_empty()).map(NodeId::new);
        let word = |claim: &Option<Claim>| claim.map_or(Word::Free(zero.clone()), Word::Claim);
        heard.iter().map(|(id, claim)| (NodeId::new(id), word(claim))).collect()
    }

    fn check_claims(own: Option<Claim>, nodes: &str, zero: &str, heard: &[(&str, Option<Claim>)], expected: Advice) {
        let heard = heard_of(heard, zero);
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
        check(None, "a b r!", "a", &[("b", None)], Advice::Found);
        check(None, "a r!", "a", &[], Advice::Stay);
        check(None, "a r", "a", &[("r", None)], Advice::Found);
        check(None, "a", "a", &[], Advice::Found);
        check(None, "a", "", &[], Advice::Stay);
        check(None, "a b r", "a", &[("b", None)], Advice::Stay);
        check(None, "a b c", "a", &[("b", None), ("c", Some(B))], Advice::Join(B));
    }

    #[test]
    fn nobody_founds_whom_not_all_take_for_the_owner_of_slot_zero() {
        let view = view("a b c", "a");
        let check = |b: &str, expected| {
            let mut heard = heard_of(&[("c", None)], "a");
            heard.extend(heard_of(&[("b", None)], b));
            assert_eq!(advise(&NodeId::new("a"), None, &view, &heard), expected, "b says {b}");
        };
        check("a", Advice::Found);
        check("b", Advice::Stay);
        check("", Advice::Stay);
    }

    #[test]
    fn who_waits_for_a_group_counts_for_nobody_but_keeps_others_from_founding() {
        check_claims(None, "a b", "a", &[("b", claim(B, false))], Advice::Stay);
        check_claims(claim(A, false), "a b", "a", &[("b", None)], Advice::Stay);
        check_claims(claim(A, false), "a b", "a", &[("b", claim(A, true))], Advice::Stay);
        check_claims(claim(A, false), "a b", "a", &[("b", claim(B, true))], Advice::Join(B));
        check_claims(claim(A, true), "a b", "b", &[("b", claim(B, false))], Advice::Stay);
    }

    #[test]
    fn of_two_groups_one_counts() {
        check(Some(A), "a b c", "a", &[("b", Some(A)), ("c", Some(A))], Advice::Stay);
        check(Some(A), "a b c", "a", &[("b", Some(A)), ("c", None)], Advice::Stay);
        check(Some(A), "a b c", "a", &[("b", Some(A)), ("c", Some(B))], Advice::Hold);
        check(
            Some(A),
            "a b c",
            "a",
            &[("b", Some(B)), ("c", Some(B))],
            Advice::Join(B),
        );
        check(Some(A), "a b", "b", &[("b", Some(B))], Advice::Join(B));
        check(Some(A), "a b", "a", &[("b", Some(B))], Advice::Hold);
        check(None, "a b c", "a", &[("b", Some(A)), ("c", Some(B))], Advice::Join(A));
        check(None, "a b c d", "a", &[("b", Some(A)), ("c", Some(B))], Advice::Stay);
    }

    #[test]
    fn a_stray_draws_nobody_away() {
        check(Some(A), "a b c d", "b", &[("b", Some(B))], Advice::Hold);
        check(Some(A), "a b c d", "b", &[("b", Some(B)), ("c", Some(B))], Advice::Hold);
        check(
            Some(A),
            "a b c d!",
            "b",
            &[("b", Some(B)), ("c", Some(B))],
            Advice::Hold,
        );
        check(
            Some(A),
            "a b c d e",
            "b",
            &[("b", Some(B)), ("c", Some(B)), ("d", Some(B))],
            Advice::Join(B),
        );
        check(
            Some(A),
            "a b c d",
            "b",
            &[("b", Some(B)), ("c", Some(B)), ("d", Some(A))],
            Advice::Join(B),
        );
        check(
            Some(A),
            "a b c d",
            "a",
            &[("b", Some(B)), ("c", Some(B)), ("d", Some(A))],
            Advice::Hold,
        );
    }

    #[test]
    fn a_replica_follows_the_masters() {
        let heard = [("b", Some(B)), ("c", Some(B))];
        let mut view = view("a b c", "b");
        (view.nodes[0].master, view.nodes[0].has_slots) = (false, false);
        let heard = heard.map(|(id, group)| (id, group.and_then(|g| claim(g, true))));
        assert_eq!(
            advise(&NodeId::new("a"), claim(A, true), &view, &heard_of(&heard, "b")),
            Advice::Join(B)
        );
    }

    #[test]
    fn a_recovered_group_wins() {
        let recovered = new_group(1, u128::MAX);
        check(
            Some(A),
            "a b c d",
            "a",
            &[("b", Some(recovered))],
            Advice::Join(recovered),
        );
        check(
            Some(recovered),
            "a b c",
            "b",
            &[("b", Some(A)), ("c", Some(A))],
            Advice::Hold,
        );
    }
}
