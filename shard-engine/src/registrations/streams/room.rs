//! Room for batches: what has been read of all streams and waits for a thread is bounded, in bytes and in number, so a
//! restart with a long backlog neither reads it into memory at once nor keeps the threads from everything else. Who finds
//! no room is called when there is some, the registrations in turn.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};

use super::super::limits;

/// Begins to read a batch.
type Reader = Box<dyn FnOnce(Room) + Send>;

#[derive(Default)]
struct All {
    bytes: usize,
    /// Batches with which no thread has begun.
    queued: usize,
    /// Who waits, by registration.
    lines: HashMap<Arc<str>, VecDeque<Reader>>,
    /// Those registrations, in the order in which they are called.
    turns: VecDeque<Arc<str>>,
}

static ALL: Mutex<Option<All>> = Mutex::new(None);

impl All {
    fn has_room(&self) -> bool {
        self.bytes < limits::STREAM_WAITING_BYTES && self.queued < limits::STREAM_WAITING_BATCHES
    }

    fn grant(&mut self) -> Room {
        self.queued += 1;
        Room {
            bytes: 0,
            turn: Arc::new(Turn(AtomicBool::new(false))),
        }
    }

    fn next(&mut self) -> Option<Reader> {
        let registration = self.turns.pop_front()?;
        let line = self.lines.get_mut(&registration)?;
        let reader = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&registration);
        } else {
            self.turns.push_back(registration);
        }
        reader
    }
}

/// The place of one batch, from before it is read until it is over.
pub struct Room {
    bytes: usize,
    turn: Arc<Turn>,
}

/// Whether some thread has begun with a batch.
pub struct Turn(AtomicBool);

/// A place for a batch of this registration; if there is none, `later` gets one when there is. It must only hand the work
/// over to another thread.
pub fn enter(registration: &Arc<str>, later: impl FnOnce(Room) + Send + 'static) -> Option<Room> {
    let mut all = ALL.lock();
    let all = all.get_or_insert_default();
    if all.turns.is_empty() && all.has_room() {
        return Some(all.grant());
    }
    let line = all.lines.entry(registration.clone()).or_default();
    line.push_back(Box::new(later));
    if line.len() == 1 {
        all.turns.push_back(registration.clone());
    }
    None
}

impl Room {
    /// It takes so much. The next one is called if there is room still.
    pub fn take(&mut self, bytes: usize) {
        self.bytes += bytes;
        change(|all| all.bytes += bytes);
    }

    /// To tell when it begins.
    pub fn turn(&self) -> Arc<Turn> {
        self.turn.clone()
    }
}

impl Turn {
    /// A thread has begun with the batch, or will not.
    pub fn begin(&self) {
        if !self.0.swap(true, Ordering::Relaxed) {
            change(|all| all.queued -= 1);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        change(|all| all.bytes -= self.bytes);
        self.turn.begin();
    }
}

/// Calls the next one if there is room then. One only: how much it takes is not known before it has read.
fn change(work: impl FnOnce(&mut All)) {
    let mut all = ALL.lock();
    work(all.get_or_insert_default());
    call_next(all);
}

fn call_next(mut locked: MutexGuard<'_, Option<All>>) {
    let all = locked.get_or_insert_default();
    let next = if all.has_room() { all.next() } else { None };
    let called = next.map(|next| (next, all.grant()));
    drop(locked);
    if let Some((next, room)) = called {
        next(room);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;

    /// The room is one for all.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn ask(registration: &str, answer: &mpsc::Sender<(u32, Room)>, number: u32) -> Option<Room> {
        let answer = answer.clone();
        enter(&registration.into(), move |room| answer.send((number, room)).unwrap())
    }

    fn called(answers: &Receiver<(u32, Room)>) -> Option<(u32, Room)> {
        answers.try_recv().ok()
    }

    #[test]
    fn who_finds_no_room_is_called_one_after_another() {
        let _one = ONE_AT_A_TIME.lock();
        let (sender, answers) = mpsc::channel();
        let mut first = ask("a", &sender, 1).unwrap();
        let mut second = ask("a", &sender, 2).unwrap();
        first.take(limits::STREAM_WAITING_BYTES);
        second.take(1);
        assert!((3..6).all(|number| ask("a", &sender, number).is_none()));
        drop(second);
        assert!(called(&answers).is_none());
        drop(first);
        let (number, mut third) = called(&answers).unwrap();
        assert_eq!(number, 3);
        // It reads little: there is room for the next one while it is there, and while that one has nothing to read.
        third.take(1);
        let (number, fourth) = called(&answers).unwrap();
        assert_eq!(number, 4);
        drop(fourth);
        let (number, fifth) = called(&answers).unwrap();
        assert_eq!(number, 5);
        drop((third, fifth));
        assert!(called(&answers).is_none());
    }

    #[test]
    fn few_wait_for_a_thread_and_registrations_take_turns() {
        let _one = ONE_AT_A_TIME.lock();
        let (sender, answers) = mpsc::channel();
        let enter = |registration, number| ask(registration, &sender, number);
        let first: Vec<Room> = (0..limits::STREAM_WAITING_BATCHES)
            .map(|_| enter("a", 0).unwrap())
            .collect();
        for (registration, number) in [("a", 1), ("a", 2), ("b", 3), ("b", 4), ("c", 5)] {
            assert!(enter(registration, number).is_none());
        }
        let mut order = Vec::new();
        let mut rooms = Vec::new();
        for room in &first[..5] {
            // Only once for each.
            room.turn().begin();
            room.turn().begin();
            let (number, room) = called(&answers).unwrap();
            assert!(called(&answers).is_none());
            order.push(number);
            rooms.push(room);
        }
        assert_eq!(order, [1, 3, 5, 2, 4]);
        drop((first, rooms));
        assert!(enter("a", 6).is_some());
    }
}
