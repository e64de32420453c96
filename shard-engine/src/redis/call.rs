//! Running commands of the server. Always on database 0, whatever database a client selected.

use std::{
    cell::{Cell, RefCell},
    ffi::CString,
    ptr::{NonNull, null},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use oxigears_coordinator::topology::key_slot;
use redis_module::raw;
use thiserror::Error;

pub use super::value::Reply;
use super::{
    at_hand,
    call_reply::CallReply,
    context::server_flags,
    ffi::{OwnedString, api},
    files, filter,
    lock::{self, ServerLock},
    lost_reply, notify, replicate, sharing, slot_tables, unfit,
    version::at_least,
};

/// Longest wait for the end of a pause of all writes: twice what the server takes for a fail-over by hand.
const PAUSE_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const PAUSE_POLL: Duration = Duration::from_millis(5);

/// Commands that are not marked as writes, but may be replicated. The server does not show that mark.
const MAY_REPLICATE: [&str; 6] = ["EVAL", "EVALSHA", "FCALL", "PFCOUNT", "PUBLISH", "SPUBLISH"];

/// How a command is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags<'a> {
    /// Writes go to replicas and the AOF.
    pub replicate: bool,
    /// Check the rights of this ACL user; `None` runs with all rights.
    pub user: Option<&'a str>,
    /// Refuse commands that may use more memory once `maxmemory` is reached.
    pub respect_memory_limit: bool,
    /// Refuse commands that write if ordinary clients may not write here: on a read-only replica.
    pub respect_read_only: bool,
    /// Refuse commands that write if the server takes no writes of clients now: it can not write its files, or too few
    /// replicas follow. Not before version 7.0.3: there it ends the server on a thread.
    pub respect_server_state: bool,
    /// Ask for RESP3 replies.
    pub resp3: bool,
    /// Registrations may take it over: it is a script's, not our own.
    pub interceptable: bool,
    /// The database that it works on.
    pub database: i32,
}

impl Flags<'_> {
    /// A command of a script: what it writes is replicated; a read-only replica is not written to, nor a server that is
    /// full.
    pub fn from_script() -> Flags<'static> {
        Flags {
            replicate: true,
            respect_read_only: true,
            respect_memory_limit: true,
            interceptable: true,
            ..Flags::default()
        }
    }
}

/// Why a command gave no reply. The texts begin with a code word, like the server's own.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[allow(missing_docs)]
pub enum CallError {
    #[error("ERR no command was given")]
    Empty,
    #[error("ERR unknown command '{0}'")]
    UnknownCommand(String),
    #[error("ERR wrong number of arguments for '{0}' command")]
    WrongArity(String),
    #[error(
        "ERR a key of command '{0}' is in a slot of another shard (Operation not permitted here); repartition by the key first"
    )]
    OtherShard(String),
    #[error("CROSSSLOT the keys of command '{0}' are in several slots; a command takes keys of one slot only")]
    CrossSlot(String),
    #[error(
        "ERR a key of command '{0}' is in another slot than those of the client's command that is under way; this version of \
         the server would not find it now: use a key with the same hash tag, or mode 'async' or 'async_local'"
    )]
    OutOfReach(String),
    #[error("CLUSTERDOWN command '{0}' can not run while the cluster is down")]
    ClusterDown(String),
    #[error("NOPERM user '{0}' does not exist any more")]
    NoSuchUser(String),
    #[error("NOPERM user '{user}' may not run the command '{command}' here: {reason}")]
    NotAllowed {
        user: String,
        command: String,
        reason: String,
    },
    #[error("ERR the server can not check the rights of user '{0}': version 7.0 or newer is needed")]
    NoUserSupport(String),
    #[error("READONLY You can't write against a read only replica.")]
    ReadOnly,
    #[error("ERR writes are paused (CLIENT PAUSE, or a fail-over is under way): '{0}' changed nothing; try again")]
    WritesPaused(String),
    #[error("ERR the reply of '{0}' is nested too deeply")]
    TooDeep(String),
    #[error("ERR failed executing command '{command}': {reason}")]
    System { command: String, reason: String },
    /// The error that the command answered.
    #[error("{0}")]
    Answered(String),
}

