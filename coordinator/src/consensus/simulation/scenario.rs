//! One run: a cluster is formed, clients ask for changes while things go wrong, then all is mended and has to work.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use rand::RngExt;

use super::{
    cluster::Role,
    disk::Crash,
    history::Answer,
    net::Place,
    world::{Timer, World, short},
};
use crate::{
    limits,
    plan::{Mode, Plan, Reader},
    registry::{Command, EventSource, NewRegistration, Proposal, RegisterMode, Registry, RequestId, SessionChange},
};

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Quiet,
    Network,
    Crashes,
    Disks,
    /// Leaders are lost all the time, and those who elect the next one crash meanwhile and are back at once.
    Elections,
    Membership,
    /// Two clusters, each with a group, meet.
    Merge,
    Everything,
}

impl Trouble {
    pub const ALL: [Trouble; 8] = [
        Trouble::Quiet,
        Trouble::Network,
        Trouble::Crashes,
        Trouble::Disks,
        Trouble::Elections,
        Trouble::Membership,
        Trouble::Merge,
        Trouble::Everything,
    ];
}

/// Figures of a run.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Report {
    pub made: usize,
    pub refused: usize,
    pub no_quorum: usize,
    pub unknown: usize,
    pub fingerprint: u64,
}

pub(super) struct Run {
    pub world: World,
    trouble: Trouble,
    plan: Bytes,
    numbers: u64,
    /// Ids of registrations that were asked for.
    asked: Vec<Arc<str>>,
    /// Numbers of voters whose disk is lost or that are gone for good.
    lost: BTreeSet<u64>,
    /// Clusters that have met or will: parts of `world.nodes`.
    merged: bool,
    /// Groups that were there when they met.
    met: BTreeSet<String>,
}

fn plan() -> Bytes {
    let plan = Plan {
        reader: Reader::ShardsId,
        ops: vec![],
        mode: Mode::Async,
        function_names: vec!["f".into()],
        code: vec![7; 40],
        session: "s".into(),
        user: None,
    };
    plan.encode().expect("a plan").into()
}

impl Run {
    /// Makes the servers; nobody knows anybody.
    pub fn new(seed: u64, trouble: Trouble) -> Run {
        let mut run = Run {
            world: World::new(seed),
            trouble,
            plan: plan(),
            numbers: 0,
            asked: Vec::new(),
            lost: BTreeSet::new(),
            merged: trouble != Trouble::Merge,
            met: BTreeSet::new(),
        };
        let rng = &mut run.world.rng;
        let masters = *[1, 2, 3, 3, 3, 4, 5, 8].get(rng.random_range(0..8)).unwrap_or(&3);
        let replicas = rng.random_range(0..4).min(9 - masters);
        let second = if trouble == Trouble::Merge {
            rng.random_range(2..4)
        } else {
            0
        };
        for place in 0..masters + replicas + second {
            let second = place >= masters + replicas;
            let first_of_second = place == masters + replicas;
            run.add(place < masters || second, place == 0 || first_of_second);
        }
        // The first cluster, then the second one; each grows node by node.
        for place in 1..masters + replicas + second {
            let first = if place > masters + replicas {
                masters + replicas
            } else {
                0
            };
            if place != masters + replicas {
                let friend = run.world.rng.random_range(first..place);
                run.meet(friend, place);
            }
        }
        run
    }

    fn add(&mut self, slots: bool, zero: bool) -> Place {
        self.world.version += 1;
        let version = self.world.version;
        let role = Role {
            version,
            master: slots,
            slots,
        };
        let place = self.world.add_node(role, zero);
        self.world.nodes[place].alone = Arc::new(self.alone(place));
        let pause = self.world.rng.random_range(0..3000);
        self.world.timer(pause, Timer::Start(place));
        place
    }

    /// What a server registered before it was in a cluster.
    fn alone(&mut self, place: Place) -> Registry {
        let mut state = Registry::default();
        if self.world.rng.random() {
            let command = self.change(&format!("alone-{place}"), false, None);
            let proposal = Proposal {
                request: RequestId(self.world.rng.random()),
                basis: 0,
                command,
            };
            state.apply(1, &proposal).expect("a change of an empty registry");
        }
        state
    }

