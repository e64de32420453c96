//! Our internal commands that stand in front of an intercepted command: `RG.INNERHOOK SET k v`.
//!
//! They are known by the very string that the filter puts there, so a client that types the name is refused. They tell
//! the server the keys of the command behind, so that cluster redirection and key rights stay. The server's checks go
//! by the flags of the command that it sees: hence one command for each kind of command behind.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::null_mut,
    slice,
    sync::OnceLock,
};

use redis_module::raw;

use super::{
    at_hand,
    blocked::Client,
    call::{self, ContextUser},
    call_reply::CallReply,
    caller, cluster,
    context::{Flags, server_flags},
    ffi::{OwnedString, api, c_string, lossy, panic_text, string_bytes},
    filter,
    front::{self, Front, TYPED},
    lock::{self, ServerLock},
    log, lost_reply, notify, plain_call,
    refusal::{Fault, READONLY, for_client, judge_error},
    replicate,
    reply::ReplyWriter,
    slot_tables,
    value::Reply,
    version::at_least,
};

mod permits;

pub use permits::Verdict;

/// The server gave no reply.
const FAILED: &str = "ERR error happened running the command";

/// Runs a wrapped command.
pub type Handler = fn(&mut Wrapped);

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// Registers the commands. At load.
pub fn register(guard: &ServerLock, handler: Handler) -> Result<(), String> {
    if HANDLER.set(handler).is_err() {
        return Err("the internal commands are there already".into());
    }
    front::create(guard, wrapped)
}

/// An intercepted command, while the server runs it.
pub struct Wrapped {
    ctx: *mut raw::RedisModuleCtx,
    /// The command behind, its name first.
    argv: *mut *mut raw::RedisModuleString,
    argc: usize,
    guard: ServerLock,
    reply: ReplyWriter,
    answered: bool,
    flags: Flags,
}

/// What the caller's rights are checked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// The client's user.
    Caller,
    /// Nobody: the server itself (its master, its log), or code that acts with all rights.
    Nobody,
}

/// The form of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// As the client speaks.
    AsClient,
    /// As functions know them.
    Resp2,
}

impl Wrapped {
    /// The server lock, which is held while the command runs.
    pub fn guard(&self) -> &ServerLock {
        &self.guard
    }

    /// Where the command runs.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// Number of arguments, the name included.
    pub fn len(&self) -> usize {
        self.argc
    }

    /// An argument.
    pub fn arg(&self, at: usize) -> &[u8] {
        assert!(at < self.argc, "the command has no argument {at}");
        // SAFETY: `at` is within the vector, whose strings live while the command runs.
        unsafe { string_bytes(*self.argv.add(at)) }
    }

