//! Commands that end the server if a function runs them. It says so of some itself, but not of these.

use super::{
    call,
    context::server_flags,
    lock::{self, ServerLock},
};

/// Why a function may not run this command here, if so.
pub(super) fn refusal<A: AsRef<[u8]>>(guard: &ServerLock, args: &[A]) -> Option<String> {
    let why = match kind(args.len(), |at| args[at].as_ref()) {
        // A function's client is none.
        Kind::OfReplicas => "is for replicas",
        // Writes that were made a moment before would be replicated inside the pause.
        Kind::Pauses => "pauses writes, while those of functions are on their way to replicas",
        // The server would free the client whose command it is running.
        Kind::Kills if lock::is_in_callback() => "may end the client whose command runs this code",
        // The server would go on with the rights of a user that it has freed.
        Kind::FreesUsers if call::in_nested_call() || server_flags(guard).lua => {
            "may delete the user whose command runs this code"
        }
        Kind::Kills | Kind::FreesUsers | Kind::Other => return None,
    };
    let name = String::from_utf8_lossy(args[0].as_ref()).into_owned();
    let part = match args.get(1) {
        Some(part) if ["client", "acl"].contains(&name.to_lowercase().as_str()) => {
            format!(" {}", String::from_utf8_lossy(part.as_ref()))
        }
        _ => String::new(),
    };
    Some(format!(
        "ERR command '{name}{part}' {why}, functions can not call it here"
    ))
}

/// Only the server itself can run this command for a client: no hook may take it over.
pub fn is_for_server<'a>(count: usize, arg: impl Fn(usize) -> &'a [u8]) -> bool {
    !matches!(kind(count, arg), Kind::FreesUsers | Kind::Other)
}

enum Kind {
    OfReplicas,
    Pauses,
    Kills,
    FreesUsers,
    Other,
}

fn kind<'a>(count: usize, arg: impl Fn(usize) -> &'a [u8]) -> Kind {
    let is = |at: usize, word: &str| count > at && arg(at).eq_ignore_ascii_case(word.as_bytes());
    match () {
        () if is(0, "sync") || is(0, "psync") => Kind::OfReplicas,
        () if is(0, "failover") && !is(1, "abort") => Kind::Pauses,
        () if is(0, "client") && is(1, "pause") => Kind::Pauses,
        () if is(0, "client") && is(1, "kill") => Kind::Kills,
        () if is(0, "acl") && (is(1, "deluser") || is(1, "load")) => Kind::FreesUsers,
        () => Kind::Other,
    }
}
