//! Timers: `registerTE`, and registrations that the clock fires.
//!
//! * `clock`: the thread that knows what is due
//! * `timer`: one timer of `registerTE`; `saved`: its bytes; `inner_command`: RG.INNERTIMER, which carries it
//! * `make`: what `registerTE` asks for
//! * `registered`: registrations of TimerReader; `ticker`: when they are due; `pulse`: whether this server stood still
//!
//! Python runs on the threads `oxi-timer`, never on the clock's or the main thread. Nothing starts, and nothing wakes,
//! while there is no timer.

pub mod clock;
mod inner_command;
mod make;
mod pulse;
mod registered;
mod saved;
mod ticker;
mod timer;

use std::sync::Arc;

use oxigears_coordinator::topology::key_slot;

use self::timer::Timer;
pub use self::{
    make::make,
    registered::{unwatch, watch},
    timer::wake_all,
};
use crate::{
    mesh,
    module::module,
    redis::{
        cluster,
        context::server_flags,
        data_type::{self, DataType, Held},
        events,
        lock::ServerLock,
    },
};

/// Type of keys that hold timers, as clients know it.
const TYPE: &str = "rg_timeev";
/// Format of its bytes in dumps. Low numbers are those of RedisGears, whose bytes nobody else can read.
const ENCODING: i32 = 100;

/// Registers type and command. At load.
pub fn register(guard: &ServerLock) -> Result<(), String> {
    inner_command::register(guard)?;
    if cluster::is_enabled(guard) {
        events::on_cron(guard, pulse::beat)?;
    }
    data_type::register(
        guard,
        DataType {
            name: TYPE,
            encoding: ENCODING,
            command: (inner_command::NAME, inner_command::SET),
            load,
        },
    )
}

fn load(_: &ServerLock, key: &[u8], bytes: &[u8]) -> Result<Arc<dyn Held>, String> {
    Ok(Timer::from_bytes(key, bytes)?)
}

/// Timers run here now: on a master that has its dataset.
fn may_run(guard: &ServerLock) -> bool {
    !server_flags(guard).loading && !cluster::is_replica(guard)
}

/// This server's cluster is down: commands on keys fail. At the start it is for about two seconds.
fn is_cluster_down(guard: &ServerLock) -> bool {
    module().is_cluster && !cluster::is_ok(guard)
}

/// Where the slot of a key is.
#[derive(PartialEq)]
enum Place {
    /// On this shard.
    Here,
    /// On another one.
    Elsewhere,
    /// On its way: commands on its keys may fail.
    Moving,
}

fn place(guard: &ServerLock, key: &[u8]) -> Place {
    if !module().is_cluster {
        return Place::Here;
    }
    mesh::refresh_topology_if_old(guard);
    let (topology, slot) = (module().engine.topology(), key_slot(key));
    let owner = topology.owners().get(usize::from(slot)).copied().map(usize::from);
    if owner.is_none() || owner != topology.my_number() {
        Place::Elsewhere
    } else if cluster::is_migrating(guard, slot) {
        Place::Moving
    } else {
        Place::Here
    }
}
