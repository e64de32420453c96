//! From what `register()` left behind to a change of the registry.

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use oxigears_coordinator::{
    limits as bounds,
    message::RegistryQuestion,
    registry::{Command, EventSource, NewRegistration, Refusal, RegisterMode, Registration, Registry, SessionChange},
};
use oxigears_python_api::{self as python, RegistrationDraft, Session};

use super::{
    activation,
    active::Loaded,
    change::{self, Failure},
    intercept, is_master, limits, prepared, registrations,
    spread::Refusals,
    streams,
};
use crate::{identity, module::module, redis::lock};

/// What a script's registrations are to replace.
#[derive(Debug, Clone, Default)]
pub struct Replacing {
    /// Name of the script's session.
    pub name: String,
    /// A session of that name is replaced.
    pub upgrade: bool,
    /// This session is replaced.
    pub replace: Option<String>,
}

impl Replacing {
    /// The session goes away with the change.
    fn removes(&self, session: &str) -> bool {
        (self.upgrade && session == self.name) || self.replace.as_deref() == Some(session)
    }

    /// What is wrong with the names now, before the script runs.
    pub fn check(&self, state: &Registry) -> Result<(), Refusal> {
        let exists = state.session(&self.name).is_some();
        match &self.replace {
            Some(old) if exists => Err(Refusal::ReplaceExisting {
                new: self.name.clone(),
                old: old.clone(),
            }),
            Some(old) if state.session(old).is_none() => Err(Refusal::NothingToReplace(old.clone())),
            None if exists && !self.upgrade => Err(Refusal::SessionExists(self.name.clone())),
            _ => Ok(()),
        }
    }
}

/// The script whose body runs on this thread.
struct Script {
    replacing: Replacing,
    /// Triggers that it has registered, or tried to.
    triggers: HashSet<Bytes>,
}

thread_local! {
    static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
}

/// A script body runs on this thread until the guard goes.
pub struct InScript(());

/// Begins a script body.
pub fn enter_script(replacing: Replacing) -> InScript {
    SCRIPT.set(Some(Script {
        replacing,
        triggers: HashSet::new(),
    }));
    InScript(())
}

impl Drop for InScript {
    fn drop(&mut self) {
        SCRIPT.set(None);
    }
}

/// `<node id>-<number>`, also of a node that is still alone: another one may give the same number. The counter is also raised by each builder, as clients know it.
fn new_id() -> String {
    let number = registrations().service.next_number();
    format!("{}-{number}", module().engine.topology().me)
}

/// Gives the id of a registration that the registry would take now, next to the script's earlier ones. Never waits.
pub fn validate(source: &EventSource, earlier: &[RegistrationDraft]) -> Result<String, String> {
    match source {
        EventSource::Command { trigger, .. } => {
            SCRIPT.with_borrow_mut(|script| check_trigger(trigger, script.as_mut(), earlier))?;
        }
        EventSource::Hook {
            command, key_prefix, ..
        } => {
            intercept::check_hook(command, key_prefix.is_some())?;
            SCRIPT.with_borrow(|script| check_hook(command, script.as_ref(), earlier))?;
        }
        EventSource::Keys {
            commands: Some(commands),
            prefix,
            ..
        } => intercept::check_links(commands, prefix)?,
        _ => {}
    }
    Ok(new_id())
}

/// A registration that was removed a moment ago, where nobody waits, does not count.
fn still_there(holder: Option<Arc<Registration>>) -> Option<Arc<Registration>> {
    holder.filter(|holder| !change::is_leaving(&holder.id))
}

/// No hook comes upon one that is not `sync`.
fn check_hook(command: &str, script: Option<&Script>, earlier: &[RegistrationDraft]) -> Result<(), String> {
    let holder = still_there(registrations().service.state().last_hook(command));
    let is_removed = |session: &str| script.is_some_and(|s| s.replacing.removes(session));
    if holder.is_some_and(|holder| !is_removed(&holder.session)) {
        return Err(Refusal::HookTaken.to_string());
    }
    let is_last = |draft: &RegistrationDraft| matches!(&draft.source, EventSource::Hook { command: other, .. } if other == command && draft.mode != RegisterMode::Sync);
    if earlier.iter().any(is_last) {
        return Err(Refusal::HookTwice.to_string());
    }
    Ok(())
}

