//! The log on a disk that loses, tears, flips, fills up and stops between any two steps.

use raft::{
    GetEntriesContext, Storage,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use super::{Identity, LogStorage, Opened, StorageError};
use crate::{
    consensus::{
        disk::{Disk, FileDisk},
        simulation::disk::{Crash, SimDisk},
    },
    message::GroupId,
    topology::NodeId,
};

fn me() -> NodeId {
    NodeId::new("me")
}

fn identity() -> Identity {
    Identity {
        group: GroupId(77),
        node: me(),
        raft_id: 5,
    }
}

fn snapshot(index: u64, term: u64, data: &'static [u8]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot
        .mut_metadata()
        .set_conf_state(ConfState::from((vec![5], vec![])));
    (snapshot.mut_metadata().index, snapshot.mut_metadata().term) = (index, term);
    snapshot.data = data.into();
    snapshot
}

fn entry(index: u64, term: u64) -> Entry {
    let data = format!("entry {index} of {term}").into_bytes().into();
    Entry {
        index,
        term,
        data,
        ..Entry::default()
    }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote,
        commit,
        ..HardState::default()
    }
}

/// All that a storage holds.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    identity: Identity,
    hard_state: HardState,
    snapshot: (u64, u64, Vec<u8>, ConfState),
    first: u64,
    entries: Vec<Entry>,
}

fn content<D: Disk>(storage: &LogStorage<D>) -> Content {
    let metadata = storage.snapshot_metadata();
    let (first, last) = storage.range();
    let entries = match first > last {
        true => Vec::new(),
        false => storage
            .entries(first, last + 1, None, GetEntriesContext::empty(false))
            .unwrap(),
    };
    let behind: Vec<&Entry> = entries.iter().filter(|e| e.index > metadata.index).collect();
    let bytes = behind.iter().map(|e| super::core::entry_bytes(e)).sum();
    assert_eq!(storage.behind_snapshot(), (behind.len() as u64, bytes));
    Content {
        identity: storage.identity(),
        hard_state: storage.hard_state(),
        snapshot: (
            metadata.index,
            metadata.term,
            storage.snapshot_data().unwrap().to_vec(),
            metadata.get_conf_state().clone(),
        ),
        first,
        entries,
    }
}

fn existing<D: Disk>(disk: D) -> LogStorage<D> {
    match LogStorage::open(disk, &me()) {
        Opened::Existing(storage) => storage,
        Opened::Empty(_) => panic!("empty"),
        Opened::Damaged(_, reason) => panic!("damaged: {reason}"),
        Opened::Failed(_, error) => panic!("failed: {error}"),
    }
}

fn created(disk: SimDisk) -> LogStorage<SimDisk> {
    let created = LogStorage::create(disk, identity(), &snapshot(1, 1, b"first"));
    created.map_err(|(_, error)| error).expect("a new log")
}

type Step = fn(&LogStorage<SimDisk>) -> Result<(), StorageError>;

/// What a member does in its life: entries, votes, truncation, snapshots of its own and of a leader.
const STEPS: [Step; 8] = [
    |s| s.append(&[entry(2, 2), entry(3, 2)], Some(&hard_state(2, 5, 1))),
    |s| s.append(&[], Some(&hard_state(3, 7, 1))),
    |s| s.append(&[entry(3, 3), entry(4, 3), entry(5, 3)], None),
    |s| s.commit(4),
    |s| s.compact(4, &ConfState::from((vec![5, 6], vec![7])), b"second"),
    |s| s.append(&[entry(6, 3)], Some(&hard_state(3, 7, 5))),
    |s| s.apply_snapshot(&snapshot(20, 4, b"third")),
    |s| s.append(&[entry(21, 4)], Some(&hard_state(4, 5, 20))),
];

/// What it holds after each number of steps.
fn expected() -> Vec<Content> {
    let storage = created(SimDisk::new(1));
    let mut all = vec![content(&storage)];
    for step in STEPS {
        step(&storage).unwrap();
        all.push(content(&storage));
    }
    all
}

#[test]
fn what_was_written_is_found_again() {
    for crash in [Crash::Kill, Crash::LoseAll, Crash::LoseSome] {
        let (disk, mut expected) = (SimDisk::new(1), expected().into_iter());
        let mut storage = created(disk.clone());
        for number in 0..=STEPS.len() {
            let mut wanted = expected.next().unwrap();
            disk.crash(crash);
            storage = existing(disk.clone());
            let found = content(&storage);
            if number == 4 && crash != Crash::Kill {
                // The commit index alone is not synced.
                wanted.hard_state.commit = found.hard_state.commit;
            }
            assert_eq!(found, wanted, "after {number} steps, {crash:?}");
            if let Some(step) = STEPS.get(number) {
                step(&storage).unwrap();
            }
        }
        assert!(storage.disk_bytes() > 0);
    }
}

