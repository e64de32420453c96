//! Sends changes to replicas and AOF, and the whole state to a rewritten AOF.
//!
//! While the server pauses writes nothing may be sent: it waits here, in order.

use std::{collections::VecDeque, time::Duration};

use oxigears_coordinator::registry::Command;
use parking_lot::Mutex;

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

struct Waiting {
    what: &'static str,
    data: Vec<u8>,
    target: Target,
}

static WAITING: Mutex<VecDeque<Waiting>> = Mutex::new(VecDeque::new());

/// A change that was made here.
pub(super) fn send_change(guard: &ServerLock, command: &Command) {
    match command.encode() {
        Ok(data) => send(guard, inner_command::APPLY, data, Target::Everywhere),
        // What was applied is within the bounds of what can be encoded.
        Err(e) => log::warning(&format!("a change of the registry can not be replicated: {e}")),
    }
}

/// A child was forked. If it rewrites the AOF as commands, the registry is not among them: it goes to the head of the
/// incremental file, which the server has opened by now and which is loaded after the child's file.
///
/// The fork happened under the lock that is held now, so no change lies between the two. If the rewrite fails, the file
/// stays in use behind the older ones, and the state in it equals what they add up to.
pub(super) fn child_born(guard: &ServerLock) {
    let rewrites = server_info(guard, "persistence", "aof_rewrite_in_progress") == Some(1)
        && server_info(guard, "persistence", "aof_enabled") == Some(1);
    if !rewrites || server_config(guard, "aof-use-rdb-preamble").as_deref() == Some("yes") {
        return;
    }
    let state = registrations::service().state();
    if !state.is_empty() {
        send(guard, inner_command::RESTORE, state.encode(), Target::AppendOnlyFile);
    }
}

/// What still waits for replicas is not theirs any more: the master decides now.
pub(super) fn now_replica() {
    WAITING.lock().retain(|one| one.target == Target::AppendOnlyFile);
}

fn send(guard: &ServerLock, what: &'static str, data: Vec<u8>, target: Target) {
    let mut waiting = WAITING.lock();
    let armed = !waiting.is_empty();
    waiting.push_back(Waiting { what, data, target });
    if !armed {
        flush(guard, &mut waiting);
    }
}

/// Sends all that waits, or comes again when the pause may be over.
fn flush(guard: &ServerLock, waiting: &mut VecDeque<Waiting>) {
    while !replicate::is_paused(guard) {
        let Some(Waiting { what, data, target }) = waiting.pop_front() else {
            return;
        };
        if !replicate::replicate(guard, inner_command::NAME, &[what.as_bytes(), &data], target) {
            log::warning(&format!("the server refused to replicate RG.INNERREGISTRY {what}"));
        }
    }
    if !waiting.is_empty() {
        timer::once(guard, PAUSE_POLL, |guard| flush(guard, &mut WAITING.lock()));
    }
}
