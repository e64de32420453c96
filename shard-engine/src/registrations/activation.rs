//! The activation thread: brings what is active on this shard to the newest committed state.
//!
//! Functions are loaded first, without the server lock (`loading`); what takes long there comes later. Then one section
//! under GIL and server lock changes the table and calls `onUnregistered` and `onRegistered`, so that no client sees anything
//! in between. It always goes to the newest state: what came and went meanwhile never shows. On a server that is alone it also
//! makes the changes.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use oxigears_coordinator::{
    consensus::ProposeError,
    engine::{PYTHON_STACK_BYTES, panic_text},
    limits as bounds,
    plan::FnId,
    registry::{Command, Difference, Registration, Registry},
};
use oxigears_python_api as python;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::{
    active::{Active, Loaded},
    calls,
    change::{self, Done, Failure},
    intercept, keys, limits, loading, prepared, registrations, streams,
    table::{Changes, Table},
};
use crate::{
    identity,
    module::module,
    persistence,
    redis::{
        cluster,
        context::server_flags,
        lock::{self, ServerLock},
        log, replicate,
    },
};

type Then = Box<dyn FnOnce(bool) + Send>;
/// Registrations that are gone, and whether executions that have not started are to be aborted.
type Removed = Vec<(Arc<Active>, bool)>;

/// A change on a server that is alone.
struct Change {
    command: Command,
    /// Taken by who answers: the activation thread, or the look at deadlines.
    done: Mutex<Option<Done>>,
    deadline_ms: u64,
}

struct Waiter {
    index: u64,
    deadline_ms: u64,
    then: Then,
}

#[derive(Default)]
struct Work {
    /// There may be a newer state.
    wanted: bool,
    changes: VecDeque<Arc<Change>>,
    /// The change that is being made.
    current: Option<Arc<Change>>,
    /// Calls of `onUnregistered` that were due where no Python could run.
    farewells: Vec<Arc<Active>>,
    waiters: Vec<Waiter>,
}

/// What is active, and the thread that sees to it.
#[derive(Default)]
pub struct Activation {
    table: RwLock<Table>,
    work: Mutex<Work>,
    wake: Condvar,
    /// A dataset is being loaded: what it brings becomes active at its end.
    loading: AtomicBool,
    /// A dataset was loaded: everything in it counts as new.
    reloaded: AtomicBool,
    /// Such datasets so far.
    datasets: AtomicU64,
    /// Functions whose loading took long: their registrations are active without them.
    late: Mutex<loading::ById>,
}

/// How a round ended.
#[derive(PartialEq)]
enum Round {
    Active,
    /// Functions are missing that can be loaded outside.
    Again,
    /// Not while the server loads its dataset.
    Suspended,
}

