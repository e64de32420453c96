//! A timer of `registerTE`: when it runs, and what ends it.
//!
//! A timer with a key is the key's value: it runs as long as the key holds it in database 0, also under a new name. It is
//! looked at before each call, so nothing that happens to the key is missed. Timers rest on replicas and while a
//! dataset is loaded; they go on with a whole period then. While the cluster is down they skip their turns.

use std::{
    any::Any,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use oxigears_coordinator::{
    engine::Pool,
    plan::{Mode, Plan, Reader},
};
use oxigears_python_api::{self as python, Functions, TimerDraft};
use parking_lot::Mutex;

use super::{
    Place,
    clock::{self, Alarm},
    inner_command, is_cluster_down, may_run, place,
    saved::Saved,
};
use crate::{
    identity,
    redis::{
        data_type::{self, Held},
        lock::{self, ServerLock},
        log,
    },
    registrations::{Errand, is_master, limits, registrations},
};

/// Threads that call the functions of timers: two, so that one that waits for the interpreter keeps no other waiting that
/// needs only a moment of the server's lock.
const THREADS: usize = 2;

/// A timer.
pub struct Timer {
    number: u64,
    /// Without `stopped`.
    saved: Saved,
    user: Option<Arc<str>>,
    /// Its key; `None`: it has none and lasts until the server ends.
    key: Mutex<Option<Vec<u8>>>,
    /// Loaded when they are needed first.
    functions: Mutex<Option<Functions>>,
    /// They could not be loaded, and the log says so.
    is_unloadable: AtomicBool,
    /// Its callback has failed.
    stopped: AtomicBool,
    /// It rests: nobody will ring it until it is woken.
    rests: AtomicBool,
}

/// All timers that are alive, and those without a key, which nothing else holds.
#[derive(Default)]
struct All {
    alive: HashMap<u64, Weak<Timer>>,
    loose: HashMap<u64, Arc<Timer>>,
}

static ALL: Mutex<Option<All>> = Mutex::new(None);
static NUMBERS: AtomicU64 = AtomicU64::new(0);

fn with_all<R>(f: impl FnOnce(&mut All) -> R) -> R {
    f(ALL.lock().get_or_insert_with(All::default))
}

/// The threads that call functions of timers; they start with the first timer.
pub fn pool() -> Option<&'static Pool> {
    static POOL: OnceLock<Option<Pool>> = OnceLock::new();
    let start = || {
        let on_panic = |text: String| log::warning(&format!("a timer met an internal error: {text}"));
        Pool::start("oxi-timer", THREADS, on_panic)
            .inspect_err(|e| {
                log::warning(&format!(
                    "no timer will run, because there are no threads for them: {e}"
                ))
            })
            .ok()
    };
    POOL.get_or_init(start).as_ref()
}

/// Timers that are alive.
pub fn count() -> usize {
    with_all(|all| all.alive.len())
}

/// One more would be too many.
pub fn is_full() -> bool {
    count() >= limits::TIMERS
}

/// The server is a master now, or has its dataset: timers that rest go on.
pub fn wake_all() {
    let alive: Vec<Arc<Timer>> = with_all(|all| all.alive.values().filter_map(Weak::upgrade).collect());
    for timer in &alive {
        if timer.rests.swap(false, Ordering::AcqRel) {
            timer.arm();
        }
    }
}

impl Timer {
    fn make(saved: Saved, key: Option<Vec<u8>>, functions: Option<Functions>) -> Arc<Timer> {
        let timer = Arc::new(Timer {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            user: saved.user.as_deref().map(Arc::from),
            stopped: AtomicBool::new(saved.stopped),
            saved: Saved {
                stopped: false,
                ..saved
            },
            key: Mutex::new(key),
            functions: Mutex::new(functions),
            is_unloadable: AtomicBool::new(false),
            rests: AtomicBool::new(false),
        });
        with_all(|all| {
            all.alive.insert(timer.number, Arc::downgrade(&timer));
            if timer.key.lock().is_none() {
                all.loose.insert(timer.number, timer.clone());
            }
        });
        timer.arm();
        timer
    }

    /// A timer that a script asked for.
    pub fn from_draft(draft: TimerDraft, user: Option<Arc<str>>) -> Arc<Timer> {
        let saved = Saved {
            period_ms: draft.period_ms,
            stopped: false,
            session: draft.functions.session().id().to_owned(),
            user: user.map(|user| user.to_string()),
            code: draft.code,
        };
        Timer::make(saved, draft.key, Some(draft.functions))
    }

    /// The timer of a key, from its bytes.
    pub fn from_bytes(key: &[u8], bytes: &[u8]) -> Result<Arc<Timer>, String> {
        Ok(Timer::make(Saved::decode(bytes)?, Some(key.to_vec()), None))
    }

    /// For a log line.
    fn name(&self) -> String {
        match &*self.key.lock() {
            Some(key) => format!("the timer of key `{}`", String::from_utf8_lossy(key)),
            None => format!("a timer without key of session {}", self.saved.session),
        }
    }

    /// Rings after a period.
    fn arm(self: &Arc<Self>) {
        // A period of 0 would keep the clock busy.
        self.arm_after(Duration::from_millis(self.saved.period_ms.max(1)));
    }

