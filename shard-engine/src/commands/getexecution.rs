//! RG.GETEXECUTION: what an execution looks like on this shard or on all.

use bytes::Bytes;
use oxigears_coordinator::{
    engine::{Gathered, question},
    message::ExecutionId,
    view::ExecutionView,
};

use super::{NO_EXECUTION, blocking_denied, wrong_arity};
use crate::{
    module::module,
    redis::{blocked::BlockedClient, register::Call, reply::ReplyWriter},
};

/// RG.GETEXECUTION <id> [SHARD|CLUSTER]
pub fn getexecution(call: &mut Call) {
    if wrong_arity(call, 2..=3) {
        return;
    }
    let engine = &module().engine;
    let Some(execution) = ExecutionId::parse(&call.args[1]).and_then(|id| engine.find(&id)) else {
        return call.reply().error(NO_EXECUTION);
    };
    let is_cluster = engine.topology().is_cluster();
    let everywhere = match call.args.get(2).map(|word| word.to_ascii_uppercase()) {
        None => is_cluster,
        Some(word) if word == b"SHARD" => false,
        Some(word) if word == b"CLUSTER" => {
            if !is_cluster {
                let text = "no cluster detected - use `RG.GETEXECUTION <id> [SHARD]` instead";
                return call.reply().error(text);
            }
            true
        }
        Some(_) => return call.reply().error("unknown subcommand"),
    };
    let me = engine.topology().execution_prefix().to_string();
    let mine = (me, ExecutionView::of(&execution));
    if !everywhere {
        return write_views(call.reply(), &[mine]);
    }
    if blocking_denied(call) {
        return;
    }
    engine.next_number();
    let client = BlockedClient::block(call, None);
    let id = Bytes::copy_from_slice(execution.id.as_str().as_bytes());
    let then = Box::new(move |answers: Gathered| {
        let mut views = vec![mine];
        for (node, answer) in answers {
            match answer {
                Ok(bytes) => views.extend(ExecutionView::decode(&bytes).map(|view| (node.to_string(), view))),
                Err(text) => return client.reply(|reply| reply.error(&text)),
            }
        }
        client.reply(move |reply| write_views(reply, &views));
    });
    engine.ask(engine.other_shards(), question::VIEW, id, then);
}

fn write_views(reply: &mut ReplyWriter, views: &[(String, ExecutionView)]) {
    reply.array(views.len());
    for (shard, view) in views {
        reply.array(4);
        reply.bulk(b"shard_id");
        reply.bulk(shard.as_bytes());
        reply.bulk(b"execution_plan");
        write_view(reply, view);
    }
}

fn write_view(reply: &mut ReplyWriter, view: &ExecutionView) {
    reply.array(16);
    reply.bulk(b"status");
    reply.bulk(view.status.as_bytes());
    reply.named_int("shards_received", view.shards_received as i64);
    reply.named_int("shards_completed", view.shards_completed as i64);
    reply.named_int("results", view.results);
    reply.bulk(b"errors");
    reply.array(view.errors.len());
    for error in &view.errors {
        reply.bulk(error.as_bytes());
    }
    reply.named_int("total_duration", view.total_ms as i64);
    reply.named_int("read_duration", view.read_ms as i64);
    reply.bulk(b"steps");
    reply.array(view.steps.len());
    for step in &view.steps {
        reply.array(8);
        reply.bulk(b"type");
        reply.bulk(step.kind.as_bytes());
        reply.named_int("duration", step.duration_ms as i64);
        reply.bulk(b"name");
        reply.bulk(step.name.as_bytes());
        reply.bulk(b"arg");
        reply.bulk(step.arg.as_bytes());
    }
}
