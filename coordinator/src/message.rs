//! What shards say to each other, free of wire types; `net` converts.

use bytes::Bytes;

use crate::{codec::RecordBatch, topology::NodeId};

/// Cluster-wide id of an execution: the initiator's node id, `-`, a number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecutionId(pub std::sync::Arc<str>);

impl ExecutionId {
    /// Makes the text form.
    pub fn new(node: &NodeId, number: u64) -> ExecutionId {
        ExecutionId(format!("{node}-{number}").into())
    }

    /// Reads what a client sent: 40 characters, `-`, a decimal number; characters after the number are ignored.
    pub fn parse(text: &[u8]) -> Option<ExecutionId> {
        if text.len() < 42 || text[40] != b'-' {
            return None;
        }
        let node = std::str::from_utf8(&text[..40]).ok()?;
        let digits: Vec<u8> = text[41..].iter().copied().take_while(u8::is_ascii_digit).collect();
        let number: u64 = std::str::from_utf8(&digits).ok()?.parse().ok()?;
        Some(ExecutionId(format!("{node}-{number}").into()))
    }

    /// The number behind the dash.
    pub fn number(&self) -> u64 {
        self.0.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Records or texts of error records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BatchKind {
    Records,
    Errors,
}

/// A message about one execution.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum ExecutionMessage {
    /// Initiator -> participant: what to get ready for.
    Prepare {
        epoch: u64,
        participants: Vec<NodeId>,
        work: Work,
        idle_limit_ms: u64,
    },
    /// Participant -> initiator: ready; or the refusal, which may be worth a retry.
    Prepared { refusal: Option<String>, retry: bool },
    /// Initiator -> participant: everybody is ready.
    Start,
    /// Records of one exchange, numbered from 0 per source and destination.
    Batch {
        exchange: u32,
        sequence: u64,
        kind: BatchKind,
        batch: RecordBatch,
    },
    /// No more batches; `sequence` is their number.
    EndOfInput { exchange: u32, sequence: u64 },
    /// The receiver has used up so many bytes.
    Credit { exchange: u32, bytes: u64 },
    /// Participant -> initiator: my part is complete.
    Report,
    /// Initiator -> participant: the execution is complete; `forget` drops it from the lists.
    Finish,
    /// Anybody -> anybody: the execution has failed; `user` if a client aborted it.
    Abort { reason: String, user: bool },
    /// I am working on this step.
    Progress { step: String },
    /// Small messages that were said in one go, in their order.
    Several(Vec<ExecutionMessage>),
}

/// What the participants of an execution run.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// The encoded plan.
    Plan(Bytes),
    /// A registration, which every shard has.
    Registered {
        /// Its id.
        registration: std::sync::Arc<str>,
        /// The index of the registry that is active on the initiator.
        index: u64,
        /// What every shard gets to read.
        input: RecordBatch,
        /// How many events caused each other up to the one that fired it.
        depth: u32,
    },
}

/// A message of the mesh.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Message {
    Execution {
        execution: ExecutionId,
        body: ExecutionMessage,
    },
    /// A question to the peer's engine.
    Query { id: u64, what: String, argument: Bytes },
    /// Its answer.
    Answer { id: u64, result: Result<Bytes, String> },
    /// About the registry.
    Registry(RegistryMessage),
}

/// Id of a group of nodes that share one registry; random, made by its founder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct GroupId(pub u128);

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a node says of itself; repeated, and sent when a link comes up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GroupHello {
    /// Its group, if it has one.
    pub group: Option<GroupId>,
    /// Its number in the group, or the one under which it wants to join; never 0.
    pub raft_id: u64,
    /// The leader that it knows; without a group, whom it takes for the owner of slot 0.
    pub leader: Option<NodeId>,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    /// It wants an answer at once.
    pub wants_answer: bool,
}

/// A message about the registry.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum RegistryMessage {
    Hello(GroupHello),
    /// A message of the Raft protocol, encoded by its library.
    Raft {
        group: GroupId,
        message: Bytes,
    },
    /// A proposal for the leader.
    Forward {
        group: GroupId,
        proposal: Bytes,
    },
    /// A question to the peer's surroundings of the registry; answered by `Tell` with the same ticket.
    Ask {
        ticket: u64,
        question: RegistryQuestion,
    },
    Tell {
        ticket: u64,
        result: Result<(), String>,
    },
}

/// What nodes ask each other around a change of the registry.
#[derive(Debug, Clone, PartialEq)]
pub enum RegistryQuestion {
    /// Could you load this encoded `registry::SessionChange`? Nothing becomes active.
    Check(Bytes),
    /// Answer when the state of this index is active on you.
    Active(u64),
}
