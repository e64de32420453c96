//! One active stream registration on this shard: its rules, its status, and the flows of the streams that it has met.
//!
//! All of it is touched under the server lock only; the mutex inside costs little and makes that no matter of trust. No
//! command of the server is run while it is held, because commands raise events that come back here.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use hashbrown::HashMap;
use oxigears_coordinator::{
    engine::Execution,
    registry::{EventSource, FailurePolicy, RegisterMode, Registration, StreamOptions},
    topology::key_slot,
};
use parking_lot::Mutex;

use super::{
    super::{active::Core, intercept::keyset::begins_with, limits, remembered::Remembered},
    batch,
    flow::{Flow, Next, Rules},
};
use crate::{module::module, timers::clock::Alarm};

/// Name of a stream.
pub type Key = Arc<[u8]>;

/// The group that all registrations of the original shared. Groups of a registration's own begin with it, too.
const SHARED_GROUP: &str = "__gears_consumer_group__";

/// Name of the group of one registration of a session.
pub fn own_group(session: &str, which: &[u8]) -> Bytes {
    [SHARED_GROUP.as_bytes(), b":", session.as_bytes(), b":", which]
        .concat()
        .into()
}

fn is_own(group: &[u8]) -> bool {
    group
        .strip_prefix(SHARED_GROUP.as_bytes())
        .is_some_and(|rest| rest.starts_with(b":"))
}

/// No later registration can have this one's group: a shard has made up the name of its session, or running code has made it.
fn is_of_nobody_else(session: &str, id: &str, group: &[u8]) -> bool {
    let is_made_up = session.len() == MADE_UP_BYTES && session.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_made_up || *group == *own_group(session, id.as_bytes())
}

/// Length of the names of sessions that nobody has named, in hex.
const MADE_UP_BYTES: usize = 40;

/// What RG.DUMPREGISTRATIONS shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It runs.
    Ok,
    /// A batch failed, and the policy is to stop.
    Aborted,
    /// By the user, or by an error that says so, or because its functions can not be loaded here: its entries are to be
    /// found when they can.
    Paused,
    /// The registration is gone.
    Gone,
}

struct State {
    status: Status,
    flows: HashMap<Key, Known>,
    /// Flows that were made; tells a flow from one of the same stream that was forgotten.
    made: u64,
}

struct Known {
    number: u64,
    flow: Flow,
    /// How deep the events are that told of what waits.
    depth: u32,
    /// Others have removed entries, maybe some that were not read: the group may have passed more than was read.
    uncounted: bool,
    /// Its timer, to be kept until it is over.
    _alarm: Option<Arc<dyn Alarm>>,
}

/// See the module.
pub struct Consumer {
    /// The registration.
    pub registration: Arc<Registration>,
    /// Its functions and statistics.
    pub core: Arc<Core>,
    prefix: Bytes,
    /// What it asks for.
    pub rules: Rules,
    /// What happens after a failure.
    pub policy: FailurePolicy,
    /// Entries that all have passed are removed.
    pub trim: bool,
    /// The consumer group.
    pub group: Bytes,
    /// Nobody else uses the group.
    pub has_own_group: bool,
    /// What a batch writes and its acknowledgement are one transaction.
    pub atomic: bool,
    dead_letter: Option<Bytes>,
    state: Mutex<State>,
    /// Finished executions that clients may still look at, oldest first.
    kept: Mutex<Remembered>,
}

