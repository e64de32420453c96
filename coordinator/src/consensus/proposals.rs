//! Changes that this node has asked for and whose outcome it has not seen yet.
//!
//! A change is handed in again and again under one request id, to whoever leads then; the registry applies it once. Its
//! outcome is what this node's own registry says when it has applied it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::service::ProposeError;
use crate::{
    limits,
    registry::{Command, Proposal, Refusal, Registry, RequestId},
};

/// The caller's name for a change.
pub(super) type Ticket = u64;

/// Changes that came to nothing, or whose outcome is unknown.
pub(super) type Failures = Vec<(Ticket, ProposeError)>;

struct Open {
    request: RequestId,
    body: Body,
    deadline_ms: u64,
    again_ms: u64,
    /// Some leader may have appended it.
    handed_in: bool,
}

enum Body {
    /// The node is in no group yet: the basis is not known.
    Command(Command),
    Encoded(Bytes),
}

/// All of them.
#[derive(Default)]
pub(super) struct Proposals {
    open: BTreeMap<Ticket, Open>,
    by_request: BTreeMap<RequestId, Ticket>,
}

impl Proposals {
    /// Takes a change on. `basis` is the index of the group's state here, once there is one.
    pub fn add(
        &mut self,
        ticket: Ticket,
        command: Command,
        request: RequestId,
        basis: Option<u64>,
        now_ms: u64,
    ) -> Result<(), ProposeError> {
        if self.open.len() >= limits::OPEN_PROPOSALS {
            return Err(ProposeError::Busy(self.open.len()));
        }
        let body = match basis {
            Some(basis) => Body::Encoded(encode(request, basis, command)?),
            None => Body::Command(command),
        };
        let open = Open {
            request,
            body,
            deadline_ms: now_ms + limits::PROPOSE_TIMEOUT.as_millis() as u64,
            again_ms: now_ms,
            handed_in: false,
        };
        self.open.insert(ticket, open);
        self.by_request.insert(request, ticket);
        Ok(())
    }

    /// Those to be handed in now, when the state of the group is at `basis` here; and those that can not be.
    pub fn due(&mut self, now_ms: u64, basis: u64) -> (Vec<(Ticket, Bytes)>, Failures) {
        let (mut due, mut refused) = (Vec::new(), Vec::new());
        for (ticket, open) in self.open.iter_mut().filter(|(_, open)| open.again_ms <= now_ms) {
            if let Body::Command(command) = &open.body {
                match encode(open.request, basis, command.clone()) {
                    Ok(bytes) => open.body = Body::Encoded(bytes),
                    Err(e) => refused.push((*ticket, open.request, e)),
                }
            }
            if let Body::Encoded(bytes) = &open.body {
                due.push((*ticket, bytes.clone()));
            }
        }
        let mut errors = Vec::with_capacity(refused.len());
        for (ticket, request, error) in refused {
            self.open.remove(&ticket);
            self.by_request.remove(&request);
            errors.push((ticket, error));
        }
        (due, errors)
    }

    /// The node leaves its group for another one, whose indexes are others: all are
    /// answered, what was handed in as unknown.
    pub fn moved(&mut self) -> Failures {
        for open in self.open.values_mut() {
            open.deadline_ms = 0;
        }
        self.expired(0, "this node is moving to another group")
    }

    /// All are to be handed in at once: there is a new leader.
    pub fn hurry(&mut self) {
        for open in self.open.values_mut() {
            open.again_ms = 0;
        }
    }

    /// It was handed in, or could not be.
    pub fn tried(&mut self, ticket: Ticket, handed_in: bool, now_ms: u64) {
        if let Some(open) = self.open.get_mut(&ticket) {
            open.handed_in |= handed_in;
            let pause = if handed_in {
                limits::PROPOSE_AGAIN
            } else {
                limits::RAFT_TICK
            };
            open.again_ms = now_ms + pause.as_millis() as u64;
        }
    }

    /// A request was applied.
    pub fn applied(&mut self, request: RequestId) -> Option<Ticket> {
        let ticket = self.by_request.remove(&request)?;
        self.open.remove(&ticket).map(|_| ticket)
    }

    /// The registry jumped: outcomes that it remembers.
    pub fn remembered(&mut self, registry: &Registry) -> Vec<(Ticket, Result<(), Refusal>)> {
        let known = |request: &RequestId| Some((*request, registry.outcome(*request)?));
        let known: Vec<_> = self.by_request.keys().filter_map(known).collect();
        known
            .into_iter()
            .filter_map(|(request, outcome)| Some((self.applied(request)?, outcome)))
            .collect()
    }

    /// Those whose time is over, with the error: `reason` tells why nothing was handed in.
    pub fn expired(&mut self, now_ms: u64, reason: &str) -> Failures {
        let over = self.open.iter().filter(|(_, open)| open.deadline_ms <= now_ms);
        let over: Vec<_> = over
            .map(|(ticket, open)| (*ticket, open.request, open.handed_in))
            .collect();
        let mut errors = Vec::with_capacity(over.len());
        for (ticket, request, handed_in) in over {
            self.open.remove(&ticket);
            self.by_request.remove(&request);
            let error = match handed_in {
                true => ProposeError::Unknown(limits::PROPOSE_TIMEOUT),
                false => ProposeError::NoQuorum(reason.to_owned()),
            };
            errors.push((ticket, error));
        }
        errors
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

fn encode(request: RequestId, basis: u64, command: Command) -> Result<Bytes, ProposeError> {
    let bytes = Proposal {
        request,
        basis,
        command,
    }
    .encode()?;
    if bytes.len() > limits::PROPOSAL_BYTES {
        let (bytes, most) = (bytes.len(), limits::PROPOSAL_BYTES);
        return Err(ProposeError::TooLarge { bytes, most });
    }
    Ok(bytes.into())
}
