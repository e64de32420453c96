//! A registration that is active on this shard, with its functions; and its session.

use std::{
    any::Any,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use oxigears_coordinator::{
    engine::Swift,
    plan::{Mode, Plan, Reader},
    registry::{EventSource, Registration, Session},
};
use oxigears_python_api::{self as python, Functions, Invoker};
use parking_lot::{Mutex, RwLock};

use super::{calls::Calls, keys::queue::Queue, remembered::Remembered, stats::Stats, turns::Turns};
use crate::{identity, module::module};

/// A registration that is active on this shard. Every event reads it, so it shares no cache line with what others write.
#[repr(align(128))]
pub struct Active {
    /// What the registry says of it.
    pub registration: Arc<Registration>,
    /// Its session; what runs holds it.
    pub session: Arc<ActiveSession>,
    /// What stays when it is paused or unpaused.
    pub core: Arc<Core>,
}

/// What an active registration keeps as long as it is active.
pub struct Core {
    /// Its pipeline and functions.
    pub loaded: Loaded,
    /// What it has done on this shard.
    pub stats: Stats,
    /// `ExecutionMaxIdleTime` when it became active.
    pub idle_limit_ms: u64,
    /// Executions that wait for each other.
    pub turns: Turns,
    /// Its events that wait for a worker thread.
    pub events: Queue,
    /// Its calls that wait for a worker thread.
    pub calls: Calls,
    /// Its executions that run in one go.
    pub swift: Arc<Swift>,
    /// Its executions on all shards that events of keys have fired.
    pub remembered: Mutex<Remembered>,
}

/// A pipeline with its functions.
#[derive(Clone)]
pub struct Loaded {
    /// The pipeline; without the pickled functions, which are loaded.
    pub plan: Arc<Plan>,
    /// ACL user with whose rights it acts.
    pub user: Option<Arc<str>>,
    /// The functions, or why there are none.
    pub code: Result<Arc<Code>, String>,
}

/// Functions, ready to run.
pub struct Code {
    /// The functions.
    pub functions: Functions,
    /// The same, as the engine carries them.
    pub local: Arc<dyn Any + Send + Sync>,
    /// The compiled pipeline, for what runs in one go.
    pub invoker: Option<Invoker>,
}

impl Loaded {
    /// Takes the encoded plan and functions that are there; on a thread that may run Python.
    pub fn with_functions(bytes: &Bytes, functions: Functions) -> Result<Loaded, String> {
        Loaded::read(bytes, |_| Ok(functions))
    }

    /// Loads the functions from the encoded plan; on a thread that may run Python.
    pub fn from_plan(bytes: &Bytes) -> Result<Loaded, String> {
        Loaded::read(bytes, python::load_functions)
    }

    /// It has the same functions, or none for the same reason.
    pub fn is_same(&self, other: &Loaded) -> bool {
        match (&self.code, &other.code) {
            (Ok(code), Ok(others)) => Arc::ptr_eq(code, others),
            (Err(why), Err(others)) => why == others,
            _ => false,
        }
    }

    /// Stands for a plan that can not be read.
    pub fn unreadable(why: String) -> Loaded {
        let plan = Plan {
            reader: Reader::Command,
            ops: Vec::new(),
            mode: Mode::AsyncLocal,
            function_names: Vec::new(),
            code: Vec::new(),
            session: String::new(),
            user: None,
        };
        Loaded {
            plan: Arc::new(plan),
            user: None,
            code: Err(why),
        }
    }

    fn read(bytes: &Bytes, functions: impl FnOnce(&Plan) -> Result<Functions, String>) -> Result<Loaded, String> {
        let mut plan = Plan::decode(bytes).map_err(|e| e.to_string())?;
        let user: Option<Arc<str>> = plan.user.as_deref().map(Arc::from);
        // Loading runs code of the user: what a pickle builds, and the modules that it imports.
        let _identity = identity::enter(user.clone());
        let code = functions(&plan).and_then(|functions| Code::new(&plan, functions));
        plan.code = Vec::new();
        Ok(Loaded {
            plan: Arc::new(plan),
            user,
            code: code.map(Arc::new),
        })
    }
}

impl Code {
    fn new(plan: &Plan, functions: Functions) -> Result<Code, String> {
        let invoker = Some(Invoker::new(plan, &functions)?);
        Ok(Code {
            local: Arc::new(functions.clone()),
            functions,
            invoker,
        })
    }
}

impl Active {
    /// A registration that becomes active now.
    pub fn new(registration: Arc<Registration>, session: Arc<ActiveSession>, loaded: Loaded) -> Active {
        let swift = module().engine.swift(registration.id.clone(), loaded.plan.clone());
        let core = Arc::new(Core {
            swift,
            remembered: Mutex::default(),
            events: Queue::default(),
            calls: Calls::default(),
            loaded,
            stats: Stats::default(),
            idle_limit_ms: module().config.execution_max_idle_ms(),
            turns: Turns::default(),
        });
        let weak: Weak<Core> = Arc::downgrade(&core);
        core.swift.set_waiting(weak);
        Active {
            registration,
            session,
            core,
        }
    }

    /// The same after it was paused or unpaused.
    pub fn changed(&self, registration: Arc<Registration>) -> Active {
        Active {
            registration,
            session: self.session.clone(),
            core: self.core.clone(),
        }
    }

    /// Its executions run one after another.
    pub fn is_inorder(&self) -> bool {
        matches!(
            self.registration.source,
            EventSource::Command { inorder: true, .. } | EventSource::Hook { inorder: true, .. }
        )
    }

    /// Its functions, or the text for who wants to run it.
    pub fn code(&self) -> Result<&Arc<Code>, String> {
        let code = self.core.loaded.code.as_ref();
        code.map_err(|why| unloadable(why))
    }
}

/// The text for who wants to run functions that could not be loaded.
pub fn unloadable(why: &str) -> String {
    format!("ERR the functions of the registration can not be loaded on this shard: {why}")
}

/// A session on this shard. Whoever may run code of it holds a reference.
pub struct ActiveSession {
    is: RwLock<Arc<Session>>,
}

impl ActiveSession {
    /// A session that becomes active now.
    pub fn new(session: Arc<Session>) -> Arc<ActiveSession> {
        Arc::new(ActiveSession {
            is: RwLock::new(session),
        })
    }

    /// What the registry says of it; for a session that is gone, what it said last.
    pub fn get(&self) -> Arc<Session> {
        self.is.read().clone()
    }

    /// It got or lost registrations.
    pub fn set(&self, session: Arc<Session>) {
        *self.is.write() = session;
    }
}
