//! The script thread: runs the bodies of RG.PYEXECUTE in order, then starts what they asked for.
//!
//! Not the main thread, because a thread that waits for the GIL must not hold the server up. Registrations go on
//! without this thread, so that other scripts need not wait for the cluster.

use std::sync::Arc;

use oxigears_coordinator::{
    engine::{Execution, Order, Pool},
    execution::{ABORTED, Phase},
    plan::Plan,
};
use oxigears_python_api::{Functions, RunRequest, ScriptOutcome, Session, run_script};

use crate::{
    commands::write_pair,
    identity,
    module::module,
    redis::{blocked::BlockedClient, log},
    registrations::{
        change::READONLY,
        drafts::{self, Outcome, Replacing},
        is_master, service,
    },
};

/// A call of RG.PYEXECUTE that waits for its turn.
pub struct Call {
    /// The script.
    pub code: Vec<u8>,
    /// The session's name, and what it takes the place of.
    pub replacing: Replacing,
    /// Session description.
    pub description: Option<String>,
    /// ACL user whose rights count; `None`: all rights.
    pub user: Option<Arc<str>>,
    /// Answer with the execution id.
    pub unblocking: bool,
    /// Who waits.
    pub client: BlockedClient,
}

/// The thread.
pub struct ScriptThread(Pool);

impl ScriptThread {
    /// Starts it.
    pub fn start() -> std::io::Result<ScriptThread> {
        let on_panic = |text: String| log::warning(&format!("the script thread met an internal error: {text}"));
        Ok(ScriptThread(Pool::start("oxi-script", 1, on_panic)?))
    }

    /// Queues a call.
    pub fn submit(&self, call: Call) {
        self.0.submit(move || run(call));
    }
}

fn run(call: Call) {
    let _identity = identity::enter(call.user.clone());
    // Once more: scripts before this one may have made or removed sessions.
    if let Err(refusal) = call.replacing.check(&service().state()) {
        return call.client.reply(|reply| reply.error(&refusal.to_string()));
    }
    let session = Session::create(&call.replacing.name, call.description.as_deref());
    let outcome = session.and_then(|session| {
        let _script = drafts::enter_script(call.replacing.clone());
        run_script(&session, &call.code).map(|outcome| (session, outcome))
    });
    match outcome {
        Err(text) => call.client.reply(|reply| reply.error(&text)),
        Ok((session, outcome)) => go_on(call, &session, outcome),
    }
}

/// The body has ended without an error: what it asked for begins.
fn go_on(call: Call, session: &Session, outcome: ScriptOutcome) {
    let ScriptOutcome { run, registrations } = outcome;
    if registrations.is_empty() {
        return match run {
            None => call.client.reply(|reply| reply.simple("OK")),
            Some(request) => start(request, call),
        };
    }
    if !is_master() {
        return call.client.reply(|reply| reply.error(READONLY));
    }
    let run = run.map(|request| parts(request, &call));
    let client = call.client;
    let then = move |outcome| {
        if let (Outcome::Made, Some((plan, functions))) = (&outcome, run) {
            run_unattended(plan, functions);
        }
        client.reply(|reply| match outcome {
            Outcome::Made => reply.simple("OK"),
            Outcome::Failed(text) => reply.error(&text),
            Outcome::Refused(texts) => {
                reply.array(texts.len());
                texts.iter().for_each(|text| reply.error(text));
            }
        });
    };
    drafts::register_script(
        session,
        registrations,
        call.user.as_deref(),
        &call.replacing,
        Box::new(then),
    );
}

/// The run of a script that also registered something: the reply is that of the registrations.
fn run_unattended(plan: Plan, functions: Functions) {
    if let Err(e) = module().engine.create(order(plan, functions), None) {
        log::warning(&format!(
            "the run of a script that registered something can not start: {e}"
        ));
    }
}

fn parts(request: RunRequest, call: &Call) -> (Plan, Functions) {
    let RunRequest {
        mut plan, functions, ..
    } = request;
    plan.user = call.user.as_ref().map(|user| user.to_string());
    (plan, functions)
}

fn order(plan: Plan, functions: Functions) -> Order {
    Order {
        plan: Arc::new(plan),
        local: Arc::new(functions),
        nested: false,
        held: false,
        fired: None,
    }
}

fn start(request: RunRequest, call: Call) {
    let (plan, functions) = parts(request, &call);
    let order = order(plan, functions);
    let engine = &module().engine;
    let client = call.client;
    if call.unblocking {
        match engine.create(order, None) {
            Ok(execution) => client.reply(|reply| reply.bulk(execution.id.as_str().as_bytes())),
            Err(e) => client.reply(|reply| reply.error(&e.to_string())),
        }
        return;
    }
    let slot = Arc::new(parking_lot::Mutex::new(Some(client)));
    let waiting = slot.clone();
    let waiter = Box::new(move |execution: &Arc<Execution>| {
        if let Some(client) = waiting.lock().take() {
            answer(execution, client);
        }
    });
    if let Err(e) = engine.create(order, Some(waiter))
        && let Some(client) = slot.lock().take()
    {
        client.reply(|reply| reply.error(&e.to_string()));
    }
}

/// The execution is over: its results go to the client, and it is dropped everywhere.
fn answer(execution: &Arc<Execution>, client: BlockedClient) {
    let engine = &module().engine;
    let mut outcome = execution.take_outcome();
    // Nobody can look at its status any more: what was gathered so far must not look like the whole.
    if execution.phase() == Phase::Aborted && outcome.errors.is_empty() {
        outcome.errors.push(ABORTED.to_owned());
    }
    engine.forget_everywhere(execution);
    client.reply(|reply| write_pair(reply, &outcome));
}
