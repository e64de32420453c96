//! Reading the records of events that wait: many in one hold of the server lock, strings several at once.
//!
//! The main thread reads at the end of the turn of its event loop in which they came: then the keys are in its cache, and
//! no thread has to wait for the lock. What is too much for that, and what comes while there is no such turn, workers read.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Instant,
};

use bytes::Bytes;
use oxigears_coordinator::codec::RecordBatch;
use smallvec::SmallVec;

use super::{
    fire::Event,
    index::Entry,
    queue::{self, Queue, Ready},
    record::{self, Read},
    worker::{submit, want_spare},
};
use crate::{
    module::module,
    readers::event::{Huge, HugeRecord},
    redis::{
        event_loop,
        guarded::Guarded,
        key::with_strings_of,
        lock::{self, ServerLock},
    },
    registrations::limits,
};

/// Events have come to this registration in this turn of the event loop; `idle`: and no task handles them.
struct Came {
    entry: Arc<Entry>,
    idle: bool,
}

static CAME: Guarded<Vec<Came>> = Guarded::new(Vec::new());

/// An event has come; `idle`: and no task handles the line, but one is counted.
pub fn came(guard: &ServerLock, entry: &Arc<Entry>, idle: bool) {
    let queue = &entry.active.core.events;
    let announced = queue.announced.0.load(Ordering::Relaxed);
    if !announced && !event_loop::want_end() {
        if idle {
            submit(entry.clone());
        } else {
            want_spare(entry, 1);
        }
        return;
    }
    queue.announced.0.store(true, Ordering::Relaxed);
    if !announced || idle {
        let entry = entry.clone();
        CAME.borrow_mut(guard).push(Came { entry, idle });
    }
}

/// Reads the records of events that have come, where few are ready. On the main thread, at the end of a turn.
pub fn read_ahead(guard: &ServerLock) {
    let came = std::mem::take(&mut *CAME.borrow_mut(guard));
    let end = Instant::now() + limits::EVENTS_SLICE;
    for Came { entry, .. } in &came {
        let is_short = entry.active.core.events.ready.0.lock().is_short();
        if is_short && Instant::now() < end {
            read_some(guard, entry, end);
        }
    }
}

impl Drop for Came {
    /// The main thread has done its part, also if it has panicked; what is left the workers read.
    fn drop(&mut self) {
        let queue = &self.entry.active.core.events;
        {
            let _ready = queue.ready.0.lock();
            queue.announced.0.store(false, Ordering::Relaxed);
            queue.arrived.notify_all();
        }
        if self.idle {
            submit(self.entry.clone());
        } else {
            want_spare(&self.entry, 1);
        }
    }
}

/// Reads the records of events that wait, as many as fit into one hold of the lock; false if there are none.
pub fn fill(entry: &Entry) -> bool {
    if entry.active.core.events.line.0.lock().waiting.is_empty() {
        return false;
    }
    let huge = read_some(&lock::lock(), entry, Instant::now() + limits::EVENTS_SLICE);
    if let Some((number, huge)) = huge {
        read_huge(entry, number, huge);
    }
    true
}

/// Reads the record of the first event that waits, which stays in its place meanwhile.
fn read_huge(entry: &Entry, number: u64, huge: Huge) {
    let queue = &entry.active.core.events;
    let found = {
        let mut line = queue.line.0.lock();
        let first = line.waiting.front().filter(|first| first.number == number);
        let found = first.map(|first| (first.name.clone(), first.key.clone(), first.wish(entry)));
        if found.is_some() && std::mem::replace(&mut line.huge, true) {
            // Another worker reads it.
            drop(line);
            return thread::sleep(limits::HUGE_LOOK);
        }
        found
    };
    let Some((name, key, wish)) = found else { return };
    let _done = HugeDone(queue);
    let mut record = HugeRecord::new(&key, huge);
    let record = loop {
        if let Some(record) = record.go_on(&name, wish) {
            break record::one(record);
        }
        // It may have been aborted; while others look at the line it is out of it.
        let line = queue.line.0.lock();
        if !(line.reading || line.waiting.front().is_some_and(|first| first.number == number)) {
            return;
        }
    };
    let _guard = lock::lock();
    let mut line = queue.line.0.lock();
    if line.waiting.front().is_some_and(|first| first.number == number)
        && let Some(event) = line.waiting.pop_front()
    {
        let record = Ok(record);
        queue.ready.0.lock().push(Ready { event, record });
    }
}

/// Also when a panic passes.
struct HugeDone<'a>(&'a Queue);

impl Drop for HugeDone<'_> {
    fn drop(&mut self) {
        self.0.line.0.lock().huge = false;
    }
}

/// Commands look at the lines under this lock, too: to them an event is always in one of them. Gives the number of the first
/// one that is left, if its value is too large for that.
fn read_some(guard: &ServerLock, entry: &Entry, end: Instant) -> Option<(u64, Huge)> {
    let queue = &entry.active.core.events;
    queue::taken(guard);
    let mut taken: Vec<Event> = {
        let mut line = queue.line.0.lock();
        // Nobody has to find that out again.
        let first = line.waiting.front().map(|first| first.number);
        if let Some((number, huge)) = line.found_huge.filter(|(number, _)| Some(*number) == first) {
            return Some((number, huge));
        }
        line.reading = true;
        let count = line.waiting.len().min(limits::EVENTS_AT_ONCE);
        line.waiting.drain(..count).rev().collect()
    };
    let mut ready = Vec::with_capacity(taken.len());
    let mut reading = Reading::default();
    let mut huge = None;
    while !taken.is_empty() {
        huge = reading.some(guard, entry, &mut taken, &mut ready);
        if huge.is_some() || Instant::now() >= end {
            break;
        }
    }
    reading.unpack(&mut ready);
    let mut line = queue.line.0.lock();
    let mut all_ready = queue.ready.0.lock();
    ready.into_iter().for_each(|one| all_ready.push(one));
    drop(all_ready);
    // What was not read goes back to its place; the last one taken is the first in line.
    taken.into_iter().for_each(|event| line.waiting.push_front(event));
    line.reading = false;
    line.found_huge = huge;
    huge
}