fn check_trigger(trigger: &Bytes, script: Option<&mut Script>, earlier: &[RegistrationDraft]) -> Result<(), String> {
    let holder = still_there(registrations().service.state().trigger(trigger));
    let is_removed = |session: &str| script.as_ref().is_some_and(|s| s.replacing.removes(session));
    if holder.is_some_and(|holder| !is_removed(&holder.session)) {
        return Err(Refusal::TriggerTaken.to_string());
    }
    let is_same = |draft: &RegistrationDraft| matches!(&draft.source, EventSource::Command { trigger: other, .. } if other == trigger);
    // The set says at once that there is none; after an attempt that failed later it may be wrong.
    let may_be_there = script.is_none_or(|script| !script.triggers.insert(trigger.clone()));
    if may_be_there && earlier.iter().any(is_same) {
        return Err(Refusal::TriggerTwice.to_string());
    }
    Ok(())
}

/// The command for a script's registrations, with the functions that are there already.
struct Ready {
    change: SessionChange,
    loaded: HashMap<Arc<str>, Loaded>,
    /// They can not be loaded again here: they would be lost with the next restart.
    unloadable: Option<String>,
}

/// A stream registration that names no consumer group gets one of its own. Those of a script with the same name of streams
/// are numbered, so that the script's next version goes on where this one stood.
fn own_group(draft: &mut RegistrationDraft, streams: &mut HashMap<Bytes, u64>, join: bool) {
    let EventSource::Stream { prefix, more, .. } = &mut draft.source else {
        return;
    };
    let number = streams.entry(prefix.clone()).or_default();
    if more.group.is_none() {
        more.group = Some(match join {
            true => streams::own_group(draft.session.id(), draft.id.as_bytes()),
            false => {
                let which = [prefix, b":".as_slice(), number.to_string().as_bytes()].concat();
                streams::own_group(draft.session.id(), &which)
            }
        });
    }
    *number += 1;
}

fn ready(
    session: &Session,
    drafts: Vec<RegistrationDraft>,
    user: Option<&str>,
    replacing: Option<&Replacing>,
) -> Result<Ready, Failure> {
    let mut change = SessionChange {
        name: session.id().into(),
        description: session.description().map(str::to_owned),
        user: user.map(str::to_owned),
        requirements: Vec::new(),
        upgrade: replacing.is_some_and(|r| r.upgrade),
        replace: replacing.and_then(|r| r.replace.as_deref().map(Arc::from)),
        join: replacing.is_none(),
        registrations: Vec::with_capacity(drafts.len()),
    };
    let mut loaded = HashMap::with_capacity(drafts.len());
    let mut unloadable = None;
    let mut streams = HashMap::new();
    for mut draft in drafts {
        own_group(&mut draft, &mut streams, change.join);
        let failed = |text: String| Failure::Failed(format!("ERR {text}"));
        let mut plan = draft.plan;
        plan.user.clone_from(&change.user);
        let decoded = plan;
        let plan = Bytes::from(decoded.encode().map_err(|e| failed(e.to_string()))?);
        let id: Arc<str> = draft.id.into();
        if unloadable.is_none() {
            unloadable = python::load_functions(&decoded).err();
        }
        let functions = Loaded::with_functions(&plan, draft.functions).map_err(failed)?;
        if let Err(why) = &functions.code {
            return Err(failed(why.clone()));
        }
        loaded.insert(id.clone(), functions);
        change.registrations.push(NewRegistration {
            id,
            source: draft.source,
            mode: draft.mode,
            description: draft.description,
            plan,
            on_registered: draft.on_registered,
            on_unregistered: draft.on_unregistered,
        });
    }
    Ok(Ready {
        change,
        loaded,
        unloadable,
    })
}

/// How the registrations of a script ended.
pub enum Outcome {
    /// They are made.
    Made,
    /// Refused, with the texts for the client; nothing changed.
    Refused(Vec<String>),
    /// Anything else.
    Failed(String),
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Outcome {
        match failure {
            Failure::Failed(text) => Outcome::Failed(text),
            refused => Outcome::Refused(vec![change::own_refusal(&refused)]),
        }
    }
}