thread_local! {
    static IS_ACTIVATION: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// This is the activation thread, or code that it runs.
pub fn is_activation_thread() -> bool {
    IS_ACTIVATION.get()
}

impl Activation {
    /// Starts the thread.
    pub fn start(&'static self) -> std::io::Result<()> {
        let run = move || {
            IS_ACTIVATION.set(true);
            loop {
                let caught = catch_unwind(AssertUnwindSafe(|| self.work_once()));
                if let Err(panic) = caught {
                    log::warning(&format!(
                        "the activation of registrations met an internal error: {}",
                        panic_text(panic.as_ref())
                    ));
                    std::thread::sleep(limits::LOOK_EVERY);
                    self.wake();
                }
            }
        };
        let thread = std::thread::Builder::new().name("oxi-activate".into());
        thread.stack_size(PYTHON_STACK_BYTES).spawn(run).map(drop)
    }

    /// What is active. The lock is held for moments only, and never while Python runs.
    pub fn table(&self) -> &RwLock<Table> {
        &self.table
    }

    /// There may be a newer state. Never blocks.
    pub fn wake(&self) {
        self.work.lock().wanted = true;
        self.wake.notify_one();
    }

    /// Makes a change on a server that is alone.
    pub fn change(&self, command: Command, done: Done) {
        let mut work = self.work.lock();
        if work.changes.len() >= limits::WAITING_CHANGES {
            drop(work);
            return done(Err(ProposeError::Busy(limits::WAITING_CHANGES).into()));
        }
        let deadline = module().now_ms() + bounds::PROPOSE_TIMEOUT.as_millis() as u64;
        work.changes.push_back(Arc::new(Change {
            command,
            done: Mutex::new(Some(done)),
            deadline_ms: deadline,
        }));
        drop(work);
        self.wake.notify_one();
    }

    /// Calls `then(true)` once the state of `index` is active here, on any thread: it must not block. `then(false)` if
    /// that takes longer than `wait`.
    pub fn when_active(&self, index: u64, wait: Duration, then: Then) {
        let mut work = self.work.lock();
        // Under the lock, so that an activation that ends now finds the waiter or is seen here.
        let is_active = self.index() >= index;
        if is_active || work.waiters.len() >= limits::WAITERS {
            drop(work);
            return then(is_active);
        }
        let deadline_ms = module().now_ms() + wait.as_millis() as u64;
        work.waiters.push(Waiter {
            index,
            deadline_ms,
            then,
        });
    }

    /// Waits until the state of `index` is active here; false if it is not in time. For threads that may block.
    pub fn await_active(&self, index: u64, wait: Duration) -> bool {
        let (sender, receiver) = std::sync::mpsc::channel();
        // The receiver is gone only if this thread is.
        self.when_active(
            index,
            wait,
            Box::new(move |active| {
                let _ = sender.send(active);
            }),
        );
        receiver.recv_timeout(wait).unwrap_or(false)
    }

    /// Index of the state that is active.
    pub fn index(&self) -> u64 {
        self.table.read().state().index()
    }

    /// This node has started a moment ago, and what is active may be older than what the cluster has decided.
    pub fn is_behind(&self) -> bool {
        let awaited = registrations().service.awaited_index();
        awaited > 0 && self.index() < awaited
    }

    /// Looks at deadlines. Called now and then on the main thread.
    pub fn look(&self, now_ms: u64) {
        let mut late = Vec::new();
        let mut work = self.work.lock();
        if work.waiters.iter().any(|w| w.deadline_ms <= now_ms) {
            let (over, rest) = std::mem::take(&mut work.waiters)
                .into_iter()
                .partition(|w| w.deadline_ms <= now_ms);
            (late, work.waiters) = (over, rest);
        }
        let changes = work.changes.iter().chain(&work.current);
        let overdue: Vec<Arc<Change>> = changes.filter(|c| c.deadline_ms <= now_ms).cloned().collect();
        drop(work);
        late.into_iter().for_each(|waiter| (waiter.then)(false));
        overdue.iter().for_each(|change| give_up(change));
        if self.table.read().is_untidy() {
            let gone = self.table.write().tidy(now_ms);
            drop(gone);
        }
    }

    /// A dataset is being loaded.
    pub fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Acquire)
    }

    /// A dataset is about to be loaded; `replaced` if the registry comes with it.
    pub fn load_started(&self, replaced: bool) {
        self.loading.store(true, Ordering::Release);
        intercept::set_loading(true);
        if replaced {
            self.reloaded.store(true, Ordering::Release);
            let mut late = self.late.lock();
            self.datasets.fetch_add(1, Ordering::AcqRel);
            let gone = std::mem::take(&mut *late);
            drop(late);
            drop(gone);
        }
    }

    /// It is there, or could not be loaded.
    pub fn load_ended(&self) {
        self.loading.store(false, Ordering::Release);
        intercept::set_loading(false);
        self.wake();
    }

    /// What was loaded last is not active yet, and there was or is something.
    pub fn is_due(&self) -> bool {
        self.reloaded.load(Ordering::Acquire) && !(self.base().is_empty() && registrations().service.state().is_empty())
    }

    /// The newest committed state is active.
    pub fn is_current(&self) -> bool {
        !self.reloaded.load(Ordering::Acquire) && Arc::ptr_eq(&self.base(), &registrations().service.state())
    }

    fn work_once(&'static self) {
        let (change, farewells) = {
            let mut work = self.work.lock();
            while !work.wanted && work.changes.is_empty() {
                if loading::is_some_left() {
                    self.wake.wait_for(&mut work, limits::LOOK_EVERY);
                    MutexGuard::unlocked(&mut work, || loading::stop_unwanted(is_wanted));
                } else {
                    self.wake.wait(&mut work);
                }
            }
            work.wanted = false;
            work.current = work.changes.pop_front();
            (work.current.clone(), std::mem::take(&mut work.farewells))
        };
        if !farewells.is_empty() {
            python::with_server_locked(|| farewells.iter().for_each(|active| say_farewell(active)));
        }
        self.catch_up();
        if let Some(change) = change {
            self.change_alone(&change);
            self.work.lock().current = None;
        }
    }

    /// Makes the newest state the active one.
    fn catch_up(&'static self) {
        let mut loaded = HashMap::new();
        for round in 0.. {
            let gone: Vec<_> = self.late.lock().extract_if(|id, _| !is_wanted(id)).collect();
            // Freed outside the lock.
            drop(gone);
            let (base, newest) = (self.base(), registrations().service.state());
            if self.is_current() && self.late.lock().is_empty() {
                break;
            }
            if self.loading.load(Ordering::Acquire) {
                return;
            }
            let difference = self.difference(&base, &newest);
            if difference.is_empty() {
                if self.advance(&base, newest) {
                    break;
                }
                continue;
            }
            self.load(&difference, &mut loaded);
            let may_load = round >= limits::LOADING_ROUNDS;
            let (ended, removed) = python::with_server_locked(|| {
                let guard = lock::lock();
                self.activate(&guard, &mut loaded, may_load)
            });
            abort_unstarted(&removed);
            match ended {
                Round::Active => break,
                Round::Again => {}
                Round::Suspended => {
                    // The end of the load wakes this thread; so does this, if it was missed.
                    std::thread::sleep(limits::LOOK_EVERY);
                    return self.wake();
                }
            }
        }
        self.tell_waiters();
    }

    fn base(&self) -> Arc<Registry> {
        self.table.read().state().clone()
    }

    fn add_what_came(&self, loaded: &mut loading::ById) {
        let late = self.late.lock();
        loaded.extend(late.iter().map(|(id, ready)| (id.clone(), ready.clone())));
    }

    /// Loads the functions that are missing, without locks.
    fn load(&'static self, difference: &Difference, loaded: &mut loading::ById) {
        self.add_what_came(loaded);
        let missing = difference.added.iter().filter(|r| !loaded.contains_key(&r.id));
        let dataset = self.datasets.load(Ordering::Acquire);
        let came_late = move |registration: &Registration, ready| {
            let mut late = self.late.lock();
            // Functions of another dataset belong to sessions that are gone.
            let is_of_now = self.datasets.load(Ordering::Acquire) == dataset;
            let not_kept = match is_of_now {
                true => late.insert(registration.id.clone(), ready),
                false => Some(ready),
            };
            drop(late);
            drop(not_kept);
            self.wake();
        };
        loading::load_all(missing.cloned().collect(), loaded, Arc::new(came_late));
    }

    fn difference(&self, base: &Registry, newest: &Registry) -> Difference {
        if !self.reloaded.load(Ordering::Acquire) {
            let mut difference = Difference::between(base, newest);
            self.add_late(base, newest, &mut difference);
            return difference;
        }
        let nothing = Registry::default();
        let (gone, new) = (
            Difference::between(base, &nothing),
            Difference::between(&nothing, newest),
        );
        Difference {
            removed: gone.removed,
            sessions_removed: gone.sessions_removed,
            clear_statistics: false,
            ..new
        }
    }

    /// What is active without its functions is replaced by itself with them.
    fn add_late(&self, base: &Registry, newest: &Registry, difference: &mut Difference) {
        for id in self.late.lock().keys() {
            let (Some(was), Some(is)) = (base.registration(id), newest.registration(id)) else {
                continue;
            };
            if difference.added.iter().all(|r| r.id != *id) {
                difference.changed.retain(|r| r.id != *id);
                difference.removed.push((was, false));
                difference.added.push(is);
            }
        }
    }

    /// Takes over a state that differs only in its index; false if the active one is another by now.
    fn advance(&self, base: &Arc<Registry>, newest: Arc<Registry>) -> bool {
        let mut table = self.table.write();
        let same = Arc::ptr_eq(table.state(), base);
        if same {
            table.advance(newest);
            self.reloaded.store(false, Ordering::Release);
        }
        same
    }

    /// Makes the newest state the active one, with the functions in `loaded`; loads what is missing there if it may.
    fn activate(&self, guard: &ServerLock, loaded: &mut HashMap<Arc<str>, Loaded>, may_load: bool) -> (Round, Removed) {
        if self.loading.load(Ordering::Acquire) || server_flags(guard).loading {
            return (Round::Suspended, Vec::new());
        }
        let newest = registrations().service.state();
        let difference = self.difference(&self.base(), &newest);
        self.add_what_came(loaded);
        let missing = |r: &&Arc<Registration>| !loaded.contains_key(&r.id);
        if !may_load && difference.added.iter().any(|r| missing(&r)) {
            return (Round::Again, Vec::new());
        }
        for registration in &difference.added {
            load_into(loaded, registration);
        }
        let changes = self.swap(guard, newest, &difference, loaded);
        for (active, _) in &changes.removed {
            say_farewell(active);
        }
        for active in &changes.added {
            let function = active.registration.on_registered;
            call(active, function, "onRegistered");
        }
        (Round::Active, changes.removed)
    }

    fn swap(
        &self,
        guard: &ServerLock,
        newest: Arc<Registry>,
        difference: &Difference,
        loaded: &mut HashMap<Arc<str>, Loaded>,
    ) -> Changes {
        self.reloaded.store(false, Ordering::Release);
        let changes = self.table.write().change(guard, newest, difference, |registration| {
            // `load_into` has seen to it.
            loaded.remove(&registration.id).unwrap_or_else(|| load(registration))
        });
        let (patterns, has) = {
            let table = self.table.read();
            (table.patterns(), (table.has_streams(), table.has_hooks()))
        };
        for (active, _) in &changes.removed {
            module().engine.forget_fired(&active.registration.id);
        }
        let mut late = self.late.lock();
        for active in &changes.added {
            let id = &active.registration.id;
            if late.get(id).is_some_and(|ready| ready.is_same(&active.core.loaded)) {
                late.remove(id);
            }
        }
        drop(late);
        keys::activated(guard, &patterns, has);
        calls::activated(guard, &changes.added);
        intercept::changed(guard, self, difference);
        for active in &changes.added {
            if let Err(why) = &active.core.loaded.code {
                log::warning(&format!(
                    "the functions of registration {} can not be loaded on this shard: its triggers answer with an error, its \
                     events fail, its streams wait: {why}",
                    active.registration.id
                ));
            }
        }
        streams::changed(guard, &changes);
        changes
    }

    /// Tells those who wait for what is active now.
    fn tell_waiters(&self) {
        let ready: Vec<Waiter> = {
            let mut work = self.work.lock();
            let index = self.index();
            if work.waiters.iter().all(|w| w.index > index) {
                return;
            }
            let (ready, rest) = std::mem::take(&mut work.waiters)
                .into_iter()
                .partition(|w| w.index <= index);
            work.waiters = rest;
            ready
        };
        ready.into_iter().for_each(|waiter| (waiter.then)(true));
    }

    /// A change that was handed in to this thread.
    fn change_alone(&self, change: &Change) {
        if registrations().service.is_group() {
            // The server found others meanwhile.
            if let Some(done) = change.done.lock().take() {
                change::propose(change.command.clone(), done);
            }
            return;
        }
        let mut loaded = HashMap::new();
        if let Command::ChangeSession(change) = &change.command {
            for new in &change.registrations {
                if let Some(ready) = prepared::take(&new.id, &new.plan) {
                    loaded.insert(new.id.clone(), ready);
                }
            }
        }
        let made = python::with_server_locked(|| {
            let guard = lock::lock();
            // Deadlines are looked at under the server lock as well: who has answered already wants no change any more.
            let done = change.done.lock().take()?;
            let (outcome, removed) = self.apply_and_activate(&guard, &change.command, &mut loaded);
            Some((done, outcome, removed))
        });
        let Some((done, outcome, removed)) = made else { return };
        abort_unstarted(&removed);
        self.tell_waiters();
        done(outcome.map(drop));
    }

    /// Changes the registry of a server that is alone, with GIL and server lock held.
    fn apply_and_activate(
        &self,
        guard: &ServerLock,
        command: &Command,
        loaded: &mut HashMap<Arc<str>, Loaded>,
    ) -> (Result<u64, Failure>, Removed) {
        let index = match apply(guard, command) {
            Ok(index) => index,
            Err(e) => return (Err(e), Vec::new()),
        };
        let (round, removed) = self.activate(guard, loaded, true);
        if round == Round::Suspended {
            self.wake();
        }
        (Ok(index), removed)
    }

    /// Makes a change on a server that is alone at once. For a thread that holds the server lock, and that has the GIL
    /// or may take it: Python code that runs under the lock.
    pub fn change_here(
        &self,
        guard: &ServerLock,
        command: &Command,
        mut loaded: HashMap<Arc<str>, Loaded>,
    ) -> Result<u64, Failure> {
        let (outcome, removed) = self.apply_and_activate(guard, command, &mut loaded);
        abort_unstarted(&removed);
        self.tell_waiters();
        outcome
    }

    /// The same without Python, for what only removes. `onUnregistered` is called later, by the activation thread, which
    /// also does all of it if there is more to do.
    pub fn remove_here(&self, guard: &ServerLock, command: &Command) -> Result<u64, Failure> {
        let index = apply(guard, command)?;
        let newest = registrations().service.state();
        let difference = self.difference(&self.base(), &newest);
        if self.loading.load(Ordering::Acquire) || !difference.added.is_empty() {
            self.wake();
            return Ok(index);
        }
        let changes = self.swap(guard, newest, &difference, &mut HashMap::new());
        abort_unstarted(&changes.removed);
        let farewells = changes.removed.into_iter().map(|(active, _)| active);
        self.work.lock().farewells.extend(farewells);
        self.wake();
        Ok(index)
    }
}