thread_local! {
    static NESTED: Cell<u32> = const { Cell::new(0) };
}

/// This thread is inside a command that `call` runs: nothing may block.
pub fn in_nested_call() -> bool {
    NESTED.get() > 0
}

/// What a thread that borrows the lock must know of the lender's calls, so that its own ones run like the lender's.
pub(super) struct Surroundings {
    nested: u32,
    user: Option<Arc<str>>,
}

impl Surroundings {
    /// Those of this thread.
    pub(super) fn of_this_thread() -> Surroundings {
        Surroundings {
            nested: NESTED.get(),
            user: user_in_force(),
        }
    }

    /// Takes them over until the result is dropped.
    pub(super) fn enter(&self) -> Entered {
        Entered {
            before: Surroundings {
                nested: NESTED.replace(self.nested),
                user: CONTEXT_USER.replace(self.user.clone()),
            },
        }
    }
}

/// See `Surroundings::enter`.
pub(super) struct Entered {
    before: Surroundings,
}

impl Drop for Entered {
    fn drop(&mut self) {
        NESTED.set(self.before.nested);
        CONTEXT_USER.set(self.before.user.take());
    }
}

/// Commands that functions run within each other, one of them the cause of the next. Each takes some KB of the stack.
const NESTED_MOST: u32 = 200;
const NESTED_TOO_DEEPLY: &str = "ERR commands of functions are nested too deeply";

/// Counts nested calls, also when a panic passes.
pub(super) struct Nested;

impl Nested {
    fn enter() -> Nested {
        NESTED.set(NESTED.get() + 1);
        Nested
    }
}

/// This thread is inside a command that a module runs, until the result is dropped.
pub(super) fn nested() -> Nested {
    Nested::enter()
}

/// The user whose rights count in the command of a function that this thread is in; `None`: all rights. A name, because
/// the user may be deleted meanwhile.
pub(super) fn user_in_force() -> Option<Arc<str>> {
    CONTEXT_USER.with_borrow(Clone::clone)
}

impl Drop for Nested {
    fn drop(&mut self) {
        NESTED.set(NESTED.get() - 1);
    }
}

/// Called when the outermost command of a thread is over.
static AFTER_EACH: OnceLock<fn(&ServerLock)> = OnceLock::new();

/// Calls `work` after each outermost command that `call` ran, under the lock. At load.
pub fn after_each(work: fn(&ServerLock)) {
    let _ = AFTER_EACH.set(work);
}

/// Runs `args` (name first). An error of the command is `Err`; errors inside an array are elements.
pub fn call<A: AsRef<[u8]>>(guard: &ServerLock, args: &[A], flags: Flags<'_>) -> Result<Reply, CallError> {
    let outcome = call_alone(guard, args, flags);
    // Our own questions change nothing, and whoever asks may be in the middle of something.
    if flags.replicate
        && !in_nested_call()
        && let Some(work) = AFTER_EACH.get()
    {
        work(guard);
    }
    outcome
}