/// Between any two operations on the disk: what was acknowledged is there, and nothing that never was.
#[test]
fn a_crash_between_any_two_steps_loses_nothing_acknowledged() {
    let expected = expected();
    for crash in [Crash::Kill, Crash::LoseAll, Crash::LoseSome] {
        let mut finished = 0;
        for stop in 1.. {
            let tries = if crash == Crash::LoseSome { 60 } else { 8 };
            finished = 0;
            for seed in 0..tries {
                let disk = SimDisk::new(seed * 1000 + stop);
                let storage = created(disk.clone());
                disk.stop_in(stop);
                let done = STEPS.iter().take_while(|step| step(&storage).is_ok()).count();
                disk.crash(crash);
                check_after_crash(&disk, &expected, done, &format!("stop {stop} seed {seed} {crash:?}"));
                finished += u64::from(done == STEPS.len());
            }
            if finished == tries {
                break;
            }
        }
        assert!(finished > 0);
    }
}

fn check_after_crash(disk: &SimDisk, expected: &[Content], done: usize, what: &str) {
    let found = content(&existing(disk.clone()));
    // Exactly the steps that were acknowledged, or the one under way as well.
    let wanted = &expected[done..(done + 2).min(expected.len())];
    let mut same = wanted.contains(&found);
    // Commit index: not synced on its own. Snapshot without the new log: taken as if both were.
    let loose = |w: &Content| {
        let mut w = w.clone();
        w.hard_state.commit = found.hard_state.commit;
        (w.first, w.entries) = (found.first, found.entries.clone());
        w
    };
    same |= wanted
        .iter()
        .any(|w| loose(w) == found && tail(w) == tail(&found) && commit_may_be(w, &found));
    assert!(
        same,
        "{what}: after {done} steps\n{found:#?}\nexpected one of\n{wanted:#?}"
    );
    // And it goes on.
    let storage = existing(disk.clone());
    let last = storage.range().1;
    let state = storage.hard_state();
    storage
        .append(&[entry(last + 1, 9)], Some(&hard_state(9, 5, state.commit)))
        .unwrap();
    disk.crash(Crash::LoseAll);
    assert_eq!(existing(disk.clone()).range().1, last + 1, "{what}");
}

/// The entries behind the snapshot.
fn tail(content: &Content) -> Vec<Entry> {
    let behind = |e: &&Entry| e.index > content.snapshot.0;
    content.entries.iter().filter(behind).cloned().collect()
}

fn commit_may_be(wanted: &Content, found: &Content) -> bool {
    let (wanted, found) = (&wanted.hard_state, &found.hard_state);
    found.commit == wanted.commit || (wanted.term == 3 && wanted.vote == 7 && [1, 4].contains(&found.commit))
}

#[test]
fn a_crash_while_it_is_created_leaves_nothing_or_all() {
    for stop in 1..60 {
        for seed in 0..40 {
            for crash in [Crash::Kill, Crash::LoseAll, Crash::LoseSome] {
                let disk = SimDisk::new(seed);
                disk.stop_in(stop);
                let made = LogStorage::create(disk.clone(), identity(), &snapshot(1, 1, b"first")).is_ok();
                disk.crash(crash);
                match LogStorage::open(disk.clone(), &me()) {
                    Opened::Empty(disk) => {
                        assert!(!made);
                        created(disk);
                    }
                    Opened::Existing(storage) => assert_eq!(content(&storage), expected()[0]),
                    Opened::Damaged(_, reason) => panic!("stop {stop} seed {seed} {crash:?}: {reason}"),
                    Opened::Failed(_, error) => panic!("{error}"),
                }
            }
        }
    }
}

