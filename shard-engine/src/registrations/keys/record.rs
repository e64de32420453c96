//! What scripts see of an event: its name, the key, type and value of the key at the moment of reading.

use std::cell::RefCell;

use oxigears_coordinator::{
    codec::RecordBatch,
    plan::{KeysArgs, Reader},
    stage::{Source, SourceState},
};

use super::super::active::Active;
use crate::{
    identity,
    readers::event::{self, Wish},
    redis::{
        keyspace::ElementScan,
        lock::{self, ServerLock},
    },
};

thread_local! {
    static SCAN: RefCell<Option<ElementScan>> = const { RefCell::new(None) };
}

/// Reads the record, however long that takes. The error: the user who registered may not read the key.
pub fn read(guard: &ServerLock, active: &Active, name: &str, key: &[u8], wish: Wish) -> Result<RecordBatch, String> {
    if let Some(user) = &active.core.loaded.user {
        may_read(user, key)?;
    }
    let mut bytes = Vec::with_capacity(event::room(name, key));
    SCAN.with_borrow_mut(|scan| {
        let scan = scan.get_or_insert_with(ElementScan::new);
        event::put(guard, &mut bytes, name, key, wish, scan);
    });
    Ok(RecordBatch {
        bytes: bytes.into(),
        records: 1,
    })
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
    pub name: std::sync::Arc<str>,
    /// The key.
    pub key: Box<[u8]>,
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
        match read(&guard, &self.active, &self.name, &self.key, self.wish) {
            Ok(batch) => SourceState::Batch(batch),
            Err(text) => SourceState::Error(text),
        }
    }
}