type Then = Box<dyn FnOnce(Outcome) + Send>;

/// Makes the registrations of a script: asks the other masters whether they can load them, then changes the registry.
/// Does not wait; `then` is called on any thread and must not block.
pub fn register_script(
    session: &Session,
    drafts: Vec<RegistrationDraft>,
    user: Option<&str>,
    replacing: &Replacing,
    then: Then,
) {
    let ready = match ready(session, drafts, user, Some(replacing)) {
        Ok(ready) => ready,
        Err(failure) => return then(failure.into()),
    };
    let Ready {
        change,
        loaded,
        unloadable,
    } = ready;
    // What the others would not even read.
    if let Err(refusal) = change.check() {
        return then(Failure::Refused(refusal).into());
    }
    let encoded = match change.encode() {
        Ok(bytes) => Bytes::from(bytes),
        Err(refusal) => return then(Failure::Refused(refusal).into()),
    };
    let command = Command::ChangeSession(change);
    let state = registrations();
    // On a node that lags behind the group this may be wrong in both directions; the group has the last word. But it spares
    // the others the work.
    if !state.service.is_group()
        && let Err(refusal) = state.service.state().check(&command)
    {
        return then(Failure::Refused(refusal).into());
    }
    let ids: Vec<Arc<str>> = loaded.keys().cloned().collect();
    let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    keep(&command, loaded);
    let peers = state.spread.connected_masters();
    let question = RegistryQuestion::Check(encoded);
    let make = move |refusals: Refusals| {
        let own = unloadable.map(|why| change::own_refusal(&Failure::Unloadable(why)));
        let others = refusals
            .iter()
            .map(|(shard, why)| change::refusal_of(shard.as_str(), why));
        let texts: Vec<String> = own.into_iter().chain(others).collect();
        if !texts.is_empty() {
            prepared::forget(ids.iter());
            return then(Outcome::Refused(texts));
        }
        change::make(
            command,
            Box::new(move |outcome| match outcome {
                Ok(()) => then(Outcome::Made),
                Err(failure) => {
                    prepared::forget(ids.iter());
                    then(failure.into());
                }
            }),
        );
    };
    let wait = (limits::CHECK_WAIT + limits::CHECK_WAIT_EACH * count).min(bounds::CHECK_WAIT);
    state.spread.ask(peers, question, wait, Box::new(make));
}

/// Makes a registration that running code asked for. It is active here when this returns; but where the thread can not
/// wait for that (it holds the server lock in a cluster, or is the activation thread) it is only on its way.
pub fn register_now(draft: RegistrationDraft) -> Result<(), String> {
    if !is_master() {
        return Err(change::READONLY.into());
    }
    let user = identity::current();
    let session = draft.session.clone();
    let Ready {
        change,
        loaded,
        unloadable,
    } = ready(&session, vec![draft], user.as_deref(), None).map_err(|e| e.to_string())?;
    if let Some(why) = unloadable {
        return Err(Failure::Unloadable(why).to_string());
    }
    let command = Command::ChangeSession(change);
    let state = registrations();
    change::check(&command).map_err(|e| e.to_string())?;
    let group = state.service.is_group();
    if lock::is_held() && !group && !activation::is_activation_thread() {
        let guard = lock::lock();
        let made = state.activation.change_here(&guard, &command, loaded);
        return made.map(drop).map_err(|e| e.to_string());
    }
    keep(&command, loaded);
    if lock::is_held() {
        change::hand_in(command, "a registration that a function asked for was not made");
        return Ok(());
    }
    change::make_and_wait(command).map_err(|e| e.to_string())
}

fn keep(command: &Command, mut loaded: HashMap<Arc<str>, Loaded>) {
    let Command::ChangeSession(change) = command else {
        return;
    };
    for new in &change.registrations {
        if let Some(functions) = loaded.remove(&new.id) {
            prepared::keep(new.id.clone(), new.plan.clone(), functions);
        }
    }
}
