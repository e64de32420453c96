//! What is due: handlers of mode `sync` whose event has been told, but whose command is still under way.
//!
//! Nothing of the user's runs inside a notification of the server: the command that caused it goes on using its values,
//! and it has not been replicated. So the notification only pushes a shot here, and `run` fires what is there, in order,
//! where no command is under way any more. It is called
//! * by the wrapper around an intercepted command, right after that command;
//! * after a command that a function ran, by the hook in `redis::call`;
//! * when the client's command is over, where `redis::slot_tables` says so instead;
//! * when the command is over altogether (`redis::later`), for all events of which nobody knew before.
//!
//! Never waits for the interpreter without a bound: if it is not there, a helper thread fires instead, in the same order.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use oxigears_coordinator::engine::panic_text;
use oxigears_python_api as python;

use super::{
    is_master,
    keys::{fresh, link, sync::SyncShot},
    limits,
    streams::locked,
    sync,
};
use crate::{
    redis::{
        call,
        guarded::Guarded,
        later,
        lock::{self, ServerLock},
        log, slot_tables,
    },
    server::python_is_here,
};

/// A handler that is due.
pub enum Due {
    /// Of an event of a key.
    Event(SyncShot),
    /// Of entries of a stream.
    Entries(locked::Shot),
}

impl Due {
    /// Runs it, with server lock and GIL held. Counts how it ended. What it writes may push further shots, which are
    /// fired after it.
    fn fire(&mut self, guard: &ServerLock) {
        match self {
            Due::Event(shot) => shot.fire(guard),
            Due::Entries(shot) => shot.fire(guard),
        }
    }

    /// A client's command waits for what it may answer.
    fn is_tied(&self) -> bool {
        match self {
            Due::Event(shot) => shot.is_tied(),
            Due::Entries(_) => false,
        }
    }

    /// It does not run, for this reason; it counts that. Without the GIL.
    fn abort(self, why: &str) {
        match self {
            Due::Event(shot) => shot.abort(why),
            Due::Entries(shot) => shot.abort(why),
        }
    }
}

/// Which of those that are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// Those that may answer for the command at hand; the others can wait until it is over.
    Tied,
}

/// Those that are tied stand in a line of their own: what waits before them may be much.
struct Lines {
    tied: VecDeque<(u64, Due)>,
    others: VecDeque<(u64, Due)>,
    /// Number of the next one.
    next: u64,
}

impl Lines {
    const EMPTY: Lines = Lines {
        tied: VecDeque::new(),
        others: VecDeque::new(),
        next: 0,
    };

    fn len(&self) -> usize {
        self.tied.len() + self.others.len()
    }

    #[inline]
    fn push(&mut self, shot: Due) {
        let line = match shot.is_tied() {
            true => &mut self.tied,
            false => &mut self.others,
        };
        line.push_back((self.next, shot));
        self.next += 1;
    }

    fn pop(&mut self, which: Which) -> Option<Due> {
        let first = |line: &VecDeque<(u64, Due)>| line.front().map_or(u64::MAX, |(number, _)| *number);
        let line = match which == Which::Tied || first(&self.tied) < first(&self.others) {
            true => &mut self.tied,
            false => &mut self.others,
        };
        line.pop_front().map(|(_, shot)| shot)
    }
}

static QUEUE: Guarded<Lines> = Guarded::new(Lines::EMPTY);
/// Its length, to be looked at without the lock.
static WAITING: AtomicUsize = AtomicUsize::new(0);
static MOST_WAITING: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static HANDED_OVER: AtomicU64 = AtomicU64::new(0);
/// The helper thread will come.
static HELP_COMES: AtomicBool = AtomicBool::new(false);

/// Why a shot is not fired.
const FULL: &str = "ERR too many sync handlers are due, the event was not handled";
const REPLICA: &str = "ERR the server has become a replica, the event was not handled";

thread_local! {
    static FIRING: Cell<bool> = const { Cell::new(false) };
    static AT_ONCE: Cell<bool> = const { Cell::new(false) };
}

/// Numbers for INFO.
pub struct Numbers {
    /// Shots that wait now.
    pub waiting: u64,
    /// The most that ever waited.
    pub most: u64,
    /// Aborted, because too many waited.
    pub refused: u64,
    /// Times that the interpreter was not there and a helper thread took over.
    pub handed_over: u64,
}

/// Numbers for INFO.
pub fn numbers() -> Numbers {
    Numbers {
        waiting: WAITING.load(Ordering::Relaxed) as u64,
        most: MOST_WAITING.load(Ordering::Relaxed) as u64,
        refused: REFUSED.load(Ordering::Relaxed),
        handed_over: HANDED_OVER.load(Ordering::Relaxed),
    }
}

/// At load: functions' commands fire what they made due.
pub fn start() {
    call::after_each(|guard| run_after_call(guard, link::at_hand(|_| ()).is_some()));
    later::when_over(|guard| run(guard, Which::All));
    slot_tables::when_over(|guard, must_end| match must_end {
        true => drop(run_waiting(guard, Which::All)),
        false => run_patiently(guard),
    });
}

