//! The batch that a reader fills.

use oxigears_coordinator::{
    codec::RecordBatch,
    limits::{BATCH_BYTES, BATCH_RECORDS},
};

/// Encoded records so far. When only their number counts, nothing is encoded.
pub struct Batch {
    /// The records.
    pub bytes: Vec<u8>,
    records: u32,
    count_only: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new(count_only: bool) -> Batch {
        Batch {
            bytes: Vec::new(),
            records: 0,
            count_only,
        }
    }

    /// Adds the record that `write` appends.
    pub fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.records += 1;
        if !self.count_only {
            write(&mut self.bytes);
        }
    }

    /// Only the number of records counts.
    pub fn counts_only(&self) -> bool {
        self.count_only
    }

    /// Big enough to be handed on. Numbers alone can grow further.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || (self.records as usize >= BATCH_RECORDS && !self.count_only)
    }

    /// Holds no record.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Hands the records on; the next batch gets room for as many bytes.
    pub fn take(&mut self) -> RecordBatch {
        let room = self.bytes.len().min(BATCH_BYTES + BATCH_BYTES / 8);
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(room));
        RecordBatch {
            bytes: bytes.into(),
            records: std::mem::take(&mut self.records),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_close_by_number_and_by_size() {
        let mut batch = Batch::new(false);
        for _ in 0..BATCH_RECORDS {
            assert!(!batch.is_full());
            batch.add(|out| out.push(0));
        }
        assert!(batch.is_full());
        assert_eq!(batch.take().check(), Ok(()));
        assert!(batch.is_empty() && !batch.is_full());
        batch.add(|out| out.resize(BATCH_BYTES, 0));
        assert!(batch.is_full());
    }

    #[test]
    fn numbers_need_no_bytes() {
        let mut batch = Batch::new(true);
        for _ in 0..BATCH_RECORDS * 2 {
            batch.add(|_| panic!("nothing is encoded"));
        }
        let taken = batch.take();
        assert_eq!((taken.records as usize, taken.bytes.len()), (BATCH_RECORDS * 2, 0));
    }
}
