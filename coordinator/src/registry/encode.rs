//! The bytes of a state, in snapshots of the log, in dumps and between nodes: versioned and checksummed.
//!
//! What is read is not trusted: every rule that commands obey is looked at again, and nothing panics on it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    EventSource, NewRegistration, Refusal, Registration, Registry, Requirement, Session, Tombstone, bounded, rules,
    state::Remembered,
};
use crate::limits;

/// The first bytes of every state.
const MAGIC: [u8; 4] = *b"OXRS";
/// Format that is written. Older ones are read for ever.
const FORMAT: u16 = 1;
/// Magic, format, checksum of the body.
const HEADER_BYTES: usize = 10;

/// Why bytes are no state.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("the registry's bytes are cut off or damaged: {0}")]
    Damaged(String),
    #[error("the registry was written by a newer version (format {0}); upgrade this node")]
    Newer(u16),
}

impl From<Refusal> for StateError {
    fn from(refusal: Refusal) -> StateError {
        StateError::Damaged(refusal.to_string())
    }
}

/// All of a state, every list in an order of its own.
#[derive(Serialize, Deserialize)]
struct Body {
    index: u64,
    made: u64,
    highest_number: u64,
    statistics_epoch: u64,
    #[serde(deserialize_with = "bounded::state_list")]
    sessions: Vec<Arc<Session>>,
    #[serde(deserialize_with = "bounded::state_list")]
    registrations: Vec<Arc<Registration>>,
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::REQUIREMENTS }>")]
    requirements: Vec<Arc<Requirement>>,
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::TOMBSTONES }>")]
    tombstones: Vec<Arc<Tombstone>>,
    #[serde(deserialize_with = "bounded::list::<_, _, { REMEMBERED_MOST }>")]
    remembered: Vec<Arc<Remembered>>,
}

/// One for each index that is looked back on, and the one at hand.
const REMEMBERED_MOST: usize = limits::REMEMBERED_REQUESTS as usize + 1;

fn damaged(text: impl Into<String>) -> StateError {
    StateError::Damaged(text.into())
}

