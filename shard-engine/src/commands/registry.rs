//! RG.REGISTRY: where this node stands in the group that agrees on the registry.

use oxigears_coordinator::consensus::{MemberStatus, RegistryStatus};

use super::{blocking_denied, wrong_arity};
use crate::{
    redis::{blocked::BlockedClient, register::Call, reply::ReplyWriter},
    registrations::{self, change::READONLY, is_master, registrations},
};

/// RG.REGISTRY [STATUS|RECOVER]
pub fn registry(call: &mut Call) {
    if wrong_arity(call, 1..=2) {
        return;
    }
    match call.args.get(1).map(|word| word.to_ascii_uppercase()).as_deref() {
        None | Some(b"STATUS") => {
            let status = registrations::status();
            write(call.reply(), &status, registrations().activation.index());
        }
        Some(b"RECOVER") => recover(call),
        Some(_) => call.reply().error("ERR unknown subcommand"),
    }
}

/// Founds a new group from what this node holds: when the logs of a majority are lost for good.
fn recover(call: &mut Call) {
    if blocking_denied(call) {
        return;
    }
    if !is_master() {
        return call.reply().error(READONLY);
    }
    let client = BlockedClient::block(call, None);
    let done = move |outcome: Result<(), String>| {
        client.reply(|reply| match outcome {
            Ok(()) => reply.simple("OK"),
            Err(text) => reply.error(&text),
        });
    };
    registrations().service.recover(Box::new(done));
}

fn write(reply: &mut ReplyWriter, status: &RegistryStatus, active: u64) {
    let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    reply.array(26);
    reply.named_bulk("role", status.role);
    reply.text("group");
    reply.bulk_or_null(status.group.as_deref());
    reply.text("raftId");
    match status.raft_id {
        0 => reply.null(),
        // Random over all of its range: as text where it does not fit.
        id => match i64::try_from(id) {
            Ok(id) => reply.int(id),
            Err(_) => reply.text(&id.to_string()),
        },
    }
    reply.named_int("term", int(status.term));
    reply.text("leader");
    reply.bulk_or_null(status.leader.as_ref().map(|leader| leader.as_str()));
    reply.named_int("commit", int(status.commit));
    reply.named_int("applied", int(status.applied));
    reply.named_int("active", int(active));
    reply.named_int("logFirst", int(status.log.0));
    reply.named_int("logLast", int(status.log.1));
    reply.named_int("diskBytes", int(status.disk_bytes));
    reply.text("error");
    reply.bulk_or_null(status.error.as_deref());
    reply.text("members");
    reply.array(status.members.len());
    for member in &status.members {
        write_member(reply, member);
    }
}

fn write_member(reply: &mut ReplyWriter, member: &MemberStatus) {
    let number = |reply: &mut ReplyWriter, n: Option<u64>| match n.map(i64::try_from) {
        Some(Ok(n)) => reply.int(n),
        Some(Err(_)) => reply.int(i64::MAX),
        None => reply.null(),
    };
    reply.array(10);
    reply.named_bulk("node", member.node.as_str());
    reply.text("raftId");
    match i64::try_from(member.raft_id) {
        Ok(id) => reply.int(id),
        Err(_) => reply.text(&member.raft_id.to_string()),
    }
    reply.named_int("voter", i64::from(member.voter));
    reply.text("matched");
    number(reply, member.matched);
    reply.text("lag");
    number(reply, member.lag);
}
