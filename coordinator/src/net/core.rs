//! What all tasks of a mesh share: identity, secrets, the table of peers, the way to the handler.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};
use tokio::{runtime::Handle, task::JoinHandle};

use super::{
    LogLevel, MeshConfig, MeshHandler, PeerAddress, announce,
    auth::{self, Key},
    conn::Census,
    listen::Listeners,
    peer::Peer,
    tls::TlsSource,
};
use crate::{
    limits::{RECONNECT_FIRST, REFUSAL_LOG_EVERY, STRANGE_ANNOUNCEMENTS},
    topology::NodeId,
};

/// Shared by all tasks of a mesh.
pub(super) struct Core {
    pub node_id: NodeId,
    pub run_id: String,
    pub versions: String,
    pub host: String,
    pub port: u16,
    pub unix: Option<PathBuf>,
    /// Device and inode of the socket: only our own file is removed.
    unix_inode: Option<(u64, u64)>,
    secret: Key,
    cluster_secret: Option<Vec<u8>>,
    pub tls: TlsSource,
    pub census: Arc<Census>,
    handler: Arc<dyn MeshHandler>,
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    generations: AtomicU64,
    refusals: Mutex<(Option<Instant>, u64)>,
    closed: AtomicBool,
    runtime: Handle,
}

impl Core {
    pub(super) fn new(
        config: MeshConfig,
        listeners: &Listeners,
        handler: Arc<dyn MeshHandler>,
        runtime: Handle,
    ) -> Arc<Core> {
        let unix = listeners.unix_path().map(PathBuf::from);
        Arc::new(Core {
            node_id: config.node_id,
            run_id: auth::random_run_id(),
            versions: config.versions,
            host: announce::host_identity(),
            port: listeners.port(),
            unix_inode: unix
                .as_ref()
                .and_then(|path| path.metadata().ok())
                .map(|m| (m.dev(), m.ino())),
            unix,
            secret: auth::random_key(),
            cluster_secret: config.cluster_secret,
            tls: TlsSource::new(config.tls),
            census: Arc::default(),
            handler,
            peers: RwLock::default(),
            generations: AtomicU64::new(1),
            refusals: Mutex::new((None, 0)),
            closed: AtomicBool::new(false),
            runtime,
        })
    }

    /// The token that lets `peer` in.
    pub(super) fn token_for(&self, peer: &NodeId) -> Key {
        auth::token(&self.secret, peer)
    }

    /// The key of a handshake with a token.
    pub(super) fn link_key(&self, token: &Key) -> Key {
        auth::link_key(token, self.cluster_secret.as_deref())
    }

    /// A number that no other incoming link has.
    pub(super) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn peer(&self, id: &NodeId) -> Option<Arc<Peer>> {
        self.peers.read().get(id).cloned()
    }

    pub(super) fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().values().cloned().collect()
    }

    /// The peer, put into the table if there is room for one that is no member.
    pub(super) fn peer_or_new(&self, id: &NodeId) -> Option<Arc<Peer>> {
        let mut peers = self.peers.write();
        if let Some(peer) = peers.get(id) {
            return Some(peer.clone());
        }
        let strange = peers.values().filter(|peer| !peer.is_member()).count();
        if strange >= STRANGE_ANNOUNCEMENTS {
            return None;
        }
        let peer = Peer::new(id.clone());
        peers.insert(id.clone(), peer.clone());
        Some(peer)
    }

    /// Makes these the members; returns those that need a link task.
    pub(super) fn set_members(&self, members: Vec<PeerAddress>) -> Vec<Arc<Peer>> {
        let mut peers = self.peers.write();
        let ids: HashSet<NodeId> = members.iter().map(|member| member.id.clone()).collect();
        for peer in peers
            .values()
            .filter(|peer| peer.is_member() && !ids.contains(&peer.id))
        {
            peer.set_address(None);
        }
        let mut fresh = Vec::new();
        for member in members {
            if member.id == self.node_id || !auth::is_node_id(member.id.as_str()) {
                continue;
            }
            let peer = peers
                .entry(member.id.clone())
                .or_insert_with(|| Peer::new(member.id.clone()));
            if peer.set_address(Some(member)) {
                fresh.push(peer.clone());
            }
        }
        // Nodes that left keep their announcement, for they may come back; the room for them is bounded.
        let strange: Vec<NodeId> = peers
            .values()
            .filter(|peer| !peer.is_member())
            .map(|p| p.id.clone())
            .collect();
        for id in strange.iter().skip(STRANGE_ANNOUNCEMENTS) {
            if let Some(peer) = peers.remove(id) {
                peer.forget();
            }
        }
        fresh
    }

    /// Calls the handler, whose panics end here.
    pub(super) fn tell(&self, call: impl FnOnce(&dyn MeshHandler)) {
        if !self.closed.load(Ordering::Relaxed) && catch_unwind(AssertUnwindSafe(|| call(&*self.handler))).is_err() {
            self.log(LogLevel::Warning, "the mesh's handler has panicked; the event is lost");
        }
    }

    pub(super) fn log(&self, level: LogLevel, text: &str) {
        if !self.closed.load(Ordering::Relaxed) {
            let _ = catch_unwind(AssertUnwindSafe(|| self.handler.log(level, text)));
        }
    }

    /// Logs that somebody was not let in; many refusals make few lines.
    pub(super) fn refused(&self, address: &str, reason: &str) {
        let mut refusals = self.refusals.lock();
        if refusals.0.is_some_and(|last| last.elapsed() < REFUSAL_LOG_EVERY) {
            refusals.1 += 1;
            return;
        }
        let more = std::mem::take(&mut refusals.1);
        refusals.0 = Some(Instant::now());
        drop(refusals);
        let more = if more == 0 {
            String::new()
        } else {
            format!(" ({more} more since the last such line)")
        };
        self.log(
            LogLevel::Warning,
            &format!("refused a mesh connection from {address}: {reason}{more}"),
        );
    }

    /// No more calls of the handler; the socket file goes.
    pub(super) fn close(&self) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(path) = &self.unix {
            let now = path.metadata().ok().map(|m| (m.dev(), m.ino()));
            if now.is_some() && now == self.unix_inode {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// A task that ends with its owner.
pub(super) struct Owned<T>(pub JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a task; a panic in it is logged, and it starts again.
pub(super) fn supervise<F, Fut>(core: &Arc<Core>, name: &'static str, make: F)
where
    F: Fn() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let core = core.clone();
    let runtime = core.runtime.clone();
    runtime.spawn(async move {
        loop {
            let mut task = Owned(tokio::spawn(make()));
            match (&mut task.0).await {
                Err(e) if e.is_panic() => {
                    core.log(
                        LogLevel::Warning,
                        &format!("a panic in {name} was caught; it starts again"),
                    );
                    tokio::time::sleep(RECONNECT_FIRST).await;
                }
                _ => return,
            }
        }
    });
}
