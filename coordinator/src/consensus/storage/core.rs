//! The log in memory and the writes that change it on disk.

use std::io;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};

use super::{Identity, StorageError, format};
use crate::{
    consensus::{
        disk::Disk,
        mutants::{Mutant, is_on},
    },
    limits,
};

pub(super) const LOG: &str = "log";
pub(super) const LOG_NEW: &str = "log.new";
pub(super) const SNAPSHOT: &str = "snapshot";
pub(super) const SNAPSHOT_NEW: &str = "snapshot.new";
/// How much of the log was synced.
pub(super) const MARKER: &str = "synced";
/// There if a sync failed: what is read from the page cache must not be trusted.
pub(super) const FAILED: &str = "failed";
/// Entries of one batch when a log is rewritten, in bytes.
const REWRITE_BATCH_BYTES: u64 = 4 * 1024 * 1024;

pub(super) fn write_error(error: io::Error) -> StorageError {
    StorageError::Write(error.to_string())
}

pub(super) fn sync_error(error: io::Error) -> StorageError {
    StorageError::Sync(error.to_string())
}

/// About what an entry takes, in memory and on disk.
pub(super) fn entry_bytes(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 32) as u64
}

/// A log and where it ends on disk.
pub(super) struct Core<D> {
    /// `None` once it was taken.
    pub disk: Option<D>,
    pub identity: Identity,
    pub generation: u64,
    /// Index and term of the entry before the first one.
    pub base: (u64, u64),
    /// From `base` on, without gaps.
    pub entries: Vec<Entry>,
    pub snapshot: SnapshotMetadata,
    pub snapshot_data_bytes: u64,
    pub hard_state: HardState,
    /// Bytes of entries behind the snapshot.
    pub behind_bytes: u64,
    pub log_bytes: u64,
    pub synced_bytes: u64,
    /// Why it was stopped.
    pub stopped: Option<StorageError>,
}

/// Writes a snapshot under its temporary name and syncs it.
fn write_snapshot<D: Disk>(
    disk: &mut D,
    identity: &Identity,
    metadata: &SnapshotMetadata,
    data: &[u8],
) -> Result<(), StorageError> {
    let head = format::encode_snapshot_head(identity.group, metadata, data).map_err(StorageError::Write)?;
    disk.remove(SNAPSHOT_NEW).map_err(write_error)?;
    disk.append(SNAPSHOT_NEW, &head).map_err(write_error)?;
    disk.append(SNAPSHOT_NEW, data).map_err(write_error)?;
    // A temporary file whose sync fails is only lost.
    disk.sync(SNAPSHOT_NEW).map_err(write_error)
}

