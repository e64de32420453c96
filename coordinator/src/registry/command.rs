//! What can be asked of the registry, and why it may be refused.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    bounded,
    state::{EventSource, RegisterMode, RegistrationId},
};
use crate::{limits, plan::FnId};

/// Tells repeated copies of one request apart from new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u128);

/// A command on its way: may be handed in several times, takes effect once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Equal in all copies.
    pub request: RequestId,
    /// Index of the state that the proposer knew. A copy that comes more than `limits::REMEMBERED_REQUESTS` later is
    /// refused, because the memory of its first copy may be gone.
    pub basis: u64,
    /// The command.
    pub command: Command,
}

/// A change of the registry. Persisted: new variants go to the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Creates, upgrades or replaces a session with all its registrations.
    ChangeSession(SessionChange),
    /// Removes one registration; the session goes with its last one.
    Unregister {
        /// Which.
        id: RegistrationId,
        /// Executions that have not started are aborted on each shard.
        abort_pending: bool,
    },
    /// Pauses registrations, all or none.
    Pause {
        /// Which.
        #[serde(deserialize_with = "bounded::change_list")]
        ids: Vec<RegistrationId>,
        /// Executions that have not started are aborted on each shard.
        abort_pending: bool,
    },
    /// Ends the pause, for all or none.
    Unpause {
        /// Which.
        #[serde(deserialize_with = "bounded::change_list")]
        ids: Vec<RegistrationId>,
    },
    /// Every shard sets its statistics of all registrations to zero.
    ClearStatistics,
    /// Records that a package is there; its files travel elsewhere.
    ImportRequirement(Requirement),
}

/// One call of RG.PYEXECUTE with registrations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionChange {
    /// Name of the session.
    pub name: Arc<str>,
    /// Its description.
    pub description: Option<String>,
    /// ACL user with whose rights it acts; `None`: all rights.
    pub user: Option<String>,
    /// Names of the requirements.
    #[serde(deserialize_with = "bounded::names")]
    pub requirements: Vec<String>,
    /// If the session exists, replace it.
    pub upgrade: bool,
    /// Replace the session of this name.
    pub replace: Option<Arc<str>>,
    /// A running function adds to the session (which is created if it is not there); nothing is replaced.
    pub join: bool,
    /// The registrations, in order.
    #[serde(deserialize_with = "bounded::change_list")]
    pub registrations: Vec<NewRegistration>,
}

/// A registration that is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewRegistration {
    /// Its id, never used before.
    pub id: RegistrationId,
    /// What fires it.
    pub source: EventSource,
    /// Where it runs.
    pub mode: RegisterMode,
    /// The builder's `desc`.
    pub description: Option<String>,
    /// The encoded `plan::Plan`, functions included.
    pub plan: Bytes,
    /// Function of the plan to call when it becomes active on a node.
    pub on_registered: Option<FnId>,
    /// Function of the plan to call when it is gone from a node.
    pub on_unregistered: Option<FnId>,
}

/// A package that sessions need. Its files are elsewhere, named by the digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// As given to REQUIREMENTS.
    pub name: String,
    /// SHA-256 of its files.
    pub digest: [u8; 32],
    /// Platform that the files are for.
    pub compiled_os: String,
    /// File names.
    #[serde(deserialize_with = "bounded::names")]
    pub wheels: Vec<String>,
}

/// A word of a refusal's text.
pub type Word = &'static str;

/// Why a command changed nothing. The texts are those that clients know.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("Session {0} already exists")]
    SessionExists(String),
    #[error("Can not replace an existing session {new} with {old}")]
    ReplaceExisting { new: String, old: String },
    #[error("Can not replace with {0}, session does not exists.")]
    NothingToReplace(String),
    #[error("trigger already registered")]
    TriggerTaken,
    #[error("trigger already registered in this session")]
    TriggerTwice,
    #[error("the registration id {0} was used before; run the script again")]
    IdUsed(String),
    #[error("execution is not registered")]
    NotRegistered,
    #[error("Execution {0} does not exists")]
    UnknownRegistration(String),
    #[error("Reader {reader} does not support {what}")]
    NotPausable {
        #[serde(deserialize_with = "bounded::word")]
        reader: Word,
        #[serde(deserialize_with = "bounded::word")]
        what: Word,
    },
    #[error("a session needs at least one registration")]
    NoRegistrations,
    #[error("{what}: {count} are asked for, at most {most} are allowed")]
    TooMany {
        #[serde(deserialize_with = "bounded::word")]
        what: Word,
        count: usize,
        most: usize,
    },
    #[error("{what} has {bytes} bytes, at most {most} are allowed")]
    TooLarge {
        #[serde(deserialize_with = "bounded::word")]
        what: Word,
        bytes: usize,
        most: usize,
    },
    #[error("the request is too old: the registry has moved on by more than {most} changes; try again", most = limits::REMEMBERED_REQUESTS)]
    Stale,
    /// Not made any more; keeps the place of the next one in what is remembered on disk.
    #[error("the registry is not empty")]
    NotEmpty,
    #[error("the request can not be read: {0}")]
    Malformed(String),
    #[error("Can not override a none sync registration")]
    HookTaken,
    #[error("Can not override a none sync registration which already created on this session")]
    HookTwice,
}
