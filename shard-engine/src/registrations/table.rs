//! What is active on this shard: registrations by id and by trigger, sessions. Changed under the server lock only.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use hashbrown::HashMap;
use oxigears_coordinator::{
    plan::Mode,
    registry::{Difference, EventSource, Registration, Registry, Session},
};

use super::{
    active::{Active, ActiveSession, Loaded},
    keys, limits,
};
use crate::{module::module, redis::lock::ServerLock, timers};

/// What is active. All of it belongs to one state of the registry.
#[derive(Default)]
pub struct Table {
    state: Arc<Registry>,
    by_id: HashMap<Arc<str>, Arc<Active>>,
    triggers: HashMap<Bytes, Arc<Active>>,
    sessions: HashMap<Arc<str>, Arc<ActiveSession>>,
    /// Registrations of streams.
    streams: usize,
    /// Sessions that are gone but still referred to, oldest first.
    dead: Vec<Weak<ActiveSession>>,
    /// Registrations that are gone but may be asked for by shards that do not know it yet; until when, in ms.
    retired: VecDeque<(AtomicU64, Arc<Active>)>,
}

impl Table {
    /// The state that is active.
    pub fn state(&self) -> &Arc<Registry> {
        &self.state
    }

    /// The registration that RG.TRIGGER with this name fires.
    pub fn trigger(&self, name: &[u8]) -> Option<&Arc<Active>> {
        self.triggers.get(name)
    }

