//! The one door to the registry for the rest of the program.
//!
//! Holds the published state and says who decides about changes. It does no I/O and never waits for the group.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use thiserror::Error;

use super::{
    ClusterView, RegistryStatus,
    driver::{self, Event, Queue},
};
use crate::{
    limits,
    message::RegistryMessage,
    net::LogLevel,
    registry::{Command, Proposal, Refusal, Registry, RequestId},
    topology::NodeId,
};

/// The surroundings.
pub trait RegistryHost: Send + Sync + 'static {
    /// A newer state is committed; `RegistryService::state` gives it. Called on the group's thread: must not block.
    fn published(&self);
    /// Queues a message for a peer; never blocks.
    fn send(&self, to: &NodeId, message: RegistryMessage) -> Result<(), String>;
    /// Writes to the server's log.
    fn log(&self, level: LogLevel, text: &str);
}

/// What a node needs to take part in the group.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// This node.
    pub me: NodeId,
    /// Folder of this node's log; made if it is not there.
    pub dir: PathBuf,
}

/// Why a change was not made, or may not have been made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ProposeError {
    /// Committed, applied, refused: nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was changed and nothing will be.
    #[error("NOQUORUM the registry can not be changed now, nothing was changed: {0}; reads and triggers go on")]
    NoQuorum(String),
    /// It may have been made or may yet be.
    #[error(
        "TIMEOUT it is unknown whether the change was made: no answer of the majority within {} ms; look with \
         RG.DUMPREGISTRATIONS, repeating it with the same ID is safe", .0.as_millis()
    )]
    Unknown(Duration),
    #[error("ERR {0} changes of the registry wait already; try again later")]
    Busy(usize),
    #[error("ERR the change has {bytes} bytes, at most {most} are allowed")]
    TooLarge { bytes: usize, most: usize },
}

/// Hears the outcome of a proposal.
pub(super) type Done = Box<dyn FnOnce(Result<u64, ProposeError>) + Send>;

/// What the service and the group's thread share.
pub(super) struct Shared {
    pub host: Arc<dyn RegistryHost>,
    state: ArcSwap<Registry>,
    /// The next number: 0 while nothing was ever seen.
    numbers: AtomicU64,
    /// See `RegistryService::awaited_index`.
    awaited: AtomicU64,
    /// A group decides, or will.
    group: AtomicBool,
    /// The log of a group has decided about the state, which must not be changed past it. Held during alone changes.
    bound: Mutex<bool>,
    status: ArcSwap<RegistryStatus>,
}

impl Shared {
    fn new(host: Arc<dyn RegistryHost>) -> Shared {
        Shared {
            host,
            state: ArcSwap::from_pointee(Registry::default()),
            numbers: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            group: AtomicBool::new(false),
            bound: Mutex::new(false),
            status: ArcSwap::from_pointee(RegistryStatus {
                role: "alone",
                ..RegistryStatus::default()
            }),
        }
    }

    /// Whether the group's log decides. While the guard is held, nobody changes the state past the group.
    pub fn bound(&self) -> MutexGuard<'_, bool> {
        self.bound.lock()
    }

    pub fn state(&self) -> Arc<Registry> {
        self.state.load_full()
    }

    pub fn set_state(&self, state: Arc<Registry>) {
        // Numbers first: who sees the state must get numbers above it.
        if !state.is_empty() {
            self.numbers
                .fetch_max(state.highest_number().saturating_add(1), Ordering::SeqCst);
        }
        self.state.store(state);
    }

    pub fn set_awaited_index(&self, index: u64) {
        self.awaited.store(index, Ordering::SeqCst);
    }

    pub fn set_status(&self, status: RegistryStatus) {
        self.status.store(Arc::new(status));
    }
}

/// The registry of this node.
pub struct RegistryService {
    shared: Arc<Shared>,
    /// The way to the group's thread, once there is one.
    queue: Mutex<Option<Arc<Queue>>>,
}

impl RegistryService {
    /// An empty registry of a server that is alone.
    pub fn new(host: Arc<dyn RegistryHost>) -> Arc<RegistryService> {
        Arc::new(RegistryService {
            shared: Arc::new(Shared::new(host)),
            queue: Mutex::new(None),
        })
    }

    /// The newest committed state. Never waits, and may be called in a forked child.
    pub fn state(&self) -> Arc<Registry> {
        self.shared.state()
    }