    /// The command's name in lower case, as errors show it.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(self.arg(0)).to_lowercase()
    }

    /// Copies of all arguments.
    pub fn args(&self) -> Vec<Vec<u8>> {
        (0..self.argc).map(|at| self.arg(at).to_vec()).collect()
    }

    /// Writes the answer: one whole reply.
    pub fn reply(&mut self) -> &mut ReplyWriter {
        self.answered = true;
        &mut self.reply
    }

    /// Runs the command as it came, with the rights of its caller; `None` if the server gave no reply.
    pub fn run(&self) -> Option<Ran> {
        self.run_speaking(Speech::AsClient)
    }

    /// The same for code, which knows RESP2 only. The error is a text for scripts.
    pub fn run_for_code(&self) -> Result<Reply, String> {
        let ran = self.run_speaking(Speech::Resp2).ok_or(FAILED)?;
        match ran.to_client() {
            Reply::Error(text) => Err(text),
            reply => Ok(reply),
        }
    }

    fn run_speaking(&self, speech: Speech) -> Option<Ran> {
        let rest = if self.argc > 1 {
            // SAFETY: the vector has `argc` strings.
            unsafe { slice::from_raw_parts_mut(self.argv.add(1), self.argc - 1) }
        } else {
            &mut []
        };
        // SAFETY: the vector has a name; its text ends with a NUL, as those of all strings of the server do.
        let name = unsafe { api!(RedisModule_StringPtrLen)(*self.argv, null_mut()) };
        let (check, _user) = match self.check() {
            Ok(checked) => checked,
            Err(text) => return Some(Ran(Answer::Refused(text))),
        };
        if let Some(text) = self.script_refusal() {
            return Some(Ran(Answer::Refused(text)));
        }
        // SAFETY: context and strings are alive while the command runs, and the lock is held.
        unsafe { run_in(self.ctx, name, rest, (check, self.denies_writes(), speech)) }
    }

    /// In a script the server asks whether scripts may use the internal command, not the subcommand behind it.
    fn script_refusal(&self) -> Option<String> {
        const CONTAINERS: [&str; 9] = [
            "acl", "client", "cluster", "config", "function", "latency", "module", "script", "slowlog",
        ];
        if !self.flags.lua || self.argc < 2 || !call::is_one_of(&CONTAINERS, self.arg(0)) {
            return None;
        }
        let subcommand = [self.arg(0), b"|", self.arg(1)].concat();
        let question: [&[u8]; 3] = [b"COMMAND", b"INFO", &subcommand];
        let told = call::call(&self.guard, &question, call::Flags::default()).ok()?;
        let flags = told.array()?.first()?.array()?.get(2)?.array()?;
        let is_refused = flags.iter().any(|flag| flag.text() == Some("noscript"));
        is_refused.then(|| "ERR This Redis command is not allowed from script".to_owned())
    }

    /// Answers with what a run gave.
    pub fn answer(&mut self, ran: Option<Ran>) {
        self.answered = true;
        // SAFETY: the context is alive while the command runs.
        unsafe { answer_in(self.ctx, &mut self.reply, ran) };
    }

    /// The user of the client or script that runs it; `None` if that is a function, another module, the master or the log.
    pub fn client_user(&self) -> Option<String> {
        if self.flags.replicated || call::in_nested_call() {
            return None;
        }
        // SAFETY: the context is alive, and the lock is held.
        unsafe { caller::user_name(self.ctx) }
    }

    /// The database that the caller has selected.
    pub fn database(&self) -> i32 {
        // SAFETY: the context is alive.
        unsafe { api!(RedisModule_GetSelectedDb)(self.ctx) }
    }

    /// Whose rights are checked. Those of a function's user are looked at here: the user may have been deleted since the
    /// function called the command, and made anew.
    fn check(&self) -> Result<(Check, Option<ContextUser<'_>>), String> {
        if self.flags.replicated {
            return Ok((Check::Nobody, None));
        }
        if !call::in_nested_call() {
            return Ok((Check::Caller, None));
        }
        let Some(name) = call::user_in_force() else {
            return Ok((Check::Nobody, None));
        };
        // SAFETY: the context is alive while the command runs.
        let user = unsafe { ContextUser::set_in(&self.guard, self.ctx, &name) }.map_err(|e| e.to_string())?;
        if let Verdict::Denied(denial) = self.permits(&name) {
            return Err(denial.text);
        }
        Ok((Check::Caller, Some(user)))
    }

    /// It can be left to another thread, while its client is parked.
    pub fn may_park(&self) -> bool {
        let is_for_guests = |key: Vec<u8>| cluster::is_for_guests(&self.guard, &key);
        self.flags.may_block() && !(self.flags.cluster && self.first_key().is_some_and(is_for_guests))
    }

    fn first_key(&self) -> Option<Vec<u8>> {
        let args: Vec<&[u8]> = (0..self.argc).map(|at| self.arg(at)).collect();
        let at = *call::keys_of(&self.guard, &args).first()?;
        Some(args[at].to_vec())
    }

    fn denies_writes(&self) -> bool {
        !self.flags.replicated && (self.flags.read_only || replicate::is_paused(&self.guard))
    }

    /// The same for another thread that acts for this one (`lock::lend`).
    pub fn lent(&self) -> Lent {
        Lent(self as *const Wrapped)
    }
}

/// See `Wrapped::lent`.
#[derive(Clone, Copy)]
pub struct Lent(*const Wrapped);

// SAFETY: the lender waits until the borrower is done, so only one thread uses it at a time.
unsafe impl Send for Lent {}

impl Lent {
    /// Works with the command; only while the lender runs it, on the thread that acts as the holder of the lock.
    pub fn with<R>(self, work: impl FnOnce(&Wrapped) -> R) -> R {
        // SAFETY: the lender's command is alive as long as its lock is lent.
        work(unsafe { &*self.0 })
    }
}

impl Client for Wrapped {
    fn ctx(&self) -> *mut raw::RedisModuleCtx {
        self.ctx
    }

    fn may_block(&self) -> bool {
        self.flags.may_block()
    }

    fn answered(&mut self) {
        self.answered = true;
    }

    fn refuse(&mut self, text: &str) {
        self.reply().error(text);
    }
}

/// What a command answered.
pub struct Ran(Answer);

enum Answer {
    /// Still in the server's own form.
    Own(CallReply),
    /// An error in the words that clients know.
    Refused(String),
}

// SAFETY: a reply belongs to nobody but its owner; it is read and freed under the lock that its thread holds.
unsafe impl Send for Ran {}

impl Ran {
    /// The command answered an error.
    pub fn is_error(&self) -> bool {
        match &self.0 {
            Answer::Refused(_) => true,
            Answer::Own(reply) => reply.is_error(),
        }
    }

