//! What Python code may ask of this server.

use std::{cell::Cell, sync::Arc, time::Duration};

use oxigears_coordinator::{
    engine::{Execution, Order},
    execution::Phase,
    registry::EventSource,
};
use oxigears_python_api::{
    Acting, LogLevel, RegistrationDraft, Reply, RunOver, RunRequest, Server, Session, TimerDraft, WhenOver,
    current_origin,
};

use crate::{
    identity, mesh,
    module::module,
    redis::{
        call::{self, CallError, Flags},
        cluster, lock, log,
    },
    registrations::{self, drafts, intercept, streams::transaction},
    timers,
};

/// The server as scripts see it.
pub struct RedisServer;

impl Server for RedisServer {
    fn execute(&self, args: &[Vec<u8>]) -> Result<Reply, String> {
        if let Some(outcome) = transaction::execute(args) {
            return outcome;
        }
        // A thread that holds the server lock keeps the GIL for the call.
        let _here = PythonHere::enter(lock::is_held());
        let user = identity::current();
        let origin = current_origin();
        let _issuing = intercept::issuing(origin.as_deref());
        let flags = Flags {
            user: user.as_deref(),
            ..Flags::from_script()
        };
        call::call_patiently(args, flags, || intercept::only_reads(args)).map_err(|e| e.to_string())
    }

    fn execute_now(&self, args: &[Vec<u8>]) -> Option<Result<Reply, String>> {
        if let Some(outcome) = transaction::execute(args) {
            return Some(outcome);
        }
        let guard = lock::try_lock()?;
        if !lock::is_fit_to_write(&guard) && !intercept::only_reads(args) {
            return None;
        }
        let _here = PythonHere::enter(true);
        let user = identity::current();
        let origin = current_origin();
        let _issuing = intercept::issuing(origin.as_deref());
        let flags = Flags {
            user: user.as_deref(),
            ..Flags::from_script()
        };
        match call::call(&guard, args, flags) {
            Err(CallError::WritesPaused(_)) => None,
            outcome => Some(outcome.map_err(|e| e.to_string())),
        }
    }

    fn try_lock(&self, wait: Duration, go_on: &dyn Fn() -> bool) -> bool {
        lock::try_enter_unpaused(wait, go_on)
    }

    fn unlock(&self) {
        lock::exit();
    }

    fn lock_held(&self) -> bool {
        lock::is_held()
    }

    fn hashtag(&self) -> Option<String> {
        if !module().is_cluster {
            return Some(cluster::tag_of(0));
        }
        let slot = mesh::lowest_slot(&lock::lock());
        let is_alone = || !module().engine.topology().is_cluster();
        slot.or_else(|| is_alone().then_some(0)).map(cluster::tag_of)
    }

    fn log(&self, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Debug => log::Level::Debug,
            LogLevel::Verbose => log::Level::Verbose,
            LogLevel::Notice => log::Level::Notice,
            LogLevel::Warning => log::Level::Warning,
        };
        log::log(level, message);
    }

    fn config_get(&self, key: &str) -> Option<String> {
        module().config.user_get(key)
    }

    fn cluster_size(&self) -> usize {
        module().engine.topology().shards.len().max(1)
    }

    fn traceback_enabled(&self) -> bool {
        module().config.attempt_traceback()
    }

    fn profile_enabled(&self) -> bool {
        module().config.profile_executions()
    }

    fn start_run(&self, request: RunRequest, when_over: WhenOver) -> Result<String, String> {
        if transaction::is_active() {
            return Err(transaction::refusal("run()"));
        }
        let RunRequest {
            mut plan,
            functions,
            nested,
            ..
        } = request;
        plan.user = identity::current().map(|user| user.to_string());
        let order = Order {
            plan: Arc::new(plan),
            local: Arc::new(functions),
            nested,
            held: false,
            fired: None,
        };
        let waiter = Box::new(|execution: &Arc<Execution>| {
            when_over(RunOver {
                outcome: execution.take_outcome(),
                aborted: execution.phase() == Phase::Aborted,
            });
        });
        let execution = module().engine.create(order, Some(waiter));
        execution.map(|e| e.id.to_string()).map_err(|e| e.to_string())
    }

    fn coroutine_refusal(&self) -> Option<String> {
        transaction::is_active().then(|| transaction::refusal("runCoroutine()"))
    }

    fn acting(&self) -> Acting {
        identity::acting()
    }

    fn act_as(&self, acting: Acting) -> Acting {
        identity::act_as(acting)
    }

    fn builder_made(&self) {
        registrations::service().next_number();
    }

    fn new_registration(
        &self,
        _session: &Session,
        source: &EventSource,
        earlier: &[RegistrationDraft],
    ) -> Result<String, String> {
        drafts::validate(source, earlier)
    }

    fn register_now(&self, draft: RegistrationDraft) -> Result<(), String> {
        if transaction::is_active() {
            return Err(transaction::refusal("register()"));
        }
        drafts::register_now(draft)
    }

    fn register_timer(&self, draft: TimerDraft) -> Result<bool, String> {
        if transaction::is_active() {
            return Err(transaction::refusal("registerTE()"));
        }
        timers::make(draft)
    }
}

thread_local! {
    static PYTHON_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Inside a command that Python code runs on this thread, which has kept the GIL for it.
pub fn python_is_here() -> bool {
    PYTHON_HERE.get()
}

/// See `PythonHere::enter`.
pub struct PythonHere {
    before: bool,
}

impl PythonHere {
    /// This thread has the GIL and keeps it, or has not, until the result goes.
    pub fn enter(here: bool) -> PythonHere {
        PythonHere {
            before: PYTHON_HERE.replace(here),
        }
    }
}

impl Drop for PythonHere {
    fn drop(&mut self) {
        PYTHON_HERE.set(self.before);
    }
}
