//! One run: a cluster is formed, clients ask for changes while things go wrong, then all is mended and has to work.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use rand::RngExt;

use super::{
    cluster::Role,
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
    /// Voters lose their logs while leaders are lost.
    Damage,
    /// Slot 0 moves while the first group is founded.
    Founding,
}

impl Trouble {
    pub const ALL: [Trouble; 10] = [
        Trouble::Quiet,
        Trouble::Network,
        Trouble::Crashes,
        Trouble::Disks,
        Trouble::Elections,
        Trouble::Membership,
        Trouble::Merge,
        Trouble::Everything,
        Trouble::Damage,
        Trouble::Founding,
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
    pub trouble: Trouble,
    plan: Bytes,
    numbers: u64,
    /// Ids of registrations that were asked for.
    asked: Vec<Arc<str>>,
    /// Clusters that have met or will: parts of `world.nodes`.
    pub merged: bool,
    /// Groups that were there when they met.
    pub met: BTreeSet<String>,
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

    pub(super) fn add(&mut self, slots: bool, zero: bool) -> Place {
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
    pub(super) fn meet(&mut self, a: Place, b: Place) {
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
                    let most = if self.trouble == Trouble::Founding { 700 } else { 2500 };
                    let pause = self.world.rng.random_range(100..most);
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

    /// All troubles end.
    pub fn mend(&mut self) {
        self.world.note(|| "all is mended".into());
        self.world.net.unblock_all();
        self.world.net.delay_ms = 5;
        self.world.restart_ms = 1000;
        for place in 0..self.world.nodes.len() {
            let node = &mut self.world.nodes[place];
            node.disk.set_capacity(None);
            node.sync_fails = false;
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
