//! StreamReader in run mode: the entries of one stream behind an id, up to the last one that it has at the start.

use std::ops::ControlFlow;

use oxigears_coordinator::{
    codec::{put_bytes, tag},
    stage::{Source, SourceState},
};

use super::{
    Check, ReaderEnv,
    batch::Batch,
    slices::{Deadline, Slices},
    values,
};
use crate::redis::{
    key::{Key, Kind, StreamId},
    lock::ServerLock,
};

const BAD_ID: &str = "ERR Invalid stream ID specified as stream command argument";
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// The source.
pub struct StreamSource {
    key: Vec<u8>,
    batch: Batch,
    slices: Slices,
    check: Option<(Check, u64)>,
    state: State,
}

enum State {
    /// Nothing has been read yet; entries behind this id are wanted.
    Start(StreamId),
    /// The entries behind the first id, up to the second, are still to be read.
    Between(StreamId, StreamId),
    /// Ends with this, once the batch has been handed on.
    Last(SourceState),
}

impl StreamSource {
    /// Entries of `key` with an id greater than `from_id`.
    pub fn new(key: &[u8], from_id: &str, env: &ReaderEnv) -> StreamSource {
        StreamSource {
            key: key.to_vec(),
            batch: Batch::new(env.count_only),
            slices: Slices::default(),
            check: env.epoch.map(|epoch| (env.check, epoch)),
            state: StreamId::parse(from_id)
                .map_or_else(|| State::Last(SourceState::Error(BAD_ID.into())), State::Start),
        }
    }

    fn check(&self, guard: &ServerLock) -> Result<(), SourceState> {
        let outcome = self.check.map_or(Ok(()), |(check, epoch)| check(guard, epoch));
        outcome.map_err(SourceState::Broken)
    }

    /// Reads until the slice is over or the batch is full. `Err` is how the source ends.
    fn slice(&mut self, guard: &ServerLock, deadline: &mut Deadline) -> Result<(), SourceState> {
        let key = Key::open(guard, &self.key);
        if key.as_ref().is_some_and(|key| key.kind() != Kind::Stream) {
            return Err(SourceState::Error(WRONG_TYPE.into()));
        }
        let (mut after, until) = match self.state {
            State::Start(after) => {
                self.check(guard)?;
                (after, key.as_ref().and_then(Key::last_stream_id).unwrap_or_default())
            }
            State::Between(after, until) => (after, until),
            State::Last(_) => return Ok(()),
        };
        let (name, batch, mut stopped) = (&self.key, &mut self.batch, false);
        if let Some(key) = key.filter(|_| after < until) {
            key.stream_entries(Some(after), Some(until), |id, fields| {
                after = id;
                batch.add(|out| {
                    out.push(tag::STREAM_RECORD);
                    put_bytes(out, name);
                    put_bytes(out, id.to_string().as_bytes());
                    values::put_fields(out, fields);
                });
                stopped = batch.is_full() || deadline.is_over();
                if stopped {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
        }
        self.state = State::Between(after, until);
        if stopped {
            return Ok(());
        }
        self.check(guard)?;
        Err(SourceState::End)
    }
}

impl Source for StreamSource {
    fn next_batch(&mut self) -> SourceState {
        self.slices.begin_batch();
        while !matches!(self.state, State::Last(_)) {
            let mut slices = std::mem::take(&mut self.slices);
            let outcome = slices.run(|guard, deadline| self.slice(guard, deadline));
            self.slices = slices;
            if let Err(last) = outcome {
                self.state = State::Last(last);
            }
            if self.batch.is_full() || self.slices.batch_is_late() {
                break;
            }
        }
        let broken = matches!(self.state, State::Last(SourceState::Broken(_)));
        match &mut self.state {
            State::Last(last) if broken || self.batch.is_empty() => std::mem::replace(last, SourceState::End),
            _ => SourceState::Batch(self.batch.take()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_by_the_server() {
        let id = |ms, seq| Some(StreamId { ms, seq });
        for (text, expected) in [
            ("0-0", id(0, 0)),
            ("5", id(5, 0)),
            ("5-7", id(5, 7)),
            ("-", None),
            ("+", None),
            ("18446744073709551615-18446744073709551615", id(u64::MAX, u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("a", None),
            ("1-", None),
            ("-1", None),
            ("1-2-3", None),
            ("1-*", None),
            ("+1", None),
            (" 1", None),
            ("*", None),
        ] {
            assert_eq!(StreamId::parse(text), expected, "{text}");
        }
    }
}
