//! The one door to the registry for the rest of the program.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use thiserror::Error;

use super::{ClusterView, RegistryStatus};
use crate::{
    message::RegistryMessage,
    net::LogLevel,
    registry::{Command, Refusal, Registry},
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

/// The registry of this node.
pub struct RegistryService {
    state: ArcSwap<Registry>,
}

impl RegistryService {
    /// An empty registry of a server that is alone.
    pub fn new(_host: Arc<dyn RegistryHost>) -> Arc<RegistryService> {
        unimplemented!()
    }

    /// The newest committed state. Never waits, and may be called in a forked child.
    pub fn state(&self) -> Arc<Registry> {
        self.state.load_full()
    }

    /// A group decides about changes: `propose`. Otherwise this server is alone: `apply_alone`.
    pub fn is_group(&self) -> bool {
        unimplemented!()
    }

    /// Applies a command on a server that is alone; gives the new index. Concurrent calls are the caller's to order.
    pub fn apply_alone(&self, _command: Command) -> Result<u64, Refusal> {
        unimplemented!()
    }

    /// Takes a whole state (a dump, a master's one) on a server that is alone; false in a group, whose log wins.
    pub fn replace_alone(&self, _state: Registry) -> bool {
        unimplemented!()
    }

    /// Takes part in the cluster's group from now on. An existing log wins over the state held so far.
    pub fn start_group(&self, _config: GroupConfig) -> Result<(), String> {
        unimplemented!()
    }

    /// Asks the group for a change. `done` hears the index once it is applied on this node, or the error, within
    /// `limits::PROPOSE_TIMEOUT`; it is called on the group's thread and must not block.
    pub fn propose(&self, _command: Command, _done: Box<dyn FnOnce(Result<u64, ProposeError>) + Send>) {
        unimplemented!()
    }

    /// A message of an authenticated peer (not `Ask` and `Tell`, which are the host's own). Never blocks.
    pub fn on_message(&self, _from: &NodeId, _message: RegistryMessage) {
        unimplemented!()
    }

    /// The link to a peer came up or was lost.
    pub fn on_peer(&self, _peer: &NodeId, _up: bool) {
        unimplemented!()
    }

    /// The cluster as the server sees it now.
    pub fn set_view(&self, _view: ClusterView) {
        unimplemented!()
    }

    /// Where it stands.
    pub fn status(&self) -> RegistryStatus {
        unimplemented!()
    }

    /// A number for a new registration (or builder): above all that the registry has ever seen, and never the same.
    pub fn next_number(&self) -> u64 {
        unimplemented!()
    }
}
