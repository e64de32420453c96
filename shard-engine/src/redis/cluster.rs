//! The cluster as this server sees it: who is in it, who owns what, messages on the cluster bus, and server settings.

use std::{
    collections::BTreeSet,
    ffi::{CString, c_char},
};

use oxigears_coordinator::topology::{NodeId, Shard, Slot, Topology, key_slot, slot_tag};
use parking_lot::Mutex;
use redis_module::raw;

pub use super::bus::{on_bus_message, send_bus_message};
use super::{
    at_hand,
    call::{CallError, Flags, Reply, call},
    context::server_flags,
    ffi::{api, bytes_at, lossy},
    lock::ServerLock,
    log,
    slots::{number_in, read_migrating, read_slots},
};

/// Length of a node id. The server gives ids without a NUL behind them, yet takes only C strings.
pub(super) const ID_BYTES: usize = raw::REDISMODULE_NODE_ID_LEN as usize;
/// Room for the text of an IP address, as in the server (46), and to spare.
const IP_BYTES: usize = 64;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its IP address.
    pub host: String,
    /// Its Redis port.
    pub port: u16,
    /// It is this server.
    pub myself: bool,
    /// It is a master.
    pub master: bool,
    /// Most masters say that it does not answer.
    pub failed: bool,
}

/// This server's node id; forty `0` outside a cluster.
pub fn my_id(guard: &ServerLock) -> NodeId {
    if !server_flags(guard).cluster {
        return NodeId::single();
    }
    // SAFETY: the lock is held; the server gives forty bytes.
    let id = unsafe { bytes_at(api!(RedisModule_GetMyClusterID)(), ID_BYTES) };
    std::str::from_utf8(id).map_or_else(|_| NodeId::single(), NodeId::new)
}

/// The server is in cluster mode.
pub fn is_enabled(guard: &ServerLock) -> bool {
    server_flags(guard).cluster
}

/// This server is a replica. A replica of a cluster that has just started does not follow its master yet, but knows that
/// it is one.
pub fn is_replica(guard: &ServerLock) -> bool {
    let flags = server_flags(guard);
    let by_cluster = || {
        let me = CString::new(my_id(guard).as_str()).ok()?;
        node(guard, &me).map(|me| !me.master)
    };
    flags.replica || (flags.cluster && by_cluster() == Some(true))
}

/// The other nodes that this server knows, replicas included; empty outside a cluster.
pub fn members(guard: &ServerLock) -> Vec<Member> {
    let mut count = 0usize;
    // SAFETY: the lock is held.
    let list = unsafe { api!(RedisModule_GetClusterNodesList)(guard.ctx(), &mut count) };
    if list.is_null() {
        return Vec::new();
    }
    let ids: Vec<CString> = (0..count)
        .filter_map(|i| {
            // SAFETY: the list has `count` pointers to forty bytes each.
            CString::new(unsafe { bytes_at(*list.add(i), ID_BYTES) }).ok()
        })
        .collect();
    // SAFETY: the ids have been copied.
    unsafe { api!(RedisModule_FreeClusterNodesList)(list) };
    ids.iter()
        .filter_map(|id| node(guard, id))
        .filter(|node| !node.myself)
        .collect()
}

/// What the server knows of one node.
fn node(guard: &ServerLock, id: &CString) -> Option<Member> {
    let mut ip = [0 as c_char; IP_BYTES];
    let (mut port, mut flags) = (0, 0);
    // SAFETY: the id is a C string; the server writes at most 46 bytes of address, and no master id into null.
    let outcome = unsafe {
        api!(RedisModule_GetClusterNodeInfo)(
            guard.ctx(),
            id.as_ptr(),
            ip.as_mut_ptr(),
            std::ptr::null_mut(),
            &mut port,
            &mut flags,
        )
    };
    if outcome != raw::REDISMODULE_OK as i32 {
        return None;
    }
    ip[IP_BYTES - 1] = 0;
    let has = |flag: u32| flags as u32 & flag != 0;
    Some(Member {
        id: NodeId::new(id.to_str().ok()?),
        // SAFETY: the last byte is NUL.
        host: unsafe { lossy(ip.as_ptr()) },
        port: u16::try_from(port).unwrap_or(0),
        myself: has(raw::REDISMODULE_NODE_MYSELF),
        master: has(raw::REDISMODULE_NODE_MASTER),
        failed: has(raw::REDISMODULE_NODE_FAIL),
    })
}

/// Who owns which slots now; `Topology::single` outside a cluster. `None` if the server does not tell, which is logged.
pub fn topology(guard: &ServerLock) -> Option<Topology> {
    read_topology(guard)
        .inspect_err(|reason| log::warning(&format!("the cluster's slots can not be read: {reason}")))
        .ok()
}

