//! What the code that runs on this thread belongs to: its session, and whether it is a script body or a step.

use std::{cell::RefCell, sync::Arc};

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

struct Context {
    place: Place,
    session: Option<Arc<Session>>,
    /// What fired it.
    origin: Option<Arc<dyn Origin>>,
    /// What the chain is at whose steps run.
    moment: Option<Arc<Moment>>,
    /// That of the coroutine.
    situation: Option<Arc<Situation>>,
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
    static CONTEXT: RefCell<Context> = const { RefCell::new(Context::OUTSIDE) };
}

/// Sets the context of a thread until it goes.
pub(crate) struct Entered(Option<Context>);

/// Python code of `session` starts to run on this thread.
pub(crate) fn enter(place: Place, session: &Arc<Session>) -> Entered {
    begin(Context {
        place,
        session: Some(session.clone()),
        registered: true,
        ..Context::OUTSIDE
    })
}

fn begin(context: Context) -> Entered {
    Entered(Some(CONTEXT.with(|c| c.replace(context))))
}

/// A call into code of a session, perhaps from other code on the same thread. The order of the fields counts.
pub(crate) struct Visit {
    _block: lock::Outside,
    _entered: Entered,
}

/// Like `enter`, for code that may run inside of other Python code: that one's atomic block is not the visitor's.
pub(crate) fn visit(place: Place, session: &Arc<Session>) -> Visit {
    Visit {
        _block: lock::outside(),
        _entered: enter(place, session),
    }
}

/// Like `visit`, for the steps of a chain.
pub(crate) fn visit_steps(session: &Arc<Session>, origin: Option<Arc<dyn Origin>>, moment: &Arc<Moment>) -> Visit {
    moment.allow(origin.as_ref().is_none_or(|origin| origin.may_postpone()));
    let context = Context {
        place: Place::Step,
        session: Some(session.clone()),
        origin,
        moment: Some(moment.clone()),
        registered: true,
        ..Context::OUTSIDE
    };
    Visit {
        _block: lock::outside(),
        _entered: begin(context),
    }
}

/// Like `visit`, for a step of a coroutine.
pub(crate) fn visit_coroutine(
    situation: Arc<Situation>,
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
        _block: lock::outside(),
        _entered: begin(context),
    }
}

impl Entered {
    /// What the script body asked for.
    pub(crate) fn take_request(&self) -> Option<RunRequest> {
        CONTEXT.with(|c| c.borrow_mut().request.take()).map(|request| *request)
    }

    /// The registrations that it asked for.
    pub(crate) fn take_registrations(&self) -> Vec<RegistrationDraft> {
        take_registrations()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            let ended = CONTEXT.with(|c| c.replace(before));
            // Outside of the borrow: dropping a session may run other code.
            drop(ended);
        }
    }
}

pub(crate) fn place() -> Place {
    CONTEXT.with(|c| c.borrow().place)
}

pub(crate) fn session() -> Option<Arc<Session>> {
    CONTEXT.with(|c| c.borrow().session.clone())
}

pub(crate) fn set_session(session: Option<Arc<Session>>) {
    let before = CONTEXT.with(|c| std::mem::replace(&mut c.borrow_mut().session, session));
    drop(before);
}

/// What fired the running code.
pub(crate) fn origin() -> Option<Arc<dyn Origin>> {
    CONTEXT.with(|c| c.borrow().origin.clone())
}

/// What the chain is at whose steps run on this thread.
pub(crate) fn moment() -> Option<Arc<Moment>> {
    CONTEXT.with(|c| c.borrow().moment.clone())
}

/// The situation of the coroutine that runs on this thread.
pub(crate) fn situation() -> Option<Arc<Situation>> {
    CONTEXT.with(|c| c.borrow().situation.clone())
}

pub(crate) fn registered() -> bool {
    CONTEXT.with(|c| c.borrow().registered)
}

pub(crate) fn register_thread() {
    CONTEXT.with(|c| c.borrow_mut().registered = true);
}

/// The script body has called `run()` already.
pub(crate) fn has_request() -> bool {
    CONTEXT.with(|c| c.borrow().request.is_some())
}

pub(crate) fn set_request(request: RunRequest) {
    CONTEXT.with(|c| c.borrow_mut().request = Some(Box::new(request)));
}

pub(crate) fn take_registrations() -> Vec<RegistrationDraft> {
    CONTEXT.with(|c| std::mem::take(&mut c.borrow_mut().registrations))
}

pub(crate) fn set_registrations(registrations: Vec<RegistrationDraft>) {
    CONTEXT.with(|c| c.borrow_mut().registrations = registrations);
}