/// Changes the registry of a server that is alone, and tells its replicas and its log.
fn apply(guard: &ServerLock, command: &Command) -> Result<u64, Failure> {
    let service = &registrations().service;
    if cluster::is_replica(guard) {
        return Err(Failure::Failed(change::READONLY.into()));
    }
    // A fail-over by hand would go to a replica that has not heard of the change.
    if replicate::is_paused(guard) {
        return Err(Failure::Failed(change::PAUSED.into()));
    }
    // Its log and its replicas are all that keeps the change.
    if let Some(text) = replicate::refusal_of_writes(guard) {
        return Err(Failure::Failed(text));
    }
    let index = service.apply_alone(command.clone())?;
    persistence::replicate(guard, command);
    Ok(index)
}

/// Answers who waits for a change that can not be made in time; it will not be made then. Under the server lock.
fn give_up(change: &Change) {
    if let Some(done) = change.done.lock().take() {
        let text = "ERR the registry can not be changed now, nothing was changed: the interpreter is busy, or writes are \
                    paused; try again";
        done(Err(Failure::Failed(text.into())));
    }
}

fn load_into(loaded: &mut HashMap<Arc<str>, Loaded>, registration: &Registration) {
    if !loaded.contains_key(&registration.id) {
        loaded.insert(registration.id.clone(), load(registration));
    }
}

