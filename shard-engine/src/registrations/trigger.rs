//! Firing registrations with a trigger: RG.TRIGGER in all modes.

use std::sync::{Arc, atomic::Ordering};

use oxigears_coordinator::{
    codec::RecordBatch,
    engine::{Execution, Fired, Order},
    execution::Phase,
    registry::RegisterMode,
};
use oxigears_python_api::{self as python, Invoked, Origin};

use super::{
    active::{Active, Code},
    calls,
    change::READONLY,
    is_master, limits,
    occasion::Occasion,
    registrations,
    stats::End,
    sync,
};
use crate::{
    module::module,
    redis::{blocked::BlockedClient, cluster, register::Call},
};

/// A registration that needs other threads was triggered where nobody may wait for them.
const NO_BLOCKING: &str =
    "ERR can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading.";
const UNKNOWN: &str = "ERR subcommand not found";
const BUSY: &str = "ERR the Python interpreter is busy, and this command can not wait for it here; nothing was run";
const NOT_ACTIVE: &str = "ERR the trigger is registered but not active on this shard yet; try again";

const BEHIND: &str = "CLUSTERDOWN this shard has just started and does not know yet whether its registrations are the newest; \
                      try again";

/// What is to be run: the registration, its functions, and the index of the state that it is active in.
pub struct Shot {
    /// The registration.
    pub active: Arc<Active>,
    /// Its functions.
    pub code: Arc<Code>,
    /// Index of the state that it is active in.
    pub index: u64,
}

enum Aim {
    Ready(Shot),
    /// Its functions are not there.
    Broken(String),
    /// Known, but active only with the state of this index.
    NotYet(u64),
    /// This node has just started, and what it knows may be old.
    Behind,
    Unknown,
}

fn aim(name: &[u8]) -> Aim {
    let state = registrations();
    let table = state.activation.table().read();
    match state.service.awaited_index() {
        u64::MAX => return Aim::Behind,
        index if index > table.state().index() => return Aim::NotYet(index),
        _ => {}
    }
    if let Some(active) = table.trigger(name) {
        return match active.code() {
            Ok(code) => Aim::Ready(Shot {
                active: active.clone(),
                code: code.clone(),
                index: table.state().index(),
            }),
            Err(text) => {
                active.core.stats.ran(&End::Failure(&text), 0);
                Aim::Broken(text)
            }
        };
    }
    let newest = state.service.state();
    if !Arc::ptr_eq(&newest, table.state()) && newest.trigger(name).is_some() {
        return Aim::NotYet(newest.index());
    }
    Aim::Unknown
}

/// Runs what is registered for the trigger in the first argument, with all arguments behind the command's name; which of
/// these is a key, if one is.
pub fn trigger(call: &mut Call, key: Option<usize>) {
    let flags = call.context_flags();
    if flags.replica || !is_master() {
        return call.reply().error(READONLY);
    }
    let shot = match aim(&call.args[1]) {
        Aim::Ready(shot) => shot,
        Aim::Broken(text) => return call.reply().error(&text),
        Aim::Unknown => return call.reply().error(UNKNOWN),
        Aim::Behind => return call.reply().error(BEHIND),
        Aim::NotYet(_) if !flags.may_block() => return call.reply().error(NOT_ACTIVE),
        Aim::NotYet(index) => return later(call, index),
    };
    if shot.active.registration.mode == RegisterMode::Sync {
        return run_sync(call, &shot, flags.may_block(), key);
    }
    if flags.loading || !flags.may_block() {
        return call.reply().error(refuse(&shot.active));
    }
    let input = python::encode_arguments(&call.args[1..]);
    let client = BlockedClient::block(call, None);
    fire(shot, input, None, client, sync::answer);
}

/// An execution is wanted where nobody can wait for it: counts that, and gives the error.
pub fn refuse(active: &Active) -> &'static str {
    active.core.stats.ran(&End::Aborted, 0);
    NO_BLOCKING
}