fn call_alone<A: AsRef<[u8]>>(guard: &ServerLock, args: &[A], flags: Flags<'_>) -> Result<Reply, CallError> {
    let (name, rest) = args.split_first().ok_or(CallError::Empty)?;
    // Python counts its own frames only, and a script may raise that bound.
    if NESTED.get() >= NESTED_MOST {
        return Err(CallError::Answered(NESTED_TOO_DEEPLY.to_owned()));
    }
    let shown = || String::from_utf8_lossy(name.as_ref()).into_owned();
    // The server has no command with NUL in its name.
    let Ok(command) = CString::new(name.as_ref()) else {
        return Err(CallError::UnknownCommand(shown()));
    };
    let _user = flags.user.map(|user| ContextUser::set(guard, user)).transpose()?;
    if let Some(text) = unfit::refusal(guard, args) {
        return Err(CallError::Answered(text));
    }
    if let Some(outcome) = files::postpone(guard, args, flags) {
        return outcome;
    }
    let mut strings: Vec<OwnedString> = rest.iter().map(|arg| OwnedString::new(arg.as_ref())).collect();
    // Nothing can wait here: it tells how many replicas have acknowledged. Version 7.0 would wait all the same, and end.
    if is_one_of(&["WAIT"], name.as_ref())
        && let [replicas, _] = rest
        && is_integer(replicas.as_ref())
    {
        strings[0] = OwnedString::new(b"0");
    }
    match unfit::change(args.len(), |at| args[at].as_ref()) {
        None => {}
        Some(unfit::Change::Append(word)) => strings.push(OwnedString::new(word)),
        Some(unfit::Change::Remove(at)) => drop(strings.remove(at - 1)),
    }
    let server = server_flags(guard);
    if strings.len() > 1 && server.cluster && crosses_slots(guard, name.as_ref(), &strings) {
        return Err(CallError::CrossSlot(shown()));
    }
    if flags.replicate && slot_tables::is_inside(guard) && is_out_of_reach(guard, args) {
        return Err(CallError::OutOfReach(shown()));
    }
    let mut pointers: Vec<_> = strings.iter().map(OwnedString::as_ptr).collect();
    // A server that evicts makes room between the commands of its clients only: there the limit would refuse functions
    // what it grants to clients.
    let flags = Flags {
        respect_memory_limit: flags.respect_memory_limit && !server.evicts,
        ..flags
    };
    // The server ends itself if a write is replicated while writes are paused.
    let paused = flags.replicate && replicate::is_paused(guard);
    if paused && may_replicate(name.as_ref()) {
        return Err(CallError::WritesPaused(shown()));
    }
    let read_only = flags.respect_read_only && server.read_only;
    let format = format_of(flags, read_only || paused);
    let _nested = Nested::enter();
    let _unseen = (!flags.interceptable).then(filter::unseen);
    if flags.replicate && !flags.interceptable {
        notify::tell_of_all(guard);
    }
    if flags.replicate {
        sharing::note_write();
    }
    let _database = (flags.database != 0).then(|| Database::select(guard, flags.database));
    let mut run = |ctx| {
        set_errno(0);
        // SAFETY: the context is alive; "v" takes an array of strings and its length.
        unsafe {
            let (format, count) = (format.as_ptr().cast(), pointers.len());
            let reply = api!(RedisModule_Call)(ctx, command.as_ptr(), format, pointers.as_mut_ptr(), count);
            let errno = errno();
            let reply = CallReply::adopt(reply).and_then(|reply| lost_reply::complete(ctx, reply));
            reply.ok_or(errno)
        }
    };
    let mut ran = run(guard.ctx());
    if let Some(ctx) = at_hand::ctx()
        && ran
            .as_ref()
            .is_ok_and(|reply| reply.error().is_some_and(|text| is_elsewhere(&text)))
    {
        // SAFETY: the client's command is under way, so its context is alive.
        let user = flags
            .user
            .map(|user| unsafe { ContextUser::set_in(guard, ctx.as_ptr(), user) });
        let _user = user.transpose()?;
        ran = run(ctx.as_ptr());
    }
    let reply = ran.map_err(|errno| refusal(errno, shown(), flags))?;
    match reply.read() {
        None => Err(CallError::TooDeep(shown())),
        Some(Reply::Error(text)) => Err(match clear_error(text, shown(), flags.user) {
            CallError::ReadOnly if paused && !read_only => CallError::WritesPaused(shown()),
            error => error,
        }),
        Some(value) => Ok(value),
    }
}

/// The shared context is at another database while this lives.
struct Database<'a>(&'a ServerLock);

impl Database<'_> {
    fn select(guard: &ServerLock, number: i32) -> Database<'_> {
        // SAFETY: the lock is held; a number that does not exist changes nothing.
        unsafe { api!(RedisModule_SelectDb)(guard.ctx(), number) };
        Database(guard)
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        // SAFETY: as in `select`.
        unsafe { api!(RedisModule_SelectDb)(self.0.ctx(), 0) };
    }
}