    /// The registration with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Active>> {
        self.by_id.get(id)
    }

    /// The same, also if it was active until a moment ago, or others have gone on asking for it since.
    pub fn get_late(&self, id: &str) -> Option<&Arc<Active>> {
        let late = || {
            let found = self.retired.iter().find(|(_, active)| *active.registration.id == *id);
            found.map(|(until, active)| {
                until.store(retired_until(), Ordering::Relaxed);
                active
            })
        };
        self.get(id).or_else(late)
    }

    /// All registrations, in the order in which they were made.
    pub fn registrations(&self) -> Vec<Arc<Active>> {
        let all = self.state.registrations();
        all.iter().filter_map(|r| self.by_id.get(&*r.id).cloned()).collect()
    }

    /// The keys of all registrations of keys and streams.
    pub fn patterns(&self) -> Vec<Bytes> {
        let patterns = self
            .by_id
            .values()
            .filter_map(|active| match &active.registration.source {
                EventSource::Keys { prefix, .. } | EventSource::Stream { prefix, .. } => Some(prefix.clone()),
                _ => None,
            });
        patterns.collect()
    }

    /// There are registrations of streams.
    pub fn has_streams(&self) -> bool {
        self.streams > 0
    }

    /// There are registrations that take commands over whatever they write.
    pub fn has_hooks(&self) -> bool {
        let takes_over = |active: &Arc<Active>| {
            let source = &active.registration.source;
            matches!(
                source,
                EventSource::Hook { .. } | EventSource::Keys { commands: Some(_), .. }
            )
        };
        self.by_id.values().any(takes_over)
    }

    /// All sessions, by name; by reference, because each copy of the pointer counts as a holder.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<ActiveSession>> {
        let all = self.state.sessions();
        all.into_iter().filter_map(|s| self.sessions.get(&*s.name))
    }

    /// The session with this name.
    pub fn session(&self, name: &str) -> Option<&Arc<ActiveSession>> {
        self.sessions.get(name)
    }

    /// Sessions that are gone but still referred to, oldest first.
    pub fn dead_sessions(&self) -> Vec<Arc<ActiveSession>> {
        self.dead.iter().filter_map(Weak::upgrade).collect()
    }

    /// The same state under another index: nothing is to be done for it.
    pub fn advance(&mut self, state: Arc<Registry>) {
        self.state = state;
    }

    /// Goes to `state`, whose difference to the present one this is. `load` gives the functions of a new registration.
    /// Gives what was removed (and whether to abort what it has not started) and what was added.
    pub fn change(
        &mut self,
        guard: &ServerLock,
        state: Arc<Registry>,
        difference: &Difference,
        mut load: impl FnMut(&Registration) -> Loaded,
    ) -> Changes {
        let mut changes = Changes::default();
        if difference.clear_statistics {
            self.by_id.values().for_each(|active| active.core.stats.clear());
        }
        for session in &difference.sessions_removed {
            self.bury(session);
        }
        for session in &difference.sessions_changed {
            match self.sessions.get(&session.name) {
                Some(known) => known.set(session.clone()),
                None => drop(
                    self.sessions
                        .insert(session.name.clone(), ActiveSession::new(session.clone())),
                ),
            }
        }
        for (registration, abort_pending) in &difference.removed {
            if let Some(active) = self.remove(guard, registration) {
                changes.removed.push((active, *abort_pending));
            }
        }
        for registration in &difference.changed {
            if let Some(active) = self.by_id.get(&registration.id) {
                let active = Arc::new(active.changed(registration.clone()));
                self.put(guard, active.clone());
                changes.changed.push(active);
            }
        }
        for registration in &difference.added {
            let session = self.session_of(registration, &state);
            let active = Arc::new(Active::new(registration.clone(), session, load(registration)));
            self.put(guard, active.clone());
            changes.added.push(active);
        }
        self.state = state;
        changes
    }

    fn session_of(&mut self, registration: &Registration, state: &Registry) -> Arc<ActiveSession> {
        let name = &registration.session;
        if let Some(session) = self.sessions.get(name) {
            return session.clone();
        }
        // A registration without its session: a state of an unknown writer. It runs all the same.
        let session = state.session(name).unwrap_or_else(|| {
            Arc::new(Session {
                name: name.clone(),
                sequence: 0,
                description: None,
                user: None,
                requirements: Vec::new(),
                registrations: Vec::new(),
            })
        });
        let session = ActiveSession::new(session);
        self.sessions.insert(name.clone(), session.clone());
        session
    }

    fn put(&mut self, guard: &ServerLock, active: Arc<Active>) {
        if let EventSource::Command { trigger, .. } = &active.registration.source {
            self.triggers.insert(trigger.clone(), active.clone());
        }
        keys::index::put(guard, &active);
        timers::watch(&active);
        let is_stream = |active: &Active| matches!(active.registration.source, EventSource::Stream { .. });
        self.streams += usize::from(is_stream(&active));
        if let Some(before) = self.by_id.insert(active.registration.id.clone(), active) {
            self.streams -= usize::from(is_stream(&before));
        }
    }

    fn remove(&mut self, guard: &ServerLock, registration: &Registration) -> Option<Arc<Active>> {
        let active = self.by_id.remove(&registration.id)?;
        keys::index::remove(guard, &active);
        self.streams -= usize::from(matches!(registration.source, EventSource::Stream { .. }));
        timers::unwatch(&active);
        if let EventSource::Command { trigger, .. } = &registration.source
            && self
                .triggers
                .get(&**trigger)
                .is_some_and(|other| Arc::ptr_eq(other, &active))
        {
            self.triggers.remove(&**trigger);
        }
        if active.core.loaded.plan.mode == Mode::Async && module().is_cluster {
            self.retired
                .push_back((AtomicU64::new(retired_until()), active.clone()));
            if self.retired.len() > limits::RETIRED {
                self.retired.pop_front();
            }
        }
        Some(active)
    }

    fn bury(&mut self, session: &Session) {
        let is_that = |known: &Arc<ActiveSession>| known.get().sequence == session.sequence;
        if self.sessions.get(&session.name).is_some_and(is_that)
            && let Some(gone) = self.sessions.remove(&session.name)
        {
            self.dead.retain(|dead| dead.strong_count() > 0);
            self.dead.push(Arc::downgrade(&gone));
        }
    }

    /// Lets go of what nobody asks for any more.
    pub fn tidy(&mut self, now_ms: u64) -> Vec<Arc<Active>> {
        self.dead.retain(|dead| dead.strong_count() > 0);
        let is_over = |(until, _): &(AtomicU64, Arc<Active>)| until.load(Ordering::Relaxed) <= now_ms;
        let (over, others): (Vec<_>, _) = std::mem::take(&mut self.retired).into_iter().partition(is_over);
        self.retired = others.into();
        over.into_iter().map(|(_, active)| active).collect()
    }

    /// `tidy` would do something some time.
    pub fn is_untidy(&self) -> bool {
        !(self.retired.is_empty() && self.dead.is_empty())
    }
}

/// What is removed now may be asked for until then, in ms.
fn retired_until() -> u64 {
    module().now_ms() + limits::RETIRED_LIFE.as_millis() as u64
}

/// What a change did.
#[derive(Default)]
pub struct Changes {
    /// Gone; whether executions that have not started are to be aborted.
    pub removed: Vec<(Arc<Active>, bool)>,
    /// New, in their order.
    pub added: Vec<Arc<Active>>,
    /// Paused or unpaused.
    pub changed: Vec<Arc<Active>>,
}
