//! A session: the globals of one script call, shared by all callbacks of the script on this shard.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pyo3::{prelude::*, types::PyDict};

use crate::{errors, gil, reaper, runtime::runtime};

/// The session of one script call.
pub struct Session {
    id: String,
    description: Option<String>,
    /// Tells sessions apart that were given the same id.
    nonce: u64,
    globals: Py<PyDict>,
}

/// All living sessions, so that functions that arrive later join the globals that are there.
static SESSIONS: Mutex<Option<Sessions>> = Mutex::new(None);

/// By id and nonce.
type Sessions = HashMap<(String, u64), Weak<Session>>;

/// Sessions that ended since the last garbage collection.
static ENDED: AtomicUsize = AtomicUsize::new(0);

impl Session {
    /// Makes a session with globals of its own.
    pub fn create(id: &str, description: Option<&str>) -> Result<Arc<Session>, String> {
        Session::with_nonce(id, description, rand::random())
    }

    /// The living session with this id and nonce, or a new one.
    pub(crate) fn find_or_create(id: &str, nonce: u64) -> Result<Arc<Session>, String> {
        let known = SESSIONS
            .lock()
            .as_ref()
            .and_then(|all| all.get(&(id.to_owned(), nonce))?.upgrade());
        match known {
            Some(session) => Ok(session),
            None => Session::with_nonce(id, None, nonce),
        }
    }

    fn with_nonce(id: &str, description: Option<&str>, nonce: u64) -> Result<Arc<Session>, String> {
        let globals = gil::attach(|py| -> PyResult<Py<PyDict>> {
            let globals = runtime().base_environment.bind(py).copy()?;
            globals.set_item("__name__", "not_main")?;
            globals.set_item("__builtins__", py.import("builtins")?)?;
            Ok(globals.unbind())
        })
        .map_err(|e| gil::attach(|py| errors::error_text(py, e)))?;
        let session = Arc::new(Session {
            id: id.to_owned(),
            description: description.map(str::to_owned),
            nonce,
            globals,
        });
        let mut sessions = SESSIONS.lock();
        let all = sessions.get_or_insert_with(HashMap::new);
        // Another thread may have been faster for the same arriving functions.
        if let Some(known) = all.get(&(id.to_owned(), nonce)).and_then(Weak::upgrade) {
            drop(sessions);
            return Ok(known);
        }
        all.insert((id.to_owned(), nonce), Arc::downgrade(&session));
        Ok(session)
    }

    /// Functions that are loaded from now on join new globals. What is loaded already keeps its own. Without the GIL.
    pub fn forget_all() {
        SESSIONS.lock().take();
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its description.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    pub(crate) fn globals(&self) -> &Py<PyDict> {
        &self.globals
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(all) = SESSIONS.lock().as_mut() {
            let key = (std::mem::take(&mut self.id), self.nonce);
            if all.get(&key).is_some_and(|known| known.strong_count() == 0) {
                all.remove(&key);
            }
        }
        ENDED.fetch_add(1, Relaxed);
        reaper::wake();
    }
}

/// Sessions have ended whose globals are still there.
pub(crate) fn any_ended() -> bool {
    ENDED.load(Relaxed) > 0
}

/// When the last collection ended and how long it took.
static LAST_COLLECTION: Mutex<Option<(Instant, Duration)>> = Mutex::new(None);

/// Globals and the functions in them refer to each other, so only the cycle collector frees them. Called with the
/// GIL and without the server lock, before a script runs and by the reaper; collects seldom enough to stay below 5 %
/// of the time.
pub(crate) fn collect_ended(py: Python<'_>) {
    let ended = ENDED.load(Relaxed);
    if ended == 0 {
        return;
    }
    let now = Instant::now();
    let mut last = LAST_COLLECTION.lock();
    if let Some((when, cost)) = *last {
        let rest = if ended >= 64 {
            Duration::ZERO
        } else {
            Duration::from_secs(1)
        };
        if now.duration_since(when) < rest.max(cost * 20) {
            return;
        }
    }
    // Claims the turn before the collection, which may run Python code and let other threads in.
    *last = Some((now, last.map_or(Duration::ZERO, |(_, cost)| cost)));
    drop(last);
    ENDED.fetch_sub(ended, Relaxed);
    let before = cpu_time();
    // An error of a finaliser is reported by the interpreter itself; nothing is left to do here.
    let _ = runtime().collect_garbage.call0(py);
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
