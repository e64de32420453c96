//! A server that knows a handful of commands.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use oxigears_coordinator::{
    codec::{Cursor, Item, RecordBatch},
    registry::EventSource,
};
use parking_lot::{Mutex, RawMutex, lock_api::RawMutex as _};

use crate::{
    Acting, AtOnce, InitOptions, Invoked, Invoker, LogLevel, RegistrationDraft, Reply, RunRequest, Server, Session,
    TimerDraft, WhenOver, initialize,
};

pub(super) struct Fake {
    strings: Mutex<HashMap<Vec<u8>, i64>>,
    texts: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    pub(super) log: Mutex<Vec<(LogLevel, String)>>,
    pub(super) started: Mutex<Vec<RunRequest>>,
    /// Who waits for them.
    pub(super) waiting: Mutex<Vec<WhenOver>>,
    /// Builders that were made.
    pub(super) builders: AtomicUsize,
    /// Names of triggers that are taken.
    pub(super) taken: Mutex<HashSet<Vec<u8>>>,
    /// Sync triggers, for RG.TRIGGER.
    pub(super) triggers: Mutex<HashMap<Vec<u8>, Arc<Invoker>>>,
    /// What `register_timer` got.
    pub(super) timers: Mutex<Vec<TimerDraft>>,
    /// What `register_now` got.
    pub(super) registered: Mutex<Vec<RegistrationDraft>>,
    lock: RawMutex,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            strings: Mutex::default(),
            texts: Mutex::default(),
            log: Mutex::default(),
            started: Mutex::default(),
            waiting: Mutex::default(),
            builders: AtomicUsize::new(0),
            taken: Mutex::default(),
            triggers: Mutex::default(),
            timers: Mutex::default(),
            registered: Mutex::default(),
            lock: RawMutex::INIT,
        }
    }
}

thread_local! {
    static LOCKED: Cell<usize> = const { Cell::new(0) };
    /// Triggers within each other.
    static NESTED: Cell<usize> = const { Cell::new(0) };
    /// What `cluster_size` says on this thread.
    pub(super) static SHARDS: Cell<usize> = const { Cell::new(1) };
    /// What this thread acts as.
    pub(super) static ACTING: RefCell<Acting> = const { RefCell::new(None) };
    pub(super) static NO_TRACEBACKS: Cell<bool> = const { Cell::new(false) };
}

impl Server for Fake {
    fn execute(&self, args: &[Vec<u8>]) -> Result<Reply, String> {
        // Waits for the lock as a real server would.
        if !self.lock_held() {
            self.lock.lock();
            // SAFETY: locked by this thread just now.
            unsafe { self.lock.unlock() };
        }
        let word = String::from_utf8_lossy(&args[0]).to_lowercase();
        match (word.as_str(), &args[1..]) {
            ("whoami", []) => Ok(Reply::Bulk(ACTING.with_borrow(|acting| {
                match acting.as_ref().and_then(|any| any.downcast_ref::<String>()) {
                    Some(name) => name.clone().into_bytes(),
                    None => b"all".to_vec(),
                }
            }))),
            ("ping", []) => Ok(Reply::Simple(b"PONG".to_vec())),
            ("incr", [key]) => {
                let mut strings = self.strings.lock();
                let n = strings.entry(key.clone()).or_insert(0);
                *n += 1;
                Ok(Reply::Int(*n))
            }
            ("set", [key, value]) => {
                self.texts.lock().insert(key.clone(), value.clone());
                Ok(Reply::Simple(b"OK".to_vec()))
            }
            ("get", [key]) => Ok(match (self.texts.lock().get(key), self.strings.lock().get(key)) {
                (Some(text), _) => Reply::Bulk(text.clone()),
                (None, Some(n)) => Reply::Bulk(n.to_string().into_bytes()),
                _ => Reply::Null,
            }),
            ("echo", args) => Ok(Reply::Array(args.iter().map(|a| Reply::Bulk(a.clone())).collect())),
            ("resp3", []) => Ok(Reply::Array(vec![
                Reply::Map(vec![(Reply::Bulk(b"a\xff".to_vec()), Reply::Double(1.5))]),
                Reply::Set(vec![Reply::Array(vec![Reply::Int(1)])]),
                Reply::Bool(true),
                Reply::BigNumber("36893488147419103232".into()),
                Reply::Null,
                Reply::Error("ERR x\r\n".into()),
            ])),
            ("rg.trigger", args) => {
                let invoker = self.triggers.lock().get(&args[0]).cloned();
                let Some(invoker) = invoker else {
                    return Err("ERR subcommand not found".into());
                };
                // As the server does: nested commands take its stack, of which Python knows nothing.
                if NESTED.get() >= 200 {
                    return Err("ERR commands of functions are nested too deeply".into());
                }
                NESTED.set(NESTED.get() + 1);
                // As a module's command on the thread that runs it: with the lock held.
                while !self.try_lock(Duration::ZERO, &|| true) {
                    std::thread::yield_now();
                }
                let called = invoker.call(args, Some(Arc::new(AtOnce)));
                self.unlock();
                NESTED.set(NESTED.get() - 1);
                let Invoked::Done(outcome) = called else {
                    panic!("postponed where nobody can wait");
                };
                match outcome.errors.into_iter().next() {
                    Some(text) => Ok(Reply::Error(text)),
                    None => Ok(Reply::Array(texts(&outcome.results))),
                }
            }
            ("wrong", []) => Ok(Reply::Error("WRONGTYPE Operation against a key\r\n".into())),
            _ => Err(format!("ERR unknown command '{word}'")),
        }
    }

