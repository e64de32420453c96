//! Keeps the registry in dumps and in the AOF, and sends its changes to replicas.
//!
//! * `dump`: the registry in RDB files and full syncs
//! * `loading`: what a load does to the registry, from the server's events
//! * `inner_command`: RG.INNERREGISTRY, by which changes travel in the AOF and to replicas
//! * `outgoing`: sends that command; also the whole state after the fork of an AOF rewrite
//! * `torn`: an AOF that was cut off inside a transaction
//!
//! # Which of them counts
//!
//! **A server that is alone** has its registry from what it loads. A load of any kind (RDB, AOF, full sync,
//! DEBUG RELOAD) begins with an empty registry; the dump's data and the AOF's commands fill it, and at the end it becomes
//! active. If the load fails, the registry is as empty as the dataset; with `repl-diskless-load swapdb` the old
//! dataset stays, and so does the old registry. FLUSHALL does nothing to it. Each change is one RG.INNERREGISTRY APPLY,
//! replicated and logged at the moment at which it is made. A rewritten AOF begins with the RDB preamble, which holds
//! the registry; without preamble the whole state follows as RG.INNERREGISTRY RESTORE at the head of the new
//! incremental file. (BGREWRITEAOF with `appendonly no` writes no incremental file: such a file needs the preamble.)
//!
//! **In a group the log wins**: loads change nothing, and changes are not replicated by commands, because every node has
//! them from the log, replicas too. Dumps and rewritten AOFs still hold the registry as it was when they were made, so
//! that they restore a fresh server, or a whole new cluster through its founder. What a load brings is taken only as
//! long as the node waits for its group to be founded.
//!
//! Never decides about changes, and never waits: saving runs in forked children.

mod dump;
mod inner_command;
mod loading;
mod outgoing;
mod torn;

use oxigears_coordinator::registry::Command;

use crate::{
    redis::{
        events::{self, Event},
        lock::ServerLock,
    },
    registrations, timers,
};

/// Registers data type, events and command. At load.
pub fn register(guard: &ServerLock) -> Result<(), String> {
    dump::register(guard)?;
    inner_command::register(guard)?;
    events::subscribe(guard, on_event)
}

/// Sends a change that was made here, alone, to replicas and AOF; in the lock section in which it was made, and not while
/// `redis::replicate::is_paused`.
pub fn replicate(guard: &ServerLock, command: &Command) {
    outgoing::send_change(guard, command);
}

fn on_event(guard: &ServerLock, event: Event) {
    torn::on_event(guard, event);
    match event {
        Event::NowMaster => registrations::role_changed(true),
        Event::NowReplica => registrations::role_changed(false),
        Event::Replaced => registrations::dataset_replaced(guard),
        Event::ModulesChanged => registrations::commands_changed(guard),
        Event::ForkChildBorn => outgoing::child_born(guard),
        Event::ForkChildDied | Event::MasterLinkUp | Event::MasterLinkDown => {}
        event => {
            loading::on_event(event);
            if matches!(
                event,
                Event::LoadEnded | Event::LoadFailed | Event::SwapCompleted | Event::SwapAborted
            ) {
                timers::wake_all();
            }
        }
    }
}

/// This node is in a group, whose log is the truth. Not yet while it waits for the group to be founded.
fn log_decides() -> bool {
    let service = registrations::service();
    service.is_group() && service.status().group.is_some()
}
