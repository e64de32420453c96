//! Joins the mesh with the server: topology from the server itself, announcements over the cluster bus, links to members.
//!
//! Everything here runs on the main thread in a timer, except the handlers of the mesh.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use oxigears_coordinator::{
    engine::Transport,
    limits,
    message::Message,
    net::{LogLevel, Mesh, MeshConfig, MeshHandler, PeerAddress, TlsFiles},
    topology::{NodeId, Slot, Topology},
};
use oxigears_python_api::python_version;

use crate::{
    config::ConfigStore,
    module::module,
    redis::{
        cluster::{self, Serving},
        lock::{self, ServerLock},
        log, timer,
    },
    registrations,
};

/// Type byte of our messages on the cluster bus.
const BUS_MESSAGE: u8 = 0x6f;
/// Pause between two looks at the topology while something is missing, and when all is well.
const BUSY_POLL: Duration = Duration::from_millis(50);
const CALM_POLL: Duration = Duration::from_millis(500);

static MESH: OnceLock<Arc<Mesh>> = OnceLock::new();
/// The id with which this node has joined it.
static KNOWN_AS: OnceLock<NodeId> = OnceLock::new();
/// It has another one now, and the log says so.
static RENAMED: AtomicBool = AtomicBool::new(false);
static START_FAILED: AtomicBool = AtomicBool::new(false);
/// When the topology was read last, in ms of the engine's clock.
static READ_AT_MS: AtomicU64 = AtomicU64::new(0);

struct Handler;

impl MeshHandler for Handler {
    fn on_message(&self, from: &NodeId, message: Message) {
        match message {
            Message::Registry(message) => registrations::on_message(from, message),
            message => module().engine.on_message(from, message),
        }
    }

    fn on_peer_up(&self, peer: &NodeId) {
        registrations::on_peer(peer, true);
    }

    fn on_peer_lost(&self, peer: &NodeId, reason: &str) {
        module().engine.on_peer_lost(peer, reason);
        registrations::on_peer(peer, false);
    }

    fn log(&self, level: LogLevel, text: &str) {
        write_log(level, text);
    }
}

/// Writes to the server's log.
pub fn write_log(level: LogLevel, text: &str) {
    let level = match level {
        LogLevel::Debug => log::Level::Debug,
        LogLevel::Verbose => log::Level::Verbose,
        LogLevel::Notice => log::Level::Notice,
        LogLevel::Warning => log::Level::Warning,
    };
    log::log(level, text);
}

struct MeshTransport(Arc<Mesh>);

impl Transport for MeshTransport {
    fn send(&self, to: &NodeId, message: Message) -> Result<(), String> {
        self.0.send(to, message).map_err(|e| e.to_string())
    }

    fn down_for(&self, to: &NodeId) -> Option<Duration> {
        self.0.down_for(to)
    }

    fn is_crowded(&self, to: &NodeId) -> bool {
        self.0.is_crowded(to)
    }
}

/// The mesh, once it is up.
pub fn mesh() -> Option<&'static Arc<Mesh>> {
    MESH.get()
}

/// Sets the polling going; called at load on a server in cluster mode.
pub fn start(guard: &ServerLock) {
    cluster::on_bus_message(guard, BUS_MESSAGE, on_announcement);
    timer::repeat(guard, BUSY_POLL, |guard| match poll(guard) {
        true => CALM_POLL,
        false => BUSY_POLL,
    });
    let tick = || {
        loop {
            std::thread::sleep(limits::TICK);
            let engine = &module().engine;
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.on_tick())).is_err() {
                log::warning("the idle limits met an internal error");
            }
        }
    };
    if let Err(e) = std::thread::Builder::new().name("oxi-tick".into()).spawn(tick) {
        log::warning(&format!("cannot start the thread for idle limits: {e}"));
    }
}

/// One look at the cluster; true when nothing is missing.
fn poll(guard: &ServerLock) -> bool {
    refresh_topology(guard);
    tend_mesh(guard)
}

/// Reads the topology from the server.
pub fn refresh_topology(guard: &ServerLock) {
    let engine = &module().engine;
    READ_AT_MS.store(module().now_ms(), Ordering::Relaxed);
    match cluster::topology(guard) {
        Some(topology) if *engine.topology() != topology => engine.set_topology(topology),
        _ => {}
    }
}

/// The same, unless it was done a moment ago.
pub fn refresh_topology_if_old(guard: &ServerLock) {
    if module().is_cluster && module().now_ms() > READ_AT_MS.load(Ordering::Relaxed) + 50 {
        refresh_topology(guard);
    }
}

/// The same from a thread without the lock.
pub fn refresh_topology_from_thread() {
    if module().is_cluster {
        refresh_topology(&lock::lock());
    }
}

