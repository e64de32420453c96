//! Room for batches: what has been read of all streams and waits for a thread is bounded, so a restart with a long backlog
//! does not read it into memory at once. Who finds no room is called when there is some.

use std::collections::VecDeque;

use parking_lot::Mutex;

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
    /// It takes so much.
    pub fn take(&mut self, bytes: usize) {
        self.bytes += bytes;
        ALL.lock().bytes += bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut all = ALL.lock();
        all.bytes -= self.bytes;
        let next = if all.bytes < limits::STREAM_WAITING_BYTES {
            all.waiting.pop_front()
        } else {
            None
        };
        drop(all);
        if let Some(next) = next {
            next();
        }
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
        assert!(enter("third").is_none() && enter("fourth").is_none());
        drop(second);
        assert!(receiver.try_recv().is_err());
        drop(first);
        assert_eq!(receiver.try_recv(), Ok("third"));
        // The third one reads nothing; it hands the room on all the same.
        drop(enter("third").unwrap());
        assert_eq!(receiver.try_recv(), Ok("fourth"));
        assert!(receiver.try_recv().is_err());
    }
}
