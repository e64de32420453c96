//! Messages about the registry and their frames.

use bytes::Bytes;
use oxigears_proto::{self as wire, frame::Body};

use crate::{
    limits::NODE_ID_BYTES,
    message::{GroupHello, GroupId, RegistryMessage, RegistryQuestion},
    topology::NodeId,
};

/// The payload of a message, if it has one.
pub(super) fn payload_mut(message: &mut RegistryMessage) -> Option<&mut Bytes> {
    match message {
        RegistryMessage::Raft { message, .. } => Some(message),
        RegistryMessage::Forward { proposal, .. } => Some(proposal),
        RegistryMessage::Ask {
            question: RegistryQuestion::Check(change),
            ..
        } => Some(change),
        _ => None,
    }
}

/// Bytes of texts in the head of a message.
pub(super) fn text_bytes(message: &RegistryMessage) -> usize {
    match message {
        RegistryMessage::Tell { result: Err(text), .. } => text.len(),
        RegistryMessage::Hello(hello) => hello.leader.as_ref().map_or(0, |id| id.as_str().len()),
        _ => 0,
    }
}

fn group_bytes(group: GroupId) -> Bytes {
    Bytes::copy_from_slice(&group.0.to_be_bytes())
}

fn group_id(bytes: &[u8]) -> Result<GroupId, &'static str> {
    let bytes = bytes.try_into().map_err(|_| "a group id of another length")?;
    Ok(GroupId(u128::from_be_bytes(bytes)))
}

pub(super) fn to_body(message: RegistryMessage) -> Body {
    match message {
        RegistryMessage::Hello(hello) => Body::GroupHello(wire::GroupHello {
            group: hello.group.map(group_bytes),
            raft_id: hello.raft_id,
            leader: hello.leader.map(|id| id.as_str().to_owned()),
            term: hello.term,
            commit: hello.commit,
            applied: hello.applied,
            wants_answer: hello.wants_answer,
        }),
        RegistryMessage::Raft { group, message } => Body::Raft(wire::Raft {
            group: group_bytes(group),
            message,
        }),
        RegistryMessage::Forward { group, proposal } => Body::Forward(wire::Forward {
            group: group_bytes(group),
            proposal,
        }),
        RegistryMessage::Ask { ticket, question } => Body::Ask(wire::Ask {
            ticket,
            question: Some(match question {
                RegistryQuestion::Check(change) => wire::ask::Question::Check(change),
                RegistryQuestion::Active(index) => wire::ask::Question::Active(index),
            }),
        }),
        RegistryMessage::Tell { ticket, result } => Body::Tell(wire::Tell {
            ticket,
            refusal: result.err(),
        }),
    }
}

/// The message of a frame; `None` if the frame is about something else.
pub(super) fn from_body(body: Body) -> Result<Result<RegistryMessage, Body>, &'static str> {
    Ok(Ok(match body {
        Body::GroupHello(m) => {
            let leader = m.leader.map(|id| match id.is_empty() || id.len() > NODE_ID_BYTES {
                true => Err("a leader without a proper node id"),
                false => Ok(NodeId::new(&id)),
            });
            RegistryMessage::Hello(GroupHello {
                group: m.group.map(|group| group_id(&group)).transpose()?,
                raft_id: m.raft_id,
                leader: leader.transpose()?,
                term: m.term,
                commit: m.commit,
                applied: m.applied,
                wants_answer: m.wants_answer,
            })
        }
        Body::Raft(m) => RegistryMessage::Raft {
            group: group_id(&m.group)?,
            message: m.message,
        },
        Body::Forward(m) => RegistryMessage::Forward {
            group: group_id(&m.group)?,
            proposal: m.proposal,
        },
        Body::Ask(m) => RegistryMessage::Ask {
            ticket: m.ticket,
            question: match m.question.ok_or("a question without content")? {
                wire::ask::Question::Check(change) => RegistryQuestion::Check(change),
                wire::ask::Question::Active(index) => RegistryQuestion::Active(index),
            },
        },
        Body::Tell(m) => RegistryMessage::Tell {
            ticket: m.ticket,
            result: m.refusal.map_or(Ok(()), Err),
        },
        other => return Ok(Err(other)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: RegistryMessage) {
        assert_eq!(from_body(to_body(message.clone())), Ok(Ok(message)));
    }

    #[test]
    fn every_message_survives() {
        let group = GroupId(u128::MAX - 5);
        let hello = GroupHello {
            group: None,
            raft_id: 7,
            leader: None,
            term: 1,
            commit: 2,
            applied: 3,
            wants_answer: true,
        };
        check(RegistryMessage::Hello(hello.clone()));
        check(RegistryMessage::Hello(GroupHello {
            group: Some(group),
            leader: Some(NodeId::new("a")),
            ..hello
        }));
        let bytes = Bytes::from_static(b"x");
        check(RegistryMessage::Raft {
            group,
            message: bytes.clone(),
        });
        check(RegistryMessage::Forward {
            group,
            proposal: bytes.clone(),
        });
        for question in [RegistryQuestion::Check(bytes), RegistryQuestion::Active(5)] {
            check(RegistryMessage::Ask { ticket: 1, question });
        }
        for result in [Ok(()), Err("é".to_owned())] {
            check(RegistryMessage::Tell { ticket: 2, result });
        }
    }

    #[test]
    fn malformed_ones_are_refused() {
        let refused = |body| assert!(from_body(body).is_err());
        refused(Body::Raft(wire::Raft {
            group: Bytes::from_static(b"short"),
            message: Bytes::new(),
        }));
        refused(Body::Ask(wire::Ask {
            ticket: 1,
            question: None,
        }));
        refused(Body::GroupHello(wire::GroupHello {
            leader: Some("x".repeat(NODE_ID_BYTES + 1)),
            ..Default::default()
        }));
    }
}
