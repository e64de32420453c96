//! The commands that are looked at, to be looked up. Built anew with each change (`needs`), never changed.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use oxigears_coordinator::registry::EventSource;

use super::{
    facts::Facts,
    keyset::{KeySet, matches},
};
use crate::{
    redis::{
        front::Kind,
        notify::{self, Classes},
    },
    registrations::{Active, keys::queue},
};

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
    /// Writes to these keys may raise events of which the server does not tell yet.
    watched: Option<Arc<KeySet>>,
}

/// A command that is looked at.
#[derive(Default)]
pub struct Entry {
    /// It may be taken over; absent if it never is.
    pub taken: Option<Taken>,
    /// It changes who may do what.
    pub of_rights: bool,
    /// It runs what was queued.
    pub is_exec: bool,
    /// Most commands end here.
    first: First,
    watched: Watched,
}

/// A first look at a command: which it can not be for.
#[derive(Default)]
struct First {
    /// It may be for any key.
    any: bool,
    /// A bit for each first byte of keys for which it may be.
    bytes: [u64; 4],
    /// It has one key, its first argument.
    is_simple: bool,
}

/// Whether a command may raise events of which the server does not tell yet.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// It raises none.
    #[default]
    No,
    /// If one of its keys is meant.
    ByKey,
    /// It may.
    Any,
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
    /// A table of these commands, by their names in lower case.
    pub(super) fn new(
        by_name: HashMap<Box<[u8]>, Arc<Entry>>,
        only_queued: bool,
        watched: Option<Arc<KeySet>>,
    ) -> Table {
        let mut table = Table {
            only_queued,
            watched,
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

    /// Nothing is looked at.
    pub fn is_empty(&self) -> bool {
        self.short.is_empty() && self.long.is_empty()
    }

    /// Somebody has to look at commands now.
    pub fn is_wanted(&self) -> bool {
        !self.only_queued || queue::is_long() || self.is_watching()
    }

    /// The server does not tell of all events yet: who sees a command that may raise others has it tell of them.
    #[inline]
    fn is_watching(&self) -> bool {
        self.watched.is_some() && !notify::is_told(Classes::Values)
    }

    /// This command, with the entry that was found for it, may raise events of which the server does not tell yet.
    #[inline]
    pub fn is_to_tell<'a>(&self, entry: Option<&Entry>, count: usize, arg: impl Fn(usize) -> &'a [u8]) -> bool {
        let Some(keys) = self.watched.as_ref().filter(|_| self.is_watching()) else {
            return false;
        };
        // Of a command that is not known (it has been renamed, or is new) nothing is known.
        let Some(entry) = entry else { return true };
        match (entry.watched, &entry.taken) {
            (Watched::No, _) => false,
            (Watched::ByKey, Some(taken)) => taken.facts.keys(count).any(|at| keys.has(arg(at))),
            _ => true,
        }
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

impl Entry {
    /// `watched_keys`: keys whose events are wanted, of which the server does not tell yet.
    pub(super) fn new(taken: Taken, watched: Watched, watched_keys: &KeySet) -> Entry {
        let facts = &taken.facts;
        let of_events = [&taken.sync_keys, &taken.slow_keys].map(Option::as_deref);
        let mut first = First {
            any: watched == Watched::Any || taken.any_key || (facts.movable && of_events.iter().any(Option::is_some)),
            bytes: [0; 4],
            is_simple: facts.first == 1 && facts.last == 1,
        };
        let watched_keys = (watched == Watched::ByKey).then_some(watched_keys);
        let sets = [Some(&taken.hook_keys), Some(&taken.link_keys), watched_keys];
        for set in sets.into_iter().chain(of_events).flatten() {
            match set.first_bytes() {
                None => first.any = true,
                Some(bytes) => first.bytes.iter_mut().zip(bytes).for_each(|(all, own)| *all |= own),
            }
        }
        Entry {
            taken: Some(taken),
            watched,
            first,
            ..Entry::default()
        }
    }

    /// A command with these arguments may be for some registration: there is reason to look further.
    #[inline]
    pub fn may_matter<'a>(&self, count: impl Fn() -> usize, arg: impl Fn(usize) -> &'a [u8]) -> bool {
        let is_in = |key: &[u8]| {
            key.first()
                .is_some_and(|byte| self.first.bytes[usize::from(byte / 64)] & 1 << (byte % 64) != 0)
        };
        match &self.taken {
            _ if self.first.any => true,
            Some(_) if self.first.is_simple => is_in(arg(1)),
            Some(taken) => taken.facts.keys(count()).any(|at| is_in(arg(at))),
            None => false,
        }
    }
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
        if !found.hook && !self.hook_keys.is_empty() {
            found.hook = self.facts.keys(count).any(|at| self.hook_keys.has(arg(at)));
        }
        // The server has the right error for it; only hooks see it.
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

impl Taken {
    /// `events`: keys whose events are handled within the command, and keys whose events are queued.
    pub(super) fn new(
        facts: Facts,
        (hooks, links): (Vec<Hook>, Vec<Arc<Active>>),
        [sync_keys, slow_keys]: [Option<Arc<KeySet>>; 2],
    ) -> Taken {
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
            sync_keys,
            slow_keys,
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
