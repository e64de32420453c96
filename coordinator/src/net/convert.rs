//! Between the engine's messages and the frames of the wire: the one place where both are known.
//!
//! Never looks inside a record batch; who uses the records checks them.

use bytes::Bytes;
use oxigears_proto::{self as wire, frame::Body};

use super::convert_registry;
use crate::{
    codec::RecordBatch,
    limits::{EXECUTION_ID_BYTES, NODE_ID_BYTES, PARTICIPANTS},
    message::{BatchKind, ExecutionId, ExecutionMessage, Message},
    topology::NodeId,
};

/// Bytes that numbers, tags and lengths of a frame take at most, about.
pub(super) const FRAME_OVERHEAD_BYTES: usize = 4096;

/// The payload of a message, if it is of a kind that has one: what may be large.
pub(super) fn payload_mut(message: &mut Message) -> Option<&mut Bytes> {
    match message {
        Message::Execution {
            body: ExecutionMessage::Prepare { plan, .. },
            ..
        } => Some(plan),
        Message::Execution {
            body: ExecutionMessage::Batch { batch, .. },
            ..
        } => Some(&mut batch.bytes),
        Message::Query { argument, .. } => Some(argument),
        Message::Answer { result: Ok(body), .. } => Some(body),
        Message::Registry(message) => convert_registry::payload_mut(message),
        _ => None,
    }
}

/// About how many bytes a message takes without its payload; never too few.
pub(super) fn head_bytes(message: &Message) -> usize {
    let texts = match message {
        Message::Execution { body, .. } => match body {
            ExecutionMessage::Prepare { participants, .. } => {
                participants.iter().map(|id| id.as_str().len() + 4).sum::<usize>()
            }
            ExecutionMessage::Prepared {
                refusal: Some(text), ..
            }
            | ExecutionMessage::Abort { reason: text, .. }
            | ExecutionMessage::Progress { step: text } => text.len(),
            _ => 0,
        },
        Message::Query { what, .. } => what.len(),
        Message::Answer { result: Err(text), .. } => text.len(),
        Message::Answer { result: Ok(_), .. } => 0,
        Message::Registry(message) => convert_registry::text_bytes(message),
    };
    texts + FRAME_OVERHEAD_BYTES
}

/// The keep-alive frame.
pub(super) fn heartbeat(sequence: u64) -> wire::Frame {
    wire::Frame {
        body: Some(Body::Heartbeat(wire::Heartbeat { sequence })),
    }
}

/// A message as a frame; payloads are shared, not copied.
pub(super) fn to_frame(message: Message) -> wire::Frame {
    let body = match message {
        Message::Execution { execution, body } => execution_body(execution.as_str().to_owned(), body),
        Message::Query { id, what, argument } => Body::Query(wire::Query { id, what, argument }),
        Message::Registry(message) => convert_registry::to_body(message),
        Message::Answer { id, result } => {
            let result = match result {
                Ok(body) => wire::answer::Result::Body(body),
                Err(text) => wire::answer::Result::Error(text),
            };
            Body::Answer(wire::Answer {
                id,
                result: Some(result),
            })
        }
    };
    wire::Frame { body: Some(body) }
}

fn execution_body(execution: String, body: ExecutionMessage) -> Body {
    match body {
        ExecutionMessage::Prepare {
            epoch,
            participants,
            plan,
            idle_limit_ms,
        } => Body::Prepare(wire::Prepare {
            execution,
            epoch,
            participants: participants.iter().map(|id| id.as_str().to_owned()).collect(),
            plan,
            idle_limit_ms,
        }),
        ExecutionMessage::Prepared { refusal, retry } => Body::Prepared(wire::Prepared {
            execution,
            refusal,
            retry,
        }),
        ExecutionMessage::Start => Body::Start(wire::Start { execution }),
        ExecutionMessage::Batch {
            exchange,
            sequence,
            kind,
            batch,
        } => Body::Batch(wire::Batch {
            execution,
            exchange,
            sequence,
            records: batch.records,
            kind: match kind {
                BatchKind::Records => 0,
                BatchKind::Errors => 1,
            },
            payload: batch.bytes,
        }),
        ExecutionMessage::EndOfInput { exchange, sequence } => Body::EndOfInput(wire::EndOfInput {
            execution,
            exchange,
            sequence,
        }),
        ExecutionMessage::Credit { exchange, bytes } => Body::Credit(wire::Credit {
            execution,
            exchange,
            bytes,
        }),
        ExecutionMessage::Report => Body::Report(wire::Report { execution }),
        ExecutionMessage::Finish => Body::Finish(wire::Finish { execution }),
        ExecutionMessage::Abort { reason, user } => Body::Abort(wire::Abort {
            execution,
            reason,
            user,
        }),
        ExecutionMessage::Progress { step } => Body::Progress(wire::Progress { execution, step }),
    }
}

/// What a frame says: a message, nothing (a heartbeat), or why it is no frame of this version.
pub(super) fn from_frame(frame: wire::Frame) -> Result<Option<Message>, &'static str> {
    let message = match frame.body.ok_or("a frame of an unknown kind")? {
        Body::Heartbeat(_) => return Ok(None),
        Body::Query(m) => Message::Query {
            id: m.id,
            what: m.what,
            argument: m.argument,
        },
        Body::Answer(m) => {
            let result = match m.result.ok_or("an answer without a result")? {
                wire::answer::Result::Body(body) => Ok(body),
                wire::answer::Result::Error(text) => Err(text),
            };
            Message::Answer { id: m.id, result }
        }
        body => {
            let body = match convert_registry::from_body(body)? {
                Ok(message) => return Ok(Some(Message::Registry(message))),
                Err(body) => body,
            };
            let (id, body) = execution_message(body)?;
            if id.is_empty() || id.len() > EXECUTION_ID_BYTES {
                return Err("a message without a proper execution id");
            }
            Message::Execution {
                execution: ExecutionId(id.into()),
                body,
            }
        }
    };
    Ok(Some(message))
}

