//! From the active registrations to the commands that are to be taken over. Built anew with each change, never changed.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use hashbrown::HashMap;
use oxigears_coordinator::registry::{EventSource, RegisterMode};

use super::{
    facts::{self, Commands, Facts},
    keyset::{KeySet, matches},
    raised::may_raise,
};
use crate::{
    redis::{front::Kind, lock::ServerLock},
    registrations::{Active, keys::queue},
};

/// Commands that change who may do what: the look at rights must be made again.
const OF_RIGHTS: [&str; 2] = ["acl", "config"];
/// Longer names are looked up in another way; no command of the server has one.
pub const NAME_BYTES: usize = 64;

/// All commands that are looked at, by their names in lower case.
#[derive(Default)]
pub struct Table {
    /// Of up to eight bytes, which most names have.
    short: HashMap<u64, Arc<Entry>>,
    long: HashMap<Box<[u8]>, Arc<Entry>>,
    /// Commands are taken over for nothing else than that writers wait while the queue is full.
    only_queued: bool,
}

/// A command that is looked at.
#[derive(Default)]
pub struct Entry {
    /// It may be taken over; absent for commands that are only watched.
    pub taken: Option<Taken>,
    /// It changes who may do what.
    pub of_rights: bool,
    /// It runs what was queued.
    pub is_exec: bool,
}

/// A command that may be taken over.
pub struct Taken {
    /// What the server says of it.
    pub facts: Facts,
    /// Hooks on it, newest first.
    pub hooks: Vec<Hook>,
    /// Registrations whose executions may answer for it, oldest first.
    pub links: Vec<Arc<Active>>,
    /// Some hook takes it whatever its keys are.
    any_key: bool,
    /// Keys of hooks.
    hook_keys: KeySet,
    /// Keys of links.
    link_keys: KeySet,
    /// Keys whose events are handled within the command.
    sync_keys: Option<Arc<KeySet>>,
    /// Keys whose events are queued: writers wait while the queue is full.
    slow_keys: Option<Arc<KeySet>>,
}

/// A hook.
#[derive(Clone)]
pub struct Hook {
    /// The registration.
    pub active: Arc<Active>,
    /// Only if some key begins so.
    pub prefix: Option<Bytes>,
}

/// Why a command is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// For hooks: they count on replicas too, and are not passed by.
    pub hook: bool,
    /// For links: they count on replicas too.
    pub link: bool,
    /// Handlers of mode `sync` only.
    pub sync: bool,
    /// Its events are queued.
    pub slow: bool,
}

impl Table {
    /// The table for these registrations.
    pub fn build(guard: &ServerLock, registrations: &[Arc<Active>]) -> Table {
        let mut needs = Needs::default();
        registrations.iter().for_each(|active| needs.add(active));
        if needs.is_empty() {
            return Table::default();
        }
        let mut commands = facts::all();
        if needs.names().any(|name| !commands.contains_key(name)) {
            commands = facts::refresh(guard);
        }
        needs.table(&commands)
    }

    /// Nothing is looked at.
    pub fn is_empty(&self) -> bool {
        self.short.is_empty() && self.long.is_empty()
    }

    /// Somebody has to look at commands now.
    pub fn is_wanted(&self) -> bool {
        !self.only_queued || queue::is_long()
    }

    /// The command of this name, in any case.
    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        if name.len() <= 8 {
            return self.short.get(&packed(name)?);
        }
        let mut lower = [0; NAME_BYTES];
        let lower = lower.get_mut(..name.len())?;
        for (to, from) in lower.iter_mut().zip(name) {
            *to = from.to_ascii_lowercase();
        }
        self.long.get(&*lower)
    }
}

/// A name of up to eight bytes, in lower case, as a number. `None` for others, and for one that ends with a zero, which
/// would look like a shorter one.
#[inline]
fn packed(name: &[u8]) -> Option<u64> {
    if name.len() > 8 || name.last() == Some(&0) {
        return None;
    }
    let number = name.iter().rev().fold(0, |number: u64, byte| {
        number << 8 | u64::from(byte.to_ascii_lowercase())
    });
    Some(number)
}

impl Taken {
    /// The internal command for it.
    pub fn kind(&self) -> Kind {
        match (self.facts.writes, self.facts.grows) {
            (false, _) if self.facts.may_replicate => Kind::Effect,
            (false, _) => Kind::Read,
            (true, false) => Kind::Write,
            (true, true) => Kind::Grow,
        }
    }

