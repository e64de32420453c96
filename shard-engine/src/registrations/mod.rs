//! What is registered, as it lives on this shard: active registrations, their statistics, their triggers.
//!
//! The coordinator's registry says what there is; this folder makes it work here. It never decides about changes of the
//! cluster, and never writes to disk.
//!
//! * `activation`: the thread that brings this shard to the newest state; `table`: what is active
//! * `active`: one registration with its functions; `stats`: what it counts; `turns`: executions in order
//! * `intercept`: commands that are taken over
//! * `trigger`, `calls`, `sync`: firing; `continuing`: what was postponed in the event; `due`: sync handlers whose command is under way; `occasion`: what fired; `depth`: how deep
//! * `keys`: events of keys
//! * `drafts`: from `register()` to a change; `change`: making it; `spread`: asking the other masters around it;
//!   `prepared`: functions that wait for it; `loading`: functions of what becomes active; `loaders`: of timers, and for peers
//! * `group`: taking part in the cluster's group
//! * `describe`: what clients see

pub mod activation;
mod active;
mod calls;
pub mod change;
pub mod continuing;
pub mod depth;
pub mod describe;
pub mod drafts;
pub mod due;
pub mod group;
pub mod intercept;
pub mod keys;
pub mod limits;
mod loaders;
mod loading;
pub mod occasion;
mod padded;
mod prepared;
mod remembered;
pub mod spread;
mod stats;
pub mod streams;
pub mod sync;
mod table;
pub mod trigger;
mod turns;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oxigears_coordinator::{
    consensus::{RegistryHost, RegistryService, RegistryStatus},
    message::{Message, RegistryMessage},
    net::LogLevel,
    registry::{Command, Refusal, Registry},
    topology::NodeId,
};
use oxigears_python_api::Session;

use self::{activation::Activation, spread::Spread, streams::Streams, sync::Helpers};
pub use self::{
    active::{Active, Core},
    loaders::Errand,
    stats::End,
};
use crate::{
    mesh::{self, mesh},
    module::module,
    redis::{
        cluster, event_loop, key,
        lock::{self, ServerLock},
        log, timer,
    },
    timers,
};

/// All of it.
pub struct Registrations {
    /// The registry.
    pub service: Arc<RegistryService>,
    /// What is active here.
    pub activation: Activation,
    /// Questions to other masters.
    pub spread: Spread,
    /// Stream registrations.
    pub streams: Streams,
    /// Threads that run Python for others.
    pub helpers: Helpers,
    master: AtomicBool,
}

/// So long after its role has changed a server has the slots that belong to it.
const SLOTS_FOLLOW: Duration = Duration::from_millis(1);

/// The server goes on without what was loaded.
const LATE: &str = "the functions of the registrations take long to load: the server goes on, and what happens until they are \
                    loaded fires nothing";

static REGISTRATIONS: OnceLock<Registrations> = OnceLock::new();

/// All of it. Nothing of it is used before `start`.
pub fn registrations() -> &'static Registrations {
    REGISTRATIONS.get().expect("the module is loaded")
}

/// Makes everything, without starting what works on its own. At load, before commands and events can come.
pub fn create(guard: &ServerLock) -> Result<(), String> {
    let all = Registrations {
        service: RegistryService::new(Arc::new(Surroundings)),
        activation: Activation::default(),
        spread: Spread::default(),
        streams: Streams::start().map_err(|e| format!("no threads: {e}"))?,
        helpers: Helpers::start().map_err(|e| format!("no threads: {e}"))?,
        master: AtomicBool::new(!cluster::is_replica(guard)),
    };
    if REGISTRATIONS.set(all).is_err() {
        return Err("the module is loaded already".into());
    }
    intercept::register(guard)
}

/// Starts the activation and the look at deadlines. At load, last.
pub fn start(guard: &ServerLock) -> Result<(), String> {
    let all = registrations();
    due::start();
    keys::start();
    event_loop::at_end(|guard| {
        calls::turn_ends();
        keys::turn_ends(guard);
    });
    intercept::facts::refresh(guard);
    key::role_is(is_master());
    all.activation.start().map_err(|e| format!("no threads: {e}"))?;
    timer::repeat(guard, limits::LOOK_EVERY, |guard| {
        // The server tells of changes, but not of the role that it was started with.
        role_changed(!cluster::is_replica(guard));
        let now_ms = module().now_ms();
        all.activation.look(now_ms);
        keys::look(guard);
        intercept::look(guard);
        all.spread.look(now_ms);
        prepared::tidy();
        limits::LOOK_EVERY
    });
    Ok(())
}

