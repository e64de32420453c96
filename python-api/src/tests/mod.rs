//! Tests without a server: a fake one answers commands, and a loop drives the runners.

mod codec;
mod coroutines;
mod environment;
mod errors;
mod fake;
mod locking;
mod operations;
mod outcomes;
mod pickling;
mod registering;
mod running;
mod timers;
mod triggers;

use std::{sync::Arc, thread};

use oxigears_coordinator::{
    codec::RecordBatch,
    plan::{Plan, Stage},
    stage::{Route, RunState, StageRunner, StageSink},
    topology::Slot,
};
use pyo3::prelude::*;

use crate::{
    ExecContext, Functions, Interrupt, Invoked, Invoker, RegistrationDraft, RunRequest, Session, codec::Decoder,
    compile, init::PYTHON_STACK_BYTES, load_functions, obj::Obj, run_script,
};

/// Runs a test on a thread like the engine's, with the interpreter up.
fn on_worker<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    fake::start();
    let worker = thread::Builder::new()
        .stack_size(PYTHON_STACK_BYTES)
        .spawn(test)
        .unwrap();
    match worker.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The interpreter is up afterwards.
pub(crate) fn start_interpreter() {
    fake::start();
}

/// What an execution gave: `repr` of each result (a `str` as it is), and the error texts.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    results: Vec<String>,
    errors: Vec<String>,
}

/// Keeps what a stage emits. Errors of the first shard are its own.
struct LoopSink {
    shards: usize,
    is_initiator: bool,
    emitted: Vec<(Route, RecordBatch)>,
    errors: Vec<String>,
    own_errors: bool,
    aborted: Arc<std::sync::atomic::AtomicBool>,
    /// Batches that fit before `full`.
    window: usize,
    yields: usize,
    /// Times that the runner waited for records that were postponed.
    waits: usize,
    woken: Option<std::sync::mpsc::Receiver<()>>,
}

impl LoopSink {
    fn new(shards: usize, is_initiator: bool) -> LoopSink {
        LoopSink {
            shards,
            is_initiator,
            emitted: Vec::new(),
            errors: Vec::new(),
            own_errors: false,
            aborted: Arc::default(),
            window: usize::MAX,
            yields: 0,
            waits: 0,
            woken: None,
        }
    }
}

impl StageSink for LoopSink {
    fn emit(&mut self, route: Route, batch: RecordBatch) {
        batch.check().expect("emitted batches are well formed");
        assert!(batch.records > 0, "an empty batch was emitted");
        self.emitted.push((route, batch));
    }

    fn error(&mut self, text: String) {
        self.own_errors |= self.is_initiator;
        self.errors.push(text);
    }

    fn lost(&mut self, text: String) {
        self.errors.push(text);
    }

    fn full(&self) -> bool {
        self.emitted.len() >= self.window
    }

    fn has_own_errors(&self) -> bool {
        self.own_errors
    }

    fn owner(&self, slot: Slot) -> usize {
        usize::from(slot) % self.shards
    }