fn execution_message(body: Body) -> Result<(String, ExecutionMessage), &'static str> {
    Ok(match body {
        Body::Prepare(m) => (m.execution, prepare(m.epoch, m.participants, m.plan, m.idle_limit_ms)?),
        Body::Prepared(m) => (
            m.execution,
            ExecutionMessage::Prepared {
                refusal: m.refusal,
                retry: m.retry,
            },
        ),
        Body::Start(m) => (m.execution, ExecutionMessage::Start),
        Body::Batch(m) => {
            let kind = match m.kind {
                0 => BatchKind::Records,
                1 => BatchKind::Errors,
                _ => return Err("a batch of an unknown kind"),
            };
            let batch = RecordBatch {
                bytes: m.payload,
                records: m.records,
            };
            (
                m.execution,
                ExecutionMessage::Batch {
                    exchange: m.exchange,
                    sequence: m.sequence,
                    kind,
                    batch,
                },
            )
        }
        Body::EndOfInput(m) => (
            m.execution,
            ExecutionMessage::EndOfInput {
                exchange: m.exchange,
                sequence: m.sequence,
            },
        ),
        Body::Credit(m) => (
            m.execution,
            ExecutionMessage::Credit {
                exchange: m.exchange,
                bytes: m.bytes,
            },
        ),
        Body::Report(m) => (m.execution, ExecutionMessage::Report),
        Body::Finish(m) => (m.execution, ExecutionMessage::Finish),
        Body::Abort(m) => (
            m.execution,
            ExecutionMessage::Abort {
                reason: m.reason,
                user: m.user,
            },
        ),
        Body::Progress(m) => (m.execution, ExecutionMessage::Progress { step: m.step }),
        _ => return Err("a frame out of place"),
    })
}

fn prepare(
    epoch: u64,
    participants: Vec<String>,
    plan: Bytes,
    idle_limit_ms: u64,
) -> Result<ExecutionMessage, &'static str> {
    if participants.len() > PARTICIPANTS {
        return Err("a plan for more shards than an execution may have");
    }
    if participants.iter().any(|id| id.is_empty() || id.len() > NODE_ID_BYTES) {
        return Err("a plan for a shard without a proper node id");
    }
    let participants = participants.iter().map(|id| NodeId::new(id)).collect();
    Ok(ExecutionMessage::Prepare {
        epoch,
        participants,
        plan,
        idle_limit_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: Message) {
        let frame = to_frame(message.clone());
        assert_eq!(from_frame(frame), Ok(Some(message)));
    }

    #[test]
    fn every_message_survives() {
        let execution = ExecutionId("a-1".into());
        let participants = vec![NodeId::new("a"), NodeId::new("b")];
        let batch = RecordBatch {
            bytes: Bytes::from_static(b"\x00\xff"),
            records: 2,
        };
        let (exchange, sequence) = (3, u64::MAX);
        for body in [
            ExecutionMessage::Prepare {
                epoch: 9,
                participants,
                plan: Bytes::from_static(b"p"),
                idle_limit_ms: 7,
            },
            ExecutionMessage::Prepared {
                refusal: None,
                retry: false,
            },
            ExecutionMessage::Prepared {
                refusal: Some(String::new()),
                retry: true,
            },
            ExecutionMessage::Start,
            ExecutionMessage::Batch {
                exchange,
                sequence,
                kind: BatchKind::Records,
                batch: batch.clone(),
            },
            ExecutionMessage::Batch {
                exchange,
                sequence,
                kind: BatchKind::Errors,
                batch,
            },
            ExecutionMessage::EndOfInput { exchange, sequence },
            ExecutionMessage::Credit {
                exchange,
                bytes: 1 << 40,
            },
            ExecutionMessage::Report,
            ExecutionMessage::Finish,
            ExecutionMessage::Abort {
                reason: "é".into(),
                user: true,
            },
            ExecutionMessage::Progress { step: "map".into() },
        ] {
            check(Message::Execution {
                execution: execution.clone(),
                body,
            });
        }
        check(Message::Query {
            id: 1,
            what: "w".into(),
            argument: Bytes::from_static(b"x"),
        });
        check(Message::Answer {
            id: 1,
            result: Ok(Bytes::new()),
        });
        check(Message::Answer {
            id: 1,
            result: Err(String::new()),
        });
    }

    #[test]
    fn frames_of_another_kind_are_refused() {
        assert_eq!(from_frame(heartbeat(4)), Ok(None));
        assert!(from_frame(wire::Frame { body: None }).is_err());
        let refused = |body| assert!(from_frame(wire::Frame { body: Some(body) }).is_err());
        refused(Body::Start(wire::Start {
            execution: String::new(),
        }));
        refused(Body::Start(wire::Start {
            execution: "x".repeat(EXECUTION_ID_BYTES + 1),
        }));
        refused(Body::Answer(wire::Answer { id: 1, result: None }));
        refused(Body::Batch(wire::Batch {
            execution: "a-1".into(),
            kind: 2,
            ..Default::default()
        }));
        let crowd = vec!["a".to_owned(); PARTICIPANTS + 1];
        refused(Body::Prepare(wire::Prepare {
            execution: "a-1".into(),
            participants: crowd,
            ..Default::default()
        }));
    }
}