    /// A copy, as it is to reach the client.
    pub fn to_client(&self) -> Reply {
        match &self.0 {
            Answer::Refused(text) => Reply::Error(text.clone()),
            Answer::Own(reply) => reply
                .read()
                .unwrap_or_else(|| Reply::Error("ERR the reply of the command is nested too deeply".into())),
        }
    }
}

/// Runs a command in a client's context.
///
/// # Safety
/// The context is alive, `name` is a C string, the lock is held, the strings live during the call.
unsafe fn run_in(
    ctx: *mut raw::RedisModuleCtx,
    name: *const std::ffi::c_char,
    rest: &mut [*mut raw::RedisModuleString],
    (check, denies_writes, speech): (Check, bool, Speech),
) -> Option<Ran> {
    let how = match (check, denies_writes, speech) {
        (Check::Caller, false, Speech::AsClient) => "!C0E",
        (Check::Caller, true, Speech::AsClient) => "!C0WE",
        (Check::Nobody, false, Speech::AsClient) => "!0E",
        (Check::Nobody, true, Speech::AsClient) => "!0WE",
        (Check::Caller, false, Speech::Resp2) => "!CE",
        (Check::Caller, true, Speech::Resp2) => "!CWE",
        (Check::Nobody, false, Speech::Resp2) => "!E",
        (Check::Nobody, true, Speech::Resp2) => "!WE",
    };
    let _nested = call::nested();
    let reply = {
        let _unseen = filter::unseen();
        // SAFETY: the caller says so.
        unsafe { plain_call::call(ctx, name, how, rest) }
    };
    // SAFETY: the caller says so.
    let reply = unsafe { lost_reply::complete(ctx, CallReply::adopt(reply)?) }?;
    let Some(text) = reply.error() else {
        return Some(Ran(Answer::Own(reply)));
    };
    // Code of another module runs it, without a user.
    if check == Check::Caller && matches!(judge_error(&text), Fault::NoUser) {
        drop(_nested);
        // SAFETY: as above.
        return unsafe { run_in(ctx, name, rest, (Check::Nobody, denies_writes, speech)) };
    }
    // SAFETY: the caller says so.
    let name = unsafe { lossy(name) }.to_lowercase();
    let answer = for_client(&text, &name).map_or(Answer::Own(reply), Answer::Refused);
    Some(Ran(answer))
}

/// Hands a reply on to the client.
///
/// # Safety
/// The context is alive, has a client to answer, and `reply` writes to it.
unsafe fn answer_in(ctx: *mut raw::RedisModuleCtx, reply: &mut ReplyWriter, ran: Option<Ran>) {
    match ran.map(|ran| ran.0) {
        None => reply.error(FAILED),
        Some(Answer::Refused(text)) => reply.error(&text),
        // SAFETY: the caller says so; the reply is ours.
        Some(Answer::Own(given)) => drop(unsafe { api!(RedisModule_ReplyWithCallReply)(ctx, given.as_ptr()) }),
    }
}

impl ReplyWriter {
    /// Runs a command for the parked client that this writes to, in its database, with the rights of its user.
    pub fn run_parked(&mut self, guard: &ServerLock, args: &[Vec<u8>], user: Option<&str>) -> Result<Ran, String> {
        // It passed the command filter when it came: there may be registrations that are newer.
        notify::tell_of_all(guard);
        let (name, rest) = args.split_first().ok_or(FAILED)?;
        let name = c_string(std::str::from_utf8(name).map_err(|_| FAILED)?);
        let strings: Vec<OwnedString> = rest.iter().map(|arg| OwnedString::new(arg)).collect();
        let mut pointers: Vec<_> = strings.iter().map(OwnedString::as_ptr).collect();
        // SAFETY: the writer's context is alive as long as the user is set.
        let set = user.map(|user| unsafe { ContextUser::set_in(guard, self.ctx(), user) });
        let set = set.transpose().map_err(|e| e.to_string())?;
        // Version 7.0 ends itself if it has to refuse a command of a parked client.
        if let Some(user) = user {
            let shown: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            let name = OwnedString::new(shown[0]);
            let mut all: Vec<_> = std::iter::once(&name)
                .chain(&strings)
                .map(OwnedString::as_ptr)
                .collect();
            // SAFETY: the strings and the context are alive.
            let verdict = unsafe {
                let database = api!(RedisModule_GetSelectedDb)(self.ctx());
                permits::permits(guard, user, all.as_mut_ptr(), &shown, database)
            };
            if let Verdict::Denied(denial) = verdict {
                return Err(denial.text);
            }
        }
        let check = if set.is_some() { Check::Caller } else { Check::Nobody };
        // Meanwhile the server may have become a replica, or one that takes no writes.
        let refusal = replicate::refusal_of_writes(guard);
        let denies_writes = replicate::is_paused(guard) || server_flags(guard).read_only || refusal.is_some();
        let how = (check, denies_writes, Speech::AsClient);
        // SAFETY: the context is that of a parked client, the lock is held, the strings are alive.
        let ran = unsafe { run_in(self.ctx(), name.as_ptr(), &mut pointers, how) };
        match (ran.ok_or(FAILED)?, refusal) {
            (Ran(Answer::Refused(text)), Some(why)) if text == READONLY => Err(why),
            (ran, _) => Ok(ran),
        }
    }