/// A handler is due as soon as the command at hand is over. Called in a notification of the server: runs nothing.
#[inline]
pub fn push(guard: &ServerLock, shot: Due) {
    let mut queue = QUEUE.borrow_mut(guard);
    if queue.len() >= limits::DUE_SHOTS {
        drop(queue);
        if REFUSED.fetch_add(1, Ordering::Relaxed) == 0 {
            log::warning(&format!(
                "{} sync handlers are due, more are not taken",
                limits::DUE_SHOTS
            ));
        }
        return shot.abort(FULL);
    }
    queue.push(shot);
    let waiting = queue.len();
    drop(queue);
    WAITING.store(waiting, Ordering::Release);
    if waiting > MOST_WAITING.load(Ordering::Relaxed) {
        MOST_WAITING.store(waiting, Ordering::Relaxed);
    }
    if !FIRING.get() {
        later::ask(guard);
    }
}

/// Nothing is due.
#[inline]
pub fn is_empty() -> bool {
    WAITING.load(Ordering::Acquire) == 0
}

/// Fires what is due, if the interpreter is there; else leaves it to a helper thread. To be called where no command is
/// under way.
#[inline]
pub fn run(guard: &ServerLock, which: Which) {
    if is_due(guard, which) && !FIRING.get() {
        run_now(guard, which);
    }
}

/// The same after a command that a function ran, which may itself be part of a client's command. `linked`: what was fired
/// may answer for it, so for that there is no later.
pub fn run_after_call(guard: &ServerLock, linked: bool) {
    if is_empty() || FIRING.get() {
        return;
    }
    match slot_tables::after_command(guard, false) {
        false => run_now(guard, Which::All),
        true if linked => run(guard, Which::Tied),
        true => {}
    }
}

fn run_now(guard: &ServerLock, which: Which) {
    if sync::interpreter_is_free() {
        return fire(guard, which);
    }
    call_for_help();
}

/// The same where a client waits for it: waits for the interpreter for a moment.
fn run_patiently(guard: &ServerLock) {
    if is_empty() || FIRING.get() {
        return;
    }
    if sync::interpreter_is_free() {
        return fire(guard, Which::All);
    }
    if sync::for_waiting(guard, || fire(&lock::lock(), Which::All)).is_none() {
        call_for_help();
    }
}

/// What is fired must end before anything else happens: in MULTI and in Lua.
pub fn must_end_here() -> bool {
    AT_ONCE.get()
}

/// Fires what must end before anything else happens.
fn fire_at_once(guard: &ServerLock, which: Which) {
    /// Also when a panic passes.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            AT_ONCE.set(self.0);
        }
    }
    let _before = Before(AT_ONCE.replace(true));
    fire(guard, which);
}

/// The same where somebody looks at the effects before this thread is done (MULTI, Lua): waits for the interpreter for a
/// moment. False if a helper thread has to do it later.
pub fn run_waiting(guard: &ServerLock, which: Which) -> bool {
    if !is_due(guard, which) || FIRING.get() {
        return true;
    }
    if sync::interpreter_is_free() {
        fire_at_once(guard, which);
        return true;
    }
    if sync::for_waiting(guard, move || fire_at_once(&lock::lock(), which)).is_some() {
        return true;
    }
    call_for_help();
    false
}

fn call_for_help() {
    HANDED_OVER.fetch_add(1, Ordering::Relaxed);
    if HELP_COMES.swap(true, Ordering::AcqRel) {
        return;
    }
    sync::submit(|| {
        python::with_server_locked(|| {
            HELP_COMES.store(false, Ordering::Release);
            fire(&lock::lock(), Which::All);
        });
    });
}

/// Marks that this thread fires, also when a panic passes.
struct Firing;

impl Drop for Firing {
    fn drop(&mut self) {
        FIRING.set(false);
    }
}

fn fire(guard: &ServerLock, which: Which) {
    if FIRING.replace(true) {
        return;
    }
    let _firing = Firing;
    if !is_master() {
        while let Some(shot) = pop(guard, Which::All) {
            shot.abort(REPLICA);
        }
        return;
    }
    match python_is_here() {
        true => fire_each(guard, which),
        false => python::with_interpreter(|| fire_each(guard, which)),
    }
}

/// With the interpreter.
fn fire_each(guard: &ServerLock, which: Which) {
    while let Some(mut shot) = pop(guard, which) {
        let caught = catch_unwind(AssertUnwindSafe(|| shot.fire(guard)));
        fresh::forget();
        if let Err(panic) = caught {
            log::warning(&format!(
                "a sync handler met an internal error: {}",
                panic_text(panic.as_ref())
            ));
        }
    }
}

fn is_due(guard: &ServerLock, which: Which) -> bool {
    !is_empty() && (which == Which::All || !QUEUE.borrow_mut(guard).tied.is_empty())
}

#[inline]
fn pop(guard: &ServerLock, which: Which) -> Option<Due> {
    let mut queue = QUEUE.borrow_mut(guard);
    let shot = queue.pop(which);
    WAITING.store(queue.len(), Ordering::Release);
    shot
}