impl Registry {
    /// The state as bytes, equal for equal states.
    pub fn encode(&self) -> Vec<u8> {
        let body = Body {
            index: self.index,
            made: self.made,
            highest_number: self.highest_number,
            statistics_epoch: self.statistics_epoch,
            sessions: self.sessions(),
            registrations: self.registrations(),
            requirements: self.requirements(),
            tombstones: self.tombstones.in_order().cloned().collect(),
            remembered: self.remembered.in_order().cloned().collect(),
        };
        let mut bytes = Vec::with_capacity(self.bytes / 2 + 4096);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend([0; 4]);
        // Plain data into memory: postcard has nothing to refuse here.
        let mut bytes = postcard::to_extend(&body, bytes).unwrap_or_default();
        let checksum = crc32fast::hash(bytes.get(HEADER_BYTES..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(HEADER_BYTES - 4..HEADER_BYTES) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    /// Reads and validates what `encode` made.
    pub fn decode(bytes: &[u8]) -> Result<Registry, StateError> {
        if bytes.len() > limits::STATE_BYTES {
            return Err(damaged(format!("{} bytes are too many", bytes.len())));
        }
        let (header, body) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or_else(|| damaged("the header is not complete"))?;
        let [m0, m1, m2, m3, f0, f1, c0, c1, c2, c3] = *header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(damaged("they do not begin like a registry"));
        }
        match u16::from_le_bytes([f0, f1]) {
            FORMAT => {}
            0 => return Err(damaged("format 0 was never written")),
            newer => return Err(StateError::Newer(newer)),
        }
        if crc32fast::hash(body) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(damaged("the checksum does not fit"));
        }
        match postcard::take_from_bytes::<Body>(body) {
            Ok((body, [])) => body.check(),
            Ok((_, rest)) => Err(damaged(format!("{} bytes too many", rest.len()))),
            Err(e) => Err(damaged(e.to_string())),
        }
    }
}

impl Body {
    /// Builds the state, obeying the rules that commands obey.
    fn check(self) -> Result<Registry, StateError> {
        let numbers = [self.index, self.made, self.highest_number, self.statistics_epoch];
        if numbers.iter().any(|n| *n >= rules::NUMBER_MOST) {
            return Err(damaged("a counter is not plausible"));
        }
        let mut state = Registry {
            index: self.index,
            made: self.made,
            highest_number: self.highest_number,
            statistics_epoch: self.statistics_epoch,
            ..Registry::default()
        };
        let mut sequence = 0;
        for registration in self.registrations {
            take_registration(&mut state, registration, &mut sequence)?;
        }
        for session in self.sessions {
            take_session(&mut state, session)?;
        }
        for requirement in self.requirements {
            rules::requirement(&requirement)?;
            state.bytes += rules::requirement_bytes(&requirement);
            let name = requirement.name.as_str().into();
            if state.requirements.insert(name, requirement).is_some() {
                return Err(damaged("a requirement is there twice"));
            }
        }
        for tombstone in self.tombstones {
            take_tombstone(&mut state, &tombstone)?;
        }
        for remembered in self.remembered {
            take_remembered(&mut state, &remembered)?;
        }
        let listed: usize = state.sessions.values().map(|s| s.registrations.len()).sum();
        if listed != state.registrations.len() {
            return Err(damaged("registrations and sessions do not fit together"));
        }
        rules::at_most_bytes(bounded::words::REGISTRY, state.bytes, limits::REGISTRY_BYTES)?;
        Ok(state)
    }
}

/// Registrations come in the order of their sequences.
fn take_registration(state: &mut Registry, r: Arc<Registration>, sequence: &mut u64) -> Result<(), StateError> {
    let as_new = NewRegistration {
        id: r.id.clone(),
        source: r.source.clone(),
        mode: r.mode,
        description: r.description.clone(),
        plan: r.plan.clone(),
        on_registered: r.on_registered,
        on_unregistered: r.on_unregistered,
    };
    let number = rules::new_registration(&as_new)?;
    if number > state.highest_number || r.sequence <= *sequence || r.sequence > state.made {
        return Err(damaged(format!(
            "the number or the sequence of {} is not plausible",
            r.id
        )));
    }
    *sequence = r.sequence;
    if state.registrations.get(&*r.id).is_some() {
        return Err(damaged(format!("{} is there twice", r.id)));
    }
    if let EventSource::Command { trigger, .. } = &r.source
        && state.triggers.get(&**trigger).is_some()
    {
        return Err(damaged(format!("the trigger of {} is there twice", r.id)));
    }
    if let EventSource::Hook { command, .. } = &r.source
        && state.last_hooks.get(command.as_bytes()).is_some()
    {
        return Err(damaged(format!("the hook {} is upon one that is not sync", r.id)));
    }
    if r.paused && !r.source.is_pausable() {
        return Err(damaged(format!("{} is paused", r.id)));
    }
    state.bytes += rules::registration_bytes(&r);
    state.put(r);
    Ok(())
}

fn take_session(state: &mut Registry, session: Arc<Session>) -> Result<(), StateError> {
    let what = || rules::shown(&session.name);
    rules::session(&session)?;
    if session.registrations.is_empty() || session.sequence == 0 || session.sequence > state.made {
        return Err(damaged(format!("session {} is not plausible", what())));
    }
    let mut sequence = session.sequence;
    for id in &session.registrations {
        let own = state.registrations.get(&**id).filter(|r| r.session == session.name);
        // Rising sequences: so none is listed twice.
        match own {
            Some(own) if own.sequence > sequence => sequence = own.sequence,
            _ => return Err(damaged(format!("the registrations of session {} do not fit", what()))),
        }
    }
    state.bytes += rules::session_bytes(&session);
    if state.sessions.get(&*session.name).is_some() {
        return Err(damaged(format!("session {} is there twice", what())));
    }
    state.sessions.insert(session.name.clone(), session);
    Ok(())
}

fn take_tombstone(state: &mut Registry, tombstone: &Tombstone) -> Result<(), StateError> {
    let number = rules::number_of(&tombstone.id)?;
    let known = state.registrations.get(&*tombstone.id).is_some() || state.tombstones.get(&*tombstone.id).is_some();
    if number > state.highest_number || tombstone.index > state.index || known {
        return Err(damaged(format!("what is said of {} is not plausible", tombstone.id)));
    }
    state.tombstones.push(tombstone.id.clone(), tombstone.clone());
    Ok(())
}

/// Oldest first, one for an index.
fn take_remembered(state: &mut Registry, remembered: &Remembered) -> Result<(), StateError> {
    let request = remembered.request.0;
    let last = state.remembered.newest().map_or(0, |r| r.index);
    let known = state.remembered.get(&request).is_some();
    if known || remembered.index <= last || remembered.index > state.index {
        return Err(damaged("the remembered requests are not plausible"));
    }
    state.remembered.push(request, remembered.clone());
    Ok(())
}