    /// Answers with what a run gave.
    pub fn answer(&mut self, ran: Result<Ran, String>) {
        let ctx = self.ctx();
        match ran {
            // SAFETY: the writer's context is alive and has a client to answer.
            Ok(ran) => unsafe { answer_in(ctx, self, Some(ran)) },
            Err(text) => self.error(&text),
        }
    }
}

extern "C" fn wrapped(ctx: *mut raw::RedisModuleCtx, argv: *mut *mut raw::RedisModuleString, argc: i32) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| enter(ctx, argv, argc)));
    if let Err(panic) = outcome {
        log::warning(&format!("internal error in RG.INNERHOOK: {}", panic_text(&*panic)));
    }
    raw::REDISMODULE_OK as i32
}

fn enter(ctx: *mut raw::RedisModuleCtx, argv: *mut *mut raw::RedisModuleString, argc: i32) {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the server gives `argc` strings, alive during the call.
    let is_ours = count >= 2 && unsafe { Front::of(*argv) }.is_some();
    // SAFETY: the context is the server's, alive during the call.
    if unsafe { api!(RedisModule_IsKeysPositionRequest)(ctx) } != 0 {
        if is_ours {
            // SAFETY: as above; the vector has a string behind the first one.
            unsafe { tell_keys(ctx, argv.add(1), argc - 1) };
        }
        return;
    }
    let _callback = lock::enter_callback();
    // SAFETY: the context is alive while the command runs.
    let mut reply = unsafe { ReplyWriter::new(ctx) };
    if !is_ours {
        return reply.error(TYPED);
    }
    let mut command = Wrapped {
        ctx,
        // SAFETY: the vector has a string behind the first one.
        argv: unsafe { argv.add(1) },
        argc: count - 1,
        guard: lock::lock(),
        reply,
        answered: false,
        // SAFETY: the context is alive and the lock is held.
        flags: unsafe { Flags::of(ctx) },
    };
    command.flags.deny_blocking |= call::in_nested_call();
    let _at_hand = (command.flags.cluster && !call::in_nested_call()).then(|| at_hand::enter(ctx));
    let has_tables = command.flags.cluster && at_least(7, 2);
    let key = has_tables.then(|| command.first_key()).flatten();
    let _inside = (!call::in_nested_call()).then(|| slot_tables::enter(command.flags, key.as_deref()));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if let Some(handler) = HANDLER.get() {
            handler(&mut command);
        }
    }));
    if let Err(panic) = &outcome {
        log::warning(&format!("internal error in RG.INNERHOOK: {}", panic_text(&**panic)));
    }
    // A client without an answer would take the next command's one for it.
    if !command.answered {
        command
            .reply()
            .error("ERR internal error in RG.INNERHOOK, see the server log");
    }
}

/// Tells the keys of the command behind, one place further on.
///
/// # Safety
/// The context is that of a request for key positions; the vector has `argc` live strings.
unsafe fn tell_keys(ctx: *mut raw::RedisModuleCtx, argv: *mut *mut raw::RedisModuleString, argc: i32) {
    // SAFETY: the pointers are filled at load.
    let functions = unsafe { raw::RedisModule_GetCommandKeysWithFlags.zip(raw::RedisModule_KeyAtPosWithFlags) };
    let Some((find, tell)) = functions else { return };
    let (mut count, mut flags) = (0, null_mut());
    // SAFETY: the caller says so; both places are ours. A wrong number of arguments gives no keys.
    let places = unsafe { find(ctx, argv, argc, &mut count, &mut flags) };
    if places.is_null() {
        return;
    }
    for i in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the server gives `count` places and flags.
        unsafe { tell(ctx, *places.add(i) + 1, *flags.add(i)) };
    }
    // SAFETY: both arrays are ours, and nothing refers to them any more.
    unsafe {
        api!(RedisModule_Free)(places.cast());
        if !flags.is_null() {
            api!(RedisModule_Free)(flags.cast());
        }
    }
}
