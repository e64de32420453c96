//! The command filter: looks at every command before the server does, and may put one of our internal commands in front.
//!
//! Says nothing of which commands: that is the judge's matter. Runs under the server lock, for clients on the main thread,
//! for commands of functions and scripts on whichever thread runs those. Never runs user code, never blocks.

use std::{
    any::{Any, TypeId},
    cell::Cell,
    ffi::{c_char, c_int},
    ptr::{NonNull, null, null_mut},
    slice,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
};

use redis_module::raw;

use super::{
    ffi::{api, catch, missing},
    front::Front,
    guarded::Guarded,
    lock::{self, ServerLock},
};

/// A command that passes.
pub struct Passing<'a> {
    filter: *mut raw::RedisModuleCommandFilterCtx,
    guard: &'a ServerLock,
}

impl Passing<'_> {
    /// The server lock, to look at what it guards. What runs commands has to go through `in_callback`.
    #[inline]
    pub fn guard(&self) -> &ServerLock {
        self.guard
    }

    /// Number of the client; `None` if the server does not tell (before 7.2).
    pub fn client(&self) -> Option<u64> {
        // SAFETY: the server's context is alive while the filter runs.
        unsafe { raw::RedisModule_CommandFilterGetClientId.map(|id| id(self.filter)) }
    }

    /// Number of arguments, the name included.
    pub fn len(&self) -> usize {
        // SAFETY: the server's context is alive while the filter runs.
        let count = unsafe { api!(RedisModule_CommandFilterArgsCount)(self.filter) };
        usize::try_from(count).unwrap_or(0)
    }

    /// An argument; empty if there is none.
    #[inline]
    pub fn arg(&self, at: usize) -> &[u8] {
        let mut len = 0;
        self.text(at, &mut len).map_or(&[], |start| {
            // SAFETY: the server gives pointer and length of one buffer, which lives as long as the command, which the
            // filter outlives not.
            unsafe { slice::from_raw_parts(start.as_ptr(), len) }
        })
    }

    /// The first byte of an argument; zero if it is empty, or there is none. To read its length costs as much again.
    #[inline]
    pub fn first_byte(&self, at: usize) -> u8 {
        // SAFETY: as above; behind the text of a string of the server there is a zero.
        self.text(at, null_mut())
            .map_or(0, |start| unsafe { start.as_ptr().read() })
    }

    /// Where an argument begins, and its length, if that is asked for.
    #[inline]
    fn text(&self, at: usize, len: *mut usize) -> Option<NonNull<u8>> {
        // SAFETY: as above; there is no filter without these functions (`install`).
        unsafe {
            let string = LINE.arg_get.get().unwrap_unchecked()(self.filter, at as c_int);
            if string.is_null() {
                return None;
            }
            let start = LINE.string_ptr_len.get().unwrap_unchecked()(string, len);
            NonNull::new(start.cast_mut().cast())
        }
    }

    fn pointer(&self, at: i32) -> *mut raw::RedisModuleString {
        // SAFETY: as above.
        unsafe { api!(RedisModule_CommandFilterArgGet)(self.filter, at) }
    }
}

/// Looks at commands. A type and no pointer: what each command costs is all in one function.
pub trait Judge: 'static {
    /// What it looks at first; see `show`.
    type Sight: Send + Sync;

    /// Says what is put in front of a command, if anything. What may panic, or show something else, goes through `seldom`.
    fn judge(sight: &[Self::Sight], command: &Passing<'_>) -> Option<Front>;
}

static FILTER: AtomicPtr<raw::RedisModuleCommandFilter> = AtomicPtr::new(null_mut());

type ArgGet = unsafe extern "C" fn(*mut raw::RedisModuleCommandFilterCtx, c_int) -> *mut raw::RedisModuleString;
type StringPtrLen = unsafe extern "C" fn(*const raw::RedisModuleString, *mut usize) -> *const c_char;

/// What each command reads, in one line of the processor's cache: with all of it where it belongs, a command of others
/// waited for memory longer than for all the rest. Only used under the server lock.
#[repr(align(64))]
struct Line {
    /// The next command that the holder of the server lock runs passes as it is.
    pass: Cell<bool>,
    /// Looks through `seldom` that are under way, one in the other.
    looks: Cell<u32>,
    arg_get: Cell<Option<ArgGet>>,
    string_ptr_len: Cell<Option<StringPtrLen>>,
    /// Where what `show` was given begins.
    sight: Cell<*const ()>,
    count: Cell<usize>,
    /// See `before_others`.
    before_others: Cell<Option<fn() -> bool>>,
}

// SAFETY: one thread at a time has the server lock; a loan of it orders what both threads do.
unsafe impl Sync for Line {}

static LINE: Line = Line {
    pass: Cell::new(false),
    looks: Cell::new(0),
    arg_get: Cell::new(None),
    string_ptr_len: Cell::new(None),
    sight: Cell::new(null()),
    count: Cell::new(0),
    before_others: Cell::new(None),
};

