//! What a load does to the registry. Knows the order of the server's events, and nothing of where the bytes are from.

use oxigears_coordinator::registry::Registry;
use parking_lot::Mutex;

use crate::{redis::events::Event, registrations};

/// The load under way. Loads do not overlap.
#[derive(Default)]
struct Load {
    /// It takes the place of the dataset at hand: the registry was emptied at its start.
    in_place: bool,
    /// It goes on beside the old dataset, which may stay: what was loaded waits here.
    beside: Option<Registry>,
}

static LOAD: Mutex<Load> = Mutex::new(Load {
    in_place: false,
    beside: None,
});

/// What follows from an event or from data, done after the lock on `LOAD` is given back.
#[derive(Default)]
struct Steps {
    start: bool,
    state: Option<Registry>,
    end: bool,
}

impl Steps {
    fn take(self) {
        if self.start {
            registrations::load_started();
        }
        if let Some(state) = self.state {
            registrations::load_state(state);
        }
        if self.end {
            registrations::load_ended();
        }
    }
}

impl Load {
    fn on_event(&mut self, event: Event) -> Steps {
        let mut steps = Steps::default();
        match event {
            Event::SwapStarted => self.beside = Some(Registry::default()),
            Event::LoadStarted(_) if self.beside.is_none() => {
                self.in_place = true;
                steps.start = true;
            }
            Event::SwapCompleted => {
                steps.state = self.beside.take();
                steps.start = steps.state.is_some();
                steps.end = steps.start;
            }
            Event::SwapAborted => self.beside = None,
            Event::LoadEnded if self.in_place => {
                self.in_place = false;
                steps.end = true;
            }
            Event::LoadFailed if self.in_place => {
                self.in_place = false;
                // The server drops what it has loaded so far.
                steps.state = Some(Registry::default());
                steps.end = true;
            }
            _ => {}
        }
        steps
    }

    fn on_state(&mut self, state: Registry) -> Steps {
        if let Some(beside) = &mut self.beside {
            *beside = state;
            return Steps::default();
        }
        Steps {
            // Outside of a load the state comes and counts at once.
            start: !self.in_place,
            state: Some(state),
            end: !self.in_place,
        }
    }
}

/// An event of a load.
pub(super) fn on_event(event: Event) {
    let steps = LOAD.lock().on_event(event);
    steps.take();
}

/// A whole state came.
pub(super) fn take(state: Registry) {
    let steps = LOAD.lock().on_state(state);
    steps.take();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::events::LoadKind;

    /// What the registry is told, in words.
    fn told(events: &[Event], data_after: Option<usize>) -> Vec<&'static str> {
        let mut load = Load::default();
        let mut told = Vec::new();
        let mut note = |steps: Steps| {
            told.extend(steps.start.then_some("start"));
            told.extend(
                steps
                    .state
                    .map(|state| if state.index() > 0 { "state" } else { "empty" }),
            );
            told.extend(steps.end.then_some("end"));
        };
        for (at, event) in events.iter().enumerate() {
            note(load.on_event(*event));
            if data_after == Some(at) {
                let mut state = Registry::default();
                state.advance(7);
                note(load.on_state(state));
            }
        }
        assert!(!load.in_place && load.beside.is_none());
        told
    }

    #[test]
    fn a_load_in_place_begins_empty() {
        let start = Event::LoadStarted(LoadKind::Dump);
        assert_eq!(told(&[start, Event::LoadEnded], Some(0)), ["start", "state", "end"]);
        assert_eq!(told(&[start, Event::LoadEnded], None), ["start", "end"]);
        assert_eq!(
            told(&[start, Event::LoadFailed], Some(0)),
            ["start", "state", "empty", "end"]
        );
    }

    #[test]
    fn a_load_beside_the_old_dataset_counts_when_it_takes_its_place() {
        let start = Event::LoadStarted(LoadKind::FullSync);
        for events in [
            [Event::SwapStarted, start, Event::SwapCompleted, Event::LoadEnded],
            [Event::SwapStarted, start, Event::LoadEnded, Event::SwapCompleted],
        ] {
            assert_eq!(told(&events, Some(1)), ["start", "state", "end"]);
            assert_eq!(told(&events, None), ["start", "empty", "end"]);
        }
    }

    #[test]
    fn a_load_beside_the_old_dataset_that_fails_changes_nothing() {
        let start = Event::LoadStarted(LoadKind::FullSync);
        for events in [
            [Event::SwapStarted, start, Event::LoadFailed, Event::SwapAborted],
            [Event::SwapStarted, start, Event::SwapAborted, Event::LoadFailed],
        ] {
            assert_eq!(told(&events, Some(1)), Vec::<&str>::new());
        }
    }
}
