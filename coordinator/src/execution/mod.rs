//! The state machine of one execution on one shard: event in, commands out; no I/O, no clock, no threads.

mod exchange;
mod machine;
#[cfg(test)]
mod simulation;

pub use exchange::ExchangeKind;
pub use machine::{ABORTED, Command, Machine, Outcome, Phase, Setup};