    fn change(&mut self, name: &str, upgrade: bool, replace: Option<&str>) -> Command {
        self.numbers += 1;
        let id: Arc<str> = format!("{:040}-{}", 0, self.numbers).into();
        let trigger = format!("trigger-{}", self.numbers).into();
        Command::ChangeSession(SessionChange {
            name: name.into(),
            description: None,
            user: None,
            requirements: Vec::new(),
            upgrade,
            replace: replace.map(Arc::from),
            join: false,
            registrations: vec![NewRegistration {
                id,
                source: EventSource::Command {
                    trigger,
                    inorder: false,
                },
                mode: RegisterMode::Sync,
                description: None,
                plan: self.plan.clone(),
                on_registered: None,
                on_unregistered: None,
            }],
        })
    }

    /// `CLUSTER MEET`.
    fn meet(&mut self, a: Place, b: Place) {
        let nodes = &mut self.world.nodes;
        let (role_a, role_b) = (nodes[a].belief.roles[&a], nodes[b].belief.roles[&b]);
        nodes[a].belief.take_role(b, role_b);
        nodes[b].belief.take_role(a, role_a);
        self.world.push_view(a);
        self.world.push_view(b);
    }

    /// Everything up to the end of the troubles.
    pub fn suffer(&mut self, duration_ms: u64) {
        let end_ms = self.world.now_ms + duration_ms;
        self.world.timer(500, Timer::Client);
        self.world.timer(1000, Timer::Fault);
        while let Some(timer) = self.world.run(end_ms) {
            match timer {
                Timer::Client => {
                    self.client();
                    let pause = self.world.rng.random_range(20..400);
                    self.world.timer(pause, Timer::Client);
                }
                Timer::Fault => {
                    self.fault();
                    let pause = self.world.rng.random_range(100..2500);
                    self.world.timer(pause, Timer::Fault);
                }
                Timer::Heal => self.world.net.unblock_all(),
                _ => {}
            }
        }
    }

    /// A client somewhere asks for something.
    fn client(&mut self) {
        let running = self.world.running();
        if running.is_empty() {
            return;
        }
        let place = running[self.world.rng.random_range(0..running.len())];
        let command = self.wish();
        self.world.propose(place, command);
    }

    fn wish(&mut self) -> Command {
        let session = format!("s{}", self.world.rng.random_range(0..6));
        let kind = self.world.rng.random_range(0..10);
        let command = match kind {
            0..3 => self.change(&session, false, None),
            3..6 => self.change(&session, true, None),
            6 => {
                let other = format!("s{}", self.world.rng.random_range(0..6));
                self.change(&session, false, Some(&other))
            }
            7..9 if !self.asked.is_empty() => {
                let recent = self.asked.len().saturating_sub(12);
                let id = self.asked[self.world.rng.random_range(recent..self.asked.len())].clone();
                Command::Unregister {
                    id,
                    abort_pending: false,
                }
            }
            _ => Command::ClearStatistics,
        };
        if let Command::ChangeSession(change) = &command {
            self.asked.extend(change.registrations.iter().map(|r| r.id.clone()));
        }
        command
    }

    fn fault(&mut self) {
        use Trouble::*;
        let kind = match self.trouble {
            Everything => [Network, Crashes, Disks, Elections, Membership][self.world.rng.random_range(0..5)],
            Merge => [Network, Crashes, Merge][self.world.rng.random_range(0..3)],
            other => other,
        };
        match kind {
            Network => self.network(),
            Crashes => self.crash(),
            Disks => self.disk(),
            Elections => self.election(),
            Membership => self.membership(),
            Merge => self.merge(),
            Quiet | Everything => {}
        }
    }

    /// Any node that was not removed.
    fn any(&mut self) -> Place {
        let places: Vec<Place> = (0..self.world.nodes.len())
            .filter(|p| !self.world.nodes[*p].dead)
            .collect();
        places[self.world.rng.random_range(0..places.len())]
    }

