//! What registrations need of the server's commands, and the table that follows from it.

use std::sync::Arc;

use hashbrown::HashMap;
use oxigears_coordinator::registry::{EventSource, RegisterMode};

use super::{
    facts::{self, Commands, Facts},
    keyset::KeySet,
    raised::{Events, of_command, of_events},
    table::{Entry, Hook, NAME_BYTES, Table, Taken, Watched},
};
use crate::{
    redis::{
        lock::ServerLock,
        notify::{self, Classes},
    },
    registrations::Active,
};

/// Commands that change who may do what: the look at rights must be made again.
const OF_RIGHTS: [&str; 2] = ["acl", "config"];

/// The table for these registrations.
pub fn table(guard: &ServerLock, registrations: &[Arc<Active>]) -> Table {
    let mut needs = Needs::default();
    registrations.iter().for_each(|active| needs.add(active));
    if notify::is_told(Classes::Values) {
        needs.watched = KeySet::default();
    }
    if needs.is_empty() {
        return Table::default();
    }
    let mut commands = facts::all();
    if needs.names().any(|name| !commands.contains_key(name)) {
        commands = facts::refresh(guard);
    }
    needs.table(&commands)
}

/// What the registrations need, before the server's commands are looked at.
#[derive(Default)]
struct Needs {
    /// In the order in which they were made.
    hooks: HashMap<String, Vec<Hook>>,
    links: HashMap<String, Vec<Arc<Active>>>,
    /// Keys whose writes matter, whatever they raise.
    written: KeySet,
    /// Keys whose writes matter if they can raise one of these events.
    raising: HashMap<Events, KeySet>,
    /// Keys whose writes fire in the background.
    queued: KeySet,
    /// Keys whose reads matter too: they may be missed.
    missed: KeySet,
    /// Streams that are added to.
    streams: KeySet,
    /// Keys whose events are wanted.
    watched: KeySet,
}

impl Needs {
    fn add(&mut self, active: &Arc<Active>) {
        let is_sync = active.registration.mode == RegisterMode::Sync;
        if let EventSource::Keys { prefix, .. } | EventSource::Stream { prefix, .. } = &active.registration.source {
            self.watched.add_pattern(prefix);
        }
        match &active.registration.source {
            EventSource::Hook {
                command, key_prefix, ..
            } => {
                let hook = Hook {
                    active: active.clone(),
                    prefix: key_prefix.clone(),
                };
                self.hooks.entry(command.clone()).or_default().push(hook);
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
                    Some(types) => self.raising.entry(of_events(types)).or_default(),
                };
                written.add_pattern(prefix);
            }
            EventSource::Keys { prefix, .. } => self.queued.add_pattern(prefix),
            EventSource::Stream { prefix, .. } if is_sync => self.streams.add_pattern(prefix),
            _ => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.watched.is_empty() && self.queued.is_empty() && self.is_only_queued()
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
        let watched = (!self.watched.is_empty()).then(|| Arc::new(self.watched));
        let watched_keys = watched.clone().unwrap_or_default();
        let mut written = Written {
            all: self.written,
            asked: self.raising.keys().fold(0, |all, events| all | events),
            raising: self.raising,
            streams: self.streams,
            made: HashMap::new(),
        };
        let mut by_name: HashMap<Box<[u8]>, Arc<Entry>> = HashMap::new();
        for (name, facts) in commands.iter().filter(|(name, _)| name.len() <= NAME_BYTES) {
            let watch = match watched.is_some() {
                true => watch(name, facts),
                false => Watched::No,
            };
            // No internal command works on slots that are being imported: MIGRATE would fail.
            if facts.asking {
                if watched.is_some() {
                    by_name.insert(name.as_bytes().into(), Arc::default());
                }
                continue;
            }
            let mut own_hooks = self.hooks.remove(name).unwrap_or_default();
            // The newest one comes first.
            own_hooks.reverse();
            let links = self.links.remove(name).unwrap_or_default();
            let sync_keys = match name.as_str() {
                // A handler within these would run before what they wait for, or not be seen by it.
                _ if may_wait(facts) || (facts.first <= 0 && !facts.movable) => None,
                _ if facts.writes => Some(written.by(name)),
                _ => Some(missed.clone()),
            };
            let sync_keys = sync_keys.filter(|keys| !keys.is_empty());
            let queues = facts.writes && !(may_wait(facts) || queued.is_empty());
            let slow_keys = queues.then(|| queued.clone());
            let is_plain = own_hooks.is_empty() && links.is_empty() && sync_keys.is_none() && slow_keys.is_none();
            if !is_plain || watched.is_some() {
                let taken = Taken::new(facts.clone(), (own_hooks, links), [sync_keys, slow_keys]);
                let entry = Entry::new(taken, watch, &watched_keys);
                by_name.insert(name.as_bytes().into(), Arc::new(entry));
            }
        }
        if by_name.is_empty() {
            return Table::default();
        }
        for (name, is_exec) in OF_RIGHTS.map(|name| (name, false)).into_iter().chain([("exec", true)]) {
            let entry = by_name.remove(name.as_bytes()).and_then(Arc::into_inner);
            let mut entry = entry.unwrap_or_default();
            entry.is_always_seen(is_exec);
            by_name.insert(name.as_bytes().into(), Arc::new(entry));
        }
        let nobody = Arc::new(Entry::of_nobody());
        for name in commands.keys().filter(|name| name.len() <= NAME_BYTES) {
            by_name.entry(name.as_bytes().into()).or_insert_with(|| nobody.clone());
        }
        Table::new(by_name, only_queued, watched)
    }
}

/// Within another command it could not do what it does for a client; so it is taken over only if somebody asks for that.
fn may_wait(facts: &Facts) -> bool {
    facts.blocks || facts.no_script || facts.of_module
}

/// Whether this command may raise events of `Classes::Values`.
fn watch(name: &str, facts: &Facts) -> Watched {
    match name {
        // What it runs may have been queued unseen. What other modules bring is told by nobody.
        "exec" | "module" => Watched::Any,
        "flushall" | "flushdb" | "swapdb" => Watched::No,
        // Commands of scripts are looked at one by one.
        _ if !facts.writes => Watched::No,
        _ if facts.movable || facts.first <= 0 => Watched::Any,
        _ => Watched::ByKey,
    }
}

/// Keys whose writes matter, for each command: the same set for all commands that differ in nothing.
struct Written {
    all: KeySet,
    raising: HashMap<Events, KeySet>,
    /// All events that somebody asks for.
    asked: Events,
    streams: KeySet,
    /// By events, and by whether it adds to streams.
    made: HashMap<(Events, bool), Arc<KeySet>>,
}

impl Written {
    fn by(&mut self, command: &str) -> Arc<KeySet> {
        let (own, adds) = (of_command(command) & self.asked, command == "xadd");
        let make = || {
            let mut keys = self.all.clone();
            let wanted = self.raising.iter().filter(|(events, _)| **events & own != 0);
            wanted.for_each(|(_, set)| set.add_to(&mut keys));
            if adds {
                self.streams.add_to(&mut keys);
            }
            Arc::new(keys)
        };
        self.made.entry((own, adds)).or_insert_with(make).clone()
    }
}
