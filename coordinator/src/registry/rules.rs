//! What a command must look like to be taken: sizes, ids, functions of plans. Says nothing about the state it meets.

use bytes::Bytes;

use super::{
    EventSource, NewRegistration, Refusal, Registration, Requirement, Schedule, Session, SessionChange, bounded::words,
};
use crate::{
    cron::Cron,
    limits,
    plan::{FnId, Plan},
};

/// What an entry costs beside its texts, at least as much as its encoded fixed part.
const ENTRY_BYTES: usize = 128;
/// Indexes, sequences and numbers are below: so they can be counted on without a look at overflows.
pub(super) const NUMBER_MOST: u64 = 1 << 62;

pub(super) fn name(bytes: usize) -> Result<(), Refusal> {
    at_most_bytes(words::NAME, bytes, limits::NAME_BYTES)
}

fn names(list: &[String]) -> Result<(), Refusal> {
    at_most(words::LIST, list.len(), limits::NAMES_PER_LIST)?;
    list.iter().try_for_each(|n| name(n.len()))
}

pub(super) fn at_most(what: &'static str, count: usize, most: usize) -> Result<(), Refusal> {
    if count > most {
        return Err(Refusal::TooMany { what, count, most });
    }
    Ok(())
}

pub(super) fn at_most_bytes(what: &'static str, bytes: usize, most: usize) -> Result<(), Refusal> {
    if bytes > most {
        return Err(Refusal::TooLarge { what, bytes, most });
    }
    Ok(())
}

