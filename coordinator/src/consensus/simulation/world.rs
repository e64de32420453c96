//! The simulated world: nodes with their disks, the network, the clock, and what is watched all the time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    sync::Arc,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    cluster::{Belief, Role},
    disk::{Crash, SimDisk},
    history::{Answer, History},
    net::{Change, Linked, Net, Place},
};
use crate::{
    consensus::{
        ClusterView, RegistryStatus,
        member::{Member, Output},
    },
    limits,
    message::RegistryMessage,
    registry::{Command, Registry},
    topology::NodeId,
};

/// Lines of the protocol that a failure prints.
const TRACE_LINES: usize = 60;

enum Input {
    Message(Place, RegistryMessage),
    SendFailed(Place),
    Peer(Place, bool),
    View(ClusterView),
    Tick,
    Propose(u64, Command),
}

/// One server.
pub(super) struct Node {
    pub id: NodeId,
    pub disk: SimDisk,
    /// `None` while it is down.
    pub member: Option<Member<SimDisk>>,
    /// Stopped by a signal; what comes in waits.
    pub paused: bool,
    /// Removed for good.
    pub dead: bool,
    /// What one sync takes.
    pub sync_ms: u64,
    pub disk_full_until_ms: u64,
    /// One of its next syncs fails, once the group could do without its log.
    pub sync_fails: bool,
    pub belief: Belief,
    /// The state that it held alone.
    pub alone: Arc<Registry>,
    pub status: RegistryStatus,
    /// The group in which it was last, and the voters that it knew there.
    pub last_group: Option<String>,
    quorums: Vec<BTreeSet<u64>>,
    /// Its log may change them.
    changing: bool,
    /// The newest state that it published.
    pub state: Option<Arc<Registry>>,
    inbox: VecDeque<Input>,
    busy_until_ms: u64,
    /// Counts its starts.
    pub life: u64,
    view: Option<ClusterView>,
    /// Groups that nodes on live links have named.
    said: BTreeMap<Place, Option<String>>,
    /// It knows of another group, without a break, since.
    foreign_since_ms: Option<u64>,
    /// It leads its group since.
    leads_since_ms: Option<u64>,
}

