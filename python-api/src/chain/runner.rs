//! The runner of a stage: native parts without the GIL, the rest in slices with it.

use oxigears_coordinator::{
    codec::RecordBatch,
    stage::{RunState, StageRunner, StageSink, Waker},
};
use pyo3::prelude::*;

use super::{
    fused::Closing,
    input::Batch,
    native::{self, NativeInput, Tail, Written},
    state::{Slice, State},
};
use crate::{context, gil, reaper};

/// One stage on one shard.
pub(super) struct Runner {
    /// `None` only while it is dropped.
    state: Option<Box<State>>,
    /// A batch for a native first step.
    whole: Option<RecordBatch>,
}

impl Runner {
    pub(super) fn new(state: State) -> Runner {
        Runner {
            state: Some(Box::new(state)),
            whole: None,
        }
    }

    /// Works natively; `None` if Python is needed.
    fn run_natively(&mut self, sink: &mut dyn StageSink) -> Option<RunState> {
        let state = self.state.as_mut()?;
        if state.chain.has_pending() {
            return None;
        }
        if state.chain.closing.is_none() && state.native != NativeInput::None {
            if let Some(batch) = self.whole.take()
                && let Err(text) = native::take_batch(state.native, &mut state.chain.steps, batch, sink)
            {
                sink.error(text);
            }
            if !state.closed {
                return Some(RunState::NeedInput);
            }
            state.begin_closing();
        }
        let closing = state.chain.closing_from_floor()?;
        if closing.step >= state.chain.steps.len() {
            return Some(state.finish(sink));
        }
        let tail = native::tail(&state.chain.steps, closing.step, &state.out)?;
        Some(write(state, closing, tail, sink))
    }

    fn run_python(&mut self, sink: &mut dyn StageSink) -> RunState {
        let Some(state) = self.state.as_mut() else {
            return RunState::Done;
        };
        gil::attach(|py| {
            let interrupt = state.interrupt.clone();
            let _visit = context::visit_steps(
                None,
                state.functions.session(),
                state.origin.clone(),
                &state.chain.moment,
            );
            let _running = interrupt.enter(py);
            let run = state.run_slice(py, sink);
            if run == RunState::Done {
                state.let_go();
            }
            run
        })
    }
}

/// Writes the table of a step natively; takes the GIL only for keys whose `repr` needs it.
fn write(state: &mut State, mut closing: Closing, tail: Tail, sink: &mut dyn StageSink) -> RunState {
    let mut slice = Slice::new();
    let (kind, out) = (&mut state.chain.steps[closing.step].kind, &mut state.out);
    let mut go = |python: Option<Python<'_>>, at: &mut usize| {
        native::write_tail(tail, kind, at, out, sink, python, |sink| slice.is_over(sink, 32))
    };
    let mut written = go(None, &mut closing.at);
    if matches!(written, Written::NeedsPython) {
        written = gil::attach(|py| go(Some(py), &mut closing.at));
    }
    match written {
        Written::All => {
            state.chain.closing = Some(Closing {
                step: state.chain.steps.len(),
                at: 0,
            });
            state.finish(sink)
        }
        Written::Part | Written::NeedsPython => {
            state.chain.closing = Some(closing);
            RunState::Yield
        }
    }
}

impl StageRunner for Runner {
    fn feed(&mut self, batch: RecordBatch) {
        let Some(state) = self.state.as_mut() else { return };
        if state.native != NativeInput::None {
            self.whole = Some(batch);
        } else {
            state.batch = Batch::new(batch);
        }
    }

    fn close(&mut self) {
        if let Some(state) = self.state.as_mut() {
            state.closed = true;
        }
    }

    fn run(&mut self, sink: &mut dyn StageSink) -> RunState {
        match self.run_natively(sink) {
            Some(state) => state,
            None => self.run_python(sink),
        }
    }

    fn is_pending(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.chain.is_waiting())
    }

    fn set_waker(&mut self, waker: Waker) {
        if let Some(state) = self.state.as_ref() {
            state.chain.moment.waits().set_waker(waker);
        }
    }

    fn satisfied(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.is_satisfied())
    }

    fn read_ns(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.read_ns)
    }

    fn durations_ns(&self) -> Vec<u64> {
        let Some(state) = self.state.as_ref() else {
            return Vec::new();
        };
        let mut durations = vec![0; state.locals];
        for step in &state.chain.steps {
            durations[step.local] += step.spent_ns;
        }
        durations
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        match self.state.take() {
            Some(state) if state.has_objects => reaper::free(state),
            _ => {}
        }
    }
}
