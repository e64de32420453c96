//! The script thread: runs the bodies of RG.PYEXECUTE in order, then starts what they asked for.
//!
//! Not the main thread, because a thread that waits for the GIL must not hold the server up.

use std::sync::Arc;

use oxigears_coordinator::engine::{Execution, Pool};
use oxigears_python_api::{RunRequest, Session, run_script};

use crate::{
    commands::write_pair,
    identity,
    module::module,
    redis::{blocked::BlockedClient, log},
};

/// A call of RG.PYEXECUTE that waits for its turn.
pub struct Call {
    /// The script.
    pub code: Vec<u8>,
    /// Session name.
    pub id: String,
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
    let outcome = Session::create(&call.id, call.description.as_deref()).and_then(|s| run_script(&s, &call.code));
    match outcome {
        Err(text) => call.client.reply(|reply| reply.error(&text)),
        Ok(outcome) => match outcome.run {
            None => call.client.reply(|reply| reply.simple("OK")),
            Some(mut request) => {
                request.plan.user = call.user.map(|user| user.to_string());
                start(request, call.client, call.unblocking);
            }
        },
    }
}

fn start(request: RunRequest, client: BlockedClient, unblocking: bool) {
    let RunRequest { plan, functions, .. } = request;
    let engine = &module().engine;
    let local = Arc::new(functions);
    if unblocking {
        match engine.create(plan, local, false, None) {
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
    if let Err(e) = engine.create(plan, local, false, Some(waiter))
        && let Some(client) = slot.lock().take()
    {
        client.reply(|reply| reply.error(&e.to_string()));
    }
}

/// The execution is over: its results go to the client, and it is dropped everywhere.
fn answer(execution: &Arc<Execution>, client: BlockedClient) {
    let engine = &module().engine;
    let outcome = execution.take_outcome();
    engine.forget_everywhere(execution);
    client.reply(|reply| write_pair(reply, &outcome));
}
