//! Between the engine's messages and the frames of the wire: the one place where both are known.
//!
//! Never looks inside a record batch; who uses the records checks them.

use bytes::Bytes;
use oxigears_proto::{self as wire, frame::Body};

use super::convert_registry;
use crate::{
    codec::RecordBatch,
    limits::{EXECUTION_ID_BYTES, MESSAGES_IN_ONE, NODE_ID_BYTES, PARTICIPANTS},
    message::{BatchKind, ExecutionId, ExecutionMessage, Message, Work},
    topology::NodeId,
};

/// Bytes that numbers, tags and lengths of a frame take at most, about.
pub(super) const FRAME_OVERHEAD_BYTES: usize = 4096;

/// The payload of a message, if it is of a kind that has one: what may be large.
pub(super) fn payload_mut(message: &mut Message) -> Option<&mut Bytes> {
    match message {
        Message::Execution {
            body: ExecutionMessage::Prepare { work, .. },
            ..
        } => Some(match work {
            Work::Plan(plan) => plan,
            Work::Registered { input, .. } => &mut input.bytes,
        }),
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
        Message::Execution { body, .. } => execution_text_bytes(body),
        Message::Query { what, .. } => what.len(),
        Message::Answer { result: Err(text), .. } => text.len(),
        Message::Answer { result: Ok(_), .. } => 0,
        Message::Registry(message) => convert_registry::text_bytes(message),
    };
    texts + FRAME_OVERHEAD_BYTES
}

fn execution_text_bytes(body: &ExecutionMessage) -> usize {
    match body {
        ExecutionMessage::Prepare { participants, work, .. } => {
            let id = match work {
                Work::Registered { registration, .. } => registration.len(),
                Work::Plan(_) => 0,
            };
            id + participants.iter().map(|id| id.as_str().len() + 4).sum::<usize>()
        }
        ExecutionMessage::Prepared {
            refusal: Some(text), ..
        }
        | ExecutionMessage::Abort { reason: text, .. }
        | ExecutionMessage::Progress { step: text } => text.len(),
        // Their batches are part of the head: they are small, and do not travel in pieces.
        ExecutionMessage::Several(parts) => {
            let batch = |part: &ExecutionMessage| match part {
                ExecutionMessage::Batch { batch, .. } => batch.bytes.len(),
                _ => 0,
            };
            let sizes = parts.iter().map(|part| 64 + execution_text_bytes(part) + batch(part));
            sizes.sum()
        }
        _ => 0,
    }
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
            work,
            idle_limit_ms,
        } => {
            let (payload, registered) = match work {
                Work::Plan(plan) => (plan, None),
                Work::Registered {
                    registration,
                    index,
                    input,
                    depth,
                } => {
                    let registered = wire::Registered {
                        id: registration.as_ref().to_owned(),
                        index,
                        records: input.records,
                        depth,
                    };
                    (input.bytes, Some(registered))
                }
            };
            Body::Prepare(wire::Prepare {
                execution,
                epoch,
                participants: participants.iter().map(|id| id.as_str().to_owned()).collect(),
                payload,
                idle_limit_ms,
                registered,
            })
        }
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
        ExecutionMessage::Several(parts) => Body::Several(wire::Several {
            execution,
            parts: parts
                .into_iter()
                .map(|part| wire::Frame {
                    body: Some(execution_body(String::new(), part)),
                })
                .collect(),
        }),
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
        Body::Prepare(m) => prepare(m)?,
        Body::Several(m) => (m.execution, several(m.parts)?),
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

fn prepare(m: wire::Prepare) -> Result<(String, ExecutionMessage), &'static str> {
    if m.participants.len() > PARTICIPANTS {
        return Err("a plan for more shards than an execution may have");
    }
    if m.participants
        .iter()
        .any(|id| id.is_empty() || id.len() > NODE_ID_BYTES)
    {
        return Err("a plan for a shard without a proper node id");
    }
    let work = match m.registered {
        None => Work::Plan(m.payload),
        Some(r) if r.id.is_empty() || r.id.len() > EXECUTION_ID_BYTES => {
            return Err("an execution of a registration without a proper id");
        }
        Some(r) => Work::Registered {
            registration: r.id.into(),
            index: r.index,
            input: RecordBatch {
                bytes: m.payload,
                records: r.records,
            },
            depth: r.depth,
        },
    };
    let body = ExecutionMessage::Prepare {
        epoch: m.epoch,
        participants: m.participants.iter().map(|id| NodeId::new(id)).collect(),
        work,
        idle_limit_ms: m.idle_limit_ms,
    };
    Ok((m.execution, body))
}

/// Parts are plain messages: none that has parts itself, none that begins an execution.
fn several(parts: Vec<wire::Frame>) -> Result<ExecutionMessage, &'static str> {
    if parts.len() > MESSAGES_IN_ONE {
        return Err("too many messages in one");
    }
    let part = |frame: wire::Frame| match frame.body {
        None | Some(Body::Prepare(_) | Body::Several(_)) => Err("a message that can not be part of another"),
        Some(body) => execution_message(body).map(|(_, part)| part),
    };
    let parts: Result<_, _> = parts.into_iter().map(part).collect();
    parts.map(ExecutionMessage::Several)
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
                participants: participants.clone(),
                work: Work::Plan(Bytes::from_static(b"p")),
                idle_limit_ms: 7,
            },
            ExecutionMessage::Prepare {
                epoch: 9,
                participants,
                work: Work::Registered {
                    registration: "a-7".into(),
                    index: u64::MAX,
                    input: batch.clone(),
                    depth: 3,
                },
                idle_limit_ms: 7,
            },
            ExecutionMessage::Several(vec![
                ExecutionMessage::Batch {
                    exchange,
                    sequence,
                    kind: BatchKind::Errors,
                    batch: batch.clone(),
                },
                ExecutionMessage::EndOfInput { exchange, sequence },
                ExecutionMessage::Report,
            ]),
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
        for id in [String::new(), "x".repeat(EXECUTION_ID_BYTES + 1)] {
            let registered = wire::Registered {
                id,
                ..Default::default()
            };
            refused(Body::Prepare(wire::Prepare {
                execution: "a-1".into(),
                registered: Some(registered),
                ..Default::default()
            }));
        }
        let several = |parts: Vec<wire::Frame>| {
            Body::Several(wire::Several {
                execution: "a-1".into(),
                parts,
            })
        };
        let part = |body| wire::Frame { body: Some(body) };
        refused(several(vec![part(several(vec![]))]));
        refused(several(vec![part(Body::Prepare(wire::Prepare::default()))]));
        refused(several(vec![heartbeat(1)]));
        refused(several(vec![wire::Frame { body: None }]));
        refused(several(vec![
            part(Body::Report(wire::Report::default()));
            MESSAGES_IN_ONE + 1
        ]));
        let crowd = vec!["a".to_owned(); PARTICIPANTS + 1];
        refused(Body::Prepare(wire::Prepare {
            execution: "a-1".into(),
            participants: crowd,
            ..Default::default()
        }));
    }
}
