//! Executions that were dropped and that some shard has not been told of, as it could not be reached: it is told when
//! the link is up again.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Engine, queries::Gathered, question};
use crate::{limits, topology::NodeId};

struct Owing {
    to: NodeId,
    /// The execution's id.
    execution: Bytes,
    tries: u32,
}

/// Oldest first.
#[derive(Default)]
pub(super) struct Owed(Mutex<VecDeque<Owing>>);

impl Owed {
    /// Keeps what has not arrived. The oldest make room: those shards evict the executions some day.
    fn keep(&self, answers: Gathered, execution: &Bytes, tries: u32) {
        if tries >= limits::DROP_TRIES {
            return;
        }
        let mut owed = self.0.lock();
        for (to, answer) in answers {
            if answer.is_err() {
                let execution = execution.clone();
                owed.push_back(Owing { to, execution, tries });
            }
        }
        let surplus = owed.len().saturating_sub(limits::OWED_DROPS);
        owed.drain(..surplus);
    }

    fn take(&self, mut which: impl FnMut(&NodeId) -> bool) -> Vec<Owing> {
        let mut owed = self.0.lock();
        let (taken, kept): (VecDeque<_>, VecDeque<_>) = owed.drain(..).partition(|owing| which(&owing.to));
        *owed = kept;
        taken.into()
    }
}

impl Engine {
    /// Tells the shards to drop an execution, and those that can not be reached when they can.
    pub(super) fn tell_dropped(&self, shards: Vec<NodeId>, execution: Bytes) {
        self.try_to_tell(shards, execution, 1);
    }

    fn try_to_tell(&self, shards: Vec<NodeId>, execution: Bytes, tries: u32) {
        let (owed, kept) = (self.owed.clone(), execution.clone());
        let keep = move |answers| owed.keep(answers, &kept, tries);
        self.ask(shards, question::DROP, execution, Box::new(keep));
    }

    /// Tells those whose links are up again.
    pub(super) fn tell_owed(&self) {
        let owed = self.owed.take(|node| {
            let transport = self.transport.read();
            transport.as_ref().is_some_and(|t| t.down_for(node).is_none())
        });
        for owing in owed {
            self.try_to_tell(vec![owing.to], owing.execution, owing.tries + 1);
        }
    }
}
