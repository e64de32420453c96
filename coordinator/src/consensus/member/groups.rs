//! Founding, joining and leaving groups, and what nodes say to each other about that.
//!
//! Carries out what `formation` advises; decides nothing about the content of the registry.

use raft::eraftpb::Snapshot;
use rand::RngExt;

use super::{Member, Output, Part, Said};
use crate::{
    consensus::{
        ClusterNode,
        disk::Disk,
        formation::{self, Advice, Claim, Heard, Word},
        group::Group,
        mutants::{Mutant, is_on},
        storage::{Identity, LogStorage},
    },
    limits,
    message::{GroupHello, GroupId, RegistryMessage},
    net::LogLevel,
    registry::Registry,
    topology::NodeId,
};

impl Said {
    fn claim(&self) -> Option<Claim> {
        let holds = self.hello.commit > 0;
        self.hello.group.map(|group| Claim { group, holds })
    }

    fn word(&self) -> Word {
        match self.claim() {
            Some(claim) => Word::Claim(claim),
            None => Word::Free(self.hello.leader.clone()),
        }
    }
}

/// What a registry holds, for the log.
fn given_up(registry: &Registry) -> String {
    const SHOWN: usize = 20;
    let all = registry.registrations();
    let ids: Vec<&str> = all.iter().take(SHOWN).map(|r| &*r.id).collect();
    let more = if all.len() > SHOWN { ", ..." } else { "" };
    format!("{} registrations ({}{more})", all.len(), ids.join(", "))
}

impl<D: Disk> Member<D> {
    pub(super) fn own_group(&self) -> Option<GroupId> {
        match &self.part {
            Part::In(group) => Some(group.id),
            _ => None,
        }
    }

    fn own_claim(&self) -> Option<Claim> {
        match &self.part {
            Part::In(group) => Some(Claim {
                group: group.id,
                holds: group.holds(),
            }),
            _ => None,
        }
    }

    fn heard(&self) -> Heard {
        let valid = self.said.iter().filter(|(_, said)| said.valid);
        valid.map(|(node, said)| (node.clone(), said.word())).collect()
    }

    /// A node of another group is in the cluster, even if its link is down now.
    fn knows_foreign(&self, own: Claim) -> bool {
        let foreign = |node: &ClusterNode| {
            let claim = self.said.get(&node.id).and_then(Said::claim);
            !node.failed && claim.is_some_and(|claim| claim.holds && claim.group != own.group)
        };
        own.holds && self.view.nodes.iter().any(foreign)
    }

    pub(super) fn follow_advice(&mut self) {
        if matches!(self.part, Part::Failed { .. }) {
            return;
        }
        let own = self.own_claim();
        let mut advice = formation::advise(&self.me, own, &self.view, &self.heard());
        if own.is_none() && advice == Advice::Stay && is_on(Mutant::FoundAtOnce) && self.view.nodes.len() > 1 {
            advice = Advice::Found;
        }
        if advice == Advice::Stay && own.is_some_and(|own| self.knows_foreign(own)) {
            advice = Advice::Hold;
        }
        if let (Advice::Join(group), Some(own)) = (advice, own)
            && own.holds
            && !self.may_give_way(own.group, group)
        {
            advice = Advice::Hold;
        } else if !matches!(advice, Advice::Join(_)) {
            self.giving_way = None;
        }
        let was = std::mem::replace(&mut self.hold, own.is_some() && advice != Advice::Stay);
        match advice {
            Advice::Stay => {}
            Advice::Hold if !was => self.log(
                LogLevel::Warning,
                "registry: nodes of another group are in the cluster; no changes are taken until that is settled",
            ),
            Advice::Hold => {}
            Advice::Found => self.found(0, "founded"),
            Advice::Join(group) => self.join(group, own),
        }
    }

    /// A log is given up for a group only if that one is alive, its leader says so itself, and if the advice has been the
    /// same for a while: nodes whose views differ must not give way to each other.
    fn may_give_way(&mut self, own: GroupId, group: GroupId) -> bool {
        let leads = |(node, said): (&NodeId, &Said)| {
            said.valid && said.hello.group == Some(group) && said.hello.leader.as_ref() == Some(node)
        };
        if !self.said.iter().any(leads) {
            self.giving_way = None;
            return false;
        }
        if formation::generation(group) > formation::generation(own) {
            return true;
        }
        let since = match self.giving_way {
            Some((to, since)) if to == group => since,
            _ => self.now_ms,
        };
        self.giving_way = Some((group, since));
        since + (limits::GIVE_WAY_AFTER.as_millis() as u64) <= self.now_ms
    }

