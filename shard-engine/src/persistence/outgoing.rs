//! Sends changes to replicas and AOF, and the whole state to a rewritten AOF.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use oxigears_coordinator::registry::Command;

use super::inner_command;
use crate::{
    redis::{
        cluster::server_config,
        context::server_info,
        lock::ServerLock,
        log,
        replicate::{self, Target},
        timer,
    },
    registrations,
};

/// Pause between two looks whether writes are still paused.
const PAUSE_POLL: Duration = Duration::from_millis(5);

/// The AOF is to get the state when writes go on.
static OWED: AtomicBool = AtomicBool::new(false);

/// A change that was made here. Not while writes are paused.
pub(super) fn send_change(guard: &ServerLock, command: &Command) {
    match command.encode() {
        Ok(data) => send(guard, inner_command::APPLY, &data, Target::Everywhere),
        // What was applied is within the bounds of what can be encoded.
        Err(e) => log::warning(&format!("a change of the registry can not be replicated: {e}")),
    }
}

/// A child was forked. If it rewrites the AOF as commands, the registry is not among them: it goes to the head of the
/// incremental file, which the server has opened by now and which is loaded after the child's file.
///
/// The fork happened under the lock that is held now, so no change lies between the two. If the rewrite fails, the file
/// stays in use behind the older ones, and the state in it equals what they add up to. While writes are paused nothing can
/// be sent, and nothing changes.
pub(super) fn child_born(guard: &ServerLock) {
    let rewrites = server_info(guard, "persistence", "aof_rewrite_in_progress") == Some(1)
        && server_info(guard, "persistence", "aof_enabled") == Some(1);
    if !rewrites || server_config(guard, "aof-use-rdb-preamble").as_deref() == Some("yes") {
        return;
    }
    if replicate::is_paused(guard) && !registrations::service().state().is_empty() {
        log::warning(
            "the AOF is rewritten as commands while writes are paused: what is registered gets into it when the pause is \
             over, a server that ends before that loses it",
        );
    }
    if !OWED.swap(true, Ordering::Relaxed) {
        send_state(guard);
    }
}

/// Sends the state that is owed, or comes again when the pause may be over.
fn send_state(guard: &ServerLock) {
    if replicate::is_paused(guard) {
        return timer::once(guard, PAUSE_POLL, send_state);
    }
    OWED.store(false, Ordering::Relaxed);
    let state = registrations::service().state();
    if !state.is_empty() {
        send(guard, inner_command::RESTORE, &state.encode(), Target::AppendOnlyFile);
    }
}

fn send(guard: &ServerLock, what: &'static str, data: &[u8], target: Target) {
    if !replicate::replicate(guard, inner_command::NAME, &[what.as_bytes(), data], target) {
        log::warning(&format!("the server refused to replicate RG.INNERREGISTRY {what}"));
    }
}
