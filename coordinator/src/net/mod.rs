//! The mesh: how shards reach each other. gRPC links over TCP, TLS or Unix sockets, authenticated in both directions.
//!
//! The only place where tonic, TLS and sockets are used, and where wire types are known. It never runs Python, knows
//! nothing of executions, and looks into no record. Nothing here blocks: all work happens on one thread of its own.
//!
//! * `announce`: what a node tells its peers over the cluster bus; `auth`: tokens and proofs made of it.
//! * `listen`, `server`: the door and the links that peers open; `link`: the link to each peer.
//! * `peer`: when both directions together are up; `conn`: one connection; `tls`.
//! * `convert`: messages and frames; `fragment`: payloads in pieces.

mod announce;
mod auth;
mod conn;
mod convert;
mod convert_registry;
mod core;
mod fragment;
mod link;
mod listen;
mod peer;
mod server;
mod tls;

#[cfg(test)]
mod caller;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_door;
#[cfg(test)]
mod tests_strangers;
#[cfg(test)]
mod tests_tls;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};

use self::{
    announce::Announcement,
    core::{Core, supervise},
    listen::Listeners,
};
pub use self::{conn::Transport, tls::TlsFiles};
use crate::{
    limits::{BLOCKING_THREADS, MESSAGE_BYTES, MESSAGE_HEAD_BYTES, VERSIONS_BYTES},
    message::Message,
    topology::NodeId,
};

/// What a mesh is started with.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// This node.
    pub node_id: NodeId,
    /// Addresses to serve.
    pub listen: Vec<IpAddr>,
    /// Preferred port on all of them; another one is taken if it is not free, and in any case for 0.
    pub port: u16,
    /// Where to put a Unix socket for peers on the same machine.
    pub unix_dir: Option<PathBuf>,
    /// Mutual TLS; no Unix socket is used then.
    pub tls: Option<TlsFiles>,
    /// A secret that all nodes share, in addition to the tokens.
    pub cluster_secret: Option<Vec<u8>>,
    /// For instance `oxigears 0.1.0 python 3.11`; peers with another minor version of Python are refused.
    pub versions: String,
}

/// A member of the cluster, as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its node id.
    pub id: NodeId,
    /// IPv4 address, IPv6 address or host name.
    pub host: String,
    /// Its Redis port, which names it in the log.
    pub redis_port: u16,
}

/// The state of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its node id.
    pub id: NodeId,
    /// Both directions are usable.
    pub connected: bool,
    /// Its run id, once connected.
    pub run_id: Option<String>,
    /// Messages that wait for its link.
    pub pending: usize,
    /// Why it is not connected.
    pub last_error: Option<String>,
}

/// The server's log levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LogLevel {
    Debug,
    Verbose,
    Notice,
    Warning,
}

/// Hears what happens on the mesh. Called on the mesh's own thread: must not block.
///
/// For each peer `on_peer_up` and `on_peer_lost` alternate, and messages of the peer come only between the two.
pub trait MeshHandler: Send + Sync + 'static {
    /// A message of an authenticated peer; each peer's messages come in the order in which they were sent.
    fn on_message(&self, from: &NodeId, message: Message);
    /// Both directions are usable.
    fn on_peer_up(&self, peer: &NodeId);
    /// Messages on the way in either direction are gone. The mesh goes on trying as long as the peer is a member.
    fn on_peer_lost(&self, peer: &NodeId, reason: &str);
    /// A line for the server's log.
    fn log(&self, level: LogLevel, text: &str);
}

/// Why the mesh does not start, or an announcement is no good.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MeshError {
    #[error("the node id {0:?} is malformed")]
    NodeId(String),
    #[error("the versions text {0:?} is malformed")]
    Versions(String),
    #[error("the mesh cannot listen on {address}: {error}; check the server's bind addresses")]
    Listen { address: String, error: std::io::Error },
    #[error("the mesh cannot start its thread: {0}")]
    Runtime(std::io::Error),
    #[error("an announcement from {from} cannot be used: {reason}")]
    Announcement { from: NodeId, reason: &'static str },
}

/// Why a message was not taken.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SendError {
    #[error("{0} is not a member of the cluster")]
    UnknownPeer(NodeId),
    #[error("{peer} is not connected: {reason}")]
    NotConnected { peer: NodeId, reason: String },
    #[error("too many messages wait for {peer}")]
    QueueFull { peer: NodeId },
    #[error(
        "a message of {bytes} bytes is too large: shards exchange records of up to {MESSAGE_BYTES} bytes \
         and texts of up to {MESSAGE_HEAD_BYTES} bytes"
    )]
    TooLarge { bytes: usize },
}

/// The mesh of this node.
pub struct Mesh {
    core: Arc<Core>,
    runtime: Mutex<Option<Runtime>>,
}

