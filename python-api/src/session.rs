//! A session: the globals of one script call, shared by all callbacks of the script on this shard.
//!
//! What the engine has and code that runs hold it as `Arc<Session>`. Python objects must not: the globals may refer to
//! them, and the collector sees no way that leads through an `Arc`. They hold the handle, which it can see through, and
//! from which there is a new `Arc` whenever code of such an object runs after the last one went.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pyo3::{
    PyTraverseError, PyVisit,
    prelude::*,
    types::{PyDict, PyWeakrefReference},
};

use crate::{errors, gil, later, reaper, runtime::runtime};

/// The session of one script call, in use.
pub struct Session {
    handle: Py<PyExecutionSession>,
    /// Goes after it.
    end: End,
}

/// A session for Python objects, scripts' own among them.
#[pyclass(name = "PyExecutionSession", module = "_oxigears", frozen, weakref)]
pub(crate) struct PyExecutionSession {
    id: String,
    description: Option<String>,
    /// Tells sessions apart that were given the same id.
    nonce: u64,
    globals: Py<PyDict>,
    in_use: Mutex<Weak<Session>>,
}

/// Weak references to the handles of all living sessions, so that functions that arrive later join the globals that
/// are there. While it is locked nothing is made or freed in Python, which could come back here.
static SESSIONS: Mutex<Option<Sessions>> = Mutex::new(None);

/// By id and nonce.
type Sessions = HashMap<(String, u64), Py<PyWeakrefReference>>;

/// Sessions that ended since the last garbage collection.
static ENDED: AtomicUsize = AtomicUsize::new(0);

/// What had kept a session's globals after its end has ended since then.
static ENDED_LATE: AtomicBool = AtomicBool::new(false);

impl Session {
    /// Makes a session with globals of its own.
    pub fn create(id: &str, description: Option<&str>) -> Result<Arc<Session>, String> {
        Session::with_nonce(id, description, rand::random())
    }

    /// The living session with this id and nonce, or a new one.
    pub(crate) fn find_or_create(id: &str, nonce: u64) -> Result<Arc<Session>, String> {
        gil::attach(|py| match known(py, &(id.to_owned(), nonce)) {
            Some(handle) => Ok(PyExecutionSession::session(&handle)),
            None => Session::with_nonce(id, None, nonce),
        })
    }

    fn with_nonce(id: &str, description: Option<&str>, nonce: u64) -> Result<Arc<Session>, String> {
        gil::attach(|py| {
            let handle = PyExecutionSession::join(py, id, description, nonce);
            handle
                .map(|handle| PyExecutionSession::session(&handle))
                .map_err(|e| errors::error_text(py, e))
        })
    }

    /// Functions that are loaded from now on join new globals. What is loaded already keeps its own. Without the GIL.
    pub fn forget_all() {
        let all = SESSIONS.lock().take();
        reaper::free(Box::new(all));
    }

    /// Its name.
    pub fn id(&self) -> &str {
        self.handle.get().id()
    }

    /// Its description.
    pub fn description(&self) -> Option<&str> {
        self.handle.get().description.as_deref()
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.handle.get().nonce
    }

    pub(crate) fn globals(&self) -> &Py<PyDict> {
        &self.handle.get().globals
    }

    /// For those who are Python objects or belong to one.
    pub(crate) fn handle(&self) -> &Py<PyExecutionSession> {
        &self.handle
    }

    /// The engine gets functions of it.
    pub(crate) fn has_functions(&self) {
        self.end.counts.store(true, Relaxed);
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// The handle of a living session.
fn known<'py>(py: Python<'py>, key: &(String, u64)) -> Option<Bound<'py, PyExecutionSession>> {
    find(py, SESSIONS.lock().as_ref()?, key)
}

fn find<'py>(py: Python<'py>, all: &Sessions, key: &(String, u64)) -> Option<Bound<'py, PyExecutionSession>> {
    all.get(key)?.bind(py).upgrade_as().ok()?
}

