//! The server lock as a token: a function that needs the lock takes a `ServerLock`.
//!
//! The lock is re-entrant per thread. Inside a callback of the server (command, timer, event) it is held already.
//! A thread that waits here must not hold the GIL. Who holds the lock can lend it to another thread (`lend`).

use std::{
    cell::Cell,
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::null_mut,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use redis_module::raw;

use super::{
    before_serving,
    call::Surroundings,
    event_loop,
    ffi::api,
    replicate,
    sharing::{self, Held},
};

/// Proof that this thread holds the server lock; one hold is given back when it is dropped.
pub struct ServerLock {
    _not_send: PhantomData<*mut ()>,
}

impl ServerLock {
    /// The context to work with: database 0, no client. Valid while the lock is held.
    pub(super) fn ctx(&self) -> *mut raw::RedisModuleCtx {
        detached()
    }
}

impl Drop for ServerLock {
    fn drop(&mut self) {
        exit();
    }
}

/// What this thread has of the lock. Read and written field by field: copies of the whole would wait for what has just been
/// written to parts of it.
struct State {
    /// Times that this thread took the lock and has not given it back.
    depth: Cell<u32>,
    /// How the lock was taken at depth 0, if it was: so it is given back there.
    held: Cell<Option<Held>>,
    /// Callbacks of the server that this thread is in; the lock is held inside.
    callbacks: Cell<u32>,
    /// Depth at which the innermost callback began: it can give back only what it took itself.
    floor: Cell<u32>,
}

impl State {
    /// The thread has nothing of it.
    fn is_without(&self) -> bool {
        self.depth.get() == 0 && self.callbacks.get() == 0
    }
}

thread_local! {
    static STATE: State = const {
        State { depth: Cell::new(0), held: Cell::new(None), callbacks: Cell::new(0), floor: Cell::new(0) }
    };
}

/// The context that belongs to no client. One is enough: it is used under the lock only (logging needs just its name).
static DETACHED: AtomicPtr<raw::RedisModuleCtx> = AtomicPtr::new(null_mut());

/// Makes the context that all threads share. Called once at load.
pub(super) fn init(load_ctx: *mut raw::RedisModuleCtx) {
    // SAFETY: `load_ctx` is the context of OnLoad.
    let ctx = unsafe { api!(RedisModule_GetDetachedThreadSafeContext)(load_ctx) };
    DETACHED.store(ctx, Ordering::Release);
}

/// The shared context; null before `init`.
pub(super) fn detached() -> *mut raw::RedisModuleCtx {
    DETACHED.load(Ordering::Acquire)
}

/// Waits for the lock.
pub fn lock() -> ServerLock {
    enter();
    ServerLock { _not_send: PhantomData }
}

/// The lock, if that needs no waiting.
pub fn try_lock() -> Option<ServerLock> {
    try_enter().then(|| ServerLock { _not_send: PhantomData })
}

/// Waits for the lock, to write.
pub fn lock_to_write() -> ServerLock {
    enter_by(|| take_to_write(None, &|| true));
    ServerLock { _not_send: PhantomData }
}

/// Whoever holds the lock may write now. If not: give it back, and `lock_to_write`.
pub fn is_fit_to_write(guard: &ServerLock) -> bool {
    let held = STATE.with(|state| state.held.get());
    held.is_none() || is_fit(held, guard)
}

/// This thread has not the lock, and whoever takes it in the ordinary way now may not write, as far as was seen last.
pub(super) fn seems_unfit_to_write() -> bool {
    STATE.with(State::is_without) && before_serving::was_end_of_turn_needed()
}

fn is_fit(held: Option<Held>, guard: &ServerLock) -> bool {
    // Looked at in any case, so that it is known when the end of a turn is not needed any more.
    !before_serving::is_end_of_turn_needed(guard) || held == Some(Held::LateSlice)
}

/// The lock in a way that lets its holder write, if it comes within so long and while `go_on` says so.
fn take_to_write(wait: Option<Duration>, go_on: &dyn Fn() -> bool) -> Option<Held> {
    let deadline = wait.map(|wait| Instant::now() + wait);
    let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    loop {
        // What was seen last is true as a rule: one wait is enough then.
        let late = before_serving::was_end_of_turn_needed()
            .then(|| sharing::take_late(left(), go_on))
            .flatten();
        let held = match (late, left()) {
            (Some(held), _) => held,
            (None, None) => sharing::take(),
            (None, Some(left)) => sharing::take_within(left, go_on)?,
        };
        let guard = ManuallyDrop::new(ServerLock { _not_send: PhantomData });
        if is_fit(Some(held), &guard) {
            return Some(held);
        }
        sharing::give_back(held);
        if left() == Some(Duration::ZERO) || !go_on() {
            return None;
        }
    }
}

/// The lock, if it comes within so long.
pub fn lock_within(wait: Duration) -> Option<ServerLock> {
    enter_by(|| sharing::take_within(wait, &|| true)).then(|| ServerLock { _not_send: PhantomData })
}

/// This thread holds the lock.
pub fn is_held() -> bool {
    !STATE.with(State::is_without)
}

/// The server calls this thread, or a thread that it calls has lent the lock: a client's command may be under way.
pub fn is_in_callback() -> bool {
    STATE.with(|state| state.callbacks.get() > 0)
}

/// This thread took the lock once, itself: giving that back sets it free.
pub fn is_outermost() -> bool {
    STATE.with(|state| state.depth.get() == 1 && state.callbacks.get() == 0 && state.held.get().is_some())
}

/// The same, and the server's mutex was free before: nothing that others did under it is still to be replicated.
pub fn is_hold_of_its_own() -> bool {
    is_outermost() && STATE.with(|state| state.held.get()) == Some(Held::Mutex)
}

/// Takes the lock without a guard; `exit` gives it back, on the same thread.
pub fn enter() {
    enter_by(|| Some(sharing::take()));
}

/// Takes the lock without a guard if that needs no waiting.
fn try_enter() -> bool {
    enter_by(sharing::try_take)
}

fn enter_by(take: impl FnOnce() -> Option<Held>) -> bool {
    let has = STATE.with(|state| {
        if state.is_without() {
            let Some(held) = take() else {
                return false;
            };
            state.held.set(Some(held));
        }
        state.depth.set(state.depth.get() + 1);
        true
    });
    if has && sharing::wants_turns() {
        let guard = ManuallyDrop::new(ServerLock { _not_send: PhantomData });
        event_loop::listen(&guard);
    }
    has
}

/// Takes the lock without a guard, for work that may write and can not wait once it has begun: not if that takes longer
/// than `wait` or than `go_on` says so, and not while writes are paused.
pub fn try_enter_unpaused(wait: Duration, go_on: &dyn Fn() -> bool) -> bool {
    if !enter_by(|| take_to_write(Some(wait), go_on)) {
        return false;
    }
    let guard = ServerLock { _not_send: PhantomData };
    if is_outermost() && replicate::is_paused(&guard) {
        return false;
    }
    // The hold stays.
    std::mem::forget(guard);
    true
}

/// Gives one hold back; false if this thread has none to give.
pub fn exit() -> bool {
    STATE.with(|state| {
        let depth = state.depth.get();
        if depth <= state.floor.get() {
            return false;
        }
        state.depth.set(depth - 1);
        if depth == 1
            && let Some(held) = state.held.take()
        {
            sharing::give_back(held);
        }
        true
    })
}

/// The token for a callback that is called for every command and takes no holds itself: it costs nothing.
///
/// # Safety
/// The server calls, and the token does not outlive that call. While it lives nothing takes the lock, unless through
/// `enter_callback`.
pub(super) unsafe fn in_quick_callback() -> ManuallyDrop<ServerLock> {
    ManuallyDrop::new(ServerLock { _not_send: PhantomData })
}

/// Marks that this thread is inside a callback of the server. Holds that the callback forgot end with it.
pub(super) fn enter_callback() -> Callback {
    STATE.with(|state| {
        state.callbacks.set(state.callbacks.get() + 1);
        let depth = state.depth.get();
        Callback {
            depth,
            held: state.held.get(),
            floor: state.floor.replace(depth),
        }
    })
}

/// What was before the callback; see `enter_callback`.
pub(super) struct Callback {
    depth: u32,
    held: Option<Held>,
    floor: u32,
}

impl Drop for Callback {
    fn drop(&mut self) {
        STATE.with(|state| {
            state.callbacks.set(state.callbacks.get() - 1);
            state.depth.set(self.depth);
            state.held.set(self.held);
            state.floor.set(self.floor);
        });
    }
}

/// Another thread acts as the holder of the lock until it is done, while this one waits for it. `start` hands the loan
/// over; this returns once the loan is used up or dropped, wherever that happens.
pub fn lend(_guard: &ServerLock, start: impl FnOnce(Loan)) {
    let back = Waiting(Arc::default());
    start(Loan {
        back: back.0.clone(),
        surroundings: Surroundings::of_this_thread(),
    });
}

/// The right to act as the holder of the lock, once, on any thread. Dropping it gives the lock back to the lender.
pub struct Loan {
    back: Arc<Back>,
    surroundings: Surroundings,
}

impl Loan {
    /// Runs `work` as if the lender did: commands run as they would there.
    pub fn run<R>(self, work: impl FnOnce(&ServerLock) -> R) -> R {
        // Both are put back before `self` is dropped and the lender goes on, also when `work` panics.
        let _callback = enter_callback();
        let _surroundings = self.surroundings.enter();
        work(&lock())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.back.set();
    }
}

/// Waits when it is dropped: also a lender that panics goes on only when it has the lock back.
struct Waiting(Arc<Back>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// The lender waits here.
#[derive(Default)]
struct Back {
    given: Mutex<bool>,
    changed: Condvar,
}

impl Back {
    fn set(&self) {
        let mut given = self.given.lock();
        *given = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut given = self.given.lock();
        while !*given {
            self.changed.wait(&mut given);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn who_borrows_holds_the_lock_and_gives_it_back() {
        let lender = enter_callback();
        let guard = lock();
        let (sender, receiver) = mpsc::channel::<Loan>();
        let borrower = thread::spawn(move || {
            let loan = receiver.recv().expect("a loan");
            let inside = loan.run(|_| (is_held(), exit(), is_held()));
            (inside, is_held())
        });
        lend(&guard, |loan| sender.send(loan).expect("the borrower waits"));
        let seen = borrower.join().expect("no panic");
        // It gives back what `run` took for it, but not the lender's own hold.
        assert_eq!(seen, ((true, true, true), false));
        assert!(is_held());
        drop(guard);
        drop(lender);
        assert!(!is_held());
    }

    #[test]
    fn a_loan_that_is_dropped_or_panics_goes_back() {
        let _lender = enter_callback();
        let guard = lock();
        lend(&guard, drop);
        lend(&guard, |loan| {
            let borrower = thread::spawn(move || loan.run(|_| panic!("on purpose")));
            assert!(borrower.join().is_err());
        });
        assert!(is_held());
    }
}
