//! The state of a runner, and how records move through its steps with the GIL held.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use oxigears_coordinator::{
    plan::{Output, Stage},
    stage::{RunState, StageSink},
};
use pyo3::{ffi, prelude::*};

use super::{
    ExecContext, build,
    drain::Drained,
    input::{Batch, Generator, Pulled},
    item::{Item, add_traceback},
    native::{self, NativeInput},
    output::Out,
    step::{Flow, Function, Step},
};
use crate::{
    codec::{Decoder, Encoder, Kept},
    errors::take_error_text,
    functions::Functions,
    interrupt::Interrupt,
    obj::Obj,
};

/// Longest time of one slice, and so of one hold of the GIL.
const SLICE: Duration = Duration::from_millis(5);

/// A list whose elements go on one by one.
struct Pending {
    list: Obj,
    at: ffi::Py_ssize_t,
    /// The step that takes them.
    next: usize,
}

/// Emission of what the accumulating steps keep.
#[derive(Clone, Copy)]
pub(super) struct Closing {
    /// The step that emits.
    pub(super) step: usize,
    /// Its next emission.
    pub(super) at: usize,
}

/// Says when a slice is over; looks at the clock and the sink now and then only.
pub(super) struct Slice {
    end: Instant,
    count: u32,
}

impl Slice {
    pub(super) fn new() -> Slice {
        Slice {
            end: Instant::now() + SLICE,
            count: 0,
        }
    }

    /// Called once per record or emission.
    #[inline]
    pub(super) fn is_over(&mut self, sink: &dyn StageSink, every: u32) -> bool {
        self.count = self.count.wrapping_add(1);
        self.count.is_multiple_of(every) && (sink.full() || sink.aborted() || Instant::now() >= self.end)
    }
}

/// Everything that a runner owns. Holds Python objects: dropped only with the GIL held.
pub(super) struct State {
    pub(super) steps: Vec<Step>,
    pub(super) out: Out,
    pub(super) batch: Batch,
    generator: Option<Generator>,
    /// Time in the generator.
    pub(super) read_ns: u64,
    pub(super) native: NativeInput,
    stack: Vec<Pending>,
    keyed_input: bool,
    is_first: bool,
    profile: bool,
    /// No more input comes.
    pub(super) closed: bool,
    /// The reader stopped because of an error.
    stopped: bool,
    /// Steps before this one get no more records: a limit behind them is satisfied.
    floor: usize,
    pub(super) closing: Option<Closing>,
    /// Python objects may be around.
    pub(super) has_objects: bool,
    pub(super) locals: usize,
    decoder: Decoder,
    encoder: Encoder,
    /// Keeps what decoder and encoder point to.
    _kept: Arc<Kept>,
    pub(super) interrupt: Arc<Interrupt>,
    /// Keeps functions and session alive.
    pub(super) functions: Functions,
}

// SAFETY: raw pointers are functions and globals, which `functions` keeps alive; they and all `Obj`s are touched
// only with the GIL held.
unsafe impl Send for State {}

impl State {
    pub(super) fn new(
        stage: &Stage,
        is_first: bool,
        generator: Option<Function>,
        functions: &Functions,
        ctx: &ExecContext,
        kept: &Arc<Kept>,
        is_result: bool,
    ) -> Result<State, String> {
        let steps = build::steps(&stage.locals, functions)?;
        let out = Out::new(stage.output, ctx, kept.clone());
        let native = match generator {
            Some(_) => NativeInput::None,
            None => native::native_input(&steps, &out, stage.keyed_input),
        };
        let globals = functions.session().globals().as_ptr();
        Ok(State {
            steps,
            out,
            batch: Batch::default(),
            generator: generator.map(Generator::NotStarted),
            read_ns: 0,
            native,
            stack: Vec::new(),
            keyed_input: stage.keyed_input,
            is_first,
            profile: ctx.profile,
            closed: false,
            stopped: false,
            floor: 0,
            closing: None,
            has_objects: false,
            locals: stage.locals.len(),
            decoder: Decoder {
                globals,
                kept: Arc::as_ptr(kept),
            },
            encoder: Encoder {
                globals,
                is_result,
                opaque: is_result && (stage.output == Output::Result || ctx.is_initiator),
                kept: std::ptr::null(),
            },
            _kept: kept.clone(),
            interrupt: ctx.interrupt.clone(),
            functions: functions.clone(),
        })
    }

    /// The chain wants no more input.
    pub(super) fn is_satisfied(&self) -> bool {
        self.stopped || self.floor > 0
    }

    /// Input has ended; emission begins.
    pub(super) fn begin_closing(&mut self) {
        self.closing.get_or_insert(Closing { step: 0, at: 0 });
        self.batch = Batch::default();
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.stack.is_empty()
    }