impl PyExecutionSession {
    /// That of a new session; the known one if another thread was faster for the same arriving functions.
    fn join<'py>(py: Python<'py>, id: &str, description: Option<&str>, nonce: u64) -> PyResult<Bound<'py, Self>> {
        let globals = runtime().base_environment.bind(py).copy()?;
        globals.set_item("__name__", "not_main")?;
        globals.set_item("__builtins__", py.import("builtins")?)?;
        let new = Self {
            id: id.to_owned(),
            description: description.map(str::to_owned),
            nonce,
            globals: globals.unbind(),
            in_use: Mutex::default(),
        };
        let new = Bound::new(py, new)?;
        let reference = PyWeakrefReference::new(&new)?.unbind();
        let key = (id.to_owned(), nonce);
        let mut sessions = SESSIONS.lock();
        let all = sessions.get_or_insert_with(HashMap::new);
        let known = find(py, all, &key);
        let before = match known {
            Some(_) => None,
            None => all.insert(key, reference),
        };
        drop(sessions);
        drop(before);
        Ok(known.unwrap_or(new))
    }

    /// The session, for code of it that is about to run.
    pub(crate) fn session(handle: &Bound<'_, Self>) -> Arc<Session> {
        let mut in_use = handle.get().in_use.lock();
        if let Some(session) = in_use.upgrade() {
            return session;
        }
        let is_first = in_use.ptr_eq(&Weak::new());
        let session = Arc::new(Session {
            handle: handle.clone().unbind(),
            end: End {
                is_first,
                counts: AtomicBool::new(is_first),
            },
        });
        *in_use = Arc::downgrade(&session);
        session
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// A coroutine of it has ended, which may have been the last thing that kept its globals.
    pub(crate) fn let_go(&self) {
        if self.in_use.lock().strong_count() == 0 {
            ended_late();
        }
    }
}

#[pymethods]
impl PyExecutionSession {
    fn __str__(&self) -> &'static str {
        "PyExecutionSession"
    }

    // Without `__clear__`: the way back from the globals is cut where they are cleared.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.globals)
    }
}

impl Drop for PyExecutionSession {
    fn drop(&mut self) {
        let key = (std::mem::take(&mut self.id), self.nonce);
        // Objects are freed with the GIL held.
        Python::attach(|py| {
            let mut sessions = SESSIONS.lock();
            let gone = match sessions.as_mut() {
                // Another session may have taken its place after `forget_all`.
                Some(all) if find(py, all, &key).is_none() => all.remove(&key),
                _ => None,
            };
            drop(sessions);
            drop(gone);
        });
    }
}

/// Counts the end of a session's use.
struct End {
    /// Nobody had it before.
    is_first: bool,
    /// Else a step of a coroutine that goes on by itself would count each time.
    counts: AtomicBool,
}

impl Drop for End {
    fn drop(&mut self) {
        match (self.is_first, self.counts.load(Relaxed)) {
            (true, _) => {
                ENDED.fetch_add(1, Relaxed);
                reaper::wake();
            }
            (false, true) => ended_late(),
            (false, false) => {}
        }
    }
}

fn ended_late() {
    if !ENDED_LATE.swap(true, Relaxed) {
        reaper::wake();
    }
}

/// When the last collection ended and how long it took.
static LAST_COLLECTION: Mutex<Option<(Instant, Duration)>> = Mutex::new(None);

/// Pause between two collections.
const REST: Duration = Duration::from_secs(1);
/// The same if all that may have become garbage has been so for long or is little: what a coroutine leaves that runs for
/// nobody. Python's own collections free it too, when they come.
const LATE_REST: Duration = Duration::from_secs(10);
/// So many sessions do not wait.
const MANY: usize = 64;

/// Time until the next collection is due; `None`: nothing has ended whose globals are still there.
pub(crate) fn next_collection() -> Option<Duration> {
    let rest = match ENDED.load(Relaxed) {
        0 if !ENDED_LATE.load(Relaxed) => return None,
        0 => LATE_REST,
        MANY.. => Duration::ZERO,
        _ => REST,
    };
    let Some((when, cost)) = *LAST_COLLECTION.lock() else {
        return Some(Duration::ZERO);
    };
    Some(rest.max(cost * 20).saturating_sub(when.elapsed()))
}

/// Globals and the functions in them refer to each other, so only the cycle collector frees them. Called with the
/// GIL and without the server lock, before a script runs and by the reaper; collects seldom enough to stay below 5 %
/// of the time.
pub(crate) fn collect_ended(py: Python<'_>) {
    let ended = ENDED.load(Relaxed);
    if next_collection() != Some(Duration::ZERO) {
        return;
    }
    // Claims the turn before the collection, which may run Python code and let other threads in.
    let mut last = LAST_COLLECTION.lock();
    *last = Some((Instant::now(), last.map_or(Duration::ZERO, |(_, cost)| cost)));
    drop(last);
    ENDED.fetch_sub(ended, Relaxed);
    ENDED_LATE.store(false, Relaxed);
    let before = cpu_time();
    // An error of a finaliser is reported by the interpreter itself; nothing is left to do here.
    let _ = runtime().collect_garbage.call0(py);
    later::wake();
    let cost = cpu_time().saturating_sub(before);
    *LAST_COLLECTION.lock() = Some((Instant::now(), cost));
}

/// What this thread has worked so far. Not the time that passed: finalisers give the GIL to others meanwhile.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes a structure of ours; if it failed, zero stays.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