/// A name within a refusal, cut so that refusals can be remembered in bounded memory.
pub(super) fn shown(text: &str) -> String {
    if text.len() <= limits::REFUSAL_NAME_BYTES {
        return text.to_owned();
    }
    let mut end = limits::REFUSAL_NAME_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

/// The number of a registration id `<node id>-<number>`.
pub(super) fn number_of(id: &str) -> Result<u64, Refusal> {
    let number = id.rsplit_once('-').and_then(|(node, number)| {
        let plain = number.bytes().all(|b| b.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
        let known = !node.is_empty() && node.len() <= limits::NODE_ID_BYTES && plain;
        known.then(|| number.parse().ok()).flatten()
    });
    number.filter(|n| *n < NUMBER_MOST).ok_or_else(|| {
        let text = format!("`{}` is no registration id (a node id, `-`, a number)", shown(id));
        Refusal::Malformed(text)
    })
}

/// Sizes of all but the registrations.
pub(super) fn session_change(change: &SessionChange) -> Result<(), Refusal> {
    name(change.name.len())?;
    name(change.user.as_ref().map_or(0, String::len))?;
    description(&change.description)?;
    names(&change.requirements)?;
    at_most(
        words::IN_ONE_CHANGE,
        change.registrations.len(),
        limits::REGISTRATIONS_PER_CHANGE,
    )?;
    let session = change.requirements.iter().map(String::len).sum::<usize>() + change.name.len();
    let all: usize = change.registrations.iter().map(new_registration_bytes).sum();
    at_most_bytes(words::CHANGE, session + all, limits::PROPOSAL_BYTES)
}

/// All that can be said of a change without the state that it meets.
pub(super) fn whole_change(change: &SessionChange) -> Result<(), Refusal> {
    session_change(change)?;
    change
        .registrations
        .iter()
        .try_for_each(|new| new_registration(new).map(drop))
}

/// Sizes of a session that is held.
pub(super) fn session(session: &Session) -> Result<(), Refusal> {
    name(session.name.len())?;
    name(session.user.as_ref().map_or(0, String::len))?;
    description(&session.description)?;
    names(&session.requirements)
}

/// A registration on its own; gives the number in its id.
pub(super) fn new_registration(new: &NewRegistration) -> Result<u64, Refusal> {
    let number = number_of(&new.id)?;
    description(&new.description)?;
    source(&new.source)?;
    plan(&new.id, &new.plan, [new.on_registered, new.on_unregistered])?;
    Ok(number)
}

fn description(text: &Option<String>) -> Result<(), Refusal> {
    let bytes = text.as_ref().map_or(0, String::len);
    at_most_bytes(words::DESCRIPTION, bytes, limits::DESCRIPTION_BYTES)
}

fn source(source: &EventSource) -> Result<(), Refusal> {
    match source {
        EventSource::Command { trigger, .. } => name(trigger.len()),
        EventSource::Keys {
            prefix,
            event_types,
            key_types,
            commands,
            ..
        } => {
            name(prefix.len())?;
            let lists = [event_types, key_types, commands];
            lists.into_iter().flatten().try_for_each(|list| names(list))
        }
        EventSource::Stream { prefix, more, .. } => {
            name(prefix.len())?;
            name(more.group.as_ref().map_or(0, Bytes::len))?;
            name(more.dead_letter.as_ref().map_or(0, Bytes::len))
        }
        EventSource::Hook {
            command, key_prefix, ..
        } => {
            name(command.len())?;
            name(key_prefix.as_ref().map_or(0, Bytes::len))
        }
        EventSource::Timer { schedule, .. } => timer(schedule),
    }
}

fn timer(schedule: &Schedule) -> Result<(), Refusal> {
    let malformed = |why: String| Err(Refusal::Malformed(why));
    match schedule {
        Schedule::Every { ms } if (1..=limits::TIMER_PERIOD_MS).contains(ms) => Ok(()),
        Schedule::Every { ms } => malformed(format!("a timer can not fire every {ms} ms")),
        Schedule::Cron { expression } => Cron::parse(expression)
            .map(drop)
            .or_else(|e| malformed(shown(&e.to_string()))),
    }
}

/// The plan can be read, and has the functions that the registration names.
fn plan(id: &str, bytes: &Bytes, functions: [Option<FnId>; 2]) -> Result<(), Refusal> {
    at_most_bytes(words::PLAN, bytes.len(), limits::PLAN_BYTES)?;
    let malformed = |why: String| Refusal::Malformed(format!("registration {}: {why}", shown(id)));
    let plan = Plan::decode(bytes).map_err(|e| malformed(e.to_string()))?;
    let known = plan.function_names.len();
    match functions.into_iter().flatten().find(|&f| f as usize >= known) {
        Some(f) => Err(malformed(format!(
            "it names function {f}, but its plan has only {known}"
        ))),
        None => Ok(()),
    }
}

pub(super) fn requirement(requirement: &Requirement) -> Result<(), Refusal> {
    name(requirement.name.len())?;
    name(requirement.compiled_os.len())?;
    names(&requirement.wheels)?;
    // The names become files on every node.
    let is_bad = |n: &&String| n.is_empty() || n.starts_with('.') || n.contains(['/', '\\', '\0']);
    match requirement.wheels.iter().find(is_bad) {
        Some(wheel) => Err(Refusal::Malformed(format!("`{}` is no file name", shown(wheel)))),
        None => Ok(()),
    }
}

fn source_bytes(source: &EventSource) -> usize {
    let list = |list: &Option<Vec<String>>| list.iter().flatten().map(|n| n.len() + 8).sum::<usize>();
    match source {
        EventSource::Command { trigger, .. } => trigger.len(),
        EventSource::Keys {
            prefix,
            event_types,
            key_types,
            commands,
            ..
        } => prefix.len() + list(event_types) + list(key_types) + list(commands),
        EventSource::Stream { prefix, more, .. } => {
            let names = [&more.group, &more.dead_letter];
            prefix.len() + names.into_iter().flatten().map(Bytes::len).sum::<usize>()
        }
        EventSource::Hook {
            command, key_prefix, ..
        } => command.len() + key_prefix.as_ref().map_or(0, Bytes::len),
        EventSource::Timer { schedule, .. } => match schedule {
            Schedule::Every { .. } => 0,
            Schedule::Cron { expression } => expression.len(),
        },
    }
}

fn length(text: &Option<String>) -> usize {
    text.as_ref().map_or(0, String::len)
}

fn new_registration_bytes(new: &NewRegistration) -> usize {
    ENTRY_BYTES + new.id.len() + source_bytes(&new.source) + length(&new.description) + new.plan.len()
}

/// What a registration counts in the bound of the whole registry; with its place in the session's list.
pub(super) fn registration_bytes(r: &Registration) -> usize {
    let texts = 2 * r.id.len() + r.session.len() + length(&r.description);
    ENTRY_BYTES + texts + source_bytes(&r.source) + r.plan.len()
}

/// The same of a session, without its list of registrations.
pub(super) fn session_bytes(s: &Session) -> usize {
    let requirements: usize = s.requirements.iter().map(|n| n.len() + 8).sum();
    ENTRY_BYTES + s.name.len() + length(&s.description) + length(&s.user) + requirements
}

/// The same of a requirement.
pub(super) fn requirement_bytes(r: &Requirement) -> usize {
    let wheels: usize = r.wheels.iter().map(|n| n.len() + 8).sum();
    ENTRY_BYTES + r.name.len() + r.compiled_os.len() + wheels
}