    /// Works until the slice is over, input is missing, or a native part begins.
    pub(super) fn run_slice(&mut self, py: Python<'_>, sink: &mut dyn StageSink) -> RunState {
        self.has_objects = true;
        let mut slice = Slice::new();
        loop {
            if !self.drain_stack(py, sink, &mut slice) || sink.aborted() {
                return RunState::Yield;
            }
            if let Some(closing) = self.closing {
                if closing.step >= self.steps.len() {
                    return self.finish(sink);
                }
                // The native writer takes over between slices.
                if native::tail(&self.steps, closing.step.max(self.floor), &self.out).is_some() {
                    return RunState::Yield;
                }
                if slice.is_over(sink, 8) {
                    return RunState::Yield;
                }
                self.emit_next(py, closing, sink);
                continue;
            }
            if self.is_first && !self.stopped && sink.has_own_errors() {
                self.stopped = true;
            }
            if self.is_satisfied() {
                self.generator = self.generator.take().map(|_| Generator::Ended);
                self.begin_closing();
                continue;
            }
            if sink.full() || slice.is_over(sink, 8) {
                return RunState::Yield;
            }
            match self.pull(py) {
                Pulled::Record(item) => self.push(py, 0, item, sink),
                Pulled::Error(text) => sink.error(text),
                Pulled::End => self.begin_closing(),
                Pulled::Nothing if self.closed => self.begin_closing(),
                Pulled::Nothing => {
                    self.out.pause(sink);
                    return RunState::NeedInput;
                }
            }
        }
    }

    fn pull(&mut self, py: Python<'_>) -> Pulled {
        // SAFETY: the GIL is held (`py`); `functions` keeps the generator function alive.
        unsafe {
            match &mut self.generator {
                Some(generator) => generator.pull(py, &mut self.read_ns),
                None => self.batch.pull(py, &self.decoder, self.keyed_input),
            }
        }
    }

    /// Sends the elements of flattened lists on, innermost list first; false if the slice is over.
    fn drain_stack(&mut self, py: Python<'_>, sink: &mut dyn StageSink, slice: &mut Slice) -> bool {
        while let Some(top) = self.stack.last_mut() {
            let list = top.list.as_ptr();
            // SAFETY: the GIL is held; the index is below the size, which is read anew because callbacks may change
            // the list.
            let value = unsafe {
                match top.at < ffi::PyList_GET_SIZE(list) {
                    true => Some(Obj::from_borrowed(ffi::PyList_GET_ITEM(list, top.at))),
                    false => None,
                }
            };
            let Some(value) = value else {
                self.stack.pop();
                continue;
            };
            top.at += 1;
            let next = top.next;
            self.push(py, next, Item::plain(value), sink);
            if slice.is_over(sink, 32) {
                return false;
            }
        }
        true
    }

    /// Takes a record through the steps from number `i` on.
    fn push(&mut self, py: Python<'_>, mut i: usize, mut item: Item, sink: &mut dyn StageSink) {
        loop {
            let Some(step) = self.steps.get_mut(i) else {
                // SAFETY: the GIL is held.
                if unsafe { self.out.put(&item, &self.encoder, sink) }.is_err() {
                    sink.error(take_error_text(py));
                }
                return;
            };
            let start = self.profile.then(Instant::now);
            // SAFETY: the GIL is held; `functions` keeps the callbacks alive.
            let flow = unsafe { step.kind.apply(item) };
            if let Some(start) = start {
                step.spent_ns += start.elapsed().as_nanos() as u64;
            }
            match flow {
                Flow::Next(next) => {
                    item = next;
                    i += 1;
                }
                Flow::Gone => return,
                other => return self.settle(py, i, other, sink),
            }
        }
    }

    /// Ends the way of a record that became something else at step `i`.
    fn settle(&mut self, py: Python<'_>, i: usize, flow: Flow, sink: &mut dyn StageSink) {
        match flow {
            Flow::Next(item) => self.push(py, i + 1, item, sink),
            Flow::Gone => {}
            Flow::List(list) => self.stack.push(Pending {
                list,
                at: 0,
                next: i + 1,
            }),
            Flow::Failed => sink.error(take_error_text(py)),
            Flow::Broken => {
                add_traceback(py);
                sink.error(take_error_text(py));
            }
            Flow::Refused(text) => sink.error(text.to_owned()),
            Flow::Satisfied => {
                self.floor = self.floor.max(i + 1);
                // What would only reach the satisfied step is not needed.
                let floor = self.floor;
                self.stack.retain(|pending| pending.next >= floor);
            }
        }
    }

    /// One emission of the step that is being closed.
    fn emit_next(&mut self, py: Python<'_>, mut closing: Closing, sink: &mut dyn StageSink) {
        if closing.step < self.floor {
            closing = Closing {
                step: self.floor,
                at: 0,
            };
        }
        let Some(step) = self.steps.get_mut(closing.step) else {
            self.closing = Some(closing);
            return;
        };
        let start = self.profile.then(Instant::now);
        // SAFETY: the GIL is held; `functions` keeps the callbacks alive.
        let drained = unsafe { step.kind.drain(py, &mut closing.at) };
        if let Some(start) = start {
            step.spent_ns += start.elapsed().as_nanos() as u64;
        }
        match drained {
            Drained::Some(flow) => {
                self.closing = Some(closing);
                self.settle(py, closing.step, flow, sink);
            }
            Drained::Empty => {
                self.closing = Some(Closing {
                    step: closing.step + 1,
                    at: 0,
                })
            }
        }
    }

    /// Everything is emitted.
    pub(super) fn finish(&mut self, sink: &mut dyn StageSink) -> RunState {
        self.out.flush(sink);
        RunState::Done
    }

    /// Steps before the satisfied one have nothing to emit.
    pub(super) fn closing_from_floor(&self) -> Option<Closing> {
        let closing = self.closing?;
        match closing.step < self.floor {
            true => Some(Closing {
                step: self.floor,
                at: 0,
            }),
            false => Some(closing),
        }
    }
}