/// Reads records, several at once where that is possible.
#[derive(Default)]
struct Reading {
    /// How many strings to ask for in one command: few while they are large, and a very large one is read by itself, with
    /// no copy in between. 0: not known yet.
    at_once: usize,
    /// The strings of some events, one after the other.
    bytes: Vec<u8>,
    /// Where each one is.
    places: Vec<Option<(usize, usize)>>,
    /// Small records, one after the other: they share their memory.
    packed: Vec<u8>,
    /// Which ones they are, and where their ends are.
    packed_ends: Vec<(usize, usize)>,
}

impl Reading {
    /// Moves some events from the end of `taken` to `ready`, with their records; up to one with a huge value.
    fn some(
        &mut self,
        guard: &ServerLock,
        entry: &Entry,
        taken: &mut Vec<Event>,
        ready: &mut Vec<Ready>,
    ) -> Option<(u64, Huge)> {
        let from = taken.len().saturating_sub(limits::STRINGS_AT_ONCE);
        let count = taken.len() - from;
        let strings =
            entry.read_value && !module().is_cluster && taken[from..].iter().all(|event| event.is_likely_string());
        let (alone, strings) = (strings && self.at_once == 1, strings && self.at_once != 1);
        // What is no string may be large: the clock is looked at after each.
        let count = if strings { self.ask(guard, taken, count) } else { 1 };
        for at in 0..count {
            let event = taken.pop()?;
            let place = self.places.get(at).copied().flatten();
            let known = place.map(|(start, end)| &self.bytes[start..end]);
            let (known, place, wish) = (
                known.filter(|_| strings),
                (&*event.name, &*event.key),
                event.wish(entry),
            );
            let read = match strings {
                true => {
                    let read = record::read_behind(guard, &entry.active, place, wish, known, &mut self.packed);
                    read.map(|read| read.map_or_else(Read::Huge, |()| Read::Record(RecordBatch::default())))
                }
                false => record::read(guard, &entry.active, place, wish),
            };
            let record = match read {
                Ok(Read::Record(record)) => Ok(record),
                Ok(Read::Huge(huge)) => {
                    let number = event.number;
                    taken.push(event);
                    return Some((number, huge));
                }
                Err(text) => Err(text),
            };
            let before = self.packed_ends.last().map_or(0, |(_, end)| *end);
            if strings {
                self.packed_ends.push((ready.len(), self.packed.len()));
            }
            let is_large = self.packed.len().saturating_sub(before) > limits::STRINGS_BYTES;
            if alone {
                self.adapt(record.as_ref().map_or(1, |record| record.bytes.len()));
            }
            ready.push(Ready { event, record });
            // It is none, or much longer than those before.
            if is_large {
                break;
            }
        }
        if self.packed.len() >= limits::RECORDS_PACKED {
            self.unpack(ready);
        }
        None
    }

    /// Gives the records that were packed to their events.
    fn unpack(&mut self, ready: &mut [Ready]) {
        let bytes = Bytes::from(std::mem::take(&mut self.packed));
        let mut start = 0;
        for (at, end) in self.packed_ends.drain(..) {
            if let Ok(record) = &mut ready[at].record {
                *record = RecordBatch {
                    bytes: bytes.slice(start..end),
                    records: 1,
                };
            }
            start = end;
        }
    }

    /// Asks for the strings of at most so many of the next events; gives how many.
    fn ask(&mut self, guard: &ServerLock, taken: &[Event], most: usize) -> usize {
        let count = most.min(self.at_once).max(1);
        let names: SmallVec<[&[u8]; limits::STRINGS_AT_ONCE]> =
            taken.iter().rev().take(count).map(|event| &*event.key).collect();
        self.bytes.clear();
        self.places.clear();
        self.places.resize(count, None);
        let mut largest = 1;
        with_strings_of(guard, &names, |at, text| {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(text);
            self.places[at] = Some((start, self.bytes.len()));
            largest = largest.max(text.len());
        });
        self.adapt(largest);
        count
    }

    fn adapt(&mut self, largest: usize) {
        self.at_once = (limits::STRINGS_BYTES / largest).clamp(1, limits::STRINGS_AT_ONCE);
    }
}

impl Queue {
    /// No event has its record.
    pub(super) fn nothing_ready(&self) -> bool {
        self.ready.0.lock().is_empty()
    }

    /// There are records; waits a moment for those that the main thread is about to read.
    pub(super) fn is_ready(&self) -> bool {
        let mut ready = self.ready.0.lock();
        if ready.is_empty() && self.announced.0.load(Ordering::Relaxed) {
            self.arrived.wait_for(&mut ready, limits::EVENTS_COME);
        }
        !ready.is_empty()
    }
}
