//! Running batches: as executions of the engine, one after another for each stream; or under the server lock, for
//! registrations of mode `sync` and for batches that are one transaction.
//!
//! A thread of its own reads and acknowledges, so that no thread of the engine waits for the server lock; another one runs
//! what needs lock and interpreter. Inside an event nothing is run: `due` fires what is due there.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use oxigears_coordinator::{
    codec::RecordBatch,
    engine::{Execution, Fired, Order, Pool},
    execution::Phase,
    stage::Input,
};
use oxigears_python_api as python;
use parking_lot::Mutex;

use super::{
    super::{
        active::unloadable,
        continuing,
        due::{self, Due},
        limits,
        occasion::Occasion,
        registrations,
    },
    all,
    batch::{self, Batch, Kept, Look, Settled, Verdict, now_ms},
    consumer::{Consumer, Key},
    flow::Next,
    locked,
    room::{self, Room},
};
use crate::{
    module::module,
    readers::slices::{Deadline, Slices},
    redis::{
        lock::{self, ServerLock},
        log,
    },
    timers::clock::{self, Alarm},
};

/// The threads.
pub struct Threads {
    /// Reads and acknowledges.
    look: Pool,
    /// Runs what needs lock and interpreter.
    locked: Pool,
    /// Looks for streams.
    pub scan: Pool,
}

impl Threads {
    /// Starts them.
    pub fn start() -> std::io::Result<Threads> {
        let on_panic = |text: String| log::warning(&format!("a thread for streams met an internal error: {text}"));
        Ok(Threads {
            look: Pool::start("oxi-stream", 1, on_panic)?,
            locked: Pool::start("oxi-stream-py", 1, on_panic)?,
            scan: Pool::start("oxi-scan", 1, on_panic)?,
        })
    }
}

/// Where something is to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Inside a notification of the server.
    Event,
    /// Anywhere else.
    Elsewhere,
}

/// Does what a flow wants next.
pub fn act(guard: &ServerLock, consumer: &Arc<Consumer>, key: &Key, next: Next, place: Place) {
    if next == Next::Look && place == Place::Event && consumer.is_sync() {
        return due::push(guard, Due::Entries(locked::Shot::new(consumer, key)));
    }
    hand_over(consumer, key, next);
}

/// The same for any thread.
fn hand_over(consumer: &Arc<Consumer>, key: &Key, next: Next) {
    match next {
        Next::Wait => {}
        Next::Ring(timer, ms) => {
            let Some((flow, _)) = consumer.number(key) else {
                return;
            };
            let alarm: Arc<dyn Alarm> = Arc::new(Ring {
                consumer: Arc::downgrade(consumer),
                key: key.clone(),
                flow,
                timer,
            });
            let delay = Duration::from_millis(ms).min(limits::STREAM_TIMER);
            clock::set(Instant::now() + delay, Arc::downgrade(&alarm));
            consumer.keep_alarm(key, flow, alarm);
        }
        Next::Look => look(consumer, key),
    }
}

/// The timer of a flow; the stream may have another flow by the time that it is over.
struct Ring {
    consumer: Weak<Consumer>,
    key: Key,
    flow: u64,
    timer: u64,
}

impl Alarm for Ring {
    fn ring(self: Arc<Self>) {
        let Some(consumer) = self.consumer.upgrade().filter(|consumer| consumer.is_ok()) else {
            return;
        };
        let rang = consumer.with(&self.key, self.flow, |flow, rules| {
            flow.rang(self.timer, rules, now_ms())
        });
        if let Some(next) = rang {
            hand_over(&consumer, &self.key, next);
        }
    }
}

/// Somebody will look at the stream, whose flow is taken.
pub fn look(consumer: &Arc<Consumer>, key: &Key) {
    let Some((flow, _)) = consumer.number(key) else { return };
    let (consumer, key) = (consumer.clone(), key.clone());
    let threads = &all().threads;
    if consumer.is_locked() {
        threads.locked.submit(move || run_locked(consumer, key, flow, None));
    } else {
        threads
            .look
            .submit(move || go_on(&consumer, &key, Task::Look(flow, None)));
    }
}

/// Runs batches under the lock until nothing is to be done now, with pauses for the server, in which other streams have
/// their turn.
fn run_locked(consumer: Arc<Consumer>, key: Key, mut flow: u64, mut kept: Option<Kept>) {
    loop {
        let more = python::with_server_locked(|| {
            let (guard, start) = (lock::lock(), Instant::now());
            loop {
                let (next, hold) = locked::one(&guard, &consumer, &key, flow, kept.take());
                match consumer.number(&key).filter(|_| next == Next::Look) {
                    Some((number, _)) => (flow, kept) = (number, hold),
                    None => {
                        drop(hold);
                        act(&guard, &consumer, &key, next, Place::Elsewhere);
                        return false;
                    }
                }
                if start.elapsed() >= limits::STREAM_HOLD {
                    return true;
                }
            }
        });
        if !more {
            return;
        }
        // Others may move the group in the pause.
        kept = kept.map(|(hold, _)| (hold, None));
        thread::sleep(limits::STREAM_PAUSE);
        let pool = &all().threads.locked;
        if pool.queued() > 0 {
            return pool.submit(move || run_locked(consumer, key, flow, kept));
        }
    }
}

