//! Registrations of TimerReader: each master looks at the clock for itself, and at each moment one of them fires.
//!
//! Without `everywhere` that is the owner of the slot that the registration's id hashes to: so it changes with fail-overs
//! and with slots that move. The owner is looked at under the server lock at the moment of the firing; where two might
//! fire, none does. What comes while the last firing still runs is skipped and counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use hashbrown::HashMap;
use oxigears_coordinator::{
    codec::{RecordBatch, put_head, put_int, put_tagged, tag},
    engine::{Execution, Fired, Order},
    execution::Phase,
    registry::{EventSource, RegisterMode},
    topology::{Slot, key_slot},
};
use oxigears_python_api::{self as python, Invoked};
use parking_lot::Mutex;

use super::{
    clock::{self, Alarm},
    may_run, pulse,
    ticker::{Now, Tick, Ticker},
    timer::pool,
};
use crate::{
    mesh,
    module::module,
    redis::{
        cluster,
        lock::{self, ServerLock},
        log,
    },
    registrations::{Active, Core, End, continuing, is_master, registrations, sync},
};

/// Nothing of it is under way.
const IDLE: u8 = 0;
/// A moment has come; whether it is this shard's is not known yet.
const WAITING: u8 = 1;
/// An execution runs.
const FIRING: u8 = 2;

/// A registration that the clock fires.
struct Watch {
    id: Arc<str>,
    core: Arc<Core>,
    everywhere: bool,
    start: Instant,
    moments: Mutex<Moments>,
    stage: AtomicU8,
}

struct Moments {
    ticker: Ticker,
    /// Came while it was not known whether they are this shard's.
    unclear: u64,
    /// Firings on this shard.
    fired: i64,
}

static WATCHES: Mutex<Option<HashMap<Arc<str>, Arc<Watch>>>> = Mutex::new(None);

/// A registration is active, or has changed.
pub fn watch(active: &Active) {
    let EventSource::Timer { schedule, everywhere } = &active.registration.source else {
        return;
    };
    let mut watches = WATCHES.lock();
    let watches = watches.get_or_insert_with(HashMap::new);
    let id = &active.registration.id;
    if watches
        .get(id)
        .is_some_and(|known| Arc::ptr_eq(&known.core, &active.core))
    {
        return;
    }
    let start = Instant::now();
    let ticker = match Ticker::new(schedule, now_since(start)) {
        Ok(ticker) => ticker,
        // Registered by a version that knows more.
        Err(why) => return log::warning(&format!("registration {id} never fires on this shard: {why}")),
    };
    let watch = Arc::new(Watch {
        id: id.clone(),
        core: active.core.clone(),
        everywhere: *everywhere,
        start,
        moments: Mutex::new(Moments {
            ticker,
            unclear: 0,
            fired: 0,
        }),
        stage: AtomicU8::new(IDLE),
    });
    watch.set_alarm();
    watches.insert(id.clone(), watch);
}

/// It is not active any more.
pub fn unwatch(active: &Active) {
    let mut watches = WATCHES.lock();
    let gone = watches.as_mut().and_then(|all| all.remove(&active.registration.id));
    drop(watches);
    drop(gone);
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The clocks, of something that began then.
pub(super) fn now_since(start: Instant) -> Now {
    Now {
        elapsed: start.elapsed(),
        wall_ms: wall_ms(),
    }
}

impl Alarm for Watch {
    fn ring(self: Arc<Self>) {
        let tick = self.moments.lock().ticker.tick(now_since(self.start));
        self.set_alarm();
        let (moment, missed) = match tick {
            Tick::Nothing => return,
            Tick::Fire(moment) => (moment, false),
            Tick::Missed(moment) => (moment, true),
        };
        // By what was known last; it is made sure before anything runs.
        if !is_master() || !self.is_ours() {
            return;
        }
        match self
            .stage
            .compare_exchange(IDLE, WAITING, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => self.submit(moment, missed),
            // A paused one skips nothing.
            Err(FIRING) if self.active().is_some() => self.core.stats.skipped(1),
            Err(FIRING) => {}
            Err(_) => self.moments.lock().unclear += 1,
        }
    }
}

/// Whose a moment is.
#[derive(PartialEq)]
enum Claim {
    Ours,
    NotOurs,
    /// This shard's, but another one may think the same: the slot is on the move, the cluster is down, or this server
    /// stood still. Rather none than two. Or this shard has just started, and the registration may be gone or another one.
    Unsure,
}

/// The turn of a registration: until it is dropped, further moments are skipped.
struct Turn(Arc<Watch>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.stage.store(IDLE, Ordering::Release);
    }
}

impl Watch {
    fn set_alarm(self: &Arc<Self>) {
        let now = now_since(self.start);
        let Some(pause) = self.moments.lock().ticker.pause(now) else {
            return;
        };
        let alarm: Arc<dyn Alarm> = self.clone();
        if let Some(at) = Instant::now().checked_add(pause) {
            clock::set(at, Arc::downgrade(&alarm));
        }
    }

