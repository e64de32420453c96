//! Our commands: registered one by one, each with a callback of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

use parking_lot::RwLock;
use redis_module::raw;

pub use super::command_info::{Argument, CommandSpec, Purpose};
use super::{
    at_hand::{self, AtHand},
    call, caller,
    command_info::{set_categories, set_docs},
    context::Flags,
    ffi::{api, c_string, panic_text},
    filter,
    load::arguments,
    lock::{self, ServerLock},
    log,
    reply::ReplyWriter,
};

/// Commands that can be registered: each has a callback of its own.
const MOST_COMMANDS: usize = 64;
/// Flags of the commands that do not say otherwise.
const READONLY: &str = "readonly";

static COMMANDS: RwLock<Vec<&'static CommandSpec>> = RwLock::new(Vec::new());

/// Registers a command without keys. At load.
pub fn create(guard: &ServerLock, command: &'static CommandSpec) -> Result<(), String> {
    create_with(guard, command, READONLY, (0, 0, 0))
}

/// Registers a command with `flags` (words separated by spaces) and first key, last key and step.
pub fn create_with(
    guard: &ServerLock,
    command: &'static CommandSpec,
    flags: &str,
    (first, last, step): (i32, i32, i32),
) -> Result<(), String> {
    let number = {
        let mut commands = COMMANDS.write();
        commands.push(command);
        commands.len() - 1
    };
    let callback = *CALLBACKS
        .get(number)
        .ok_or(format!("more than {MOST_COMMANDS} commands"))?;
    let (name, flags) = (c_string(command.name), c_string(flags));
    // SAFETY: the context names this module, the texts are C strings, the callback lives as long as the module.
    let outcome = unsafe {
        api!(RedisModule_CreateCommand)(
            guard.ctx(),
            name.as_ptr(),
            Some(callback),
            flags.as_ptr(),
            first,
            last,
            step,
        )
    };
    if outcome != raw::REDISMODULE_OK as i32 {
        return Err(format!(
            "the server refused the command {}: is the name taken?",
            command.name
        ));
    }
    set_docs(guard, command);
    set_categories(guard, command);
    Ok(())
}

/// Says whether a client may use a command for administration; else why not.
pub type Gate = fn(&Call) -> Result<(), String>;

static GATE: OnceLock<Gate> = OnceLock::new();

/// Such commands are for those only whom the gate lets through. At load.
pub fn set_gate(gate: Gate) {
    let _ = GATE.set(gate);
}

/// One run of a command.
pub struct Call {
    /// The arguments, the command's name first.
    pub args: Vec<Vec<u8>>,
    ctx: *mut raw::RedisModuleCtx,
    guard: ServerLock,
    reply: ReplyWriter,
    answered: bool,
}

impl Call {
    /// The context of the command.
    pub(super) fn ctx(&self) -> *mut raw::RedisModuleCtx {
        self.ctx
    }

    /// Notes that the client has its answer or waits for it.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    /// The server lock, which is held while the command runs.
    pub fn guard(&self) -> &ServerLock {
        &self.guard
    }

    /// Where the command runs. Inside a command of a function blocking counts as denied.
    pub fn context_flags(&self) -> Flags {
        // SAFETY: the context is alive while the command runs, and the lock is held.
        let flags = unsafe { Flags::of(self.ctx) };
        Flags {
            deny_blocking: flags.deny_blocking || call::in_nested_call(),
            ..flags
        }
    }

    /// Until the result goes, functions may use for the command what its client may use.
    pub fn at_hand(&self) -> AtHand {
        at_hand::enter(self.ctx)
    }

    /// Writes the answer: one whole reply.
    pub fn reply(&mut self) -> &mut ReplyWriter {
        self.answered = true;
        &mut self.reply
    }

    /// ACL user of the client or script; `None` if code of a module runs the command.
    pub fn user_name(&self) -> Option<String> {
        // SAFETY: the context is alive while the command runs, and the lock is held.
        unsafe { caller::user_name(self.ctx) }
    }
}

/// Every callback from the server ends here.
fn enter(number: usize, ctx: *mut raw::RedisModuleCtx, argv: *mut *mut raw::RedisModuleString, argc: i32) {
    filter::others_come();
    let _callback = lock::enter_callback();
    let command = COMMANDS.read().get(number).copied();
    let mut call = Call {
        // SAFETY: the server gives `argc` strings, alive while the command runs.
        args: unsafe { arguments(argv, argc) },
        ctx,
        guard: lock::lock(),
        // SAFETY: the context is alive while the command runs, and so is `call`.
        reply: unsafe { ReplyWriter::new(ctx) },
        answered: false,
    };
    let name = command.map_or("?", |c| c.name);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let Some(command) = command else { return };
        let gate = GATE.get().filter(|_| command.purpose == Purpose::Administration);
        match gate.map_or(Ok(()), |gate| gate(&call)) {
            Ok(()) => (command.handler)(&mut call),
            Err(text) => call.reply().error(&text),
        }
    }));
    if let Err(panic) = &outcome {
        log::warning(&format!("internal error in {name}: {}", panic_text(&**panic)));
    }
    // A client without an answer would take the next command's one for it.
    if !call.answered {
        call.reply()
            .error(&format!("ERR internal error in {name}, see the server log"));
    }
}

type Callback = unsafe extern "C" fn(*mut raw::RedisModuleCtx, *mut *mut raw::RedisModuleString, i32) -> i32;

/// The server tells a command only by its callback, so each number has one.
extern "C" fn callback<const NUMBER: usize>(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: i32,
) -> i32 {
    let outcome = catch_unwind(|| enter(NUMBER, ctx, argv, argc));
    outcome.map_or(raw::REDISMODULE_ERR, |()| raw::REDISMODULE_OK) as i32
}

macro_rules! callbacks {
    ($($number:literal)*) => { [$(callback::<$number>),*] };
}

static CALLBACKS: [Callback; MOST_COMMANDS] = callbacks!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
);
