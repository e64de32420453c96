//! RG.DUMPEXECUTIONS: the executions that this shard knows.

use crate::{module::module, redis::register::Call};

/// RG.DUMPEXECUTIONS
pub fn dumpexecutions(call: &mut Call) {
    let listed = module().engine.listed();
    let reply = call.reply();
    reply.array(listed.len());
    for execution in listed {
        reply.array(6);
        reply.bulk(b"executionId");
        reply.bulk(execution.id.as_str().as_bytes());
        reply.bulk(b"status");
        reply.bulk(execution.status.as_bytes());
        reply.named_int("registered", i64::from(execution.registered));
    }
}
