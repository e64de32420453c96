//! Room for batches. What has been read of all streams and is not over is bounded in bytes, so a restart with a long
//! backlog does not read it into memory at once. Of each registration few batches wait for a thread, so what clients run
//! does not wait behind the backlogs of all its streams. Who finds no room is called when there is some, the registrations
//! in turn.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::super::limits;

/// Begins to read a batch.
type Reader = Box<dyn FnOnce(Room) + Send>;

#[derive(Default)]
struct All {
    bytes: usize,
    lines: HashMap<Arc<str>, Line>,
    /// Registrations of which somebody waits, and might be called if there are bytes for it.
    turns: VecDeque<Arc<str>>,
}

/// The batches of a registration.
#[derive(Default)]
struct Line {
    /// Those that have a place, and with which no thread has begun.
    begun_by_none: usize,
    waiting: VecDeque<Reader>,
    /// It is in `turns`.
    in_turn: bool,
}

static ALL: Mutex<Option<All>> = Mutex::new(None);

impl Line {
    fn has_room(&self) -> bool {
        self.begun_by_none < limits::STREAM_WAITING_BATCHES
    }
}

impl All {
    fn has_bytes(&self) -> bool {
        self.bytes < limits::STREAM_WAITING_BYTES
    }

    fn line(&mut self, registration: &Arc<str>) -> &mut Line {
        self.lines.entry(registration.clone()).or_default()
    }

    fn grant(&mut self, registration: &Arc<str>) -> Room {
        self.line(registration).begun_by_none += 1;
        Room {
            bytes: 0,
            turn: Arc::new(Turn {
                registration: registration.clone(),
                has_begun: AtomicBool::new(false),
            }),
        }
    }

    /// Sees to it that a registration is called if it can be, and is forgotten if there is nothing to know of it.
    fn see_to(&mut self, registration: &Arc<str>) {
        let line = self.line(registration);
        let is_ready = !line.waiting.is_empty() && line.has_room();
        if is_ready && !line.in_turn {
            line.in_turn = true;
            self.turns.push_back(registration.clone());
        } else if line.waiting.is_empty() && line.begun_by_none == 0 {
            self.lines.remove(registration);
        }
    }

    /// Who is called now, with its room.
    fn next(&mut self) -> Option<(Reader, Room)> {
        if !self.has_bytes() {
            return None;
        }
        let registration = self.turns.pop_front()?;
        let line = self.line(&registration);
        line.in_turn = false;
        let reader = line.waiting.pop_front()?;
        let room = self.grant(&registration);
        self.see_to(&registration);
        Some((reader, room))
    }
}

/// The place of one batch, from before it is read until it is over.
pub struct Room {
    bytes: usize,
    turn: Arc<Turn>,
}

/// Whether some thread has begun with a batch.
pub struct Turn {
    registration: Arc<str>,
    has_begun: AtomicBool,
}

/// A place for a batch of this registration; if there is none, `later` gets one when there is. It must only hand the work
/// over to another thread.
pub fn enter(registration: &Arc<str>, later: impl FnOnce(Room) + Send + 'static) -> Option<Room> {
    let mut all = ALL.lock();
    let all = all.get_or_insert_default();
    let is_first = all.turns.is_empty() && all.has_bytes();
    let line = all.line(registration);
    if is_first && line.waiting.is_empty() && line.has_room() {
        return Some(all.grant(registration));
    }
    line.waiting.push_back(Box::new(later));
    all.see_to(registration);
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
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            change(|all| {
                all.line(&self.registration).begun_by_none -= 1;
                all.see_to(&self.registration);
            });
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
    let called = {
        let mut all = ALL.lock();
        let all = all.get_or_insert_default();
        work(all);
        all.next()
    };
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
    fn few_of_a_registration_wait_for_a_thread_and_others_have_their_own() {
        let _one = ONE_AT_A_TIME.lock();
        let (sender, answers) = mpsc::channel();
        let enter = |registration, number| ask(registration, &sender, number);
        let few = |registration| -> Vec<Room> {
            (0..limits::STREAM_WAITING_BATCHES)
                .map(|_| enter(registration, 0).unwrap())
                .collect()
        };
        let (first, others) = (few("a"), few("b"));
        for (registration, number) in [("a", 1), ("a", 2), ("b", 3)] {
            assert!(enter(registration, number).is_none());
        }
        assert!(enter("c", 0).is_some());
        let mut rooms = Vec::new();
        for (room, wanted) in [(&first[0], 1), (&first[1], 2), (&others[0], 3)] {
            // Only once for each.
            room.turn().begin();
            room.turn().begin();
            let (number, room) = called(&answers).unwrap();
            assert!(called(&answers).is_none());
            assert_eq!(number, wanted);
            rooms.push(room);
        }
        drop((first, others, rooms));
        assert!(ALL.lock().as_ref().is_some_and(|all| all.lines.is_empty()));
    }

    #[test]
    fn registrations_that_wait_for_bytes_take_turns() {
        let _one = ONE_AT_A_TIME.lock();
        let (sender, answers) = mpsc::channel();
        let mut large = ask("a", &sender, 0).unwrap();
        large.take(limits::STREAM_WAITING_BYTES);
        for (registration, number) in [("a", 1), ("a", 2), ("b", 3), ("b", 4), ("c", 5)] {
            assert!(ask(registration, &sender, number).is_none());
        }
        drop(large);
        let mut order = Vec::new();
        while let Some((number, room)) = called(&answers) {
            order.push(number);
            drop(room);
        }
        assert_eq!(order, [1, 3, 5, 2, 4]);
        assert!(ALL.lock().as_ref().is_some_and(|all| all.lines.is_empty()));
    }
}