    fn network(&mut self) {
        let count = self.world.nodes.len();
        let kind = self.world.rng.random_range(0..6);
        self.world.note(|| format!("network trouble {kind}"));
        let one = self.any();
        match kind {
            // One is isolated, in one direction perhaps.
            0 | 1 => {
                for other in (0..count).filter(|other| *other != one) {
                    self.world.net.block(one, other);
                    if kind == 0 {
                        self.world.net.block(other, one);
                    }
                }
            }
            // Two halves.
            2 => {
                let side: Vec<bool> = (0..count).map(|_| self.world.rng.random()).collect();
                for a in 0..count {
                    for b in (0..count).filter(|b| side[*b] != side[a]) {
                        self.world.net.block(a, b);
                    }
                }
            }
            // Some pairs, in some direction.
            3 => {
                for _ in 0..count {
                    let (a, b) = (self.any(), self.any());
                    self.world.net.block(a, b);
                }
            }
            // Links break and come back.
            4 => {
                for _ in 0..count {
                    let (a, b, now_ms) = (self.any(), self.any(), self.world.now_ms);
                    self.world.net.flap(a, b, now_ms);
                }
            }
            _ => self.world.net.delay_ms = [2, 20, 150][self.world.rng.random_range(0..3)],
        }
        let pause = self.world.rng.random_range(200..8000);
        self.world.timer(pause, Timer::Heal);
    }

    fn crash(&mut self) {
        let place = self.any();
        if !self.world.alive(place) {
            return;
        }
        let pause = self.world.rng.random_range(50..5000);
        match self.world.rng.random_range(0..5) {
            0 => {
                self.world.nodes[place].paused = true;
                self.world.note(|| format!("n{place} is stopped for {pause} ms"));
                self.world.timer(pause, Timer::Resume(place));
            }
            1 => {
                let crash = self.crash_kind();
                self.world.crash(place, crash);
                self.world.timer(pause, Timer::Start(place));
            }
            2 => {
                // All at once.
                let crash = self.crash_kind();
                for place in 0..self.world.nodes.len() {
                    if self.world.nodes[place].member.is_some() {
                        self.world.crash(place, crash);
                        let pause = self.world.rng.random_range(50..2000);
                        self.world.timer(pause, Timer::Start(place));
                    }
                }
            }
            _ => {
                // Within one of its next steps; after that, leaders are likely victims.
                let leader = (0..self.world.nodes.len()).find(|p| self.world.nodes[*p].leads());
                let place = leader.filter(|_| self.world.rng.random()).unwrap_or(place);
                let count = self.world.rng.random_range(1..40);
                self.world.nodes[place].disk.stop_in(count);
            }
        }
    }

    fn crash_kind(&mut self) -> Crash {
        [Crash::Kill, Crash::LoseAll, Crash::LoseSome][self.world.rng.random_range(0..3)]
    }

    fn election(&mut self) {
        let Some(leader) = (0..self.world.nodes.len()).find(|p| self.world.nodes[*p].leads()) else {
            return;
        };
        self.world.net.delay_ms = self.world.rng.random_range(50..200);
        if self.world.rng.random() {
            self.world.nodes[leader].paused = true;
            let pause = self.world.rng.random_range(2000..4000);
            self.world.timer(pause, Timer::Resume(leader));
        } else {
            self.world.crash(leader, Crash::Kill);
            self.world.timer(3000, Timer::Start(leader));
        }
        self.world.note(|| format!("n{leader} leads no more"));
        self.world.restart_ms = 30;
        for place in (0..self.world.nodes.len()).filter(|place| *place != leader) {
            if self.world.rng.random() {
                let count = self.world.rng.random_range(2..12);
                self.world.nodes[place].disk.stop_in(count);
            }
        }
    }

    /// Whether the group lives on if this node never comes back under its number.
    fn may_lose(&self, place: Place) -> bool {
        let Some(group) = self.world.nodes[place].status.group.clone() else {
            return false;
        };
        let sets = self.world.voter_sets(&group);
        let mut lost = self.lost.clone();
        lost.insert(self.world.nodes[place].status.raft_id);
        !sets.is_empty()
            && sets
                .iter()
                .all(|voters| voters.len() >= 3 && voters.intersection(&lost).count() * 2 < voters.len())
    }

