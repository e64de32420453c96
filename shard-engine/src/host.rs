//! What the coordinator's engine asks of this server: readers, runners, the clock, answers for other shards.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use oxigears_coordinator::{
    engine::{Engine, Execution, Host, Interrupt, JobRequest, RegisteredPlan, question},
    message::ExecutionId,
    plan::{Local, Reader},
    stage::{Input, Job, Source, SourceState, StageRunner},
    view::ExecutionView,
};
use oxigears_python_api as python;
use oxigears_python_api::{Continuation, ExecContext, Functions, Origin};

use crate::{
    identity::{self, AsUser},
    mesh,
    module::module,
    readers,
    redis::{key::Kind, log},
    registrations::{
        depth::{self, AtDepth},
        intercept,
        occasion::Occasion,
        registrations,
    },
};

/// The engine's surroundings.
pub struct EngineHost {
    start: Instant,
}

impl EngineHost {
    /// Starts the clock.
    pub fn new() -> EngineHost {
        EngineHost { start: Instant::now() }
    }
}

/// Stops the Python code of one execution.
pub struct PythonInterrupt(pub Arc<python::Interrupt>);

impl PythonInterrupt {
    /// For code that has not begun.
    pub fn new() -> Arc<PythonInterrupt> {
        Arc::new(PythonInterrupt(Arc::new(python::Interrupt::new())))
    }
}