/// Another module was loaded or unloaded.
pub fn commands_changed(guard: &ServerLock) {
    intercept::commands_changed(guard, &registrations().activation);
}

/// What the registry asks of its surroundings.
struct Surroundings;

impl RegistryHost for Surroundings {
    fn published(&self) {
        registrations().activation.wake();
    }

    fn send(&self, to: &NodeId, message: RegistryMessage) -> Result<(), String> {
        let mesh = mesh().ok_or("the mesh is not up")?;
        mesh.send(to, Message::Registry(message)).map_err(|e| e.to_string())
    }

    fn log(&self, level: LogLevel, text: &str) {
        mesh::write_log(level, text);
    }
}

/// A message of a peer. Called on the mesh's thread: never blocks.
pub fn on_message(from: &NodeId, message: RegistryMessage) {
    match message {
        RegistryMessage::Ask { ticket, question } => spread::on_ask(from, ticket, question),
        RegistryMessage::Tell { ticket, result } => registrations().spread.on_tell(from, ticket, result),
        other => registrations().service.on_message(from, other),
    }
}

/// The link to a peer came up or was lost.
pub fn on_peer(peer: &NodeId, up: bool) {
    registrations().service.on_peer(peer, up);
    if !up {
        registrations().spread.on_peer_lost(peer);
    }
}

/// The registry, for dumps.
pub fn service() -> &'static Arc<RegistryService> {
    &registrations().service
}

/// Where this node stands in its group. What the group's thread publishes now and then may be older than the state.
pub fn status() -> RegistryStatus {
    let service = service();
    let mut status = service.status();
    status.applied = status.applied.max(service.state().index());
    status.commit = status.commit.max(status.applied);
    status
}

/// All keys are gone, or others took their place.
pub fn dataset_replaced(guard: &ServerLock) {
    streams::replaced(guard);
}

/// A dataset is about to be loaded: what was held so far goes, unless a group decides.
pub fn load_started() {
    let replaced = registrations().service.replace_alone(Registry::default());
    if replaced {
        // What is loaded begins with the globals that were registered.
        Session::forget_all();
    }
    registrations().activation.load_started(replaced);
    streams::load_started();
}

/// It brings this state.
pub fn load_state(state: Registry) {
    registrations().service.replace_alone(state);
}

/// It is there: what it brought becomes active, on a master before it takes commands, or their events would be lost.
pub fn load_ended() {
    let (guard, activation) = (lock::lock(), &registrations().activation);
    activation.load_ended();
    streams::load_ended(&guard);
    if is_master() && activation.is_due() {
        let is_done = || !registrations().activation.is_due();
        event_loop::await_at_end(&guard, is_done, limits::LOADED_WAIT, LATE);
    }
}

/// A command of the replication link or of the AOF. In a group the log decides, and this changes nothing.
pub fn apply_replicated(_guard: &ServerLock, command: Command) -> Result<(), Refusal> {
    let all = registrations();
    all.service.apply_alone(command)?;
    all.activation.wake();
    Ok(())
}

/// The server became a master or a replica.
pub fn role_changed(master: bool) {
    key::role_is(master);
    if registrations().master.swap(master, Ordering::AcqRel) != master {
        log::notice(if master {
            "this server is a master now: its registrations fire"
        } else {
            "this server is a replica now: its registrations are kept but do not fire"
        });
        if master {
            timers::wake_all();
        }
        let guard = lock::lock();
        streams::role_changed(&guard, master);
        if module().is_cluster {
            // The slots change hands right after the role.
            timer::once(&guard, SLOTS_FOLLOW, mesh::refresh_topology);
        }
    }
}

/// The server is a master: registrations fire, changes are taken.
pub fn is_master() -> bool {
    registrations().master.load(Ordering::Acquire)
}
