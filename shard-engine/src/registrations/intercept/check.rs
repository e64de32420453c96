//! Which commands may be hooked or linked at all. Asked when a script registers; the error is raised there.

use super::facts::{self, Facts};
use crate::module::module;

/// A hook on this command (in lower case).
pub fn check_hook(command: &str, by_prefix: bool) -> Result<(), String> {
    let facts = facts::find(command).ok_or("Can not override an unexisting command")?;
    let text = |what: &str| Err(format!("Can not override a command {what}"));
    // Whether clients may load modules at all the server asks only where it sees that command.
    if facts.no_script || facts.asking || is_own(command) || command == "module" {
        return text("which are not allowed inside a script");
    }
    // The internal command in front has no key that would lead to the channel's shard.
    if module().is_cluster && facts::is_of_channel(command) {
        return text("that goes to the shard of a channel, in a cluster");
    }
    if OF_CONNECTION.contains(&command) {
        return text("that only changes the connection on which it comes");
    }
    match places(&facts) {
        _ if !by_prefix => Ok(()),
        Places::Movable => text("with moveable keys by key prefix"),
        Places::NoFirst => text("by key prefix with none positive first key"),
        Places::NoStep => text("by key prefix with none positive jump"),
        Places::Good => Ok(()),
    }
}

/// Links to these commands (in lower case), for keys by this prefix.
pub fn check_links(commands: &[String], prefix: &[u8]) -> Result<(), String> {
    for command in commands {
        let facts = facts::find(command).ok_or("bad reply on COMMAND command")?;
        if facts.no_script || facts.asking || is_own(command) {
            return Err("Can not hook a command which are not allowed inside a script".into());
        }
        match places(&facts) {
            Places::Movable => return Err("Can not hook a command with moveable keys by key prefix".into()),
            Places::NoFirst => return Err("Can not hook a command by key prefix with none positive first key".into()),
            Places::NoStep => return Err("Can not override a command by key prefix with none positive jump".into()),
            Places::Good => {}
        }
    }
    if prefix.is_empty() && !commands.is_empty() {
        return Err("Empty perfix given to command hooker".into());
    }
    Ok(())
}

/// What they change would be the connection on which functions run commands. For those of CLIENT see `unfit`.
const OF_CONNECTION: [&str; 4] = ["select", "readonly", "readwrite", "asking"];

/// One of ours: a hook on these would shut out those who could take it away, or run itself.
fn is_own(command: &str) -> bool {
    command.starts_with("rg.")
}

enum Places {
    Movable,
    NoFirst,
    NoStep,
    Good,
}

fn places(facts: &Facts) -> Places {
    if facts.movable {
        Places::Movable
    } else if facts.first <= 0 {
        Places::NoFirst
    } else if facts.step <= 0 {
        Places::NoStep
    } else {
        Places::Good
    }
}
