//! How commands change the state. Works on a copy that is thrown away when the command is refused half-way.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Command, EventSource, NewRegistration, Refusal, Registration, RegistrationId, Registry, Requirement, Session,
    SessionChange, Tombstone, bounded::words, rules,
};
use crate::limits;

impl Registry {
    pub(super) fn perform(&mut self, index: u64, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::ChangeSession(change) => self.change_session(index, change),
            Command::Unregister { id, abort_pending } => self.unregister(index, id, *abort_pending),
            Command::Pause { ids, .. } => self.set_paused(ids, true),
            Command::Unpause { ids } => self.set_paused(ids, false),
            Command::ClearStatistics => {
                self.statistics_epoch += 1;
                Ok(())
            }
            Command::ImportRequirement(requirement) => self.import(requirement),
        }
    }

    fn change_session(&mut self, index: u64, change: &SessionChange) -> Result<(), Refusal> {
        self.judge_names(change)?;
        if change.registrations.is_empty() {
            return Err(Refusal::NoRegistrations);
        }
        rules::session_change(change)?;
        let replaced = match &change.replace {
            _ if change.join => None,
            Some(old) => self.session(old),
            None => self.session(&change.name),
        };
        if let Some(old) = replaced {
            self.remove_session(index, &old);
        }
        self.add_to_session(change)?;
        rules::at_most(words::REGISTRATIONS, self.registrations.len(), limits::REGISTRATIONS)?;
        self.judge_size()
    }

    /// The order is that in which clients see these errors.
    fn judge_names(&self, change: &SessionChange) -> Result<(), Refusal> {
        let exists = self.sessions.get(&*change.name).is_some();
        match &change.replace {
            _ if change.join => Ok(()),
            Some(old) if exists => Err(Refusal::ReplaceExisting {
                new: rules::shown(&change.name),
                old: rules::shown(old),
            }),
            Some(old) if self.sessions.get(&**old).is_none() => Err(Refusal::NothingToReplace(rules::shown(old))),
            None if exists && !change.upgrade => Err(Refusal::SessionExists(rules::shown(&change.name))),
            _ => Ok(()),
        }
    }

    /// The session as it is, or a new one, with the new registrations behind those that it has.
    fn add_to_session(&mut self, change: &SessionChange) -> Result<(), Refusal> {
        let mut session = match self.sessions.get(&*change.name) {
            Some(session) => (**session).clone(),
            None => {
                let session = Session {
                    name: change.name.clone(),
                    sequence: self.next_sequence(),
                    description: change.description.clone(),
                    user: change.user.clone(),
                    requirements: change.requirements.clone(),
                    registrations: Vec::with_capacity(change.registrations.len()),
                };
                self.bytes += rules::session_bytes(&session);
                session
            }
        };
        let made_before = self.made;
        for new in &change.registrations {
            self.register(&session.name, new, made_before)?;
            session.registrations.push(new.id.clone());
        }
        self.sessions.insert(session.name.clone(), Arc::new(session));
        Ok(())
    }

    /// `made_before`: registrations with a higher sequence belong to the same change.
    fn register(&mut self, session: &Arc<str>, new: &NewRegistration, made_before: u64) -> Result<(), Refusal> {
        let number = rules::new_registration(new)?;
        if self.registrations.get(&*new.id).is_some() || self.tombstones.get(&*new.id).is_some() {
            return Err(Refusal::IdUsed(rules::shown(&new.id)));
        }
        if let EventSource::Command { trigger, .. } = &new.source
            && let Some(holder) = self.triggers.get(&**trigger)
        {
            let same_change = holder.sequence > made_before;
            return Err(if same_change {
                Refusal::TriggerTwice
            } else {
                Refusal::TriggerTaken
            });
        }
        if let EventSource::Hook { command, .. } = &new.source
            && let Some(holder) = self.last_hooks.get(command.as_bytes())
        {
            let same_change = holder.sequence > made_before;
            return Err(if same_change {
                Refusal::HookTwice
            } else {
                Refusal::HookTaken
            });
        }
        let registration = Registration {
            id: new.id.clone(),
            session: session.clone(),
            sequence: self.next_sequence(),
            source: new.source.clone(),
            mode: new.mode,
            description: new.description.clone(),
            plan: new.plan.clone(),
            on_registered: new.on_registered,
            on_unregistered: new.on_unregistered,
            paused: false,
            unpaused: 0,
        };
        self.bytes += rules::registration_bytes(&registration);
        self.highest_number = self.highest_number.max(number);
        self.put(Arc::new(registration));
        Ok(())
    }

    /// Sets a registration in all tables that hold it.
    pub(super) fn put(&mut self, registration: Arc<Registration>) {
        if let EventSource::Command { trigger, .. } = &registration.source {
            self.triggers.insert(trigger.clone(), registration.clone());
        }
        if let Some(command) = registration.source.last_hook(registration.mode) {
            self.last_hooks
                .insert(Bytes::copy_from_slice(command.as_bytes()), registration.clone());
        }
        self.registrations.insert(registration.id.clone(), registration);
    }

    fn next_sequence(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Removes a session with all its registrations; what waits of them is aborted.
    fn remove_session(&mut self, index: u64, session: &Session) {
        self.sessions.remove(&*session.name);
        self.bytes -= rules::session_bytes(session);
        for id in &session.registrations {
            self.remove_registration(index, id, true);
        }
    }

    fn remove_registration(&mut self, index: u64, id: &str, abort_pending: bool) -> Option<Arc<Registration>> {
        let registration = self.registrations.remove(id)?;
        if let EventSource::Command { trigger, .. } = &registration.source {
            self.triggers.remove(&**trigger);
        }
        if let Some(command) = registration.source.last_hook(registration.mode) {
            self.last_hooks.remove(command.as_bytes());
        }
        self.bytes -= rules::registration_bytes(&registration);
        if self.tombstones.len() >= limits::TOMBSTONES {
            self.tombstones.pop_oldest();
        }
        let tombstone = Tombstone {
            id: registration.id.clone(),
            abort_pending,
            index,
        };
        self.tombstones.push(registration.id.clone(), tombstone);
        Some(registration)
    }

    fn unregister(&mut self, index: u64, id: &str, abort_pending: bool) -> Result<(), Refusal> {
        let removed = self.remove_registration(index, id, abort_pending);
        let registration = removed.ok_or(Refusal::NotRegistered)?;
        let Some(session) = self.session(&registration.session) else {
            return Ok(());
        };
        if session.registrations.len() == 1 {
            self.sessions.remove(&*session.name);
            self.bytes -= rules::session_bytes(&session);
        } else {
            let mut rest = (*session).clone();
            rest.registrations.retain(|listed| **listed != *id);
            self.sessions.insert(rest.name.clone(), Arc::new(rest));
        }
        Ok(())
    }

    /// All are looked at before any is changed.
    fn set_paused(&mut self, ids: &[RegistrationId], paused: bool) -> Result<(), Refusal> {
        rules::at_most(words::IDS, ids.len(), limits::REGISTRATIONS_PER_CHANGE)?;
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let registration = self.registrations.get(&**id);
            let registration = registration.ok_or_else(|| Refusal::UnknownRegistration(rules::shown(id)))?;
            if !registration.source.is_pausable() {
                return Err(Refusal::NotPausable {
                    reader: registration.source.reader(),
                    what: if paused { words::PAUSE } else { words::UNPAUSE },
                });
            }
            found.push(registration.clone());
        }
        // A shard may have stopped it by itself: the end of a pause is news always.
        for registration in found.into_iter().filter(|r| !paused || !r.paused) {
            self.put(Arc::new(Registration {
                paused,
                unpaused: registration.unpaused.saturating_add(u64::from(!paused)),
                ..(*registration).clone()
            }));
        }
        Ok(())
    }

    fn import(&mut self, requirement: &Requirement) -> Result<(), Refusal> {
        rules::requirement(requirement)?;
        let (key, value) = (requirement.name.as_str().into(), Arc::new(requirement.clone()));
        let earlier = self.requirements.insert(key, value);
        self.bytes += rules::requirement_bytes(requirement);
        self.bytes -= earlier.map_or(0, |e| rules::requirement_bytes(&e));
        rules::at_most(words::REQUIREMENTS, self.requirements.len(), limits::REQUIREMENTS)?;
        self.judge_size()
    }

    fn judge_size(&self) -> Result<(), Refusal> {
        rules::at_most_bytes(words::REGISTRY, self.bytes, limits::REGISTRY_BYTES)
    }
}
