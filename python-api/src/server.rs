//! The one way to the server: the trait that the Redis half implements, and the process-wide instance.

use std::{
    any::Any,
    sync::{Arc, OnceLock},
    time::Duration,
};

use oxigears_coordinator::{execution::Outcome, registry::EventSource};

use crate::{functions::RunRequest, native::TimerDraft, registration::RegistrationDraft, session::Session};

/// Levels of the server log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogLevel {
    Debug,
    Verbose,
    Notice,
    Warning,
}

/// What a command answered.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Reply {
    Null,
    Int(i64),
    Bulk(Vec<u8>),
    Simple(Vec<u8>),
    Error(String),
    Array(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
    Set(Vec<Reply>),
    Double(f64),
    Bool(bool),
    BigNumber(String),
}

impl Reply {
    /// Bytes of a bulk or simple string.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Reply::Bulk(bytes) | Reply::Simple(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Text of a bulk or simple string, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// An integer.
    pub fn int(&self) -> Option<i64> {
        match self {
            Reply::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// Elements of an array or set.
    pub fn array(&self) -> Option<&[Reply]> {
        match self {
            Reply::Array(items) | Reply::Set(items) => Some(items),
            _ => None,
        }
    }

    /// Name and value pairs of a map, or of an array that alternates them.
    pub fn pairs(&self) -> Vec<(&Reply, &Reply)> {
        match self {
            Reply::Map(pairs) => pairs.iter().map(|(k, v)| (k, v)).collect(),
            Reply::Array(items) => items.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
            _ => Vec::new(),
        }
    }
}

/// Whose rights code has, and what else the server keeps per thread; opaque to this crate. `None`: nothing special.
pub type Acting = Option<Arc<dyn Any + Send + Sync>>;

/// How an execution that code asked for ended.
#[derive(Debug)]
pub struct RunOver {
    /// Results and errors.
    pub outcome: Outcome,
    /// It was ended before it was complete.
    pub aborted: bool,
}

/// Hears of the end of such an execution. Called by any thread; does not wait.
pub type WhenOver = Box<dyn FnOnce(RunOver) + Send>;

/// What Python code may ask of the server.
pub trait Server: Send + Sync {
    /// Runs a command on this shard. Takes the server lock itself (re-entrant per thread). Called without the GIL,
    /// except by a thread that holds the server lock already.
    fn execute(&self, args: &[Vec<u8>]) -> Result<Reply, String>;
    /// The same if the server lock needs no waiting; `None`: nothing has run. Called with the GIL, which is kept.
    fn execute_now(&self, args: &[Vec<u8>]) -> Option<Result<Reply, String>>;
    /// Takes the server lock if that takes no longer than `wait`, nor than `go_on` says so; counts per thread. Called
    /// with the GIL.
    fn try_lock(&self, wait: Duration, go_on: &dyn Fn() -> bool) -> bool;
    /// Gives one count of the server lock back.
    fn unlock(&self);
    /// This thread holds the server lock.
    fn lock_held(&self) -> bool;
    /// Short tag whose slot is the lowest slot of this shard.
    fn hashtag(&self) -> Option<String>;
    /// Writes to the server log.
    fn log(&self, level: LogLevel, message: &str);
    /// A user-defined configuration value.
    fn config_get(&self, key: &str) -> Option<String>;
    /// Number of shards that an execution of mode `async` runs on; 0 while the cluster is not known yet.
    fn cluster_size(&self) -> usize;
    /// Option `PythonAttemptTraceback`.
    fn traceback_enabled(&self) -> bool;
    /// Option `ProfileExecutions`. Asked at every event.
    fn profile_enabled(&self) -> bool;
    /// Creates and queues an execution that running Python code asked for; gives its id.
    fn start_run(&self, request: RunRequest, when_over: WhenOver) -> Result<String, String>;
    /// Why running code can not start a coroutine now, if so. Called with the GIL; never waits.
    fn coroutine_refusal(&self) -> Option<String>;
    /// What this thread acts as.
    fn acting(&self) -> Acting;
    /// It acts as something else from now on; gives what it did so far, to be put back.
    fn act_as(&self, acting: Acting) -> Acting;
    /// A `GearsBuilder` was made: it takes one number of the registration counter. Called with the GIL; never waits.
    fn builder_made(&self);
    /// Gives the id of a registration that would be accepted now, next to the script's `earlier` ones; the error is
    /// raised in the script. Called with the GIL; never waits.
    fn new_registration(
        &self,
        session: &Session,
        source: &EventSource,
        earlier: &[RegistrationDraft],
    ) -> Result<String, String>;
    /// Makes a registration that running code asked for. Called without the GIL.
    fn register_now(&self, draft: RegistrationDraft) -> Result<(), String>;
    /// Makes a timer; false if its key holds something already. Called like `execute`.
    fn register_timer(&self, draft: TimerDraft) -> Result<bool, String>;
}

static SERVER: OnceLock<Arc<dyn Server>> = OnceLock::new();

/// Sets the instance; false if there is one.
pub(crate) fn set_server(server: Arc<dyn Server>) -> bool {
    SERVER.set(server).is_ok()
}

/// This thread holds the server lock.
#[inline]
pub(crate) fn has_server_lock() -> bool {
    SERVER.get().is_some_and(|server| server.lock_held())
}

/// The instance. Python code runs only after `initialize` has set it.
pub(crate) fn server() -> &'static dyn Server {
    SERVER.get().expect("the interpreter is initialised").as_ref()
}
