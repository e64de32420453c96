//! Who has the event loop: a coroutine that keeps it for long is named in the log, as all others wait for it, and one
//! whose execution was ended is stopped.

use std::{sync::Arc, time::Instant};

use oxigears_coordinator::limits::{LOOP_LOOK, LOOP_PATIENCE};
use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;

use super::{situation::Situation, waits::Waits};
use crate::{
    gil,
    interrupt::Target,
    runtime::runtime,
    server::{LogLevel, server},
};

struct Running {
    situation: Situation,
    /// The loop's thread.
    thread: Target,
    since: Instant,
    /// The log says so.
    told: bool,
    /// An exception was asked for; it may not have been raised yet.
    stopping: bool,
}

struct Watch {
    /// Changed only with the GIL held.
    running: Option<Running>,
    /// Steps since the last look.
    steps: u64,
    /// The watching thread waits to be woken.
    asleep: bool,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch {
    running: None,
    steps: 0,
    asleep: false,
});
static WAKE: Condvar = Condvar::new();

/// A step of a coroutine begins on this thread.
pub(super) fn enter<'py>(py: Python<'py>, situation: &Situation) -> Watched<'py> {
    let running = Running {
        situation: situation.clone_ref(py),
        thread: Target::here(py),
        since: Instant::now(),
        told: false,
        stopping: false,
    };
    let mut watch = WATCH.lock();
    let before = watch.running.replace(running);
    watch.steps = watch.steps.wrapping_add(1);
    if std::mem::take(&mut watch.asleep) {
        WAKE.notify_one();
    }
    Watched { py, before }
}

/// The time of a step.
pub(super) struct Watched<'py> {
    py: Python<'py>,
    before: Option<Running>,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let before = self.before.take();
        let ended = std::mem::replace(&mut WATCH.lock().running, before);
        let Some(ended) = ended else { return };
        if ended.stopping {
            // Let out here, so that it does not hit what the loop runs next; see `Interrupt`.
            let _ = runtime().do_nothing.call0(self.py);
        }
        if ended.told {
            let text = format!(
                "GEARS: the coroutine of session {} has let the event loop go after {} ms",
                ended.situation.name(),
                ended.since.elapsed().as_millis()
            );
            self.py.detach(|| server().log(LogLevel::Warning, &text));
        }
    }
}

/// The execution with these waits was ended: if a coroutine of it has the loop now, it gets `GearsForceStopped`. Called
/// with the GIL held.
pub(crate) fn stop_running(waits: &Arc<Waits>) {
    if let Some(running) = WATCH.lock().running.as_mut()
        && running.situation.waits().is_some_and(|its| Arc::ptr_eq(its, waits))
    {
        // SAFETY: as the caller says.
        running.stop(unsafe { Python::assume_attached() });
    }
}

impl Running {
    fn stop(&mut self, py: Python<'_>) {
        self.stopping = true;
        self.thread.stop(py);
    }

    fn is_ended(&self) -> bool {
        self.situation.waits().is_some_and(|waits| waits.has_ended())
    }
}

/// Starts the watching thread. It sleeps while the loop does.
pub(super) fn start() -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("oxi-loop-watch".into());
    thread.spawn(look_for_ever).map(|_| ())
}

fn look_for_ever() {
    let mut seen = 0;
    loop {
        let mut watch = WATCH.lock();
        if watch.running.is_none() && watch.steps == seen {
            watch.asleep = true;
            WAKE.wait(&mut watch);
        }
        WAKE.wait_for(&mut watch, LOOP_LOOK);
        seen = watch.steps;
        let Some(running) = watch.running.as_mut() else {
            continue;
        };
        let ended = running.is_ended();
        let text = running.complaint();
        drop(watch);
        if let Some(text) = text {
            server().log(LogLevel::Warning, &text);
        }
        if ended {
            stop_again(seen);
        }
    }
}

impl Running {
    fn complaint(&mut self) -> Option<String> {
        let busy = self.since.elapsed();
        if self.told || busy < LOOP_PATIENCE {
            return None;
        }
        self.told = true;
        Some(format!(
            "GEARS: a coroutine of session {} has kept the event loop busy for {} ms; all other coroutines wait for it",
            self.situation.name(),
            busy.as_millis()
        ))
    }
}

/// A coroutine may swallow the exception.
fn stop_again(step: u64) {
    gil::attach(|py| {
        let mut watch = WATCH.lock();
        if watch.steps == step
            && let Some(running) = watch.running.as_mut()
        {
            running.stop(py);
        }
    });
}

const _: () = assert!(LOOP_LOOK.as_millis() < LOOP_PATIENCE.as_millis() && LOOP_LOOK.as_millis() >= 1);
