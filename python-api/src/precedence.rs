//! Who has the server lock comes first at the interpreter.
//!
//! Such a thread makes the server wait until it is done. A thread that waits for the server lock can do nothing before
//! that, so it must not have the GIL meanwhile: two of them could hand it to each other again and again.
//!
//! What a client waits for, and other work of the module that needs both, has its turn before code that takes the server lock
//! again and again (`atomic()` in a loop): that has the GIL between two of its blocks, and would be first each time.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Threads that have the server lock, or its loan, and use the interpreter or wait for it.
static CLAIMS: AtomicU32 = AtomicU32::new(0);
/// Threads that wait until there are none. Both numbers are changed before the other one is looked at, so either the
/// waiting thread sees that it need not wait or the last claim sees that somebody waits.
static WAITING: AtomicU32 = AtomicU32::new(0);
/// Held for the moment between a look at the number and the sleep: no wake-up is lost there.
static LOOK: Mutex<()> = Mutex::new(());
static OVER: Condvar = Condvar::new();

/// Until it is dropped, those who wait for the server lock do so without the GIL. To be had with the server lock only:
/// they wait for both.
pub struct Precedence(());

impl Precedence {
    /// From now on.
    #[inline]
    pub fn claim() -> Precedence {
        begin();
        Precedence(())
    }
}

impl Drop for Precedence {
    #[inline]
    fn drop(&mut self) {
        end();
    }
}

/// The claim of a thread that has the server lock and takes the GIL; its inner ones need none.
pub(crate) struct Outermost<'a> {
    /// Where the thread notes it, if this is one.
    claim: Option<&'a Cell<bool>>,
    /// There is one already.
    pub(crate) is_inner: bool,
}

impl Outermost<'_> {
    /// If this is the outermost one of the thread, which notes that in `has_claim`, and `has_lock` says so.
    #[inline]
    pub(crate) fn claim(has_claim: &Cell<bool>, has_lock: impl FnOnce() -> bool) -> Outermost<'_> {
        let is_inner = has_claim.get();
        let claim = (!is_inner && has_lock()).then_some(has_claim);
        if claim.is_some() {
            has_claim.set(true);
            begin();
        }
        Outermost { claim, is_inner }
    }
}

impl Drop for Outermost<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(claim) = self.claim {
            claim.set(false);
            end();
        }
    }
}

/// A claim without a guard.
#[inline]
pub(crate) fn begin() {
    CLAIMS.fetch_add(1, SeqCst);
}

/// Its end.
#[inline]
pub(crate) fn end() {
    if CLAIMS.fetch_sub(1, SeqCst) == 1 && WAITING.load(SeqCst) > 0 {
        drop(LOOK.lock());
        OVER.notify_all();
    }
}

/// Somebody comes first.
#[inline]
pub(crate) fn is_claimed() -> bool {
    CLAIMS.load(SeqCst) > 0
}

/// Waits until nobody comes first; false if that is so already. Without the GIL, and without the server lock.
pub(crate) fn wait_for_end() -> bool {
    WAITING.fetch_add(1, SeqCst);
    let mut look = LOOK.lock();
    let waits = is_claimed();
    while is_claimed() {
        OVER.wait(&mut look);
    }
    drop(look);
    WAITING.fetch_sub(1, SeqCst);
    waits
}

/// Work that waits for GIL and server lock and has its turn before `atomic()`.
static WANTED: AtomicU32 = AtomicU32::new(0);
/// Turns that have come.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// As `LOOK` and `OVER`.
static TURN_LOOK: Mutex<()> = Mutex::new(());
static TURN: Condvar = Condvar::new();
/// The longest that code gives way: the work may wait for something else.
const GIVE_WAY: Duration = Duration::from_millis(20);

/// Work that waits for its turn, until it is dropped.
pub(crate) struct Turn(());

impl Turn {
    /// From now on.
    pub(crate) fn want() -> Turn {
        WANTED.fetch_add(1, SeqCst);
        Turn(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        WANTED.fetch_sub(1, SeqCst);
        TAKEN.fetch_add(1, SeqCst);
        drop(TURN_LOOK.lock());
        TURN.notify_all();
    }
}

/// Some work waits for its turn.
#[inline]
pub(crate) fn is_turn_wanted() -> bool {
    WANTED.load(SeqCst) > 0
}

/// Waits until the turn of one that waits has come, but not for long. Without the GIL, and without the server lock.
pub(crate) fn give_way() {
    let (deadline, taken) = (Instant::now() + GIVE_WAY, TAKEN.load(SeqCst));
    let mut look = TURN_LOOK.lock();
    while is_turn_wanted() && TAKEN.load(SeqCst) == taken && !TURN.wait_until(&mut look, deadline).timed_out() {}
}
