//! RG.ABORTEXECUTION: ends an execution on all shards, running Python included.

use std::sync::Arc;

use bytes::Bytes;
use oxigears_coordinator::{
    engine::{Execution, Gathered, question},
    message::ExecutionId,
};
use parking_lot::Mutex;

use super::{blocking_denied, wrong_arity};
use crate::{
    module::module,
    redis::{blocked::BlockedClient, register::Call},
};

/// RG.ABORTEXECUTION <id>
pub fn abortexecution(call: &mut Call) {
    if wrong_arity(call, 2..=2) || blocking_denied(call) {
        return;
    }
    let engine = &module().engine;
    let Some(id) = ExecutionId::parse(&call.args[1]) else {
        return call.reply().error(question::UNKNOWN);
    };
    engine.next_number();
    let known = engine.find(&id);
    // An execution of this shard alone is nobody else's business.
    let shards = match &known {
        Some(execution) if !execution.is_distributed() => Vec::new(),
        _ => engine.other_shards(),
    };
    if known.is_none() && shards.is_empty() {
        return call.reply().error(question::UNKNOWN);
    }
    // Who does not know what is under way here has dropped its part already, as it ended, or has not begun. Parts of what
    // was fired are dropped at their end.
    let is_elsewhere = |execution: &Arc<Execution>| execution.phase().is_over() && execution.registration().is_none();
    let only_here = known.as_ref().is_some_and(|execution| !is_elsewhere(execution));
    let client = BlockedClient::block(call, None);
    let waiting = Arc::new(Mutex::new(Waiting {
        client: Some(client),
        only_here,
        mine: None,
        others: None,
    }));
    engine.manage(move || {
        let engine = &module().engine;
        let argument = Bytes::copy_from_slice(id.as_str().as_bytes());
        let by_others = waiting.clone();
        // The others first: they stop while this shard waits for its own part.
        let gathered = move |others: Gathered| Waiting::note(&by_others, |waiting| waiting.others = Some(others));
        engine.ask(shards, question::ABORT, argument, Box::new(gathered));
        engine.abort_here(&id, known, move |ended| {
            Waiting::note(&waiting, |waiting| waiting.mine = Some(ended));
        });
    });
}

/// A client that waits until all shards have said how it went.
struct Waiting {
    client: Option<BlockedClient>,
    /// Others need not know it.
    only_here: bool,
    mine: Option<Result<(), String>>,
    others: Option<Gathered>,
}

impl Waiting {
    /// Answers the client once both are there.
    fn note(waiting: &Mutex<Waiting>, what: impl FnOnce(&mut Waiting)) {
        let mut waiting = waiting.lock();
        what(&mut waiting);
        let (Some(mine), Some(others)) = (&waiting.mine, &waiting.others) else {
            return;
        };
        let mut errors = others.iter().filter_map(|(_, answer)| answer.as_ref().err());
        let is_meant = |text: &&String| !waiting.only_here || *text != question::UNKNOWN;
        let first = mine.as_ref().err().or_else(|| errors.find(is_meant)).cloned();
        if let Some(client) = waiting.client.take() {
            client.reply(move |reply| match first {
                None => reply.simple("OK"),
                Some(text) => reply.error(&text),
            });
        }
    }
}
