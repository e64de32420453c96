//! The registry: sessions, registrations and requirement metadata of the whole cluster as one state machine.
//!
//! Commands in, a new state or a refusal out: no I/O, no clock, no randomness, so that all nodes that apply the same
//! commands in the same order hold the same state. `consensus` agrees on the order; a server that is alone applies
//! directly. States are cheap to clone (shared, copied where they change): a published one never changes.
//!
//! * `command`: what can be asked, and why it may be refused
//! * `state`: what is held, and how commands change it
//! * `shared_map`: the map that makes states cheap to clone
//! * `change`, `rules`: what each command does, and what it must look like
//! * `encode`, `bounded`: the bytes of states and commands
//! * `diff`: what a node has to do to get from one state to another

mod bounded;
mod change;
mod command;
mod diff;
mod encode;
mod rules;
mod shared_map;
mod state;
#[cfg(test)]
mod tests;

pub use self::{
    command::{Command, NewRegistration, Proposal, Refusal, RequestId, Requirement, SessionChange, Word},
    diff::Difference,
    encode::StateError,
    state::{
        EventSource, FailurePolicy, RegisterMode, Registration, RegistrationId, Registry, Schedule, Session,
        StreamOptions, Tombstone,
    },
};
