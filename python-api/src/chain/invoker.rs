//! Sync registrations: what fired them goes through the steps at once, on the thread that asks.

use std::sync::Arc;

use bytes::Bytes;
use oxigears_coordinator::{
    codec::{Cursor, RecordBatch, TextEvent, tag},
    execution::Outcome,
    plan::{Plan, Stage},
    stage::StageRunner,
};
use parking_lot::Mutex;
use pyo3::{ffi, prelude::*};

use super::{
    ExecContext, build,
    fused::{Chain, Exit},
    input::{Batch, Pulled, pull_one},
    item::{Item, Raised},
    runner::Runner,
    state::{Rest, Slice, State},
    text,
};
use crate::{
    codec::{Decoder, Encoder, Kept, Lent, argument_text, version},
    context,
    errors::take_error_text,
    functions::Functions,
    gil::{self, WithGil},
    interrupt::Interrupt,
    obj::Obj,
    origin::Origin,
    reaper,
    server::server,
};

/// Most bytes of a result that is copied to memory of its own size; what a chain keeps for its next call.
const SCRATCH: usize = 4096;
/// Chains that wait for their next call; more than one is in use only when triggers call each other.
const IDLE_CHAINS: usize = 16;

/// The steps of a plan that runs on this shard only, ready to be called. May be called by any thread, also by a
/// thread that it is running on.
pub struct Invoker {
    stage: Stage,
    functions: Functions,
    encoder: Encoder,
    decoder: Decoder,
    /// Keeps what the decoder points to.
    _kept: Arc<Kept>,
    /// Hold no Python objects while they are here.
    #[allow(
        clippy::vec_box,
        reason = "triggers that call each other have a chain each, not on the stack"
    )]
    idle: WithGil<Vec<Box<Chain>>>,
}

// SAFETY: raw pointers are functions and globals, which `functions` keeps alive; they are touched only with the GIL
// held.
unsafe impl Send for Invoker {}
// SAFETY: as above; a chain is used by one call at a time.
unsafe impl Sync for Invoker {}

impl Invoker {
    /// Compiles the steps of a plan that stays on this shard.
    pub fn new(plan: &Plan, functions: &Functions) -> Result<Invoker, String> {
        let mut stages = plan.stages(false);
        let (Some(stage), true) = (stages.pop(), stages.is_empty()) else {
            return Err("the plan has more than one stage, so it can not run on one shard alone".to_owned());
        };
        let kept = Arc::new(Kept::default());
        let invoker = Invoker {
            decoder: Decoder {
                globals: functions.session().globals().as_ptr(),
                kept: Arc::as_ptr(&kept),
            },
            _kept: kept,
            encoder: Encoder {
                globals: functions.session().globals().as_ptr(),
                is_result: true,
                opaque: true,
                kept: std::ptr::null(),
            },
            functions: functions.clone(),
            stage,
            idle: WithGil::new(Vec::new()),
        };
        let chain = invoker.chain()?;
        gil::attach(|py| invoker.idle.with(py, |idle| idle.push(chain)));
        Ok(invoker)
    }

    fn chain(&self) -> Result<Box<Chain>, String> {
        let steps = build::steps(&self.stage.locals, &self.functions)?;
        Ok(Box::new(Chain::new(steps, false)))
    }

    /// Runs the steps with the record `[args...]`. Takes the GIL, unless this thread has it.
    pub fn call(&self, args: &[Vec<u8>], origin: Option<Arc<dyn Origin>>) -> Invoked {
        self.run(origin, |py, chain, exit| {
            // SAFETY: the GIL is held.
            match unsafe { record(args) } {
                Ok(record) => chain.push_one(py, Item::plain(record), exit),
                Err(Raised) => exit.error(take_error_text(py)),
            }
            chain.end(py, exit);
            Batch::default()
        })
    }

    /// Runs the steps with the records of a batch, as one execution. `reads_on`: after which errors further records are taken;
    /// `None`: after none. Takes the GIL, unless this thread has it.
    pub fn call_batch(
        &self,
        batch: RecordBatch,
        origin: Option<Arc<dyn Origin>>,
        reads_on: Option<fn(&str) -> bool>,
    ) -> Invoked {
        self.run(origin, |py, chain, exit| {
            exit.reads_on = reads_on;
            self.feed(py, chain, batch, exit)
        })
    }

