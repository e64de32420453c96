//! What COMMAND DOCS shows of our commands, on servers that take it (7.0 and newer), and their categories of rights.

use std::{
    ffi::{CStr, CString, c_char},
    mem::size_of,
    ptr::{null, null_mut},
};

use redis_module::raw;

use super::{ffi::c_string, lock::ServerLock, log, register::Call};

/// A command: how it runs and what its docs say.
pub struct CommandSpec {
    /// Its name, `rg.name`.
    pub name: &'static str,
    /// What it is for.
    pub purpose: Purpose,
    /// Runs it.
    pub handler: fn(&mut Call),
    /// One sentence.
    pub summary: &'static str,
    /// `O(...)`.
    pub complexity: &'static str,
    /// Version of the interface that brought it.
    pub since: &'static str,
    /// Arguments behind the name.
    pub args: &'static [Argument],
}

/// What a command is for: that decides who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It runs code that it brings, or changes what is there.
    Administration,
    /// It shows what there is.
    Inspection,
    /// It fires what is registered.
    Use,
    /// Servers send it.
    Internal,
}

impl Purpose {
    /// Categories of rights.
    fn categories(self) -> Option<&'static CStr> {
        match self {
            Purpose::Administration => Some(c"admin slow dangerous"),
            Purpose::Inspection => Some(c"slow dangerous"),
            Purpose::Use => Some(c"write slow"),
            Purpose::Internal => None,
        }
    }
}

/// One argument in the docs.
#[derive(Clone, Copy)]
pub struct Argument {
    name: &'static str,
    kind: Kind,
    optional: bool,
    multiple: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// A word that stands for itself.
    Word(&'static str),
    /// A word and the text behind it.
    Option(&'static str),
    /// One of some words.
    Choice(&'static [&'static str]),
}

impl Argument {
    const fn new(name: &'static str, kind: Kind, optional: bool, multiple: bool) -> Argument {
        Argument {
            name,
            kind,
            optional,
            multiple,
        }
    }

    /// A text that must be given.
    pub const fn text(name: &'static str) -> Argument {
        Argument::new(name, Kind::Text, false, false)
    }

    /// Any number of texts.
    pub const fn texts(name: &'static str) -> Argument {
        Argument::new(name, Kind::Text, true, true)
    }

    /// An optional word.
    pub const fn flag(name: &'static str, word: &'static str) -> Argument {
        Argument::new(name, Kind::Word(word), true, false)
    }

    /// An optional word with a text behind it.
    pub const fn option(name: &'static str, word: &'static str) -> Argument {
        Argument::new(name, Kind::Option(word), true, false)
    }

    /// An optional word with any number of texts behind it.
    pub const fn options(name: &'static str, word: &'static str) -> Argument {
        Argument::new(name, Kind::Option(word), true, true)
    }

    /// An optional word out of some.
    pub const fn choice(name: &'static str, words: &'static [&'static str]) -> Argument {
        Argument::new(name, Kind::Choice(words), true, false)
    }
}

/// Hands the docs over. Without them the command works all the same, so a refusal is only logged.
pub(super) fn set_docs(guard: &ServerLock, command: &CommandSpec) {
    // SAFETY: the pointers are filled at load.
    let functions = unsafe { raw::RedisModule_GetCommand.zip(raw::RedisModule_SetCommandInfo) };
    let Some((get, set)) = functions else {
        return;
    };
    let mut store = Store::default();
    let mut args = store.list(command.args);
    let version = raw::RedisModuleCommandInfoVersion {
        version: 1,
        sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
        sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
        sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
    };
    let info = raw::RedisModuleCommandInfo {
        version: &version,
        summary: store.text(command.summary),
        complexity: store.text(command.complexity),
        since: store.text(command.since),
        history: null_mut(),
        tips: null(),
        // The server would check it before our handler can: COMMAND INFO keeps saying -1, as clients know it.
        arity: -1,
        key_specs: null_mut(),
        args: if command.args.is_empty() {
            null_mut()
        } else {
            args.as_mut_ptr()
        },
    };
    let name = c_string(command.name);
    // SAFETY: context, texts and lists are alive; the server copies everything it keeps.
    let accepted = unsafe {
        let command = get(guard.ctx(), name.as_ptr());
        !command.is_null() && set(command, &info) == raw::REDISMODULE_OK as i32
    };
    if !accepted {
        log::warning(&format!("the server refused the docs of {}", command.name));
    }
}

/// Puts the command in its categories, where the server has them for modules: at load only.
pub(super) fn set_categories(guard: &ServerLock, command: &CommandSpec) {
    // SAFETY: the pointers are filled at load.
    let functions = unsafe { raw::RedisModule_GetCommand.zip(raw::RedisModule_SetCommandACLCategories) };
    let Some(((get, set), categories)) = functions.zip(command.purpose.categories()) else {
        return;
    };
    let name = c_string(command.name);
    // SAFETY: context and texts are alive.
    let accepted = unsafe {
        let command = get(guard.ctx(), name.as_ptr());
        !command.is_null() && set(command, categories.as_ptr()) == raw::REDISMODULE_OK as i32
    };
    if !accepted {
        log::warning(&format!("the server refused the categories of {}", command.name));
    }
}

/// Keeps texts and lists alive as long as they are referred to.
#[derive(Default)]
struct Store {
    texts: Vec<CString>,
    lists: Vec<Vec<raw::RedisModuleCommandArg>>,
}

impl Store {
    fn text(&mut self, text: &str) -> *const c_char {
        let text = c_string(text);
        // The vector may move its strings, but not what they point to.
        let start = text.as_ptr();
        self.texts.push(text);
        start
    }

    fn list(&mut self, args: &[Argument]) -> Vec<raw::RedisModuleCommandArg> {
        let mut list: Vec<_> = args.iter().map(|arg| self.arg(arg)).collect();
        list.push(END);
        list
    }

    fn arg(&mut self, arg: &Argument) -> raw::RedisModuleCommandArg {
        let mut flags = 0;
        if arg.optional {
            flags |= raw::REDISMODULE_CMD_ARG_OPTIONAL as i32;
        }
        if arg.multiple {
            flags |= raw::REDISMODULE_CMD_ARG_MULTIPLE as i32;
        }
        let mut entry = raw::RedisModuleCommandArg {
            name: self.text(arg.name),
            key_spec_index: -1,
            flags,
            ..END
        };
        match arg.kind {
            Kind::Text => {}
            Kind::Option(word) => entry.token = self.text(word),
            Kind::Word(word) => {
                entry.type_ = raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN;
                entry.token = self.text(word);
            }
            Kind::Choice(words) => {
                entry.type_ = raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF;
                let words: Vec<_> = words
                    .iter()
                    .map(|word| Argument::new(word, Kind::Word(word), false, false))
                    .collect();
                let mut list = self.list(&words);
                entry.subargs = list.as_mut_ptr();
                self.lists.push(list);
            }
        }
        entry
    }
}

/// An entry without a name ends a list.
const END: raw::RedisModuleCommandArg = raw::RedisModuleCommandArg {
    name: null(),
    type_: raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING,
    key_spec_index: 0,
    token: null(),
    summary: null(),
    since: null(),
    flags: 0,
    deprecated_since: null(),
    subargs: null_mut(),
    display_text: null(),
};
