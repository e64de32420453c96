//! RG.INFOCLUSTER and RG.REFRESHCLUSTER.

use super::blocking_denied;
use crate::{mesh, module::module, redis::register::Call};

/// RG.INFOCLUSTER
pub fn infocluster(call: &mut Call) {
    mesh::refresh_topology_if_old(call.guard());
    let topology = module().engine.topology();
    let mesh = mesh::mesh();
    let reply = call.reply();
    if !topology.is_cluster() {
        return reply.bulk(b"no cluster mode");
    }
    let peers = mesh.map(|m| m.peers()).unwrap_or_default();
    let my_run_id = mesh.map(|m| m.run_id().to_owned());
    reply.array(5);
    reply.bulk(b"MyId");
    reply.bulk(topology.me.as_str().as_bytes());
    reply.bulk(b"MyRunId");
    reply.bulk_or_null(my_run_id.as_deref());
    reply.array(topology.shards.len());
    for shard in &topology.shards {
        let peer = peers.iter().find(|p| p.id == shard.id);
        let run_id = if shard.id == topology.me {
            my_run_id.clone()
        } else {
            peer.and_then(|p| p.run_id.clone())
        };
        let (first, last) = shard.ranges.first().copied().unwrap_or_default();
        reply.array(16);
        reply.named_bulk("id", shard.id.as_str());
        reply.named_bulk("ip", &shard.host);
        reply.named_int("port", i64::from(shard.port));
        reply.named_bulk("unixSocket", "None");
        reply.bulk(b"runid");
        reply.bulk_or_null(run_id.as_deref());
        reply.named_int("minHslot", i64::from(first));
        reply.named_int("maxHslot", i64::from(last));
        reply.named_int("pendingMessages", peer.map_or(0, |p| p.pending as i64));
    }
}

/// RG.REFRESHCLUSTER: the topology is followed without it; it looks now.
pub fn refreshcluster(call: &mut Call) {
    if blocking_denied(call) {
        return;
    }
    if module().is_cluster {
        mesh::refresh_topology(call.guard());
    }
    call.reply().simple("OK");
}
