//! What scripts see of an event: its name, the key, type and value of the key at the moment of reading.

use std::cell::RefCell;

use bytes::Bytes;
use oxigears_coordinator::{
    codec::RecordBatch,
    stage::{Source, SourceState},
};

use super::{
    super::{active::Active, limits},
    fire::Key,
    names::Name,
};
use crate::{
    identity,
    readers::event::{self, Huge, HugeRecord, Wish},
    redis::{
        keyspace::ElementScan,
        lock::{self, ServerLock},
    },
};

/// What a thread keeps from record to record.
#[derive(Default)]
struct Tools {
    scan: Option<ElementScan>,
    bytes: Vec<u8>,
}

thread_local! {
    static TOOLS: RefCell<Tools> = const { RefCell::new(Tools { scan: None, bytes: Vec::new() }) };
}

/// A record, or why there is none now.
pub enum Read {
    /// It is there.
    Record(RecordBatch),
    /// Its value is too large for one hold of the lock.
    Huge(Huge),
}

/// Reads the record. The error: the user who registered may not read the key.
pub fn read(guard: &ServerLock, active: &Active, place: (&str, &[u8]), wish: Wish) -> Result<Read, String> {
    TOOLS.with_borrow_mut(|Tools { scan, bytes }| {
        bytes.clear();
        if let Err(huge) = append(guard, active, place, wish, None, bytes, scan, false)? {
            return Ok(Read::Huge(huge));
        }
        let bytes = match bytes.len() {
            ..=limits::RECORD_KEPT => Bytes::copy_from_slice(bytes),
            // A large one is not copied, and its memory not kept.
            _ => std::mem::take(bytes).into(),
        };
        Ok(Read::Record(RecordBatch { bytes, records: 1 }))
    })
}

/// Reads the record, however long that takes, into memory that this thread uses again and again; to be given back by
/// `give_back`. `known`: the string that the key holds, if that is at hand.
pub fn take(
    guard: &ServerLock,
    active: &Active,
    place: (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
) -> Result<Vec<u8>, String> {
    TOOLS.with_borrow_mut(|Tools { scan, bytes }| {
        bytes.clear();
        // A whole one is never too large.
        let _ = append(guard, active, place, wish, known, bytes, scan, true)?;
        Ok(std::mem::take(bytes))
    })
}

/// See `take`.
pub fn give_back(record: Vec<u8>) {
    if record.capacity() <= limits::RECORD_KEPT {
        TOOLS.with_borrow_mut(|tools| tools.bytes = record);
    }
}

/// The same as `read`, behind other records.
pub fn read_behind(
    guard: &ServerLock,
    active: &Active,
    place: (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<Result<(), Huge>, String> {
    TOOLS.with_borrow_mut(|Tools { scan, .. }| append(guard, active, place, wish, known, out, scan, false))
}

#[allow(clippy::too_many_arguments)]
fn append(
    guard: &ServerLock,
    active: &Active,
    place: (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
    out: &mut Vec<u8>,
    scan: &mut Option<ElementScan>,
    whole: bool,
) -> Result<Result<(), Huge>, String> {
    if let Some(user) = &active.core.loaded.user {
        identity::check_record(guard, user, place.1, wish.read_value, wish.all_types)?;
    }
    let scan = scan.get_or_insert_with(ElementScan::new);
    Ok(event::put(guard, out, place, wish, known, scan, whole))
}

/// How far a record has been read.
pub enum Stage {
    /// Not at all.
    New,
    /// Its value is huge.
    Huge(HugeRecord),
    /// It has been given.
    Done,
}

/// The input of an execution on all shards: the record of the event, read when it runs.
pub struct EventInput {
    /// The registration.
    pub active: std::sync::Arc<Active>,
    /// Name of the event.
    pub name: Name,
    /// The key.
    pub key: Key,
    /// What to read.
    pub wish: Wish,
    /// How far that is.
    pub stage: Stage,
}

const NOT_YET: SourceState = SourceState::Batch(RecordBatch {
    bytes: Bytes::new(),
    records: 0,
});

/// The batch of one record.
pub fn one(record: Vec<u8>) -> RecordBatch {
    RecordBatch {
        bytes: record.into(),
        records: 1,
    }
}

impl Source for EventInput {
    fn next_batch(&mut self) -> SourceState {
        let (state, stage) = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::New => match read(&lock::lock(), &self.active, (&self.name, &self.key), self.wish) {
                Ok(Read::Record(batch)) => (SourceState::Batch(batch), Stage::Done),
                Ok(Read::Huge(huge)) => (NOT_YET, Stage::Huge(HugeRecord::new(&self.key, huge))),
                Err(text) => (SourceState::Error(text), Stage::Done),
            },
            // The worker tells that it gets on, and looks whether the execution is aborted, between two calls.
            Stage::Huge(mut record) => match record.go_on(&self.name, self.wish) {
                Some(record) => (SourceState::Batch(one(record)), Stage::Done),
                None => (NOT_YET, Stage::Huge(record)),
            },
            Stage::Done => (SourceState::End, Stage::Done),
        };
        self.stage = stage;
        state
    }
}
