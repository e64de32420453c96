//! Questions to the other masters around a change, and answers to theirs.
//!
//! A peer that is not connected, is lost meanwhile or does not answer in time is left out: whether a change is made is
//! for the group to say.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hashbrown::HashMap;
use oxigears_coordinator::{
    limits as bounds,
    message::{Message, RegistryMessage, RegistryQuestion},
    registry::SessionChange,
    topology::NodeId,
};
use parking_lot::Mutex;

use super::{active::Loaded, change::Failure, limits, loaders::Errand, prepared, registrations};
use crate::{mesh::mesh, module::module};

/// Refusals by shard.
pub type Refusals = Vec<(NodeId, String)>;

type Then = Box<dyn FnOnce(Refusals) + Send>;

struct Open {
    awaited: Vec<NodeId>,
    refusals: Refusals,
    deadline_ms: u64,
    then: Then,
}

/// The questions that are open.
#[derive(Default)]
pub struct Spread {
    tickets: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

impl Spread {
    /// The other masters with slots whose links are up.
    pub fn connected_masters(&self) -> Vec<NodeId> {
        let Some(mesh) = mesh() else { return Vec::new() };
        let topology = module().engine.topology();
        let ids = topology.shards.iter().map(|shard| &shard.id);
        ids.filter(|id| **id != topology.me && mesh.is_up(id))
            .cloned()
            .collect()
    }

    /// Asks `peers`. `then` hears who refused once all have answered or `wait` is over; on any thread, it must not block.
    pub fn ask(&self, peers: Vec<NodeId>, question: RegistryQuestion, wait: Duration, then: Then) {
        if peers.is_empty() {
            return then(Vec::new());
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock();
        if open.len() >= limits::OPEN_QUESTIONS {
            drop(open);
            return then(Vec::new());
        }
        let entry = Open {
            awaited: peers.clone(),
            refusals: Vec::new(),
            deadline_ms: module().now_ms() + wait.as_millis() as u64,
            then,
        };
        open.insert(ticket, entry);
        drop(open);
        for peer in peers {
            let question = question.clone();
            if !send(&peer, RegistryMessage::Ask { ticket, question }) {
                self.settle(ticket, &peer, Ok(()));
            }
        }
    }

    /// A peer answers.
    pub fn on_tell(&self, from: &NodeId, ticket: u64, result: Result<(), String>) {
        self.settle(ticket, from, result);
    }

    /// A peer is gone: nobody waits for it any more.
    pub fn on_peer_lost(&self, peer: &NodeId) {
        let asked = |(ticket, open): (&u64, &Open)| open.awaited.contains(peer).then_some(*ticket);
        let tickets: Vec<u64> = self.open.lock().iter().filter_map(asked).collect();
        for ticket in tickets {
            self.settle(ticket, peer, Ok(()));
        }
    }

    fn settle(&self, ticket: u64, peer: &NodeId, result: Result<(), String>) {
        let ended = {
            let mut all = self.open.lock();
            let Some(open) = all.get_mut(&ticket) else { return };
            let Some(place) = open.awaited.iter().position(|p| p == peer) else {
                return;
            };
            open.awaited.swap_remove(place);
            if let Err(reason) = result {
                open.refusals.push((peer.clone(), reason));
            }
            if !open.awaited.is_empty() {
                return;
            }
            all.remove(&ticket)
        };
        if let Some(open) = ended {
            (open.then)(open.refusals);
        }
    }

    /// Looks at deadlines.
    pub fn look(&self, now_ms: u64) {
        let late: Vec<Open> = {
            let mut all = self.open.lock();
            let late = all.extract_if(|_, open| open.deadline_ms <= now_ms);
            late.map(|(_, open)| open).collect()
        };
        for open in late {
            (open.then)(open.refusals);
        }
    }
}

fn send(to: &NodeId, message: RegistryMessage) -> bool {
    mesh().is_some_and(|mesh| mesh.send(to, Message::Registry(message)).is_ok())
}

/// A peer asks. Called on the mesh's thread: never blocks.
pub fn on_ask(from: &NodeId, ticket: u64, question: RegistryQuestion) {
    let peer = from.clone();
    let tell = move |result| {
        // A peer that is gone does not wait for the answer any more.
        send(&peer, RegistryMessage::Tell { ticket, result });
    };
    let state = registrations();
    match question {
        RegistryQuestion::Check(change) => {
            let asked = Instant::now();
            state.helpers.checking.submit(Errand {
                // No check waits for another one.
                line: format!("{from} {ticket}"),
                load: Arc::new(move |interrupt| tell(interrupt.during(|| check(&change)))),
                is_wanted: Box::new(move || asked.elapsed() < limits::PREPARED_LIFE),
            });
        }
        // Its log can not be written: it will not get there before that is mended, and nobody should wait for it.
        RegistryQuestion::Active(_) if state.service.status().role == "failed" => tell(Ok(())),
        RegistryQuestion::Active(index) => {
            let then = Box::new(move |_| tell(Ok(())));
            state.activation.when_active(index, bounds::ACTIVATION_WAIT, then);
        }
    }
}

/// Loads all functions of a change that a peer wants to make, and keeps them for it. Nothing becomes active.
fn check(change: &Bytes) -> Result<(), String> {
    let change = SessionChange::decode(change).map_err(|e| format!("Failed deserializing session, {e}"))?;
    let failed = |why: String| Failure::Unloadable(why).to_string();
    let mut ready = Vec::with_capacity(change.registrations.len());
    for new in &change.registrations {
        let loaded = Loaded::from_plan(&new.plan).map_err(failed)?;
        loaded.code.as_ref().map_err(|why| failed(why.clone()))?;
        ready.push((new.id.clone(), new.plan.clone(), loaded));
    }
    for (id, plan, loaded) in ready {
        prepared::keep(id, plan, loaded);
    }
    Ok(())
}
