//! Executions of one registration that are over and listed, where the engine lists them one by one.

use std::collections::VecDeque;

use oxigears_coordinator::{engine::Execution, execution::Outcome, limits, message::ExecutionId};

use crate::module::module;

/// See the module.
#[derive(Default)]
pub struct Remembered {
    /// With the bytes that they gave; oldest first.
    executions: VecDeque<(ExecutionId, usize)>,
    bytes: usize,
}

impl Remembered {
    /// One more is over. The oldest ones are forgotten while there are more than `most`, or they gave too much.
    pub fn add(&mut self, execution: &Execution, most: usize) {
        let (engine, bytes) = (&module().engine, execution.with_outcome(Outcome::bytes));
        self.bytes += bytes;
        self.executions.push_back((execution.id.clone(), bytes));
        if self.bytes > limits::KEPT_BYTES {
            // Those that clients have dropped do not count.
            self.executions.retain(|(id, _)| engine.find(id).is_some());
            self.bytes = self.executions.iter().map(|(_, bytes)| bytes).sum();
        }
        while self.executions.len() > 1 && (self.executions.len() > most || self.bytes > limits::KEPT_BYTES) {
            if let Some((oldest, bytes)) = self.executions.pop_front() {
                self.bytes -= bytes;
                engine.forget(&oldest);
            }
        }
    }

    /// All are forgotten.
    pub fn forget(&mut self) {
        for (execution, _) in std::mem::take(self).executions {
            module().engine.forget(&execution);
        }
    }
}
