//! Room for batches: what has been read of all streams and waits for a thread is bounded, so a restart with a long backlog
//! does not read it into memory at once. Who finds no room is called when there is some.

use std::collections::VecDeque;

use parking_lot::{Mutex, MutexGuard};

use super::super::limits;

/// Begins to read a batch.
type Reader = Box<dyn FnOnce() + Send>;

struct All {
    bytes: usize,
    waiting: VecDeque<Reader>,
}

static ALL: Mutex<All> = Mutex::new(All {
    bytes: 0,
    waiting: VecDeque::new(),
});

/// The place of one batch, from before it is read until it is over.
pub struct Room {
    bytes: usize,
}

/// A place; if there is none, `later` is called when there may be one. It must only hand the work over to another thread.
pub fn enter(later: impl FnOnce() + Send + 'static) -> Option<Room> {
    let mut all = ALL.lock();
    if all.bytes >= limits::STREAM_WAITING_BYTES {
        all.waiting.push_back(Box::new(later));
        return None;
    }
    Some(Room { bytes: 0 })
}

impl Room {
    /// It takes so much. The next one is called if there is room still.
    pub fn take(&mut self, bytes: usize) {
        self.bytes += bytes;
        let mut all = ALL.lock();
        all.bytes += bytes;
        call_next(all);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut all = ALL.lock();
        all.bytes -= self.bytes;
        call_next(all);
    }
}

/// One only: how much it takes is not known before it has read.
fn call_next(mut all: MutexGuard<'_, All>) {
    let has_room = all.bytes < limits::STREAM_WAITING_BYTES;
    let next = if has_room { all.waiting.pop_front() } else { None };
    drop(all);
    if let Some(next) = next {
        next();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_finds_no_room_is_called_one_after_another() {
        let (sender, receiver) = mpsc::channel();
        let enter = |name: &'static str| {
            let sender = sender.clone();
            enter(move || sender.send(name).unwrap())
        };
        let mut first = enter("first").unwrap();
        let mut second = enter("second").unwrap();
        first.take(limits::STREAM_WAITING_BYTES);
        second.take(1);
        assert!(["third", "fourth", "fifth"].iter().all(|name| enter(name).is_none()));
        drop(second);
        assert!(receiver.try_recv().is_err());
        drop(first);
        assert_eq!(receiver.try_recv(), Ok("third"));
        // It reads little: there is room for the next one while it is there, and while that one has nothing to read.
        let mut third = enter("third").unwrap();
        third.take(1);
        assert_eq!(receiver.try_recv(), Ok("fourth"));
        drop(enter("fourth").unwrap());
        assert_eq!(receiver.try_recv(), Ok("fifth"));
        assert!(receiver.try_recv().is_err());
    }
}