    /// Whether a command with these arguments (`arg(0)` is the name) is to be taken over.
    #[inline]
    pub fn judge<'a>(&self, count: usize, arg: impl Fn(usize) -> &'a [u8]) -> Match {
        let mut found = Match {
            hook: self.any_key,
            link: false,
            sync: false,
            slow: false,
        };
        // The server has the right error for it; only a hook without a prefix sees it.
        if !self.facts.takes(count) {
            return found;
        }
        if let Some(keys) = &self.sync_keys {
            found.sync = self.facts.movable || self.facts.keys(count).any(|at| keys.has(arg(at)));
        }
        if queue::is_full()
            && let Some(keys) = &self.slow_keys
        {
            found.slow = self.facts.movable || self.facts.keys(count).any(|at| keys.has(arg(at)));
        }
        if !found.hook && !self.hook_keys.is_empty() {
            found.hook = self.facts.keys(count).any(|at| self.hook_keys.has(arg(at)));
        }
        if !self.link_keys.is_empty() {
            found.link = self.facts.keys(count).any(|at| self.link_keys.has(arg(at)));
        }
        found
    }
}

impl Hook {
    /// A command with these arguments is for this hook.
    pub fn takes(&self, facts: &Facts, args: &[Vec<u8>]) -> bool {
        match &self.prefix {
            None => true,
            Some(prefix) => facts
                .keys(args.len())
                .any(|at| args.get(at).is_some_and(|key| key.starts_with(prefix))),
        }
    }
}

/// A registration with `commands=` is for a command with these arguments.
pub fn is_linked<'a>(active: &Active, facts: &Facts, count: usize, arg: impl Fn(usize) -> &'a [u8]) -> bool {
    match &active.registration.source {
        EventSource::Keys { prefix, .. } => facts.keys(count).any(|at| matches(prefix, arg(at))),
        _ => false,
    }
}

/// What the registrations need, before the server's commands are looked at.
#[derive(Default)]
struct Needs {
    hooks: HashMap<String, Vec<Hook>>,
    links: HashMap<String, Vec<Arc<Active>>>,
    /// Keys whose writes matter, whatever they raise.
    written: KeySet,
    /// Keys whose writes matter if they can raise one of these events, which are in lower case and in order.
    raising: BTreeMap<Vec<String>, KeySet>,
    /// Keys whose writes fire in the background.
    queued: KeySet,
    /// Keys whose reads matter too: they may be missed.
    missed: KeySet,
    /// Streams that are added to.
    streams: KeySet,
}