    fn aborted(&self) -> bool {
        self.aborted.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Waits until the runner's waker is called.
fn wait_for(runner: &mut dyn StageRunner, sink: &mut LoopSink) {
    assert!(runner.is_pending());
    if sink.woken.is_none() {
        let (tell, hear) = std::sync::mpsc::channel();
        runner.set_waker(Arc::new(move || {
            let _ = tell.send(());
        }));
        sink.woken = Some(hear);
    }
    let woken = sink.woken.as_ref().expect("just made");
    woken
        .recv_timeout(std::time::Duration::from_secs(60))
        .expect("the runner is woken");
}

/// Drives one runner to its end: feeds the batches, closes, collects.
fn drive(runner: &mut dyn StageRunner, input: Vec<RecordBatch>, sink: &mut LoopSink) {
    let mut input = input.into_iter();
    loop {
        match runner.run(sink) {
            RunState::Done => return,
            RunState::Yield => {
                sink.yields += 1;
                // The window opens again.
                if sink.full() {
                    sink.window = sink.emitted.len() + 1;
                }
            }
            RunState::Waiting => {
                sink.waits += 1;
                wait_for(runner, sink);
            }
            RunState::NeedInput => match input.next().filter(|_| !runner.satisfied()) {
                Some(batch) => runner.feed(batch),
                None => runner.close(),
            },
        }
    }
}

fn context(participants: usize, me: usize) -> ExecContext {
    let is_initiator = me == 0;
    ExecContext {
        origin: None,
        interrupt: Arc::new(Interrupt::new()),
        participants,
        me,
        profile: false,
        is_initiator,
        errors_are_own: is_initiator,
    }
}

/// Runs the script's `run()` on one shard, without shuffles, or on several.
fn execute(request: &RunRequest, shards: usize, source: Vec<RecordBatch>) -> Outcome {
    let stages = request.plan.stages(shards > 1);
    let mut outcome = Outcome::default();
    let mut own_errors = vec![false; shards];
    let mut runners: Vec<Vec<Box<dyn StageRunner>>> = (0..shards)
        .map(|shard| {
            let functions = match shard {
                0 => request.functions.clone(),
                _ => elsewhere(request, shard as u64),
            };
            compile(&request.plan, &stages, &functions, context(shards, shard)).unwrap()
        })
        .collect();
    let mut input: Vec<Vec<RecordBatch>> = vec![source; shards];
    for (number, stage) in stages.iter().enumerate() {
        let mut next: Vec<Vec<RecordBatch>> = vec![Vec::new(); shards];
        for (shard, batches) in input.into_iter().enumerate() {
            let mut sink = LoopSink::new(shards, shard == 0);
            sink.own_errors = own_errors[shard];
            drive(runners[shard][number].as_mut(), batches, &mut sink);
            own_errors[shard] = sink.own_errors;
            outcome.errors.append(&mut sink.errors);
            deliver(stage, shard, sink, &mut next, &mut outcome, &request.functions);
        }
        input = next;
    }
    outcome
}

fn deliver(
    stage: &Stage,
    shard: usize,
    sink: LoopSink,
    next: &mut [Vec<RecordBatch>],
    outcome: &mut Outcome,
    functions: &Functions,
) {
    use oxigears_coordinator::plan::Output;
    for (route, batch) in sink.emitted {
        match (stage.output, route) {
            (Output::Shuffle { .. }, Route::Participant(to)) => next[to].push(batch),
            (Output::Collect, Route::Default) => next[0].push(batch),
            // Only the initiator's results are reported.
            (Output::Result, Route::Default) if shard == 0 => {
                outcome.results.extend(show(&batch, functions.session()));
            }
            (Output::Result, Route::Default) => {}
            (output, route) => panic!("{output:?} emitted to {route:?}"),
        }
    }
}

/// The functions as another shard loads them: into a session of its own.
fn elsewhere(request: &RunRequest, shard: u64) -> Functions {
    loaded_elsewhere(&request.plan, shard)
}

fn loaded_elsewhere(plan: &Plan, shard: u64) -> Functions {
    let mut plan = plan.clone();
    assert!(!plan.code.is_empty(), "the plan travels");
    // The nonce follows magic, format and two version bytes.
    for (byte, other) in plan.code[6..14].iter_mut().zip(shard.to_le_bytes()) {
        *byte ^= other;
    }
    load_functions(&plan).unwrap()
}

/// `str` records as they are, others by `repr`.
fn show(batch: &RecordBatch, session: &Arc<Session>) -> Vec<String> {
    let mut cursor = oxigears_coordinator::codec::Cursor::new(&batch.bytes);
    Python::attach(|py| {
        let decoder = Decoder {
            globals: session.globals().as_ptr(),
            kept: std::ptr::null(),
        };
        (0..batch.records)
            .map(|_| {
                // SAFETY: the GIL is held and the session alive.
                let value: Obj = unsafe { decoder.next(&mut cursor) }
                    .ok()
                    .expect("results can be decoded");
                // SAFETY: the GIL is held.
                let value = unsafe { Bound::from_borrowed_ptr(py, value.as_ptr()) };
                match value.extract::<String>() {
                    Ok(text) => text,
                    Err(_) => value.repr().unwrap().to_string_lossy().into_owned(),
                }
            })
            .collect()
    })
}

/// Runs a script that must succeed; gives what its body asked for.
fn request(script: &str) -> Option<RunRequest> {
    let session = Session::create("test", None).unwrap();
    run_script(&session, script.as_bytes())
        .unwrap_or_else(|e| panic!("{script}\n{e}"))
        .run
}

/// Runs a script that must succeed; gives the registrations that it asked for.
fn register(script: &str) -> Vec<RegistrationDraft> {
    let session = Session::create("test", None).unwrap();
    run_script(&session, script.as_bytes())
        .unwrap_or_else(|e| panic!("{script}\n{e}"))
        .registrations
}

/// Calls a registration as a sync trigger.
fn invoke(invoker: &Invoker, session: &Arc<Session>, args: &[&[u8]]) -> Outcome {
    let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.to_vec()).collect();
    let outcome = finish(invoker.call(&args, None));
    Outcome {
        results: outcome.results.iter().flat_map(|batch| show(batch, session)).collect(),
        errors: outcome.errors,
    }
}

/// Goes on with a call to its end, as the engine does.
fn finish(called: Invoked) -> oxigears_coordinator::execution::Outcome {
    let rest = match called {
        Invoked::Done(outcome) => return outcome,
        Invoked::Continues(rest) => rest,
    };
    let mut runner = rest.runner(context(1, 0)).unwrap();
    assert!(rest.runner(context(1, 0)).is_err(), "the rest runs once");
    runner.close();
    let mut sink = LoopSink::new(1, true);
    drive(runner.as_mut(), Vec::new(), &mut sink);
    oxigears_coordinator::execution::Outcome {
        results: sink.emitted.into_iter().map(|(_, batch)| batch).collect(),
        errors: sink.errors,
        ..Default::default()
    }
}

fn invoker(draft: &RegistrationDraft) -> Invoker {
    Invoker::new(&draft.plan, &draft.functions).unwrap()
}

/// Runs a script with one `run()` on one shard.
fn run(script: &str) -> Outcome {
    let script = script.to_owned();
    on_worker(move || execute(&request(&script).expect("the script has a run()"), 1, Vec::new()))
}

/// Runs a script that must fail; gives the error text.
fn failure(script: &str) -> String {
    let script = script.to_owned();
    on_worker(move || {
        let session = Session::create("test", None).unwrap();
        match run_script(&session, script.as_bytes()) {
            Ok(_) => panic!("no error from:\n{script}"),
            Err(text) => text,
        }
    })
}

/// `src` yields the values; `PR` stands for the PythonReader.
fn with_source(values: &str, program: &str) -> String {
    format!("def src():\n    for v in [{values}]:\n        yield v\nPR = GB('PythonReader')\n{program}")
}

/// Results and fragments of errors of `program` (which ends in `.run(src...)`) over `values`.
fn check(values: &str, program: &str, results: &[&str], errors: &[&str]) {
    let script = with_source(values, program);
    let outcome = run(&script);
    assert_eq!(outcome.results, results, "\n{script}\n{:?}", outcome.errors);
    assert_eq!(outcome.errors.len(), errors.len(), "\n{script}\n{:?}", outcome.errors);
    for (text, fragment) in outcome.errors.iter().zip(errors) {
        assert!(text.contains(fragment), "\n{script}\n{text}");
    }
}

fn sorted(values: &str, program: &str, results: &[&str]) {
    let mut outcome = run(&with_source(values, program));
    outcome.results.sort();
    assert_eq!(
        outcome,
        Outcome {
            results: results.iter().map(|&r| r.into()).collect(),
            errors: vec![]
        },
        "{program}"
    );
}
