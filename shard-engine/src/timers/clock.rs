//! The clock of all timers, and of streams: one thread that sleeps until the next one is due.
//!
//! It goes by the monotonic clock, which no correction of the time of day moves (the server's own timers go by that).
//! It starts with the first timer and sleeps without waking while none is set. It never runs Python and takes no lock
//! of the server: who rings hands the work over.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, Weak},
    time::Instant,
};

use oxigears_coordinator::engine::panic_text;
use parking_lot::{Condvar, Mutex};

use crate::redis::log;

/// Something that is due at some time.
pub trait Alarm: Send + Sync {
    /// It is due. On the clock's thread: must not wait.
    fn ring(self: Arc<Self>);
}

struct Set {
    at: Instant,
    /// Of two that are due at once the one that was set first comes first.
    number: u64,
    alarm: Weak<dyn Alarm>,
}

impl Ord for Set {
    fn cmp(&self, other: &Set) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Set {
    fn partial_cmp(&self, other: &Set) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Set {
    fn eq(&self, other: &Set) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Set {}

#[derive(Default)]
struct Alarms {
    heap: BinaryHeap<Reverse<Set>>,
    set_ever: u64,
    /// Length at which those that are gone are looked for.
    tidy_at: usize,
}

/// Below this length nothing is tidied.
const TIDY_FROM: usize = 64;

#[derive(Default)]
struct Clock {
    alarms: Mutex<Alarms>,
    changed: Condvar,
}

static CLOCK: OnceLock<Clock> = OnceLock::new();

fn clock() -> &'static Clock {
    static STARTED: OnceLock<()> = OnceLock::new();
    let clock = CLOCK.get_or_init(Clock::default);
    STARTED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("oxi-clock".into());
        if let Err(e) = thread.spawn(|| clock.run()) {
            log::warning(&format!("no timer will run, because there is no thread for them: {e}"));
        }
    });
    clock
}

/// Rings `alarm` once, at this time. One that is gone by then is passed over.
pub fn set(at: Instant, alarm: Weak<dyn Alarm>) {
    let clock = clock();
    let mut alarms = clock.alarms.lock();
    if alarms.heap.len() >= alarms.tidy_at.max(TIDY_FROM) {
        alarms.heap.retain(|Reverse(set)| set.alarm.strong_count() > 0);
        alarms.tidy_at = alarms.heap.len() * 2;
    }
    alarms.set_ever += 1;
    let number = alarms.set_ever;
    let is_next = alarms.heap.peek().is_none_or(|Reverse(first)| at < first.at);
    alarms.heap.push(Reverse(Set { at, number, alarm }));
    drop(alarms);
    if is_next {
        clock.changed.notify_one();
    }
}

impl Clock {
    fn run(&self) {
        loop {
            let alarm = self.next();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| alarm.ring())) {
                log::warning(&format!(
                    "a timer met an internal error: {}",
                    panic_text(panic.as_ref())
                ));
            }
        }
    }

    /// Waits for the next one that is due.
    fn next(&self) -> Arc<dyn Alarm> {
        let mut alarms = self.alarms.lock();
        loop {
            let Some(Reverse(first)) = alarms.heap.peek() else {
                self.changed.wait(&mut alarms);
                continue;
            };
            let at = first.at;
            if at > Instant::now() {
                self.changed.wait_until(&mut alarms, at);
                continue;
            }
            if let Some(alarm) = alarms.heap.pop().and_then(|Reverse(set)| set.alarm.upgrade()) {
                return alarm;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    struct Bell(u32, mpsc::Sender<u32>);

    impl Alarm for Bell {
        fn ring(self: Arc<Self>) {
            self.1.send(self.0).expect("the test listens");
        }
    }

    #[test]
    fn alarms_ring_in_order_and_those_that_are_gone_do_not() {
        let (sender, receiver) = mpsc::channel();
        let bells: Vec<Arc<Bell>> = (0..4).map(|n| Arc::new(Bell(n, sender.clone()))).collect();
        let now = Instant::now();
        for (bell, ms) in bells.iter().zip([40u64, 20, 60, 20]) {
            let alarm: Arc<dyn Alarm> = bell.clone();
            set(now + Duration::from_millis(ms), Arc::downgrade(&alarm));
        }
        let kept: Vec<Arc<Bell>> = bells.into_iter().filter(|bell| bell.0 != 2).collect();
        let heard: Vec<u32> = (0..3).map(|_| receiver.recv().expect("it rings")).collect();
        assert_eq!(heard, [1, 3, 0]);
        drop((kept, sender));
        assert!(receiver.recv().is_err(), "the one that is gone has rung");
        assert!(now.elapsed() >= Duration::from_millis(40));
    }
}
