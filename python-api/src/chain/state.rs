//! The state of a runner, and how records move through its steps with the GIL held.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use oxigears_coordinator::{
    plan::{Output, Stage},
    stage::{RunState, StageSink},
};
use pyo3::prelude::*;

use super::{
    ExecContext, build,
    fused::{Chain, Exit},
    input::{Batch, Generator, Pulled},
    item::Item,
    native::{self, NativeInput},
    output::Out,
    step::Function,
};
use crate::{
    codec::{Decoder, Encoder, Kept},
    errors::take_error_text,
    functions::Functions,
    interrupt::Interrupt,
    later::Spot,
    origin::Origin,
};

/// Longest time of one slice, and so of one hold of the GIL.
const SLICE: Duration = Duration::from_millis(5);

/// Says when a slice is over; looks at the clock and the sink now and then only, but more often at first: where each
/// record takes long, other shards and executions hear of it after each.
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
        self.looks(every) && (sink.full() || sink.aborted() || Instant::now() >= self.end)
    }

    /// The same where nothing but the time counts.
    #[inline]
    pub(super) fn has_ended(&mut self, every: u32) -> bool {
        self.looks(every) && Instant::now() >= self.end
    }

    #[inline]
    fn looks(&mut self, every: u32) -> bool {
        self.count = self.count.wrapping_add(1);
        self.count.is_multiple_of(every) || self.count < every && self.count.is_power_of_two()
    }
}

/// To the buffers of the stage, for the length of a slice.
struct ToSink<'a> {
    out: &'a mut Out,
    encoder: &'a Encoder,
    sink: &'a mut dyn StageSink,
    slice: &'a mut Slice,
}

impl Exit for ToSink<'_> {
    #[inline]
    unsafe fn put(&mut self, py: Python<'_>, item: &Item) {
        // SAFETY: the GIL is held.
        if unsafe { self.out.put(item, self.encoder, self.sink) }.is_err() {
            self.sink.error(take_error_text(py));
        }
    }

    #[inline]
    unsafe fn put_text(&mut self, item: &Item) -> bool {
        // SAFETY: the GIL is held.
        unsafe { self.out.put_text(item, self.sink) }
    }

    fn error(&mut self, text: String) {
        self.sink.error(text);
    }

    #[inline]
    fn is_over(&mut self, every: u32) -> bool {
        self.slice.is_over(self.sink, every)
    }
}

/// What a call leaves that can not go on before records come back, or that has taken its time.
pub(super) struct Rest {
    pub(super) chain: Box<Chain>,
    /// Records that it has not taken.
    pub(super) batch: Batch,
    /// Results so far.
    pub(super) bytes: Vec<u8>,
    pub(super) records: u32,
    /// Texts of error records so far.
    pub(super) errors: Vec<String>,
}