/// Streams of which somebody removes entries in slices. Only used under the server lock.
static TRIMMED: Mutex<Option<HashSet<Key>>> = Mutex::new(None);

/// Removes what all registrations of the stream have passed, in slices. With the server lock.
pub fn trim_later(key: &Key) {
    if !TRIMMED.lock().get_or_insert_default().insert(key.clone()) {
        return;
    }
    let key = key.clone();
    all().threads.look.submit(move || {
        let mut slices = Slices::to_write();
        let trim = |guard: &ServerLock, deadline: &mut Deadline| {
            let is_whole = batch::trim_on(guard, &key, deadline);
            if is_whole && let Some(trimmed) = &mut *TRIMMED.lock() {
                trimmed.remove(&key);
            }
            is_whole
        };
        while !slices.run(trim) {}
    });
}

/// A batch that has run, to be settled.
struct Over {
    batch: Box<Batch>,
    verdict: Verdict,
    ns: u64,
}

/// What a thread is to do.
enum Task {
    /// Look at the stream for the flow of this number; there may be room for its batch already.
    Look(u64, Option<Room>),
    Settle(Over),
}

enum Step {
    Nothing,
    Settle(Over),
    More(Box<batch::Reading>),
    Run(Box<Batch>),
    Later(Over),
}

/// Settles the batch that is over, if there is one, and starts the next one, if it is time for that.
fn go_on(consumer: &Arc<Consumer>, key: &Key, task: Task) {
    let mut slices = Slices::to_write();
    let mut step = match task {
        Task::Settle(over) => Step::Settle(over),
        Task::Look(flow, room) => {
            slices.run(|guard, deadline| begin(guard, (consumer, key, flow), None, room, deadline))
        }
    };
    loop {
        step = match step {
            Step::Nothing => return,
            Step::Settle(over) => slices.run(|guard, deadline| settle(guard, consumer, key, over, deadline)),
            Step::Run(batch) => return start(consumer, key, batch),
            Step::Later(over) => {
                thread::sleep(limits::STREAM_RETRY);
                return again(consumer, key, over);
            }
            Step::More(reading) => slices.run(|guard, deadline| {
                let look = batch::go_on(guard, consumer, key, reading, Some(deadline));
                after_look(guard, consumer, key, look)
            }),
        };
    }
}

fn begin(
    guard: &ServerLock,
    (consumer, key, flow): (&Arc<Consumer>, &Key, u64),
    kept: Option<Kept>,
    room: Option<Room>,
    deadline: &mut Deadline,
) -> Step {
    let room = room.or_else(|| {
        let (its, name) = (consumer.clone(), key.clone());
        room::enter(&consumer.registration.id, move |room| {
            let task = Task::Look(flow, Some(room));
            all().threads.look.submit(move || go_on(&its, &name, task));
        })
    });
    // Without room the flow stays taken.
    if room.is_none() {
        return Step::Nothing;
    }
    match batch::begin(guard, (consumer, key), flow, kept, room) {
        Look::More(reading) => {
            let look = batch::go_on(guard, consumer, key, reading, Some(deadline));
            after_look(guard, consumer, key, look)
        }
        look => after_look(guard, consumer, key, look),
    }
}

fn settle(guard: &ServerLock, consumer: &Arc<Consumer>, key: &Key, over: Over, deadline: &mut Deadline) -> Step {
    let Over { batch, verdict, ns } = over;
    match batch::settle(guard, (consumer, key), batch, verdict, ns, Some(deadline)) {
        Settled::Done(next, kept) => {
            let flow = consumer
                .number(key)
                .filter(|_| next == Next::Look && !consumer.is_locked());
            if let Some((flow, _)) = flow {
                return begin(guard, (consumer, key, flow), Some(kept), None, deadline);
            }
            drop(kept);
            act(guard, consumer, key, next, Place::Elsewhere);
            Step::Nothing
        }
        Settled::Later(batch, verdict) => Step::Later(Over { batch, verdict, ns }),
        Settled::More(batch, verdict) => Step::Settle(Over { batch, verdict, ns }),
    }
}

/// Goes on in a task of its own: calls that nest could run out of stack.
fn again(consumer: &Arc<Consumer>, key: &Key, over: Over) {
    let (consumer, key) = (consumer.clone(), key.clone());
    all()
        .threads
        .look
        .submit(move || go_on(&consumer, &key, Task::Settle(over)));
}

fn after_look(guard: &ServerLock, consumer: &Arc<Consumer>, key: &Key, look: Look) -> Step {
    match look {
        Look::More(reading) => Step::More(reading),
        Look::Run(batch) => Step::Run(batch),
        Look::Nothing(next) => {
            act(guard, consumer, key, next, Place::Elsewhere);
            Step::Nothing
        }
    }
}

