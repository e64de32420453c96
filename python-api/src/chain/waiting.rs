//! Records that were postponed: each step keeps its own in a line, with what came after them, so that records leave the
//! step in the order in which they came, however fast each was.
//!
//! A step whose line is full takes nothing more. What is before it waits then; what is behind it goes on.

use std::collections::VecDeque;

use oxigears_coordinator::limits::PENDING_RECORDS;
use pyo3::prelude::*;

use super::{
    fused::{Chain, Exit},
    item::{Item, add_traceback},
    step::{Flow, Kind, come_back},
};
use crate::{
    errors::take_error_text,
    later::{self, Message, Ticket},
};

/// The line of a step.
#[derive(Default)]
pub(super) struct Slots(VecDeque<Slot>);

enum Slot {
    /// Its value comes later.
    Waiting { ticket: Ticket, item: Option<Item> },
    /// It came after one that waits.
    Ready(Flow),
}

impl Slots {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn is_ready(&self) -> bool {
        match self.0.front() {
            Some(Slot::Waiting { ticket, .. }) => ticket.is_done(),
            Some(Slot::Ready(_)) => true,
            None => false,
        }
    }

    /// Asks to be woken for the first one; true if that is ready already.
    fn arm(&self) -> bool {
        match self.0.front() {
            Some(Slot::Waiting { ticket, .. }) => ticket.arm(),
            Some(Slot::Ready(_)) => true,
            None => false,
        }
    }

    /// Nobody wants what is in it; how many. What runs for them is cancelled, or goes on for nobody.
    fn give_up(&mut self, cancel: bool) -> usize {
        let slots = std::mem::take(&mut self.0);
        let count = slots.len();
        for slot in slots {
            if let Slot::Waiting { ticket, .. } = slot
                && let Some(task) = ticket.give_up()
                && cancel
            {
                later::tell(Message::Cancel { task });
            }
        }
        count
    }
}

impl Kind {
    /// Records that its line takes.
    fn room(&self) -> usize {
        match self {
            Kind::Map(_) | Kind::Filter(_) | Kind::ForEach(_) | Kind::FlatMap(_) => PENDING_RECORDS,
            // The next record needs what this one gives.
            _ => 1,
        }
    }
}

/// What is in the lines of a chain, summed up.
#[derive(Default)]
pub(super) struct Lines {
    /// Records in all of them.
    pub(super) records: usize,
    /// Steps before this one take nothing: the line of the step before it is full. 0: none is.
    pub(super) block: usize,
}

impl Chain {
    /// Records wait, or wait behind others.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.lines.records > 0
    }

    /// No new record can be taken now.
    pub(super) fn is_blocked(&self) -> bool {
        self.lines.block > 0 || self.has_lists()
    }

    /// The step may emit what it keeps: all records have passed it, and the next ones take something.
    pub(super) fn may_emit(&self, step: usize) -> bool {
        let passed = || self.steps.iter().take(step + 1).all(|step| step.slots.is_empty());
        !self.is_waiting() || step + 1 >= self.lines.block && passed()
    }

    fn is_full(&self, i: usize) -> bool {
        let step = &self.steps[i];
        step.slots.0.len() >= step.kind.room()
    }

    /// A record takes its place in the line of step `i`.
    pub(super) fn hold(&mut self, py: Python<'_>, i: usize, flow: Flow) {
        let slot = match flow {
            Flow::Gone => return,
            Flow::Postponed(ticket, item) => Slot::Waiting { ticket, item },
            // The exception can not stay set, and the batch goes on.
            Flow::Failed => Slot::Ready(Flow::Error(take_error_text(py))),
            Flow::Broken => {
                add_traceback(py);
                Slot::Ready(Flow::Error(take_error_text(py)))
            }
            // SAFETY: the GIL is held; the key's bytes are still alive.
            Flow::Next(item) => Slot::Ready(match unsafe { item.detached() } {
                Ok(item) => Flow::Next(item),
                Err(_) => Flow::Error(take_error_text(py)),
            }),
            other => Slot::Ready(other),
        };
        self.steps[i].slots.0.push_back(slot);
        self.lines.records += 1;
        if self.is_full(i) {
            self.lines.block = self.lines.block.max(i + 1);
        }
    }

    /// The lowest step whose line may move: what it lets go must not overtake the list that is being passed on, and must
    /// not reach a full line.
    fn lowest_mover(&self) -> usize {
        self.next_of_list().max(self.lines.block.saturating_sub(1))
    }

    /// Lets one record go on that is first in its line and ready, the furthest one; false if there is none.
    pub(super) fn release(&mut self, py: Python<'_>, exit: &mut impl Exit) -> bool {
        let mut movers = (self.lowest_mover()..self.steps.len()).rev();
        let Some(i) = movers.find(|&i| self.steps[i].slots.is_ready()) else {
            return false;
        };
        let Some(slot) = self.steps[i].slots.0.pop_front() else {
            return false;
        };
        self.lines.records -= 1;
        if self.lines.block == i + 1 && !self.is_full(i) {
            self.lines.block = (0..i).rev().find(|&j| self.is_full(j)).map_or(0, |j| j + 1);
        }
        let flow = match slot {
            Slot::Ready(flow) => flow,
            Slot::Waiting { ticket, item } => match ticket.take() {
                // SAFETY: the GIL is held; the owner of the chain keeps the callbacks alive.
                Some(Ok(value)) => unsafe { come_back(&mut self.steps[i].kind, value, item) },
                Some(Err(text)) => Flow::Error(text),
                None => Flow::Gone,
            },
        };
        self.pass_on(py, i, flow, exit);
        true
    }

    /// Asks to be woken when something can go on; true if something can already.
    pub(super) fn arm(&self) -> bool {
        // All of them, whatever the first ones say.
        let movers = &self.steps[self.lowest_mover().min(self.steps.len())..];
        movers.iter().fold(false, |ready, step| step.slots.arm() | ready)
    }

    /// Nobody wants what the steps before this one have under way.
    pub(super) fn give_up_before(&mut self, floor: usize) {
        if !self.is_waiting() {
            return;
        }
        for step in &mut self.steps[..floor] {
            self.lines.records -= step.slots.give_up(false);
        }
        if self.lines.block <= floor {
            self.lines.block = 0;
        }
    }
}

impl Drop for Chain {
    /// The execution was ended while records were under way: what runs for them is stopped. With the GIL held then.
    fn drop(&mut self) {
        if !self.is_waiting() {
            return;
        }
        let waits = self.moment.waits().clone();
        waits.end();
        for step in &mut self.steps {
            step.slots.give_up(true);
        }
        later::stop_running(&waits);
    }
}