/// Takes the lock and runs `args`, which may write unless they say otherwise. A write waits for the end of a pause of all
/// writes, unless this thread holds the lock already: then it is an error, because nobody could end the pause.
pub fn call_patiently<A: AsRef<[u8]>>(
    args: &[A],
    flags: Flags<'_>,
    only_reads: impl Fn() -> bool,
) -> Result<Reply, CallError> {
    let deadline = Instant::now() + PAUSE_WAIT;
    loop {
        let mut guard = match lock::seems_unfit_to_write() && !only_reads() {
            true => lock::lock_to_write(),
            false => lock::lock(),
        };
        if !lock::is_fit_to_write(&guard) && !only_reads() {
            drop(guard);
            guard = lock::lock_to_write();
        }
        let outcome = call(&guard, args, flags);
        let paused = matches!(outcome, Err(CallError::WritesPaused(_)));
        if !paused || !lock::is_outermost() || Instant::now() >= deadline {
            return outcome;
        }
        drop(guard);
        thread::sleep(PAUSE_POLL);
    }
}

/// The command is no write, but may cause some.
pub fn may_replicate(name: &[u8]) -> bool {
    is_one_of(&MAY_REPLICATE, name)
}

pub fn is_one_of(known: &[&str], name: &[u8]) -> bool {
    known.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

fn is_integer(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<i64>().is_ok())
}

/// The command has keys in several slots. The server must not be asked: Valkey 9.1 refuses every later call of the
/// module, keyless ones too, once it has refused one for this reason.
fn is_out_of_reach<A: AsRef<[u8]>>(guard: &ServerLock, args: &[A]) -> bool {
    let mut keys = keys_of(guard, args).into_iter().map(|at| args[at].as_ref());
    keys.any(|key| slot_tables::is_out_of_reach(guard, key))
}

fn crosses_slots(guard: &ServerLock, name: &[u8], args: &[OwnedString]) -> bool {
    let name = OwnedString::new(name);
    let pointers = std::iter::once(&name).chain(args).map(OwnedString::as_ptr).collect();
    let positions = key_positions(guard, pointers);
    let mut slots = positions
        .iter()
        .filter_map(|at| args.get(at.checked_sub(1)?))
        .map(|key| key_slot(key.bytes()));
    let first = slots.next();
    slots.any(|slot| Some(slot) != first)
}

/// Positions of the keys in a command (its name is 0); none if it has none, or the server can not tell.
pub fn keys_of<A: AsRef<[u8]>>(guard: &ServerLock, args: &[A]) -> Vec<usize> {
    let strings: Vec<OwnedString> = args.iter().map(|arg| OwnedString::new(arg.as_ref())).collect();
    let mut positions = key_positions(guard, strings.iter().map(OwnedString::as_ptr).collect());
    positions.retain(|&at| at < args.len());
    positions
}

fn key_positions(guard: &ServerLock, mut args: Vec<*mut raw::RedisModuleString>) -> Vec<usize> {
    let mut count = 0;
    // SAFETY: the pointer is filled at load; the lock is held, the strings are alive during the call.
    let found = unsafe {
        raw::RedisModule_GetCommandKeys.map(|get| get(guard.ctx(), args.as_mut_ptr(), args.len() as i32, &mut count))
    };
    let Some(found) = found.and_then(NonNull::new) else {
        return Vec::new();
    };
    // SAFETY: the server gives an array of `count` positions, which is ours to free.
    let positions = unsafe { std::slice::from_raw_parts(found.as_ptr(), usize::try_from(count).unwrap_or(0)) };
    let positions = positions.iter().filter_map(|&at| usize::try_from(at).ok()).collect();
    // SAFETY: nothing refers to the array any more.
    unsafe { api!(RedisModule_Free)(found.as_ptr().cast()) };
    positions
}

/// Older servers know fewer modifiers and refuse formats with others. The rest of the array is NUL.
fn format_of(flags: Flags<'_>, deny_writes: bool) -> [u8; 9] {
    let modern = at_least(7, 0);
    let mut format = [0; 9];
    let mut length = 0;
    let mut add = |wanted: bool, modifier: u8| {
        if wanted {
            format[length] = modifier;
            length += 1;
        }
    };
    add(flags.replicate, b'!');
    add(flags.user.is_some(), b'C');
    add(flags.resp3, b'3');
    add(flags.respect_memory_limit && modern, b'M');
    add(deny_writes && modern, b'W');
    add(flags.respect_server_state && modern, b'S');
    add(modern, b'E');
    add(true, b'v');
    format
}

