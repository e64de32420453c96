//! Batches that run with the server lock held: of registrations of mode `sync`, and those that are one transaction.

use std::{sync::Arc, time::Instant};

use oxigears_coordinator::{codec::RecordBatch, execution::Outcome};
use oxigears_python_api::{AtOnce, Continuation, Invoked, Invoker};

use super::{
    super::limits,
    batch::{self, Batch, Kept, Look, Settled, Verdict},
    consumer::{Consumer, Key},
    flow::Next,
    running::{self, Place},
    transaction,
};
use crate::{
    identity,
    module::module,
    redis::{lock::ServerLock, log},
    registrations::{active::unloadable, depth, due, sync},
};

/// Runs what is due on a stream, right after the command that added to it.
pub struct Shot {
    consumer: Arc<Consumer>,
    key: Key,
    flow: Option<u64>,
}

impl Shot {
    /// For a flow that is taken.
    pub fn new(consumer: &Arc<Consumer>, key: &Key) -> Shot {
        Shot {
            consumer: consumer.clone(),
            key: key.clone(),
            flow: consumer.number(key).map(|(flow, _)| flow),
        }
    }
}

impl Shot {
    /// Runs it; see `due`.
    pub fn fire(&self, guard: &ServerLock) {
        let (start, mut kept, mut flow) = (Instant::now(), None, self.flow);
        // All that one transaction or script added may be told by this shot alone, and is handled within it.
        let owed = flow.and_then(|flow| {
            self.consumer
                .with(&self.key, flow, |flow, rules| flow.full_batches(rules))
        });
        let mut owed = owed.unwrap_or(0);
        while let Some(number) = flow {
            let (next, hold) = one(guard, &self.consumer, &self.key, number, kept);
            owed = owed.saturating_sub(1);
            let long = owed == 0 && start.elapsed() >= limits::STREAM_HOLD;
            if next != Next::Look || long {
                drop(hold);
                // A backlog is left to another thread, which lets the server breathe.
                return running::act(guard, &self.consumer, &self.key, next, Place::Elsewhere);
            }
            kept = hold;
            flow = self.consumer.number(&self.key).map(|(flow, _)| flow);
        }
    }

    /// It does not run.
    pub fn abort(self, why: &str) {
        let (consumer, key) = (&self.consumer, &self.key);
        consumer.core.stats.ran(&super::super::stats::End::Aborted, 0);
        log::warning(&format!("a batch of {} does not run: {why}", consumer.registration.id));
        // Its entries are found again with the next one.
        consumer.forget(key);
    }
}

/// Looks at a stream whose flow is taken, and runs one batch; what is to be done next.
pub fn one(
    guard: &ServerLock,
    consumer: &Arc<Consumer>,
    key: &Key,
    flow: u64,
    kept: Option<Kept>,
) -> (Next, Option<Kept>) {
    let mut look = batch::begin(guard, (consumer, key), flow, kept, None);
    loop {
        match look {
            Look::More(reading) => look = batch::go_on(guard, consumer, key, reading, None),
            Look::Nothing(next) => return (next, None),
            Look::Run(batch) => return run(guard, consumer, key, batch),
        }
    }
}

fn run(guard: &ServerLock, consumer: &Arc<Consumer>, key: &Key, mut batch: Box<Batch>) -> (Next, Option<Kept>) {
    let start = Instant::now();
    let records = RecordBatch {
        bytes: std::mem::take(&mut batch.entries.bytes).into(),
        records: u32::try_from(batch.entries.count).unwrap_or(u32::MAX),
    };
    let number = module().engine.next_number();
    let verdict = match run_steps(guard, (consumer, key), records, number, batch.depth.max(1)) {
        Ran::Over(verdict) => verdict,
        Ran::Continues(mut rest) => {
            rest.spent_ns = start.elapsed().as_nanos() as u64;
            running::go_on_later(consumer, key, batch, number, rest);
            return (Next::Wait, None);
        }
    };
    let ns = start.elapsed().as_nanos() as u64;
    match batch::settle(guard, (consumer, key), batch, verdict, ns, None) {
        Settled::Done(next, kept) => (next, Some(kept)),
        // Writes can not be paused while the lock is held; then the batch runs again.
        Settled::Later(..) | Settled::More(..) => {
            consumer.forget(key);
            (Next::Wait, None)
        }
    }
}

/// How steps have run.
enum Ran {
    Over(Verdict),
    /// A record is postponed; the rest goes on without the lock.
    Continues(Box<Continuation>),
}

fn run_steps(
    guard: &ServerLock,
    (consumer, key): (&Consumer, &Key),
    records: RecordBatch,
    number: u64,
    depth: u32,
) -> Ran {
    let user = consumer.core.loaded.user.clone();
    let _identity = identity::enter(user.clone());
    let _depth = depth::enter(depth);
    let invoker = match invoker(consumer) {
        Ok(invoker) => invoker,
        Err(why) => return Ran::Over(Verdict::Failure(why)),
    };
    let start = Instant::now();
    let keep = |outcome: Outcome| {
        let error = batch::decisive(&outcome.errors).cloned();
        let ns = start.elapsed().as_nanos() as u64;
        // Clients may look at it later.
        let most = module().config.max_executions_per_registration();
        consumer
            .core
            .swift
            .keep(&module().engine, number, outcome, ns, false, most);
        error
    };
    if consumer.atomic {
        return Ran::Over(transaction::run(guard, key, user.as_deref(), || {
            match invoker.call_batch(records, Some(Arc::new(AtOnce)), consumer.reads_on()) {
                Invoked::Done(outcome) => keep(outcome),
                Invoked::Continues(_) => Some(transaction::refusal("what is postponed")),
            }
        }));
    }
    // In MULTI and Lua nothing can go on later.
    let origin = due::must_end_here().then(sync::at_once).flatten();
    match invoker.call_batch(records, origin, consumer.reads_on()) {
        Invoked::Done(outcome) => Ran::Over(keep(outcome).map_or(Verdict::Success, Verdict::Failure)),
        Invoked::Continues(rest) => Ran::Continues(rest),
    }
}

fn invoker(consumer: &Consumer) -> Result<&Invoker, String> {
    let code = consumer.core.loaded.code.as_ref().map(|code| code.invoker.as_ref());
    match code {
        Ok(Some(invoker)) => Ok(invoker),
        Ok(None) => Err("ERR internal error: the registration is not compiled".into()),
        Err(why) => Err(unloadable(why)),
    }
}
