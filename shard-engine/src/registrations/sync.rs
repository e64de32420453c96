//! Running a registration of mode `sync`: on the thread of the event if the interpreter is free, else on a helper.
//!
//! The main thread never waits for the interpreter without a bound: who holds it may be busy for seconds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use oxigears_coordinator::{codec::RecordBatch, engine::Pool, execution::Outcome, limits as bounds};
use oxigears_python_api::{self as python, AtOnce, Invoked, Invoker, Origin};
use parking_lot::{Condvar, Mutex};

use super::{
    active::{Active, Code},
    continuing, depth, limits,
    loaders::Loaders,
    registrations,
    stats::End,
};
use crate::{
    identity,
    module::module,
    redis::{
        blocked::BlockedClient,
        event_loop,
        lock::{self, Loan, ServerLock},
        log,
        reply::ReplyWriter,
    },
    server,
};

/// Threads that may run Python for others.
pub struct Helpers {
    /// Runs `sync` registrations for parked clients.
    parked: Pool,
    /// Runs them for threads that wait.
    errands: Pool,
    /// Load functions for peers that ask.
    pub checking: Loaders,
    /// Load those of timers.
    pub timers: Loaders,
}

impl Helpers {
    /// Starts them.
    pub fn start() -> std::io::Result<Helpers> {
        let on_panic = |text: String| log::warning(&format!("a helper thread met an internal error: {text}"));
        Ok(Helpers {
            parked: Pool::start("oxi-sync", 1, on_panic)?,
            errands: Pool::start("oxi-errand", 1, on_panic)?,
            checking: Loaders::start()?,
            timers: Loaders::start()?,
        })
    }
}

/// This thread can run Python at once: it has the GIL, or nobody has, and nobody is likely to take it first and to keep it.
pub fn interpreter_is_free() -> bool {
    server::python_is_here() || python::stays() || python::gil_is_free() && !python::is_kept_long()
}

/// Runs the registration on this thread, which holds the server lock. What goes on later is counted as triggered.
pub fn run(active: &Active, code: &Code, args: &[Vec<u8>], origin: Option<Arc<dyn Origin>>) -> Invoked {
    run_with(active, code, |invoker| invoker.call(args, origin))
}

/// The same with the records of a batch.
pub fn run_batch(active: &Active, code: &Code, batch: RecordBatch, origin: Option<Arc<dyn Origin>>) -> Invoked {
    run_with(active, code, |invoker| invoker.call_batch(batch, origin, None))
}

fn run_with(active: &Active, code: &Code, call: impl FnOnce(&Invoker) -> Invoked) -> Invoked {
    let start = Instant::now();
    let mut ran = {
        let _identity = identity::enter(active.core.loaded.user.clone());
        match &code.invoker {
            Some(invoker) => call(invoker),
            None => Invoked::Done(Outcome {
                errors: vec!["ERR internal error: the registration is not compiled".into()],
                ..Outcome::default()
            }),
        }
    };
    let (stats, ns) = (&active.core.stats, start.elapsed().as_nanos() as u64);
    match &mut ran {
        Invoked::Done(outcome) => {
            stats.ran(&End::of(outcome, false), ns);
        }
        Invoked::Continues(rest) => {
            rest.spent_ns = ns;
            stats.triggered();
        }
    }
    ran
}

/// For runs that nobody can wait for: they postpone nothing.
pub fn at_once() -> Option<Arc<dyn Origin>> {
    Some(Arc::new(AtOnce))
}

/// Answers a client that waits for a run: now, or when the rest of it is over.
pub fn answer_client(active: &Arc<Active>, ran: Invoked, client: BlockedClient) {
    answer_client_by(answer, active, ran, client);
}

/// Writes what came of an execution.
pub type Answer = fn(&mut ReplyWriter, &Outcome);

/// The same for replies of another form.
pub fn answer_client_by(answer: Answer, active: &Arc<Active>, ran: Invoked, client: BlockedClient) {
    match ran {
        Invoked::Done(outcome) => client.reply(|reply| answer(reply, &outcome)),
        Invoked::Continues(rest) => {
            let its = active.clone();
            let (id, depth) = (&active.registration.id, depth::current());
            continuing::go_on(id, &active.core, rest, None, depth, move |over| {
                over.count(&its.core.stats);
                client.reply(|reply| match over.end() {
                    End::Aborted => reply.error(ABORTED),
                    _ => answer(reply, &over.outcome),
                });
            });
        }
    }
}

/// What an aborted execution had so far is not its result.
pub const ABORTED: &str = "ERR the execution was aborted";

/// The reply of a trigger: the results, or the first error.
pub fn answer(reply: &mut ReplyWriter, outcome: &Outcome) {
    match outcome.errors.first() {
        None => reply.write_records(&outcome.results),
        Some(text) => reply.error(text),
    }
}

/// The text if too many wait.
pub fn too_many() -> String {
    format!(
        "ERR Could not trigger execution, {} executions wait already",
        bounds::QUEUED_EXECUTIONS
    )
}

/// Runs the registration for a parked client as soon as interpreter and server lock are free.
pub fn run_parked(active: Arc<Active>, code: Arc<Code>, args: Vec<Vec<u8>>, client: BlockedClient) {
    let helpers = &registrations().helpers;
    if helpers.parked.queued() >= bounds::QUEUED_EXECUTIONS {
        active.core.stats.ran(&End::Aborted, 0);
        return client.reply(|reply| reply.error(&too_many()));
    }
    helpers.parked.submit(move || {
        let ran = python::with_server_locked(|| run(&active, &code, &args, None));
        answer_client(&active, ran, client);
    });
}