    /// Runs the steps with one encoded record. Takes the GIL, unless this thread has it.
    pub fn call_record(&self, record: &[u8], origin: Option<Arc<dyn Origin>>) -> Invoked {
        self.run(origin, |py, chain, exit| {
            let event = Cursor::new(record).text_event();
            // SAFETY: the GIL is held.
            match unsafe { pull_one(py, record, event.as_ref(), &self.decoder) } {
                Ok(item) => push_event(py, chain, item, event.as_ref(), record, exit),
                Err(text) => exit.error(text),
            }
            chain.end(py, exit);
            Batch::default()
        })
    }

    /// What comes after a record that was postponed is left: it is not of this call any more.
    fn feed(&self, py: Python<'_>, chain: &mut Chain, batch: RecordBatch, exit: &mut ToOutcome<'_>) -> Batch {
        let mut batch = Batch::new(batch);
        while !(chain.is_waiting() || exit.paused || exit.is_stopped) {
            // SAFETY: the GIL is held.
            match unsafe { batch.pull(py, &self.decoder, false) } {
                Pulled::Record(item) => {
                    let record = batch.last();
                    let event = Cursor::new(record).text_event();
                    push_event(py, chain, item, event.as_ref(), record, exit);
                }
                Pulled::Error(text) => exit.error(text),
                Pulled::Nothing | Pulled::End => break,
            }
        }
        chain.end(py, exit);
        batch
    }

    /// The same for one event of a registration that runs in the background: its Python code can be stopped.
    pub fn call_event(&self, batch: RecordBatch, origin: Option<Arc<dyn Origin>>, interrupt: &Interrupt) -> Invoked {
        self.run(origin, |py, chain, exit| {
            let _running = interrupt.enter(py);
            self.feed(py, chain, batch, exit)
        })
    }

    /// The same for what needs no order: where lists keep it busy for long, between calls of functions, the rest goes on
    /// elsewhere, so that others have the GIL meanwhile.
    pub fn call_slice(&self, batch: RecordBatch, origin: Option<Arc<dyn Origin>>, interrupt: &Interrupt) -> Invoked {
        self.run(origin, |py, chain, exit| {
            let _running = interrupt.enter(py);
            exit.slice = Some(Slice::new());
            self.feed(py, chain, batch, exit)
        })
    }

    fn run(
        &self,
        origin: Option<Arc<dyn Origin>>,
        work: impl FnOnce(Python<'_>, &mut Chain, &mut ToOutcome<'_>) -> Batch,
    ) -> Invoked {
        let mut exit = ToOutcome {
            encoder: &self.encoder,
            bytes: Vec::new(),
            records: 0,
            errors: Vec::new(),
            expected: None,
            slice: None,
            paused: false,
            reads_on: Some(|_| true),
            is_stopped: false,
        };
        gil::attach(|py| {
            let idle = self.idle.with(py, Vec::pop);
            let mut chain = match idle.map_or_else(|| self.chain(), Ok) {
                Ok(chain) => chain,
                Err(text) => {
                    exit.error(text);
                    return Invoked::Done(exit.outcome().0);
                }
            };
            exit.bytes = std::mem::take(&mut chain.scratch);
            chain.profile = server().profile_enabled();
            let session = self.functions.session();
            let visit = context::visit_steps(chain.context.take(), session, origin.clone(), &chain.moment);
            let batch = work(py, &mut chain, &mut exit);
            if chain.is_waiting() || exit.paused {
                return Invoked::Continues(self.rest(chain, batch, exit, origin));
            }
            chain.context = visit.leave(session);
            let (mut outcome, scratch) = exit.outcome();
            chain.scratch = scratch;
            if chain.profile {
                outcome.steps_ns = vec![chain.take_durations_ns(self.stage.locals.len())];
            }
            let rest = self.idle.with(py, |idle| match idle.len() < IDLE_CHAINS {
                true => {
                    idle.push(chain);
                    None
                }
                false => Some(chain),
            });
            drop(rest);
            Invoked::Done(outcome)
        })
    }

