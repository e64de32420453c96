//! RG.INNERTIMER: how timers with a key travel to replicas and in the AOF. Refuses everybody else.
//!
//! * `<key> SET <bytes>`: the key holds this timer
//! * `<key> STOP`: the timer of the key has failed

use super::timer::Timer;
use crate::redis::{
    data_type,
    lock::ServerLock,
    log,
    register::{Argument, Call, CommandSpec, Purpose, create_with},
    replicate::{self, Sender, Target},
};

/// Its name.
pub const NAME: &str = "rg.innertimer";
/// The key holds the timer that follows.
pub const SET: &str = "SET";
/// The key's timer has failed.
const STOP: &str = "STOP";

const FLAGS: &str = "write admin";

static COMMAND: CommandSpec = CommandSpec {
    name: NAME,
    purpose: Purpose::Internal,
    handler: inner_timer,
    summary: "Internal: carries timers to replicas and in the AOF; clients are refused.",
    complexity: "O(N) where N is the size of the timer's function.",
    since: "1.2.0",
    args: &[Argument::text("key"), Argument::text("what"), Argument::texts("data")],
};

/// Registers the command.
pub fn register(guard: &ServerLock) -> Result<(), String> {
    create_with(guard, &COMMAND, FLAGS, (1, 1, 1))
}

/// Tells replicas and AOF of a timer that was made here.
pub fn send_set(guard: &ServerLock, key: &[u8], bytes: &[u8]) {
    send(guard, &[key, SET.as_bytes(), bytes]);
}

/// Tells them that it has failed.
pub fn send_stop(guard: &ServerLock, key: &[u8]) {
    send(guard, &[key, STOP.as_bytes()]);
}

fn send(guard: &ServerLock, args: &[&[u8]]) {
    if !replicate::replicate(guard, NAME, args, Target::Everywhere) {
        log::warning("the server refused to replicate RG.INNERTIMER: replicas have another state of a timer");
    }
}

fn inner_timer(call: &mut Call) {
    if call.sender() == Sender::Client {
        return call.reply().error(
            "ERR RG.INNERTIMER is for replication and the AOF only; timers are made by registerTE() and removed with \
             their keys",
        );
    }
    match apply(call) {
        Ok(()) => {
            call.replicate_verbatim();
            call.reply().simple("OK");
        }
        Err(reason) => {
            log::warning(&format!(
                "a timer of the master or of the AOF can not be taken: {reason}"
            ));
            call.reply().error(&format!("ERR {reason}"));
        }
    }
}

fn apply(call: &Call) -> Result<(), String> {
    let words: Vec<&[u8]> = call.args.iter().skip(1).map(Vec::as_slice).collect();
    match words.as_slice() {
        [key, what, bytes] if what.eq_ignore_ascii_case(SET.as_bytes()) => {
            let timer = Timer::from_bytes(key, bytes)?;
            match data_type::put_by(call, key, timer) {
                true => Ok(()),
                false => Err("the server refused the key".to_owned()),
            }
        }
        [key, what] if what.eq_ignore_ascii_case(STOP.as_bytes()) => {
            let held = data_type::get_by(call, key);
            if let Some(timer) = held.and_then(|held| held.as_any().downcast::<Timer>().ok()) {
                timer.mark_stopped();
            }
            Ok(())
        }
        _ => Err("RG.INNERTIMER has arguments that this version of the module does not know; upgrade it".to_owned()),
    }
}
