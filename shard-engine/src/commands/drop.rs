//! RG.DROPEXECUTION: forgets a finished execution on all shards.

use oxigears_coordinator::message::ExecutionId;

use super::{NO_EXECUTION, wrong_arity};
use crate::{module::module, redis::register::Call};

/// RG.DROPEXECUTION <id>
pub fn dropexecution(call: &mut Call) {
    if wrong_arity(call, 2..=2) {
        return;
    }
    let engine = &module().engine;
    let Some(execution) = ExecutionId::parse(&call.args[1]).and_then(|id| engine.find(&id)) else {
        return call.reply().error(NO_EXECUTION);
    };
    if !execution.phase().is_over() {
        return call
            .reply()
            .error("can not drop a not yet finished execution, abort it first.");
    }
    engine.forget_everywhere(&execution);
    call.reply().simple("OK");
}