/// Writes a whole log under its temporary name and syncs it; gives its length.
pub(super) fn write_log<D: Disk>(
    disk: &mut D,
    head: &format::LogHead,
    hard_state: &HardState,
    entries: &[Entry],
) -> Result<u64, StorageError> {
    let bytes = head.encode();
    let mut length = bytes.len() as u64;
    disk.remove(LOG_NEW).map_err(write_error)?;
    disk.append(LOG_NEW, &bytes).map_err(write_error)?;
    let mut rest = entries;
    loop {
        let mut sum = 0;
        let fits = |entry: &&Entry| {
            sum += entry_bytes(entry);
            sum <= REWRITE_BATCH_BYTES
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, later) = rest.split_at(count);
        let bytes = format::encode_batch(head.generation, length, 0, hard_state, batch).map_err(StorageError::Write)?;
        disk.append(LOG_NEW, &bytes).map_err(write_error)?;
        length += bytes.len() as u64;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    disk.sync(LOG_NEW).map_err(write_error)?;
    Ok(length)
}

/// Puts a temporary file in its place, durably.
pub(super) fn install<D: Disk>(disk: &mut D, from: &str, to: &str) -> Result<(), StorageError> {
    disk.rename(from, to).map_err(write_error)?;
    disk.sync_folder().map_err(sync_error)
}

/// Notes on disk how much of the log is synced. Only a hint, so it is neither synced nor worth an error.
pub(super) fn write_marker<D: Disk>(disk: &mut D, generation: u64, synced: u64) {
    let _ = disk.overwrite(MARKER, &format::encode_marker(generation, synced));
}

/// The hard state that goes with a snapshot.
pub(super) fn raised(mut hard_state: HardState, snapshot: &SnapshotMetadata) -> HardState {
    hard_state.commit = hard_state.commit.max(snapshot.index);
    if hard_state.term < snapshot.term {
        // In a term of which it knew nothing it has not voted.
        hard_state.term = snapshot.term;
        hard_state.vote = 0;
    }
    hard_state
}

impl<D: Disk> Core<D> {
    /// Writes both files of a new log.
    pub fn create(mut disk: D, identity: Identity, snapshot: &Snapshot) -> Result<Core<D>, (D, StorageError)> {
        let metadata = snapshot.get_metadata().clone();
        let hard_state = raised(HardState::default(), &metadata);
        let head = format::LogHead {
            identity,
            generation: 1,
            base: (metadata.index, metadata.term),
        };
        let mut write = || {
            write_snapshot(&mut disk, &head.identity, &metadata, &snapshot.data)?;
            let length = write_log(&mut disk, &head, &hard_state, &[])?;
            // The log comes last: it is what makes the folder count.
            install(&mut disk, SNAPSHOT_NEW, SNAPSHOT)?;
            install(&mut disk, LOG_NEW, LOG)?;
            write_marker(&mut disk, head.generation, length);
            Ok(length)
        };
        match write() {
            Err(error) => Err((disk, error)),
            Ok(length) => Ok(Core {
                disk: Some(disk),
                identity: head.identity,
                generation: head.generation,
                base: head.base,
                entries: Vec::new(),
                snapshot: metadata,
                snapshot_data_bytes: snapshot.data.len() as u64,
                hard_state,
                behind_bytes: 0,
                log_bytes: length,
                synced_bytes: length,
                stopped: None,
            }),
        }
    }

    pub fn last_index(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// Place of an entry in `entries`.
    pub fn place(&self, index: u64) -> Option<usize> {
        let place = usize::try_from(index.checked_sub(self.base.0)?.checked_sub(1)?).ok()?;
        (place < self.entries.len()).then_some(place)
    }

    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.place(index).map(|place| self.entries[place].term)
    }

    /// The disk, if it may be written.
    fn usable(&mut self) -> Result<&mut D, StorageError> {
        match (&self.stopped, &mut self.disk) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(disk)) => Ok(disk),
            (None, None) => Err(StorageError::Write("it is closed".into())),
        }
    }

    fn stop(&mut self, error: StorageError) -> StorageError {
        if let (StorageError::Sync(_), Some(disk)) = (&error, &mut self.disk) {
            // For the case that the process ends before the files are set aside. It may fail: then the disk is so ill
            // that reading will fail as well.
            let _ = disk.append(FAILED, b"a sync failed\n");
        }
        self.stopped = Some(error.clone());
        error
    }

    /// Whether entries follow each other and what is there.
    fn fits(&self, entries: &[Entry]) -> bool {
        let first = entries.first().map_or(0, |entry| entry.index);
        let in_range = entries.is_empty() || (first > self.base.0 && first <= self.last_index() + 1);
        in_range && entries.iter().zip(first..).all(|(entry, index)| entry.index == index)
    }

    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), StorageError> {
        self.usable()?;
        let hard_state = hard_state.unwrap_or(&self.hard_state).clone();
        if entries.is_empty() && hard_state == self.hard_state {
            return Ok(());
        }
        if !self.fits(entries) {
            let text = format!("entries with a gap behind index {}", self.last_index());
            return Err(self.stop(StorageError::Write(text)));
        }
        let voted = (hard_state.term, hard_state.vote) != (self.hard_state.term, self.hard_state.vote);
        let result = self.write_batch(entries, &hard_state, voted || !entries.is_empty());
        result.map_err(|error| self.stop(error))?;
        self.hard_state = hard_state;
        self.remember(entries);
        Ok(())
    }

    fn write_batch(&mut self, entries: &[Entry], hard_state: &HardState, sync: bool) -> Result<(), StorageError> {
        let mut written = hard_state.clone();
        if is_on(Mutant::ForgetVote) {
            written.vote = 0;
        }
        let (generation, offset, synced) = (self.generation, self.log_bytes, self.synced_bytes);
        let bytes = format::encode_batch(generation, offset, synced, &written, entries).map_err(StorageError::Write)?;
        let end = offset + bytes.len() as u64;
        let disk = self.usable()?;
        disk.append(LOG, &bytes).map_err(write_error)?;
        if sync && !is_on(Mutant::NoSync) {
            disk.sync(LOG).map_err(sync_error)?;
            write_marker(disk, generation, end);
            self.synced_bytes = end;
        }
        self.log_bytes = end;
        Ok(())
    }

    /// Takes entries over into memory.
    fn remember(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        if let Some(place) = self.place(first.index) {
            self.entries.truncate(place);
            self.count_behind();
        }
        self.entries.extend_from_slice(entries);
        let behind = entries.iter().filter(|entry| entry.index > self.snapshot.index);
        self.behind_bytes += behind.map(entry_bytes).sum::<u64>();
    }

    /// Sums up the entries behind the snapshot.
    pub fn count_behind(&mut self) {
        let behind = self.snapshot.index;
        let entries = self.entries.iter().rev().take_while(|entry| entry.index > behind);
        self.behind_bytes = entries.map(entry_bytes).sum();
    }

    /// Bytes of both files.
    pub fn disk_bytes(&self) -> u64 {
        self.log_bytes + self.snapshot_data_bytes
    }

    /// Puts a rewritten log in place: entries from behind `base` on.
    fn rewrite(&mut self, base: (u64, u64), hard_state: HardState, entries: Vec<Entry>) -> Result<(), StorageError> {
        let head = format::LogHead {
            identity: self.identity.clone(),
            generation: self.generation + 1,
            base,
        };
        let disk = self.usable()?;
        let length = write_log(disk, &head, &hard_state, &entries)?;
        install(disk, LOG_NEW, LOG)?;
        write_marker(disk, head.generation, length);
        (self.generation, self.base, self.hard_state, self.entries) = (head.generation, base, hard_state, entries);
        (self.log_bytes, self.synced_bytes) = (length, length);
        self.count_behind();
        Ok(())
    }

    fn replace_snapshot(&mut self, metadata: &SnapshotMetadata, data: &[u8]) -> Result<(), StorageError> {
        let identity = self.identity.clone();
        let disk = self.usable()?;
        write_snapshot(disk, &identity, metadata, data)?;
        install(disk, SNAPSHOT_NEW, SNAPSHOT)?;
        self.snapshot = metadata.clone();
        self.snapshot_data_bytes = data.len() as u64;
        self.count_behind();
        Ok(())
    }

    /// Replaces everything by a leader's snapshot.
    pub fn apply_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), StorageError> {
        self.usable()?;
        let metadata = snapshot.get_metadata();
        if metadata.index <= self.snapshot.index {
            let text = format!("a snapshot of index {}, which is old", metadata.index);
            return Err(self.stop(StorageError::Write(text)));
        }
        let hard_state = raised(self.hard_state.clone(), metadata);
        let base = (metadata.index, metadata.term);
        // A crash between the two steps leaves a log that ends before the snapshot or contradicts it: `open` drops it.
        let result = self.replace_snapshot(metadata, &snapshot.data);
        let result = result.and_then(|()| self.rewrite(base, hard_state, Vec::new()));
        result.map_err(|error| self.stop(error))
    }

    /// First index that stays in the log when there is a snapshot at `applied`, less one.
    fn base_for(&self, applied: u64) -> u64 {
        let (mut bytes, mut count, mut base) = (0, 0, applied);
        while let Some(place) = self.place(base) {
            bytes += entry_bytes(&self.entries[place]);
            count += 1;
            if bytes > limits::LOG_KEPT_BYTES || count > limits::LOG_KEPT_ENTRIES {
                break;
            }
            base -= 1;
        }
        base
    }

    /// Makes a snapshot at an applied index and drops what it makes needless.
    pub fn compact(&mut self, applied: u64, members: &ConfState, data: &[u8]) -> Result<(), StorageError> {
        self.usable()?;
        if applied <= self.snapshot.index {
            return Ok(());
        }
        let Some(term) = self.term(applied) else {
            return Err(StorageError::Postponed(format!("index {applied} is not in the log")));
        };
        let mut metadata = SnapshotMetadata::default();
        metadata.set_conf_state(members.clone());
        (metadata.index, metadata.term) = (applied, term);
        let base = self.base_for(applied);
        // Snapshot and old log fit together, so each step may fail or be the last one before a crash.
        let mut result = self.replace_snapshot(&metadata, data);
        if let (Ok(()), Some(term)) = (&result, self.term(base)) {
            let kept = self
                .place(base + 1)
                .map_or_else(Vec::new, |place| self.entries[place..].to_vec());
            result = self.rewrite((base, term), raised(self.hard_state.clone(), &metadata), kept);
        }
        match result {
            Err(StorageError::Write(text)) => {
                // Whatever is left of the attempt must not stay in the way on a full disk.
                let disk = self.usable()?;
                let _ = disk.remove(SNAPSHOT_NEW);
                let _ = disk.remove(LOG_NEW);
                Err(StorageError::Postponed(text))
            }
            Err(error) => Err(self.stop(error)),
            Ok(()) => Ok(()),
        }
    }

    /// The snapshot as it is on disk.
    pub fn read_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let Some(disk) = &mut self.disk else {
            return Err(StorageError::Write("it is closed".into()));
        };
        let bytes = disk.read(SNAPSHOT, limits::LOG_FILE_BYTES).map_err(write_error)?;
        let bytes = bytes.ok_or_else(|| StorageError::Write("the snapshot is gone".into()))?;
        let (metadata, data) = format::decode_snapshot(self.identity.group, bytes).map_err(StorageError::Write)?;
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot.data = data;
        Ok(snapshot)
    }
}
