//! The executions that this shard knows: by id, and the FIFO that `MaxExecutions` bounds.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{Engine, Execution};
use crate::message::ExecutionId;

/// A line of RG.DUMPEXECUTIONS.
pub struct Listed {
    /// The id.
    pub id: ExecutionId,
    /// The status text.
    pub status: &'static str,
    /// A registration fired it.
    pub registered: bool,
}

#[derive(Default)]
pub(super) struct Lists {
    by_id: HashMap<ExecutionId, Entry>,
    /// Oldest first. Those that were dropped leave it later, as looking for them would take long.
    fifo: VecDeque<ExecutionId>,
    /// Entries that are in the FIFO.
    in_fifo: usize,
}

struct Entry {
    execution: Arc<Execution>,
    in_fifo: bool,
}

impl Lists {
    pub fn get(&self, id: &ExecutionId) -> Option<Arc<Execution>> {
        self.by_id.get(id).map(|entry| entry.execution.clone())
    }

    pub fn unfinished(&self) -> Vec<Arc<Execution>> {
        let all = self.by_id.values().map(|entry| &entry.execution);
        all.filter(|e| !e.phase().is_over()).cloned().collect()
    }

    fn forget(&mut self, id: &ExecutionId) -> Option<Arc<Execution>> {
        let entry = self.by_id.remove(id)?;
        self.in_fifo -= usize::from(entry.in_fifo);
        Some(entry.execution)
    }

    fn add(&mut self, execution: &Arc<Execution>) {
        if self.fifo.len() > 2 * self.in_fifo + 64 {
            let by_id = &self.by_id;
            self.fifo.retain(|id| by_id.get(id).is_some_and(|entry| entry.in_fifo));
        }
        let entry = Entry {
            execution: execution.clone(),
            in_fifo: true,
        };
        let replaced = self.by_id.insert(execution.id.clone(), entry);
        self.in_fifo -= usize::from(replaced.is_some_and(|entry| entry.in_fifo));
        self.fifo.push_back(execution.id.clone());
        self.in_fifo += 1;
    }

    /// Places in the FIFO, used or not.
    #[cfg(test)]
    pub fn waiting_to_leave(&self) -> usize {
        self.fifo.len()
    }

    /// The oldest one of the FIFO leaves it.
    fn pop_oldest(&mut self) -> Option<Arc<Execution>> {
        loop {
            let oldest = self.fifo.pop_front()?;
            if let Some(entry) = self.by_id.get_mut(&oldest).filter(|entry| entry.in_fifo) {
                entry.in_fifo = false;
                self.in_fifo -= 1;
                return Some(entry.execution.clone());
            }
        }
    }
}

impl Engine {
    pub(super) fn list(&self, execution: &Arc<Execution>) {
        let max = self.host.max_executions();
        let mut gone = Vec::new();
        let mut lists = self.lists.lock();
        while max > 0 && lists.in_fifo as i64 >= max {
            let Some(oldest) = lists.pop_oldest() else { break };
            if oldest.phase().is_over() {
                gone.extend(lists.forget(&oldest.id));
            } else {
                // It leaves the FIFO now and the lists when it is over.
                oldest.drop_when_over.store(true, Ordering::Release);
            }
        }
        lists.add(execution);
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
        let known = || self.lists.lock().get(id);
        // It may have gone on from there to here in between.
        known().or_else(|| self.find_swift(id)).or_else(known)
    }

    /// Drops an execution from the lists: now, or when it is over.
    pub fn forget(&self, id: &ExecutionId) {
        let mut lists = self.lists.lock();
        let Some(execution) = lists.get(id) else {
            drop(lists);
            return self.forget_swift(id);
        };
        execution.drop_when_over.store(true, Ordering::Release);
        let gone = match execution.phase().is_over() {
            true => lists.forget(id),
            false => None,
        };
        drop(lists);
        drop((execution, gone));
    }

    /// Drops what a registration fired that is gone: now, or when it is over.
    pub fn forget_fired(&self, registration: &str) {
        let mut lists = self.lists.lock();
        let is_its = |e: &Execution| e.registration().is_some_and(|id| **id == *registration);
        let its = lists.by_id.values().map(|entry| &entry.execution);
        let its: Vec<Arc<Execution>> = its.filter(|e| is_its(e)).cloned().collect();
        for execution in &its {
            execution.drop_when_over.store(true, Ordering::Release);
            if execution.phase().is_over() {
                lists.forget(&execution.id);
            }
        }
        drop(lists);
        // Freed outside the lock.
        drop(its);
    }

    /// Drops an execution here and on the other shards. Nobody waits for these: they drop it now or when their part is
    /// over, or when they can be reached again.
    pub fn forget_everywhere(&self, execution: &Arc<Execution>) {
        self.forget(&execution.id);
        // The other shards drop what a registration fired by themselves.
        if execution.is_distributed() && execution.registration().is_none() {
            let id = Bytes::copy_from_slice(execution.id.as_str().as_bytes());
            // Those that are no shards any more, too.
            let setup = &execution.setup;
            let others = setup.participants.iter().enumerate().filter(|(p, _)| *p != setup.me);
            self.tell_dropped(others.map(|(_, node)| node.clone()).collect(), id);
        }
    }

    /// All executions, for RG.DUMPEXECUTIONS.
    pub fn listed(&self) -> Vec<Listed> {
        let mut listed = Vec::new();
        self.list_swifts(&mut listed);
        let lists = self.lists.lock();
        // One that was handed over meanwhile.
        listed.retain(|known| !lists.by_id.contains_key(&known.id));
        let others = lists.by_id.values().map(|entry| &entry.execution).map(|e| Listed {
            id: e.id.clone(),
            status: e.phase().status(),
            registered: e.registration().is_some(),
        });
        listed.extend(others);
        listed
    }

    /// Number of executions known.
    pub fn executions(&self) -> usize {
        self.lists.lock().by_id.len() + self.count_swifts()
    }
}
