//! Who has the server lock next while the server is busy.
//!
//! The server's mutex is unfair: a busy main thread takes it back before a thread that waits has woken up, a thread that
//! takes it again and again keeps the main thread out, and a thread that waits anew for each of its commands waits for
//! a whole turn of the event loop each time. So at the beginning of a turn, when answers are on their way and requests
//! not yet read, the main thread lends its own hold to those who wait: for a *slice*, in which they take turns and come
//! back as often as they like. Between two calls nobody but the main thread holds the lock: a thread that loses the
//! GIL there for seconds loses the rest of the slice, and the server goes on. While the server sleeps, threads take the
//! mutex itself. Those that may only write before it serves the clients that wait for keys (`before_serving`) wait for
//! a *late* slice, at the end of a turn.
//!
//! Never lends inside a command, while writes are paused, or while the server loads or runs a long script.

use std::{
    cell::Cell,
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use redis_module::raw;

use super::{event_loop, ffi::api, lock::detached};

/// Longest slice, but for the last call in it.
const SLICE: Duration = Duration::from_millis(1);
/// Shorter ones are not worth the change of threads.
const SLICE_LEAST: Duration = Duration::from_micros(200);
/// Whether the server is busy is judged by so much time, about.
const MEMORY: Duration = Duration::from_millis(4);
/// A slice is at most this share of the time since the last one, in percent.
const SHARE_PERCENT: u64 = 100;
/// A slice ends when nobody has called for so long.
const GRACE: Duration = Duration::from_micros(100);
/// Calls up to this length come in series; longer holds are somebody's own slices.
const SHORT_CALL: Duration = Duration::from_micros(200);
/// A thread may go on with calls for so long before another one that waits has its turn.
const PART: Duration = Duration::from_micros(250);
/// So long a thread waits for a late slice before it looks whether it needs one still.
const LATE_WAIT: Duration = Duration::from_millis(10);
/// So often it asks for one meanwhile.
const LATE_ASK: Duration = Duration::from_millis(1);
/// Pauses between two looks at the mutex, each for so many looks.
const LOOKS: [(u32, Duration); 3] = [
    (20, Duration::from_micros(50)),
    (40, Duration::from_micros(200)),
    (u32::MAX, Duration::from_millis(1)),
];
/// Threads that have taken the mutex again and again for so long leave it alone for a moment.
const RUN: Duration = Duration::from_millis(1);
/// The same when the main thread did not want it at the end of the last runs.
const RUN_MOST: Duration = Duration::from_millis(4);
/// That moment: a real sleep, in which a thread that waits wakes up.
const PAUSE: Duration = Duration::from_micros(50);

/// How a thread has the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// It took the mutex.
    Mutex,
    /// It borrows the main thread's hold.
    Slice,
    /// The same, at the end of a turn.
    LateSlice,
}

/// Where the loan lies.
static DESK: Desk = Desk {
    slice: Mutex::new(Slice::CLOSED),
    lender: Condvar::new(),
    borrowers: Condvar::new(),
    late_borrowers: Condvar::new(),
};
/// Threads that wait.
static WAITING: AtomicU32 = AtomicU32::new(0);
/// Threads that wait for a late slice.
static WAITING_LATE: AtomicU32 = AtomicU32::new(0);
/// Somebody has waited.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Beginnings and ends of turns of the main thread.
static TURNS: AtomicU64 = AtomicU64::new(0);
/// When the last slice ended. Used by the main thread only.
static LAST_LOAN: AtomicU64 = AtomicU64::new(0);

/// What the main thread has lent so far.
pub struct Numbers {
    /// Slices.
    pub slices: u64,
    /// Holds in them.
    pub calls: u64,
    /// Their time.
    pub total_us: u64,
    /// The longest one.
    pub longest_us: u64,
}

static SLICES: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);
static TOTAL_NS: AtomicU64 = AtomicU64::new(0);
static LONGEST_NS: AtomicU64 = AtomicU64::new(0);

/// Numbers for INFO.
pub fn numbers() -> Numbers {
    Numbers {
        slices: SLICES.load(Relaxed),
        calls: CALLS.load(Relaxed),
        total_us: TOTAL_NS.load(Relaxed) / 1000,
        longest_us: LONGEST_NS.load(Relaxed) / 1000,
    }
}

struct Desk {
    slice: Mutex<Slice>,
    lender: Condvar,
    borrowers: Condvar,
    late_borrowers: Condvar,
}

