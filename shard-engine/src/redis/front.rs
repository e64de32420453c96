//! The internal commands that stand in front of an intercepted one: their names, flags and the strings that tell them.
//!
//! What they do is the wrapper's matter.

use std::{
    ffi::CStr,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicPtr, Ordering},
};

use redis_module::raw;

use super::{
    command_info::{CommandSpec, Purpose, set_docs},
    ffi::api,
    lock::ServerLock,
};

/// What the command behind does, as far as the server's checks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads keys.
    Read = 0,
    /// Reads keys, but may be replicated: clients wait while writes are paused.
    Effect = 1,
    /// Neither reads nor writes, as the server has it: some send clients to their master for what reads.
    Plain = 2,
    /// The same, but may be replicated.
    PlainEffect = 3,
    /// Writes, but needs no more memory.
    Write = 4,
    /// Writes, and is refused when memory is full.
    Grow = 5,
}

/// Number of kinds.
const KINDS: usize = 6;

/// One of the internal commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    /// What stands behind.
    pub kind: Kind,
    /// The server does not ask whether the caller may run the internal command. Only where every client has proved who
    /// it is, because it does not ask for that either.
    pub free: bool,
}

/// Names and flags, in the order of `Front::number`. What reads no keys need not wait for a replica's master.
const COMMANDS: [(&CStr, &CStr); 2 * KINDS] = [
    (c"rg.innerhook.read", c"readonly getkeys-api"),
    (c"rg.innerhook.effect", c"readonly may-replicate getkeys-api"),
    (c"rg.innerhook.plain", c"allow-stale getkeys-api"),
    (c"rg.innerhook.plain.effect", c"may-replicate allow-stale getkeys-api"),
    (c"rg.innerhook", c"write getkeys-api"),
    (c"rg.innerhook.grow", c"write deny-oom getkeys-api"),
    (c"rg.innerhook.free.read", c"readonly getkeys-api no-auth"),
    (
        c"rg.innerhook.free.effect",
        c"readonly may-replicate getkeys-api no-auth",
    ),
    (c"rg.innerhook.free.plain", c"allow-stale getkeys-api no-auth"),
    (
        c"rg.innerhook.free.plain.effect",
        c"may-replicate allow-stale getkeys-api no-auth",
    ),
    (c"rg.innerhook.free", c"write getkeys-api no-auth"),
    (c"rg.innerhook.free.grow", c"write deny-oom getkeys-api no-auth"),
];

/// Those that are asked for; for looking whether a user may run them.
pub const CHECKED: [&str; KINDS] = [
    "rg.innerhook.read",
    "rg.innerhook.effect",
    "rg.innerhook.plain",
    "rg.innerhook.plain.effect",
    "rg.innerhook",
    "rg.innerhook.grow",
];

/// The strings that the filter puts in front. Set at load, never freed.
static NAMES: [AtomicPtr<raw::RedisModuleString>; 2 * KINDS] = [const { AtomicPtr::new(null_mut()) }; 2 * KINDS];

/// The answer to a client that types the name of one.
pub(super) const TYPED: &str = "ERR RG.INNERHOOK is internal: it stands for commands that registrations take over, and can not be \
                     called; send the command itself";

impl Front {
    const ALL: [Front; 2 * KINDS] = {
        let kinds = [
            Kind::Read,
            Kind::Effect,
            Kind::Plain,
            Kind::PlainEffect,
            Kind::Write,
            Kind::Grow,
        ];
        let mut all = [Front {
            kind: Kind::Read,
            free: false,
        }; 2 * KINDS];
        let mut i = 0;
        while i < 2 * KINDS {
            all[i] = Front {
                kind: kinds[i % KINDS],
                free: i >= KINDS,
            };
            i += 1;
        }
        all
    };

    fn number(self) -> usize {
        self.kind as usize + if self.free { KINDS } else { 0 }
    }

    /// The internal command whose very string this is.
    pub(super) fn of(name: *mut raw::RedisModuleString) -> Option<Front> {
        let number = NAMES.iter().position(|known| known.load(Ordering::Relaxed) == name)?;
        (!name.is_null()).then(|| Front::ALL[number])
    }

    /// Its string, with one reference more.
    pub(super) fn retained(self) -> Option<*mut raw::RedisModuleString> {
        let name = NonNull::new(NAMES[self.number()].load(Ordering::Relaxed))?;
        // SAFETY: the string lives for ever; the lock is held, as in all of the filter.
        unsafe { api!(RedisModule_RetainString)(null_mut(), name.as_ptr()) };
        Some(name.as_ptr())
    }
}

/// Runs one of the commands, as the server calls it.
pub(super) type Callback = extern "C" fn(*mut raw::RedisModuleCtx, *mut *mut raw::RedisModuleString, i32) -> i32;

/// Registers the commands. At load.
pub(super) fn create(guard: &ServerLock, callback: Callback) -> Result<(), String> {
    for (place, (name, flags)) in NAMES.iter().zip(COMMANDS) {
        // SAFETY: the context names this module, the texts are C strings, the callback lives as long as the module.
        let outcome = unsafe {
            api!(RedisModule_CreateCommand)(guard.ctx(), name.as_ptr(), Some(callback), flags.as_ptr(), 0, 0, 0)
        };
        if outcome != raw::REDISMODULE_OK as i32 {
            return Err(format!("the server refused the command {}", name.to_string_lossy()));
        }
        let bytes = name.to_bytes().to_ascii_uppercase();
        // SAFETY: pointer and length are those of a slice; the string belongs to no context.
        let string = unsafe { api!(RedisModule_CreateString)(null_mut(), bytes.as_ptr().cast(), bytes.len()) };
        place.store(string, Ordering::Relaxed);
    }
    DOCS.iter().for_each(|command| set_docs(guard, command));
    Ok(())
}

/// What COMMAND DOCS shows of them.
static DOCS: [CommandSpec; 2 * KINDS] = [
    docs("rg.innerhook.read"),
    docs("rg.innerhook.effect"),
    docs("rg.innerhook.plain"),
    docs("rg.innerhook.plain.effect"),
    docs("rg.innerhook"),
    docs("rg.innerhook.grow"),
    docs("rg.innerhook.free.read"),
    docs("rg.innerhook.free.effect"),
    docs("rg.innerhook.free.plain"),
    docs("rg.innerhook.free.plain.effect"),
    docs("rg.innerhook.free"),
    docs("rg.innerhook.free.grow"),
];

const fn docs(name: &'static str) -> CommandSpec {
    CommandSpec {
        name,
        purpose: Purpose::Internal,
        handler: |call| call.reply().error(TYPED),
        summary: "Internal: stands in front of a command that a registration takes over.",
        complexity: "That of the command behind and of the functions that it fires.",
        since: "1.2.0",
        args: &[],
    }
}
