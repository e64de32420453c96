//! RG.ABORTEXECUTION: ends an execution on all shards, running Python included.

use bytes::Bytes;
use oxigears_coordinator::{
    engine::{Gathered, question},
    message::ExecutionId,
};

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
    // Who does not know what is under way here has dropped its part already, as it ended, or has not begun.
    let under_way = known.as_ref().is_some_and(|execution| !execution.phase().is_over());
    let client = BlockedClient::block(call, None);
    engine.manage(move || {
        let engine = &module().engine;
        let argument = Bytes::copy_from_slice(id.as_str().as_bytes());
        let (sender, receiver) = std::sync::mpsc::channel();
        // The others first: they stop while this shard waits for its own part.
        let gathered = move |others: Gathered| {
            // The receiver is below; it is gone only if this thread is.
            let _ = sender.send(others);
        };
        engine.ask(shards, question::ABORT, argument, Box::new(gathered));
        let mine = engine.abort_here(&id, known);
        let others = receiver.recv().unwrap_or_default();
        let mut errors = others.into_iter().filter_map(|(_, answer)| answer.err());
        let first = mine
            .err()
            .or_else(|| errors.find(|text| !under_way || text != question::UNKNOWN));
        client.reply(move |reply| match first {
            None => reply.simple("OK"),
            Some(text) => reply.error(&text),
        });
    });
}
