//! Questions to other shards (GETEXECUTION, ABORTEXECUTION, DROPEXECUTION): asked at once, gathered with a deadline.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::Engine;
use crate::{limits, message::Message, topology::NodeId};

/// The questions; their argument is an execution's id.
pub mod question {
    /// RG.GETEXECUTION: the encoded view; empty if the execution is not known.
    pub const VIEW: &str = "view";
    /// RG.ABORTEXECUTION: answered when the execution has left its thread.
    pub const ABORT: &str = "abort";
    /// RG.DROPEXECUTION.
    pub const DROP: &str = "drop";
    /// The error of a shard that does not know the execution.
    pub const UNKNOWN: &str = "execution does not exist";
}

/// Answers by shard.
pub type Gathered = Vec<(NodeId, Result<Bytes, String>)>;

type OnGathered = Box<dyn FnOnce(Gathered) + Send>;

struct Open {
    awaited: Vec<NodeId>,
    gathered: Gathered,
    deadline_ms: u64,
    then: OnGathered,
}

#[derive(Default)]
pub(super) struct Queries {
    counter: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

impl Queries {
    pub fn on_answer(&self, from: &NodeId, id: u64, result: Result<Bytes, String>) {
        self.settle(|query_id, node| query_id == id && node == from, || result.clone());
    }

    pub fn on_peer_lost(&self, peer: &NodeId, reason: &str) {
        self.settle(
            |_, node| node == peer,
            || Err(format!("Execution max idle reached: shard {peer} was lost ({reason})")),
        );
    }

    pub fn on_tick(&self, now_ms: u64) {
        let late: Vec<u64> = self
            .open
            .lock()
            .iter()
            .filter(|(_, o)| o.deadline_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        self.settle(
            |id, _| late.contains(&id),
            || Err("Execution max idle reached: the shard did not answer".into()),
        );
    }

    /// Gives `answer` to every awaited shard that `which` picks, and ends queries that are complete.
    fn settle(&self, which: impl Fn(u64, &NodeId) -> bool, answer: impl Fn() -> Result<Bytes, String>) {
        let mut ended = Vec::new();
        let mut open = self.open.lock();
        for (&id, query) in open.iter_mut() {
            let (settled, awaited) = std::mem::take(&mut query.awaited)
                .into_iter()
                .partition(|n| which(id, n));
            query.awaited = awaited;
            let settled: Vec<NodeId> = settled;
            query.gathered.extend(settled.into_iter().map(|node| (node, answer())));
            if query.awaited.is_empty() {
                ended.push(id);
            }
        }
        let ended: Vec<Open> = ended.into_iter().filter_map(|id| open.remove(&id)).collect();
        drop(open);
        for query in ended {
            (query.then)(query.gathered);
        }
    }
}

impl Engine {
    /// Asks `shards`; `then` gets all answers, errors for shards that did not answer in time.
    pub fn ask(&self, shards: Vec<NodeId>, what: &str, argument: Bytes, then: OnGathered) {
        if shards.is_empty() {
            return then(Vec::new());
        }
        let id = self.queries.counter.fetch_add(1, Ordering::Relaxed);
        let deadline_ms = self.host.now_ms() + limits::QUERY_TIMEOUT.as_millis() as u64;
        let mut open = self.queries.open.lock();
        if open.len() >= limits::OPEN_QUERIES {
            drop(open);
            let refused = |n| (n, Err("too many questions to other shards are open".to_owned()));
            return then(shards.into_iter().map(refused).collect());
        }
        open.insert(
            id,
            Open {
                awaited: shards.clone(),
                gathered: Vec::new(),
                deadline_ms,
                then,
            },
        );
        drop(open);
        for shard in shards {
            let message = Message::Query {
                id,
                what: what.to_owned(),
                argument: argument.clone(),
            };
            let sent = match self.transport.read().as_ref() {
                Some(transport) => transport.send(&shard, message),
                None => Err("the mesh is not up".into()),
            };
            if let Err(reason) = sent {
                self.queries.on_answer(
                    &shard,
                    id,
                    Err(format!("Execution max idle reached: shard {shard}: {reason}")),
                );
            }
        }
    }

    /// The other shards of the cluster.
    pub fn other_shards(&self) -> Vec<NodeId> {
        let topology = self.topology();
        if !topology.is_cluster() {
            return Vec::new();
        }
        topology
            .shards
            .iter()
            .map(|s| s.id.clone())
            .filter(|id| *id != topology.me)
            .collect()
    }
}
