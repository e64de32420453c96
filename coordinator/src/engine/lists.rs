//! The executions that this shard knows: by id, and the FIFO that `MaxExecutions` bounds.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{Engine, Execution, question};
use crate::message::ExecutionId;

/// A line of RG.DUMPEXECUTIONS.
pub struct Listed {
    /// The id.
    pub id: ExecutionId,
    /// The status text.
    pub status: &'static str,
}

#[derive(Default)]
pub(super) struct Lists {
    by_id: HashMap<ExecutionId, Arc<Execution>>,
    fifo: VecDeque<ExecutionId>,
}

impl Lists {
    pub fn get(&self, id: &ExecutionId) -> Option<Arc<Execution>> {
        self.by_id.get(id).cloned()
    }

    pub fn unfinished(&self) -> Vec<Arc<Execution>> {
        self.by_id.values().filter(|e| !e.phase().is_over()).cloned().collect()
    }

    fn forget(&mut self, id: &ExecutionId) -> Option<Arc<Execution>> {
        self.fifo.retain(|listed| listed != id);
        self.by_id.remove(id)
    }
}

impl Engine {
    pub(super) fn list(&self, execution: &Arc<Execution>) {
        let max = self.host.max_executions();
        let mut gone = Vec::new();
        let mut lists = self.lists.lock();
        while max > 0 && lists.fifo.len() as i64 >= max {
            let Some(oldest) = lists.fifo.pop_front() else { break };
            let Some(oldest) = lists.get(&oldest) else { continue };
            if oldest.phase().is_over() {
                gone.extend(lists.by_id.remove(&oldest.id));
            } else {
                // It leaves the FIFO now and the lists when it is over.
                oldest.drop_when_over.store(true, Ordering::Release);
            }
        }
        lists.by_id.insert(execution.id.clone(), execution.clone());
        lists.fifo.push_back(execution.id.clone());
        drop(lists);
        // Freed outside the lock: large results take a while.
        drop(gone);
    }

    pub(super) fn execution_over(&self, execution: &Arc<Execution>) {
        if execution.nested {
            self.forget_everywhere(execution);
        } else if execution.drop_when_over.load(Ordering::Acquire) {
            let gone = self.lists.lock().forget(&execution.id);
            drop(gone);
        }
    }

    /// A copy, so that the lock is free again: what is done to them may take it.
    pub(super) fn unfinished(&self) -> Vec<Arc<Execution>> {
        self.lists.lock().unfinished()
    }

    /// Looks an execution up.
    pub fn find(&self, id: &ExecutionId) -> Option<Arc<Execution>> {
        self.lists.lock().get(id)
    }

    /// Drops an execution from the lists: now, or when it is over.
    pub fn forget(&self, id: &ExecutionId) {
        let mut lists = self.lists.lock();
        let Some(execution) = lists.get(id) else { return };
        execution.drop_when_over.store(true, Ordering::Release);
        if execution.phase().is_over() {
            lists.forget(id);
        }
    }

    /// Drops an execution here and on the other shards. Nobody waits for these: they drop it now or when their part is
    /// over, and a shard that is gone has dropped it anyway.
    pub fn forget_everywhere(&self, execution: &Arc<Execution>) {
        self.forget(&execution.id);
        if execution.is_distributed() {
            let id = Bytes::copy_from_slice(execution.id.as_str().as_bytes());
            self.ask(self.other_shards(), question::DROP, id, Box::new(|_| {}));
        }
    }

    /// All executions, for RG.DUMPEXECUTIONS.
    pub fn listed(&self) -> Vec<Listed> {
        let lists = self.lists.lock();
        lists
            .by_id
            .values()
            .map(|e| Listed {
                id: e.id.clone(),
                status: e.phase().status(),
            })
            .collect()
    }

    /// Number of executions known.
    pub fn executions(&self) -> usize {
        self.lists.lock().by_id.len()
    }
}
