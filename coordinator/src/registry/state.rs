//! What the registry holds, and how commands change it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Command, Proposal, Refusal, Requirement};
use crate::plan::FnId;

/// `<40 characters>-<number>`: the node that made it, a number that is used once in a cluster's life.
pub type RegistrationId = Arc<str>;

/// What fires a registration. Persisted: new variants go to the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EventSource {
    /// RG.TRIGGER with this name.
    Command {
        /// Case-sensitive, binary safe.
        trigger: Bytes,
        /// Executions run one after another, in the order of arrival.
        inorder: bool,
    },
    /// Events of keys.
    Keys {
        /// Exact name, or prefix with `*` at its end.
        prefix: Bytes,
        /// Names of events; `None`: all.
        event_types: Option<Vec<String>>,
        /// Types of keys; `None`: all.
        key_types: Option<Vec<String>>,
        /// Records hold type and value.
        read_value: bool,
        /// Commands that clients' replies are tied to.
        commands: Option<Vec<String>>,
    },
    /// Entries of streams.
    Stream {
        /// Exact name, or prefix with `*` at its end.
        prefix: Bytes,
        /// Entries of a batch.
        batch: u64,
        /// Longest wait for a full batch, in ms; 0: for ever.
        duration_ms: u64,
        /// What happens after a failure.
        on_failed: FailurePolicy,
        /// Pause before a retry, in s.
        retry_interval_s: u64,
        /// Processed entries are removed.
        trim: bool,
    },
}

/// What a stream registration does after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum FailurePolicy {
    Continue,
    Abort,
    Retry,
}

/// Where and how a registration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterMode {
    /// In the event, with the server lock held.
    Sync,
    /// On a worker thread of the shard where the event happened.
    AsyncLocal,
    /// On all shards.
    Async,
}

/// A registered pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Its id.
    pub id: RegistrationId,
    /// Name of its session.
    pub session: Arc<str>,
    /// Order in which registrations were made, cluster-wide.
    pub sequence: u64,
    /// What fires it.
    pub source: EventSource,
    /// Where it runs.
    pub mode: RegisterMode,
    /// The builder's `desc`.
    pub description: Option<String>,
    /// The encoded `plan::Plan`.
    pub plan: Bytes,
    /// Function of the plan to call when it becomes active on a node.
    pub on_registered: Option<FnId>,
    /// Function of the plan to call when it is gone from a node.
    pub on_unregistered: Option<FnId>,
    /// Paused by the user.
    pub paused: bool,
}

/// One call of RG.PYEXECUTE that registered something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its name.
    pub name: Arc<str>,
    /// Order in which sessions were made.
    pub sequence: u64,
    /// Free text.
    pub description: Option<String>,
    /// ACL user with whose rights it acts.
    pub user: Option<String>,
    /// Names of its requirements.
    pub requirements: Vec<String>,
    /// Ids of its registrations, in order.
    pub registrations: Vec<RegistrationId>,
}

/// What is remembered of a registration that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Its id.
    pub id: RegistrationId,
    /// Executions that had not started were to be aborted.
    pub abort_pending: bool,
    /// Index of the command.
    pub index: u64,
}

/// The state. Cloning is cheap; clones share what they have in common.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    index: u64,
}

impl Registry {
    /// Index of the last command that was applied.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Notes that the log got to `index` with something that is no command.
    pub fn advance(&mut self, index: u64) {
        self.index = self.index.max(index);
    }

    /// Applies the command with this index. A repeated request answers what its first copy answered.
    pub fn apply(&mut self, _index: u64, _proposal: &Proposal) -> Result<(), Refusal> {
        unimplemented!()
    }

    /// Whether the command would be refused now; changes nothing.
    pub fn check(&self, _command: &Command) -> Result<(), Refusal> {
        unimplemented!()
    }

    /// The outcome of a request that was applied and is remembered.
    pub fn outcome(&self, _request: super::RequestId) -> Option<Result<(), Refusal>> {
        unimplemented!()
    }

    /// The registration with this id.
    pub fn registration(&self, _id: &str) -> Option<Arc<Registration>> {
        unimplemented!()
    }

    /// All registrations, in the order in which they were made.
    pub fn registrations(&self) -> Vec<Arc<Registration>> {
        unimplemented!()
    }

    /// Number of registrations.
    pub fn registration_count(&self) -> usize {
        unimplemented!()
    }

    /// The registration that RG.TRIGGER with this name fires.
    pub fn trigger(&self, _name: &[u8]) -> Option<Arc<Registration>> {
        unimplemented!()
    }

    /// The session of this name.
    pub fn session(&self, _name: &str) -> Option<Arc<Session>> {
        unimplemented!()
    }

    /// All sessions, by name.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        unimplemented!()
    }

    /// All requirements, by name.
    pub fn requirements(&self) -> Vec<Arc<Requirement>> {
        unimplemented!()
    }

    /// What is remembered of a removed registration; the memory is bounded.
    pub fn tombstone(&self, _id: &str) -> Option<Tombstone> {
        unimplemented!()
    }

    /// Highest number of a registration id that was ever seen: new ids are above it.
    pub fn highest_number(&self) -> u64 {
        unimplemented!()
    }

    /// How often statistics were cleared.
    pub fn statistics_epoch(&self) -> u64 {
        unimplemented!()
    }

    /// Nothing was ever registered or imported.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
}