impl Consumer {
    /// For a registration that becomes active; `None` if it is none of streams.
    pub fn new(registration: &Arc<Registration>, core: &Arc<Core>) -> Option<Consumer> {
        let EventSource::Stream {
            prefix,
            batch,
            duration_ms,
            on_failed,
            retry_interval_s,
            trim,
            more,
        } = &registration.source
        else {
            return None;
        };
        let StreamOptions {
            group,
            exactly_once,
            max_retries,
            dead_letter,
        } = more.clone();
        let group = match group {
            Some(group) if group.is_empty() => Bytes::from_static(SHARED_GROUP.as_bytes()),
            Some(group) => group,
            // Whoever made it did not choose: its id is unique.
            None => format!("{SHARED_GROUP}:{}", registration.id).into(),
        };
        Some(Consumer {
            registration: registration.clone(),
            core: core.clone(),
            prefix: prefix.clone(),
            rules: Rules {
                batch: (*batch).max(1),
                duration_ms: *duration_ms,
                retry_ms: retry_interval_s.saturating_mul(1000),
                max_retries: dead_letter.as_ref().map(|_| max_retries),
            },
            policy: *on_failed,
            trim: *trim,
            has_own_group: is_own(&group),
            group,
            atomic: exactly_once,
            dead_letter,
            state: Mutex::new(State {
                status: match registration.paused || core.loaded.code.is_err() {
                    true => Status::Paused,
                    false => Status::Ok,
                },
                flows: HashMap::new(),
                made: 0,
            }),
            kept: Mutex::default(),
        })
    }

    /// Where a batch that fails is acknowledged all the same, what was not read of it would be lost.
    pub fn reads_on(&self) -> Option<fn(&str) -> bool> {
        let goes_on = self.policy == FailurePolicy::Continue && !self.atomic;
        goes_on.then_some(|error| !batch::pauses(error))
    }

    /// It runs with the server lock held.
    pub fn is_locked(&self) -> bool {
        self.registration.mode == RegisterMode::Sync || self.atomic
    }

    /// It runs in the event.
    pub fn is_sync(&self) -> bool {
        self.registration.mode == RegisterMode::Sync
    }

    /// The streams of this name are its. Those that take dead letters are only if it names them: what fails is not to fail
    /// again and again.
    pub fn wants(&self, key: &[u8], takes_dead_letters: bool) -> bool {
        self.may_know(key) && !(takes_dead_letters && self.exact_name().is_none())
    }

    /// It may have a group there.
    pub fn may_know(&self, key: &[u8]) -> bool {
        match self.prefix.strip_suffix(b"*") {
            Some(prefix) => begins_with(key, prefix),
            None => key == &*self.prefix,
        }
    }

    /// The one stream that it is about; `None` if there may be several.
    pub fn exact_name(&self) -> Option<&[u8]> {
        (!self.prefix.ends_with(b"*")).then_some(&*self.prefix)
    }

    /// Where entries of this stream go that failed too often. In a cluster that must be a key of the same shard, so the
    /// name gets the stream's slot unless it has it. The first opening brace of a key is where its slot is looked for.
    pub fn dead_letter(&self, key: &[u8]) -> Option<Vec<u8>> {
        let name = self.dead_letter.as_ref()?;
        if !module().is_cluster || key_slot(name) == key_slot(key) {
            return Some(name.to_vec());
        }
        let tag = [b"{", &*tag_of_its_slot(key), b"}"].concat();
        Some(match name.contains(&b'{') {
            true => [&tag, &**name].concat(),
            false => [&**name, &tag].concat(),
        })
    }

    /// It has a stream for entries that fail.
    pub fn has_dead_letters(&self) -> bool {
        self.dead_letter.is_some()
    }

    /// Failed entries of some stream go to the one of this name.
    pub fn buries_in(&self, key: &[u8]) -> bool {
        let Some(name) = &self.dead_letter else { return false };
        let tag = match name.contains(&b'{') {
            true => key.strip_suffix(&**name),
            false => key.strip_prefix(&**name),
        };
        tag.is_some_and(|tag| match tag {
            [] => true,
            [b'{', .., b'}'] => module().is_cluster,
            _ => false,
        })
    }

