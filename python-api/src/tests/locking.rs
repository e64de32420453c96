//! GIL and server lock together.

use std::{sync::mpsc, thread, time::Duration};

use super::{fake, start_interpreter};
use crate::{Precedence, Server, gil, with_server_locked};

#[test]
fn who_waits_for_one_that_comes_first_gets_the_lock_after() {
    start_interpreter();
    let fake = fake::start();
    while !fake.try_lock(Duration::from_secs(1), &|| true) {}
    let first = Precedence::claim();
    let (tell, hear) = mpsc::channel();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let tell = tell.clone();
            thread::spawn(move || with_server_locked(|| tell.send(()).expect("the test hears")))
        })
        .collect();
    // They do not keep the GIL from this thread, which has the lock.
    for _ in 0..1000 {
        gil::attach(|py| py.detach(thread::yield_now));
    }
    assert!(hear.try_recv().is_err(), "the lock was held");
    fake.unlock();
    drop(first);
    for _ in 0..3 {
        hear.recv_timeout(Duration::from_secs(60)).expect("a wake-up");
    }
    for waiter in waiters {
        waiter.join().expect("no panic");
    }
}