impl Mesh {
    /// Listens and starts the mesh's thread.
    pub fn start(config: MeshConfig, handler: Arc<dyn MeshHandler>) -> Result<Mesh, MeshError> {
        if !auth::is_node_id(config.node_id.as_str()) {
            return Err(MeshError::NodeId(config.node_id.as_str().to_owned()));
        }
        if !auth::is_header_text(&config.versions, VERSIONS_BYTES) {
            return Err(MeshError::Versions(config.versions));
        }
        let listeners = Listeners::bind(&config, &*handler)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("oxi-mesh")
            .enable_all()
            .build()
            .map_err(MeshError::Runtime)?;
        let core = Core::new(config, &listeners, handler, runtime.handle().clone());
        let listeners = Arc::new(listeners);
        let serving = core.clone();
        supervise(&core, "the mesh server", move || {
            listen::serve(serving.clone(), listeners.clone())
        });
        Ok(Mesh {
            core,
            runtime: Mutex::new(Some(runtime)),
        })
    }

    /// Forty random hex digits: this life of the mesh.
    pub fn run_id(&self) -> &str {
        &self.core.run_id
    }

    /// The TCP port; 0 if no address was given.
    pub fn port(&self) -> u16 {
        self.core.port
    }

    /// The Unix socket, if there is one.
    pub fn unix_socket(&self) -> Option<&Path> {
        self.core.unix.as_deref()
    }

    /// The bytes that let exactly that peer in, to be sent over the cluster bus and to nobody else.
    pub fn announcement(&self, for_peer: &NodeId) -> Vec<u8> {
        let core = &self.core;
        let socket = core.unix.as_ref().filter(|_| !core.tls.is_on());
        let announcement = Announcement {
            port: core.port,
            unix: socket.and_then(|path| path.to_str()).map(str::to_owned),
            host: core.host.clone(),
            versions: core.versions.clone(),
            run_id: core.run_id.clone(),
            token: core.token_for(for_peer),
            knows: core.peer(for_peer).and_then(|peer| peer.known_run()),
        };
        announcement.encode()
    }

    /// Takes an announcement. True if the sender lacks ours: answer now.
    pub fn on_announcement(&self, from: &NodeId, bytes: &[u8]) -> Result<bool, MeshError> {
        let error = |reason| MeshError::Announcement {
            from: from.clone(),
            reason,
        };
        if *from == self.core.node_id || !auth::is_node_id(from.as_str()) {
            return Err(error("the sender is no peer"));
        }
        let announcement = Announcement::decode(bytes).map_err(error)?;
        let peer = self
            .core
            .peer_or_new(from)
            .ok_or_else(|| error("too many nodes announce themselves"))?;
        Ok(peer.announced(announcement, &self.core.run_id))
    }

    /// We have no good announcement of the peer, or do not know that it has ours.
    pub fn wants_announcement_to(&self, peer: &NodeId) -> bool {
        *peer != self.core.node_id && self.core.peer(peer).is_none_or(|peer| peer.wants_announcement())
    }

    /// The current members. Links are opened to them, and closed to all others.
    pub fn set_peers(&self, peers: Vec<PeerAddress>) {
        for peer in self.core.set_members(peers) {
            let core = self.core.clone();
            supervise(&self.core, "the link to a peer", move || {
                link::run(core.clone(), peer.clone())
            });
        }
    }

    /// Queues a message, in order per peer. Once taken it arrives, or the peer is reported lost.
    pub fn send(&self, to: &NodeId, mut message: Message) -> Result<(), SendError> {
        let head = convert::head_bytes(&message);
        let payload = convert::payload_mut(&mut message).map_or(0, |payload| payload.len());
        if head > MESSAGE_HEAD_BYTES || payload > MESSAGE_BYTES {
            return Err(SendError::TooLarge { bytes: head + payload });
        }
        let peer = self.core.peer(to).filter(|peer| peer.is_member());
        peer.ok_or_else(|| SendError::UnknownPeer(to.clone()))?.send(message)
    }

    /// Both directions are usable.
    pub fn is_up(&self, peer: &NodeId) -> bool {
        self.core.peer(peer).is_some_and(|peer| peer.is_up())
    }

    /// How long the peer has not been up; `None` if it is, the longest time if it is no member.
    pub fn down_for(&self, peer: &NodeId) -> Option<Duration> {
        self.core.peer(peer).map_or(Some(Duration::MAX), |peer| peer.down_for())
    }

    /// So many messages wait for the peer that none should be added but for what is under way.
    pub fn is_crowded(&self, peer: &NodeId) -> bool {
        self.core.peer(peer).is_some_and(|peer| peer.is_crowded())
    }

    /// What our link to the peer runs over, if there is one.
    pub fn transport(&self, peer: &NodeId) -> Option<Transport> {
        self.core.peer(peer)?.transport()
    }

    /// All members but this node, by id.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut all: Vec<PeerStatus> = self.core.all_peers().iter().filter_map(|peer| peer.status()).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Other certificate files, or TLS on or off, for connections from now on.
    pub fn set_tls(&self, files: Option<TlsFiles>) {
        self.core.tls.set(files);
    }

    /// Ends all links and stops listening. The handler is not called any more.
    pub fn shutdown(&self) {
        self.core.close();
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shutdown();
    }
}