/// Starts an execution for the batch. Without the lock.
fn start(consumer: &Arc<Consumer>, key: &Key, mut batch: Box<Batch>) {
    let code = match &consumer.core.loaded.code {
        Ok(code) => code.clone(),
        Err(why) => {
            let verdict = Verdict::Failure(unloadable(why));
            return again(consumer, key, Over { batch, verdict, ns: 0 });
        }
    };
    let records = RecordBatch {
        bytes: std::mem::take(&mut batch.entries.bytes).into(),
        records: u32::try_from(batch.entries.count).unwrap_or(u32::MAX),
    };
    let occasion = Occasion::with_input(Input::Batch(records), None);
    let occasion = match batch.room.as_ref().map(Room::turn) {
        Some(turn) => occasion.telling(move || turn.begin()),
        None => occasion,
    };
    let order = Order {
        plan: consumer.core.loaded.plan.clone(),
        local: code.local.clone(),
        nested: false,
        held: false,
        fired: Some(Fired {
            registration: consumer.registration.id.clone(),
            index: registrations().activation.index(),
            input: RecordBatch::default(),
            here: occasion.at_depth(batch.depth.max(1)).carried(),
            idle_limit_ms: consumer.core.idle_limit_ms,
            spent_ns: None,
            reads_on: consumer.reads_on(),
        }),
    };
    // Shared, because it comes back if the execution can not be created.
    let shared = Arc::new(Mutex::new(Some(batch)));
    let (waiting, for_waiter, its_key) = (shared.clone(), consumer.clone(), key.clone());
    let waiter = Box::new(move |execution: &Arc<Execution>| {
        if let Some(batch) = waiting.lock().take() {
            executed(for_waiter, its_key, batch, execution);
        }
    });
    if let Err(e) = module().engine.create(order, Some(waiter)) {
        tell_seldom(&format!(
            "registration {} could not start an execution, it tries again: {e}",
            consumer.registration.id
        ));
        let batch = shared.lock().take();
        if let Some(batch) = batch {
            refused(consumer, key, batch);
        }
    }
}

/// A batch of mode `sync` has postponed a record: the rest goes on as an execution. The stream waits for its end.
pub fn go_on_later(
    consumer: &Arc<Consumer>,
    key: &Key,
    batch: Box<Batch>,
    number: u64,
    rest: Box<python::Continuation>,
) {
    let (id, core) = (consumer.registration.id.clone(), consumer.core.clone());
    let (consumer, key, depth) = (consumer.clone(), key.clone(), batch.depth.max(1));
    let settle = move |verdict: Verdict, ns: u64| again(&consumer, &key, Over { batch, verdict, ns });
    let its = core.clone();
    continuing::go_on(&id, &core, rest, Some(number), depth, move |over| {
        let verdict = match batch::decisive(&over.outcome.errors) {
            _ if over.aborted => Verdict::Aborted,
            Some(text) => Verdict::Failure(text.clone()),
            None => Verdict::Success,
        };
        settle(verdict, over.total_ns);
        // Clients may look at it later.
        let most = module().config.max_executions_per_registration();
        let engine = &module().engine;
        its.swift
            .keep(engine, number, over.outcome, over.total_ns, over.aborted, most);
    });
}

/// Many streams may be concerned, again and again: says it for one of them, every now and then.
fn tell_seldom(text: &str) {
    static NEXT_MS: AtomicU64 = AtomicU64::new(0);
    let (now, next) = (now_ms(), NEXT_MS.load(Ordering::Relaxed));
    if now >= next {
        NEXT_MS.store(now + limits::STREAM_TELL.as_millis() as u64, Ordering::Relaxed);
        log::warning(text);
    }
}

/// The execution could not be created: it counts as aborted, and is tried again in a while. Without waiting for that: this
/// thread is that of all registrations.
fn refused(consumer: &Arc<Consumer>, key: &Key, batch: Box<Batch>) {
    let (guard, number) = (lock::lock_to_write(), batch.number);
    drop(batch::settle(&guard, (consumer, key), batch, Verdict::Aborted, 0, None));
    let wait_ms = limits::STREAM_REFUSED_RETRY.as_millis() as u64;
    if let Some(next) = consumer.with(key, number, |flow, _| flow.postponed(wait_ms)) {
        act(&guard, consumer, key, next, Place::Elsewhere);
    }
}

/// The execution is over. On any thread: must not wait.
fn executed(consumer: Arc<Consumer>, key: Key, batch: Box<Batch>, execution: &Arc<Execution>) {
    let error = execution.with_outcome(|outcome| batch::decisive(&outcome.errors).cloned());
    let verdict = match (error, execution.phase()) {
        (None, Phase::Aborted) => Verdict::Aborted,
        // Nobody wanted that: a shard has gone, or the slots have other owners.
        (Some(text), Phase::Aborted) => Verdict::Hindered(text),
        (Some(text), _) => Verdict::Failure(text),
        (None, _) => Verdict::Success,
    };
    let ns = execution.total_ns.load(Ordering::Relaxed);
    consumer.keep(execution);
    again(&consumer, &key, Over { batch, verdict, ns });
}
