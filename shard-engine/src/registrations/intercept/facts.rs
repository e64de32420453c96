//! What the server says of its commands: flags, number of arguments, places of the keys.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

use crate::redis::{
    call::{CallError, Flags, Reply, call, may_replicate},
    filter,
    lock::{self, ServerLock},
    log,
};

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Number of arguments with the name; negative: at least so many.
    pub arity: i64,
    /// Place of the first key; 0: none.
    pub first: i64,
    /// Place of the last key; negative: from the end.
    pub last: i64,
    /// Distance between keys.
    pub step: i64,
    /// It writes.
    pub writes: bool,
    /// It is said to read keys, and no more.
    pub reads: bool,
    /// It is refused when memory is full.
    pub grows: bool,
    /// It may wait.
    pub blocks: bool,
    /// Where its keys are depends on its arguments.
    pub movable: bool,
    /// Scripts may not use it.
    pub no_script: bool,
    /// It is no write, but its effects may be replicated.
    pub may_replicate: bool,
    /// It works on slots that are being imported.
    pub asking: bool,
    /// A module brought it, which need not tell that it may wait.
    pub of_module: bool,
}

impl Facts {
    /// So many arguments are right, the name included.
    pub fn takes(&self, count: usize) -> bool {
        let count = count as i64;
        if self.arity >= 0 {
            count == self.arity
        } else {
            count >= -self.arity
        }
    }

    /// Places of the keys among so many arguments.
    pub fn keys(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let count = count as i64;
        let last = if self.last < 0 { count + self.last } else { self.last };
        let end = if self.first > 0 { last.min(count - 1) } else { -1 };
        let step = usize::try_from(self.step).unwrap_or(1).max(1);
        (self.first.max(0)..=end).step_by(step).map(|at| at as usize)
    }

    /// From what COMMAND INFO tells of a command.
    fn read(reply: &Reply) -> Option<Facts> {
        let parts = reply.array()?;
        let number = |at: usize| parts.get(at).and_then(Reply::int);
        let flags = parts.get(2)?.array()?;
        let has = |wanted: &str| flags.iter().any(|flag| flag.text() == Some(wanted));
        let name = name_in(reply)?;
        // A channel of a shard is in the place of a key, and is none.
        let place = |at| if is_of_channel(&name) { Some(0) } else { number(at) };
        Some(Facts {
            arity: number(1)?,
            first: place(3)?,
            last: place(4)?,
            step: place(5)?,
            writes: has("write"),
            reads: has("readonly"),
            grows: has("denyoom"),
            blocks: has("blocking"),
            movable: has("movablekeys"),
            no_script: has("noscript"),
            may_replicate: may_replicate(name.as_bytes()),
            asking: has("asking"),
            of_module: has("module"),
        })
    }
}

/// The command goes to the shard of a channel.
pub fn is_of_channel(name: &str) -> bool {
    ["spublish", "ssubscribe", "sunsubscribe"].contains(&name)
}

/// The name that a command was made with, in lower case.
fn name_in(reply: &Reply) -> Option<String> {
    Some(reply.array()?.first()?.text()?.to_ascii_lowercase())
}

/// All commands by their names in lower case.
pub type Commands = HashMap<String, Facts>;

static COMMANDS: RwLock<Option<Arc<Commands>>> = RwLock::new(None);
/// New names of renamed commands (`rename-command`): the server does not list them, but knows them when asked.
static RENAMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// All commands, as the server told last.
pub fn all() -> Arc<Commands> {
    COMMANDS.read().clone().unwrap_or_default()
}

/// Asks the server. Modules that are loaded later bring more.
pub fn refresh(guard: &ServerLock) -> Arc<Commands> {
    let commands = Arc::new(ask(guard).unwrap_or_else(|e| {
        log::warning(&format!(
            "COMMAND does not tell the server's commands, so none can be hooked or linked, and sync handlers run late: {e}"
        ));
        Commands::new()
    }));
    if !(commands.is_empty() || commands.contains_key("acl")) {
        log::warning("the server does not know the command ACL by this name: what needs rights of users is refused");
    }
    *COMMANDS.write() = Some(commands.clone());
    commands
}

/// The list has the names that commands were made with; which of them clients can use tells only the second question.
fn ask(guard: &ServerLock) -> Result<Commands, CallError> {
    let list = call(guard, &["COMMAND"], Flags::default())?;
    let mut names: BTreeSet<String> = list.array().into_iter().flatten().filter_map(name_in).collect();
    names.extend(RENAMED.lock().iter().cloned());
    let question: Vec<&str> = ["COMMAND", "INFO"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    let told = call(guard, &question, Flags::default())?;
    let told = told.array().unwrap_or_default().iter().map(Facts::read);
    let known = names
        .iter()
        .zip(told)
        .filter_map(|(name, facts)| Some((name.clone(), facts?)));
    Ok(known.collect())
}

/// The command of this name in lower case. Asks the server anew if it is not known and this thread may.
pub fn find(name: &str) -> Option<Facts> {
    if let Some(facts) = all().get(name) {
        return Some(facts.clone());
    }
    // Subcommands are none.
    if !lock::is_held() || name.contains('|') {
        return None;
    }
    let guard = lock::lock();
    // Most that are not known are not there.
    let told = call(&guard, &["COMMAND", "INFO", name], Flags::default()).ok()?;
    let facts = Facts::read(told.array()?.first()?)?;
    RENAMED.lock().insert(name.to_owned());
    refresh(&guard);
    Some(facts)
}

/// A function's command neither writes nor has anybody write.
pub fn only_reads(args: &[Vec<u8>]) -> bool {
    let Some(name) = args.first().and_then(|name| std::str::from_utf8(name).ok()) else {
        return false;
    };
    let name = name.to_ascii_lowercase();
    // Our own commands run functions, and so may whatever can be taken over.
    if filter::is_installed() || name.starts_with("rg.") {
        return false;
    }
    find(&name).is_some_and(|facts| !facts.writes && !facts.may_replicate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_keys(first: i64, last: i64, step: i64) -> Facts {
        Facts {
            arity: -1,
            first,
            last,
            step,
            writes: true,
            reads: false,
            grows: false,
            blocks: false,
            movable: false,
            no_script: false,
            may_replicate: false,
            asking: false,
            of_module: false,
        }
    }

    #[test]
    fn places_of_keys() {
        for (facts, count, places) in [
            (with_keys(1, 1, 1), 3, vec![1]),
            (with_keys(1, -1, 2), 5, vec![1, 3]),
            (with_keys(1, -1, 1), 4, vec![1, 2, 3]),
            (with_keys(1, -2, 1), 4, vec![1, 2]),
            (with_keys(0, 0, 0), 4, vec![]),
            // Fewer arguments than the command wants.
            (with_keys(1, 1, 1), 1, vec![]),
            (with_keys(2, 2, 1), 2, vec![]),
            (with_keys(1, -1, 0), 2, vec![1]),
        ] {
            assert_eq!(facts.keys(count).collect::<Vec<_>>(), places, "{facts:?}");
        }
    }

    #[test]
    fn numbers_of_arguments() {
        let facts = |arity| Facts {
            arity,
            ..with_keys(1, 1, 1)
        };
        assert!(facts(2).takes(2) && !facts(2).takes(3) && !facts(2).takes(1));
        assert!(facts(-3).takes(3) && facts(-3).takes(9) && !facts(-3).takes(2));
    }
}
