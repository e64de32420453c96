//! Taking part in the cluster's group: from the moment when there is a log from before, or another node to be seen.

use std::path::PathBuf;

use oxigears_coordinator::{
    consensus::{ClusterNode, ClusterView, GroupConfig},
    topology::{NodeId, Topology},
};
use parking_lot::Mutex;

use super::{LATE, limits, registrations};
use crate::{
    module::module,
    redis::{
        cluster::{self, Member},
        event_loop,
        lock::ServerLock,
        log,
    },
};

#[derive(Default)]
struct Progress {
    started: bool,
    /// Before this time (in ms) it is not tried again.
    again_ms: u64,
    view: Option<ClusterView>,
}

static PROGRESS: Mutex<Progress> = Mutex::new(Progress {
    started: false,
    again_ms: 0,
    view: None,
});

/// The folder of this node's log.
fn folder(guard: &ServerLock, me: &NodeId) -> PathBuf {
    let dir = cluster::server_config(guard, "dir").unwrap_or_else(|| ".".to_owned());
    PathBuf::from(dir).join(format!("oxigears-{me}"))
}

/// At load: a log from before decides from the start, and what it holds is active before the first key can expire: events of
/// that come only once.
pub fn start_if_known(guard: &ServerLock) {
    let me = cluster::my_id(guard);
    if me != NodeId::single() && folder(guard, &me).is_dir() {
        start(guard, &me);
        let is_done = || registrations().activation.is_current();
        event_loop::await_at_end(guard, is_done, limits::LOADED_WAIT, LATE);
    }
}

fn start(guard: &ServerLock, me: &NodeId) {
    let mut progress = PROGRESS.lock();
    let now_ms = module().now_ms();
    if progress.started || now_ms < progress.again_ms {
        return;
    }
    let config = GroupConfig {
        me: me.clone(),
        dir: folder(guard, me),
    };
    match registrations().service.start_group(config) {
        Ok(()) => progress.started = true,
        Err(reason) => {
            log::warning(&format!(
                "this node can not take part in the cluster's registry, it is tried again: {reason}"
            ));
            progress.again_ms = now_ms + limits::GROUP_RETRY.as_millis() as u64;
        }
    }
}

/// The cluster as the server sees it now: all other members, and who owns what. On the main thread.
pub fn look(guard: &ServerLock, topology: &Topology, others: &[Member]) {
    if others.is_empty() && !PROGRESS.lock().started {
        return;
    }
    start(guard, &topology.me);
    let has_slots = |id: &NodeId| topology.shards.iter().any(|shard| shard.id == *id);
    let mut nodes: Vec<ClusterNode> = others
        .iter()
        .map(|member| ClusterNode {
            id: member.id.clone(),
            master: member.master,
            has_slots: has_slots(&member.id),
            failed: member.failed,
        })
        .collect();
    nodes.push(ClusterNode {
        id: topology.me.clone(),
        master: !cluster::is_replica(guard),
        has_slots: has_slots(&topology.me),
        failed: false,
    });
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    let owner = topology.owners().first().copied();
    let slot_zero = owner.and_then(|number| topology.shards.get(usize::from(number)));
    let view = ClusterView {
        nodes,
        slot_zero: slot_zero.map(|shard| shard.id.clone()),
    };
    let mut progress = PROGRESS.lock();
    if progress.started && progress.view.as_ref() != Some(&view) {
        progress.view = Some(view.clone());
        drop(progress);
        registrations().service.set_view(view);
    }
}
