//! The boundary between the coordinator and what runs steps: sources, stage runners, sinks.
//!
//! A stage runner is one stage's compiled chain of steps on one shard. It is driven by one worker thread at a
//! time and works in bounded slices, so that an execution can be parked, aborted and flow-controlled between.

use std::sync::Arc;

use crate::{codec::RecordBatch, topology::Slot};

/// Where a batch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The result of the execution on this shard, or the initiator, as the stage's output says.
    Default,
    /// The shard with this number among the participants.
    Participant(usize),
}

/// What the worker thread should do next with a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// All input is used up; feed more or close.
    NeedInput,
    /// Slice over or sink full; call again.
    Yield,
    /// Nothing can be done before records that were postponed come back; the waker says when.
    Waiting,
    /// Everything has been emitted.
    Done,
}

/// Calls a runner back that has records which come back later. May be called by any thread, with any lock.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// One stage's compiled chain of steps.
pub trait StageRunner: Send {
    /// Hands over input; only after `NeedInput` (or at the start). `close` may follow at once.
    fn feed(&mut self, batch: RecordBatch);
    /// Says that no more input comes.
    fn close(&mut self);
    /// Works for one slice.
    fn run(&mut self, sink: &mut dyn StageSink) -> RunState;
    /// Records were postponed and have not come back. It may want input nevertheless.
    fn is_pending(&self) -> bool;
    /// Gives what to call when records have come back; once, after the first slice that left it pending. A runner for
    /// which that has happened already calls at once.
    fn set_waker(&mut self, waker: Waker);
    /// The runner wants no more input (a limit is reached); it is closed then.
    fn satisfied(&self) -> bool;
    /// Nanoseconds spent in a reader of the runner's own (PythonReader).
    fn read_ns(&self) -> u64;
    /// Nanoseconds spent in each local step, in order; all zero unless profiling is on.
    fn durations_ns(&self) -> Vec<u64>;
}

/// Takes what a stage emits.
pub trait StageSink {
    /// Takes a batch of records. Never blocks.
    fn emit(&mut self, route: Route, batch: RecordBatch);
    /// Takes the text of an error record.
    fn error(&mut self, text: String);
    /// The same for a record of another shard that can not be read: no fault of this shard, whose reader goes on.
    fn lost(&mut self, text: String);
    /// Windows are used up: the runner should return `Yield` after the record at hand.
    fn full(&self) -> bool;
    /// This shard's own error list is not empty: the reader stops.
    fn has_own_errors(&self) -> bool;
    /// The participant that owns a slot.
    fn owner(&self, slot: Slot) -> usize;
    /// The execution is being aborted: return soon.
    fn aborted(&self) -> bool;
}

/// What a source gives.
#[derive(Debug)]
pub enum SourceState {
    /// Records to feed to the first stage.
    Batch(RecordBatch),
    /// An error record instead of (further) input; the source has ended.
    Error(String),
    /// The execution can not be complete any more (slots moved, ...); names the reason.
    Broken(String),
    /// No more input.
    End,
}

/// A native reader of one execution on one shard, used by one worker thread at a time.
pub trait Source: Send {
    /// The next batch; blocks for a lock slice at most.
    fn next_batch(&mut self) -> SourceState;
}

/// The first stage's input.
pub enum Input {
    /// Batches of a native reader.
    Source(Box<dyn Source>),
    /// All that there is to read, in one piece.
    Batch(RecordBatch),
    /// The first runner makes its input itself (PythonReader).
    Runner,
    /// Nothing to read on this shard.
    Nothing,
}

/// Everything that one shard needs to run its part of an execution.
pub struct Job {
    /// The first stage's input.
    pub input: Input,
    /// One runner per stage.
    pub runners: Vec<Box<dyn StageRunner>>,
}
