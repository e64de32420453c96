//! Making a change of the registry: handed to the group, or to the activation thread of a server that is alone.
//!
//! Nothing here waits: who wants to know the outcome gives a closure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use oxigears_coordinator::{
    consensus::ProposeError,
    limits as bounds,
    message::RegistryQuestion,
    registry::{Command, Refusal},
};
use parking_lot::Mutex;
use thiserror::Error;

use super::{limits, registrations};
use crate::{
    module::module,
    redis::{lock::ServerLock, log},
};

/// Why a change was not made, or may not have been made.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The registry refuses it: nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The functions can not be loaded here: nothing changed.
    #[error("Failed deserializing flat execution, {0}")]
    Unloadable(String),
    /// Anything else; the text tells what is known of the outcome.
    #[error("{0}")]
    Failed(String),
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Failure {
        match error {
            ProposeError::Refused(refusal) => Failure::Refused(refusal),
            other => Failure::Failed(other.to_string()),
        }
    }
}

/// What a replica answers to changes.
pub const READONLY: &str = "READONLY You can't write against a read only replica.";

/// What is answered where nobody can wait for the end of a pause.
pub const PAUSED: &str = "ERR writes are paused (CLIENT PAUSE, or a fail-over is under way), the registry can not be changed \
                          now: nothing was changed, try again";

/// Hears how a change ended. Called on any thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// Makes a change. `done` hears of success when the change is active here and, as far as they answer in time, on the
/// other masters.
pub fn make(command: Command, done: Done) {
    let state = registrations();
    if !state.service.is_group() {
        return state.activation.change(command, done);
    }
    propose(command, done);
}

/// The same in a group.
pub fn propose(command: Command, done: Done) {
    let then = Box::new(move |outcome: Result<u64, ProposeError>| match outcome {
        Ok(index) => settle(index, Box::new(move || done(Ok(())))),
        Err(e) => done(Err(e.into())),
    });
    registrations().service.propose(command, then);
}

/// Calls a closure when the last of several parties is there.
struct Meeting {
    missing: u32,
    then: Option<Box<dyn FnOnce() + Send>>,
}

fn arrive(meeting: &Mutex<Meeting>) {
    let then = {
        let mut meeting = meeting.lock();
        meeting.missing -= 1;
        if meeting.missing > 0 {
            return;
        }
        meeting.then.take()
    };
    if let Some(then) = then {
        then();
    }
}

/// Calls `then` once the state of `index` is active here and on the connected masters, or their time is up.
fn settle(index: u64, then: Box<dyn FnOnce() + Send>) {
    let state = registrations();
    // Two parties: this node, and all the others.
    let here = Arc::new(Mutex::new(Meeting {
        missing: 2,
        then: Some(then),
    }));
    let there = here.clone();
    let question = RegistryQuestion::Active(index);
    let peers = state.spread.connected_masters();
    state.spread.ask(
        peers,
        question,
        bounds::ACTIVATION_WAIT,
        Box::new(move |_| arrive(&there)),
    );
    let wait = limits::OWN_ACTIVATION_WAIT;
    let then = move |active: bool| {
        if !active {
            log::warning(&format!(
                "a change of the registry was made but is not active here after {} ms: is the interpreter or the server busy?",
                wait.as_millis()
            ));
        }
        arrive(&here);
    };
    state.activation.when_active(index, wait, Box::new(then));
}

/// Makes a change where nobody may wait. Done at once on a server that is alone; in a group it is on its way, ahead of
/// what is handed in later.
pub fn remove_at_once(guard: &ServerLock, command: &Command) -> Result<(), Failure> {
    let state = registrations();
    if !state.service.is_group() {
        return state.activation.remove_here(guard, command).map(drop);
    }
    check(command)?;
    if state.service.status().leader.is_none() {
        return Err(ProposeError::NoQuorum("this node knows of no leader".into()).into());
    }
    hand_in(
        command.clone(),
        "a registration was not removed as a function, script or transaction wanted",
    );
    Ok(())
}

/// Removals that were handed in and are not settled, by the registration's id. The service bounds how many are under way.
static REMOVALS: Mutex<BTreeMap<Arc<str>, Command>> = Mutex::new(BTreeMap::new());

/// The registration was removed here, and what is handed in now will not meet it.
pub fn is_leaving(id: &str) -> bool {
    REMOVALS.lock().contains_key(id)
}

/// Whether what is handed in now would be refused: what was removed before, here, is gone then.
pub fn check(command: &Command) -> Result<(), Refusal> {
    let removals = REMOVALS.lock();
    let state = registrations().service.state();
    match command {
        Command::Unregister { id, .. } if removals.contains_key(id) => Err(Refusal::NotRegistered),
        // A script may remove thousands: each is looked at alone.
        Command::Unregister { .. } => state.check(command),
        _ => state.after(removals.values()).check(command),
    }
}

/// Makes a change whose outcome nobody waits for.
pub fn hand_in(command: Command, failed: &'static str) {
    let leaving = match &command {
        Command::Unregister { id, .. } => Some(id.clone()),
        _ => None,
    };
    if let Some(id) = &leaving {
        REMOVALS.lock().insert(id.clone(), command.clone());
    }
    let done = move |outcome: Result<(), Failure>| {
        if let Some(id) = &leaving {
            REMOVALS.lock().remove(id);
        }
        if let Err(failure) = outcome {
            log::warning(&format!("{failed}: {failure}"));
        }
    };
    make(command, Box::new(done));
}

/// Makes a change and waits for its end. For threads that may block, without GIL and server lock.
pub fn make_and_wait(command: Command) -> Result<(), Failure> {
    let (sender, receiver) = std::sync::mpsc::channel();
    // The receiver is gone only if this thread is.
    make(
        command,
        Box::new(move |outcome| {
            let _ = sender.send(outcome);
        }),
    );
    // Longer than all that `make` waits for: it always answers.
    let most: Duration = bounds::PROPOSE_TIMEOUT + limits::OWN_ACTIVATION_WAIT + bounds::ACTIVATION_WAIT;
    receiver.recv_timeout(most).unwrap_or_else(|_| {
        Err(Failure::Failed(
            "TIMEOUT it is unknown whether the change was made; look with RG.DUMPREGISTRATIONS".into(),
        ))
    })
}

/// How the refusal of a shard reads for clients.
pub fn refusal_of(shard: &str, reason: &str) -> String {
    format!("ERR shard-{shard}: {reason}")
}

/// The same for a refusal of this shard.
pub fn own_refusal(refusal: &Failure) -> String {
    refusal_of(module().engine.topology().me.as_str(), &refusal.to_string())
}
