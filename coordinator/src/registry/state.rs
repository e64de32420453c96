//! What the registry holds, and how commands change it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Command, Proposal, Refusal, RequestId, Requirement, bounded,
    shared_map::{SharedFifo, SharedMap},
};
use crate::{limits, plan::FnId};

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
        #[serde(deserialize_with = "bounded::some_names")]
        event_types: Option<Vec<String>>,
        /// Types of keys; `None`: all.
        #[serde(deserialize_with = "bounded::some_names")]
        key_types: Option<Vec<String>>,
        /// Records hold type and value.
        read_value: bool,
        /// Give values of sets, sorted sets and streams, and the type word `stream`.
        all_types: bool,
        /// Commands that clients' replies are tied to, in lower case.
        #[serde(deserialize_with = "bounded::some_names")]
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
        /// What only newer scripts ask for.
        more: StreamOptions,
    },
    /// A command of clients, which the function takes the place of.
    Hook {
        /// Its name in lower case.
        command: String,
        /// Only if some key begins with this.
        key_prefix: Option<Bytes>,
        /// Executions run one after another, in the order of arrival.
        inorder: bool,
    },
    /// The clock.
    Timer {
        /// When.
        schedule: Schedule,
        /// On every shard, not once per cluster.
        everywhere: bool,
    },
}

/// Options of stream registrations beyond the original interface. By default all off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// The consumer group; `None`: one of the registration's own, empty: the one that all registrations once shared.
    pub group: Option<Bytes>,
    /// What a batch writes and its acknowledgement are one transaction.
    pub exactly_once: bool,
    /// Retries of a batch before its entries go to the dead-letter stream; counts only with one.
    pub max_retries: u64,
    /// The stream for entries that failed too often.
    pub dead_letter: Option<Bytes>,
}

/// When a timer fires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// Every so many milliseconds.
    Every {
        /// At least 1.
        ms: u64,
    },
    /// At the minutes that a cron expression of five fields names, in UTC.
    Cron {
        /// Minute, hour, day of month, month, day of week.
        expression: String,
    },
}

impl EventSource {
    /// The reader's name as clients know it.
    pub fn reader(&self) -> &'static str {
        match self {
            EventSource::Command { .. } | EventSource::Hook { .. } => "CommandReader",
            EventSource::Keys { .. } => "KeysReader",
            EventSource::Stream { .. } => "StreamReader",
            EventSource::Timer { .. } => "TimerReader",
        }
    }

    /// The command that it hooks in a way that no further hook may come upon: in another mode than `sync`.
    pub(super) fn last_hook(&self, mode: RegisterMode) -> Option<&str> {
        match self {
            EventSource::Hook { command, .. } if mode != RegisterMode::Sync => Some(command),
            _ => None,
        }
    }

    /// The user can pause it.
    pub fn is_pausable(&self) -> bool {
        matches!(self, EventSource::Stream { .. } | EventSource::Timer { .. })
    }
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
    /// How often the user ended a pause, or what a shard made of a failure.
    pub unpaused: u64,
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
    #[serde(deserialize_with = "bounded::names")]
    pub requirements: Vec<String>,
    /// Ids of its registrations, in order.
    #[serde(deserialize_with = "bounded::state_list")]
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

/// An applied request and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub request: RequestId,
    pub index: u64,
    pub outcome: Result<(), Refusal>,
}

