//! Mode `async` in a cluster: an execution on all shards, whose input is the event here and nothing elsewhere.

use std::sync::{Arc, atomic::Ordering};

use oxigears_coordinator::{
    codec::RecordBatch,
    engine::{Execution, Fired, Order},
    execution::Phase,
    stage::Input,
};

use super::{fire::Event, index::Entry, record::EventInput};
use crate::{
    module::module,
    registrations::{depth, occasion::Occasion, registrations, stats::End},
};

/// Starts it; the event is counted as triggered already.
pub fn start(entry: &Arc<Entry>, event: Event) {
    let active = &entry.active;
    let Ok(code) = active.code() else { return };
    let (origin, event_depth, wish) = (event.origin(), event.depth, event.wish(entry));
    let input = EventInput {
        active: active.clone(),
        name: event.name,
        key: event.key,
        wish,
        done: false,
    };
    let occasion = Occasion::with_input(Input::Source(Box::new(input)), origin);
    let order = Order {
        plan: active.core.loaded.plan.clone(),
        local: code.local.clone(),
        nested: false,
        held: false,
        fired: Some(Fired {
            registration: active.registration.id.clone(),
            index: registrations().activation.index(),
            input: RecordBatch::default(),
            here: occasion.carried(),
            idle_limit_ms: active.core.idle_limit_ms,
            spent_ns: None,
        }),
    };
    let (fired, tied) = (active.clone(), event.tied);
    let waiter = Box::new(move |execution: &Arc<Execution>| {
        let total_ns = execution.total_ns.load(Ordering::Relaxed);
        let aborted = execution.phase() == Phase::Aborted;
        execution.with_outcome(|outcome| {
            let end = match outcome.errors.first() {
                Some(text) => End::Failure(text),
                None if aborted => End::Aborted,
                None => End::Success,
            };
            fired.core.stats.ended(&end, total_ns);
        });
        let config = &module().config;
        if config.max_executions_per_registration() > 0 {
            // Their number is not a matter of that.
            let most = usize::try_from(config.max_executions()).ok().filter(|most| *most > 0);
            fired.core.remembered.lock().add(execution, most.unwrap_or(usize::MAX));
        }
        drop(tied);
    });
    // The engine takes it from the thread, and along to the other shards.
    let _depth = depth::enter(event_depth);
    if let Err(e) = module().engine.create(order, Some(waiter)) {
        let text = format!("ERR Could not trigger execution, {e}");
        active.core.stats.ended(&End::Refused(&text), 0);
    }
}