/// The lowest slot of this shard, as the server has it now. While it moves away, its new keys are refused here: then the
/// lowest one that stays. `None` on a replica and on a master without slots.
pub fn lowest_slot(guard: &ServerLock) -> Option<Slot> {
    let mine = |topology: &Topology| topology.my_number().map(|n| topology.shards[n].ranges.clone());
    let engine = &module().engine;
    match mine(&engine.topology()).and_then(|ranges| ranges.first().copied()) {
        Some((lowest, _)) if cluster::serving(guard, lowest) == Serving::All => return Some(lowest),
        None if !registrations::is_master() => return None,
        // Moved, or promoted, a moment ago: what the engine knows is from before.
        _ => refresh_topology(guard),
    }
    let ranges = mine(&engine.topology())?;
    let moving = cluster::migrating_slots(guard);
    let mut slots = ranges.iter().flat_map(|&(first, last)| first..=last);
    let staying = slots.find(|slot| !moving.contains(slot));
    staying.or_else(|| ranges.first().map(|&(lowest, _)| lowest))
}

/// Called by keyspace readers under the lock: the slots are still those of the execution, and none is on the move.
pub fn check_ownership(guard: &ServerLock, epoch: u64) -> Result<(), String> {
    refresh_topology(guard);
    let topology: Arc<Topology> = module().engine.topology();
    if topology.epoch != epoch {
        return Err("saw the slots of the cluster move".into());
    }
    match cluster::migrating_slots(guard).first() {
        Some(slot) => Err(format!("has slot {slot} on the move to or from another shard")),
        None => Ok(()),
    }
}

/// Starts the mesh when there is somebody to talk to, tells it the members, sends announcements. True when nothing is
/// missing.
fn tend_mesh(guard: &ServerLock) -> bool {
    let topology = module().engine.topology();
    if let (Some(mesh), Some(id)) = (MESH.get(), KNOWN_AS.get())
        && *id != topology.me
    {
        if !RENAMED.swap(true, Ordering::Relaxed) {
            log::warning(&format!(
                "this node was {id} and has another id now (CLUSTER RESET HARD): restart the server, until then it takes \
                 no part in executions on several shards, nor in what is registered"
            ));
        }
        mesh.set_peers(Vec::new());
        return true;
    }
    let members: Vec<cluster::Member> = cluster::members(guard)
        .into_iter()
        .filter(|n| !n.myself && n.port != 0)
        .collect();
    registrations::group::look(guard, &topology, &members);
    if members.is_empty() {
        return true;
    }
    if MESH.get().is_none() {
        start_mesh(guard, &topology);
    }
    // It could not start.
    let Some(mesh) = MESH.get() else { return true };
    let peers = members.into_iter().map(|member| {
        // The address that the server gives to clients wins: it may be a host name.
        let shard = topology.shards.iter().find(|s| s.id == member.id);
        let host = shard.map_or(member.host, |s| s.host.clone());
        PeerAddress {
            id: member.id,
            host,
            redis_port: member.port,
        }
    });
    let peers: Vec<PeerAddress> = peers.collect();
    mesh.set_peers(peers.clone());
    let mut settled = true;
    for peer in &peers {
        if mesh.wants_announcement_to(&peer.id) {
            settled = false;
            announce(guard, mesh, &peer.id);
        }
    }
    settled && topology.shards.iter().all(|s| s.id == topology.me || mesh.is_up(&s.id))
}

fn announce(guard: &ServerLock, mesh: &Mesh, peer: &NodeId) {
    // The bus may lose it or have no link yet: it is repeated until the peer has answered.
    cluster::send_bus_message(guard, peer, BUS_MESSAGE, &mesh.announcement(peer));
}

fn on_announcement(guard: &ServerLock, from: &NodeId, bytes: &[u8]) {
    let Some(mesh) = MESH.get() else { return };
    match mesh.on_announcement(from, bytes) {
        Ok(true) => announce(guard, mesh, from),
        Ok(false) => {}
        Err(e) => log::warning(&format!("an announcement of {from} can not be read: {e}")),
    }
}

fn start_mesh(guard: &ServerLock, topology: &Topology) {
    if START_FAILED.load(Ordering::Relaxed) {
        return;
    }
    let settings = match Settings::read(guard, &module().config) {
        Ok(settings) => settings,
        Err(reason) => {
            START_FAILED.store(true, Ordering::Relaxed);
            log::warning(&format!(
                "the mesh can not start, executions on several shards will fail: {reason}"
            ));
            return;
        }
    };
    if !settings.may_leave_loopback() {
        log::warning(
            "mesh: protected mode without a password, TLS or ClusterSecretFile: peers are served on loopback addresses \
             only; shards on other hosts can not take part",
        );
    }
    let config = MeshConfig {
        node_id: topology.me.clone(),
        listen: settings.listen(),
        port: settings.mesh_port(),
        unix_dir: settings.unix_dir(),
        tls: settings.tls(),
        cluster_secret: settings.secret(),
        versions: format!("oxigears {} python {}", env!("CARGO_PKG_VERSION"), python_version()),
    };
    match Mesh::start(config, Arc::new(Handler)) {
        Ok(mesh) => {
            let _ = KNOWN_AS.set(topology.me.clone());
            let mesh = MESH.get_or_init(|| Arc::new(mesh));
            module().engine.set_transport(Arc::new(MeshTransport(mesh.clone())));
            log::notice(&format!("mesh: serving peers on port {}", mesh.port()));
        }
        Err(e) => {
            START_FAILED.store(true, Ordering::Relaxed);
            log::warning(&format!(
                "the mesh can not start, executions on several shards will fail: {e}"
            ));
        }
    }
}