/// Whoever has the interpreter has it since all the time was used up for which commands may wait: others do not wait for the
/// same again, turn after turn of the event loop.
static STILL_KEPT: AtomicBool = AtomicBool::new(false);

/// Where a loan waits for the helper.
#[derive(Default)]
struct Desk {
    loan: Mutex<Option<Loan>>,
    taken: Condvar,
}

/// How long commands have waited in this turn of the event loop. What they do one behind the other (in a transaction, a
/// script, a pipeline) keeps the server from its clients as a whole, so the bounds are for all of it.
struct Waited {
    turn: u64,
    /// Who has the interpreter.
    holder: usize,
    /// While this one had it.
    on_one: Duration,
    in_all: Duration,
}

static WAITED: Mutex<Waited> = Mutex::new(Waited {
    turn: 0,
    holder: 0,
    on_one: Duration::ZERO,
    in_all: Duration::ZERO,
});

impl Waited {
    fn begin(&mut self, turn: u64) {
        if turn != self.turn {
            (self.turn, self.on_one, self.in_all) = (turn, Duration::ZERO, Duration::ZERO);
        }
        self.look();
    }

    fn go_on(&mut self, more: Duration) {
        self.in_all += more;
        self.on_one += more;
        self.look();
    }

    fn look(&mut self) {
        let holder = python::gil_holder();
        if holder != self.holder || holder == 0 {
            (self.holder, self.on_one) = (holder, Duration::ZERO);
        }
    }
}

impl Desk {
    fn take(&self) -> Option<Loan> {
        let loan = self.loan.lock().take();
        self.taken.notify_one();
        loan
    }

    /// Waits for the helper to take the loan; takes it back if that takes too long.
    fn wait(&self, turn: u64) {
        let patience = module().config.interpreter_max_wait();
        let most = limits::INTERPRETER_WAIT_MOST.max(patience);
        let mut waited = WAITED.lock();
        waited.begin(turn);
        let mut last = Instant::now();
        let mut loan = self.loan.lock();
        while loan.is_some() && waited.on_one < patience && waited.in_all < most {
            self.taken.wait_for(&mut loan, limits::INTERPRETER_LOOK);
            let now = Instant::now();
            waited.go_on(now - last);
            last = now;
        }
        let unused = loan.take();
        if unused.is_some() {
            STILL_KEPT.store(true, Ordering::Release);
        }
        drop(waited);
        drop(loan);
        drop(unused);
    }
}

/// Runs the registration on a helper thread while this one waits: for a moment until it has the interpreter, then until
/// it is done. `None` if it did not get the interpreter: then nothing has run and nothing will.
pub fn run_for_waiting(
    guard: &ServerLock,
    active: &Arc<Active>,
    code: &Arc<Code>,
    args: &[Vec<u8>],
) -> Option<Outcome> {
    let (active, code, args) = (active.clone(), code.clone(), args.to_vec());
    let ran = for_waiting(guard, move || run(&active, &code, &args, at_once()));
    ran.map(done)
}

/// What came of a run that could not postpone anything.
pub fn done(ran: Invoked) -> Outcome {
    match ran {
        Invoked::Done(outcome) => outcome,
        Invoked::Continues(_) => Outcome {
            errors: vec!["ERR internal error: a record was postponed where nobody can wait".into()],
            ..Outcome::default()
        },
    }
}

/// Does `work` on a helper thread, with lock and interpreter, while this one waits; see `run_for_waiting`.
pub fn for_waiting<R: Send + 'static>(guard: &ServerLock, work: impl FnOnce() -> R + Send + 'static) -> Option<R> {
    if STILL_KEPT.load(Ordering::Acquire) && !python::gil_is_free() {
        return None;
    }
    let desk = Arc::new(Desk::default());
    let done: Arc<Mutex<Option<R>>> = Arc::default();
    let turn = event_loop::turn_number(guard);
    let _first = python::Precedence::claim();
    lock::lend(guard, |loan| {
        *desk.loan.lock() = Some(loan);
        let (desk_there, done) = (desk.clone(), done.clone());
        registrations().helpers.errands.submit(move || {
            if desk_there.loan.lock().is_none() && !STILL_KEPT.load(Ordering::Acquire) {
                return;
            }
            // The interpreter first: whoever holds it may hold it for long, and nobody waits for it with the lock.
            python::with_interpreter(|| {
                let loan = desk_there.take();
                STILL_KEPT.store(false, Ordering::Release);
                if let Some(loan) = loan {
                    loan.run(|_| *done.lock() = Some(work()));
                }
            });
        });
        desk.wait(turn);
    });
    done.lock().take()
}

/// Does `work` for a parked client on the helper thread, after what waits there; refuses if too much does.
pub fn for_parked(client: BlockedClient, work: impl FnOnce(BlockedClient) + Send + 'static) {
    let helpers = &registrations().helpers;
    if helpers.parked.queued() >= bounds::QUEUED_EXECUTIONS {
        return client.reply(|reply| reply.error(&too_many()));
    }
    helpers.parked.submit(move || work(client));
}

/// Runs `task` on the helper thread of parked clients, after those that wait there.
pub fn submit(task: impl FnOnce() + Send + 'static) {
    registrations().helpers.parked.submit(task);
}