    fn submit(self: Arc<Self>, moment: i64, missed: bool) {
        let turn = Turn(self);
        if let Some(pool) = pool() {
            pool.submit(move || match turn.0.core.loaded.code {
                Ok(ref code) if code.invoker.is_some() => {
                    python::with_server_locked(|| turn.go(&lock::lock(), moment, missed));
                }
                _ => {
                    let guard = lock::lock();
                    turn.go(&guard, moment, missed);
                }
            });
        }
    }

    /// By the topology that is known, this shard fires.
    fn is_ours(&self) -> bool {
        if !module().is_cluster {
            return true;
        }
        let topology = module().engine.topology();
        let Some(me) = topology.my_number() else { return false };
        let slot = usize::from(self.slot());
        self.everywhere || topology.owners().get(slot).copied().map(usize::from) == Some(me)
    }

    /// Makes sure of it.
    fn claim(&self, guard: &ServerLock) -> Claim {
        if !may_run(guard) {
            return Claim::NotOurs;
        }
        if !module().is_cluster {
            return Claim::Ours;
        }
        mesh::refresh_topology(guard);
        if !self.is_ours() {
            return Claim::NotOurs;
        }
        // Two masters may call a slot theirs for a moment at the end of its move.
        let contested = || !self.everywhere && cluster::is_migrating(guard, self.slot());
        let may_be_old = !pulse::is_steady(guard) || registrations().activation.is_behind();
        match may_be_old || !cluster::is_ok(guard) || contested() {
            true => Claim::Unsure,
            false => Claim::Ours,
        }
    }

    fn slot(&self) -> Slot {
        key_slot(self.id.as_bytes())
    }

    /// The registration as it is active now, and the index of the state; `None` if it is gone or paused.
    fn active(&self) -> Option<(Arc<Active>, u64)> {
        let table = registrations().activation.table().read();
        let active = table.get(&self.id)?;
        let counts = Arc::ptr_eq(&active.core, &self.core) && !active.registration.paused;
        counts.then(|| (active.clone(), table.state().index()))
    }

    /// One record: what the firing is about. Gives its number too.
    fn record(&self, moment: i64) -> RecordBatch {
        let number = {
            let mut moments = self.moments.lock();
            moments.fired += 1;
            moments.fired
        };
        let mut bytes = Vec::with_capacity(64);
        put_head(&mut bytes, tag::DICT, 3);
        for (name, value) in [("scheduled", moment), ("fired", wall_ms()), ("count", number)] {
            put_tagged(&mut bytes, tag::STR, name.as_bytes());
            put_int(&mut bytes, value);
        }
        RecordBatch {
            bytes: bytes.into(),
            records: 1,
        }
    }
}

impl Turn {
    /// A moment has come, the server is locked (and the GIL is held for mode `sync`).
    fn go(self, guard: &ServerLock, moment: i64, missed: bool) {
        let watch = &self.0;
        let unclear = std::mem::take(&mut watch.moments.lock().unclear);
        let Some((active, index)) = watch.active() else { return };
        let claim = watch.claim(guard);
        if claim == Claim::NotOurs {
            return;
        }
        let stats = &active.core.stats;
        let skips = missed || claim == Claim::Unsure;
        stats.skipped(unclear + u64::from(skips));
        if skips {
            return;
        }
        watch.stage.store(FIRING, Ordering::Release);
        let code = match active.code() {
            Ok(code) => code.clone(),
            Err(text) => return stats.ran(&End::Failure(&text), 0),
        };
        let input = watch.record(moment);
        if active.registration.mode == RegisterMode::Sync {
            if let Invoked::Continues(rest) = sync::run_batch(&active, &code, input, None) {
                // Counted as triggered already; its turn lasts until it is over.
                let core = active.core.clone();
                continuing::go_on(&active.registration.id, &active.core, rest, None, 0, move |over| {
                    let _turn = self;
                    over.count(&core.stats);
                });
            }
            return;
        }
        stats.triggered();
        let order = Order {
            plan: active.core.loaded.plan.clone(),
            local: code.local.clone(),
            nested: false,
            held: false,
            fired: Some(Fired {
                registration: active.registration.id.clone(),
                index,
                input,
                here: None,
                idle_limit_ms: active.core.idle_limit_ms,
                spent_ns: None,
                reads_on: None,
            }),
        };
        let core = active.core.clone();
        // Goes with the execution, or with the attempt to create one.
        let waiter = Box::new(move |execution: &Arc<Execution>| {
            let _turn = self;
            over(&core, execution);
        });
        if let Err(e) = module().engine.create(order, Some(waiter)) {
            active.core.stats.ended(&End::Aborted, 0);
            log::warning(&format!("registration {} could not fire: {e}", active.registration.id));
        }
    }
}

/// The execution is over: it is counted and dropped. On any thread; must not wait.
fn over(core: &Core, execution: &Arc<Execution>) {
    let outcome = execution.take_outcome();
    let aborted = execution.phase() == Phase::Aborted;
    let end = match outcome.errors.first() {
        Some(text) => End::Failure(text),
        None if aborted => End::Aborted,
        None => End::Success,
    };
    core.stats.ended(&end, execution.total_ns.load(Ordering::Relaxed));
    module().engine.forget_everywhere(execution);
}