impl Needs {
    fn add(&mut self, active: &Arc<Active>) {
        let is_sync = active.registration.mode == RegisterMode::Sync;
        match &active.registration.source {
            EventSource::Hook {
                command, key_prefix, ..
            } => {
                let hook = Hook {
                    active: active.clone(),
                    prefix: key_prefix.clone(),
                };
                // In the order in which they were made: the newest one comes first.
                self.hooks.entry(command.clone()).or_default().insert(0, hook);
            }
            EventSource::Keys {
                commands: Some(commands),
                ..
            } => {
                for command in commands {
                    self.links.entry(command.clone()).or_default().push(active.clone());
                }
            }
            EventSource::Keys {
                prefix, event_types, ..
            } if is_sync => {
                let misses = |types: &Vec<String>| types.iter().any(|t| t.eq_ignore_ascii_case("keymiss"));
                if event_types.as_ref().is_none_or(misses) {
                    self.missed.add_pattern(prefix);
                }
                let written = match event_types {
                    None => &mut self.written,
                    Some(types) => self.raising.entry(in_order(types)).or_default(),
                };
                written.add_pattern(prefix);
            }
            EventSource::Keys { prefix, .. } => self.queued.add_pattern(prefix),
            EventSource::Stream { prefix, .. } if is_sync => self.streams.add_pattern(prefix),
            _ => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.is_only_queued()
    }

    fn is_only_queued(&self) -> bool {
        let keys = [&self.written, &self.missed, &self.streams];
        let raising = self.raising.values();
        self.hooks.is_empty() && self.links.is_empty() && keys.into_iter().chain(raising).all(KeySet::is_empty)
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.hooks.keys().chain(self.links.keys())
    }

    fn table(mut self, commands: &Commands) -> Table {
        let only_queued = self.is_only_queued();
        let (missed, queued) = (Arc::new(self.missed), Arc::new(self.queued));
        let mut written = Written {
            all: self.written,
            raising: self.raising,
            streams: self.streams,
            made: HashMap::new(),
        };
        let mut by_name: HashMap<Box<[u8]>, Arc<Entry>> = HashMap::new();
        // No internal command works on slots that are being imported: MIGRATE would fail.
        for (name, facts) in commands.iter().filter(|(_, facts)| !facts.asking) {
            let own_hooks = self.hooks.remove(name).unwrap_or_default();
            let links = self.links.remove(name).unwrap_or_default();
            let sync_keys = match name.as_str() {
                // A handler within these would run before what they wait for, or not be seen by it.
                _ if facts.blocks || facts.no_script || (facts.first <= 0 && !facts.movable) => None,
                _ if facts.writes => Some(written.by(name)),
                _ => Some(missed.clone()),
            };
            let sync_keys = sync_keys.filter(|keys| !keys.is_empty());
            let queues = facts.writes && !(facts.blocks || facts.no_script || queued.is_empty());
            let slow_keys = queues.then(|| queued.clone());
            let is_plain = own_hooks.is_empty() && links.is_empty() && sync_keys.is_none() && slow_keys.is_none();
            if name.len() <= NAME_BYTES && !is_plain {
                let taken = Taken {
                    sync_keys,
                    slow_keys,
                    ..Taken::new(facts.clone(), own_hooks, links)
                };
                let entry = Entry {
                    taken: Some(taken),
                    ..Entry::default()
                };
                by_name.insert(name.as_bytes().into(), Arc::new(entry));
            }
        }
        if by_name.is_empty() {
            return Table::default();
        }
        for (name, is_exec) in OF_RIGHTS.map(|name| (name, false)).into_iter().chain([("exec", true)]) {
            let taken = by_name
                .remove(name.as_bytes())
                .and_then(Arc::into_inner)
                .and_then(|entry| entry.taken);
            let entry = Entry {
                taken,
                of_rights: !is_exec,
                is_exec,
            };
            by_name.insert(name.as_bytes().into(), Arc::new(entry));
        }
        let mut table = Table {
            only_queued,
            ..Table::default()
        };
        for (name, entry) in by_name {
            match packed(&name) {
                Some(packed) => drop(table.short.insert(packed, entry)),
                None => drop(table.long.insert(name, entry)),
            }
        }
        table
    }
}

fn in_order(types: &[String]) -> Vec<String> {
    let mut types: Vec<String> = types.iter().map(|name| name.to_ascii_lowercase()).collect();
    types.sort_unstable();
    types.dedup();
    types
}

/// Keys whose writes matter, for each command: the same set for all commands that differ in nothing.
struct Written {
    all: KeySet,
    raising: BTreeMap<Vec<String>, KeySet>,
    streams: KeySet,
    made: HashMap<Vec<bool>, Arc<KeySet>>,
}

impl Written {
    fn by(&mut self, command: &str) -> Arc<KeySet> {
        let mut which: Vec<bool> = self.raising.keys().map(|events| may_raise(command, events)).collect();
        which.push(command == "xadd");
        let sets = self.raising.values().chain([&self.streams]);
        let make = || {
            let mut keys = self.all.clone();
            let wanted = sets.zip(&which).filter(|(_, wanted)| **wanted);
            wanted.for_each(|(set, _)| set.add_to(&mut keys));
            Arc::new(keys)
        };
        if let Some(known) = self.made.get(&which) {
            return known.clone();
        }
        let keys = make();
        self.made.insert(which, keys.clone());
        keys
    }
}

impl Taken {
    fn new(facts: Facts, hooks: Vec<Hook>, links: Vec<Arc<Active>>) -> Taken {
        let (mut hook_keys, mut link_keys) = (KeySet::default(), KeySet::default());
        for prefix in hooks.iter().filter_map(|hook| hook.prefix.as_ref()) {
            hook_keys.add_beginning(prefix.clone());
        }
        for active in &links {
            if let EventSource::Keys { prefix, .. } = &active.registration.source {
                link_keys.add_pattern(prefix);
            }
        }
        Taken {
            any_key: hooks.iter().any(|hook| hook.prefix.is_none()),
            facts,
            hooks,
            links,
            hook_keys,
            link_keys,
            sync_keys: None,
            slow_keys: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_not_confused() {
        let mut table = Table::default();
        for name in ["set", "setrange", "setrange2", "s"] {
            let entry = Arc::new(Entry {
                is_exec: name == "set",
                ..Entry::default()
            });
            match packed(name.as_bytes()) {
                Some(number) => table.short.insert(number, entry),
                None => table.long.insert(name.as_bytes().into(), entry),
            };
        }
        for name in ["set", "SET", "sEt"] {
            assert!(table.find(name.as_bytes()).is_some_and(|entry| entry.is_exec), "{name}");
        }
        for name in ["SETRANGE", "SetRange2", "S"] {
            assert!(
                table.find(name.as_bytes()).is_some_and(|entry| !entry.is_exec),
                "{name}"
            );
        }
        for name in [
            "",
            "se",
            "set\0",
            "setrange\0",
            "setrangf",
            "setrange22",
            "\u{e9}",
            &"x".repeat(100),
        ] {
            assert!(table.find(name.as_bytes()).is_none(), "{name}");
        }
    }
}
