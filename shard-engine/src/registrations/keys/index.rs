//! Which active KeysReader registrations an event concerns, in the order in which they were made.
//!
//! Asked for every event of the server: one that concerns nobody must cost next to nothing, and takes no memory.

use std::{
    cell::Ref,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use hashbrown::HashMap;
use oxigears_coordinator::{
    codec::TYPE_WORDS,
    registry::{EventSource, RegisterMode, RegistrationId},
};
use smallvec::SmallVec;

use super::{
    super::{active::Active, intercept::keyset::begins_with, padded::Padded},
    link,
};
use crate::redis::{guarded::Guarded, key::Kind, lock::ServerLock, notify};

/// One active registration. Every event reads it, so it shares no cache line with what others write.
#[repr(align(128))]
pub struct Entry {
    /// The registration.
    pub active: Arc<Active>,
    /// Records hold type and value.
    pub read_value: bool,
    /// Values of all types.
    pub all_types: bool,
    /// Number of the change that made it.
    sequence: u64,
    name: Name,
    /// Names of events; `None`: all ordinary ones.
    events: Option<Vec<Box<[u8]>>>,
    /// A bit for each type; `None`: all.
    types: Option<u16>,
    /// Commands that must have caused the event.
    commands: Option<Vec<String>>,
}

/// Which keys.
enum Name {
    Exact(Bytes),
    Prefix(Bytes),
}

impl Entry {
    fn new(active: &Arc<Active>) -> Option<Entry> {
        let registration = &active.registration;
        let EventSource::Keys {
            prefix,
            event_types,
            key_types,
            read_value,
            all_types,
            commands,
        } = &registration.source
        else {
            return None;
        };
        // It matches nothing, the key with the empty name neither.
        if prefix.is_empty() {
            return None;
        }
        let name = match prefix.strip_suffix(b"*") {
            Some(start) => Name::Prefix(prefix.slice_ref(start)),
            None => Name::Exact(prefix.clone()),
        };
        let events = event_types.as_ref().map(|names| {
            let names = names.iter().map(|name| name.to_ascii_lowercase().into_bytes().into());
            names.collect()
        });
        Some(Entry {
            active: active.clone(),
            read_value: *read_value,
            all_types: *all_types,
            sequence: registration.sequence,
            name,
            events,
            types: key_types.as_ref().map(|words| mask(words)),
            commands: commands.clone(),
        })
    }

    fn is_for(&self, key: &[u8]) -> bool {
        match &self.name {
            Name::Exact(name) => **name == *key,
            Name::Prefix(start) => begins_with(key, start),
        }
    }

    fn wants(&self, event: &[u8], beside: bool) -> bool {
        match &self.events {
            None => !beside,
            Some(names) => names.iter().any(|name| name.eq_ignore_ascii_case(event)),
        }
    }

    /// The command at hand and the type of the key are those that it wants.
    pub fn fits(&self, kind: impl FnOnce() -> Kind) -> bool {
        let linked = self.commands.as_ref().is_none_or(|commands| {
            let found = link::at_hand(|linked| commands.iter().any(|name| **name == *linked.command));
            found == Some(true)
        });
        linked && self.types.is_none_or(|types| types & bit(kind()) != 0)
    }

    /// Its mode.
    pub fn mode(&self) -> RegisterMode {
        self.active.registration.mode
    }

    /// It fires only with commands that clients' replies are tied to.
    pub fn is_linked(&self) -> bool {
        self.commands.is_some()
    }
}

fn bit(kind: Kind) -> u16 {
    let word = match kind {
        Kind::Empty => "empty",
        Kind::String => "string",
        Kind::List => "list",
        Kind::Hash => "hash",
        Kind::Set => "set",
        Kind::SortedSet => "zset",
        Kind::Module => "module",
        Kind::Stream => "stream",
        Kind::Unknown => "unknown",
    };
    mask(&[word])
}

fn mask<S: AsRef<str>>(words: &[S]) -> u16 {
    let bits = words.iter().filter_map(|word| {
        let at = TYPE_WORDS.iter().position(|known| *known == word.as_ref())?;
        Some(1 << at)
    });
    bits.fold(0, |all, bit: u16| all | bit)
}

/// Entries by the start of their names. Each list is in order.
#[derive(Default)]
pub struct Index {
    exact: HashMap<Bytes, Vec<Arc<Entry>>>,
    /// Prefixes by their first byte.
    prefixes: HashMap<u8, Vec<Arc<Entry>>>,
    /// The empty prefix.
    all: Vec<Arc<Entry>>,
    by_id: HashMap<RegistrationId, Arc<Entry>>,
    beside: usize,
}

static INDEX: LazyLock<Guarded<Index>> = LazyLock::new(|| Guarded::new(Index::default()));

/// With room for a few: every event reads it, so it is not to share a cache line with what others write.
fn list() -> Vec<Arc<Entry>> {
    Vec::with_capacity(2 * size_of::<Padded<u8>>() / size_of::<Arc<Entry>>())
}

/// What has to be subscribed to.
pub struct Wanted {
    /// There are registrations.
    pub any: bool,
    /// Some name events that come beside others.
    pub beside: bool,
}

impl Index {
    fn lists(&self, key: &[u8]) -> [&[Arc<Entry>]; 3] {
        let exact = match self.exact.is_empty() {
            true => None,
            false => self.exact.get(key),
        };
        let prefixes = key.first().and_then(|first| self.prefixes.get(first));
        [
            exact.map_or(&[], Vec::as_slice),
            prefixes.map_or(&[], Vec::as_slice),
            &self.all,
        ]
    }

    fn list_of(&mut self, name: &Name) -> &mut Vec<Arc<Entry>> {
        match name {
            Name::Exact(name) => self.exact.entry(name.clone()).or_default(),
            Name::Prefix(start) => match start.first() {
                Some(first) => self.prefixes.entry(*first).or_default(),
                None => &mut self.all,
            },
        }
    }

    fn wants_beside(entry: &Entry) -> bool {
        let names = entry.events.iter().flatten();
        names.into_iter().any(|name| notify::BESIDE.contains(&&**name))
    }

    /// Calls `f` for each registration that wants this event of this key, in order. The command at hand and the type of the
    /// key are not looked at.
    #[inline]
    pub fn each<'a>(&'a self, event: &[u8], key: &[u8], beside: bool, mut f: impl FnMut(&'a Arc<Entry>)) {
        let concerns = |entry: &&'a Arc<Entry>| entry.is_for(key) && entry.wants(event, beside);
        let [exact, prefixes, all] = self.lists(key);
        // Mostly there is one list, and nothing to be sorted.
        match (exact.is_empty(), prefixes.is_empty(), all.is_empty()) {
            (true, true, _) => all.iter().filter(concerns).for_each(f),
            (true, _, true) => prefixes.iter().filter(concerns).for_each(f),
            (_, true, true) => exact.iter().filter(concerns).for_each(f),
            _ => {
                let mut found: SmallVec<[_; 4]> =
                    [exact, prefixes, all].into_iter().flatten().filter(concerns).collect();
                found.sort_by_key(|entry| entry.sequence);
                found.into_iter().for_each(&mut f);
            }
        }
    }

    fn remove(&mut self, active: &Active) {
        let Some(entry) = self.by_id.remove(&active.registration.id) else {
            return;
        };
        let list = self.list_of(&entry.name);
        if let Some(at) = list.iter().position(|other| Arc::ptr_eq(other, &entry)) {
            list.remove(at);
        }
        let is_empty = list.is_empty();
        if let (true, Name::Exact(name)) = (is_empty, &entry.name) {
            self.exact.remove(name);
        }
        self.beside -= usize::from(Index::wants_beside(&entry));
    }
}

/// A registration is active. Of other readers it takes no notice.
pub fn put(guard: &ServerLock, active: &Arc<Active>) {
    let Some(entry) = Entry::new(active) else { return };
    let (mut index, entry) = (INDEX.borrow_mut(guard), Arc::new(entry));
    // The same under another state.
    index.remove(active);
    index.by_id.insert(active.registration.id.clone(), entry.clone());
    index.beside += usize::from(Index::wants_beside(&entry));
    let list = index.list_of(&entry.name);
    if list.capacity() == 0 {
        *list = self::list();
    }
    let at = list.partition_point(|other| other.sequence <= entry.sequence);
    list.insert(at, entry);
}

/// It is gone.
pub fn remove(guard: &ServerLock, active: &Active) {
    if matches!(active.registration.source, EventSource::Keys { .. }) {
        INDEX.borrow_mut(guard).remove(active);
    }
}

/// What has to be subscribed to.
pub fn wanted(guard: &ServerLock) -> Wanted {
    let index = INDEX.borrow(guard);
    Wanted {
        any: !index.by_id.is_empty(),
        beside: index.beside > 0,
    }
}

/// To find some; nothing becomes active meanwhile.
pub fn look(guard: &ServerLock) -> Ref<'_, Index> {
    INDEX.borrow(guard)
}
