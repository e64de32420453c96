//! From the files to a log: what is whole is taken, what a crash left undone is finished, damage is reported.

use std::io;

use raft::eraftpb::{Entry, HardState};

use super::{
    Opened, StorageError,
    core::{
        Core, FAILED, LOG, LOG_NEW, MARKER, SNAPSHOT, SNAPSHOT_NEW, install, raised, sync_error, write_error,
        write_log, write_marker,
    },
    format::{self, Batch, Found, LogHead},
};
use crate::{
    consensus::{
        disk::Disk,
        mutants::{Mutant, is_on},
    },
    limits,
    topology::NodeId,
};

/// `EIO`: the medium does not give the bytes back.
const IO_ERROR: i32 = 5;

enum Trouble {
    Damaged(String),
    Failed(StorageError),
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Trouble {
        Trouble::Failed(error)
    }
}

/// Opens; see `LogStorage::open`.
pub(super) fn open<D: Disk>(mut disk: D, me: &NodeId) -> Opened<D> {
    match examine(&mut disk, me) {
        Ok(None) => Opened::Empty(disk),
        Ok(Some(core)) => {
            let core = Core {
                disk: Some(disk),
                ..core
            };
            Opened::Existing(core.into())
        }
        Err(Trouble::Damaged(reason)) => Opened::Damaged(disk, reason),
        Err(Trouble::Failed(error)) => Opened::Failed(disk, error),
    }
}

fn read<D: Disk>(disk: &mut D, name: &str) -> Result<Option<Vec<u8>>, Trouble> {
    disk.read(name, limits::LOG_FILE_BYTES).map_err(|error| {
        let unreadable = error.raw_os_error() == Some(IO_ERROR) || error.kind() == io::ErrorKind::FileTooLarge;
        match unreadable {
            true => Trouble::Damaged(error.to_string()),
            false => Trouble::Failed(write_error(error)),
        }
    })
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Damaged(reason.into()))
}

/// A core without its disk, if there is a log.
fn examine<D: Disk>(disk: &mut D, me: &NodeId) -> Result<Option<Core<D>>, Trouble> {
    let names = disk.list().map_err(write_error)?;
    let has = |name: &str| names.iter().any(|n| n == name);
    if has(FAILED) {
        return damaged("a sync of it failed before");
    }
    let (log, snapshot) = match (read(disk, LOG)?, read(disk, SNAPSHOT)?) {
        (Some(log), Some(snapshot)) => (log, snapshot),
        (Some(_), None) => return damaged("the snapshot is gone"),
        (None, Some(_)) if !has(LOG_NEW) => return damaged("the log is gone"),
        (None, None) if has(MARKER) => return damaged("log and snapshot are gone"),
        (None, _) => {
            // It was never completed, so nothing depends on it.
            for name in [SNAPSHOT, SNAPSHOT_NEW, LOG_NEW] {
                disk.remove(name).map_err(write_error)?;
            }
            return Ok(None);
        }
    };
    let marker = read(disk, MARKER)?.and_then(|bytes| format::decode_marker(&bytes));
    let (head, start) = LogHead::decode(&log).map_err(Trouble::Damaged)?;
    if head.identity.node != *me {
        return damaged(format!("it belongs to node {}", head.identity.node));
    }
    let (metadata, data) = format::decode_snapshot(head.identity.group, snapshot).map_err(Trouble::Damaged)?;
    let known = marker
        .filter(|marker| marker.0 == head.generation)
        .map_or(0, |marker| marker.1);
    let mut core = Core {
        disk: None,
        identity: head.identity,
        generation: head.generation,
        base: head.base,
        entries: Vec::new(),
        snapshot: metadata,
        snapshot_data_bytes: data.len() as u64,
        hard_state: HardState::default(),
        behind_bytes: 0,
        log_bytes: 0,
        synced_bytes: 0,
        stopped: None,
    };
    let end = replay(&mut core, &log, start, known)?;
    let superseded = reconcile(&mut core)?;
    core.log_bytes = end as u64;
    settle(disk, &mut core, end < log.len(), superseded)?;
    Ok(Some(core))
}

