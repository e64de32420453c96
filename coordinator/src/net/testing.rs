//! Meshes in one process, and a handler that remembers.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{LogLevel, Mesh, MeshConfig, MeshHandler, PeerAddress};
use crate::{
    message::{ExecutionId, ExecutionMessage, Message},
    topology::NodeId,
};

/// What a handler has heard.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    Up(NodeId),
    Lost(NodeId, String),
    Message(NodeId, Message),
}

/// Remembers everything; can be told to block or to panic.
#[derive(Default)]
pub(super) struct Recorder {
    pub events: Mutex<Vec<Event>>,
    pub log: Mutex<Vec<String>>,
    pub is_blocked: AtomicBool,
    pub panics: AtomicU32,
}

impl MeshHandler for Recorder {
    fn on_message(&self, from: &NodeId, message: Message) {
        while self.is_blocked.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.panics.load(Ordering::SeqCst) > 0 {
            self.panics.fetch_sub(1, Ordering::SeqCst);
            panic!("a handler that panics, as the test wants it");
        }
        self.events.lock().push(Event::Message(from.clone(), message));
    }

    fn on_peer_up(&self, peer: &NodeId) {
        self.events.lock().push(Event::Up(peer.clone()));
    }

    fn on_peer_lost(&self, peer: &NodeId, reason: &str) {
        self.events.lock().push(Event::Lost(peer.clone(), reason.to_owned()));
    }

    fn log(&self, _level: LogLevel, text: &str) {
        self.log.lock().push(text.to_owned());
    }
}

/// A mesh and its memory.
pub(super) struct Node {
    pub mesh: Mesh,
    pub heard: Arc<Recorder>,
    pub id: NodeId,
}

pub(super) fn node_id(name: char) -> NodeId {
    NodeId::new(&name.to_string().repeat(40))
}

pub(super) fn config(name: char) -> MeshConfig {
    MeshConfig {
        node_id: node_id(name),
        listen: vec!["127.0.0.1".parse().unwrap()],
        port: 0,
        unix_dir: None,
        tls: None,
        cluster_secret: None,
        versions: "oxigears 0.1.0 python 3.11".into(),
    }
}

pub(super) fn start(name: char, change: impl FnOnce(&mut MeshConfig)) -> Node {
    let mut config = config(name);
    change(&mut config);
    let heard = Arc::new(Recorder::default());
    let id = config.node_id.clone();
    Node {
        mesh: Mesh::start(config, heard.clone()).unwrap(),
        heard,
        id,
    }
}

impl Node {
    pub(super) fn address(&self) -> PeerAddress {
        PeerAddress {
            id: self.id.clone(),
            host: "127.0.0.1".into(),
            redis_port: 7000,
        }
    }

    /// Ups and losses of a peer so far.
    pub(super) fn turns(&self, peer: &NodeId) -> Vec<&'static str> {
        let turn = |event: &Event| match event {
            Event::Up(id) if id == peer => Some("up"),
            Event::Lost(id, _) if id == peer => Some("lost"),
            _ => None,
        };
        self.heard.events.lock().iter().filter_map(turn).collect()
    }

    /// Messages from a peer so far.
    pub(super) fn messages(&self, peer: &NodeId) -> Vec<Message> {
        let message = |event: &Event| match event {
            Event::Message(from, message) if from == peer => Some(message.clone()),
            _ => None,
        };
        self.heard.events.lock().iter().filter_map(message).collect()
    }

    pub(super) fn last_error(&self, peer: &NodeId) -> String {
        let status = self.mesh.peers().into_iter().find(|status| status.id == *peer);
        status.and_then(|status| status.last_error).unwrap_or_default()
    }

    pub(super) fn logged(&self, text: &str) -> bool {
        self.heard.log.lock().iter().any(|line| line.contains(text))
    }
}

/// What the cluster bus does: announcements to all that want them, and the answers.
pub(super) fn introduce(nodes: &[&Node]) {
    for a in nodes {
        for b in nodes
            .iter()
            .filter(|b| b.id != a.id && a.mesh.wants_announcement_to(&b.id))
        {
            if b.mesh.on_announcement(&a.id, &a.mesh.announcement(&b.id)).unwrap() {
                a.mesh.on_announcement(&b.id, &b.mesh.announcement(&a.id)).unwrap();
            }
        }
    }
}

/// Makes all nodes members of one cluster.
pub(super) fn join(nodes: &[&Node]) {
    for node in nodes {
        node.mesh.set_peers(nodes.iter().map(|node| node.address()).collect());
    }
}

pub(super) fn all_up(nodes: &[&Node]) -> bool {
    nodes
        .iter()
        .all(|a| nodes.iter().all(|b| a.id == b.id || a.mesh.is_up(&b.id)))
}

/// Joins the nodes and waits until all are up.
pub(super) fn connect(nodes: &[&Node]) {
    join(nodes);
    until("all are up", nodes, || {
        introduce(nodes);
        all_up(nodes)
    });
}

/// Polls; a failure tells what all nodes heard.
pub(super) fn until(what: &str, nodes: &[&Node], mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_true() {
        if Instant::now() > deadline {
            for node in nodes {
                let events = node.heard.events.lock();
                eprintln!("{:?}: {} events, the last {:?}", node.id, events.len(), events.last());
                eprintln!("  peers {:?}\n  log {:#?}", node.mesh.peers(), node.heard.log.lock());
            }
            panic!("waited in vain until {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(super) fn query(id: u64) -> Message {
    Message::Query {
        id,
        what: "test".into(),
        argument: Bytes::from(id.to_le_bytes().to_vec()),
    }
}

pub(super) fn ids(messages: &[Message]) -> Vec<u64> {
    let id = |message: &Message| match message {
        Message::Query { id, .. } => Some(*id),
        _ => None,
    };
    messages.iter().filter_map(id).collect()
}

/// A batch of `bytes` bytes that are not all the same.
pub(super) fn batch(bytes: usize, sequence: u64) -> Message {
    let payload: Vec<u8> = (0..bytes).map(|i| (i / 7) as u8 ^ sequence as u8).collect();
    Message::Execution {
        execution: ExecutionId::new(&node_id('a'), 1),
        body: ExecutionMessage::Batch {
            exchange: 1,
            sequence,
            kind: crate::message::BatchKind::Records,
            batch: crate::codec::RecordBatch {
                bytes: payload.into(),
                records: 1,
            },
        },
    }
}

/// A directory that goes away with its owner.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("oxi-net-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
