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
    short: Short,
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
    first: First,
    watched: Watched,
}

/// A first look at a command: which it can not be for. Most commands end there.
#[derive(Default, Clone, Copy)]
struct First {
    /// A bit for each first byte of keys for which it may be.
    bytes: [u64; 4],
    /// Which keys are looked at.
    keys: Keys,
}

/// Keys of a command at which a first look goes.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// None: it may be for some registration whatever its keys are.
    #[default]
    Any,
    /// None: it is for no registration.
    Never,
    /// It has one key, its first argument.
    First,
    /// All that it has.
    Some,
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
    /// Too many events wait, and it would raise more.
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
        let mut short = Vec::new();
        for (name, entry) in by_name {
            match packed(&name) {
                Some(packed) => short.push((packed, entry)),
                None => drop(table.long.insert(name, entry)),
            }
        }
        table.short = Short::new(short);
        table
    }

    /// Nothing is looked at.
    pub fn is_empty(&self) -> bool {
        self.short.places.is_empty() && self.long.is_empty()
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

    /// For `find_at_once`.
    pub fn places(&self) -> Arc<[Place]> {
        self.short.places.clone()
    }

    /// The command of this name, in any case.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        let Some(packed) = packed(name) else {
            return self.find_long(name);
        };
        let find = |name| find(&self.short.places, name);
        let place = find(packed).or_else(|| find(lower(packed)));
        place.and_then(|place| place.entry.as_ref())
    }

    fn find_long(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        let mut lower = [0; NAME_BYTES];
        let lower = lower.get_mut(..name.len())?;
        for (to, from) in lower.iter_mut().zip(name) {
            *to = from.to_ascii_lowercase();
        }
        self.long.get(&*lower)
    }
}

/// Entries by packed names, in lower and in upper case, as clients write them. It is half empty, so a look-up ends at once
/// as a rule; `HashMap` takes thrice the time.
#[derive(Default)]
struct Short {
    /// Their number is a power of two.
    places: Arc<[Place]>,
}

/// Where an entry is found: one line of the processor's cache has all that the first look needs.
#[derive(Default)]
#[repr(align(64))]
pub struct Place {
    /// Zero, which is no name, if it is free.
    name: u64,
    first: First,
    entry: Option<Arc<Entry>>,
}

impl Short {
    fn new(entries: Vec<(u64, Arc<Entry>)>) -> Short {
        let mut places = Vec::new();
        places.resize_with((4 * entries.len()).next_power_of_two(), Place::default);
        for (name, entry) in entries {
            for name in [name, upper(name)] {
                let mut at = home(&places, name);
                while ![0, name].contains(&places[at].name) {
                    at = (at + 1) % places.len();
                }
                places[at] = Place {
                    name,
                    first: entry.first,
                    entry: Some(entry.clone()),
                };
            }
        }
        Short { places: places.into() }
    }
}

/// Where a name is looked for first: multiplicative hashing (Knuth, The Art of Computer Programming, 6.4).
#[inline]
fn home(places: &[Place], name: u64) -> usize {
    (name.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & places.len().wrapping_sub(1)
}

#[inline]
fn find(places: &[Place], name: u64) -> Option<&Place> {
    let mut at = home(places, name);
    loop {
        let place = places.get(at)?;
        if place.name == name {
            return Some(place);
        }
        if place.name == 0 {
            return None;
        }
        at = (at + 1) & (places.len() - 1);
    }
}

/// The command of this name among a table's places, if the name is as most are: short, and all in one case.
#[inline]
pub fn find_at_once<'a>(places: &'a [Place], name: &[u8]) -> Option<&'a Place> {
    find(places, packed(name)?)
}

impl Place {
    /// What is here.
    pub fn entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref()
    }

    /// As `Entry::is_for_nobody`.
    #[inline]
    pub fn is_for_nobody(&self, count: impl Fn() -> usize, first_byte: impl Fn(usize) -> u8) -> bool {
        // Most commands, without a table to jump by, which would be one more look at memory.
        if self.first.keys == Keys::First {
            return self.first.is_out(first_byte(1));
        }
        let of_entry = |entry: &Arc<Entry>| entry.is_for_nobody(count(), first_byte);
        self.entry.as_ref().is_some_and(of_entry)
    }
}

/// A name of up to eight bytes as a number. `None` for others, and for one that ends with a zero, which would look like a
/// shorter one.
#[inline]
fn packed(name: &[u8]) -> Option<u64> {
    let byte = |at: usize| u64::from(name[at]) << (8 * at);
    let four = |at: usize| {
        let four = name.get(at..at + 4).and_then(|four| four.try_into().ok());
        four.map(|four| u64::from(u32::from_le_bytes(four)) << (8 * at))
    };
    // Where the parts overlap they are equal.
    let number = match name.len() {
        3 => byte(0) | byte(1) | byte(2),
        length @ 4..=8 => four(0)? | four(length - 4)?,
        length @ 1..3 => byte(0) | byte(length - 1),
        _ => return None,
    };
    (name.last() != Some(&0)).then_some(number)
}