#[test]
fn every_torn_length_of_the_last_batch_is_cut_off() {
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    for step in &STEPS[..3] {
        step(&storage).unwrap();
    }
    let (before, short) = (content(&storage), disk.content("log").unwrap().len());
    let marker = disk.content("synced").unwrap();
    storage.append(&[entry(6, 3), entry(7, 3)], None).unwrap();
    let (after, long) = (content(&storage), disk.content("log").unwrap());
    for length in short..=long.len() {
        let torn = disk.copy(1);
        // A power loss: the marker is the old one, and the file may be longer than what was written.
        torn.set_content("log", Some(long[..length].to_vec()));
        torn.set_content("synced", Some(marker.clone()));
        let wanted = if length == long.len() { &after } else { &before };
        assert_eq!(content(&existing(torn.clone())), *wanted, "length {length}");
        // What was cut off does not come back.
        assert_eq!(content(&existing(torn)), *wanted, "length {length}, again");
        let filled = disk.copy(1);
        let mut bytes = long[..length].to_vec();
        bytes.resize(long.len() + 64, 0);
        filled.set_content("log", Some(bytes));
        filled.set_content("synced", Some(marker.clone()));
        // The end of the batch may be zeros itself.
        let found = content(&existing(filled));
        assert!(found == before || found == after, "length {length}, filled up");
        assert!(found == before || length + 8 > long.len());
    }
    // The same cut by somebody, with the marker there: damage, at any place.
    for length in 0..long.len() {
        let cut = disk.copy(1);
        cut.set_content("log", Some(long[..length].to_vec()));
        assert!(
            matches!(LogStorage::open(cut, &me()), Opened::Damaged(..)),
            "length {length}"
        );
    }
}

#[test]
fn a_flipped_bit_is_damage_or_does_not_matter() {
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    for step in &STEPS[..6] {
        step(&storage).unwrap();
    }
    let right = content(&storage);
    let mut harmless = 0;
    for name in ["log", "snapshot", "synced"] {
        let bytes = disk.content(name).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let copy = disk.copy(1);
            copy.set_content(name, Some(flipped));
            match LogStorage::open(copy, &me()) {
                Opened::Damaged(..) => assert_ne!(name, "synced"),
                Opened::Existing(storage) => {
                    assert_eq!(content(&storage), right, "{name} bit {bit}");
                    assert_eq!(name, "synced");
                    harmless += 1;
                }
                _ => panic!("{name} bit {bit}"),
            }
        }
    }
    assert!(harmless > 0);
}

/// Without the marker (after a power loss) everything before the last sync is still protected.
#[test]
fn a_flipped_bit_below_the_last_batch_is_damage_without_the_marker() {
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    for index in 2..8 {
        storage.append(&[entry(index, 2)], Some(&hard_state(2, 5, 1))).unwrap();
    }
    let last = disk.content("log").unwrap().len();
    storage.append(&[entry(8, 2)], None).unwrap();
    let bytes = disk.content("log").unwrap();
    for bit in 0..last * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let copy = disk.copy(1);
        copy.set_content("log", Some(flipped));
        copy.set_content("synced", None);
        assert!(
            matches!(LogStorage::open(copy, &me()), Opened::Damaged(..)),
            "bit {bit}"
        );
    }
}

#[test]
fn files_that_are_gone_or_foreign_are_damage() {
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    STEPS[0](&storage).unwrap();
    let reason = |change: &dyn Fn(&SimDisk)| {
        let copy = disk.copy(1);
        change(&copy);
        match LogStorage::open(copy, &me()) {
            Opened::Damaged(_, reason) => reason,
            _ => panic!("no damage"),
        }
    };
    assert_eq!(reason(&|d| d.set_content("log", None)), "the log is gone");
    assert_eq!(reason(&|d| d.set_content("snapshot", None)), "the snapshot is gone");
    let both = |d: &SimDisk| {
        d.set_content("log", None);
        d.set_content("snapshot", None);
    };
    assert_eq!(reason(&both), "log and snapshot are gone");
    assert_eq!(
        reason(&|d| d.set_content("failed", Some(vec![1]))),
        "a sync of it failed before"
    );
    // A log and a snapshot that do not belong together.
    let other = SimDisk::new(2);
    let other_identity = Identity {
        group: GroupId(78),
        ..identity()
    };
    assert!(LogStorage::create(other.clone(), other_identity, &snapshot(1, 1, b"x")).is_ok());
    assert!(reason(&|d| d.set_content("snapshot", other.content("snapshot"))).contains("of group"));
    let later = SimDisk::new(2);
    assert!(LogStorage::create(later.clone(), identity(), &snapshot(9, 1, b"x")).is_ok());
    let newer = |d: &SimDisk| {
        d.set_content("log", later.content("log"));
        d.set_content("synced", later.content("synced"));
    };
    assert_eq!(
        reason(&newer),
        "the snapshot is of index 1, the log begins behind index 9"
    );
    assert!(matches!(
        LogStorage::open(disk.copy(1), &NodeId::new("you")),
        Opened::Damaged(..)
    ));
}