    /// What a call leaves.
    #[cold]
    #[inline(never)]
    fn rest(
        &self,
        chain: Box<Chain>,
        batch: Batch,
        mut exit: ToOutcome<'_>,
        origin: Option<Arc<dyn Origin>>,
    ) -> Box<Continuation> {
        exit.met(None);
        let rest = Rest {
            chain,
            batch: batch.what_is_left(),
            bytes: exit.bytes,
            records: exit.records,
            errors: exit.errors,
        };
        Box::new(Continuation {
            rest: Mutex::new(Some(Box::new(rest))),
            stage: self.stage.clone(),
            functions: self.functions.clone(),
            origin,
            spent_ns: 0,
            reads_on: exit.reads_on,
        })
    }
}

/// Takes one record to the end, which may be that of an `event`.
#[inline]
fn push_event(
    py: Python<'_>,
    chain: &mut Chain,
    item: Item,
    event: Option<&TextEvent<'_>>,
    record: &[u8],
    exit: &mut ToOutcome<'_>,
) {
    exit.expect_event(&item, event, record);
    // SAFETY: the GIL is held; the item has just been made of the event.
    let lent = event.and_then(|event| unsafe { Lent::of(&item.value, event) });
    chain.push_one(py, item, exit);
    if let Some(lent) = lent {
        lent.give_back(py);
    }
}

/// What a call came to.
pub enum Invoked {
    /// It is done.
    Done(Outcome),
    /// A record was postponed, or its time is over: the rest goes on elsewhere, and the results come then.
    Continues(Box<Continuation>),
}

/// The rest of a call, to be gone on with by an execution of this shard. Dropping it ends it.
pub struct Continuation {
    rest: Mutex<Option<Box<Rest>>>,
    stage: Stage,
    functions: Functions,
    origin: Option<Arc<dyn Origin>>,
    /// How long the call took; set by whoever made it.
    pub spent_ns: u64,
    /// After which errors it reads on.
    pub reads_on: Option<fn(&str) -> bool>,
}

// SAFETY: the rest is touched only with the GIL held, and by one thread, as it is taken out of a mutex.
unsafe impl Send for Continuation {}
// SAFETY: as above.
unsafe impl Sync for Continuation {}
// SAFETY: its objects and raw pointers are touched only with the GIL held.
unsafe impl Send for Rest {}

impl Continuation {
    /// What runs the rest; once. It needs no input.
    pub fn runner(&self, mut ctx: ExecContext) -> Result<Box<dyn StageRunner>, String> {
        let Some(rest) = self.rest.lock().take() else {
            return Err("the rest of the call runs already".to_owned());
        };
        ctx.origin = self.origin.clone();
        let mut taken = Some(rest);
        // The chain that was made for the state goes, so the GIL is needed.
        let state = gil::attach(|_| match taken.take() {
            Some(rest) => State::going_on(&self.stage, &self.functions, &ctx, *rest),
            None => Err("the rest of the call is gone".to_owned()),
        })?;
        Ok(Box::new(Runner::new(state)))
    }
}

impl Continuation {
    /// It does not go on: what the call has given so far.
    pub fn given_up(&self) -> Outcome {
        let Some(mut rest) = self.rest.lock().take() else {
            return Outcome::default();
        };
        let mut outcome = Outcome {
            errors: std::mem::take(&mut rest.errors),
            ..Outcome::default()
        };
        if rest.records > 0 {
            outcome.results.push(RecordBatch {
                bytes: std::mem::take(&mut rest.bytes).into(),
                records: rest.records,
            });
        }
        reaper::free(rest);
        outcome
    }
}

impl Drop for Continuation {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.get_mut().take() {
            reaper::free(rest);
        }
    }
}

