//! RG.INNERREGISTRY: how changes of the registry travel in the AOF and to replicas. Refuses everybody else.
//!
//! * `APPLY <command>`: one change
//! * `RESTORE <state>`: the whole state in place of the one at hand

use oxigears_coordinator::registry::{Command, Registry};

use super::{loading, log_decides};
use crate::{
    redis::{
        lock::ServerLock,
        log,
        register::{Argument, Call, CommandSpec, Purpose, create_with},
        replicate::Sender,
    },
    registrations,
};

/// Its name.
pub(super) const NAME: &str = "rg.innerregistry";
/// One change follows.
pub(super) const APPLY: &str = "APPLY";
/// The whole state follows.
pub(super) const RESTORE: &str = "RESTORE";

/// A write, so that a pause of all writes holds it up on replicas; out of sight of MONITOR, as it may be long.
const FLAGS: &str = "write admin";

static COMMAND: CommandSpec = CommandSpec {
    name: NAME,
    purpose: Purpose::Internal,
    handler: inner_registry,
    summary: "Internal: carries changes of the registry to replicas and in the AOF; clients are refused.",
    complexity: "O(N) where N is the number of registrations in the change.",
    since: "1.2.0",
    args: &[Argument::text("what"), Argument::text("data")],
};

/// Registers the command.
pub(super) fn register(guard: &ServerLock) -> Result<(), String> {
    create_with(guard, &COMMAND, FLAGS, (0, 0, 0))
}

fn inner_registry(call: &mut Call) {
    let sender = call.sender();
    if sender == Sender::Client {
        return call.reply().error(
            "ERR RG.INNERREGISTRY is for replication and the AOF only; registrations are made by RG.PYEXECUTE and \
             removed by RG.UNREGISTER",
        );
    }
    match apply(call) {
        Ok(()) => {
            if sender == Sender::Master {
                call.replicate_verbatim();
            }
            call.reply().simple("OK");
        }
        Err(reason) => {
            let place = match sender {
                Sender::AppendOnlyFile => "from the AOF",
                _ => "on replica",
            };
            log::warning(&format!("Failed register session {place}, {reason}"));
            call.reply().error(&format!("ERR {reason}"));
        }
    }
}

fn apply(call: &Call) -> Result<(), String> {
    let [_, what, data] = call.args.as_slice() else {
        return Err(format!(
            "RG.INNERREGISTRY takes two arguments, not {}",
            call.args.len() - 1
        ));
    };
    if log_decides() {
        return Ok(());
    }
    if what.eq_ignore_ascii_case(APPLY.as_bytes()) {
        let command = Command::decode(data).map_err(|e| e.to_string())?;
        registrations::apply_replicated(call.guard(), command).map_err(|e| e.to_string())
    } else if what.eq_ignore_ascii_case(RESTORE.as_bytes()) {
        loading::take(Registry::decode(data).map_err(|e| e.to_string())?);
        Ok(())
    } else {
        Err(format!(
            "RG.INNERREGISTRY {} is not known to this version of the module; upgrade it",
            String::from_utf8_lossy(what)
        ))
    }
}