    fn disk(&mut self) {
        let place = self.any();
        let may_lose = self.may_lose(place);
        let id = self.world.nodes[place].status.raft_id;
        let kind = self.world.rng.random_range(0..5);
        let disk = self.world.nodes[place].disk.clone();
        match kind {
            0 => {
                let room = self.world.rng.random_range(0..2000);
                self.world.note(|| format!("n{place}: {room} bytes left on the disk"));
                disk.set_capacity(Some(disk.used() + room));
                self.world.nodes[place].disk_full_until_ms = self.world.now_ms + 4000;
            }
            1 => {
                let sync_ms = [1, 10, 100, 400][self.world.rng.random_range(0..4)];
                self.world.note(|| format!("n{place}: a sync takes {sync_ms} ms"));
                self.world.nodes[place].sync_ms = sync_ms;
            }
            2 if may_lose => {
                self.lost.insert(id);
                self.world.note(|| format!("n{place}: a sync will fail"));
                disk.fail_syncs(1);
            }
            3 if may_lose && self.world.nodes[place].member.is_some() => {
                self.lost.insert(id);
                self.world.crash(place, Crash::Kill);
                self.world.note(|| format!("n{place}: its disk is wiped"));
                disk.wipe();
                self.world.timer(100, Timer::Start(place));
            }
            4 if may_lose && self.world.nodes[place].member.is_some() => {
                self.lost.insert(id);
                self.world.crash(place, Crash::Kill);
                self.flip(place);
                self.world.timer(100, Timer::Start(place));
            }
            _ => {}
        }
        let now_ms = self.world.now_ms;
        for node in &mut self.world.nodes {
            if node.disk_full_until_ms < now_ms {
                node.disk.set_capacity(None);
            }
        }
    }

    fn flip(&mut self, place: Place) {
        let name = ["log", "snapshot"][self.world.rng.random_range(0..2)];
        let disk = self.world.nodes[place].disk.clone();
        let Some(mut bytes) = disk.content(name).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        let at = self.world.rng.random_range(0..bytes.len());
        if self.world.rng.random() {
            bytes[at] ^= 1 << self.world.rng.random_range(0..8);
            self.world.note(|| format!("n{place}: a bit of {name} flips at {at}"));
        } else {
            bytes.truncate(at);
            self.world.note(|| format!("n{place}: {name} is cut at {at}"));
        }
        disk.set_content(name, Some(bytes));
    }

    fn membership(&mut self) {
        match self.world.rng.random_range(0..6) {
            0 if self.world.nodes.len() < 12 => {
                let friend = self.any();
                let slots = self.world.rng.random();
                let place = self.add(slots, false);
                self.world.note(|| format!("n{place} meets n{friend}"));
                self.meet(friend, place);
            }
            1 | 2 => self.fail_over(),
            3 => self.forget(),
            _ => self.change_role(),
        }
    }

    /// Somebody takes over the slots of a master, perhaps of one that still runs.
    fn fail_over(&mut self) {
        let (old, new) = (self.any(), self.any());
        let nodes = &self.world.nodes;
        let belief = &nodes[new].belief;
        let has = |place: Place| belief.roles.get(&place).is_some_and(|r| r.slots);
        if old == new || !self.world.alive(new) || !has(old) || has(new) || !self.sees_most_masters(new) {
            return;
        }
        let zero = belief.slot_zero.is_some_and(|(_, owner)| owner == old);
        self.world.version += 1;
        let version = self.world.version;
        let role = |slots| Role {
            version,
            master: slots,
            slots,
        };
        let belief = &mut self.world.nodes[new].belief;
        belief.take_role(new, role(true));
        belief.take_role(old, role(false));
        if zero {
            belief.slot_zero = Some((version, new));
        }
        self.world.note(|| format!("n{new} takes over from n{old}"));
        self.world.push_view(new);
    }

    fn sees_most_masters(&self, place: Place) -> bool {
        let world = &self.world;
        let roles = &world.nodes[place].belief.roles;
        let masters: Vec<Place> = roles.iter().filter(|(_, r)| r.slots).map(|(p, _)| *p).collect();
        let seen = |p: &&Place| {
            **p == place || (world.alive(**p) && !world.net.is_blocked(place, **p) && !world.net.is_blocked(**p, place))
        };
        masters.iter().filter(seen).count() * 2 > masters.len()
    }

