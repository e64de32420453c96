//! Commands that end the server if a function runs them. It says so of some itself, but not of these.

use super::{
    call,
    call::is_one_of,
    context::server_flags,
    lock::{self, ServerLock},
    version::at_least,
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
        // Redis 8 ends itself if clients of its threads are looked at elsewhere than on the main one.
        Kind::Kills | Kind::Limits if !is_main_thread() && has_client_threads(guard) => {
            "changes clients of other threads of the server (io-threads)"
        }
        // The server would go on with the rights of a user that it has freed.
        Kind::FreesUsers if call::in_nested_call() || server_flags(guard).lua => {
            "may delete the user whose command runs this code"
        }
        // The server has one interpreter for scripts, which is in use.
        Kind::Scripts if server_flags(guard).lua => "is for scripts, and one runs whose command runs this code",
        Kind::Kills | Kind::Limits | Kind::FreesUsers | Kind::Scripts | Kind::Other => return None,
    };
    let name = String::from_utf8_lossy(args[0].as_ref()).into_owned();
    let part = match args.get(1) {
        Some(part) if ["client", "config", "acl", "script", "function"].contains(&name.to_lowercase().as_str()) => {
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
    is_of_connection(count, &arg)
        || !matches!(
            kind(count, arg),
            Kind::Limits | Kind::FreesUsers | Kind::Scripts | Kind::Other
        )
}

/// Subcommands of CLIENT that ask about, or change, the connection on which they come: of no use on any other.
fn is_of_connection<'a>(count: usize, arg: &impl Fn(usize) -> &'a [u8]) -> bool {
    const OF_CONNECTION: [&str; 14] = [
        "CACHING",
        "CAPA",
        "GETNAME",
        "GETREDIR",
        "ID",
        "IMPORT-SOURCE",
        "INFO",
        "NO-EVICT",
        "NO-TOUCH",
        "REPLY",
        "SETINFO",
        "SETNAME",
        "TRACKING",
        "TRACKINGINFO",
    ];
    count > 1 && arg(0).eq_ignore_ascii_case(b"client") && is_one_of(&OF_CONNECTION, arg(1))
}

/// How a command is changed, so that it does the same and waits for no thread of its module.
pub(super) enum Change {
    Append(&'static [u8]),
    /// The argument at this place goes.
    Remove(usize),
}

/// What has to be changed in a command that is run here.
#[inline]
pub(super) fn change<'a>(count: usize, arg: impl Fn(usize) -> &'a [u8]) -> Option<Change> {
    at_least(8, 0).then(|| without_threads(count, arg)).flatten()
}

/// Vector sets (Redis 8) hand work to threads of theirs unless they are told not to, or see a transaction or a script; the
/// server ends itself if they do so within a command of a module.
fn without_threads<'a>(count: usize, arg: impl Fn(usize) -> &'a [u8]) -> Option<Change> {
    let is = |at: usize, word: &str| count > at && arg(at).eq_ignore_ascii_case(word.as_bytes());
    if is(0, "vsim") {
        return (count > 3).then_some(Change::Append(b"NOTHREAD"));
    }
    if !is(0, "vadd") {
        return None;
    }
    // VADD key [REDUCE dim] FP32 blob | VALUES n x ... element [options]
    let vector = if is(2, "reduce") { 4 } else { 2 };
    let values = || std::str::from_utf8(arg(vector + 1)).ok()?.parse::<usize>().ok();
    let element = match () {
        () if is(vector, "fp32") => vector + 2,
        () if is(vector, "values") && count > vector + 1 => values()?.checked_add(vector + 2)?,
        () => return None,
    };
    let mut at = element.checked_add(1)?;
    while at < count {
        if is(at, "cas") {
            return Some(Change::Remove(at));
        }
        let has_value = ["ef", "m", "setattr"].iter().any(|word| is(at, word));
        at += 1 + usize::from(has_value);
    }
    None
}

enum Kind {
    OfReplicas,
    Pauses,
    Kills,
    /// It changes how many clients there may be, or what they may take.
    Limits,
    FreesUsers,
    Scripts,
    Other,
}

fn is_main_thread() -> bool {
    // SAFETY: neither can fail.
    unsafe { libc::gettid() == libc::getpid() }
}

/// Threads of the server serve clients of their own.
fn has_client_threads(guard: &ServerLock) -> bool {
    let told = || call::call(guard, &["CONFIG", "GET", "io-threads"], call::Flags::default()).ok();
    let number = || told()?.array()?.get(1)?.text()?.parse::<u32>().ok();
    at_least(8, 0) && number().is_some_and(|number| number > 1)
}

/// Settings for which clients are looked at when they change.
const CLIENT_LIMITS: [&str; 2] = ["maxclients", "maxmemory-clients"];
/// Commands that run scripts.
const SCRIPTS: [&str; 6] = ["eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"];
/// Subcommands of SCRIPT and FUNCTION that change which there are.
const SCRIPT_CHANGES: [&str; 5] = ["load", "flush", "delete", "restore", "kill"];

fn kind<'a>(count: usize, arg: impl Fn(usize) -> &'a [u8]) -> Kind {
    let is = |at: usize, word: &str| count > at && arg(at).eq_ignore_ascii_case(word.as_bytes());
    match () {
        () if is(0, "sync") || is(0, "psync") => Kind::OfReplicas,
        () if is(0, "failover") && !is(1, "abort") => Kind::Pauses,
        () if is(0, "client") && is(1, "pause") => Kind::Pauses,
        () if is(0, "client") && is(1, "kill") => Kind::Kills,
        () if is(0, "config") && is(1, "set") => match (2..count)
            .step_by(2)
            .any(|at| CLIENT_LIMITS.iter().any(|name| is(at, name)))
        {
            true => Kind::Limits,
            false => Kind::Other,
        },
        () if is(0, "acl") && (is(1, "deluser") || is(1, "load")) => Kind::FreesUsers,
        () if SCRIPTS.iter().any(|name| is(0, name)) => Kind::Scripts,
        () if (is(0, "script") || is(0, "function")) && SCRIPT_CHANGES.iter().any(|part| is(1, part)) => Kind::Scripts,
        () => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_sets_use_no_threads() {
        for (command, wanted) in [
            ("vsim k ele a", "append"),
            ("VSIM k VALUES 1 2 COUNT 3", "append"),
            ("vsim k ele", "none"),
            ("VADD k VALUES 2 1 2 CAS", "none"),
            ("VADD k VALUES 2 1 2 a CAS", "7"),
            ("vadd k reduce 1 values 2 1 2 cas q8 cas", "10"),
            ("vadd k fp32 x a ef 5 setattr cas m 3 cas", "11"),
            ("vadd k fp32 x a setattr cas", "none"),
            ("vadd k values x a cas", "none"),
            ("vadd k values 18446744073709551615 a cas", "none"),
            ("vadd k", "none"),
            ("set k cas", "none"),
        ] {
            let args: Vec<&str> = command.split(' ').collect();
            let found = match without_threads(args.len(), |at| args[at].as_bytes()) {
                None => "none".to_owned(),
                Some(Change::Append(_)) => "append".to_owned(),
                Some(Change::Remove(at)) => at.to_string(),
            };
            assert_eq!(found, wanted, "{command}");
        }
    }
}
