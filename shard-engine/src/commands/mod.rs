//! The commands, one file each (or one per small family). The table in `table.rs` registers them.

mod abort;
mod cluster;
mod config;
mod drop;
mod dumpexecutions;
mod getexecution;
mod getresults;
mod options;
mod pyexecute;
mod python;
mod registrations;
mod registry;
mod sessions;
mod table;
mod trigger;

use oxigears_coordinator::execution::Outcome;

pub use self::{python::PLUGIN, table::register};

use crate::redis::{register::Call, reply::ReplyWriter};

/// Text for an id that this shard does not know.
const NO_EXECUTION: &str = "execution plan does not exist";

/// Writes the pair of results and errors.
pub fn write_pair(reply: &mut ReplyWriter, outcome: &Outcome) {
    reply.array(2);
    reply.write_records(&outcome.results);
    reply.array(outcome.errors.len());
    for error in &outcome.errors {
        reply.bulk(error.as_bytes());
    }
}

/// Answers the server's usual text for a wrong number of arguments; true if it was wrong.
fn wrong_arity(call: &mut Call, allowed: impl std::ops::RangeBounds<usize>) -> bool {
    let wrong = !allowed.contains(&call.args.len());
    if wrong {
        let name = String::from_utf8_lossy(&call.args[0]).to_lowercase();
        call.reply()
            .error(&format!("ERR wrong number of arguments for '{name}' command"));
    }
    wrong
}

/// Refuses a command that would block the client where that is not allowed; true if refused.
fn blocking_denied(call: &mut Call) -> bool {
    let flags = call.context_flags();
    let place = if flags.lua {
        "a Lua script"
    } else if flags.multi {
        "a transaction"
    } else if flags.deny_blocking {
        "a function or a client that must not block"
    } else {
        return false;
    };
    let name = String::from_utf8_lossy(&call.args[0]).to_uppercase();
    call.reply().error(&format!(
        "ERR {name} waits for other shards or threads and can not be called from {place}"
    ));
    true
}