/// Eight bytes, each in lower case if it is an ASCII letter.
fn lower(bytes: u64) -> u64 {
    u64::from_le_bytes(bytes.to_le_bytes().map(|byte| byte.to_ascii_lowercase()))
}

/// The same in upper case.
fn upper(bytes: u64) -> u64 {
    u64::from_le_bytes(bytes.to_le_bytes().map(|byte| byte.to_ascii_uppercase()))
}

impl Entry {
    /// Hooks may take it over.
    pub fn has_hooks(&self) -> bool {
        self.taken.as_ref().is_some_and(|taken| !taken.hooks.is_empty())
    }

    /// `watched_keys`: keys whose events are wanted, of which the server does not tell yet.
    pub(super) fn new(taken: Taken, watched: Watched, watched_keys: &KeySet) -> Entry {
        let facts = &taken.facts;
        let of_events = [&taken.sync_keys, &taken.slow_keys].map(Option::as_deref);
        let any = watched == Watched::Any || taken.any_key || (facts.movable && of_events.iter().any(Option::is_some));
        let mut first = First {
            bytes: [0; 4],
            keys: match (any, facts.first == 1 && facts.last == 1) {
                (true, _) => Keys::Any,
                (false, true) => Keys::First,
                (false, false) => Keys::Some,
            },
        };
        let watched_keys = (watched == Watched::ByKey).then_some(watched_keys);
        let sets = [Some(&taken.hook_keys), Some(&taken.link_keys), watched_keys];
        for set in sets.into_iter().chain(of_events).flatten() {
            match set.first_bytes() {
                None => first.keys = Keys::Any,
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

    /// A command that the server knows and no registration is for: so it is not looked up twice.
    pub(super) fn of_nobody() -> Entry {
        Entry {
            first: First {
                keys: Keys::Never,
                ..First::default()
            },
            ..Entry::default()
        }
    }

    /// Whatever its keys are: it changes rights, or it may run what does.
    pub(super) fn is_always_seen(&mut self, is_exec: bool) {
        (self.of_rights, self.is_exec) = (!is_exec, is_exec);
        self.first.keys = Keys::Any;
    }

    /// A command with these arguments is for no registration, and there is no reason to look further. `first_byte` of what
    /// is empty is zero.
    pub fn is_for_nobody(&self, count: usize, first_byte: impl Fn(usize) -> u8) -> bool {
        match self.first.keys {
            Keys::Never => true,
            Keys::Any => false,
            Keys::First | Keys::Some => self.is_out_of_all(count, first_byte),
        }
    }

    #[inline(never)]
    fn is_out_of_all(&self, count: usize, first_byte: impl Fn(usize) -> u8) -> bool {
        let taken = self.taken.as_ref();
        taken.is_some_and(|taken| taken.facts.keys(count).all(|at| self.first.is_out(first_byte(at))))
    }
}

impl First {
    /// It is for no key that begins so.
    #[inline]
    fn is_out(&self, byte: u8) -> bool {
        self.bytes[usize::from(byte / 64)] & 1 << (byte % 64) == 0
    }
}

impl Taken {
    /// The internal command for it.
    pub fn kind(&self) -> Kind {
        let Facts {
            writes,
            reads,
            may_replicate,
            grows,
            ..
        } = self.facts;
        match (writes, reads) {
            (true, _) if grows => Kind::Grow,
            (true, _) => Kind::Write,
            (false, true) if may_replicate => Kind::Effect,
            (false, true) => Kind::Read,
            (false, false) if may_replicate => Kind::PlainEffect,
            (false, false) => Kind::Plain,
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
            found.slow = found.sync && queue::is_full_of_postponed();
        }
        if queue::is_full()
            && let Some(keys) = &self.slow_keys
        {
            found.slow |= self.facts.movable || self.facts.keys(count).any(|at| keys.has(arg(at)));
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
        let names = [
            "set",
            "setrange",
            "setrange2",
            "s",
            "eval",
            "zscore",
            "hsetnx",
            "pexpire",
            "@",
            "{",
            "z",
        ];
        let by_name = names.map(|name| {
            let entry = Entry {
                is_exec: name == "set",
                ..Entry::default()
            };
            (name.as_bytes().into(), Arc::new(entry))
        });
        let table = Table::new(by_name.into_iter().collect(), false, None);
        assert!(names.iter().all(|name| table.find(name.as_bytes()).is_some()));
        assert!(
            names[..8]
                .iter()
                .all(|name| table.find(name.to_uppercase().as_bytes()).is_some())
        );
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
            "`",
            "[",
            "Zz",
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