/// The server refused without a reply (before 7.0): only the error number tells why.
fn refusal(errno: i32, command: String, flags: Flags<'_>) -> CallError {
    match errno {
        libc::ENOENT => CallError::UnknownCommand(command),
        libc::EINVAL => CallError::WrongArity(command),
        libc::EPERM => CallError::OtherShard(command),
        libc::ENETDOWN | libc::EROFS => CallError::ClusterDown(command),
        libc::EACCES | libc::ENOTSUP if flags.user.is_some() => CallError::NotAllowed {
            user: flags.user.unwrap_or_default().to_owned(),
            command,
            reason: "the rights do not suffice".into(),
        },
        0 => CallError::System {
            command,
            reason: "the server gave no reason".into(),
        },
        number => CallError::System {
            command,
            reason: std::io::Error::from_raw_os_error(number).to_string(),
        },
    }
}

/// The server refused a command, because a key of it is not here.
fn is_elsewhere(text: &str) -> bool {
    text.contains("non local key in a cluster node")
}

/// Error replies are the server's own texts, but for those that tell a script's author too little or too much.
fn clear_error(text: String, command: String, user: Option<&str>) -> CallError {
    if text.starts_with("ERR unknown command") {
        CallError::UnknownCommand(command)
    } else if let (Some(user), Some(reason)) = (user, text.strip_prefix("ERR acl verification failed, ")) {
        CallError::NotAllowed {
            user: user.to_owned(),
            command,
            reason: reason.to_owned(),
        }
    } else if is_elsewhere(&text) {
        CallError::OtherShard(command)
    } else if text.contains("while the cluster is down") {
        CallError::ClusterDown(command)
    } else if text.contains("was called while write is not allowed") {
        CallError::ReadOnly
    } else {
        CallError::Answered(text)
    }
}

fn set_errno(value: i32) {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() = value }
}

pub(super) fn errno() -> i32 {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() }
}

/// Sets the user of the shared context while a command runs, then the one before.
pub(super) struct ContextUser<'a> {
    _guard: &'a ServerLock,
    ctx: *mut raw::RedisModuleCtx,
    user: NonNull<raw::RedisModuleUser>,
    before: Option<Arc<str>>,
}

impl<'a> ContextUser<'a> {
    fn set(guard: &'a ServerLock, name: &str) -> Result<ContextUser<'a>, CallError> {
        // SAFETY: the shared context is alive.
        unsafe { ContextUser::set_in(guard, guard.ctx(), name) }
    }

    /// Sets the user of another context.
    ///
    /// # Safety
    /// The context is alive as long as the result.
    pub(super) unsafe fn set_in(
        guard: &'a ServerLock,
        ctx: *mut raw::RedisModuleCtx,
        name: &str,
    ) -> Result<ContextUser<'a>, CallError> {
        // SAFETY: the pointers are filled at load and not changed after.
        let functions = unsafe {
            raw::RedisModule_GetModuleUserFromUserName
                .zip(raw::RedisModule_SetContextUser)
                .zip(raw::RedisModule_FreeModuleUser)
        };
        let Some(((find, set), _)) = functions else {
            return Err(CallError::NoUserSupport(name.to_owned()));
        };
        let key = OwnedString::new(name.as_bytes());
        // SAFETY: the string is alive, the lock is held.
        let user = NonNull::new(unsafe { find(key.as_ptr()) }).ok_or_else(|| CallError::NoSuchUser(name.to_owned()))?;
        let before = CONTEXT_USER.replace(Some(name.into()));
        // SAFETY: the user lives until `drop`, which takes it off the context again.
        unsafe { set(ctx, user.as_ptr()) };
        Ok(ContextUser {
            _guard: guard,
            ctx,
            user,
            before,
        })
    }
}

thread_local! {
    // Calls nest only on the thread that holds the lock, so its own memory of the user is the context's.
    static CONTEXT_USER: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
}

impl Drop for ContextUser<'_> {
    fn drop(&mut self) {
        CONTEXT_USER.set(self.before.take());
        // Whoever was set before has looked at it already: each command sets its own.
        // SAFETY: ours is not referred to after it is taken off.
        unsafe {
            api!(RedisModule_SetContextUser)(self.ctx, null());
            api!(RedisModule_FreeModuleUser)(self.user.as_ptr());
        }
    }
}