    fn execute_now(&self, args: &[Vec<u8>]) -> Option<Result<Reply, String>> {
        self.try_lock(Duration::ZERO, &|| true).then(|| {
            let outcome = self.execute(args);
            self.unlock();
            outcome
        })
    }

    fn try_lock(&self, wait: Duration, go_on: &dyn Fn() -> bool) -> bool {
        let start = Instant::now();
        let mut locked = self.lock_held() || self.lock.try_lock();
        while !locked && go_on() && start.elapsed() < wait {
            std::thread::yield_now();
            locked = self.lock.try_lock();
        }
        LOCKED.with(|l| l.set(l.get() + usize::from(locked)));
        locked
    }

    fn unlock(&self) {
        LOCKED.with(|l| l.set(l.get().checked_sub(1).expect("unlock without lock")));
        if !self.lock_held() {
            // SAFETY: the count said that this thread holds the lock.
            unsafe { self.lock.unlock() };
        }
    }

    fn lock_held(&self) -> bool {
        LOCKED.with(Cell::get) > 0
    }

    fn hashtag(&self) -> Option<String> {
        Some("06S".into())
    }

    fn log(&self, level: LogLevel, message: &str) {
        self.log.lock().push((level, message.to_owned()));
    }

    fn config_get(&self, key: &str) -> Option<String> {
        (key == "FooBar").then(|| "v1".into())
    }

    fn cluster_size(&self) -> usize {
        SHARDS.with(Cell::get)
    }

    fn traceback_enabled(&self) -> bool {
        !NO_TRACEBACKS.with(Cell::get)
    }

    fn profile_enabled(&self) -> bool {
        false
    }

    fn start_run(&self, request: RunRequest, when_over: WhenOver) -> Result<String, String> {
        assert!(request.nested);
        self.waiting.lock().push(when_over);
        let mut started = self.started.lock();
        started.push(request);
        Ok(format!("{}-{}", "0".repeat(40), started.len()))
    }

    fn coroutine_refusal(&self) -> Option<String> {
        None
    }

    fn acting(&self) -> Acting {
        ACTING.with_borrow(Clone::clone)
    }

    fn act_as(&self, acting: Acting) -> Acting {
        ACTING.replace(acting)
    }

    fn builder_made(&self) {
        self.builders.fetch_add(1, Relaxed);
    }

    fn new_registration(
        &self,
        _session: &Session,
        source: &EventSource,
        earlier: &[RegistrationDraft],
    ) -> Result<String, String> {
        if earlier.iter().any(|draft| draft.source == *source) {
            return Err("trigger already registered in this session".into());
        }
        if matches!(source, EventSource::Command { trigger, .. } if self.taken.lock().contains(&trigger[..])) {
            return Err("trigger already registered".into());
        }
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        Ok(format!("{}-{}", "0".repeat(40), NUMBER.fetch_add(1, Relaxed)))
    }

    fn register_now(&self, draft: RegistrationDraft) -> Result<(), String> {
        assert!(!pyo3_holds_gil(), "register_now is called without the GIL");
        self.registered.lock().push(draft);
        Ok(())
    }

    fn register_timer(&self, draft: TimerDraft) -> Result<bool, String> {
        assert_eq!(
            pyo3_holds_gil(),
            self.lock_held(),
            "the GIL is kept only with the server lock"
        );
        let mut timers = self.timers.lock();
        let is_there = draft.key.is_some() && timers.iter().any(|other| other.key == draft.key);
        if !is_there {
            timers.push(draft);
        }
        Ok(!is_there)
    }
}

/// Results that are texts.
fn texts(batches: &[RecordBatch]) -> Vec<Reply> {
    let mut texts = Vec::new();
    for batch in batches {
        let mut cursor = Cursor::new(&batch.bytes);
        for _ in 0..batch.records {
            texts.push(match cursor.next_item() {
                Ok(Item::Str(text)) => Reply::Bulk(text.to_vec()),
                other => Reply::Error(format!("{other:?}")),
            });
        }
    }
    texts
}

fn pyo3_holds_gil() -> bool {
    // SAFETY: the interpreter is initialised.
    unsafe { pyo3::ffi::PyGILState_Check() == 1 }
}

static FAKE: OnceLock<Arc<Fake>> = OnceLock::new();

/// Starts the interpreter with the fake server, once per test process.
pub(super) fn start() -> &'static Fake {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let fake = FAKE.get_or_init(Arc::default).clone();
        initialize(
            InitOptions {
                override_allocators: true,
                site_dirs: Vec::new(),
            },
            fake,
        )
        .unwrap();
    });
    FAKE.get().unwrap()
}
