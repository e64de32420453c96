//! The fused steps of a stage: how records move through them with the GIL held. Knows nothing of where records come
//! from and where they go.

use std::{sync::Arc, time::Instant};

use pyo3::{ffi, prelude::*};

use super::{
    drain::Drained,
    item::{Item, add_traceback},
    step::{Flow, Kind, Step},
    waiting::Lines,
};
use crate::{context::Context, errors::take_error_text, later::Moment, obj::Obj};

/// Takes what has passed all steps.
pub(super) trait Exit {
    /// Takes a record.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn put(&mut self, py: Python<'_>, item: &Item);
    /// Takes the text of a record, if that is easy; false: the step that makes it has to.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn put_text(&mut self, item: &Item) -> bool;
    /// Takes the text of an error record.
    fn error(&mut self, text: String);
    /// The chain should pause; asked once per record or emission, answered from what is known at every `every`th.
    fn is_over(&mut self, every: u32) -> bool;
    /// It has paused: what is under way goes on elsewhere.
    fn has_paused(&self) -> bool {
        false
    }
}

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

/// The steps, and what is under way between them. Holds Python objects: dropped only with the GIL held.
pub(super) struct Chain {
    pub(super) steps: Vec<Step>,
    stack: Vec<Pending>,
    /// Records that were postponed.
    pub(super) lines: Lines,
    /// For the functions that callbacks call.
    pub(super) moment: Arc<Moment>,
    /// The steps are measured.
    pub(super) profile: bool,
    /// Some step has something to emit at the end, or to be put back.
    keeps: bool,
    /// Steps before this one get no more records: a limit behind them is satisfied.
    floor: usize,
    pub(super) closing: Option<Closing>,
    /// For the next call.
    pub(super) context: Option<Box<Context>>,
    /// Memory for what comes out of one call.
    pub(super) scratch: Vec<u8>,
}

impl Chain {
    pub(super) fn new(steps: Vec<Step>, profile: bool) -> Chain {
        Chain {
            keeps: !steps.iter().all(|step| step.kind.keeps_nothing()),
            steps,
            stack: Vec::new(),
            lines: Lines::default(),
            moment: Arc::default(),
            profile,
            floor: 0,
            closing: None,
            context: None,
            scratch: Vec::new(),
        }
    }

    /// A limit wants no more records.
    pub(super) fn is_satisfied(&self) -> bool {
        self.floor > 0
    }

    /// Elements of lists are to be passed on.
    pub(super) fn has_lists(&self) -> bool {
        !self.stack.is_empty()
    }

    /// The step that takes the elements of the list at hand.
    pub(super) fn next_of_list(&self) -> usize {
        self.stack.last().map_or(0, |pending| pending.next)
    }

    /// Something is under way between the steps.
    pub(super) fn has_pending(&self) -> bool {
        self.has_lists() || self.is_waiting()
    }

    /// Input has ended; emission begins.
    pub(super) fn begin_closing(&mut self) {
        self.closing.get_or_insert(Closing { step: 0, at: 0 });
    }

    /// Where emission goes on: steps before the satisfied one have nothing to emit.
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

    /// Takes a record through the steps from number `i` on.
    #[inline]
    pub(super) fn push(&mut self, py: Python<'_>, mut i: usize, mut item: Item, exit: &mut impl Exit) {
        let last = self.steps.len().wrapping_sub(1);
        loop {
            let Some(step) = self.steps.get_mut(i) else {
                // SAFETY: the GIL is held.
                return unsafe { exit.put(py, &item) };
            };
            // Most pipelines end so.
            if i == last && matches!(step.kind, Kind::ToStr) && step.slots.is_empty() && !self.profile {
                // SAFETY: the GIL is held; the item is alive.
                if unsafe { exit.put_text(&item) } {
                    return;
                }
            }
            let start = self.profile.then(Instant::now);
            // SAFETY: the GIL is held; the owner of the chain keeps the callbacks alive.
            let flow = unsafe { step.kind.apply(item, &self.moment) };
            if let Some(start) = start {
                step.spent_ns += start.elapsed().as_nanos() as u64;
            }
            match flow {
                Flow::Next(next) if step.slots.is_empty() => {
                    item = next;
                    i += 1;
                }
                Flow::Gone => return,
                other => return self.settle(py, i, other, exit),
            }
        }
    }

    /// Goes on with what a record became at step `i`; behind those that wait there, if there are any.
    fn settle(&mut self, py: Python<'_>, i: usize, flow: Flow, exit: &mut impl Exit) {
        match self.steps[i].slots.is_empty() && !matches!(flow, Flow::Postponed(..)) {
            true => self.pass_on(py, i, flow, exit),
            false => self.hold(py, i, flow),
        }
    }