/// The functions of a registration: those that were loaded before, or loads them.
fn load(registration: &Registration) -> Loaded {
    if let Some(ready) = prepared::take(&registration.id, &registration.plan) {
        return ready;
    }
    Loaded::from_plan(&registration.plan).unwrap_or_else(Loaded::unreadable)
}

fn abort_unstarted(removed: &[(Arc<Active>, bool)]) {
    for (active, abort) in removed {
        if *abort {
            module().engine.abort_unstarted(&active.registration.id);
            active.core.abort_waiting();
        } else {
            keys::comes_first(&active.core);
        }
    }
}

fn say_farewell(active: &Active) {
    call(active, active.registration.on_unregistered, "onUnregistered");
}

/// A registration with this id is to be active.
fn is_wanted(id: &str) -> bool {
    registrations().service.state().registration(id).is_some()
}

/// Calls a callback of a registration with the rights of its user; an error is only logged.
fn call(active: &Active, function: Option<FnId>, name: &str) {
    let (Some(function), Ok(code)) = (function, &active.core.loaded.code) else {
        return;
    };
    let _identity = identity::enter(active.core.loaded.user.clone());
    if let Err(text) = python::call_function(&code.functions, function, code.functions.session()) {
        log::warning(&format!(
            "{name} of registration {} failed: {text}",
            active.registration.id
        ));
    }
}