impl Desk {
    /// Somebody who waits may have the loan.
    fn call_next(&self, slice: &Slice) {
        if slice.late && WAITING_LATE.load(Relaxed) > 0 {
            self.late_borrowers.notify_one();
        } else {
            self.borrowers.notify_one();
        }
    }
}

/// Times are nanoseconds of `now`.
struct Slice {
    /// The main thread lends.
    open: bool,
    /// At the end of a turn.
    late: bool,
    /// A thread has the loan.
    busy: bool,
    /// The one that had it last is likely to come back.
    staying: bool,
    end: u64,
    /// From then on a thread that waits goes first.
    part_end: u64,
    /// End of the last call.
    last: u64,
    /// Calls so far.
    calls: u64,
}

thread_local! {
    /// When this thread's last hold began and ended.
    static LAST_HOLD: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Nanoseconds since the first call.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

const fn ns(time: Duration) -> u64 {
    time.as_nanos() as u64
}

// --- the main thread -------------------------------------------------------------------------------------------------

/// What the main thread did with its time lately, in nanoseconds. Used by it only.
struct Hours {
    asleep: AtomicU64,
    awake: AtomicU64,
    /// When the last turn began, or the slice in it ended; and when the last turn ended.
    turn_start: AtomicU64,
    turn_end: AtomicU64,
}

static HOURS: Hours = Hours {
    asleep: AtomicU64::new(0),
    awake: AtomicU64::new(0),
    turn_start: AtomicU64::new(0),
    turn_end: AtomicU64::new(0),
};

impl Hours {
    /// More awake than asleep: else threads find the mutex free often enough, and clients need not wait.
    fn is_busy(&self) -> bool {
        let (asleep, awake) = (self.asleep.load(Relaxed), self.awake.load(Relaxed));
        if asleep + awake > ns(MEMORY) {
            self.asleep.store(asleep / 2, Relaxed);
            self.awake.store(awake / 2, Relaxed);
        }
        awake > asleep
    }
}

fn add(sum: &AtomicU64, more: u64) {
    sum.store(sum.load(Relaxed) + more, Relaxed);
}

/// A turn of the event loop begins; true if the server is busy and somebody waits for the lock.
pub(super) fn turn_begins() -> bool {
    let time = now();
    add(&TURNS, 1);
    add(
        &HOURS.asleep,
        time.saturating_sub(HOURS.turn_end.load(Relaxed)).min(ns(MEMORY)),
    );
    HOURS.turn_start.store(time, Relaxed);
    HOURS.is_busy() && WAITING.load(Relaxed) > 0
}

/// Somebody waits for the end of a turn.
pub(super) fn is_wanted_late() -> bool {
    WAITING_LATE.load(Relaxed) > 0
}

/// It is over.
pub(super) fn turn_ends() {
    let time = now();
    add(&TURNS, 1);
    add(
        &HOURS.awake,
        time.saturating_sub(HOURS.turn_start.load(Relaxed)).min(ns(MEMORY)),
    );
    HOURS.turn_end.store(time, Relaxed);
}

/// Grows with each beginning and end of a turn: as long as it stays, the main thread has run no command.
pub(super) fn turns() -> u64 {
    TURNS.load(Relaxed)
}

/// Lends the lock to those who wait. On the main thread, between commands, and not while writes are paused.
pub(super) fn lend(late: bool) {
    let start = now();
    let since = start.saturating_sub(LAST_LOAN.load(Relaxed)).min(ns(MEMORY));
    let mut length = (since * SHARE_PERCENT / 100).min(ns(SLICE));
    if length < ns(SLICE_LEAST) {
        if !late {
            return;
        }
        // Those who wait have no other way.
        length = ns(SLICE_LEAST);
    }
    let mut slice = DESK.slice.lock();
    *slice = Slice {
        open: true,
        late,
        end: start + length,
        last: start,
        ..Slice::CLOSED
    };
    DESK.call_next(&slice);
    while slice.open || slice.busy {
        let time = now();
        let patience = slice.patience();
        if time < patience {
            DESK.lender.wait_for(&mut slice, Duration::from_nanos(patience - time));
        } else {
            slice.open = false;
            if slice.busy {
                DESK.lender.wait(&mut slice);
            }
        }
    }
    let calls = slice.calls;
    drop(slice);
    let end = now();
    LAST_LOAN.store(end, Relaxed);
    HOURS.turn_start.store(end, Relaxed);
    SLICES.fetch_add(1, Relaxed);
    CALLS.fetch_add(calls, Relaxed);
    TOTAL_NS.fetch_add(end - start, Relaxed);
    LONGEST_NS.fetch_max(end - start, Relaxed);
}

impl Slice {
    const CLOSED: Slice = Slice {
        open: false,
        late: false,
        busy: false,
        staying: false,
        end: 0,
        part_end: 0,
        last: 0,
        calls: 0,
    };

    /// Until then the lender waits for a call. Who waits at the desk needs nothing but a processor to come; who has to
    /// come back may wait for the GIL.
    fn patience(&self) -> u64 {
        if self.busy || self.is_awaited() {
            self.end
        } else {
            self.end.min(self.last + ns(GRACE))
        }
    }

    /// Threads wait that may have the loan.
    fn is_awaited(&self) -> bool {
        WAITING.load(Relaxed) > 0 || (self.late && WAITING_LATE.load(Relaxed) > 0)
    }

    /// Takes the loan if it is there. `waited`: so has this thread; others let those go first after a while.
    fn claim(&mut self, waited: bool, staying: bool) -> Option<Held> {
        if !self.open || self.busy {
            return None;
        }
        let time = now();
        if time >= self.end || (!waited && time >= self.part_end && self.is_awaited()) {
            return None;
        }
        if waited {
            self.part_end = time + ns(PART);
        }
        self.busy = true;
        self.staying = staying;
        begin_hold(time);
        Some(if self.late { Held::LateSlice } else { Held::Slice })
    }
}

// --- those who want the lock -----------------------------------------------------------------------------------------

/// Takes the lock if that needs no waiting.
pub(super) fn try_take() -> Option<Held> {
    let held = DESK.slice.lock().claim(false, true);
    if held.is_some() {
        return held;
    }
    (try_mutex() == Look::Taken).then_some(Held::Mutex)
}

/// Waits for the lock.
pub(super) fn take() -> Held {
    match take_until(None, &|| true) {
        Some(held) => held,
        None => unreachable!("it waits for ever"),
    }
}

/// Waits for the lock for so long, and while `go_on` says so.
pub(super) fn take_within(time: Duration, go_on: &dyn Fn() -> bool) -> Option<Held> {
    take_until(Some(now() + ns(time)), go_on)
}

fn take_until(deadline: Option<u64>, go_on: &dyn Fn() -> bool) -> Option<Held> {
    let again = comes_in_series();
    let waiting = Waiting::begin();
    for look in 0.. {
        match try_mutex() {
            Look::Taken => return Some(Held::Mutex),
            // Asleep, not at the desk: the main thread is to have it.
            Look::Rest => thread::sleep(PAUSE),
            Look::Busy => {}
        }
        if deadline.is_some_and(|deadline| now() >= deadline) || !go_on() {
            break;
        }
        let mut slice = DESK.slice.lock();
        let mut held = slice.claim(true, again);
        if held.is_none() {
            DESK.borrowers.wait_for(&mut slice, pause_before(look));
            held = slice.claim(true, again);
        }
        if held.is_some() {
            return held;
        }
    }
    drop(waiting);
    None
}

/// Waits for a late slice, but not for long, nor longer than `most`: what it is needed for may be over.
pub(super) fn take_late(most: Option<Duration>, go_on: &dyn Fn() -> bool) -> Option<Held> {
    let again = comes_in_series();
    let end = now() + ns(most.unwrap_or(LATE_WAIT).min(LATE_WAIT));
    let mut slice = DESK.slice.lock();
    if slice.late
        && let Some(held) = slice.claim(false, again)
    {
        return Some(held);
    }
    // Those who wait already come first.
    let _waiting = Waiting::begin_late();
    loop {
        event_loop::wake();
        let pause = Duration::from_nanos(end.saturating_sub(now())).min(LATE_ASK);
        DESK.late_borrowers.wait_for(&mut slice, pause);
        let held = if slice.late { slice.claim(true, again) } else { None };
        if held.is_some() || now() >= end || !go_on() {
            return held;
        }
    }
}

fn pause_before(look: u32) -> Duration {
    let pause = LOOKS.iter().find(|(most, _)| look < *most);
    pause.map_or(PAUSE, |(_, pause)| *pause)
}

/// Counts a thread that waits.
struct Waiting(&'static AtomicU32);

impl Waiting {
    fn begin() -> Waiting {
        WANTED.store(true, Relaxed);
        Waiting::of(&WAITING)
    }

    fn begin_late() -> Waiting {
        Waiting::of(&WAITING_LATE)
    }

    fn of(number: &'static AtomicU32) -> Waiting {
        number.fetch_add(1, Relaxed);
        Waiting(number)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn begin_hold(time: u64) {
    LAST_HOLD.set((time, 0));
}

/// This thread had the lock a moment ago, for a moment: it is likely to want it again.
fn comes_in_series() -> bool {
    let (start, end) = LAST_HOLD.get();
    end > start && end - start < ns(SHORT_CALL) && now().saturating_sub(end) < ns(GRACE)
}

/// Something may have been written in this hold of the lock. Only used under the lock.
static WROTE: AtomicBool = AtomicBool::new(false);

/// The holder of the lock may have written something.
#[inline]
pub(super) fn note_write() {
    // Where the main thread is in a turn its end is still to come.
    if !event_loop::is_in_turn() {
        WROTE.store(true, Relaxed);
    }
}

/// Gives the lock back.
pub(super) fn give_back(held: Held) {
    let time = now();
    LAST_HOLD.set((LAST_HOLD.get().0, time));
    let wrote = WROTE.swap(false, Relaxed);
    match held {
        Held::Mutex => {
            // SAFETY: this thread took the mutex in `try_mutex`.
            unsafe { api!(RedisModule_ThreadSafeContextUnlock)(detached()) }
            // The main thread sleeps. What was written reaches replicas, the AOF and waiting clients before it does so again.
            if wrote {
                event_loop::wake();
            }
        }
        Held::Slice | Held::LateSlice => {
            let mut slice = DESK.slice.lock();
            slice.busy = false;
            slice.last = time;
            slice.calls += 1;
            let somebody_waits = slice.is_awaited();
            if !slice.open || time >= slice.end || !(slice.staying || somebody_waits) {
                slice.open = false;
                DESK.lender.notify_one();
            } else if somebody_waits && (!slice.staying || time >= slice.part_end) {
                DESK.call_next(&slice);
            }
        }
    }
}

/// The threads that hold the lock now make sure that the main thread lends it from now on.
pub(super) fn wants_turns() -> bool {
    WANTED.load(Relaxed) && event_loop::is_new()
}

// --- the mutex itself ------------------------------------------------------------------------------------------------

/// Series of holds of the mutex with nobody else in between. Changed by its holder only.
static RUN_TURN: AtomicU64 = AtomicU64::new(0);
static RUN_START: AtomicU64 = AtomicU64::new(0);
static RUN_LAST: AtomicU64 = AtomicU64::new(0);
static RUN_LENGTH: AtomicU64 = AtomicU64::new(ns(RUN));

#[derive(PartialEq, Eq)]
enum Look {
    Taken,
    Busy,
    /// It was taken again and again for too long.
    Rest,
}

fn try_mutex() -> Look {
    // SAFETY: this thread does not hold the lock; the context outlives the module's use.
    let outcome = unsafe { api!(RedisModule_ThreadSafeContextTryLock)(detached()) };
    if outcome != raw::REDISMODULE_OK as i32 {
        return Look::Busy;
    }
    let (time, turn) = (now(), TURNS.load(Relaxed));
    let length = RUN_LENGTH.load(Relaxed);
    let over = time.saturating_sub(RUN_START.load(Relaxed)) > length;
    if turn != RUN_TURN.load(Relaxed) {
        RUN_TURN.store(turn, Relaxed);
        RUN_START.store(time, Relaxed);
        RUN_LENGTH.store(ns(RUN), Relaxed);
    } else if time.saturating_sub(RUN_LAST.load(Relaxed)) >= ns(PAUSE) {
        // It was free for long enough to be taken by whoever wants it.
        RUN_START.store(time, Relaxed);
        if over {
            RUN_LENGTH.store((length * 2).min(ns(RUN_MOST)), Relaxed);
        }
    } else if over {
        // SAFETY: taken above.
        unsafe { api!(RedisModule_ThreadSafeContextUnlock)(detached()) };
        return Look::Rest;
    }
    RUN_LAST.store(time, Relaxed);
    begin_hold(time);
    Look::Taken
}