/// Reads the batches; gives the end of the last whole one.
fn replay<D: Disk>(core: &mut Core<D>, log: &[u8], start: usize, known: u64) -> Result<usize, Trouble> {
    let mut at = start;
    loop {
        match format::batch_at(core.generation, log, at) {
            Found::Batch(batch, end) => {
                take(core, batch)?;
                at = end;
            }
            _ if is_on(Mutant::TakeDamaged) => return Ok(at),
            Found::End if known > at as u64 => {
                return damaged(format!("the log has {at} bytes, but {known} were written and synced"));
            }
            Found::End => return Ok(at),
            Found::Bad if known > at as u64 || format::synced_beyond(core.generation, log, at) => {
                return damaged(format!("the log fails its checksum at byte {at}"));
            }
            // Torn by a crash before anybody was told of it.
            Found::Bad => return Ok(at),
        }
    }
}

fn take<D: Disk>(core: &mut Core<D>, batch: Batch) -> Result<(), Trouble> {
    core.hard_state = batch.hard_state.unwrap_or_default();
    for entry in batch.entries {
        take_entry(core, entry)?;
    }
    Ok(())
}

fn take_entry<D: Disk>(core: &mut Core<D>, entry: Entry) -> Result<(), Trouble> {
    let before = entry.index.checked_sub(1).and_then(|index| core.term(index));
    if before.is_none_or(|term| term > entry.term) {
        return damaged(format!("entry {} does not follow what is before it", entry.index));
    }
    if let Some(place) = core.place(entry.index) {
        core.entries.truncate(place);
    }
    core.entries.push(entry);
    Ok(())
}

/// Brings log and snapshot together; true if the snapshot supersedes the log.
fn reconcile<D: Disk>(core: &mut Core<D>) -> Result<bool, Trouble> {
    let snapshot = (core.snapshot.index, core.snapshot.term);
    if core.base.0 > snapshot.0 || (core.base.0 == snapshot.0 && core.base.1 != snapshot.1) {
        return damaged(format!(
            "the snapshot is of index {}, the log begins behind index {}",
            snapshot.0, core.base.0
        ));
    }
    let superseded = core.term(snapshot.0) != Some(snapshot.1);
    if superseded {
        // A crash came between a leader's snapshot and the new log.
        core.base = snapshot;
        core.entries.clear();
    }
    core.hard_state = raised(std::mem::take(&mut core.hard_state), &core.snapshot);
    let last = core.last_index();
    if core.hard_state.commit > last {
        return damaged(format!(
            "the log ends at index {last}, but {} was committed",
            core.hard_state.commit
        ));
    }
    if core.term(last).is_some_and(|term| term > core.hard_state.term) {
        return damaged("entries have a later term than the hard state");
    }
    core.count_behind();
    Ok(superseded)
}

/// Makes what was found durable: after a kill it may only be in the page cache, and Raft will rely on it.
fn settle<D: Disk>(disk: &mut D, core: &mut Core<D>, torn: bool, superseded: bool) -> Result<(), Trouble> {
    if superseded {
        let head = LogHead {
            identity: core.identity.clone(),
            generation: core.generation + 1,
            base: core.base,
        };
        disk.sync(SNAPSHOT).map_err(sync_error)?;
        disk.sync_folder().map_err(sync_error)?;
        core.log_bytes = write_log(disk, &head, &core.hard_state, &[])?;
        install(disk, LOG_NEW, LOG)?;
        core.generation = head.generation;
    } else {
        if torn {
            disk.truncate(LOG, core.log_bytes).map_err(write_error)?;
        }
        for name in [LOG_NEW, SNAPSHOT_NEW] {
            disk.remove(name).map_err(write_error)?;
        }
        disk.sync(LOG).map_err(sync_error)?;
        disk.sync(SNAPSHOT).map_err(sync_error)?;
        disk.sync_folder().map_err(sync_error)?;
    }
    core.synced_bytes = core.log_bytes;
    write_marker(disk, core.generation, core.synced_bytes);
    Ok(())
}
