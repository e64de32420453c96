//! The log and the snapshot on disk.
//!
//! Three files: `snapshot` (the state at an index, replaced as a whole), `log` (batches of entries and hard states
//! behind it, appended to and synced) and `synced` (how much of the log was synced, a hint that is never synced
//! itself). `LogStorage` keeps the entries in memory as well and is what Raft reads. It applies nothing, knows no
//! clock, and never gives out what fails its checks: damage is reported, only a torn tail that was never acknowledged
//! is cut off.
//!
//! * `core`: the log in memory and the writes that change it on disk
//! * `format`: the bytes of the files
//! * `open`: from files to a storage

mod core;
mod format;
mod open;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use protobuf::Message as _;
use raft::{
    GetEntriesContext, RaftState, Storage,
    eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata},
};
use thiserror::Error;

use self::core::Core;
use super::disk::Disk;
use crate::{message::GroupId, topology::NodeId};

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The group.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
    /// The node's number in the group.
    pub raft_id: u64,
}

/// What was found on a disk.
pub(super) enum Opened<D> {
    /// Nothing: never was in a group, or its log is lost.
    Empty(D),
    /// A log in order. All of it is synced.
    Existing(LogStorage<D>),
    /// Something that must not be trusted: set it aside and join under a new raft id.
    Damaged(D, String),
    /// It could not be read (or synced) now; trying again may help.
    Failed(D, StorageError),
}

/// Why something is not on disk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum StorageError {
    /// Nothing was acknowledged and nothing is lost. The storage is stopped: take its disk and open it again.
    #[error("the log of the registry can not be written: {0}")]
    Write(String),
    /// What the page cache says is not what the disk holds. The storage is stopped: set the files aside and join
    /// under a new raft id.
    #[error("the log of the registry could not be synced to disk: {0}; the node joins again under a new number")]
    Sync(String),
    /// Only from `compact`: there is no snapshot now, the storage goes on as before.
    #[error("no snapshot of the registry could be written: {0}")]
    Postponed(String),
}

/// The log of one node. Clones are handles of the same log: Raft holds one.
pub(super) struct LogStorage<D> {
    core: Arc<Mutex<Core<D>>>,
}

impl<D> Clone for LogStorage<D> {
    fn clone(&self) -> Self {
        LogStorage {
            core: self.core.clone(),
        }
    }
}

impl<D> From<Core<D>> for LogStorage<D> {
    fn from(core: Core<D>) -> Self {
        LogStorage {
            core: Arc::new(Mutex::new(core)),
        }
    }
}

impl<D: Disk> LogStorage<D> {
    /// Looks at a disk. Cuts off a torn tail, finishes what a crash interrupted, syncs what it found.
    pub fn open(disk: D, me: &NodeId) -> Opened<D> {
        open::open(disk, me)
    }

    /// Starts a log on an empty disk. The founder gives a snapshot with index >= 1, term >= 1 and itself as the only
    /// voter; who joins gives `Snapshot::default()` and waits for the leader's.
    pub fn create(disk: D, identity: Identity, snapshot: &Snapshot) -> Result<LogStorage<D>, (D, StorageError)> {
        Core::create(disk, identity, snapshot).map(LogStorage::from)
    }

    /// Whose log it is.
    pub fn identity(&self) -> Identity {
        self.core.lock().identity.clone()
    }

    /// Entries and hard state of a `Ready`, in one write and one sync. Entries replace those with the same and higher
    /// indexes. If nothing changes but the commit index, there is no sync (and a power loss may take it back).
    /// After an error the storage is stopped.
    pub fn append(&self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), StorageError> {
        self.core.lock().append(entries, hard_state)
    }

    /// Notes the commit index of a `LightReady`, as `append` does.
    pub fn commit(&self, index: u64) -> Result<(), StorageError> {
        let mut core = self.core.lock();
        let mut hard_state = core.hard_state.clone();
        hard_state.commit = index;
        core.append(&[], Some(&hard_state))
    }

    /// Replaces log and snapshot by a leader's snapshot; call it before `append` of the same `Ready`.
    /// After an error the storage is stopped.
    pub fn apply_snapshot(&self, snapshot: &Snapshot) -> Result<(), StorageError> {
        self.core.lock().apply_snapshot(snapshot)
    }

    /// Makes a snapshot of the state at an applied index and shortens the log; a short tail before the index is kept
    /// for members that are a little behind. An index that has a snapshot already changes nothing.
    pub fn compact(&self, applied: u64, members: &ConfState, data: &[u8]) -> Result<(), StorageError> {
        self.core.lock().compact(applied, members, data)
    }

    /// Index, term and `ConfState` of the snapshot; index 0: there is none yet. Where a restarted state machine starts.
    pub fn snapshot_metadata(&self) -> SnapshotMetadata {
        self.core.lock().snapshot.clone()
    }

    /// Data of the snapshot, read from disk. It is not kept in memory.
    pub fn snapshot_data(&self) -> Result<Bytes, StorageError> {
        self.core.lock().read_snapshot().map(|snapshot| snapshot.data)
    }

    /// The hard state.
    #[cfg(test)]
    pub fn hard_state(&self) -> HardState {
        self.core.lock().hard_state.clone()
    }

    /// First index that is in the log, last index that is in the log (first - 1 if it is empty).
    pub fn range(&self) -> (u64, u64) {
        let core = self.core.lock();
        (core.base.0 + 1, core.last_index())
    }

    /// Entries behind the snapshot, and their bytes: with `limits::LOG_ENTRIES` and `LOG_BYTES` the reason to compact.
    pub fn behind_snapshot(&self) -> (u64, u64) {
        let core = self.core.lock();
        (core.last_index().saturating_sub(core.snapshot.index), core.behind_bytes)
    }

    /// Bytes of the snapshot's data.
    pub fn snapshot_bytes(&self) -> u64 {
        self.core.lock().snapshot_data_bytes
    }

    /// Bytes of log and snapshot on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.core.lock().disk_bytes()
    }

    /// Takes the disk out, to open it again or to set it aside (`Disk::set_aside`). The storage is stopped then; all
    /// handles give errors. `None`: it was taken before.
    pub fn take_disk(&self) -> Option<D> {
        self.core.lock().disk.take()
    }
}

impl<D: Disk> Storage for LogStorage<D> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let core = self.core.lock();
        Ok(RaftState::new(
            core.hard_state.clone(),
            core.snapshot.get_conf_state().clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let core = self.core.lock();
        if low <= core.base.0 {
            return Err(raft::StorageError::Compacted.into());
        }
        if low > high || high > core.last_index() + 1 {
            return Err(raft::StorageError::Unavailable.into());
        }
        let most = max_size.into().unwrap_or(u64::MAX);
        let (first, count) = ((low - core.base.0 - 1) as usize, (high - low) as usize);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in &core.entries[first..first + count] {
            bytes += u64::from(entry.compute_size());
            if bytes > most && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let core = self.core.lock();
        let missing = match index < core.base.0 {
            true => raft::StorageError::Compacted,
            false => raft::StorageError::Unavailable,
        };
        core.term(index).ok_or_else(|| missing.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.range().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.range().1)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let mut core = self.core.lock();
        // Raft takes an empty one, or another error, for a bug.
        let unavailable = || raft::StorageError::SnapshotTemporarilyUnavailable.into();
        if core.snapshot.index == 0 || core.snapshot.index < request_index {
            return Err(unavailable());
        }
        core.read_snapshot().map_err(|_| unavailable())
    }
}
