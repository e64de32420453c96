//! A few members that talk to each other directly, on real files; the simulation does the wild things.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    ClusterNode, ClusterView, ProposeError,
    disk::FileDisk,
    member::{Member, Output},
    simulation::disk::SimDisk,
};
use crate::{
    limits,
    message::{GroupHello, GroupId, RegistryMessage},
    plan::{Mode, Plan, Reader},
    registry::{Command, EventSource, NewRegistration, RegisterMode, Registry, SessionChange},
    topology::NodeId,
};

/// Nodes with the names `a`, `b`, ...
struct Net {
    dir: tempdir::Dir,
    members: BTreeMap<NodeId, Member<FileDisk>>,
    wires: VecDeque<(NodeId, NodeId, RegistryMessage)>,
    /// Nodes that nobody reaches.
    cut: BTreeSet<NodeId>,
    done: BTreeMap<u64, Result<u64, ProposeError>>,
    view: ClusterView,
    now_ms: u64,
    tickets: u64,
}

mod tempdir {
    //! A folder of a test, removed with it.

    pub struct Dir(pub std::path::PathBuf);

    impl Dir {
        pub fn new() -> Dir {
            let path = std::env::temp_dir().join(format!("oxigears-test-{:032x}", rand::random::<u128>()));
            std::fs::create_dir_all(&path).unwrap();
            Dir(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Net {
    fn new(nodes: &str) -> Net {
        let mut net = Net {
            dir: tempdir::Dir::new(),
            members: BTreeMap::new(),
            wires: VecDeque::new(),
            cut: BTreeSet::new(),
            done: BTreeMap::new(),
            view: ClusterView {
                nodes: Vec::new(),
                slot_zero: Some(NodeId::new("a")),
            },
            now_ms: 1000,
            tickets: 0,
        };
        for node in nodes.split_whitespace() {
            net.meet(node);
        }
        net
    }

    fn folder(&self, node: &str) -> PathBuf {
        self.dir.0.join(node)
    }

    /// A node joins the cluster.
    fn meet(&mut self, node: &str) {
        self.view.nodes.push(ClusterNode {
            id: NodeId::new(node),
            master: true,
            has_slots: true,
            failed: false,
        });
        self.start(node);
        self.spread_view();
    }

    fn spread_view(&mut self) {
        for member in self.members.values_mut() {
            member.set_view(self.view.clone());
        }
    }

    fn start(&mut self, node: &str) {
        let (id, disk) = (NodeId::new(node), FileDisk::new(&self.folder(node)));
        let alone = Arc::new(Registry::default());
        let mut member = Member::open(id.clone(), rand::random(), alone, disk, self.now_ms);
        member.await_newest();
        member.set_view(self.view.clone());
        for (other, peer) in &mut self.members {
            member.on_peer(other, true);
            peer.on_peer(&id, true);
        }
        self.members.insert(id, member);
    }

    fn stop(&mut self, node: &str) {
        let id = NodeId::new(node);
        self.members.remove(&id);
        for peer in self.members.values_mut() {
            peer.on_peer(&id, false);
        }
    }

    fn cut(&mut self, node: &str, cut: bool) {
        let id = NodeId::new(node);
        let others: Vec<NodeId> = self.members.keys().filter(|other| **other != id).cloned().collect();
        for other in others {
            self.members.get_mut(&other).unwrap().on_peer(&id, !cut);
            self.members.get_mut(&id).unwrap().on_peer(&other, !cut);
        }
        match cut {
            true => self.cut.insert(id),
            false => self.cut.remove(&id),
        };
    }

    /// Time goes on, messages arrive.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now_ms += 50;
            for member in self.members.values_mut() {
                member.tick(self.now_ms);
                member.flush();
            }
            self.carry();
        }
    }

    fn carry(&mut self) {
        for _ in 0..10_000 {
            for (id, member) in &mut self.members {
                for output in member.take_outputs() {
                    match output {
                        Output::Send(to, message) => self.wires.push_back((id.clone(), to, message)),
                        Output::Done(ticket, result) => _ = self.done.insert(ticket, result),
                        Output::Published(_) | Output::Log(..) => {}
                    }
                }
            }
            let Some((from, to, message)) = self.wires.pop_front() else {
                return;
            };
            if self.cut.contains(&from) != self.cut.contains(&to) || self.cut.contains(&to) {
                continue;
            }
            if let Some(member) = self.members.get_mut(&to) {
                member.on_message(&from, message);
                member.flush();
            }
        }
        panic!("messages without an end");
    }

    fn propose(&mut self, node: &str, session: &str) -> u64 {
        self.tickets += 1;
        let (ticket, now_ms) = (self.tickets, self.now_ms);
        let member = self.members.get_mut(&NodeId::new(node)).unwrap();
        member.propose(ticket, create(session, ticket), now_ms);
        member.flush();
        ticket
    }

    fn create(&mut self, node: &str, session: &str) {
        let ticket = self.propose(node, session);
        self.run(1000);
        assert!(
            matches!(self.done.get(&ticket), Some(Ok(_))),
            "{session}: {:?}",
            self.done.get(&ticket)
        );
    }

    fn leader(&self) -> String {
        let leaders = self
            .members
            .iter()
            .filter(|(id, m)| !self.cut.contains(id) && m.status().role == "leader");
        leaders.map(|(id, _)| id.to_string()).next().expect("a leader")
    }

    fn sessions(&self, node: &str) -> Vec<String> {
        let registry = self.members[&NodeId::new(node)].registry();
        registry.sessions().iter().map(|s| s.name.to_string()).collect()
    }

    fn check_some(&self, nodes: &[&str], expected: &[&str]) {
        for node in nodes {
            assert_eq!(self.sessions(node), expected, "{node}");
        }
    }

    fn check_all(&self, expected: &[&str]) {
        for (id, member) in &self.members {
            assert_eq!(self.sessions(id.as_str()), expected, "{id}: {:?}", member.status());
            let votes = member.status().members.iter().filter(|m| m.voter).count();
            assert_eq!(votes, self.members.len(), "{id}: {:?}", member.status());
        }
    }
}

fn create(session: &str, number: u64) -> Command {
    let plan = Plan {
        reader: Reader::Command,
        ops: Vec::new(),
        mode: Mode::AsyncLocal,
        function_names: Vec::new(),
        code: Vec::new(),
        session: session.to_owned(),
        user: None,
    };
    Command::ChangeSession(SessionChange {
        name: session.into(),
        description: None,
        user: None,
        requirements: Vec::new(),
        upgrade: false,
        replace: None,
        join: false,
        registrations: vec![NewRegistration {
            id: format!("{}-{number}", "0".repeat(40)).into(),
            source: EventSource::Command {
                trigger: Bytes::copy_from_slice(session.as_bytes()),
                inorder: false,
            },
            mode: RegisterMode::Sync,
            description: None,
            plan: plan.encode().unwrap().into(),
            on_registered: None,
            on_unregistered: None,
        }],
    })
}

#[test]
fn nodes_that_meet_agree() {
    let mut net = Net::new("a b c");
    net.run(4000);
    net.create("a", "one");
    net.create("c", "two");
    net.check_all(&["one", "two"]);
    let ticket = net.propose("b", "one");
    net.run(1000);
    let text = net.done[&ticket].as_ref().unwrap_err().to_string();
    assert_eq!(text, "Session one already exists");
}

#[test]
fn a_cluster_grows_node_by_node() {
    let mut net = Net::new("a b");
    net.run(4000);
    net.create("b", "early");
    net.meet("c");
    net.meet("d");
    net.run(4000);
    net.create("d", "late");
    net.check_all(&["early", "late"]);
}

#[test]
fn without_the_owner_of_slot_zero_nobody_founds() {
    let mut net = Net::new("b c");
    net.run(4000);
    let ticket = net.propose("b", "early");
    net.run(5000);
    let text = net.done[&ticket].as_ref().unwrap_err().to_string();
    assert!(text.starts_with("NOQUORUM"), "{text}");
    net.meet("a");
    net.run(4000);
    net.create("c", "one");
    net.check_all(&["one"]);
}

#[test]
fn a_restart_of_all_keeps_everything() {
    let mut net = Net::new("a b c");
    net.run(4000);
    net.create("a", "one");
    for node in ["a", "b", "c"] {
        net.stop(node);
    }
    for node in ["c", "b", "a"] {
        net.start(node);
        assert_eq!(net.sessions(node), ["one"], "from the log, before anybody is asked");
    }
    net.run(4000);
    net.create("b", "two");
    net.check_all(&["one", "two"]);
}

#[test]
fn without_the_leader_the_others_go_on() {
    let mut net = Net::new("a b c");
    net.run(4000);
    net.create("a", "one");
    let leader = net.leader();
    net.cut(&leader, true);
    let lonely = net.propose(&leader, "lonely");
    net.run(5000);
    let text = net.done[&lonely].as_ref().unwrap_err().to_string();
    assert!(text.starts_with("NOQUORUM"), "{text}");
    let other = net.leader();
    assert_ne!(other, leader);
    net.create(&other, "two");
    net.cut(&leader, false);
    net.run(4000);
    net.check_all(&["one", "two"]);
}

#[test]
fn a_lost_or_damaged_log_comes_back_under_a_new_number() {
    let mut net = Net::new("a b c");
    net.run(4000);
    net.create("a", "one");
    for spoil in [
        |folder: PathBuf| std::fs::remove_dir_all(folder).unwrap(),
        |folder: PathBuf| {
            let log = std::fs::File::options().write(true).open(folder.join("log")).unwrap();
            // Behind the last synced batch there may be a note that nothing depends on.
            log.set_len(log.metadata().unwrap().len() / 2).unwrap();
        },
        |folder: PathBuf| {
            let path = folder.join("log");
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(path, bytes).unwrap();
        },
    ] {
        let number = |net: &Net| net.members[&NodeId::new("b")].status().raft_id;
        let before = number(&net);
        net.create("a", &format!("s{before}"));
        net.stop("b");
        spoil(net.folder("b"));
        net.start("b");
        net.run(6000);
        assert_ne!(number(&net), before);
        let all = net.sessions("a");
        net.check_all(&all.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn two_groups_become_one() {
    let mut net = Net::new("a b c");
    net.run(4000);
    net.create("a", "ours");
    let mut other = Net::new("x");
    other.view.slot_zero = Some(NodeId::new("x"));
    other.meet("y");
    other.run(4000);
    other.create("x", "theirs");
    // The two clusters meet; the smaller one gives way.
    for node in ["x", "y"] {
        other.stop(node);
        std::fs::rename(other.folder(node), net.folder(node)).unwrap();
        net.meet(node);
    }
    net.run(8000);
    net.create("y", "both");
    net.check_all(&["both", "ours"]);
    let kept = std::fs::read_dir(&net.dir.0).unwrap();
    let names: Vec<String> = kept.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("x.replaced")), "{names:?}");
}

#[test]
fn a_group_without_most_masters_takes_no_changes() {
    let mut net = Net::new("a b");
    net.run(4000);
    net.create("a", "early");
    for node in ["c", "d", "e"] {
        net.meet(node);
        net.cut(node, true);
    }
    let ticket = net.propose("b", "few");
    net.run(5000);
    let text = net.done[&ticket].as_ref().unwrap_err().to_string();
    assert!(
        text.starts_with("NOQUORUM") && text.contains("most masters do not take part"),
        "{text}"
    );
    net.cut("c", false);
    net.run(4000);
    net.create("b", "most");
    net.check_some(&["a", "b", "c"], &["early", "most"]);
}

#[test]
fn forgotten_nodes_leave() {
    let mut net = Net::new("a b c d");
    net.run(5000);
    net.create("a", "one");
    net.stop("d");
    net.view.nodes.retain(|node| node.id.as_str() != "d");
    net.spread_view();
    net.run(8000);
    net.create("b", "two");
    net.check_all(&["one", "two"]);
}

#[test]
fn an_operator_recovers_from_the_loss_of_most_logs() {
    let mut net = Net::new("a b c");
    net.run(4000);
    net.create("a", "one");
    for node in ["b", "c"] {
        net.stop(node);
        std::fs::remove_dir_all(net.folder(node)).unwrap();
        net.start(node);
    }
    net.run(6000);
    let ticket = net.propose("a", "stuck");
    net.run(5000);
    assert!(net.done[&ticket].is_err());
    net.members.get_mut(&NodeId::new("a")).unwrap().recover().unwrap();
    net.run(6000);
    net.create("c", "two");
    net.check_all(&["one", "two"]);
}

/// How far the registry of a node has to be before anything runs there: `None` if that is not known yet, 0 if any will do.
fn awaited(net: &Net, node: &str) -> Option<u64> {
    let index = net.members[&NodeId::new(node)].awaited_index();
    (index < u64::MAX).then_some(index)
}

#[test]
fn a_node_that_was_away_knows_when_it_has_what_was_decided_meanwhile() {
    for leader_goes in [false, true] {
        let mut net = Net::new("a b c");
        net.run(6000);
        net.create("a", "one");
        let leader = net.leader();
        let away = if leader == "a" { "b" } else { "a" };
        net.stop(away);
        net.create("c", "two");
        let gone = leader_goes.then_some(leader.as_str());
        if let Some(gone) = gone {
            // Whoever leads next knows only after a while what has been decided.
            net.stop(gone);
        }
        net.start(away);
        assert_eq!(awaited(&net, away), None);
        let mut waited = 0;
        while awaited(&net, away).is_none_or(|index| net.members[&NodeId::new(away)].registry().index() < index) {
            net.run(50);
            waited += 50;
            assert!(waited < 10_000);
        }
        assert_ne!(awaited(&net, away), Some(0), "it has heard, not given up");
        assert_eq!(net.sessions(away), ["one", "two"]);
        net.run(4000);
        assert_eq!(awaited(&net, away), Some(0));
    }
}

#[test]
fn a_node_that_finds_nobody_goes_on_with_what_it_has() {
    let mut net = Net::new("a b c");
    assert_eq!(awaited(&net, "a"), Some(0), "it has no log from before");
    net.run(6000);
    net.create("a", "one");
    for node in ["a", "b", "c"] {
        net.stop(node);
    }
    net.start("a");
    let most = limits::NEWEST_WAIT.as_millis() as u64;
    net.run(most - 100);
    assert_eq!(awaited(&net, "a"), None);
    net.run(200);
    assert_eq!(awaited(&net, "a"), Some(0));
}

/// Node `a` in a group of which it is the only voter.
fn sole_voter(disk: &SimDisk) -> Member<SimDisk> {
    let mut member = Member::open(NodeId::new("a"), 1, Arc::default(), disk.clone(), 1000);
    member.set_view(view(&[("a", true)]));
    for now_ms in (1050..4000).step_by(50) {
        member.tick(now_ms);
        member.flush();
    }
    assert_eq!(member.status().role, "leader");
    member
}

/// Masters, and whether they have slots.
fn view(nodes: &[(&str, bool)]) -> ClusterView {
    let node = |(id, has_slots): &(&str, bool)| ClusterNode {
        id: NodeId::new(id),
        master: true,
        has_slots: *has_slots,
        failed: false,
    };
    ClusterView {
        nodes: nodes.iter().map(node).collect(),
        slot_zero: Some(NodeId::new("a")),
    }
}

#[test]
fn the_only_voter_that_loses_its_log_founds_the_group_anew() {
    let disk = SimDisk::new(1);
    let mut member = sole_voter(&disk);
    let group = member.status().group.unwrap();
    disk.fail_syncs(1);
    member.propose(1, create("one", 1), 4000);
    for now_ms in (4000..8000).step_by(50) {
        member.tick(now_ms);
        member.flush();
    }
    let anew = member.status().group.unwrap();
    assert_eq!((&group[..4], &anew[..4]), ("0000", "0001"));
}

#[test]
fn the_only_voter_speaks_for_the_cluster_unless_its_group_is_small_and_there_is_another_one() {
    let mut member = sole_voter(&SimDisk::new(1));
    assert!(member.decides_alone());
    let of_three = view(&[("a", true), ("b", true), ("c", true)]);
    member.set_view(of_three);
    assert!(member.decides_alone(), "it knows of no other group");
    let hello = GroupHello {
        group: Some(GroupId(7)),
        raft_id: 5,
        leader: None,
        term: 1,
        commit: 5,
        applied: 5,
        wants_answer: false,
    };
    let b = NodeId::new("b");
    member.on_peer(&b, true);
    member.on_message(&b, RegistryMessage::Hello(hello));
    member.tick(4050);
    assert!(!member.decides_alone(), "the other group may be the cluster's");
    member.set_view(view(&[("a", true), ("b", false), ("c", false)]));
    member.tick(4100);
    assert!(member.decides_alone(), "most masters with slots are in its group");
}