    /// After a restart the log may be old: what is not active up to this index should not run. `u64::MAX` while no leader
    /// has told the index, for `limits::NEWEST_WAIT` at most; 0 if nothing is awaited.
    pub fn awaited_index(&self) -> u64 {
        self.shared.awaited.load(Ordering::SeqCst)
    }

    /// A group decides about changes: `propose`. Otherwise this server is alone: `apply_alone`.
    pub fn is_group(&self) -> bool {
        self.shared.group.load(Ordering::SeqCst)
    }

    /// Applies a command on a server that is alone; gives the new index. The order of concurrent calls is the
    /// caller's business. `RegistryHost::published` is not called: the caller knows.
    ///
    /// A node that waits for its group still takes what a dump or a replication link brings, because the group may be
    /// founded with it; once a group's log decides, it is refused.
    pub fn apply_alone(&self, command: Command) -> Result<u64, Refusal> {
        let bound = self.shared.bound();
        if *bound {
            return Err(Refusal::Malformed("the cluster's group decides about changes".into()));
        }
        let mut state = Registry::clone(&self.state());
        let index = state.index() + 1;
        let proposal = Proposal {
            request: RequestId(rand::random()),
            basis: state.index(),
            command,
        };
        state.apply(index, &proposal)?;
        self.shared.set_state(Arc::new(state));
        Ok(index)
    }

    /// Takes a whole state (a dump, a master's one) on a server that is alone, or that still waits for its group;
    /// false in a group, whose log wins.
    pub fn replace_alone(&self, state: Registry) -> bool {
        let bound = self.shared.bound();
        if *bound {
            return false;
        }
        self.shared.set_state(Arc::new(state));
        true
    }

    /// Takes part in the cluster's group from now on. An existing log wins over the state held so far, which is
    /// published before this returns. Does nothing if it was done.
    pub fn start_group(&self, config: GroupConfig) -> Result<(), String> {
        let mut queue = self.queue.lock();
        if queue.is_some() {
            return Ok(());
        }
        let new = Arc::new(Queue::default());
        driver::start(config, self.shared.clone(), new.clone())?;
        *queue = Some(new);
        self.shared.group.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn tell(&self, event: Event) -> Result<(), Event> {
        let queue = self.queue.lock().clone();
        match queue {
            Some(queue) => queue.push(event),
            None => Err(event),
        }
    }

    /// Asks the group for a change. `done` hears the index once it is applied on this node, or the error, within
    /// `limits::PROPOSE_TIMEOUT`; it is called on the group's thread and must not block.
    pub fn propose(&self, command: Command, done: Box<dyn FnOnce(Result<u64, ProposeError>) + Send>) {
        if let Err(Event::Propose(_, done)) = self.tell(Event::Propose(Box::new(command), done)) {
            done(Err(match self.is_group() {
                true => ProposeError::Busy(limits::RAFT_QUEUE),
                false => ProposeError::NoQuorum("this node is in no group".into()),
            }));
        }
    }

    /// A message of an authenticated peer (not `Ask` and `Tell`, which are the host's own). Never blocks.
    pub fn on_message(&self, from: &NodeId, message: RegistryMessage) {
        // Lost when too many wait; whoever sent it repeats it.
        let _ = self.tell(Event::Message(from.clone(), message));
    }

    /// The link to a peer came up or was lost.
    pub fn on_peer(&self, peer: &NodeId, up: bool) {
        let _ = self.tell(Event::Peer(peer.clone(), up));
    }

    /// The cluster as the server sees it now.
    pub fn set_view(&self, view: ClusterView) {
        let _ = self.tell(Event::View(view));
    }

    /// Founds a new group from the state that is applied here; the other nodes give theirs up and join. For operators,
    /// when the logs of a majority are lost for good. `done` is called on the group's thread.
    pub fn recover(&self, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        if let Err(Event::Recover(done)) = self.tell(Event::Recover(done)) {
            done(Err("ERR this server is in no group, there is nothing to recover".into()));
        }
    }

    /// Where it stands.
    pub fn status(&self) -> RegistryStatus {
        let mut status = RegistryStatus::clone(&self.shared.status.load());
        if status.role == "alone" {
            status.applied = self.state().index();
            status.commit = status.applied;
        }
        status
    }

    /// A number for a new registration (or builder): above all that the registry has ever seen, and never the same.
    pub fn next_number(&self) -> u64 {
        self.shared.numbers.fetch_add(1, Ordering::SeqCst)
    }
}

impl Drop for RegistryService {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.get_mut().take() {
            queue.close();
        }
    }
}
