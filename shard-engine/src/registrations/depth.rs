//! How deep the code on this thread is in events that caused each other.
//!
//! A client's command is at depth 0; an event that it raises, and what runs for that, at 1; what that code writes raises
//! events of depth 2. A bound on it ends loops. Lives beside `identity`: whoever runs code of an event enters its depth.

use std::cell::Cell;

use oxigears_coordinator::{
    codec::RecordBatch,
    stage::{RunState, StageRunner, StageSink, Waker},
};

thread_local! {
    static CURRENT: Cell<u32> = const { Cell::new(0) };
}

/// The thread's depth until the guard goes.
pub struct Entered(u32);

/// Code of an event of this depth runs on this thread.
pub fn enter(depth: u32) -> Entered {
    Entered(CURRENT.replace(depth))
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Depth of what runs on this thread; 0: no event caused it.
pub fn current() -> u32 {
    CURRENT.get()
}

/// Gives this thread a depth; gives the one that it had.
pub fn replace(depth: u32) -> u32 {
    CURRENT.replace(depth)
}

/// Depth of an event that is raised on this thread now.
pub fn of_event() -> u32 {
    CURRENT.get().saturating_add(1)
}

/// A runner whose steps are at a depth.
pub struct AtDepth {
    /// The runner.
    pub runner: Box<dyn StageRunner>,
    /// Its depth.
    pub depth: u32,
}

impl StageRunner for AtDepth {
    fn feed(&mut self, batch: RecordBatch) {
        self.runner.feed(batch);
    }

    fn close(&mut self) {
        self.runner.close();
    }

    fn run(&mut self, sink: &mut dyn StageSink) -> RunState {
        let _depth = enter(self.depth);
        self.runner.run(sink)
    }

    fn is_pending(&self) -> bool {
        self.runner.is_pending()
    }

    fn set_waker(&mut self, waker: Waker) {
        self.runner.set_waker(waker);
    }

    fn satisfied(&self) -> bool {
        self.runner.satisfied()
    }

    fn read_ns(&self) -> u64 {
        self.runner.read_ns()
    }

    fn durations_ns(&self) -> Vec<u64> {
        self.runner.durations_ns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_nest() {
        assert_eq!((current(), of_event()), (0, 1));
        let outer = enter(of_event());
        {
            let _inner = enter(of_event());
            assert_eq!((current(), of_event()), (2, 3));
        }
        assert_eq!(current(), 1);
        drop(outer);
        assert_eq!(current(), 0);
    }
}