/// A list of the arguments: `str`, or `bytearray` if the bytes are not UTF-8.
///
/// # Safety
/// The GIL is held.
#[inline]
unsafe fn record(args: &[Vec<u8>]) -> Result<Obj, Raised> {
    // SAFETY: the GIL is held; the list has room for all items, each is set once, unset ones are NULL.
    unsafe {
        let list = Obj::from_owned(ffi::PyList_New(args.len() as ffi::Py_ssize_t)).ok_or(Raised)?;
        for (i, arg) in args.iter().enumerate() {
            let text = argument_text(arg).ok_or(Raised)?;
            ffi::PyList_SET_ITEM(list.as_ptr(), i as ffi::Py_ssize_t, text.into_ptr());
        }
        Ok(list)
    }
}

/// Gathers what a call gives.
struct ToOutcome<'a> {
    encoder: &'a Encoder,
    bytes: Vec<u8>,
    records: u32,
    errors: Vec<String>,
    /// The version of an event's record whose text will be the first result, most likely. What stands for the text is all that
    /// `bytes` holds then.
    expected: Option<u64>,
    /// The time that it may take.
    slice: Option<Slice>,
    /// It has taken that.
    paused: bool,
    /// After which errors further records are taken.
    reads_on: Option<fn(&str) -> bool>,
    /// No further ones are.
    is_stopped: bool,
}

impl ToOutcome<'_> {
    /// Most events go through their steps unchanged, and few of the texts that they end as are ever read: so the text is not
    /// made, as long as it can still be made from the encoded record.
    #[inline]
    fn expect_event(&mut self, item: &Item, event: Option<&TextEvent<'_>>, record: &[u8]) {
        if self.bytes.is_empty() && record.len() <= SCRATCH && event.is_some_and(text::is_plain_event) {
            // SAFETY: the item is alive.
            self.expected = unsafe { version(item.value.as_ptr()) };
            if self.expected.is_some() {
                self.bytes.push(tag::EVENT_TEXT);
                self.bytes.extend_from_slice(record);
            }
        }
    }

    /// A result comes: is it what was expected? Else that is forgotten.
    #[inline]
    fn met(&mut self, version: Option<u64>) -> bool {
        let Some(expected) = self.expected.take() else {
            return false;
        };
        let met = version == Some(expected);
        if !met {
            self.bytes.clear();
        }
        met
    }
}

impl Exit for ToOutcome<'_> {
    #[inline]
    unsafe fn put(&mut self, py: Python<'_>, item: &Item) {
        self.met(None);
        // SAFETY: the GIL is held; the item is alive.
        match unsafe { self.encoder.encode(&mut self.bytes, item.value.as_ptr()) } {
            Ok(()) => self.records += 1,
            Err(_) => self.error(take_error_text(py)),
        }
    }

    #[inline]
    unsafe fn put_text(&mut self, item: &Item) -> bool {
        // SAFETY: the GIL is held; the item is alive.
        let done =
            unsafe { self.met(version(item.value.as_ptr())) || text::put_item(&mut self.bytes, item.value.as_ptr()) };
        self.records += u32::from(done);
        done
    }

    fn error(&mut self, text: String) {
        self.is_stopped |= !self.reads_on.is_some_and(|reads_on| reads_on(&text));
        self.errors.push(text);
    }

    #[inline]
    fn is_over(&mut self, every: u32) -> bool {
        if let Some(slice) = &mut self.slice {
            self.paused |= slice.has_ended(every);
        }
        self.paused
    }

    #[inline]
    fn has_paused(&self) -> bool {
        self.paused
    }
}

impl ToOutcome<'_> {
    /// And memory for the next call. Nothing stays.
    fn outcome(&mut self) -> (Outcome, Vec<u8>) {
        let mut outcome = Outcome {
            errors: std::mem::take(&mut self.errors),
            ..Outcome::default()
        };
        if self.records > 0 {
            let bytes = match self.bytes.len() {
                ..=SCRATCH => Bytes::copy_from_slice(&self.bytes),
                _ => std::mem::take(&mut self.bytes).into(),
            };
            outcome.results.push(RecordBatch {
                bytes,
                records: self.records,
            });
        }
        self.bytes.clear();
        (outcome, std::mem::take(&mut self.bytes))
    }
}
