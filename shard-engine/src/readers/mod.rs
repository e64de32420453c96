//! Native readers: from the keyspace to encoded records, without commands and without Python.
//!
//! * `keys`: KeysReader and KeysOnlyReader
//! * `stream`: StreamReader
//! * `slices`: how long the server lock is held, and how long not
//! * `event`: the record of one event
//! * `values`, `big`: values of keys as items of the codec
//! * `batch`: the batch being filled; `glob`: patterns
//!
//! They copy bytes out under the lock and never run anything of the user's there.

mod batch;
mod big;
pub mod event;
mod glob;
mod keys;
pub mod slices;
mod stream;
pub mod values;

use oxigears_coordinator::{
    codec::{RecordBatch, put_tagged, tag},
    plan::Reader,
    stage::{Source, SourceState},
};

use crate::redis::{key::Kind, lock::ServerLock};

/// Says why a keyspace reader's result would not be complete.
pub type Check = fn(&ServerLock, u64) -> Result<(), String>;

/// What readers need to know of their execution.
pub struct ReaderEnv {
    /// The first step counts records, so the reader gives numbers without bytes.
    pub count_only: bool,
    /// Topology that the execution is bound to; `None` if it runs on this shard alone.
    pub epoch: Option<u64>,
    /// Called with the epoch under the lock, in the first and in the last slice.
    pub check: Check,
    /// What ShardsIDReader gives.
    pub shard_id: String,
    /// Types of which KeysReader may not give values, and why: it fails at the first one.
    pub denied: Vec<(Kind, String)>,
}

/// Opens a reader. The error is the text of its one error record.
pub fn open(reader: &Reader, env: &ReaderEnv) -> Result<Box<dyn Source>, String> {
    Ok(match reader {
        Reader::Keys(args) => Box::new(keys::KeysSource::of_keys(args, env)),
        Reader::KeysOnly {
            pattern,
            no_scan,
            count,
            generator: None,
        } => Box::new(keys::KeysSource::of_names(pattern, *no_scan, count, env)?),
        Reader::KeysOnly { .. } => return Err("the pattern of KeysOnlyReader has not been resolved".into()),
        Reader::Stream { key, from_id } => Box::new(stream::StreamSource::new(key, from_id, env)),
        Reader::ShardsId => Box::new(OneRecord::shard_id(env)),
        Reader::Python { .. } => return Err("PythonReader makes its records itself".into()),
        Reader::Command => {
            return Err("CommandReader gives what a client sends with RG.TRIGGER; it can not be run".into());
        }
    })
}

/// A source of one batch.
struct OneRecord(Option<RecordBatch>);

impl OneRecord {
    fn shard_id(env: &ReaderEnv) -> OneRecord {
        let mut bytes = Vec::new();
        put_tagged(&mut bytes, tag::STR, env.shard_id.as_bytes());
        OneRecord(Some(RecordBatch {
            bytes: bytes.into(),
            records: 1,
        }))
    }
}

impl Source for OneRecord {
    fn next_batch(&mut self) -> SourceState {
        self.0.take().map_or(SourceState::End, SourceState::Batch)
    }
}
