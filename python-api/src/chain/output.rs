//! The output buffers of a stage: one, or one per destination.

use std::{ptr::null, sync::Arc};

use oxigears_coordinator::{
    codec::{RecordBatch, put_bytes, tag},
    limits::{BATCH_BYTES, BATCH_RECORDS},
    plan::Output,
    stage::{Route, StageSink},
    topology::key_slot,
};

use super::{
    ExecContext,
    item::{Item, Raised},
    text,
};
use crate::codec::{Encoder, Kept};

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    records: u32,
}

/// Encodes records and hands them to the sink in batches.
pub(super) struct Out {
    buffers: Vec<Buffer>,
    /// `Some(with_key)` if records go to the owners of their keys.
    shuffle: Option<bool>,
    /// Small results leave at the end of each slice; a shuffle waits for full batches.
    eager: bool,
    /// The buffer whose records stay on this shard for its next stage.
    stays: Option<usize>,
    kept: Arc<Kept>,
}

impl Out {
    pub(super) fn new(output: Output, ctx: &ExecContext, kept: Arc<Kept>, wants_objects: bool) -> Out {
        let (shuffle, stays) = match output {
            Output::Shuffle { with_key } => (Some(with_key), Some(ctx.me)),
            Output::Collect => (None, ctx.is_initiator.then_some(0)),
            Output::Result => (None, wants_objects.then_some(0)),
        };
        let count = if shuffle.is_some() { ctx.participants.max(1) } else { 1 };
        Out {
            stays,
            kept,
            buffers: (0..count).map(|_| Buffer::default()).collect(),
            shuffle,
            eager: shuffle.is_none(),
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.shuffle.is_none()
    }

    pub(super) fn is_keyed_shuffle(&self) -> bool {
        self.shuffle == Some(true)
    }

    /// Encodes a record into the buffer of its destination. On failure a Python exception is set.
    ///
    /// # Safety
    /// The GIL is held.
    pub(super) unsafe fn put(
        &mut self,
        item: &Item,
        encoder: &Encoder,
        sink: &mut dyn StageSink,
    ) -> Result<(), Raised> {
        let Some(with_key) = self.shuffle else {
            let encoder = self.encoder_for(0, encoder);
            let buffer = &mut self.buffers[0];
            // SAFETY: the GIL is held, the item is alive.
            unsafe { encoder.encode(&mut buffer.bytes, item.value.as_ptr()) }.map_err(|_| Raised)?;
            self.added(0, sink);
            return Ok(());
        };
        let mut spare = Vec::new();
        // SAFETY: the GIL is held; the key lives as long as the item.
        let key = unsafe { item.key.bytes(&mut spare) }?;
        let number = self.destination(key, sink);
        let encoder = self.encoder_for(number, encoder);
        let bytes = &mut self.buffers[number].bytes;
        let start = bytes.len();
        if with_key {
            bytes.push(tag::KEYED);
            put_bytes(bytes, key);
        }
        // SAFETY: the GIL is held, the item is alive.
        if unsafe { encoder.encode(bytes, item.value.as_ptr()) }.is_err() {
            bytes.truncate(start);
            return Err(Raised);
        }
        self.added(number, sink);
        Ok(())
    }

    /// Writes the text of a record to a plain output; false if it has to be made by Python first.
    ///
    /// # Safety
    /// The GIL is held.
    #[inline]
    pub(super) unsafe fn put_text(&mut self, item: &Item, sink: &mut dyn StageSink) -> bool {
        // SAFETY: the GIL is held, the item is alive.
        if !self.is_plain() || !unsafe { text::put_item(&mut self.buffers[0].bytes, item.value.as_ptr()) } {
            return false;
        }
        self.added(0, sink);
        true
    }

    /// Writes a record of a plain output natively.
    pub(super) fn put_plain(&mut self, sink: &mut dyn StageSink, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.buffers[0].bytes);
        self.added(0, sink);
    }

    /// Writes a record that travels with its key natively.
    pub(super) fn put_keyed(&mut self, key: &[u8], sink: &mut dyn StageSink, write: impl FnOnce(&mut Vec<u8>)) {
        let number = self.destination(key, sink);
        let bytes = &mut self.buffers[number].bytes;
        bytes.push(tag::KEYED);
        put_bytes(bytes, key);
        write(bytes);
        self.added(number, sink);
    }

    /// Records that stay here keep their objects, unless a reply is all that becomes of them.
    fn encoder_for(&self, number: usize, encoder: &Encoder) -> Encoder {
        let kept = if self.stays == Some(number) && !encoder.is_result {
            Arc::as_ptr(&self.kept)
        } else {
            null()
        };
        Encoder { kept, ..*encoder }
    }

    fn destination(&self, key: &[u8], sink: &mut dyn StageSink) -> usize {
        // An owner beyond the participants would be an error of the topology; the last one then refuses the record.
        sink.owner(key_slot(key)).min(self.buffers.len() - 1)
    }

    #[inline]
    fn added(&mut self, number: usize, sink: &mut dyn StageSink) {
        let buffer = &mut self.buffers[number];
        buffer.records += 1;
        if buffer.records as usize >= BATCH_RECORDS || buffer.bytes.len() >= BATCH_BYTES {
            self.flush_one(number, sink);
        }
    }

    fn flush_one(&mut self, number: usize, sink: &mut dyn StageSink) {
        let buffer = &mut self.buffers[number];
        if buffer.records == 0 {
            return;
        }
        // The next batch is probably about as large.
        let room = buffer.bytes.len().min(BATCH_BYTES);
        let bytes = std::mem::replace(&mut buffer.bytes, Vec::with_capacity(room));
        let batch = RecordBatch {
            bytes: bytes.into(),
            records: std::mem::take(&mut buffer.records),
        };
        let route = if self.shuffle.is_some() {
            Route::Participant(number)
        } else {
            Route::Default
        };
        sink.emit(route, batch);
    }

    /// Hands over everything.
    pub(super) fn flush(&mut self, sink: &mut dyn StageSink) {
        for number in 0..self.buffers.len() {
            self.flush_one(number, sink);
            self.buffers[number].bytes = Vec::new();
        }
    }

    /// Takes records that were encoded before.
    pub(super) fn adopt(&mut self, bytes: Vec<u8>, records: u32) {
        self.buffers[0] = Buffer { bytes, records };
    }

    /// The input is used up for now.
    pub(super) fn pause(&mut self, sink: &mut dyn StageSink) {
        if self.eager {
            self.flush_one(0, sink);
        }
    }
}
