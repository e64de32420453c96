//! Runs that began in their event and postponed a record: the rest goes on as an execution of this shard, without the
//! server lock.

use std::sync::{Arc, atomic::Ordering};

use oxigears_coordinator::{
    codec::RecordBatch,
    engine::{Execution, Fired, Order},
    execution::{Outcome, Phase},
};
use oxigears_python_api::Continuation;
use parking_lot::Mutex;

use super::{
    active::Core,
    depth,
    occasion::Occasion,
    stats::{End, Stats},
};
use crate::module::module;

/// How the rest ended.
pub struct Over {
    /// All results and errors, those from before it was postponed too.
    pub outcome: Outcome,
    /// It was ended before it was complete.
    pub aborted: bool,
    /// Time that it ran, before it was postponed too.
    pub total_ns: u64,
}

impl Over {
    /// For the statistics.
    pub fn end(&self) -> End<'_> {
        End::of(&self.outcome, self.aborted)
    }

    /// Counts it; it was counted as triggered when it began.
    pub fn count(&self, stats: &Stats) {
        stats.ended(&self.end(), self.total_ns);
    }
}

/// Goes on with the rest of a run of this registration, at a depth of events, as an execution with the number under which it
/// has begun, or a new one. `then` is called once when it is over, or when it can not go on; on any thread, perhaps before this
/// returns: it must not wait.
pub fn go_on(
    registration: &Arc<str>,
    core: &Core,
    rest: Box<Continuation>,
    number: Option<u64>,
    depth: u32,
    then: impl FnOnce(Over) + Send + 'static,
) {
    let (spent_ns, reads_on) = (rest.spent_ns, rest.reads_on);
    let order = Order {
        plan: core.loaded.plan.clone(),
        local: Arc::<Continuation>::from(rest),
        nested: false,
        held: true,
        fired: Some(Fired {
            registration: registration.clone(),
            // It concerns no other shard.
            index: 0,
            input: RecordBatch::default(),
            here: Occasion::default().carried(),
            idle_limit_ms: core.idle_limit_ms,
            spent_ns: Some(spent_ns),
            reads_on,
        }),
    };
    // Shared, because it comes back if the execution can not be created.
    let then = Arc::new(Mutex::new(Some(then)));
    let waiting = then.clone();
    let waiter = Box::new(move |execution: &Arc<Execution>| {
        let over = Over {
            outcome: execution.take_outcome(),
            aborted: execution.phase() == Phase::Aborted,
            total_ns: execution.total_ns.load(Ordering::Relaxed),
        };
        module().engine.forget(&execution.id);
        if let Some(then) = waiting.lock().take() {
            then(over);
        }
    });
    // The engine takes it from the thread.
    let _depth = depth::enter(depth);
    let engine = &module().engine;
    match engine.create_as(order, number, Some(waiter)) {
        Ok(execution) => {
            if let Some(number) = number {
                core.swift.goes_on(engine, number, &execution);
            }
            engine.release(&execution);
        }
        Err(e) => {
            let text = format!("ERR the rest of the execution can not run: {e}");
            let outcome = Outcome {
                errors: vec![text],
                ..Outcome::default()
            };
            if let Some(number) = number {
                core.swift.over(engine, number, &outcome, spent_ns, true);
            }
            if let Some(then) = then.lock().take() {
                then(Over {
                    outcome,
                    aborted: true,
                    total_ns: spent_ns,
                });
            }
        }
    }
}
