//! Large payloads in pieces, so that no frame is large.
//!
//! gRPC's buffers keep the size of the largest message that ever passed; with pieces that is a small one. A payload
//! of one piece, which nearly all are, travels and arrives without a copy.

use bytes::Bytes;
use oxigears_proto::{self as wire, frame::Body};

use super::convert::{from_frame, payload_mut, to_frame};
use crate::{
    limits::{FRAGMENT_BYTES, MESSAGE_BYTES},
    message::Message,
};

/// Makes the frames of one message.
pub(super) struct Cutter {
    message: Option<Message>,
    total: u64,
}

impl Cutter {
    pub(super) fn new(mut message: Message) -> Cutter {
        let total = payload_mut(&mut message).map_or(0, |payload| payload.len() as u64);
        Cutter {
            message: Some(message),
            total,
        }
    }

    /// The next frame; the last one is the message with what is left of its payload.
    pub(super) fn next(&mut self) -> Option<wire::Frame> {
        let payload = self.message.as_mut().and_then(payload_mut);
        if let Some(payload) = payload.filter(|payload| payload.len() > FRAGMENT_BYTES) {
            let data = payload.split_to(FRAGMENT_BYTES);
            return Some(wire::Frame {
                body: Some(Body::Fragment(wire::Fragment {
                    total: self.total,
                    data,
                })),
            });
        }
        self.message.take().map(to_frame)
    }
}

/// Makes messages of frames.
#[derive(Default)]
pub(super) struct Joiner {
    /// The beginning of a payload, and the size of the whole.
    begun: Option<(Vec<u8>, usize)>,
}

impl Joiner {
    /// Takes a frame, which may complete a message; or says what is wrong with it.
    pub(super) fn take(&mut self, frame: wire::Frame) -> Result<Option<Message>, &'static str> {
        if let Some(Body::Fragment(fragment)) = frame.body {
            return self.add(&fragment).map(|()| None);
        }
        let Some(mut message) = from_frame(frame)? else {
            return Ok(None);
        };
        if let Some((mut whole, total)) = self.begun.take() {
            let payload = payload_mut(&mut message).ok_or("a payload for a message that has none")?;
            if whole.len() + payload.len() != total {
                return Err("a payload of another size than it said");
            }
            whole.extend_from_slice(payload);
            *payload = Bytes::from(whole);
        }
        Ok(Some(message))
    }

    fn add(&mut self, fragment: &wire::Fragment) -> Result<(), &'static str> {
        let total = usize::try_from(fragment.total).unwrap_or(usize::MAX);
        if total > MESSAGE_BYTES {
            return Err("a payload that is too large");
        }
        let (whole, expected) = self.begun.get_or_insert_with(|| (Vec::with_capacity(total), total));
        if *expected != total || fragment.data.len() > total - whole.len() {
            return Err("a fragment that does not fit to the one before");
        }
        whole.extend_from_slice(&fragment.data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    fn frames(message: Message) -> Vec<wire::Frame> {
        let mut cutter = Cutter::new(message);
        std::iter::from_fn(|| cutter.next()).collect()
    }

    fn answer(bytes: usize) -> Message {
        Message::Answer {
            id: 1,
            result: Ok(vec![7; bytes].into()),
        }
    }

    #[test]
    fn payloads_of_every_size_survive() {
        let edges = [0, 1, 2, 3].map(|n| n * FRAGMENT_BYTES);
        let sizes = edges.into_iter().flat_map(|n| [n.saturating_sub(1), n, n + 1]);
        let mut joiner = Joiner::default();
        for size in sizes {
            let message = batch(size, 1);
            let frames = frames(message.clone());
            assert_eq!(frames.len(), size.div_ceil(FRAGMENT_BYTES).max(1));
            let (last, first) = frames.split_last().unwrap();
            for frame in first {
                assert_eq!(joiner.take(frame.clone()), Ok(None));
                assert_eq!(joiner.take(super::super::convert::heartbeat(1)), Ok(None));
            }
            assert!(joiner.take(last.clone()) == Ok(Some(message)), "{size} bytes");
        }
        assert_eq!(frames(query(1)).len(), 1);
        let plain = Message::Answer {
            id: 1,
            result: Err("no".into()),
        };
        assert_eq!(joiner.take(frames(plain.clone()).remove(0)), Ok(Some(plain)));
    }

    #[test]
    fn fragments_that_do_not_fit_are_refused() {
        let fragment = |total: usize, bytes: usize| {
            let data = vec![0; bytes].into();
            wire::Frame {
                body: Some(Body::Fragment(wire::Fragment {
                    total: total as u64,
                    data,
                })),
            }
        };
        let check = |frames: &[wire::Frame]| {
            let (last, first) = frames.split_last().unwrap();
            let mut joiner = Joiner::default();
            for frame in first {
                assert_eq!(joiner.take(frame.clone()), Ok(None));
            }
            assert!(joiner.take(last.clone()).is_err(), "{} frames", frames.len());
        };
        let one = |message| frames(message).remove(0);
        check(&[fragment(MESSAGE_BYTES + 1, 1)]);
        check(&[fragment(usize::MAX, 1)]);
        check(&[fragment(3, 4)]);
        check(&[fragment(3, 2), fragment(3, 2)]);
        check(&[fragment(3, 2), fragment(4, 1)]);
        check(&[fragment(3, 1), one(answer(1))]);
        check(&[fragment(3, 1), one(answer(3))]);
        check(&[
            fragment(3, 3),
            one(Message::Answer {
                id: 1,
                result: Err("no payload".into()),
            }),
        ]);
        assert!(Joiner::default().take(fragment(MESSAGE_BYTES, 1)).is_ok());
    }
}