    fn join(&mut self, group: GroupId, own: Option<Claim>) {
        self.giving_way = None;
        let given_up = given_up(&self.registry);
        match own {
            Some(own) if own.holds => {
                let text = format!(
                    "registry: group {} gives way to group {group}, which the cluster follows; given up are {given_up}",
                    own.group
                );
                self.log(LogLevel::Warning, text);
                self.leave("replaced");
                let moved = self.proposals.moved();
                self.fail_proposals(moved);
            }
            Some(_) => self.leave("unused"),
            None if !self.registry.is_empty() => {
                let text = format!(
                    "registry: joining the cluster's group {group}; its state replaces what is here: {given_up}"
                );
                self.log(LogLevel::Warning, text);
            }
            None => {}
        }
        self.create(group, &Snapshot::default());
    }

    /// Leaves a group that can not be reached any more: as a member that knows none of the others, or as one that has
    /// nothing of its log and hears of nobody who has.
    pub(super) fn leave_dead_group(&mut self) {
        let is_node = |node: &NodeId| self.view.nodes.iter().any(|n| n.id == *node);
        let dead = match &self.part {
            Part::In(group) if group.holds() => {
                let others = group.members.values().filter(|node| **node != self.me);
                let known = others.into_iter().any(is_node);
                is_node(&self.me) && !known && !group.is_sole_voter()
            }
            Part::In(group) => {
                let has_some = |said: &Said| said.valid && said.hello.group == Some(group.id) && said.hello.commit > 0;
                !self.said.values().any(has_some)
            }
            _ => false,
        };
        if !dead {
            self.dead_since = None;
            return;
        }
        let since = *self.dead_since.get_or_insert(self.now_ms);
        if since + (limits::LEAVE_AFTER.as_millis() as u64) <= self.now_ms {
            self.dead_since = None;
            self.log(
                LogLevel::Warning,
                "registry: no other member of the group is known any more; it is left",
            );
            self.leave("left");
        }
    }

    pub(super) fn found(&mut self, generation: u16, word: &str) {
        let random: u128 = self.rng.random();
        let group = formation::new_group(generation, random);
        let founding = Group::<D>::founding_snapshot(self.raft_id, &self.me, Registry::clone(&self.registry));
        self.create(group, &founding);
        if self.own_group() == Some(group) {
            self.log(LogLevel::Notice, format!("registry: {word} group {group}"));
        }
    }

    fn create(&mut self, group: GroupId, snapshot: &Snapshot) {
        let Part::Outside(disk) = &mut self.part else { return };
        let Some(disk) = disk.take() else { return };
        let identity = Identity {
            group,
            node: self.me.clone(),
            raft_id: self.raft_id,
        };
        match LogStorage::create(disk, identity, snapshot) {
            Ok(storage) => self.enter(storage),
            Err((disk, error)) => self.fail(Some(disk), &error),
        }
        self.hello_ms = self.now_ms;
    }

    /// Founds a group anew from what is applied here; the others will follow. For operators, when most logs are lost.
    pub fn recover(&mut self) -> Result<(), String> {
        let generation = self.own_group().map_or(0, formation::generation);
        let seen = self
            .said
            .values()
            .filter_map(|said| said.hello.group)
            .map(formation::generation)
            .max();
        let generation = generation
            .max(seen.unwrap_or(0))
            .checked_add(1)
            .ok_or("it was recovered too often")?;
        if let Part::Failed { error, .. } = &self.part {
            return Err(format!("ERR this node's log can not be written: {error}"));
        }
        if self.may_decide().is_ok() {
            return Err("ERR the group has a leader and a majority: there is nothing to recover".into());
        }
        self.leave("recovered");
        let moved = self.proposals.moved();
        self.fail_proposals(moved);
        self.found(generation, "recovered");
        self.flush();
        match &self.part {
            Part::In(_) => Ok(()),
            _ => Err("ERR the new log can not be written, see the server log".into()),
        }
    }

    pub(super) fn hello(&self, wants_answer: bool) -> GroupHello {
        let mut hello = GroupHello {
            group: None,
            raft_id: self.raft_id,
            leader: self.view.slot_zero.clone(),
            term: 0,
            commit: 0,
            applied: self.registry.index(),
            wants_answer,
        };
        if let Part::In(group) = &self.part {
            hello.group = Some(group.id);
            hello.leader = group.members.get(&group.leader()).cloned();
            (hello.term, hello.commit) = (group.term(), group.commit());
        }
        hello
    }

    pub(super) fn say_hello(&mut self) {
        let settled = match &self.part {
            Part::In(group) => !self.hold && group.leader() != 0 && group.members.contains_key(&self.raft_id),
            _ => false,
        };
        let pause = if settled {
            limits::HELLO_CALM
        } else {
            limits::HELLO_BUSY
        };
        self.hello_ms = self.now_ms + pause.as_millis() as u64;
        let hello = self.hello(false);
        for node in &self.up {
            self.outputs
                .push(Output::Send(node.clone(), RegistryMessage::Hello(hello.clone())));
        }
    }
}
