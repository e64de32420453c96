//! RG.DUMPREGISTRATIONS, RG.UNREGISTER, RG.PAUSEREGISTRATIONS, RG.UNPAUSEREGISTRATIONS, RG.CLEARREGISTRATIONSSTATS.

use std::sync::Arc;

use oxigears_coordinator::{
    message::ExecutionId,
    registry::{Command, Refusal},
};

use super::{blocking_denied, wrong_arity};
use crate::{
    module::module,
    redis::{blocked::BlockedClient, register::Call},
    registrations::{
        change::{self, Failure, READONLY},
        describe, is_master, registrations, service,
    },
};

/// RG.DUMPREGISTRATIONS
pub fn dumpregistrations(call: &mut Call) {
    let all = registrations().activation.table().read().registrations();
    let reply = call.reply();
    reply.array(all.len());
    let mut texts = describe::SessionTexts::default();
    for active in &all {
        describe::write_registration(reply, active, Some(&mut texts));
    }
}

/// An id as clients send it: characters after the number are ignored.
fn id_of(text: &[u8]) -> Option<Arc<str>> {
    ExecutionId::parse(text).map(|id| id.0)
}

/// RG.UNREGISTER <id> [ABORTPENDING]
pub fn unregister(call: &mut Call) {
    if wrong_arity(call, 2..=3) {
        return;
    }
    if !is_master() {
        return call.reply().error(READONLY);
    }
    let Some(id) = id_of(&call.args[1]) else {
        return call.reply().error(&Refusal::NotRegistered.to_string());
    };
    let command = Command::Unregister {
        id,
        abort_pending: call
            .args
            .get(2)
            .is_some_and(|w| w.eq_ignore_ascii_case(b"ABORTPENDING")),
    };
    if call.context_flags().may_block() {
        return make(call, command);
    }
    match change::remove_at_once(call.guard(), &command) {
        Ok(()) => call.reply().simple("OK"),
        Err(failure) => call.reply().error(&text_of(&failure)),
    }
}

/// RG.PAUSEREGISTRATIONS [ABORTPENDING] <id> [<id> ...]
pub fn pause(call: &mut Call) {
    let first = call.args.get(1);
    let abort_pending = first.is_some_and(|word| word.eq_ignore_ascii_case(b"ABORTPENDING"));
    let skip = if abort_pending { 2 } else { 1 };
    set_paused(call, skip, |ids| Command::Pause { ids, abort_pending });
}

/// RG.UNPAUSEREGISTRATIONS <id> [<id> ...]
pub fn unpause(call: &mut Call) {
    set_paused(call, 1, |ids| Command::Unpause { ids });
}

fn set_paused(call: &mut Call, skip: usize, command: impl FnOnce(Vec<Arc<str>>) -> Command) {
    if wrong_arity(call, 2..) || blocking_denied(call) {
        return;
    }
    if !is_master() {
        return call.reply().error(READONLY);
    }
    if call.args.len() <= skip {
        return call.reply().error("ERR no registration to pause");
    }
    let mut ids = Vec::with_capacity(call.args.len() - skip);
    for arg in &call.args[skip..] {
        let Some(id) = id_of(arg) else {
            let refusal = Refusal::UnknownRegistration(String::from_utf8_lossy(arg).into_owned());
            return call.reply().error(&text_of(&Failure::Refused(refusal)));
        };
        ids.push(id);
    }
    let command = command(ids);
    // What this node can see is wrong needs no answer of the others.
    if let Err(refusal) = service().state().check(&command) {
        return call.reply().error(&text_of(&Failure::Refused(refusal)));
    }
    make(call, command);
}

/// RG.CLEARREGISTRATIONSSTATS
pub fn clear_stats(call: &mut Call) {
    if wrong_arity(call, 1..=1) || blocking_denied(call) {
        return;
    }
    if !is_master() {
        return call.reply().error(READONLY);
    }
    make(call, Command::ClearStatistics);
}

/// Makes a change; the client waits for it.
fn make(call: &mut Call, command: Command) {
    let client = BlockedClient::block(call, None);
    let done = move |outcome: Result<(), Failure>| {
        client.reply(|reply| match outcome {
            Ok(()) => reply.simple("OK"),
            Err(failure) => reply.error(&text_of(&failure)),
        });
    };
    change::make(command, Box::new(done));
}

fn text_of(failure: &Failure) -> String {
    match failure {
        Failure::Refused(Refusal::UnknownRegistration(_)) => {
            format!("{failure} on shard {}", module().engine.topology().me)
        }
        other => other.to_string(),
    }
}