    fn arm_after(self: &Arc<Self>, pause: Duration) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        let alarm: Arc<dyn Alarm> = self.clone();
        if let Some(at) = Instant::now().checked_add(pause) {
            clock::set(at, Arc::downgrade(&alarm));
        }
    }

    fn rest(&self) {
        self.rests.store(true, Ordering::Release);
        // The role may have changed since it was looked at; who wakes looks at the flag.
        let guard = lock::lock();
        if may_run(&guard) {
            drop(guard);
            wake_all();
        }
    }

    /// One turn: on a thread of the pool, without locks.
    fn turn(self: &Arc<Self>) {
        if !is_master() {
            return self.rest();
        }
        let Some(functions) = self.functions.lock().clone() else {
            return self.load();
        };
        let _identity = identity::enter(self.user.clone());
        let outcome = python::with_server_locked(|| self.call(&lock::lock(), &functions));
        match outcome {
            Turn::Done => self.arm(),
            Turn::NotNow => self.rest(),
            Turn::Stopped => {}
        }
    }

    /// Has its callback loaded, and goes on with its turn then; until then nobody rings it. Loading runs code of the user, which
    /// may take long: on another thread, where it keeps no other timer waiting.
    fn load(self: &Arc<Self>) {
        let plan = Plan {
            reader: Reader::Command,
            ops: Vec::new(),
            mode: Mode::AsyncLocal,
            function_names: vec![String::new()],
            code: self.saved.code.clone(),
            session: self.saved.session.clone(),
            user: None,
        };
        // Its key may go meanwhile, and it with its key.
        let (timer, user) = (Arc::downgrade(self), self.user.clone());
        let its = timer.clone();
        registrations().helpers.timers.submit(Errand {
            line: self.saved.session.clone(),
            is_wanted: Box::new(move || its.strong_count() > 0),
            load: Arc::new(move |interrupt| {
                let identity = identity::enter(user.clone());
                let loaded = interrupt.during(|| python::load_functions(&plan));
                drop(identity);
                if let Some(timer) = timer.upgrade() {
                    timer.has_loaded(loaded);
                }
            }),
        });
    }

    fn has_loaded(self: Arc<Self>, loaded: Result<Functions, String>) {
        match loaded {
            Ok(functions) => {
                *self.functions.lock() = Some(functions);
                self.ring();
            }
            Err(why) => {
                if !self.is_unloadable.swap(true, Ordering::AcqRel) {
                    log::warning(&format!(
                        "{} can not run, its function can not be loaded, which is tried again: {why}",
                        self.name()
                    ));
                }
                let pause = Duration::from_millis(self.saved.period_ms).max(limits::LOADED_AGAIN);
                self.arm_after(pause);
            }
        }
    }

    fn call(self: &Arc<Self>, guard: &ServerLock, functions: &Functions) -> Turn {
        if !may_run(guard) {
            return Turn::NotNow;
        }
        if self.stopped.load(Ordering::Acquire) || !self.is_in_place(guard) || is_cluster_down(guard) {
            // Stopped by what was loaded meanwhile, in another database, on its way to another shard, about to be freed,
            // or bound to fail: nothing runs, but it may come back. While the function runs nothing of this changes: the
            // server stays locked.
            return Turn::Done;
        }
        match python::call_function(functions, 0, functions.session()) {
            Ok(()) => Turn::Done,
            Err(why) => {
                // In the same hold of the lock: a fail-over may be next, and its replica is to know.
                self.stop(guard, &why);
                Turn::Stopped
            }
        }
    }

    /// Its key holds it, and is this shard's: while a slot moves, commands on other keys of it fail.
    fn is_in_place(&self, guard: &ServerLock) -> bool {
        let key = self.key.lock().clone();
        key.is_none_or(|key| self.is_held_by(guard, &key) && place(guard, &key) == Place::Here)
    }

    fn is_held_by(&self, guard: &ServerLock, key: &[u8]) -> bool {
        let there = data_type::get(guard, key).and_then(|held| held.as_any().downcast::<Timer>().ok());
        there.is_some_and(|there| there.number == self.number)
    }

    /// It has failed: it does not run any more, and its replicas and log know it.
    fn stop(&self, guard: &ServerLock, why: &str) {
        log::warning(&format!(
            "{} failed and is stopped for good{}: {why}",
            self.name(),
            if self.key.lock().is_some() {
                ", its key stays"
            } else {
                ""
            }
        ));
        self.mark_stopped();
        let loose = with_all(|all| all.loose.remove(&self.number));
        drop(loose);
        let key = self.key.lock().clone();
        if let Some(key) = key
            && self.is_held_by(guard, &key)
            && place(guard, &key) != Place::Elsewhere
            && is_master()
        {
            inner_command::send_stop(guard, &key);
        }
    }

    /// It does not run any more; its key stays.
    pub fn mark_stopped(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}

/// How a turn ended.
enum Turn {
    Done,
    /// The server is a replica or loads.
    NotNow,
    /// It has failed.
    Stopped,
}

impl Alarm for Timer {
    fn ring(self: Arc<Self>) {
        if let Some(pool) = pool() {
            // The key may go before its turn comes: then nothing is done.
            let timer = Arc::downgrade(&self);
            pool.submit(move || {
                if let Some(timer) = timer.upgrade() {
                    timer.turn();
                }
            });
        }
    }
}

impl Held for Timer {
    fn saved(&self) -> Vec<u8> {
        Saved {
            stopped: self.stopped.load(Ordering::Acquire),
            ..self.saved.clone()
        }
        .encode()
    }

    fn copied(&self, to: &[u8]) -> Option<Arc<dyn Held>> {
        if is_full() {
            return None;
        }
        let saved = Saved {
            stopped: self.stopped.load(Ordering::Acquire),
            ..self.saved.clone()
        };
        Some(Timer::make(saved, Some(to.to_vec()), self.functions.lock().clone()))
    }

    fn renamed(&self, key: &[u8]) {
        *self.key.lock() = Some(key.to_vec());
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let number = self.number;
        with_all(|all| all.alive.remove(&number));
    }
}
