//! The state machine of one execution on one shard: event in, commands out; no I/O, no clock, no threads.

mod exchange;
mod machine;
#[cfg(test)]
mod simulation;

pub use exchange::ExchangeKind;
pub use machine::{ABORTED, Command, Machine, Outcome, Phase, Setup};

use crate::limits;

/// An error text within its bound.
fn cut_text(mut text: String) -> String {
    if text.len() > limits::ERROR_TEXT_BYTES {
        let mut end = limits::ERROR_TEXT_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" ... (cut)");
    }
    text
}

impl Outcome {
    /// Size of what it gave.
    pub fn bytes(&self) -> usize {
        let results: usize = self.results.iter().map(|batch| batch.bytes.len()).sum();
        results + self.errors.iter().map(String::len).sum::<usize>()
    }
}