/// The state. Cloning is cheap; clones share what they have in common.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registry {
    pub(super) index: u64,
    /// Sequences that were given to sessions and registrations.
    pub(super) made: u64,
    pub(super) highest_number: u64,
    pub(super) statistics_epoch: u64,
    /// Bytes of sessions, registrations and requirements; see `rules`.
    pub(super) bytes: usize,
    pub(super) registrations: SharedMap<RegistrationId, Registration>,
    /// CommandReader registrations by trigger.
    pub(super) triggers: SharedMap<Bytes, Registration>,
    /// Hooks that are not `sync`, by command: no further hook may come upon them.
    pub(super) last_hooks: SharedMap<Bytes, Registration>,
    pub(super) sessions: SharedMap<Arc<str>, Session>,
    pub(super) requirements: SharedMap<Arc<str>, Requirement>,
    pub(super) tombstones: SharedFifo<RegistrationId, Tombstone>,
    pub(super) remembered: SharedFifo<u128, Remembered>,
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

    /// Applies the command with this index. A repeated request answers what its first copy answered; a refused one
    /// changes nothing but the index and what is remembered of it.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Result<(), Refusal> {
        if let Some(outcome) = self.outcome(proposal.request) {
            self.advance(index);
            return outcome;
        }
        if index <= self.index {
            let text = format!("index {index} is applied already, the state is that of {}", self.index);
            return Err(Refusal::Malformed(text));
        }
        let outcome = self.judge_age(index, proposal.basis).and_then(|()| {
            let mut next = self.clone();
            next.perform(index, &proposal.command)?;
            *self = next;
            Ok(())
        });
        self.index = index;
        self.remember(proposal.request, outcome.clone());
        outcome
    }

    /// Refuses requests whose first copy may be forgotten. One that claims to know the future could be handed in again
    /// for ever.
    fn judge_age(&self, index: u64, basis: u64) -> Result<(), Refusal> {
        if basis >= index {
            let text = format!("it is made for index {basis}, but the registry is at {}", self.index);
            return Err(Refusal::Malformed(text));
        }
        if index - basis > limits::REMEMBERED_REQUESTS {
            return Err(Refusal::Stale);
        }
        Ok(())
    }

    fn remember(&mut self, request: RequestId, outcome: Result<(), Refusal>) {
        let oldest = self.index.saturating_sub(limits::REMEMBERED_REQUESTS);
        while self.remembered.oldest().is_some_and(|r| r.index < oldest) {
            self.remembered.pop_oldest();
        }
        let remembered = Remembered {
            request,
            index: self.index,
            outcome,
        };
        self.remembered.push(request.0, remembered);
    }

    /// Whether the command would be refused now; changes nothing.
    pub fn check(&self, command: &Command) -> Result<(), Refusal> {
        self.clone().perform(self.index.saturating_add(1), command)
    }

    /// The state to come when these commands, too, have been applied; what is refused changes nothing.
    pub fn after<'a>(&self, commands: impl IntoIterator<Item = &'a Command>) -> Registry {
        commands.into_iter().fold(self.clone(), |state, command| {
            let mut next = state.clone();
            let index = state.index.saturating_add(1);
            match next.perform(index, command) {
                Ok(()) => Registry { index, ..next },
                Err(_) => state,
            }
        })
    }

    /// The outcome of a request that was applied and is remembered.
    pub fn outcome(&self, request: RequestId) -> Option<Result<(), Refusal>> {
        self.remembered.get(&request.0).map(|r| r.outcome.clone())
    }

    /// The registration with this id.
    pub fn registration(&self, id: &str) -> Option<Arc<Registration>> {
        self.registrations.get(id).cloned()
    }

    /// All registrations, in the order in which they were made.
    pub fn registrations(&self) -> Vec<Arc<Registration>> {
        let mut all: Vec<Arc<Registration>> = self.registrations.values().cloned().collect();
        all.sort_unstable_by_key(|r| r.sequence);
        all
    }

    /// Number of registrations.
    pub fn registration_count(&self) -> usize {
        self.registrations.len()
    }

    /// The registration that RG.TRIGGER with this name fires.
    pub fn trigger(&self, name: &[u8]) -> Option<Arc<Registration>> {
        self.triggers.get(name).cloned()
    }

    /// The hook on this command (in lower case) that is not `sync`, so that no further one may come upon it.
    pub fn last_hook(&self, command: &str) -> Option<Arc<Registration>> {
        self.last_hooks.get(command.as_bytes()).cloned()
    }

    /// The session of this name.
    pub fn session(&self, name: &str) -> Option<Arc<Session>> {
        self.sessions.get(name).cloned()
    }

    /// All sessions, by name.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<Arc<Session>> = self.sessions.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// All requirements, by name.
    pub fn requirements(&self) -> Vec<Arc<Requirement>> {
        let mut all: Vec<Arc<Requirement>> = self.requirements.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// What is remembered of a removed registration; the memory is bounded.
    pub fn tombstone(&self, id: &str) -> Option<Tombstone> {
        self.tombstones.get(id).map(|t| (**t).clone())
    }

    /// Highest number of a registration id that was ever seen: new ids are above it.
    pub fn highest_number(&self) -> u64 {
        self.highest_number
    }

    /// How often statistics were cleared.
    pub fn statistics_epoch(&self) -> u64 {
        self.statistics_epoch
    }

    /// Nothing was ever registered or imported.
    pub fn is_empty(&self) -> bool {
        self.made == 0 && self.highest_number == 0 && self.requirements.len() == 0
    }
}