/// Has `work` done before anything else happens on this thread than that a command of ours begins: before a command passes in
/// front of which nothing is put, in each other callback, and at the end of the turn of the event loop, in which this thread
/// has to be. Again and again, until it says that it is done.
#[inline]
pub fn before_others(_guard: &ServerLock, work: fn() -> bool) {
    LINE.before_others.set(Some(work));
}

/// Something else happens. With the lock.
#[inline]
pub(super) fn others_come() {
    if let Some(work) = LINE.before_others.get()
        && work()
    {
        LINE.before_others.set(None);
    }
}

/// What `LINE.sight` points to, and whose it is.
static SHOWN: Guarded<Option<(TypeId, Box<dyn Any + Send + Sync>)>> = Guarded::new(None);

/// What the judge looks at first, from now on. Panics while a look is under way, and if there is another judge.
pub fn show<J: Judge>(guard: &ServerLock, sight: Arc<[J::Sight]>) {
    assert_eq!(LINE.looks.get(), 0, "a look is under way");
    let is_same = |(judge, _): &(TypeId, _)| *judge == TypeId::of::<J>();
    assert!(
        SHOWN.borrow(guard).as_ref().is_none_or(is_same),
        "there is another judge"
    );
    LINE.sight.set(sight.as_ptr().cast());
    LINE.count.set(sight.len());
    let before = SHOWN.borrow_mut(guard).replace((TypeId::of::<J>(), Box::new(sight)));
    drop(before);
}

/// Lets a judge, to which something is shown, look at every command from now on.
pub fn install<J: Judge>(guard: &ServerLock) {
    if !FILTER.load(Ordering::Acquire).is_null() {
        return;
    }
    let is_shown = |(judge, _): &(TypeId, _)| *judge == TypeId::of::<J>();
    assert!(
        SHOWN.borrow(guard).as_ref().is_some_and(is_shown),
        "nothing is shown to it"
    );
    // SAFETY: written at load only.
    let fast = unsafe { (raw::RedisModule_CommandFilterArgGet, raw::RedisModule_StringPtrLen) };
    if !matches!(fast, (Some(_), Some(_))) {
        missing("functions for command filters");
    }
    LINE.arg_get.set(fast.0);
    LINE.string_ptr_len.set(fast.1);
    // SAFETY: the context names this module; the callback lives as long as the module.
    let filter = unsafe { api!(RedisModule_RegisterCommandFilter)(guard.ctx(), Some(passing::<J>), 0) };
    FILTER.store(filter, Ordering::Release);
}

/// Commands are looked at.
pub fn is_installed() -> bool {
    !FILTER.load(Ordering::Acquire).is_null()
}

/// Commands are looked at no more.
pub fn uninstall(guard: &ServerLock) {
    let filter = FILTER.swap(null_mut(), Ordering::AcqRel);
    if !filter.is_null() {
        // SAFETY: the filter was registered by `install` and is given back once.
        unsafe { api!(RedisModule_UnregisterCommandFilter)(guard.ctx(), filter) };
    }
}

/// While it lives, the next command that this thread runs, which has the server lock, is not looked at.
pub(super) struct Unseen(bool);

/// See `Unseen`.
pub(super) fn unseen() -> Unseen {
    Unseen(LINE.pass.replace(true))
}

impl Drop for Unseen {
    fn drop(&mut self) {
        LINE.pass.set(self.0);
    }
}

/// For what a judge does seldom: with the lock, which its caller holds. Elsewhere this waits for ever.
pub fn in_callback<R>(work: impl FnOnce(&ServerLock) -> R) -> R {
    let _callback = lock::enter_callback();
    work(&lock::lock())
}

/// For what a judge does not do for most commands: out of their way. A panic ends here.
#[inline(never)]
pub fn seldom(look: impl FnOnce() -> Option<Front>) -> Option<Front> {
    LINE.looks.set(LINE.looks.get() + 1);
    let front = catch("the command filter", look).flatten();
    LINE.looks.set(LINE.looks.get() - 1);
    front
}

extern "C" fn passing<J: Judge>(filter: *mut raw::RedisModuleCommandFilterCtx) {
    // Only the first command: those that it runs itself (a script) are looked at.
    if LINE.pass.get() {
        return LINE.pass.set(false);
    }
    // SAFETY: it is installed when `show` has put a slice of this judge's there, which stays while a look is under way; before
    // it goes through `seldom` it calls nothing that may change that.
    let sight = unsafe { slice::from_raw_parts(LINE.sight.get().cast(), LINE.count.get()) };
    // SAFETY: the server calls; the judge takes no lock, but through `in_callback`.
    let guard = unsafe { lock::in_quick_callback() };
    let command = Passing { filter, guard: &guard };
    match J::judge(sight, &command) {
        Some(front) => put_in_front(&command, front),
        None => others_come(),
    }
}

#[inline(never)]
fn put_in_front(command: &Passing<'_>, front: Front) {
    // It was held up before (CLIENT PAUSE) and is looked at again.
    if Front::of(command.pointer(0)).is_some() {
        return;
    }
    if let Some(name) = front.retained() {
        // SAFETY: the context is alive; the string is retained for the command, which lets it go.
        unsafe { api!(RedisModule_CommandFilterArgInsert)(command.filter, 0, name) };
    }
}
