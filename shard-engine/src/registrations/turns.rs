//! Executions of one registration that run one after another (`inorder`).

use std::{collections::VecDeque, sync::Arc};

use oxigears_coordinator::{engine::Execution, limits};
use parking_lot::Mutex;

use crate::module::module;

/// The line of executions of one registration.
#[derive(Default)]
pub struct Turns(Mutex<Line>);

#[derive(Default)]
struct Line {
    /// The one whose turn it is.
    current: Option<Arc<Execution>>,
    /// The others, listed but not begun.
    waiting: VecDeque<Arc<Execution>>,
}

impl Turns {
    /// Executions that wait are at their bound.
    pub fn is_full(&self) -> bool {
        self.0.lock().waiting.len() >= limits::QUEUED_EXECUTIONS
    }

    /// A created execution takes its place; it begins when those before it are over.
    pub fn join(&self, execution: &Arc<Execution>) {
        let mut line = self.0.lock();
        // Aborted already: `over` may have passed, and would not come again.
        if execution.phase().is_over() {
            return;
        }
        if line.current.is_some() {
            line.waiting.push_back(execution.clone());
            return;
        }
        line.current = Some(execution.clone());
        drop(line);
        module().engine.release(execution);
    }

    /// An execution of the line is over; the next one begins. One that was aborted while it waited only leaves.
    pub fn over(&self, execution: &Arc<Execution>) {
        let next = {
            let mut line = self.0.lock();
            let is_current = line.current.as_ref().is_some_and(|e| Arc::ptr_eq(e, execution));
            if !is_current {
                line.waiting.retain(|e| !Arc::ptr_eq(e, execution));
                return;
            }
            line.current = line.waiting.pop_front();
            line.current.clone()
        };
        if let Some(next) = next {
            module().engine.release(&next);
        }
    }
}
