//! RG.GETRESULTS and RG.GETRESULTSBLOCKING: results and errors that this shard holds.

use std::sync::Arc;

use oxigears_coordinator::{engine::Execution, message::ExecutionId};

use super::{NO_EXECUTION, blocking_denied, write_pair, wrong_arity};
use crate::{
    module::module,
    redis::{blocked::BlockedClient, register::Call},
};

/// RG.GETRESULTS <id>
pub fn getresults(call: &mut Call) {
    if wrong_arity(call, 2..) {
        return;
    }
    match ExecutionId::parse(&call.args[1]).and_then(|id| module().engine.find(&id)) {
        None => call.reply().error(NO_EXECUTION),
        Some(execution) if !execution.phase().is_over() => call.reply().error("execution is still running"),
        Some(execution) => {
            let reply = call.reply();
            execution.with_outcome(|outcome| write_pair(reply, outcome));
        }
    }
}

/// RG.GETRESULTSBLOCKING <id>
pub fn getresultsblocking(call: &mut Call) {
    if wrong_arity(call, 2..=2) || blocking_denied(call) {
        return;
    }
    let Some(execution) = ExecutionId::parse(&call.args[1]).and_then(|id| module().engine.find(&id)) else {
        return call.reply().error(NO_EXECUTION);
    };
    let client = BlockedClient::block(call, None);
    execution.when_over(Box::new(move |execution: &Arc<Execution>| {
        let execution = execution.clone();
        client.reply(move |reply| execution.with_outcome(|outcome| write_pair(reply, outcome)));
    }));
}