impl Node {
    pub fn leads(&self) -> bool {
        self.member.is_some() && self.status.role == "leader"
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    Tick(Place, u64),
    Gossip(Place),
    Wake(Place),
    Start(Place),
    Resume(Place),
    Links,
    Client,
    Fault,
    Heal,
}

pub(super) struct World {
    pub rng: StdRng,
    pub now_ms: u64,
    pub nodes: Vec<Node>,
    pub ids: Vec<NodeId>,
    /// Numbers of voters whose disk is lost or that are gone for good.
    pub lost: BTreeSet<u64>,
    pub net: Net,
    pub history: History,
    timers: BTreeMap<(u64, u64), Timer>,
    timer_count: u64,
    trace: VecDeque<String>,
    /// Version of the newest role in the cluster.
    pub version: u64,
    pub verbose: bool,
    /// Longest time until a machine that stopped is there again.
    pub restart_ms: u64,
    /// Hash of all that happened, to see that runs can be repeated.
    pub fingerprint: u64,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            now_ms: 1000,
            nodes: Vec::new(),
            ids: Vec::new(),
            lost: BTreeSet::new(),
            net: Net::default(),
            history: History::default(),
            timers: BTreeMap::new(),
            timer_count: 0,
            trace: VecDeque::new(),
            version: 0,
            verbose: std::env::var_os("OXIGEARS_SIM_VERBOSE").is_some(),
            restart_ms: 4000,
            fingerprint: 0,
        };
        world.net.delay_ms = world.rng.random_range(1..20);
        world.timer(1, Timer::Links);
        world
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        let text = format!("{:>7} {}", self.now_ms, text());
        self.fingerprint = self.fingerprint.rotate_left(5) ^ u64::from(crc32fast::hash(text.as_bytes()));
        if self.verbose {
            eprintln!("{text}");
        }
        self.trace.push_back(text);
        if self.trace.len() > TRACE_LINES {
            self.trace.pop_front();
        }
    }

    /// The last lines and where the nodes stand.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for line in &self.trace {
            let _ = writeln!(text, "{line}");
        }
        for (place, node) in self.nodes.iter().enumerate() {
            let s = &node.status;
            let state = match (&node.member, node.paused, node.dead) {
                (_, _, true) => "dead",
                (None, ..) => "down",
                (_, true, _) => "paused",
                _ => "runs",
            };
            let members = s
                .members
                .iter()
                .map(|m| (m.node.as_str(), m.raft_id % 10_000, m.voter, m.lag));
            let _ = writeln!(
                text,
                "n{place} {state} {} group {} id {} term {} commit {} applied {} {:?} {}",
                s.role,
                short(s.group.as_deref()),
                s.raft_id % 10_000,
                s.term,
                s.commit,
                s.applied,
                members.collect::<Vec<_>>(),
                s.error.as_deref().unwrap_or_default()
            );
        }
        text
    }

    pub fn timer(&mut self, in_ms: u64, timer: Timer) {
        self.timer_count += 1;
        self.timers.insert((self.now_ms + in_ms, self.timer_count), timer);
    }

    /// A new server that knows only itself.
    pub fn add_node(&mut self, role: Role, zero: bool) -> Place {
        let place = self.nodes.len();
        let id = NodeId::new(&format!("n{place}"));
        self.ids.push(id.clone());
        let mut belief = Belief::default();
        belief.take_role(place, role);
        belief.slot_zero = zero.then_some((role.version, place));
        self.nodes.push(Node {
            id,
            disk: SimDisk::new(self.rng.random()),
            member: None,
            paused: false,
            dead: false,
            sync_ms: 1,
            disk_full_until_ms: 0,
            sync_fails: false,
            belief,
            alone: Arc::default(),
            status: RegistryStatus::default(),
            last_group: None,
            quorums: Vec::new(),
            changing: false,
            state: None,
            inbox: VecDeque::new(),
            busy_until_ms: 0,
            life: 0,
            view: None,
            said: BTreeMap::new(),
            foreign_since_ms: None,
            leads_since_ms: None,
        });
        self.timer(1, Timer::Gossip(place));
        place
    }

    pub fn start(&mut self, place: Place) {
        let (seed, now_ms) = (self.rng.random(), self.now_ms);
        let node = &mut self.nodes[place];
        if node.member.is_some() || node.dead {
            return;
        }
        node.life += 1;
        let (id, alone, disk, life) = (node.id.clone(), node.alone.clone(), node.disk.clone(), node.life);
        (node.view, node.paused, node.busy_until_ms) = (None, false, 0);
        node.inbox.clear();
        self.let_sync_fail(place);
        self.nodes[place].member = Some(Member::open(id, seed, alone, disk, now_ms));
        self.note(|| format!("n{place} starts"));
        self.see_sync(place);
        self.after_work(place, 0);
        self.timer(1, Timer::Tick(place, life));
        self.push_view(place);
    }

    /// The process ends, perhaps with the machine.
    pub fn crash(&mut self, place: Place, crash: Crash) {
        self.note(|| format!("n{place} crashes, {crash:?}"));
        self.net.cut_off(place);
        let node = &mut self.nodes[place];
        node.member = None;
        node.disk.crash(crash);
        node.inbox.clear();
        node.said.clear();
        (node.status.role, node.foreign_since_ms, node.leads_since_ms) = ("down", None, None);
        node.paused = false;
    }

    pub fn alive(&self, place: Place) -> bool {
        let node = &self.nodes[place];
        node.member.is_some() && !node.paused
    }

    /// Nodes that are running.
    pub fn running(&self) -> Vec<Place> {
        (0..self.nodes.len()).filter(|place| self.alive(*place)).collect()
    }

    pub fn knows(&self, a: Place, b: Place) -> bool {
        self.nodes[a].belief.knows(b) && self.nodes[b].belief.knows(a)
    }

    /// Runs until the next timer that the caller has to see to, or until `end_ms`.
    pub fn run(&mut self, end_ms: u64) -> Option<Timer> {
        loop {
            let timer_ms = self.timers.first_key_value().map_or(u64::MAX, |(key, _)| key.0);
            let letter_ms = self.net.next_ms().unwrap_or(u64::MAX);
            let next_ms = timer_ms.min(letter_ms);
            if next_ms > end_ms {
                self.now_ms = end_ms;
                return None;
            }
            self.now_ms = self.now_ms.max(next_ms);
            if letter_ms <= timer_ms {
                if let Some(letter) = self.net.receive(self.now_ms) {
                    self.hand(letter.to, Input::Message(letter.from, letter.message));
                }
                continue;
            }
            let Some((_, timer)) = self.timers.pop_first() else {
                continue;
            };
            match timer {
                Timer::Tick(place, life) => self.tick(place, life),
                Timer::Gossip(place) => self.gossip(place),
                Timer::Wake(place) => self.work(place),
                Timer::Links => self.tend_links(),
                Timer::Start(place) => self.start(place),
                Timer::Resume(place) => {
                    self.nodes[place].paused = false;
                    self.work(place);
                }
                other => return Some(other),
            }
        }
    }

    fn tick(&mut self, place: Place, life: u64) {
        if self.nodes[place].life != life || self.nodes[place].member.is_none() {
            return;
        }
        if !self.nodes[place].paused {
            self.hand(place, Input::Tick);
        }
        let pause = limits::RAFT_TICK.as_millis() as u64;
        let pause = self.rng.random_range(pause * 9 / 10..=pause * 11 / 10);
        self.timer(pause, Timer::Tick(place, life));
    }

    fn tend_links(&mut self) {
        let nodes = &self.nodes;
        let linked = |a: Place, b: Place| {
            let (a, b, known) = (
                &nodes[a],
                &nodes[b],
                nodes[a].belief.knows(b) && nodes[b].belief.knows(a),
            );
            match a.member.is_some() && b.member.is_some() && known {
                false => Linked::No,
                true if a.paused || b.paused => Linked::Silent,
                true => Linked::Yes,
            }
        };
        let changes = self.net.tend(&mut self.rng, self.now_ms, nodes.len(), linked);
        for change in changes {
            let (a, b, up) = match change {
                Change::Up(a, b) => (a, b, true),
                Change::Down(a, b) => (a, b, false),
            };
            for (place, peer) in [(a, b), (b, a)] {
                if !up {
                    self.nodes[place].said.remove(&peer);
                    self.watch_foreign(place);
                }
                self.hand(place, Input::Peer(peer, up));
            }
        }
        self.timer(25, Timer::Links);
    }

    /// A node asks its neighbours what they believe.
    fn gossip(&mut self, place: Place) {
        let pause = self.rng.random_range(300..900);
        if !self.nodes[place].dead {
            self.timer(pause, Timer::Gossip(place));
        }
        if !self.alive(place) {
            return;
        }
        let mut belief = self.nodes[place].belief.clone();
        for other in 0..self.nodes.len() {
            let open = !self.net.is_blocked(place, other) && !self.net.is_blocked(other, place);
            if other != place && open && self.alive(other) && self.knows(place, other) {
                let others = self.nodes[other].belief.clone();
                belief.learn(place, other, &others, self.now_ms);
                // Who hears of a node meets it.
                let role = belief.roles[&place];
                self.nodes[other].belief.take_role(place, role);
            }
        }
        // A handshake with nodes that it has heard of.
        for other in belief.roles.keys().copied().filter(|other| *other != place) {
            let open = !self.net.is_blocked(place, other) && !self.net.is_blocked(other, place);
            let there = &mut self.nodes[other];
            if open && there.member.is_some() && !there.paused && !there.belief.forgotten.contains(&place) {
                there.belief.take_role(place, belief.roles[&place]);
            }
        }
        belief.judge(place, self.now_ms);
        self.nodes[place].belief = belief;
        self.push_view(place);
    }

    pub fn push_view(&mut self, place: Place) {
        let view = self.nodes[place].belief.view(&self.ids);
        let node = &mut self.nodes[place];
        if node.member.is_some() && node.view.as_ref() != Some(&view) {
            node.view = Some(view.clone());
            self.hand(place, Input::View(view));
        }
    }

    /// A client asks this node for a change.
    pub fn propose(&mut self, place: Place, command: Command) {
        let ticket = self.history.ask(command.clone(), self.now_ms);
        self.note(|| format!("n{place} change {ticket}: {}", brief(&command)));
        self.hand(place, Input::Propose(ticket, command));
    }

    fn hand(&mut self, place: Place, input: Input) {
        if self.nodes[place].member.is_none() {
            return;
        }
        self.nodes[place].inbox.push_back(input);
        self.work(place);
    }

    /// The node's thread: some inputs, then one flush.
    fn work(&mut self, place: Place) {
        loop {
            let batch = self.rng.random_range(1..5);
            let now_ms = self.now_ms;
            let node = &mut self.nodes[place];
            if node.paused || node.busy_until_ms > now_ms || node.inbox.is_empty() {
                return;
            }
            let Some(mut member) = node.member.take() else { return };
            let syncs = node.disk.syncs();
            let inputs: Vec<Input> = node.inbox.drain(..batch.min(node.inbox.len())).collect();
            self.let_sync_fail(place);
            for input in inputs {
                self.input(place, &mut member, input);
            }
            // What is written now may change the voters, and is sent before it is written.
            self.see_sync(place);
            self.see_voters(place, &member);
            self.let_sync_fail(place);
            member.flush();
            self.see_sync(place);
            self.nodes[place].member = Some(member);
            self.after_work(place, syncs);
        }
    }

    fn input(&mut self, place: Place, member: &mut Member<SimDisk>, input: Input) {
        match input {
            Input::Message(from, message) => {
                if let RegistryMessage::Hello(hello) = &message {
                    // Who has nothing of the log yet does not speak for the group.
                    let group = hello.group.filter(|_| hello.commit > 0).map(|group| group.to_string());
                    self.nodes[place].said.insert(from, group);
                    self.watch_foreign(place);
                }
                member.on_message(&self.ids[from], message);
            }
            Input::SendFailed(to) => member.on_send_failed(&self.ids[to]),
            Input::Peer(peer, up) => member.on_peer(&self.ids[peer], up),
            Input::View(view) => member.set_view(view),
            Input::Tick => member.tick(self.now_ms),
            Input::Propose(ticket, command) => member.propose(ticket, command, self.now_ms),
        }
    }

    fn after_work(&mut self, place: Place, syncs_before: u64) {
        let now_ms = self.now_ms;
        let node = &mut self.nodes[place];
        let Some(member) = &mut node.member else { return };
        let mut outputs = member.take_outputs();
        let before = std::mem::replace(&mut node.status, member.status());
        if node.status.group.is_some() {
            node.last_group.clone_from(&node.status.group);
            node.quorums = member.quorums();
            node.changing = member.has_change_in_log();
        }
        let took_ms = (node.disk.syncs() - syncs_before.min(node.disk.syncs())) * node.sync_ms;
        node.busy_until_ms = now_ms + took_ms;
        let stopped = node.disk.has_stopped();
        if before.role != node.status.role || before.group != node.status.group || before.term != node.status.term {
            let s = node.status.clone();
            self.note(|| {
                let error = s.error.unwrap_or_default();
                format!(
                    "n{place} is {} of {} in term {} {error}",
                    s.role,
                    short(s.group.as_deref()),
                    s.term
                )
            });
        }
        if stopped {
            // It ended somewhere between two of its sends.
            let kept = self.rng.random_range(0..=outputs.len());
            outputs.truncate(kept);
        }
        self.watch_role(place, &before);
        let group = self.nodes[place].status.group.clone().or(before.group);
        for output in outputs {
            self.output(place, group.as_deref(), output);
        }
        if stopped {
            let crash = [Crash::Kill, Crash::LoseAll, Crash::LoseSome][self.rng.random_range(0..3)];
            self.crash(place, crash);
            let pause = self.rng.random_range(5..self.restart_ms);
            self.timer(pause, Timer::Start(place));
        } else if took_ms > 0 {
            self.timer(took_ms, Timer::Wake(place));
        }
    }

    fn output(&mut self, place: Place, group: Option<&str>, output: Output) {
        match output {
            Output::Send(to, message) => {
                let Some(to) = self.ids.iter().position(|id| *id == to) else {
                    return;
                };
                let at_ms = self.nodes[place].busy_until_ms;
                if !self.net.send(&mut self.rng, at_ms, place, to, message) {
                    self.nodes[place].inbox.push_back(Input::SendFailed(to));
                }
            }
            Output::Published(state) => {
                if let Some(group) = group {
                    self.history.published(group, &state);
                }
                self.nodes[place].state = Some(state);
            }
            Output::Done(ticket, result) => self.answered(place, group, ticket, result),
            Output::Log(_, text) => self.note(|| format!("n{place} {text}")),
        }
    }

    fn answered(
        &mut self,
        place: Place,
        group: Option<&str>,
        ticket: u64,
        result: Result<u64, crate::consensus::ProposeError>,
    ) {
        let answer = self.history.answer(ticket, group.map(str::to_owned), result);
        self.note(|| format!("n{place} change {ticket}: {answer:?}"));
        let asked_ms = self.history.asked[ticket as usize].at_ms;
        let Answer::Made { group, .. } = answer else { return };
        // Who led only an earlier term, and does not know yet that it is over, did not lead this change.
        let term = self.history.last_term(&group);
        for leader in self
            .nodes
            .iter()
            .filter(|node| node.status.group.as_ref() == Some(&group) && node.status.term == term)
        {
            // Its own view of the cluster comes a little later than ours.
            let early = |since: Option<u64>| since.is_some_and(|since| since + 500 < asked_ms);
            assert!(
                !(early(leader.leads_since_ms) && early(leader.foreign_since_ms)),
                "{} led a change of group {group} although it knew of another group",
                leader.id
            );
        }
    }

    /// Notes whether a node knows of another group in its cluster.
    fn watch_foreign(&mut self, place: Place) {
        let node = &mut self.nodes[place];
        let own = node.status.group.clone();
        let roles = &node.belief.roles;
        let is_foreign = |(peer, group): (&Place, &Option<String>)| {
            roles.contains_key(peer) && group.is_some() && own.is_some() && *group != own
        };
        match node.said.iter().any(is_foreign) {
            true => node.foreign_since_ms = node.foreign_since_ms.or(Some(self.now_ms)),
            false => node.foreign_since_ms = None,
        }
    }

    fn watch_role(&mut self, place: Place, before: &RegistryStatus) {
        let node = &mut self.nodes[place];
        let status = &node.status;
        let leads = status.role == "leader";
        let same = before.role == status.role && before.term == status.term && before.group == status.group;
        match leads {
            true if same => node.leads_since_ms = node.leads_since_ms.or(Some(self.now_ms)),
            true => node.leads_since_ms = Some(self.now_ms),
            false => node.leads_since_ms = None,
        }
        if let (true, Some(group)) = (leads, &status.group) {
            self.history.led(group, status.term, status.raft_id);
        }
        if before.group != status.group {
            self.watch_foreign(place);
        }
    }

    /// Who votes by the log that the node is about to write; asked only if that may fail.
    fn see_voters(&mut self, place: Place, member: &Member<SimDisk>) {
        let node = &mut self.nodes[place];
        if node.sync_fails && node.status.group.is_some() && member.status().group == node.status.group {
            (node.quorums, node.changing) = (member.quorums(), member.has_change_in_log());
        }
    }

    /// Lets the node's next sync fail if that was asked for and the group can do without its log now.
    fn let_sync_fail(&self, place: Place) {
        let node = &self.nodes[place];
        node.disk.fail_syncs(u32::from(node.sync_fails && self.may_lose(place)));
    }

    /// Notes whether the sync that was to fail has failed.
    fn see_sync(&mut self, place: Place) {
        let node = &mut self.nodes[place];
        if node.disk.take_failed_syncs() > 0 {
            node.sync_fails = false;
            self.lost.insert(node.status.raft_id);
        }
    }

    /// Whether the group lives on if this node never comes back under its number.
    pub fn may_lose(&self, place: Place) -> bool {
        let Some(group) = &self.nodes[place].status.group else {
            return false;
        };
        let Some(sets) = self.voter_sets(group) else {
            return false;
        };
        let mut lost = self.lost.clone();
        lost.insert(self.nodes[place].status.raft_id);
        !sets.is_empty()
            && sets
                .iter()
                .all(|voters| voters.len() >= 3 && voters.intersection(&lost).count() * 2 < voters.len())
    }

    /// The sets of voters that nodes of the group have last known; `None` while they may be changing.
    pub fn voter_sets(&self, group: &str) -> Option<BTreeSet<BTreeSet<u64>>> {
        let nodes = self
            .nodes
            .iter()
            .filter(|node| !node.dead && node.last_group.as_deref() == Some(group));
        let settled = nodes.clone().all(|node| !node.changing);
        settled.then(|| nodes.flat_map(|node| node.quorums.iter().cloned()).collect())
    }
}

pub(super) fn short(group: Option<&str>) -> &str {
    group.map_or("-", |group| &group[24..])
}

fn brief(command: &Command) -> String {
    match command {
        Command::ChangeSession(change) => {
            let id = change.registrations.first().map_or("", |r| &r.id);
            let kind = match (change.upgrade, &change.replace) {
                (_, Some(_)) => "replace",
                (true, _) => "upgrade",
                _ => "create",
            };
            format!("{kind} {} with {id}", change.name)
        }
        Command::Unregister { id, .. } => format!("unregister {id}"),
        other => format!("{other:?}"),
    }
}