    /// A node is removed from the cluster: all others forget it; it may be replaced.
    fn forget(&mut self) {
        let place = self.any();
        let slots = self
            .world
            .nodes
            .iter()
            .any(|n| n.belief.roles.get(&place).is_some_and(|r| r.slots));
        let rest = self.world.nodes.iter().filter(|n| !n.dead).count();
        let voter = self.world.nodes.iter().any(|n| {
            n.status
                .members
                .iter()
                .any(|m| m.voter && m.node == self.world.nodes[place].id)
        });
        // Like operators do: slots are moved away first.
        if self.world.nodes[place].dead || slots || rest < 4 || (voter && !self.may_lose(place)) {
            return;
        }
        self.lost.insert(self.world.nodes[place].status.raft_id);
        self.world.note(|| format!("n{place} is removed"));
        self.world.crash(place, Crash::Kill);
        self.world.nodes[place].dead = true;
        for node in &mut self.world.nodes {
            node.belief.forget(place);
        }
        for other in 0..self.world.nodes.len() {
            self.world.push_view(other);
        }
    }

    /// A master without slots becomes a replica or the other way round; slot 0 moves.
    fn change_role(&mut self) {
        let place = self.any();
        if !self.world.alive(place) || !self.sees_most_masters(place) {
            return;
        }
        let belief = &self.world.nodes[place].belief;
        let (role, zero) = (belief.roles[&place], belief.slot_zero);
        self.world.version += 1;
        let version = self.world.version;
        let take_zero = role.slots && zero.is_some() && self.world.rng.random();
        let belief = &mut self.world.nodes[place].belief;
        if take_zero {
            belief.slot_zero = Some((version, place));
            self.world.note(|| format!("n{place} gets slot 0"));
        } else if !role.slots {
            let role = Role {
                version,
                master: !role.master,
                slots: false,
            };
            belief.take_role(place, role);
            self.world
                .note(|| format!("n{place} is a {}", if role.master { "master" } else { "replica" }));
        }
        self.world.push_view(place);
    }

    /// The two clusters meet, once each has its group.
    fn merge(&mut self) {
        if self.merged || self.world.now_ms < 8000 {
            return;
        }
        self.merged = true;
        self.met = self.world.nodes.iter().filter_map(|n| n.last_group.clone()).collect();
        let zeros = |p: &Place| {
            self.world.nodes[*p]
                .belief
                .slot_zero
                .is_some_and(|(_, owner)| owner == *p)
        };
        let owners: Vec<Place> = (0..self.world.nodes.len()).filter(zeros).collect();
        if let [a, b] = owners[..] {
            self.world.note(|| format!("n{a} and n{b} meet"));
            // Both think that slot 0 is theirs: the newer claim wins.
            self.meet(a, b);
        }
    }

    /// All troubles end.
    pub fn mend(&mut self) {
        self.world.note(|| "all is mended".into());
        self.world.net.unblock_all();
        self.world.net.delay_ms = 5;
        self.world.restart_ms = 1000;
        for place in 0..self.world.nodes.len() {
            let node = &mut self.world.nodes[place];
            node.disk.set_capacity(None);
            node.disk.fail_syncs(0);
            node.disk.never_stop();
            node.sync_ms = 1;
            self.world.timer(1, Timer::Resume(place));
            self.world.timer(10, Timer::Start(place));
        }
        // Who was introduced only to a node that is gone knows nobody.
        let alive: Vec<Place> = (0..self.world.nodes.len())
            .filter(|p| !self.world.nodes[*p].dead)
            .collect();
        if self.trouble != Trouble::Merge {
            for place in alive.iter().skip(1) {
                self.meet(alive[0], *place);
            }
        }
        if !self.merged {
            self.world.now_ms = self.world.now_ms.max(8000);
            self.merge();
        }
    }