    /// What RG.DUMPREGISTRATIONS shows.
    pub fn status(&self) -> &'static str {
        let state = self.state.lock();
        match state.status {
            Status::Ok if state.flows.values().any(|known| known.flow.waits_for_retry()) => {
                "WAITING_FOR_RETRY_ON_FAILURE"
            }
            Status::Ok => "OK",
            Status::Aborted => "ABORTED",
            Status::Paused | Status::Gone => "PAUSED",
        }
    }

    /// It runs.
    pub fn is_ok(&self) -> bool {
        self.state.lock().status == Status::Ok
    }

    /// It stops, or goes on. A batch that is under way runs to its end; the rest is forgotten, to be found again.
    pub fn set_status(&self, status: Status) {
        let mut state = self.state.lock();
        state.status = status;
        state.flows.clear();
    }

    /// The user wants it to run now; false if it does. What waits for a retry is forgotten, to be found again at once.
    pub fn unpause(&self) -> bool {
        if self.core.loaded.code.is_err() {
            return false;
        }
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.status, Status::Ok);
        let known = state.flows.len();
        state.flows.retain(|_, known| !known.flow.waits_for_retry());
        before != Status::Ok || state.flows.len() < known
    }

    /// An event tells of an entry, and of the stream's length now.
    pub fn added(&self, key: &[u8], depth: u32, length: impl FnOnce() -> usize, now_ms: u64) -> Option<(Key, Next)> {
        let mut state = self.state.lock();
        if state.status != Status::Ok {
            return None;
        }
        if !state.flows.contains_key(key) {
            // The entry at hand is counted below.
            state.insert(key.into(), Flow::new(length() > 1));
        }
        let (key, known) = state.flows.get_key_value_mut(key)?;
        known.depth = known.depth.max(depth);
        Some((key.clone(), known.flow.added(&self.rules, now_ms)))
    }

    /// There is a stream of this name; `None` also if that is known.
    pub fn found(&self, key: &[u8], now_ms: u64) -> Option<(Key, Next)> {
        let mut state = self.state.lock();
        if state.status != Status::Ok || state.flows.contains_key(key) {
            return None;
        }
        state.insert(key.into(), Flow::new(true));
        let (key, known) = state.flows.get_key_value_mut(key)?;
        Some((key.clone(), known.flow.next(&self.rules, now_ms)))
    }

    /// The timer of the flow of this number; another one that it had is stale.
    pub fn keep_alarm(&self, key: &[u8], number: u64, alarm: Arc<dyn Alarm>) {
        let mut state = self.state.lock();
        if let Some(known) = state.flows.get_mut(key).filter(|known| known.number == number) {
            known._alarm = Some(alarm);
        }
    }

    /// Others have removed entries.
    pub fn entries_removed(&self, key: &[u8]) {
        if let Some(known) = self.state.lock().flows.get_mut(key) {
            known.uncounted = true;
        }
    }

    /// The group may have passed more entries than were read.
    pub fn is_uncounted(&self, key: &[u8], number: u64) -> bool {
        let state = self.state.lock();
        let known = state.flows.get(key).filter(|known| known.number == number);
        known.is_some_and(|known| known.uncounted)
    }

    /// It is known again how many it has passed.
    pub fn counted(&self, key: &[u8], number: u64) {
        let mut state = self.state.lock();
        if let Some(known) = state.flows.get_mut(key).filter(|known| known.number == number) {
            known.uncounted = false;
        }
    }

    /// It is not registered any more.
    pub fn is_gone(&self) -> bool {
        self.state.lock().status == Status::Gone
    }

    /// It goes on with the other one's groups.
    pub fn follows(&self, other: &Consumer) -> bool {
        self.group == other.group && self.prefix == other.prefix
    }

    /// When it is gone nobody can go on with its group.
    pub fn is_alone_with_its_group(&self) -> bool {
        let Registration { session, id, .. } = &*self.registration;
        self.has_own_group && is_of_nobody_else(session, id, &self.group)
    }

    /// Nothing is known of these streams any more.
    pub fn forget_those(&self, is_meant: impl Fn(&[u8]) -> bool) {
        self.state.lock().flows.retain(|key, _| !is_meant(key));
    }

    /// The stream is gone.
    pub fn forget(&self, key: &[u8]) {
        self.state.lock().flows.remove(key);
    }

    /// The number of the stream's flow and how deep its events are; `None` if it is not to be looked at any more.
    pub fn number(&self, key: &[u8]) -> Option<(u64, u32)> {
        let state = self.state.lock();
        let known = state.flows.get(key)?;
        (state.status == Status::Ok).then_some((known.number, known.depth))
    }

    /// Does something with the flow of this number; `None` if it is forgotten.
    pub fn with<T>(&self, key: &[u8], number: u64, work: impl FnOnce(&mut Flow, &Rules) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let known = state.flows.get_mut(key).filter(|known| known.number == number)?;
        let value = work(&mut known.flow, &self.rules);
        if known.flow.is_idle() {
            known.depth = 0;
        }
        Some(value)
    }

    /// A finished execution stays listed until there are too many of this registration.
    pub fn keep(&self, execution: &Execution) {
        let most = module().config.max_executions_per_registration();
        let mut kept = self.kept.lock();
        // Asked under the lock, so that what ends while the registration goes is not missed.
        if self.state.lock().status == Status::Gone {
            return module().engine.forget(&execution.id);
        }
        kept.add(execution, most);
    }

    /// The registration is gone, and with it its finished executions.
    pub fn forget_executions(&self) {
        self.kept.lock().forget();
    }
}

