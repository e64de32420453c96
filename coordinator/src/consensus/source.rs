//! What Raft reads: the log on disk, but only such snapshots as the receiver can take.
//!
//! A snapshot that does not name its receiver as a member is ignored by it, without a word. So if the one on disk is
//! too old for a member, none is given out, and its number is noted: a newer one is made then.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use raft::{
    GetEntriesContext, RaftState, Storage,
    eraftpb::{ConfState, Entry, Snapshot},
};

use super::{disk::Disk, storage::LogStorage};

/// Members that need a newer snapshot.
pub(super) type Wanted = Arc<Mutex<BTreeSet<u64>>>;

/// The log as Raft sees it.
pub(super) struct Source<D> {
    log: LogStorage<D>,
    wanted: Wanted,
}

impl<D: Disk> Source<D> {
    pub fn new(log: LogStorage<D>, wanted: Wanted) -> Source<D> {
        Source { log, wanted }
    }
}

fn names(members: &ConfState, id: u64) -> bool {
    let lists = [
        &members.voters,
        &members.learners,
        &members.voters_outgoing,
        &members.learners_next,
    ];
    lists.into_iter().any(|list| list.contains(&id))
}

impl<D: Disk> Storage for Source<D> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        self.log.initial_state()
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        self.log.entries(low, high, max_size, context)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.log.term(index)
    }

    fn first_index(&self) -> raft::Result<u64> {
        self.log.first_index()
    }

    fn last_index(&self) -> raft::Result<u64> {
        self.log.last_index()
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if names(self.log.snapshot_metadata().get_conf_state(), to) {
            return self.log.snapshot(request_index, to);
        }
        self.wanted.lock().insert(to);
        Err(raft::StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
