//! The distributed half of OxiGears: plans, records, topology, execution, shuffle, collect, mesh.
//!
//! Knows neither Redis nor Python and has no unsafe code. The execution state machine does no I/O and reads no
//! clock, so that all of it runs in tests with simulated peers, network and time.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod codec;
pub mod consensus;
pub mod cron;
pub mod engine;
pub mod execution;
pub mod limits;
pub mod message;
pub mod net;
pub mod plan;
pub mod registry;
pub mod stage;
pub mod topology;
pub mod view;
