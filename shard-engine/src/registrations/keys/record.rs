//! What scripts see of an event: its name, the key, type and value of the key at the moment of reading.

use std::cell::RefCell;

use bytes::Bytes;
use oxigears_coordinator::{
    codec::RecordBatch,
    plan::{KeysArgs, Reader},
    stage::{Source, SourceState},
};

use super::{
    super::{active::Active, limits},
    fire::Key,
    names::Name,
};
use crate::{
    identity,
    readers::event::{self, Wish},
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

/// Reads the record, however long that takes. The error: the user who registered may not read the key.
///
/// `known`: the string that the key holds, if that is at hand.
pub fn read(
    guard: &ServerLock,
    active: &Active,
    (name, key): (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
) -> Result<RecordBatch, String> {
    TOOLS.with_borrow_mut(|Tools { scan, bytes }| {
        bytes.clear();
        append(guard, active, (name, key), wish, known, bytes, scan)?;
        let bytes = match bytes.len() {
            ..=limits::RECORD_KEPT => Bytes::copy_from_slice(bytes),
            // A large one is not copied, and its memory not kept.
            _ => std::mem::take(bytes).into(),
        };
        Ok(RecordBatch { bytes, records: 1 })
    })
}

/// The same in memory that this thread uses again and again; to be given back by `give_back`.
pub fn take(
    guard: &ServerLock,
    active: &Active,
    place: (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
) -> Result<Vec<u8>, String> {
    TOOLS.with_borrow_mut(|Tools { scan, bytes }| {
        bytes.clear();
        append(guard, active, place, wish, known, bytes, scan)?;
        Ok(std::mem::take(bytes))
    })
}

/// See `take`.
pub fn give_back(record: Vec<u8>) {
    if record.capacity() <= limits::RECORD_KEPT {
        TOOLS.with_borrow_mut(|tools| tools.bytes = record);
    }
}

/// The same behind other records.
pub fn read_behind(
    guard: &ServerLock,
    active: &Active,
    place: (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    TOOLS.with_borrow_mut(|Tools { scan, .. }| append(guard, active, place, wish, known, out, scan))
}

fn append(
    guard: &ServerLock,
    active: &Active,
    (name, key): (&str, &[u8]),
    wish: Wish,
    known: Option<&[u8]>,
    out: &mut Vec<u8>,
    scan: &mut Option<ElementScan>,
) -> Result<(), String> {
    if let Some(user) = &active.core.loaded.user {
        may_read(user, key)?;
    }
    let scan = scan.get_or_insert_with(ElementScan::new);
    event::put(guard, out, name, key, wish, known, scan);
    Ok(())
}

fn may_read(user: &str, key: &[u8]) -> Result<(), String> {
    let reader = Reader::Keys(KeysArgs {
        pattern: key.to_vec(),
        no_scan: true,
        read_value: true,
        all_types: false,
    });
    identity::check_reader(user, &reader)
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
    /// It has been read.
    pub done: bool,
}

impl Source for EventInput {
    fn next_batch(&mut self) -> SourceState {
        if std::mem::replace(&mut self.done, true) {
            return SourceState::End;
        }
        let guard = lock::lock();
        match read(&guard, &self.active, (&self.name, &self.key), self.wish, None) {
            Ok(batch) => SourceState::Batch(batch),
            Err(text) => SourceState::Error(text),
        }
    }
}
