//! What the code that runs on this thread belongs to: its session, and whether it is a script body or a step.

use std::{cell::RefCell, sync::Arc};

use pyo3::Python;

use crate::{
    functions::RunRequest,
    later::{Moment, Situation},
    lock,
    origin::Origin,
    registration::RegistrationDraft,
    session::Session,
};

/// Kind of code that runs on a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Threads that scripts made.
    Outside,
    /// Body of a script.
    Script,
    /// Step or reader of an execution.
    Step,
    /// `onRegistered` or `onUnregistered`.
    Callback,
    /// Coroutine on the event loop.
    Coroutine,
}

/// What a thread's code belongs to. Lives in a box, which calls into steps use again and again.
pub(crate) struct Context {
    place: Place,
    session: Option<Arc<Session>>,
    /// What fired it.
    origin: Option<Arc<dyn Origin>>,
    /// What the chain is at whose steps run.
    moment: Option<Arc<Moment>>,
    /// That of the coroutine.
    situation: Option<Situation>,
    /// The engine knows the thread.
    registered: bool,
    /// What the script body's one `run()` asked for.
    request: Option<Box<RunRequest>>,
    /// What its calls of `register()` asked for.
    registrations: Vec<RegistrationDraft>,
}

impl Context {
    const OUTSIDE: Context = Context {
        place: Place::Outside,
        session: None,
        origin: None,
        moment: None,
        situation: None,
        registered: false,
        request: None,
        registrations: Vec::new(),
    };
}

thread_local! {
    /// `None`: outside.
    static CONTEXT: RefCell<Option<Box<Context>>> = const { RefCell::new(None) };
}

fn look<R>(at: impl FnOnce(&Context) -> R) -> R {
    CONTEXT.with_borrow(|context| at(context.as_deref().unwrap_or(&Context::OUTSIDE)))
}

fn change<R>(by: impl FnOnce(&mut Context) -> R) -> R {
    CONTEXT.with_borrow_mut(|context| by(context.get_or_insert_with(|| Box::new(Context::OUTSIDE))))
}

/// Sets the context of a thread until it goes; what was before.
pub(crate) struct Entered(Option<Option<Box<Context>>>);

/// Python code of `session` starts to run on this thread.
pub(crate) fn enter(place: Place, session: &Arc<Session>) -> Entered {
    begin(Box::new(Context {
        place,
        session: Some(session.clone()),
        registered: true,
        ..Context::OUTSIDE
    }))
}

fn begin(context: Box<Context>) -> Entered {
    Entered(Some(CONTEXT.replace(Some(context))))
}

/// A call into code of a session, perhaps from other code on the same thread. The order of the fields counts.
pub(crate) struct Visit {
    block: lock::Outside,
    entered: Entered,
}

/// Like `enter`, for code that may run inside of other Python code: that one's atomic block is not the visitor's.
pub(crate) fn visit(place: Place, session: &Arc<Session>) -> Visit {
    Visit {
        block: lock::outside(),
        entered: enter(place, session),
    }
}

/// Like `visit`, for code that belongs to no session that could be told: finalisers.
pub(crate) fn visit_nobody() -> Visit {
    Visit {
        block: lock::outside(),
        entered: begin(Box::new(Context::OUTSIDE)),
    }
}

/// A turn of the event loop is over: what callbacks without a session have set or left open on its thread does not stay.
#[pyo3::pyfunction]
pub(crate) fn turn_over() {
    lock::close_left_open();
    drop(CONTEXT.take());
}

/// Like `visit`, for the steps of a chain. `kept`: what such a visit has given back, of the same session and moment.
pub(crate) fn visit_steps(
    kept: Option<Box<Context>>,
    session: &Arc<Session>,
    origin: Option<Arc<dyn Origin>>,
    moment: &Arc<Moment>,
) -> Visit {
    moment.allow(origin.as_ref().is_none_or(|origin| origin.may_postpone()));
    let mut context = kept.unwrap_or_else(|| {
        Box::new(Context {
            place: Place::Step,
            session: Some(session.clone()),
            moment: Some(moment.clone()),
            registered: true,
            ..Context::OUTSIDE
        })
    });
    context.origin = origin;
    Visit {
        block: lock::outside(),
        entered: begin(context),
    }
}

impl Visit {
    /// Ends the visit of steps. Gives what can be kept for the next one.
    pub(crate) fn leave(self, session: &Arc<Session>) -> Option<Box<Context>> {
        let Visit { block, mut entered } = self;
        drop(block);
        let mut context = entered.leave()?;
        context.origin = None;
        // The code may have changed it.
        let is_as_before = context.session.as_ref().is_some_and(|its| Arc::ptr_eq(its, session))
            && context.registered
            && context.request.is_none()
            && context.registrations.is_empty();
        is_as_before.then_some(context)
    }
}

/// Like `visit`, for a step of a coroutine.
pub(crate) fn visit_coroutine(
    situation: Situation,
    session: Option<Arc<Session>>,
    origin: Option<Arc<dyn Origin>>,
) -> Visit {
    let context = Context {
        place: Place::Coroutine,
        session,
        origin,
        situation: Some(situation),
        registered: true,
        ..Context::OUTSIDE
    };
    Visit {
        block: lock::outside(),
        entered: begin(Box::new(context)),
    }
}

impl Entered {
    /// Ends it.
    fn leave(&mut self) -> Option<Box<Context>> {
        let before = self.0.take()?;
        CONTEXT.replace(before)
    }

    /// What the script body asked for.
    pub(crate) fn take_request(&self) -> Option<RunRequest> {
        change(|context| context.request.take()).map(|request| *request)
    }

    /// The registrations that it asked for.
    pub(crate) fn take_registrations(&self) -> Vec<RegistrationDraft> {
        take_registrations()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Outside of the borrow: dropping a session may run other code.
        drop(self.leave());
    }
}

pub(crate) fn place() -> Place {
    look(|context| context.place)
}

pub(crate) fn session() -> Option<Arc<Session>> {
    look(|context| context.session.clone())
}

pub(crate) fn set_session(session: Option<Arc<Session>>) {
    let before = change(|context| std::mem::replace(&mut context.session, session));
    drop(before);
}

/// What fired the running code.
pub(crate) fn origin() -> Option<Arc<dyn Origin>> {
    look(|context| context.origin.clone())
}

/// What the chain is at whose steps run on this thread.
pub(crate) fn moment() -> Option<Arc<Moment>> {
    look(|context| context.moment.clone())
}

/// The situation of the coroutine that runs on this thread.
pub(crate) fn situation(py: Python<'_>) -> Option<Situation> {
    look(|context| context.situation.as_ref().map(|situation| situation.clone_ref(py)))
}

pub(crate) fn registered() -> bool {
    look(|context| context.registered)
}

pub(crate) fn register_thread() {
    change(|context| context.registered = true);
}

/// The script body has called `run()` already.
pub(crate) fn has_request() -> bool {
    look(|context| context.request.is_some())
}

pub(crate) fn set_request(request: RunRequest) {
    change(|context| context.request = Some(Box::new(request)));
}

pub(crate) fn take_registrations() -> Vec<RegistrationDraft> {
    change(|context| std::mem::take(&mut context.registrations))
}

pub(crate) fn set_registrations(registrations: Vec<RegistrationDraft>) {
    change(|context| context.registrations = registrations);
}