fn run_sync(call: &mut Call, shot: &Shot, may_block: bool, key: Option<usize>) {
    let (active, code) = (&shot.active, &shot.code);
    if sync::interpreter_is_free() {
        let origin = if may_block { None } else { sync::at_once() };
        match sync::run(active, code, &call.args[1..], origin) {
            Invoked::Done(outcome) => sync::answer(call.reply(), &outcome),
            rest => {
                let client = BlockedClient::block(call, None);
                sync::answer_client(active, rest, client);
            }
        }
        return;
    }
    if may_block && !key.is_some_and(|at| cluster::is_for_guests(call.guard(), &call.args[at])) {
        let args = call.args.split_off(1);
        let client = BlockedClient::block(call, None);
        return sync::run_parked(active.clone(), code.clone(), args, client);
    }
    match sync::run_for_waiting(call.guard(), active, code, &call.args[1..]) {
        Some(outcome) => sync::answer(call.reply(), &outcome),
        None => {
            active.core.stats.ran(&End::Aborted, 0);
            call.reply().error(BUSY);
        }
    }
}

/// Right after a start or a change: the registration becomes active in a moment, the client waits for that.
fn later(call: &mut Call, index: u64) {
    let args = call.args.split_off(1);
    let client = BlockedClient::block(call, None);
    let then = move |active: bool| match aim(&args[0]) {
        Aim::Ready(shot) if active => run_later(shot, args, client),
        Aim::Broken(text) if active => client.reply(|reply| reply.error(&text)),
        Aim::Unknown => client.reply(|reply| reply.error(UNKNOWN)),
        _ => client.reply(|reply| reply.error(NOT_ACTIVE)),
    };
    let activation = &registrations().activation;
    activation.when_active(index, limits::TRIGGER_WAIT, Box::new(then));
}

fn run_later(shot: Shot, args: Vec<Vec<u8>>, client: BlockedClient) {
    if shot.active.registration.mode == RegisterMode::Sync {
        return sync::run_parked(shot.active, shot.code, args, client);
    }
    let input = python::encode_arguments(&args);
    fire(shot, input, None, client, sync::answer);
}

/// Starts an execution, which answers the client. `origin`: what the code may ask of its cause.
pub fn fire(
    shot: Shot,
    input: RecordBatch,
    origin: Option<Arc<dyn Origin>>,
    client: BlockedClient,
    answer: sync::Answer,
) {
    let Shot { active, code, index } = shot;
    active.core.stats.triggered();
    let inorder = active.is_inorder();
    let is_spread = active.registration.mode == RegisterMode::Async && module().is_cluster;
    if !inorder && !is_spread {
        return calls::push(active, input, origin, client, answer);
    }
    let engine = &module().engine;
    if inorder && active.core.turns.is_full() {
        active.core.stats.ended(&End::Aborted, 0);
        return client.reply(|reply| reply.error(&sync::too_many()));
    }
    let order = Order {
        plan: active.core.loaded.plan.clone(),
        local: code.local.clone(),
        nested: false,
        held: inorder,
        fired: Some(Fired {
            registration: active.registration.id.clone(),
            index,
            input,
            here: origin.and_then(|origin| Occasion::of_cause(origin).carried()),
            idle_limit_ms: active.core.idle_limit_ms,
            spent_ns: None,
            reads_on: None,
        }),
    };
    // Shared, because it comes back if the execution can not be created.
    let client = Arc::new(parking_lot::Mutex::new(Some(client)));
    let (waiting, fired) = (client.clone(), active.clone());
    let waiter = Box::new(move |execution: &Arc<Execution>| {
        let client = waiting.lock().take();
        over(&fired, execution, client, answer);
    });
    match engine.create(order, Some(waiter)) {
        Ok(execution) if inorder => active.core.turns.join(&execution),
        Ok(_) => {}
        Err(error) => {
            active.core.stats.ended(&End::Aborted, 0);
            if let Some(client) = client.lock().take() {
                calls::refuse(client, &error);
            }
        }
    }
}

/// The execution is over: it is counted, answered and dropped. On any thread; must not wait.
fn over(active: &Active, execution: &Arc<Execution>, client: Option<BlockedClient>, answer: sync::Answer) {
    let outcome = execution.take_outcome();
    let aborted = execution.phase() == Phase::Aborted;
    let end = End::of(&outcome, aborted);
    active
        .core
        .stats
        .ended(&end, execution.total_ns.load(Ordering::Relaxed));
    if active.is_inorder() {
        active.core.turns.over(execution);
    }
    module().engine.forget_everywhere(execution);
    if let Some(client) = client {
        client.reply(|reply| match end {
            // What an aborted execution had so far is not its result.
            End::Aborted => reply.error(sync::ABORTED),
            _ => answer(reply, &outcome),
        });
    }
}