/// The server's own settings that the mesh follows.
pub struct Settings {
    values: HashMap<String, String>,
    cluster_secret: Option<String>,
    grpc_port: u16,
}

impl Settings {
    /// Asks the server.
    pub fn read(guard: &ServerLock, config: &ConfigStore) -> Result<Settings, String> {
        const NAMES: [&str; 13] = [
            "bind",
            "port",
            "tls-port",
            "tls-cluster",
            "tls-cert-file",
            "tls-key-file",
            "tls-key-file-pass",
            "tls-ca-cert-file",
            "tls-ca-cert-dir",
            "protected-mode",
            "requirepass",
            "masterauth",
            "dir",
        ];
        let value = |name: &&str| Some(((*name).to_owned(), cluster::server_config(guard, name)?));
        let values = NAMES.iter().filter_map(value).collect();
        Ok(Settings {
            values,
            cluster_secret: config.cluster_secret()?,
            grpc_port: config.grpc_port(),
        })
    }

    fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// A secret beyond what members of the cluster bus know.
    fn secret(&self) -> Option<Vec<u8>> {
        self.cluster_secret.clone().map(String::into_bytes)
    }

    fn has_tls(&self) -> bool {
        self.get("tls-cluster") == "yes"
    }

    fn tls(&self) -> Option<TlsFiles> {
        let file = |name: &str| Some(PathBuf::from(self.get(name))).filter(|p| !p.as_os_str().is_empty());
        self.has_tls().then(|| TlsFiles {
            cert: file("tls-cert-file").unwrap_or_default(),
            key: file("tls-key-file").unwrap_or_default(),
            key_password: Some(self.get("tls-key-file-pass").to_owned()).filter(|s| !s.is_empty()),
            ca: file("tls-ca-cert-file")
                .or_else(|| file("tls-ca-cert-dir"))
                .unwrap_or_default(),
        })
    }

    /// Addresses beyond loopback may be served: peers prove more than that they reached the port.
    fn may_leave_loopback(&self) -> bool {
        self.has_tls()
            || self.get("protected-mode") != "yes"
            || self.cluster_secret.is_some()
            || !self.get("requirepass").is_empty()
    }

    /// Why the module must not load: peers would have to be served where nothing protects them.
    pub fn refusal(&self) -> Option<String> {
        let named = |word: &&str| {
            word.trim_start_matches('-')
                .parse::<IpAddr>()
                .is_ok_and(|a| !a.is_loopback() && !a.is_unspecified())
        };
        let address = self.get("bind").split_whitespace().find(named)?;
        (!self.may_leave_loopback()).then(|| {
            format!(
                "the shards would have to serve each other on {address} without protection: set the module argument \
                 ClusterSecretFile (the same content on all nodes), or requirepass and masterauth, or tls-cluster yes, or bind the \
                 server to loopback only"
            )
        })
    }

    /// The server's addresses; only loopback while nothing protects the others.
    fn listen(&self) -> Vec<IpAddr> {
        let any = [IpAddr::from([0; 16]), IpAddr::from([0; 4])];
        let mut addresses: Vec<IpAddr> = Vec::new();
        for word in self.get("bind").split_whitespace() {
            match word.trim_start_matches('-') {
                "*" => addresses.push(any[1]),
                "::*" => addresses.push(any[0]),
                word => addresses.extend(word.parse::<IpAddr>().ok()),
            }
        }
        if addresses.is_empty() {
            addresses.push(any[1]);
        }
        if !self.may_leave_loopback() {
            let loopback = |a: IpAddr| match a {
                IpAddr::V4(v4) if !v4.is_loopback() => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
                other => other,
            };
            addresses = addresses.into_iter().map(loopback).collect();
            addresses.dedup();
        }
        addresses
    }

    fn mesh_port(&self) -> u16 {
        if self.grpc_port != 0 {
            return self.grpc_port;
        }
        let port = |name: &str| self.get(name).parse::<u32>().unwrap_or(0);
        let base = if port("port") != 0 {
            port("port")
        } else {
            port("tls-port")
        };
        // Beyond the range of ports the system chooses one; peers learn it over the cluster bus.
        u16::try_from(base + 11000).unwrap_or(0)
    }

    fn unix_dir(&self) -> Option<PathBuf> {
        Some(PathBuf::from(self.get("dir"))).filter(|d| d.is_dir())
    }
}
