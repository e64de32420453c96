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
    /// Number of them above which is asked which of them are still there.
    next_look: usize,
}

/// See `next_look`.
const LOOK_AT_LEAST: usize = 1000;

impl Remembered {
    /// One more is over. The oldest ones are forgotten while there are more than `most`, or they gave too much; none are if
    /// `most` is 0 or less, but later ones may find a limit.
    pub fn add(&mut self, execution: &Execution, most: i64) {
        let (engine, bytes) = (&module().engine, execution.with_outcome(Outcome::bytes));
        self.bytes += bytes;
        self.executions.push_back((execution.id.clone(), bytes));
        if self.executions.len() > self.next_look || (most > 0 && self.bytes > limits::KEPT_BYTES) {
            // Those that clients have dropped, or others took the room of, do not count.
            self.executions.retain(|(id, _)| engine.find(id).is_some());
            self.bytes = self.executions.iter().map(|(_, bytes)| bytes).sum();
            self.next_look = LOOK_AT_LEAST + 2 * self.executions.len();
        }
        let too_many = |its: &Self| its.executions.len() as i64 > most || its.bytes > limits::KEPT_BYTES;
        while most > 0 && self.executions.len() > 1 && too_many(self) {
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
