//! The table of commands: name, handler, documentation.

use super::{
    abort, cluster, config, drop, dumpexecutions, getexecution, getresults, pyexecute, python, registrations, registry,
    sessions, trigger,
};
use crate::redis::{
    call::in_nested_call,
    lock::ServerLock,
    register::{self, Argument, Call, CommandSpec, Purpose, create, create_with},
};
use crate::{config::ConfigStore, identity, module::module};

/// Registers every command.
pub fn register(guard: &ServerLock, config: &ConfigStore) -> Result<(), String> {
    if let Some(command) = config.required_permission()
        && identity::has_subcommands(guard, &command)
    {
        return Err(format!(
            "RequiredPermission {command}: this command has subcommands, name the one that users must be allowed to run, as \
             in config|set"
        ));
    }
    register::set_gate(has_permission);
    COMMANDS.iter().try_for_each(|command| create(guard, command))?;
    create_with(guard, &TRIGGER, FIRING, (0, 0, 0))?;
    create_with(guard, &TRIGGER_ON_KEY, FIRING, (2, 2, 1))
}

/// The user of a client has the permission that the configuration asks for beyond the command itself.
fn has_permission(call: &Call) -> Result<(), String> {
    let Some(command) = module().config.required_permission() else {
        return Ok(());
    };
    let user = match in_nested_call() {
        true => identity::current().map(|user| user.to_string()),
        false => call.user_name(),
    };
    // Code without a user has all rights.
    let Some(user) = user else { return Ok(()) };
    let words: Vec<&str> = command.split('|').collect();
    identity::check_permission(call.guard(), &user, &words).map_err(|why| {
        format!("NOPERM user '{user}' has not the permission for '{command}' that RequiredPermission asks for: {why}")
    })
}

/// What these fire may write: while writes are paused the server holds them up.
const FIRING: &str = "readonly may-replicate";

static TRIGGER: CommandSpec = CommandSpec {
    name: "rg.trigger",
    purpose: Purpose::Use,
    handler: trigger::trigger,
    summary: "Runs what is registered for a trigger; answers its results, or its first error.",
    complexity: "That of the registered function.",
    since: "1.0.0",
    args: &[Argument::text("trigger"), Argument::texts("argument")],
};

static TRIGGER_ON_KEY: CommandSpec = CommandSpec {
    name: "rg.triggeronkey",
    purpose: Purpose::Use,
    handler: trigger::triggeronkey,
    summary: "Runs what is registered for a trigger, on the shard that holds a key.",
    complexity: "That of the registered function.",
    since: "1.2.1",
    args: &[
        Argument::text("trigger"),
        Argument::text("key"),
        Argument::texts("argument"),
    ],
};

const REGISTRATION: Argument = Argument::text("registration_id");

const ID: Argument = Argument::text("execution_id");

static COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "rg.pyexecute",
        purpose: Purpose::Administration,
        handler: pyexecute::pyexecute,
        summary: "Runs a Python script; answers the results and errors of its run(), or OK.",
        complexity: "That of the script and of the execution it starts.",
        since: "1.0.0",
        args: &[
            Argument::text("script"),
            Argument::flag("unblocking", "UNBLOCKING"),
            Argument::option("id", "ID"),
            Argument::option("description", "DESCRIPTION"),
            Argument::flag("upgrade", "UPGRADE"),
            Argument::option("replace_with", "REPLACE_WITH"),
            Argument::flag("force_reinstall_requirements", "FORCE_REINSTALL_REQUIREMENTS"),
            Argument::options("requirement", "REQUIREMENTS"),
        ],
    },
    CommandSpec {
        name: "rg.dumpexecutions",
        purpose: Purpose::Inspection,
        handler: dumpexecutions::dumpexecutions,
        summary: "Lists the executions that this shard knows.",
        complexity: "O(N) where N is the number of executions.",
        since: "1.0.0",
        args: &[],
    },
    CommandSpec {
        name: "rg.getexecution",
        purpose: Purpose::Inspection,
        handler: getexecution::getexecution,
        summary: "Shows status, counts, durations and steps of an execution, here or on all shards.",
        complexity: "O(N) where N is the number of errors and steps.",
        since: "1.0.0",
        args: &[ID, Argument::choice("scope", &["SHARD", "CLUSTER"])],
    },
    CommandSpec {
        name: "rg.getresults",
        purpose: Purpose::Inspection,
        handler: getresults::getresults,
        summary: "Gives results and errors of a finished execution that this shard holds.",
        complexity: "O(N) where N is the number of results and errors.",
        since: "1.0.0",
        args: &[ID],
    },
    CommandSpec {
        name: "rg.getresultsblocking",
        purpose: Purpose::Inspection,
        handler: getresults::getresultsblocking,
        summary: "Waits until an execution is finished, then gives its results and errors.",
        complexity: "O(N) where N is the number of results and errors.",
        since: "1.0.0",
        args: &[ID],
    },
    CommandSpec {
        name: "rg.abortexecution",
        purpose: Purpose::Administration,
        handler: abort::abortexecution,
        summary: "Ends an execution on all shards; running Python code is interrupted.",
        complexity: "O(N) where N is the number of shards.",
        since: "1.0.0",
        args: &[ID],
    },
    CommandSpec {
        name: "rg.dropexecution",
        purpose: Purpose::Administration,
        handler: drop::dropexecution,
        summary: "Forgets a finished execution on all shards.",
        complexity: "O(N) where N is the number of results.",
        since: "1.0.0",
        args: &[ID],
    },
    CommandSpec {
        name: "rg.dumpregistrations",
        purpose: Purpose::Inspection,
        handler: registrations::dumpregistrations,
        summary: "Lists the registrations that are active on this shard, and what they have done here.",
        complexity: "O(N) where N is the number of registrations.",
        since: "1.0.0",
        args: &[],
    },
    CommandSpec {
        name: "rg.unregister",
        purpose: Purpose::Administration,
        handler: registrations::unregister,
        summary: "Removes a registration from all shards.",
        complexity: "O(1)",
        since: "1.0.0",
        args: &[REGISTRATION, Argument::flag("abortpending", "ABORTPENDING")],
    },
    CommandSpec {
        name: "rg.pauseregistrations",
        purpose: Purpose::Administration,
        handler: registrations::pause,
        summary: "Pauses registrations of streams and timers on all shards, all or none.",
        complexity: "O(N) where N is the number of ids.",
        since: "1.2.0",
        args: &[
            Argument::flag("abortpending", "ABORTPENDING"),
            Argument::texts("registration_id"),
        ],
    },
    CommandSpec {
        name: "rg.unpauseregistrations",
        purpose: Purpose::Administration,
        handler: registrations::unpause,
        summary: "Ends the pause of registrations on all shards, for all or none.",
        complexity: "O(N) where N is the number of ids.",
        since: "1.2.0",
        args: &[Argument::texts("registration_id")],
    },
    CommandSpec {
        name: "rg.clearregistrationsstats",
        purpose: Purpose::Administration,
        handler: registrations::clear_stats,
        summary: "Sets what registrations have counted to zero, on all shards.",
        complexity: "O(N) where N is the number of registrations.",
        since: "1.2.6",
        args: &[],
    },
    CommandSpec {
        name: "rg.pydumpsessions",
        purpose: Purpose::Inspection,
        handler: sessions::pydumpsessions,
        summary: "Lists the sessions that are active on this shard.",
        complexity: "O(N) where N is the number of sessions and registrations.",
        since: "1.2.0",
        args: &[
            Argument::flag("verbose", "VERBOSE"),
            Argument::flag("dead", "DEAD"),
            Argument::options("session", "SESSIONS"),
        ],
    },
    CommandSpec {
        name: "rg.registry",
        purpose: Purpose::Administration,
        handler: registry::registry,
        summary: "Shows how this node takes part in agreeing on sessions and registrations.",
        complexity: "O(N) where N is the number of nodes.",
        since: "1.2.0",
        args: &[Argument::choice("subcommand", &["STATUS", "RECOVER"])],
    },
    CommandSpec {
        name: "rg.configget",
        purpose: Purpose::Inspection,
        handler: config::configget,
        summary: "Reads configuration values of this shard.",
        complexity: "O(N) where N is the number of keys.",
        since: "1.0.0",
        args: &[Argument::texts("key")],
    },
    CommandSpec {
        name: "rg.configset",
        purpose: Purpose::Administration,
        handler: config::configset,
        summary: "Sets configuration values of this shard; unknown names are kept for scripts.",
        complexity: "O(N) where N is the number of pairs.",
        since: "1.0.0",
        args: &[Argument::texts("key_and_value")],
    },
    CommandSpec {
        name: "rg.infocluster",
        purpose: Purpose::Inspection,
        handler: cluster::infocluster,
        summary: "Shows the shards of the cluster as this one sees them.",
        complexity: "O(N) where N is the number of shards.",
        since: "1.0.0",
        args: &[],
    },
    CommandSpec {
        name: "rg.refreshcluster",
        purpose: Purpose::Administration,
        handler: cluster::refreshcluster,
        summary: "Reads the cluster's topology now; it is followed without this command as well.",
        complexity: "O(N) where N is the number of slot ranges.",
        since: "1.0.0",
        args: &[],
    },
    CommandSpec {
        name: "rg.pystats",
        purpose: Purpose::Inspection,
        handler: python::pystats,
        summary: "Shows how much memory the Python interpreter has allocated.",
        complexity: "O(1)",
        since: "1.0.0",
        args: &[],
    },
    CommandSpec {
        name: "rg.dumpplugins",
        purpose: Purpose::Inspection,
        handler: python::dumpplugins,
        summary: "Lists the language plugins.",
        complexity: "O(1)",
        since: "1.2.0",
        args: &[],
    },
    CommandSpec {
        name: "rg.pyfreeinterpreter",
        purpose: Purpose::Administration,
        handler: python::pyfreeinterpreter,
        summary: "Does nothing; kept for old clients.",
        complexity: "O(1)",
        since: "1.0.0",
        args: &[],
    },
    CommandSpec {
        name: "rg.pyexecuteremote",
        purpose: Purpose::Administration,
        handler: python::pyexecuteremote,
        summary: "Does nothing; kept for old clients.",
        complexity: "O(1)",
        since: "1.0.0",
        args: &[],
    },
];
