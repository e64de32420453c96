//! GIL and server lock together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{fake, start_interpreter};
use pyo3::prelude::*;

use crate::{Precedence, Server, attach_and_stay, gil, gil_is_free, leave, lock, stays, with_server_locked};

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

#[test]
fn work_has_its_turn_among_those_who_take_the_lock_in_a_loop() {
    start_interpreter();
    fake::start();
    const TURNS: u64 = 200;
    // Where nobody gives way that is their end.
    const MOST: u64 = 50 * TURNS;
    let (is_over, blocks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let loops: Vec<_> = (0..2)
        .map(|_| {
            let (is_over, blocks) = (is_over.clone(), blocks.clone());
            thread::spawn(move || {
                gil::attach(|py| {
                    while !is_over.load(Ordering::Relaxed) && blocks.load(Ordering::Relaxed) < MOST {
                        assert!(lock::enter_atomic(py));
                        let begin = Instant::now();
                        while begin.elapsed() < Duration::from_millis(1) {}
                        assert!(lock::leave_atomic());
                        blocks.fetch_add(1, Ordering::Relaxed);
                    }
                });
            })
        })
        .collect();
    while blocks.load(Ordering::Relaxed) < 10 {
        thread::yield_now();
    }
    let before = blocks.load(Ordering::Relaxed);
    for _ in 0..TURNS {
        with_server_locked(|| ());
    }
    let meanwhile = blocks.load(Ordering::Relaxed) - before;
    is_over.store(true, Ordering::Relaxed);
    loops.into_iter().for_each(|thread| thread.join().expect("no panic"));
    // One block of each, or a few where this thread was late. By chance it was twenty and more.
    assert!(meanwhile < 8 * TURNS, "{meanwhile} blocks for {TURNS} turns");
}

#[test]
fn who_stays_keeps_the_gil_until_it_leaves() {
    start_interpreter();
    let fake = fake::start();
    while !fake.try_lock(Duration::from_secs(1), &|| true) {}
    let others = Arc::new(AtomicU64::new(0));
    assert!(!stays() && leave());
    let inside = attach_and_stay(|| Python::attach(|_| (stays(), leave(), stays())));
    assert_eq!(inside, (true, false, true), "nobody leaves from inside");
    assert!(!gil_is_free());
    let count = others.clone();
    let other = thread::spawn(move || gil::attach(|_| count.fetch_add(1, Ordering::SeqCst)));
    for _ in 0..10 {
        attach_and_stay(|| ());
    }
    assert_eq!(others.load(Ordering::SeqCst), 0);
    assert!(leave() && !stays());
    other.join().expect("no panic");
    assert_eq!(others.load(Ordering::SeqCst), 1);
    // A panic inside leaves it as it was.
    let caught = std::panic::catch_unwind(|| attach_and_stay(|| panic!("on purpose")));
    assert!(caught.is_err() && !gil_is_free());
    assert!(leave() && !stays());
    // Who comes back all the time lets others have it now and then.
    let count = others.clone();
    let other = thread::spawn(move || gil::attach(|_| count.fetch_add(1, Ordering::SeqCst)));
    let deadline = Instant::now() + Duration::from_secs(60);
    while others.load(Ordering::SeqCst) < 2 {
        // Who asks first does not wait for the other one.
        if stays() || gil_is_free() {
            attach_and_stay(|| ());
        }
        assert!(Instant::now() < deadline, "nobody else had the GIL");
    }
    assert!(leave());
    other.join().expect("no panic");
    fake.unlock();
}

#[test]
fn a_fork_finds_nobody_who_stays() {
    start_interpreter();
    let fake = fake::start();
    while !fake.try_lock(Duration::from_secs(1), &|| true) {}
    attach_and_stay(|| ());
    assert!(!gil_is_free());
    // SAFETY: the child does nothing but end.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above. Allocates nothing.
        unsafe { libc::_exit(i32::from(stays())) };
    }
    assert!(!stays());
    let mut status = -1;
    // SAFETY: the place is ours.
    let ended = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!((ended, status), (child, 0));
    fake.unlock();
}
