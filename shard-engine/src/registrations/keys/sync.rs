//! Handlers of mode `sync`: due as soon as the command that caused the event is over.

use std::{sync::Arc, time::Instant};

use oxigears_coordinator::execution::Outcome;
use oxigears_python_api::Invoked;

use super::{
    Quiet,
    fire::{self, Event},
    fresh,
    index::Entry,
    record,
};
use crate::{
    identity,
    module::module,
    redis::lock::ServerLock,
    registrations::{depth, due, stats::End, sync},
};

/// One event for one registration.
pub struct SyncShot {
    entry: Arc<Entry>,
    event: Event,
}

impl SyncShot {
    /// It is counted as triggered already.
    #[inline]
    pub fn new(entry: Arc<Entry>, event: Event) -> SyncShot {
        SyncShot { entry, event }
    }

    fn run(&self, guard: &ServerLock) -> Invoked {
        let (active, event) = (&self.entry.active, &self.event);
        let failed = |text: String| {
            Invoked::Done(Outcome {
                errors: vec![text],
                ..Outcome::default()
            })
        };
        let Some(invoker) = active.code().ok().and_then(|code| code.invoker.as_ref()) else {
            return failed("ERR internal error: the registration is not compiled".into());
        };
        let _identity = identity::enter(active.core.loaded.user.clone());
        let _depth = depth::enter(event.depth);
        let _quiet = Quiet::enter();
        let (place, wish) = ((&*event.name, &*event.key), event.wish(&self.entry));
        let record = match fresh::with(&event.key, |known| record::take(guard, active, place, wish, known)) {
            Ok(record) => record,
            Err(text) => return failed(text),
        };
        let origin = event
            .origin()
            .or_else(|| due::must_end_here().then(sync::at_once).flatten());
        let invoked = invoker.call_record(&record, origin);
        record::give_back(record);
        invoked
    }

    /// Runs it, once; see `due`.
    pub fn fire(&mut self, guard: &ServerLock) {
        let start = Instant::now();
        let ran = self.run(guard);
        let ns = start.elapsed().as_nanos() as u64;
        let SyncShot { entry, event } = self;
        event.number = module().engine.next_number();
        match ran {
            Invoked::Done(outcome) => fire::ended(&entry.active, event.number, outcome, ns),
            Invoked::Continues(mut rest) => {
                rest.spent_ns = ns;
                fire::go_on(entry, event.take(), rest);
            }
        }
    }

    /// A client's command waits for what it may answer.
    pub fn is_tied(&self) -> bool {
        self.event.tied.is_some()
    }

    /// It does not run.
    pub fn abort(self, why: &str) {
        self.entry.active.core.stats.ended(&End::Refused(why), 0);
    }
}
