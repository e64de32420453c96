//! Looking for the streams of registrations that start, or are gone: one walk over all keys for all that wait for one.
//!
//! Only finds; what is found is looked at elsewhere.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    super::is_master,
    all,
    batch::{self, now_ms},
    consumer::Consumer,
    running::{self, Place},
};
use crate::{
    readers::slices::{Deadline, Slices},
    redis::{
        key::{Key, Kind},
        keyspace::KeyScan,
        lock::ServerLock,
        log,
    },
};

/// Registrations that wait for a walk.
#[derive(Default)]
pub struct Waiting(Mutex<Vec<Arc<Consumer>>>);

/// Finds the streams of a registration; if it is gone, to leave them.
pub fn start(guard: &ServerLock, consumer: &Arc<Consumer>) {
    if let Some(name) = consumer.exact_name() {
        let is_there = Key::open(guard, name).is_some_and(|key| key.kind() == Kind::Stream);
        if is_there {
            found(guard, consumer, name);
        }
        return;
    }
    let mut waiting = all().waiting.0.lock();
    waiting.push(consumer.clone());
    if waiting.len() == 1 {
        all().threads.scan.submit(walk);
    }
}

fn found(guard: &ServerLock, consumer: &Arc<Consumer>, name: &[u8]) {
    if consumer.is_gone() {
        return batch::leave(guard, consumer, &name.into());
    }
    if let Some((key, next)) = consumer.found(name, now_ms()) {
        running::act(guard, consumer, &key, next, Place::Elsewhere);
    }
}

fn walk() {
    let consumers = std::mem::take(&mut *all().waiting.0.lock());
    let mut slices = Slices::default();
    let mut walk = Walk {
        scan: KeyScan::new(),
        consumers,
        streams: Vec::new(),
        next: 0,
        is_over: false,
    };
    loop {
        match slices.run(|guard, deadline| walk.step(guard, deadline)) {
            Ok(true) => {}
            Ok(false) => return,
            Err(()) => return log::warning("looking for streams met an internal error; some may not have been found"),
        }
    }
}

struct Walk {
    scan: KeyScan,
    consumers: Vec<Arc<Consumer>>,
    /// Found, and not told yet to all.
    streams: Vec<Vec<u8>>,
    /// The registration that is told next of the last one of them.
    next: usize,
    /// All keys have been visited.
    is_over: bool,
}

impl Walk {
    /// Goes on until the time is over; false at the end.
    fn step(&mut self, guard: &ServerLock, deadline: &mut Deadline) -> Result<bool, ()> {
        if !is_master() {
            return Ok(false);
        }
        loop {
            if !self.tell(guard, deadline) {
                return Ok(true);
            }
            if self.is_over {
                return Ok(false);
            }
            while !self.is_over && self.streams.is_empty() {
                if deadline.is_over() {
                    return Ok(true);
                }
                let (consumers, streams) = (&self.consumers, &mut self.streams);
                let mut visitor = |name: &[u8], key: &Key<'_>| {
                    if key.kind() == Kind::Stream && consumers.iter().any(|consumer| consumer.may_know(name)) {
                        streams.push(name.to_vec());
                    }
                };
                self.is_over = !self.scan.step(guard, &mut visitor).map_err(drop)?;
            }
        }
    }

    /// Tells the registrations of what was found; false if the time is over before the end.
    fn tell(&mut self, guard: &ServerLock, deadline: &mut Deadline) -> bool {
        while let Some(name) = self.streams.last() {
            let dead = all().takes_dead_letters(name);
            while let Some(consumer) = self.consumers.get(self.next) {
                if deadline.is_over_now() {
                    return false;
                }
                self.next += 1;
                if consumer.wants(name, dead) || consumer.is_gone() && consumer.may_know(name) {
                    found(guard, consumer, name);
                }
            }
            self.next = 0;
            self.streams.pop();
        }
        true
    }
}
