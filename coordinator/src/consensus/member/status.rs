//! Where a member stands, for people who look.

use std::collections::BTreeSet;

use super::{Member, Part};
use crate::{
    consensus::{MemberStatus, RegistryStatus, disk::Disk, group::Group},
    topology::NodeId,
};

impl<D: Disk> Member<D> {
    /// Where it stands.
    pub fn status(&self) -> RegistryStatus {
        let mut status = RegistryStatus {
            role: "joining",
            raft_id: self.raft_id,
            applied: self.registry.index(),
            ..RegistryStatus::default()
        };
        match &self.part {
            Part::Outside(_) => {}
            Part::Failed { error, .. } => {
                status.role = "failed";
                status.error = Some(error.clone());
            }
            Part::In(group) => {
                status.role = group.role();
                status.group = Some(group.id.to_string());
                status.term = group.term();
                status.leader = group.members.get(&group.leader()).cloned();
                status.commit = group.commit();
                status.log = group.log_range();
                status.disk_bytes = group.disk_bytes();
                status.error = self.may_decide().err().map(str::to_owned);
                status.members = self.member_statuses(group);
            }
        }
        status
    }

    /// The sets of voters of which each must agree.
    #[cfg(test)]
    pub fn quorums(&self) -> Vec<BTreeSet<u64>> {
        match &self.part {
            Part::In(group) => group.quorums(),
            _ => Vec::new(),
        }
    }

    /// The sets of voters are about to change.
    #[cfg(test)]
    pub fn has_change_in_log(&self) -> bool {
        matches!(&self.part, Part::In(group) if group.has_change_in_log())
    }

    fn member_statuses(&self, group: &Group<D>) -> Vec<MemberStatus> {
        let voters: BTreeSet<u64> = group.quorums().into_iter().flatten().collect();
        let (matched, last) = (group.matched(), group.log_range().1);
        let status = |(id, node): (&u64, &NodeId)| MemberStatus {
            node: node.clone(),
            raft_id: *id,
            voter: voters.contains(id),
            matched: matched.get(id).copied(),
            lag: matched.get(id).map(|matched| last.saturating_sub(*matched)),
        };
        group.members.iter().map(status).collect()
    }

    /// The state that is applied here.
    #[cfg(test)]
    pub fn registry(&self) -> &std::sync::Arc<crate::registry::Registry> {
        &self.registry
    }
}