fn read_topology(guard: &ServerLock) -> Result<Topology, String> {
    if !is_enabled(guard) {
        return Ok(Topology::single());
    }
    let reply = call(guard, &["CLUSTER", "SLOTS"], Flags::default()).map_err(|e| e.to_string())?;
    let address_of = |id: &str| {
        let node = node(guard, &CString::new(id).ok()?)?;
        Some(node.host).filter(|host| !host.is_empty())
    };
    let shards = read_slots(&reply, address_of).map_err(|e| e.to_string())?;
    Ok(Topology::new(my_id(guard), shards))
}

/// This server finds its cluster up: it is with most of the masters. In a cluster.
pub fn is_ok(guard: &ServerLock) -> bool {
    let reply = call(guard, &["CLUSTER", "INFO"], Flags::default());
    let says_ok = |reply: Reply| reply.text().is_some_and(|text| text.contains("cluster_state:ok"));
    reply.is_ok_and(says_ok)
}

/// The slots that this server migrates or imports now.
pub fn migrating_slots(guard: &ServerLock) -> BTreeSet<Slot> {
    if !is_enabled(guard) {
        return BTreeSet::new();
    }
    let reply = call(guard, &["CLUSTER", "NODES"], Flags::default());
    reply.map_or_else(
        |_| BTreeSet::new(),
        |reply| read_migrating(reply.text().unwrap_or("")).collect(),
    )
}

/// This server migrates or imports this slot now.
pub fn is_migrating(guard: &ServerLock, slot: Slot) -> bool {
    migrating_slots(guard).contains(&slot)
}

/// Whether this server runs commands on the keys of a slot now.
#[derive(Debug, PartialEq, Eq)]
pub enum Serving {
    /// On each of them, also if it is not there.
    All,
    /// They are another shard's.
    Elsewhere,
    /// Not on all of them, for this reason, which will pass.
    NotNow(String),
}

/// The server's own answer for this slot, which holds as long as the lock is held.
pub fn serving(guard: &ServerLock, slot: Slot) -> Serving {
    if !is_enabled(guard) {
        return Serving::All;
    }
    let _for_everybody = at_hand::set_aside();
    // A key that is not there is refused from the moment when its slot begins to move. PERSIST counts as a write, but
    // changes nothing then.
    let nobodys = format!("{{{}}}\0oxigears", number_in(slot));
    match call(guard, &["PERSIST", &nobodys], Flags::default()) {
        Ok(_) => Serving::All,
        Err(CallError::OtherShard(_)) => match by_table(guard, slot) {
            Serving::All => Serving::NotNow(format!("slot {slot} is not served")),
            other => other,
        },
        // Renamed away: the slower questions answer the same.
        Err(CallError::UnknownCommand(_)) if is_ok(guard) => by_table(guard, slot),
        Err(e) => Serving::NotNow(e.to_string()),
    }
}

/// The server takes a command on this key only from a client that has said ASKING or READONLY: in its context, which
/// other threads do not have.
pub fn is_for_guests(guard: &ServerLock, key: &[u8]) -> bool {
    let slot = key_slot(key);
    is_enabled(guard) && serving(guard, slot) != Serving::All && owner(guard, slot) != Some(my_id(guard))
}

/// Whose the slot is by the server's list.
fn owner(guard: &ServerLock, slot: Slot) -> Option<NodeId> {
    let owns = |shard: &Shard| shard.ranges.iter().any(|&(first, last)| (first..=last).contains(&slot));
    let topology = read_topology(guard).ok()?;
    topology
        .shards
        .iter()
        .find(|shard| owns(shard))
        .map(|shard| shard.id.clone())
}

/// What the server's list of slots says, whether the cluster is up or not.
fn by_table(guard: &ServerLock, slot: Slot) -> Serving {
    if is_migrating(guard, slot) {
        return Serving::NotNow(format!("slot {slot} is on the move"));
    }
    match owner(guard, slot) {
        Some(owner) if owner == my_id(guard) => Serving::All,
        Some(_) => Serving::Elsewhere,
        None => Serving::NotNow(format!("slot {slot} is not served")),
    }
}

/// A setting of the server; `None` if it does not know it.
pub fn server_config(guard: &ServerLock, name: &str) -> Option<String> {
    let reply = call(guard, &["CONFIG", "GET", name], Flags::default()).ok()?;
    let pairs = reply.pairs();
    let (_, value) = pairs.iter().find(|(key, _)| key.text() == Some(name))?;
    value.text().map(str::to_owned)
}

/// The hash tag of a slot. To find one takes long, and mostly it is the same one that is asked for.
pub fn tag_of(slot: Slot) -> String {
    static LAST: Mutex<Option<(Slot, String)>> = Mutex::new(None);
    let mut last = LAST.lock();
    match &*last {
        Some((known, tag)) if *known == slot => tag.clone(),
        _ => {
            let tag = slot_tag(slot);
            debug_assert_eq!(slot, key_slot(tag.as_bytes()));
            *last = Some((slot, tag.clone()));
            tag
        }
    }
}
