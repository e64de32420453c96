//! A folder that can lose what was not synced, tear and flip what was written, run full, and stop between two steps.

use std::{collections::BTreeMap, io, sync::Arc};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::consensus::disk::Disk;

const NO_SPACE: i32 = 28;
const IO_ERROR: i32 = 5;

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

impl Change {
    fn make(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write(at, bytes) => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Change::Cut(length) => content.resize(*length, 0),
        }
    }
}

/// What a file holds: for those who read it, and on the platter.
#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

type Names = BTreeMap<String, usize>;

#[derive(Clone)]
enum NameChange {
    Set(String, usize),
    Rename(String, String),
    Remove(String),
}

impl NameChange {
    fn make(&self, names: &mut Names) {
        match self {
            NameChange::Set(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

/// How a machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::consensus) enum Crash {
    /// The process ends; the page cache stays.
    Kill,
    /// Power fails: nothing stays that was not synced.
    LoseAll,
    /// Power fails: some of what was not synced stays, in any combination, torn.
    LoseSome,
}

struct State {
    rng: StdRng,
    files: Vec<File>,
    names: Names,
    durable_names: Names,
    unsynced_names: Vec<NameChange>,
    aside: Vec<(String, Vec<String>)>,
    operations: u64,
    /// From this operation on everything fails, and the operation itself is half done if it is a write.
    stop_at: Option<u64>,
    stopped: bool,
    /// Bytes that fit.
    capacity: Option<usize>,
    /// Syncs that will fail.
    failing_syncs: u32,
    /// Syncs that failed.
    failed_syncs: u32,
    syncs: u64,
}

/// A handle; clones see the same folder.
#[derive(Clone)]
pub(in crate::consensus) struct SimDisk(Arc<Mutex<State>>);

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

impl State {
    /// Counts an operation; an error if the machine has stopped. True: it stops within this one.
    fn step(&mut self) -> io::Result<bool> {
        if self.stopped {
            return Err(stopped());
        }
        self.operations += 1;
        self.stopped = self.stop_at.is_some_and(|at| self.operations >= at);
        Ok(self.stopped)
    }

    fn file(&mut self, name: &str, create: bool) -> io::Result<usize> {
        if let Some(&file) = self.names.get(name) {
            return Ok(file);
        }
        if !create {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.files.push(File::default());
        self.change_name(NameChange::Set(name.to_owned(), self.files.len() - 1));
        Ok(self.files.len() - 1)
    }

    fn change_name(&mut self, change: NameChange) {
        change.make(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn used(&self) -> usize {
        self.names.values().map(|&file| self.files[file].content.len()).sum()
    }

    fn write(&mut self, name: &str, bytes: &[u8], at: Option<usize>) -> io::Result<()> {
        let stops = self.step()?;
        let file = self.file(name, true)?;
        let at = at.unwrap_or(self.files[file].content.len());
        let grows = (at + bytes.len()).saturating_sub(self.files[file].content.len());
        let room = self
            .capacity
            .map_or(usize::MAX, |most| most.saturating_sub(self.used()));
        let done = match (stops, grows > room) {
            (true, _) => self.rng.random_range(0..=bytes.len()),
            (false, true) => bytes.len() - (grows - room),
            (false, false) => bytes.len(),
        };
        let change = Change::Write(at, bytes[..done].to_vec());
        let file = &mut self.files[file];
        change.make(&mut file.content);
        file.unsynced.push(change);
        match (stops, done < bytes.len()) {
            (true, _) => Err(stopped()),
            (false, true) => Err(io::Error::from_raw_os_error(NO_SPACE)),
            (false, false) => Ok(()),
        }
    }

    /// An operation that is done as a whole or, if the machine stops, perhaps not at all.
    fn whole(&mut self, change: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        let stops = self.step()?;
        if stops && self.rng.random() {
            return Err(stopped());
        }
        change(self)?;
        match stops {
            true => Err(stopped()),
            false => Ok(()),
        }
    }

    fn sync_file(&mut self, name: &str) -> io::Result<()> {
        self.syncs += 1;
        let file = self.file(name, false)?;
        let file = &mut self.files[file];
        let changes = std::mem::take(&mut file.unsynced);
        if self.failing_syncs > 0 {
            // As the kernel does: reported once, then the pages count as written though they are not.
            self.failing_syncs -= 1;
            self.failed_syncs += 1;
            return Err(io::Error::from_raw_os_error(IO_ERROR));
        }
        changes.iter().for_each(|change| change.make(&mut file.durable));
        Ok(())
    }

    /// What of a write reaches the platter: sectors, each on its own.
    fn torn(rng: &mut StdRng, change: &Change) -> Option<Change> {
        let sector = [1, 16, 512][rng.random_range(0..3)];
        match (rng.random_range(0..4), change) {
            (0, _) => None,
            (1, _) | (_, Change::Cut(_)) => Some(change.clone()),
            (2, Change::Write(at, bytes)) => {
                Some(Change::Write(*at, bytes[..rng.random_range(0..=bytes.len())].to_vec()))
            }
            (_, Change::Write(at, bytes)) => {
                let mut bytes = bytes.clone();
                for sector in bytes.chunks_mut(sector) {
                    if rng.random() {
                        sector.fill(0);
                    }
                }
                Some(Change::Write(*at, bytes))
            }
        }
    }

    fn lose(&mut self, all: bool) {
        let State { rng, files, .. } = self;
        for file in files.iter_mut() {
            let changes = std::mem::take(&mut file.unsynced);
            if !all {
                for change in changes.iter().filter_map(|change| State::torn(rng, change)) {
                    change.make(&mut file.durable);
                }
            }
            file.content = file.durable.clone();
        }
        let changes = std::mem::take(&mut self.unsynced_names);
        let kept = match all {
            true => 0,
            false => self.rng.random_range(0..=changes.len()),
        };
        for change in &changes[..kept] {
            change.make(&mut self.durable_names);
        }
        self.names = self.durable_names.clone();
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            files: Vec::new(),
            names: Names::new(),
            durable_names: Names::new(),
            unsynced_names: Vec::new(),
            aside: Vec::new(),
            operations: 0,
            stop_at: None,
            stopped: false,
            capacity: None,
            failing_syncs: 0,
            failed_syncs: 0,
            syncs: 0,
        })))
    }

    /// A folder of its own with the same files, all of them durable.
    pub fn copy(&self, seed: u64) -> SimDisk {
        let copy = SimDisk::new(seed);
        {
            let (from, mut to) = (self.0.lock(), copy.0.lock());
            to.files = from.files.clone();
            for file in &mut to.files {
                file.durable = file.content.clone();
                file.unsynced.clear();
            }
            to.names = from.names.clone();
            to.durable_names = from.names.clone();
        }
        copy
    }

    /// Stops the machine within the `count`th operation from now.
    pub fn stop_in(&self, count: u64) {
        let mut state = self.0.lock();
        state.stop_at = Some(state.operations + count);
    }

    /// The machine goes on.
    pub fn never_stop(&self) {
        self.0.lock().stop_at = None;
    }

    pub fn has_stopped(&self) -> bool {
        self.0.lock().stopped
    }

    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The machine stops and is there again.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.0.lock();
        match crash {
            Crash::Kill => {}
            Crash::LoseAll => state.lose(true),
            Crash::LoseSome => state.lose(false),
        }
        (state.stop_at, state.stopped) = (None, false);
    }

    /// From now on no more than these bytes fit in; `None`: any number.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.0.lock().capacity = bytes;
    }