impl Interrupt for PythonInterrupt {
    fn request(&self) {
        self.0.request();
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A reader that could not be opened: one error record.
struct FailedSource(Option<String>);

impl Source for FailedSource {
    fn next_batch(&mut self) -> SourceState {
        self.0.take().map_or(SourceState::End, SourceState::Error)
    }
}

/// A native reader of a user, whose rights may change while it reads.
struct Permitted {
    source: Box<dyn Source>,
    reader: Reader,
    user: String,
    /// Types of which it gave no values from the beginning.
    denied: Vec<Kind>,
    /// When the rights were looked at last.
    looked: Instant,
    over: bool,
}

impl Permitted {
    /// Refuses what the user may not do any more.
    fn check(&self) -> Result<(), String> {
        identity::check_reader(&self.user, &self.reader)?;
        let now = identity::denied_values(&self.user, &self.reader);
        let new = now.into_iter().find(|(kind, _)| !self.denied.contains(kind));
        new.map_or(Ok(()), |(_, why)| Err(why))
    }
}

impl Source for Permitted {
    fn next_batch(&mut self) -> SourceState {
        if self.over {
            return SourceState::End;
        }
        if self.looked.elapsed() >= RIGHTS_EVERY {
            self.looked = Instant::now();
            if let Err(why) = self.check() {
                self.over = true;
                return SourceState::Error(why);
            }
        }
        self.source.next_batch()
    }
}

/// The rights of who reads for long are looked at so often.
const RIGHTS_EVERY: Duration = Duration::from_millis(100);

impl Host for EngineHost {
    fn new_interrupt(&self) -> Arc<dyn Interrupt> {
        PythonInterrupt::new()
    }

    fn prepare(&self, request: JobRequest<'_>) -> Result<Job, String> {
        let user: Option<Arc<str>> = request.plan.user.as_deref().map(Arc::from);
        let _identity = identity::enter(user.clone());
        if let Some(rest) = request
            .local
            .as_ref()
            .and_then(|any| any.downcast_ref::<Continuation>())
        {
            return go_on(&request, rest, user);
        }
        let functions = match request.local.as_ref().and_then(|any| any.downcast_ref::<Functions>()) {
            Some(functions) => functions.clone(),
            None => interrupt(&request)?.during(|| python::load_functions(request.plan))?,
        };
        let occasion = request.fired.and_then(|fired| Occasion::of(&fired.here));
        let origin = match occasion {
            Some(occasion) => occasion.origin.clone(),
            None => request
                .fired
                .and_then(|fired| intercept::origin_elsewhere(&fired.registration)),
        };
        let context = context(&request, origin)?;
        let mut runners = python::compile(request.plan, request.stages, &functions, context)?;
        let depth = occasion.map_or(0, |occasion| occasion.depth).max(request.depth);
        if depth > 0 {
            let at_depth = |runner| Box::new(AtDepth { runner, depth }) as Box<dyn StageRunner>;
            runners = runners.into_iter().map(at_depth).collect();
        }
        if let Some(user) = user {
            runners = runners
                .into_iter()
                .map(|runner| {
                    Box::new(AsUser {
                        runner,
                        user: user.clone(),
                    }) as Box<dyn StageRunner>
                })
                .collect();
        }
        let input = match request.fired {
            // What fired it, here or on every shard.
            Some(fired) => occasion
                .and_then(Occasion::take_input)
                .unwrap_or_else(|| Input::Batch(fired.input.clone())),
            None if request.reads => open_input(&request, &functions),
            None => Input::Nothing,
        };
        Ok(Job { input, runners })
    }

    fn registered(&self, registration: &str, index: u64) -> Option<RegisteredPlan> {
        let table = registrations().activation.table().read();
        let active = table.get(registration).or_else(|| {
            // Gone here, but not where it was fired.
            table.get_late(registration).filter(|_| table.state().index() >= index)
        })?;
        let code = active.code().ok()?;
        Some(RegisteredPlan {
            plan: active.core.loaded.plan.clone(),
            local: code.local.clone(),
            idle_limit_ms: active.core.idle_limit_ms,
        })
    }

    fn await_active(&self, index: u64, deadline_ms: u64) -> bool {
        let wait = Duration::from_millis(deadline_ms.saturating_sub(self.now_ms()));
        registrations().activation.await_active(index, wait)
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn idle_limit_ms(&self) -> u64 {
        module().config.execution_max_idle_ms()
    }

    fn max_executions(&self) -> i64 {
        module().config.max_executions()
    }

    fn refresh_topology(&self) {
        mesh::refresh_topology_from_thread();
    }

    fn answer(
        &self,
        engine: &Arc<Engine>,
        what: &str,
        argument: &[u8],
        asked: Option<Arc<Execution>>,
        then: Box<dyn FnOnce(Result<Vec<u8>, String>) + Send>,
    ) {
        let Some(id) = ExecutionId::parse(argument) else {
            return then(Err(question::UNKNOWN.into()));
        };
        match what {
            question::VIEW => then(Ok(engine
                .find(&id)
                .map_or_else(Vec::new, |e| ExecutionView::of(&e).encode()))),
            question::ABORT => engine.abort_here(&id, asked, |ended| then(ended.map(|()| Vec::new()))),
            question::DROP => {
                engine.forget(&id);
                then(Ok(Vec::new()));
            }
            unknown => {
                let me = &engine.topology().me;
                then(Err(format!("shard {me} does not know the question {unknown}")));
            }
        }
    }

    fn event_depth(&self) -> u32 {
        depth::current()
    }

    fn log_warning(&self, text: &str) {
        log::warning(text);
    }
}

fn interrupt(request: &JobRequest<'_>) -> Result<Arc<python::Interrupt>, String> {
    let interrupt = request.interrupt.clone().as_any().downcast::<PythonInterrupt>();
    let interrupt = interrupt.map_err(|_| "the execution has a foreign interrupt")?;
    Ok(interrupt.0.clone())
}

fn context(request: &JobRequest<'_>, origin: Option<Arc<dyn Origin>>) -> Result<ExecContext, String> {
    Ok(ExecContext {
        interrupt: interrupt(request)?,
        origin,
        participants: request.participants,
        me: request.me,
        profile: module().config.profile_executions(),
        is_initiator: request.is_initiator,
        errors_are_own: request.is_initiator,
    })
}

/// The rest of a call that began in its event.
fn go_on(request: &JobRequest<'_>, rest: &Continuation, user: Option<Arc<str>>) -> Result<Job, String> {
    let mut runner = rest.runner(context(request, None)?)?;
    if let Some(user) = user {
        runner = Box::new(AsUser { runner, user });
    }
    if request.depth > 0 {
        runner = Box::new(AtDepth {
            runner,
            depth: request.depth,
        });
    }
    Ok(Job {
        input: Input::Nothing,
        runners: vec![runner],
    })
}

fn open_input(request: &JobRequest<'_>, functions: &Functions) -> Input {
    if matches!(request.plan.reader, Reader::Python { .. }) {
        return Input::Runner;
    }
    let first = request.stages.first().and_then(|s| s.locals.first());
    let mut env = readers::ReaderEnv {
        count_only: matches!(first, Some(Local::CountRecords)),
        epoch: request.epoch,
        check: mesh::check_ownership,
        shard_id: module().shard_id_for_scripts(),
        denied: Vec::new(),
    };
    let resolved = interrupt(request).and_then(|i| i.during(|| python::resolve_reader(request.plan, functions)));
    let opened = resolved.and_then(|reader| {
        let Some(user) = request.plan.user.as_deref() else {
            return readers::open(&reader, &env);
        };
        identity::check_reader(user, &reader)?;
        env.denied = identity::denied_values(user, &reader);
        let source = readers::open(&reader, &env)?;
        Ok(Box::new(Permitted {
            source,
            reader,
            user: user.into(),
            denied: env.denied.iter().map(|(kind, _)| *kind).collect(),
            looked: Instant::now(),
            over: false,
        }) as Box<dyn Source>)
    });
    Input::Source(opened.unwrap_or_else(|text| Box::new(FailedSource(Some(text)))))
}
