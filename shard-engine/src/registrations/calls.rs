//! Runs that commands ask for and that stay on this shard: triggers and hooks of mode `async_local`, and of mode `async` where
//! there is no cluster. They wait in a line of their registration and run in one go, a task of the worker threads for each. Only
//! one that postpones a record becomes an execution with a machine.

use std::{collections::VecDeque, sync::Arc};

use oxigears_coordinator::{
    codec::RecordBatch,
    engine::CreateError,
    execution::Outcome,
    registry::{EventSource, RegisterMode},
};
use oxigears_python_api::{self as python, Continuation, Invoked, Origin};
use parking_lot::Mutex;

use super::{
    active::{Active, Core},
    continuing, depth,
    stats::End,
    sync::{self, ABORTED},
};
use crate::{
    host::PythonInterrupt,
    identity,
    module::module,
    redis::{blocked::BlockedClient, event_loop, lock::ServerLock},
};

/// The runs of one registration that wait for a thread, oldest first.
#[derive(Default)]
pub struct Calls(Mutex<VecDeque<Call>>);

struct Call {
    /// Number of its execution.
    number: u64,
    /// See `depth`.
    depth: u32,
    input: RecordBatch,
    /// What the code may ask of its cause.
    origin: Option<Arc<dyn Origin>>,
    whom: Whom,
}

/// Who is answered, and how.
struct Whom {
    client: BlockedClient,
    answer: sync::Answer,
}

impl Whom {
    fn tell(self, end: &End<'_>, outcome: &Outcome) {
        self.client.reply(|reply| match end {
            // What an aborted execution had so far is not its result.
            End::Aborted => reply.error(ABORTED),
            _ => (self.answer)(reply, outcome),
        });
    }
}

/// A call of the registration, which is counted as triggered, waits for a worker thread from now on.
pub fn push(
    active: Arc<Active>,
    input: RecordBatch,
    origin: Option<Arc<dyn Origin>>,
    client: BlockedClient,
    answer: sync::Answer,
) {
    let engine = &module().engine;
    if let Err(error) = engine.has_room() {
        active.core.stats.ended(&End::Aborted, 0);
        return refuse(client, &error);
    }
    {
        let mut line = active.core.calls.0.lock();
        line.push_back(Call {
            // With the line locked: they are taken in the order of their numbers.
            number: engine.next_number(),
            depth: depth::current(),
            input,
            origin,
            whom: Whom { client, answer },
        });
    }
    let task = move || run_next(&active);
    match event_loop::want_end() {
        true => engine.submit_soon(task),
        false => engine.submit(task),
    }
}

/// What is active has changed.
pub fn activated(guard: &ServerLock, added: &[Arc<Active>]) {
    let is_called = |active: &Arc<Active>| {
        let registration = &active.registration;
        let by_commands = matches!(
            registration.source,
            EventSource::Command { .. } | EventSource::Hook { .. }
        );
        by_commands && registration.mode != RegisterMode::Sync
    };
    if added.iter().any(is_called) {
        // Where the server can not tell of its turns each call wakes a thread.
        event_loop::listen(guard);
    }
}

/// A turn of the event loop ends. One thread is woken for all calls that came in it: the main thread would stop to wake one
/// for each.
pub fn turn_ends() {
    module().engine.wake();
}

/// There can be no execution for the client.
pub fn refuse(client: BlockedClient, error: &CreateError) {
    client.reply(|reply| reply.error(&format!("ERR Could not trigger execution, {error}")));
}

/// One that has begun, and what came of it so far.
struct Ran {
    call: Call,
    invoked: Invoked,
    ns: u64,
}

fn run_next(active: &Arc<Active>) {
    // Counted and answered without the interpreter, for which others wait.
    let Some(Ran { call, invoked, ns }) = python::with_interpreter(|| run_one(active)) else {
        return;
    };
    let Core { stats, swift, .. } = &*active.core;
    let (outcome, aborted) = match invoked {
        Invoked::Done(outcome) => (outcome, false),
        // It is to stop, and what it has postponed with it.
        Invoked::Continues(rest) if swift.is_to_stop(call.number) => (rest.given_up(), true),
        Invoked::Continues(mut rest) => {
            rest.spent_ns = ns;
            return go_on(active, call, rest);
        }
    };
    swift.over(&module().engine, call.number, &outcome, ns, aborted);
    let end = End::of(&outcome, aborted);
    stats.ended(&end, ns);
    call.whom.tell(&end, &outcome);
}

/// With the GIL: runs the oldest one. `None` if there is none any more, as it was aborted.
fn run_one(active: &Active) -> Option<Ran> {
    let Core {
        calls, swift, loaded, ..
    } = &*active.core;
    let interrupt = PythonInterrupt::new();
    let mut call = {
        let mut line = calls.0.lock();
        let number = line.front()?.number;
        swift.begun(number, interrupt.clone());
        line.pop_front()?
    };
    let engine = &module().engine;
    let start_ns = engine.now_ns();
    engine.gets_on(start_ns);
    let invoked = {
        let _identity = identity::enter(loaded.user.clone());
        let _depth = depth::enter(call.depth);
        match active.code().map(|code| code.invoker.as_ref()) {
            Ok(Some(invoker)) => invoker.call_slice(std::mem::take(&mut call.input), call.origin.clone(), &interrupt.0),
            // It was there when the call was taken; it does not go.
            Ok(None) => failed("ERR internal error: the registration is not compiled".into()),
            Err(text) => failed(text),
        }
    };
    let ns = engine.now_ns() - start_ns;
    Some(Ran { call, invoked, ns })
}

fn failed(text: String) -> Invoked {
    Invoked::Done(Outcome {
        errors: vec![text],
        ..Outcome::default()
    })
}

/// What was postponed goes on, under the same number; its client waits.
fn go_on(active: &Arc<Active>, call: Call, rest: Box<Continuation>) {
    let its = active.clone();
    let Active { registration, core, .. } = &**active;
    let Call {
        number, depth, whom, ..
    } = call;
    continuing::go_on(&registration.id, core, rest, Some(number), depth, move |over| {
        over.count(&its.core.stats);
        whom.tell(&over.end(), &over.outcome);
    });
}

/// One that waited does not run; it counts as aborted.
fn withdrawn(core: &Core, call: Call) {
    core.stats.ended(&End::Aborted, 0);
    core.swift.withdrawn(&module().engine, call.number);
    call.whom.tell(&End::Aborted, &Outcome::default());
}

impl Core {
    /// Calls that wait do not run; they count as aborted.
    pub fn abort_calls(&self) {
        let all = std::mem::take(&mut *self.calls.0.lock());
        all.into_iter().for_each(|call| withdrawn(self, call));
    }

    /// The call with this number does not run; false if it does not wait (any more).
    pub fn withdraw_call(&self, number: u64) -> bool {
        let call = {
            let mut line = self.calls.0.lock();
            find(&line, number).and_then(|at| line.remove(at))
        };
        let found = call.is_some();
        if let Some(call) = call {
            withdrawn(self, call);
        }
        found
    }
}

/// They are in the order of their numbers.
fn find(line: &VecDeque<Call>, number: u64) -> Option<usize> {
    line.binary_search_by_key(&number, |call| call.number).ok()
}

impl Calls {
    /// Their numbers, oldest first.
    pub fn numbers(&self) -> Vec<u64> {
        self.0.lock().iter().map(|call| call.number).collect()
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// The one with this number waits.
    pub fn waits(&self, number: u64) -> bool {
        find(&self.0.lock(), number).is_some()
    }
}