    /// Goes on with what a record became at step `i`.
    pub(super) fn pass_on(&mut self, py: Python<'_>, i: usize, flow: Flow, exit: &mut impl Exit) {
        match flow {
            Flow::Next(item) => self.push(py, i + 1, item, exit),
            Flow::Gone => {}
            Flow::List(list) => self.stack.push(Pending {
                list,
                at: 0,
                next: i + 1,
            }),
            Flow::Failed => exit.error(take_error_text(py)),
            Flow::Broken => {
                add_traceback(py);
                exit.error(take_error_text(py));
            }
            Flow::Refused(text) => exit.error(text.to_owned()),
            Flow::Error(text) => exit.error(text),
            Flow::Postponed(..) => self.hold(py, i, flow),
            Flow::Satisfied => {
                self.floor = self.floor.max(i + 1);
                // What would only reach the satisfied step is not needed.
                let floor = self.floor;
                self.stack.retain(|pending| pending.next >= floor);
                self.give_up_before(floor);
            }
        }
    }

    /// Moves what is under way: elements of flattened lists, innermost list first, and records that have come back. False
    /// if the chain should pause; else nothing more can move now.
    #[inline]
    pub(super) fn advance(&mut self, py: Python<'_>, exit: &mut impl Exit) -> bool {
        loop {
            if !self.drain_stack(py, exit) {
                return false;
            }
            if !self.is_waiting() || !self.release(py, exit) {
                return true;
            }
            if exit.is_over(8) {
                return false;
            }
        }
    }

    #[inline]
    fn drain_stack(&mut self, py: Python<'_>, exit: &mut impl Exit) -> bool {
        while let Some(top) = self.stack.last_mut() {
            if top.next < self.lines.block {
                return true;
            }
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
            self.push(py, next, Item::plain(value), exit);
            if exit.is_over(32) {
                return false;
            }
        }
        true
    }

    /// One emission of the step that is being closed; false if all steps are closed.
    pub(super) fn emit_next(&mut self, py: Python<'_>, exit: &mut impl Exit) -> bool {
        let Some(mut closing) = self.closing_from_floor() else {
            return false;
        };
        self.closing = Some(closing);
        let Some(step) = self.steps.get_mut(closing.step) else {
            return false;
        };
        let start = self.profile.then(Instant::now);
        // SAFETY: the GIL is held; the owner of the chain keeps the callbacks alive.
        let drained = unsafe { step.kind.drain(py, &mut closing.at, &self.moment) };
        if let Some(start) = start {
            step.spent_ns += start.elapsed().as_nanos() as u64;
        }
        match drained {
            Drained::Some(flow) => {
                self.closing = Some(closing);
                self.settle(py, closing.step, flow, exit);
            }
            Drained::Empty => {
                self.closing = Some(Closing {
                    step: closing.step + 1,
                    at: 0,
                })
            }
        }
        true
    }

    /// Takes one record to the end, unless no more are wanted.
    #[inline]
    pub(super) fn push_one(&mut self, py: Python<'_>, item: Item, exit: &mut impl Exit) {
        if !self.is_satisfied() {
            self.push(py, 0, item, exit);
            self.advance(py, exit);
        }
    }

    /// Emits what is kept and forgets everything; does nothing, or stops, where a record was postponed or the chain pauses.
    #[inline]
    pub(super) fn end(&mut self, py: Python<'_>, exit: &mut impl Exit) {
        if self.is_waiting() || exit.has_paused() {
            return;
        }
        if !self.keeps {
            return self.stack.clear();
        }
        self.begin_closing();
        while !(self.is_waiting() || exit.is_over(8)) && self.emit_next(py, exit) {
            self.advance(py, exit);
        }
        if !(self.is_waiting() || exit.has_paused()) {
            self.reset();
        }
    }

    /// The time spent in each of so many operations since the last call.
    #[cold]
    pub(super) fn take_durations_ns(&mut self, locals: usize) -> Vec<u64> {
        let mut durations = vec![0; locals];
        for step in &mut self.steps {
            durations[step.local] += std::mem::take(&mut step.spent_ns);
        }
        durations
    }

    /// Python objects are under way, or kept by a step.
    pub(super) fn holds_objects(&self) -> bool {
        self.has_pending() || self.steps.iter().any(|step| step.kind.holds_objects())
    }

    /// As new.
    fn reset(&mut self) {
        self.stack.clear();
        (self.floor, self.closing) = (0, None);
        for step in &mut self.steps {
            step.kind.reset();
        }
    }
}
