//! Commands that registrations take over: which they are, and what is done with them.
//!
//! * `facts`: what the server says of its commands; `keyset`: which keys are meant
//! * `needs`: from the active registrations to the commands that are to be taken over; `table`: those, to be looked up
//! * `check`: what may be registered
//! * `judge`: the look at every command; `access`: which internal command may stand in front
//! * `wrap`: running a command that was taken over; `hooks`: the functions that take its place;
//!   `links`: the executions that answer for it
//!
//! Nothing here runs in a command that is not taken over, and a server without such registrations has no filter at all.

mod access;
mod check;
pub mod facts;
mod hooks;
mod judge;
pub mod keyset;
mod links;
mod needs;
mod raised;
mod table;
mod wrap;

pub use self::{
    check::{check_hook, check_links},
    facts::only_reads,
    hooks::{issuing, origin_elsewhere},
    judge::{is_hooked, see_to_filter, set_loading},
};

use oxigears_coordinator::registry::{Difference, EventSource, Registration};

use super::activation::Activation;
use crate::redis::{lock::ServerLock, wrapper};

/// Registers the internal commands. At load.
pub fn register(guard: &ServerLock) -> Result<(), String> {
    wrapper::register(guard, wrap::handle)
}

/// Called now and then.
pub fn look(guard: &ServerLock) {
    access::look_at_clients(guard);
}

/// Another module has come or gone, and its commands with it.
pub fn commands_changed(guard: &ServerLock, activation: &Activation) {
    facts::refresh(guard);
    publish(guard, activation);
}

/// The active registrations have changed by this much.
pub fn changed(guard: &ServerLock, activation: &Activation, difference: &Difference) {
    let matters = |registration: &Registration| {
        let source = &registration.source;
        matches!(
            source,
            EventSource::Hook { .. } | EventSource::Keys { .. } | EventSource::Stream { .. }
        )
    };
    let mut removed = difference.removed.iter().map(|(registration, _)| registration);
    let mut changed = difference.added.iter().chain(&difference.changed);
    if !(removed.any(|r| matters(r)) || changed.any(|r| matters(r))) {
        return;
    }
    publish(guard, activation);
}

fn publish(guard: &ServerLock, activation: &Activation) {
    let registrations = activation.table().read().registrations();
    judge::publish(guard, needs::table(guard, &registrations));
}
