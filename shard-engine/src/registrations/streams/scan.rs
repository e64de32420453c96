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
    let (mut scan, mut slices) = (KeyScan::new(), Slices::default());
    loop {
        let more = slices.run(|guard, deadline| step(guard, deadline, &mut scan, &consumers));
        match more {
            Ok(true) => {}
            Ok(false) => return,
            Err(()) => return log::warning("looking for streams met an internal error; some may not have been found"),
        }
    }
}

/// Walks until the time is over; false if all keys have been visited.
fn step(
    guard: &ServerLock,
    deadline: &mut Deadline,
    scan: &mut KeyScan,
    consumers: &[Arc<Consumer>],
) -> Result<bool, ()> {
    if !is_master() {
        return Ok(false);
    }
    let mut streams: Vec<Vec<u8>> = Vec::new();
    let mut more = true;
    while more && !deadline.is_over() {
        let mut visitor = |name: &[u8], key: &Key<'_>| {
            if key.kind() == Kind::Stream && consumers.iter().any(|consumer| consumer.may_know(name)) {
                streams.push(name.to_vec());
            }
        };
        more = scan.step(guard, &mut visitor).map_err(drop)?;
    }
    for name in &streams {
        for consumer in consumers {
            if consumer.wants(name) || consumer.is_gone() && consumer.may_know(name) {
                found(guard, consumer, name);
            }
        }
    }
    Ok(more)
}