    /// The nodes come to one group and one state, and take changes again; gives the group.
    pub fn recover(&mut self) -> String {
        let deadline_ms = self.world.now_ms + 90_000;
        let mut settled = 0;
        // Links, fail-overs and old proposals need some time.
        while settled < 8 {
            assert!(
                self.world.now_ms < deadline_ms,
                "no agreement: {}",
                self.disagreement().unwrap_or_default()
            );
            self.pass(500);
            settled = if self.disagreement().is_none() { settled + 1 } else { 0 };
        }
        let mut nodes: Vec<Place> = (0..self.world.nodes.len())
            .filter(|p| !self.world.nodes[*p].dead)
            .collect();
        if nodes.len() == 1 {
            // A server that is alone has no group.
            nodes.clear();
        }
        for place in nodes {
            let command = self.change(&format!("last-{place}"), false, None);
            let ticket = self.world.history.asked.len();
            self.world.propose(place, command);
            let answered = |run: &Run| run.world.history.asked[ticket].answer.is_some();
            for _ in 0..60 {
                if !answered(self) {
                    self.pass(100);
                }
            }
            let answer = &self.world.history.asked[ticket].answer;
            assert!(
                matches!(answer, Some(Answer::Made { .. })),
                "n{place} can not make a change: {answer:?}"
            );
        }
        self.pass(3000);
        assert_eq!(self.disagreement(), None);
        let alive = self.world.nodes.iter().find(|n| !n.dead);
        alive.and_then(|n| n.status.group.clone()).unwrap_or_default()
    }

    fn pass(&mut self, time_ms: u64) {
        let end_ms = self.world.now_ms + time_ms;
        while self.world.run(end_ms).is_some() {}
    }

    /// What is not yet as it should be.
    fn disagreement(&self) -> Option<String> {
        let nodes: Vec<_> = self.world.nodes.iter().filter(|n| !n.dead).collect();
        if nodes.len() == 1 {
            // A server that is alone need not have a group, but its disk works again.
            return (nodes[0].status.role == "failed").then(|| format!("{} is failed", nodes[0].id));
        }
        let first = &nodes[0].status;
        for node in &nodes {
            let status = &node.status;
            if status.group.is_none() || status.group != first.group {
                let (a, b) = (short(first.group.as_deref()), short(status.group.as_deref()));
                return Some(format!("{} is in group {b}, not {a}", node.id));
            }
            if status.applied != first.applied || status.leader.is_none() || status.leader != first.leader {
                return Some(format!(
                    "{} is at {} under {:?}",
                    node.id, status.applied, status.leader
                ));
            }
            if !matches!(status.role, "leader" | "follower" | "learner") {
                return Some(format!("{} is {}", node.id, status.role));
            }
        }
        let leader = nodes.iter().find(|n| n.leads())?;
        let there: BTreeSet<_> = nodes.iter().map(|n| &n.id).collect();
        let members: BTreeSet<_> = leader.status.members.iter().map(|m| &m.node).collect();
        if there != members || members.len() != leader.status.members.len() {
            return Some(format!("the members are {members:?}"));
        }
        let masters = leader.belief.roles.iter().filter(|(_, r)| r.slots).count();
        let voters = leader.status.members.iter().filter(|m| m.voter).count();
        if masters > 0 && voters < masters.min(limits::VOTERS) {
            return Some(format!("{voters} vote of {masters} masters"));
        }
        None
    }

    /// Only the cluster's group acknowledged changes. Of two clusters that were merged one loses what it had: then the
    /// other one's group, which was there when they met, is the cluster's now, never a third one.
    fn check_groups(&self, group: &str) {
        let groups = self.world.history.groups();
        let strange: Vec<_> = groups.iter().filter(|g| *g != group).collect();
        let most = usize::from(self.trouble == Trouble::Merge);
        assert!(
            strange.len() <= most,
            "changes were acknowledged by {strange:?}, but {group} is the cluster's group"
        );
        assert!(
            strange.is_empty() || self.met.contains(group),
            "{group} is the cluster's group, but was founded after {strange:?} had acknowledged changes"
        );
    }

    /// Everything that must hold now.
    pub fn check(&self, group: &str) -> Report {
        let world = &self.world;
        if let Some(last) = world.nodes.iter().filter(|n| !n.dead).find_map(|n| n.state.clone())
            && !group.is_empty()
        {
            world.history.check(group, &last);
            let sessions = last.sessions();
            let founders = sessions.iter().filter(|s| s.name.starts_with("alone-")).count();
            assert!(founders <= 1, "{founders} servers brought their own state");
        }
        self.check_groups(group);
        Report {
            made: world.history.count(|a| matches!(a, Answer::Made { .. })),
            refused: world.history.count(|a| matches!(a, Answer::Refused(_))),
            no_quorum: world.history.count(|a| matches!(a, Answer::NoQuorum)),
            unknown: world.history.count(|a| matches!(a, Answer::Unknown)),
            fingerprint: world.fingerprint,
        }
    }
}
