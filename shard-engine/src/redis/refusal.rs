//! What an error means that the server gives to a module, and what clients read for it.

/// What a replica answers to writes.
pub(super) const READONLY: &str = "READONLY You can't write against a read only replica.";

/// What an error of a run means.
pub(super) enum Fault {
    /// The caller may not, for this reason.
    Rights(String),
    /// The caller is code without a user.
    NoUser,
    /// The command's own.
    Own,
}

/// What it means.
pub(super) fn judge_error(text: &str) -> Fault {
    let text = text.trim_start_matches('-').trim_end_matches(['\r', '\n']);
    if let Some(reason) = text.strip_prefix("ERR acl verification failed, ") {
        Fault::Rights(reason.trim_end_matches('.').to_owned())
    } else if let Some(reason) = text.strip_prefix("NOPERM ") {
        Fault::Rights(reason.to_owned())
    } else if text.contains("cannot run as user, no user directly attached") {
        Fault::NoUser
    } else {
        Fault::Own
    }
}

/// What clients read when they may not run a command; Redis 7.0 has other words for modules.
pub(super) fn no_permission(reason: &str, command: &str) -> String {
    let reason = if reason.contains("run this command or subcommand") {
        format!("this user has no permissions to run the '{command}' command")
    } else if reason.contains("access at least one of the keys") {
        "this user has no permissions to access one of the keys used as arguments".to_owned()
    } else if reason.contains("access at least one of the channels") {
        "this user has no permissions to access one of the channels used as arguments".to_owned()
    } else {
        reason.to_owned()
    };
    format!("NOPERM {reason}")
}

/// What a client gets for an error that the server gives to modules only.
pub(super) fn for_client(text: &str, command: &str) -> Option<String> {
    if let Fault::Rights(reason) = judge_error(text) {
        return Some(no_permission(&reason, command));
    }
    let clear = if text.contains("was called while write is not allowed") {
        READONLY
    } else if text.contains("non local key in a cluster node") {
        "TRYAGAIN the slot of the command's keys is on its way to another shard; try again"
    } else {
        return None;
    };
    Some(clear.to_owned())
}