#[test]
fn garbage_is_damage_and_no_crash() {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    for step in STEPS {
        step(&storage).unwrap();
    }
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..2000 {
        let copy = disk.copy(1);
        // Without the marker the last batch might have been torn by a crash.
        for name in ["log", "snapshot"] {
            let mut bytes = copy.content(name).unwrap();
            for _ in 0..rng.random_range(0..3) {
                let at = rng.random_range(0..bytes.len());
                let count = rng.random_range(1..16).min(bytes.len() - at);
                bytes[at..at + count].fill(if rng.random() { 0xff } else { rng.random() });
            }
            copy.set_content(name, Some(bytes));
        }
        if let Opened::Existing(found) = LogStorage::open(copy, &me()) {
            assert_eq!(content(&found), content(&storage));
        }
    }
}

#[test]
fn a_full_disk_loses_nothing_and_goes_on_later() {
    for room in 0..400 {
        let disk = SimDisk::new(room);
        let mut storage = created(disk.clone());
        disk.set_capacity(Some(disk.used() + room as usize));
        let mut done = 0;
        while done < STEPS.len() {
            let before = content(&storage);
            match STEPS[done](&storage) {
                Ok(()) => done += 1,
                Err(StorageError::Postponed(_)) => {
                    assert_eq!(tail(&content(&storage)).last(), tail(&before).last());
                    disk.set_capacity(None);
                }
                Err(StorageError::Write(_)) => {
                    assert!(
                        storage.append(&[], Some(&hard_state(8, 0, 0))).is_err(),
                        "it must be stopped"
                    );
                    disk.set_capacity(None);
                    storage = existing(storage.take_disk().unwrap());
                    let found = content(&storage);
                    if found.snapshot.0 == before.snapshot.0 {
                        assert_eq!(found, before, "room {room}, step {done}");
                    }
                    if found.snapshot.0 == 20 && before.snapshot.0 != 20 {
                        done += 1;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(content(&storage), expected()[STEPS.len()]);
    }
}

/// Nothing that a failed sync left behind is ever taken for durable.
#[test]
fn a_failed_sync_stops_it_for_good() {
    for skipped in 0..20 {
        let disk = SimDisk::new(1);
        let storage = created(disk.clone());
        let mut failed = None;
        for (number, step) in STEPS.iter().enumerate() {
            disk.fail_syncs(u32::from(number == skipped));
            match step(&storage) {
                Ok(()) | Err(StorageError::Postponed(_)) => disk.fail_syncs(0),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        match failed {
            Some(StorageError::Sync(_)) => {
                assert!(matches!(storage.commit(5), Err(StorageError::Sync(_))));
                disk.crash(Crash::Kill);
                assert!(matches!(LogStorage::open(disk.clone(), &me()), Opened::Damaged(..)));
                let mut disk = storage.take_disk().unwrap();
                assert!(disk.set_aside("damaged").unwrap().is_some());
                assert!(matches!(LogStorage::open(disk, &me()), Opened::Empty(_)));
            }
            // A temporary file whose sync fails.
            Some(StorageError::Write(_)) => assert_eq!(skipped, 6),
            Some(error) => panic!("{error}"),
            None => assert!(skipped >= STEPS.len() || skipped == 3 || skipped == 4),
        }
    }
}

#[test]
fn a_gap_is_refused() {
    let storage = created(SimDisk::new(1));
    assert!(storage.append(&[entry(3, 2)], None).is_err());
    let storage = created(SimDisk::new(1));
    assert!(storage.append(&[entry(2, 2), entry(4, 2)], None).is_err());
    let storage = created(SimDisk::new(1));
    assert!(storage.append(&[entry(1, 1)], None).is_err());
}

#[test]
fn raft_reads_what_is_there() {
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    for step in &STEPS[..6] {
        step(&storage).unwrap();
    }
    let read = |low, high, most| storage.entries(low, high, most, GetEntriesContext::empty(false));
    assert_eq!(
        storage.initial_state().unwrap().conf_state,
        ConfState::from((vec![5, 6], vec![7]))
    );
    // A short tail before the snapshot is kept.
    assert_eq!((storage.first_index().unwrap(), storage.last_index().unwrap()), (2, 6));
    assert_eq!(read(2, 7, None).unwrap().len(), 5);
    assert_eq!(read(2, 7, Some(0)).unwrap().len(), 1);
    assert!(read(1, 3, None).is_err() && read(5, 8, None).is_err());
    assert_eq!((storage.term(1).unwrap(), storage.term(5).unwrap()), (1, 3));
    assert!(storage.term(0).is_err() && storage.term(7).is_err());
    let snapshot = storage.snapshot(4, 9).unwrap();
    assert_eq!((snapshot.get_metadata().index, &snapshot.data[..]), (4, &b"second"[..]));
    assert!(storage.snapshot(5, 9).is_err());
    disk.set_content("snapshot", Some(vec![1, 2, 3]));
    assert!(storage.snapshot(4, 9).is_err());
}

#[test]
fn the_log_stays_short() {
    use crate::limits::{LOG_KEPT_BYTES, LOG_KEPT_ENTRIES};
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    let members = ConfState::from((vec![5], vec![]));
    for index in 2..20_000 {
        storage
            .append(&[entry(index, 2)], Some(&hard_state(2, 5, index)))
            .unwrap();
        if storage.behind_snapshot().0 >= 4096 {
            storage.compact(index, &members, b"state").unwrap();
            let (first, last) = storage.range();
            assert_eq!((last, last + 1 - first), (index, LOG_KEPT_ENTRIES));
            assert_eq!(storage.behind_snapshot(), (0, 0));
        }
    }
    assert!(disk.used() < 1_000_000 && storage.disk_bytes() as usize <= disk.used());
    let big = |index| Entry {
        data: vec![1; 1 << 20].into(),
        ..entry(index, 2)
    };
    for index in 20_000..20_010 {
        storage.append(&[big(index)], None).unwrap();
    }
    storage.compact(20_009, &members, b"state").unwrap();
    assert!(storage.disk_bytes() <= LOG_KEPT_BYTES);
    let wanted = content(&storage);
    assert_eq!(content(&existing(disk)), wanted);
}

#[test]
fn one_append_is_one_sync() {
    let disk = SimDisk::new(1);
    let storage = created(disk.clone());
    let (syncs, operations) = (disk.syncs(), disk.operations());
    storage
        .append(&[entry(2, 2), entry(3, 2)], Some(&hard_state(2, 5, 1)))
        .unwrap();
    // Write, sync, marker.
    assert_eq!((disk.syncs() - syncs, disk.operations() - operations), (1, 3));
    storage.commit(3).unwrap();
    assert_eq!((disk.syncs() - syncs, disk.operations() - operations), (1, 4));
    storage.append(&[], Some(&hard_state(2, 5, 3))).unwrap();
    assert_eq!(disk.operations() - operations, 4);
}

#[test]
fn real_files_do_the_same() {
    use std::os::unix::fs::PermissionsExt;
    let parent = std::env::temp_dir().join(format!("oxigears-log-{}-{}", std::process::id(), rand::random::<u64>()));
    let folder = parent.join("deep").join("log");
    assert!(matches!(
        LogStorage::open(FileDisk::new(&folder), &me()),
        Opened::Empty(_)
    ));
    assert!(!parent.exists(), "looking makes nothing");
    let made = LogStorage::create(FileDisk::new(&folder), identity(), &snapshot(1, 1, b"first"));
    let storage = made.map_err(|(_, error)| error).unwrap();
    let sim = created(SimDisk::new(1));
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    type Step = fn(&LogStorage<FileDisk>) -> Result<(), StorageError>;
    let steps: [Step; 4] = [
        |s| s.append(&[entry(2, 2), entry(3, 2)], Some(&hard_state(2, 5, 1))),
        |s| s.append(&[entry(3, 3), entry(4, 3), entry(5, 3)], Some(&hard_state(3, 7, 1))),
        |s| s.compact(4, &ConfState::from((vec![5, 6], vec![7])), b"second"),
        |s| s.apply_snapshot(&snapshot(20, 4, b"third")),
    ];
    for (step, same) in steps.iter().zip([0, 2, 4, 6]) {
        step(&storage).unwrap();
        if same == 2 {
            STEPS[1](&sim).unwrap();
        }
        STEPS[same](&sim).unwrap();
        let (found, wanted) = (content(&existing(FileDisk::new(&folder))), content(&sim));
        assert_eq!(found, wanted);
    }
    let log = folder.join("log");
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, &whole[..whole.len() - 1]).unwrap();
    let Opened::Damaged(mut disk, _) = LogStorage::open(FileDisk::new(&folder), &me()) else {
        panic!("a cut log");
    };
    for n in 1..8 {
        assert_eq!(disk.set_aside("damaged").unwrap(), Some(format!("log.damaged-{n}")));
        assert_eq!(disk.set_aside("damaged").unwrap(), None);
        std::fs::create_dir(&folder).unwrap();
        disk.append("log", b"x").unwrap();
    }
    disk.set_aside("replaced").unwrap();
    let kept = std::fs::read_dir(folder.parent().unwrap()).unwrap().count();
    assert_eq!(kept, crate::limits::KEPT_LOGS + 1);
    std::fs::remove_dir_all(parent).unwrap();
}