/// Everything that a runner owns. Holds Python objects: dropped only with the GIL held.
pub(super) struct State {
    pub(super) chain: Chain,
    pub(super) out: Out,
    pub(super) batch: Batch,
    generator: Option<Generator>,
    /// Time in the generator.
    pub(super) read_ns: u64,
    pub(super) native: NativeInput,
    keyed_input: bool,
    is_first: bool,
    /// No more input comes.
    pub(super) closed: bool,
    /// The reader stopped because of an error.
    stopped: bool,
    /// Python objects may be around.
    pub(super) has_objects: bool,
    /// Texts of error records from before it was a state of its own.
    errors: Vec<String>,
    pub(super) locals: usize,
    decoder: Decoder,
    encoder: Encoder,
    /// Keeps what decoder and encoder point to.
    _kept: Arc<Kept>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) origin: Option<Arc<dyn Origin>>,
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
        // Code that gets the results as objects has told where they are to stay.
        let wants_objects = functions.kept().is_some();
        let chain = Chain::new(build::steps(&stage.locals, functions)?, ctx.profile);
        let out = Out::new(stage.output, ctx, kept.clone(), wants_objects);
        let native = match generator {
            Some(_) => NativeInput::None,
            None => native::native_input(&chain.steps, stage),
        };
        let is_result = is_result && !wants_objects;
        let globals = functions.session().globals().as_ptr();
        Ok(State {
            chain,
            out,
            batch: Batch::default(),
            generator: generator.map(Generator::NotStarted),
            read_ns: 0,
            native,
            keyed_input: stage.keyed_input,
            is_first,
            closed: false,
            stopped: false,
            has_objects: false,
            errors: Vec::new(),
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
            origin: ctx.origin.clone(),
            functions: functions.clone(),
        })
    }

    /// A state that goes on with what a call has left.
    pub(super) fn going_on(
        stage: &Stage,
        functions: &Functions,
        ctx: &ExecContext,
        rest: Rest,
    ) -> Result<State, String> {
        let kept = Arc::new(Kept::default());
        let mut state = State::new(stage, false, None, functions, ctx, &kept, true)?;
        state.chain = *rest.chain;
        state.native = NativeInput::None;
        state.batch = rest.batch;
        state.out.adopt(rest.bytes, rest.records);
        state.errors = rest.errors;
        state.has_objects = true;
        Ok(state)
    }

    /// The chain wants no more input.
    pub(super) fn is_satisfied(&self) -> bool {
        self.stopped || self.chain.is_satisfied()
    }

    /// Input has ended; emission begins.
    pub(super) fn begin_closing(&mut self) {
        self.chain.begin_closing();
        self.batch = Batch::default();
    }

    fn split<'a>(&'a mut self, sink: &'a mut dyn StageSink, slice: &'a mut Slice) -> (&'a mut Chain, ToSink<'a>) {
        let State {
            chain, out, encoder, ..
        } = self;
        (
            chain,
            ToSink {
                out,
                encoder,
                sink,
                slice,
            },
        )
    }

    /// Nothing can move: asks to be woken. False if something can after all.
    fn settle_down(&mut self, sink: &mut dyn StageSink) -> bool {
        if self.chain.arm() {
            return false;
        }
        self.out.pause(sink);
        true
    }

    /// Works until the slice is over, input is missing, or a native part begins.
    pub(super) fn run_slice(&mut self, py: Python<'_>, sink: &mut dyn StageSink) -> RunState {
        self.has_objects = true;
        for text in std::mem::take(&mut self.errors) {
            sink.error(text);
        }
        let mut slice = Slice::new();
        loop {
            let (chain, mut exit) = self.split(sink, &mut slice);
            if !chain.advance(py, &mut exit) || exit.sink.aborted() {
                return RunState::Yield;
            }
            let closing = chain.closing_from_floor();
            if chain.has_pending() && closing.map_or(chain.is_blocked(), |closing| !chain.may_emit(closing.step)) {
                match self.settle_down(sink) {
                    true => return RunState::Waiting,
                    false => continue,
                }
            }
            if let Some(closing) = closing {
                if closing.step >= chain.steps.len() {
                    return self.finish(sink);
                }
                // The native writer takes over between slices.
                if native::tail(&chain.steps, closing.step, exit.out).is_some() || exit.is_over(8) {
                    return RunState::Yield;
                }
                chain.emit_next(py, &mut exit);
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
                Pulled::Record(item) => {
                    let (chain, mut exit) = self.split(sink, &mut slice);
                    chain.push(py, 0, item, &mut exit);
                }
                Pulled::Error(text) if self.is_first => sink.error(text),
                Pulled::Error(text) => sink.lost(text),
                Pulled::End => self.begin_closing(),
                Pulled::Nothing if self.closed => self.begin_closing(),
                Pulled::Nothing => {
                    if self.settle_down(sink) {
                        return RunState::NeedInput;
                    }
                }
            }
        }
    }

    fn pull(&mut self, py: Python<'_>) -> Pulled {
        // SAFETY: the GIL is held (`py`); `functions` keeps the generator function alive.
        unsafe {
            match &mut self.generator {
                Some(generator) => {
                    self.chain.moment.at(Spot::Reader);
                    generator.pull(py, &mut self.read_ns)
                }
                None => self.batch.pull(py, &self.decoder, self.keyed_input),
            }
        }
    }

    /// Everything is emitted, with the GIL held: in most cases no Python object is left, and whoever drops this needs no
    /// GIL.
    pub(super) fn let_go(&mut self) {
        let has_generator = matches!(self.generator, Some(Generator::Running(_)));
        self.has_objects = has_generator || self.chain.holds_objects();
    }

    /// Everything is emitted.
    pub(super) fn finish(&mut self, sink: &mut dyn StageSink) -> RunState {
        self.out.flush(sink);
        RunState::Done
    }
}
