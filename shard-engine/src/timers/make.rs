//! What `registerTE` asks for: the checks, the key, the word to replicas.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use oxigears_python_api::TimerDraft;

use super::{
    Place, inner_command, place,
    timer::{self, Timer},
};
use crate::{
    identity,
    redis::{
        call::CallError,
        cluster,
        context::server_flags,
        data_type::{self, Held},
        lock::{self, ServerLock},
        replicate, slot_tables,
    },
    registrations::limits,
};

/// What errors name.
const WHAT: &str = "registerTE";
/// Longest wait for the end of a pause of all writes, as for commands of functions.
const PAUSE_WAIT: Duration = Duration::from_secs(10);
const PAUSE_POLL: Duration = Duration::from_millis(5);

/// Makes a timer; false if its key holds something already.
pub fn make(draft: TimerDraft) -> Result<bool, String> {
    let deadline = Instant::now() + PAUSE_WAIT;
    loop {
        let guard = lock::lock_to_write();
        if draft.key.is_none() || !replicate::is_paused(&guard) {
            return make_now(&guard, draft);
        }
        // Who holds the lock already can not wait: nobody could end the pause.
        if !lock::is_outermost() || Instant::now() >= deadline {
            return Err(CallError::WritesPaused(WHAT.into()).to_string());
        }
        drop(guard);
        std::thread::sleep(PAUSE_POLL);
    }
}

fn make_now(guard: &ServerLock, draft: TimerDraft) -> Result<bool, String> {
    let user = identity::current();
    if let Some(key) = &draft.key {
        check_key(guard, key, user.as_deref())?;
        if data_type::exists(guard, key) {
            return Ok(false);
        }
    }
    if timer::is_full() {
        let text = format!("ERR this shard has {} timers, more are not allowed", limits::TIMERS);
        return Err(text);
    }
    let key = draft.key.clone();
    let timer = Timer::from_draft(draft, user);
    let Some(key) = key else { return Ok(true) };
    let held: Arc<dyn Held> = timer;
    if !data_type::put(guard, &key, held.clone()) {
        return Err("ERR the server refused the timer's key".to_owned());
    }
    inner_command::send_set(guard, &key, &held.saved());
    Ok(true)
}

/// The key may be written here, by this user, as by a command.
fn check_key(guard: &ServerLock, key: &[u8], user: Option<&str>) -> Result<(), String> {
    if cluster::is_replica(guard) {
        return Err(CallError::ReadOnly.to_string());
    }
    if let Some(text) = replicate::refusal_of_writes(guard) {
        return Err(text);
    }
    let server = server_flags(guard);
    if server.out_of_memory && !server.evicts {
        return Err("OOM command not allowed when used memory > 'maxmemory'.".to_owned());
    }
    if let Some(user) = user {
        identity::check_write(guard, user, key)?;
    }
    if slot_tables::is_out_of_reach(guard, key) {
        return Err(CallError::OutOfReach(WHAT.into()).to_string());
    }
    match place(guard, key) {
        Place::Here => Ok(()),
        Place::Elsewhere => Err(CallError::OtherShard(WHAT.into()).to_string()),
        Place::Moving => Err(format!(
            "TRYAGAIN the slot of the timer's key is on the move to or from another shard ({WHAT})"
        )),
    }
}