    pub fn used(&self) -> usize {
        self.0.lock().used()
    }

    /// The next syncs fail.
    pub fn fail_syncs(&self, count: u32) {
        self.0.lock().failing_syncs = count;
    }

    /// Syncs that failed since the last call.
    pub fn take_failed_syncs(&self) -> u32 {
        std::mem::take(&mut self.0.lock().failed_syncs)
    }

    /// All is gone.
    pub fn wipe(&self) {
        let mut state = self.0.lock();
        state.names.clear();
        state.durable_names.clear();
        state.unsynced_names.clear();
    }

    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.lock();
        state.names.get(name).map(|&file| state.files[file].content.clone())
    }

    /// Somebody writes the file anew, durably; `None` removes it.
    pub fn set_content(&self, name: &str, content: Option<Vec<u8>>) {
        let mut state = self.0.lock();
        let Some(content) = content else {
            state.names.remove(name);
            state.durable_names.remove(name);
            return;
        };
        state.files.push(File {
            durable: content.clone(),
            content,
            unsynced: Vec::new(),
        });
        let file = state.files.len() - 1;
        state.names.insert(name.to_owned(), file);
        state.durable_names.insert(name.to_owned(), file);
    }
}

impl Disk for SimDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut state = self.0.lock();
        match state.step()? {
            true => Err(stopped()),
            false => Ok(state.names.keys().cloned().collect()),
        }
    }

    fn read(&mut self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let mut state = self.0.lock();
        if state.step()? {
            return Err(stopped());
        }
        match state.names.get(name) {
            None => Ok(None),
            Some(&file) if state.files[file].content.len() as u64 > most => Err(io::ErrorKind::FileTooLarge.into()),
            Some(&file) => Ok(Some(state.files[file].content.clone())),
        }
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().write(name, bytes, None)
    }

    fn overwrite(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().write(name, bytes, Some(0))
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.0.lock().whole(|state| {
            let file = state.file(name, false)?;
            let change = Change::Cut(length as usize);
            change.make(&mut state.files[file].content);
            state.files[file].unsynced.push(change);
            Ok(())
        })
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.0.lock().whole(|state| state.sync_file(name))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.lock().whole(|state| {
            state.file(from, false)?;
            state.change_name(NameChange::Rename(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.lock().whole(|state| {
            if state.names.contains_key(name) {
                state.change_name(NameChange::Remove(name.to_owned()));
            }
            Ok(())
        })
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.0.lock().whole(|state| {
            state.syncs += 1;
            let changes = std::mem::take(&mut state.unsynced_names);
            if state.failing_syncs > 0 {
                state.failing_syncs -= 1;
                state.failed_syncs += 1;
                return Err(io::Error::from_raw_os_error(IO_ERROR));
            }
            changes.iter().for_each(|change| change.make(&mut state.durable_names));
            Ok(())
        })
    }

    fn set_aside(&mut self, kind: &str) -> io::Result<Option<String>> {
        let mut name = None;
        self.0.lock().whole(|state| {
            if state.names.is_empty() {
                return Ok(());
            }
            let made = format!("log.{kind}-{}", state.aside.len() + 1);
            let files = state.names.keys().cloned().collect();
            state.aside.push((made.clone(), files));
            state.names.clear();
            state.durable_names.clear();
            state.unsynced_names.clear();
            name = Some(made);
            Ok(())
        })?;
        Ok(name)
    }
}