impl State {
    fn insert(&mut self, key: Key, flow: Flow) {
        if self.flows.len() >= limits::STREAMS_KNOWN {
            // What is forgotten is found again with its next entry.
            self.flows.retain(|_, known| !known.flow.is_idle());
        }
        self.made += 1;
        let known = Known {
            number: self.made,
            flow,
            depth: 0,
            uncounted: true,
            _alarm: None,
        };
        self.flows.insert(key, known);
    }
}

/// The part of a key that decides its slot.
fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = || {
        let start = key.iter().position(|&b| b == b'{')? + 1;
        let length = key[start..].iter().position(|&b| b == b'}')?;
        (length > 0).then(|| &key[start..start + length])
    };
    tag().unwrap_or(key)
}

/// What between braces leads to the slot of a key: its hash tag, or the key if it has none. A key without one may have a
/// closing brace, where a tag would end; then it is the first number that leads there.
fn tag_of_its_slot(key: &[u8]) -> Cow<'_, [u8]> {
    let tag = hash_tag(key);
    if !tag.is_empty() && !tag.contains(&b'}') {
        return Cow::Borrowed(tag);
    }
    let slot = key_slot(key);
    let mut numbers = (0..u32::MAX).map(|number| number.to_string().into_bytes());
    Cow::Owned(numbers.find(|number| key_slot(number) == slot).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_ones_own_are_told_by_their_names() {
        assert!(is_own(&own_group("s", b"0")));
        assert!(!is_own(SHARED_GROUP.as_bytes()));
        assert!(!is_own(b"other"));
        let made_up = "0a".repeat(20);
        for (session, which, of_nobody_else) in [
            (&*made_up, "s*:0", true),
            (&made_up, "id-1", true),
            ("named", "id-1", true),
            ("named", "s*:0", false),
            ("", "s*:0", false),
            (&made_up[1..], "s*:0", false),
            (&format!("{made_up}0"), "s*:0", false),
            (&made_up.replace('a', "g"), "s*:0", false),
        ] {
            let group = own_group(session, which.as_bytes());
            assert_eq!(is_of_nobody_else(session, "id-1", &group), of_nobody_else, "{group:?}");
        }
    }

    #[test]
    fn dead_letters_go_to_the_slot_of_their_stream() {
        for (key, tag) in [
            ("plain", "plain"),
            ("a{b}c", "b"),
            ("a{}c", "a{}c"),
            ("a{b", "a{b"),
            ("a}b", "a}b"),
            ("", ""),
        ] {
            let key = key.as_bytes();
            assert_eq!(hash_tag(key), tag.as_bytes());
            let name = [b"dead{".as_slice(), &tag_of_its_slot(key), b"}"].concat();
            assert_eq!(key_slot(&name), key_slot(key), "{tag}");
        }
    }
}
