//! What a coroutine takes along from the code that made it: session, cause, whose rights it has, who waits for it.

use std::sync::Arc;

use pyo3::{PyTraverseError, PyVisit, prelude::*};

use super::waits::Waits;
use crate::{
    context::{self, Visit},
    origin::Origin,
    server::{Acting, server},
    session::PyExecutionSession,
};

/// Where code belongs, to be taken to another thread. Each has a reference of its own to the session, which the collector
/// sees where a Python object holds it: those of a coroutine that nobody will run are no more than that.
pub(crate) struct Situation {
    session: Option<Py<PyExecutionSession>>,
    cause: Arc<Cause>,
}

/// What situations share. Knows no Python objects.
struct Cause {
    origin: Option<Arc<dyn Origin>>,
    acting: Acting,
    waits: Option<Arc<Waits>>,
}

impl Situation {
    /// That of the running code; `waits` is that of the record which is postponed.
    pub(crate) fn here(py: Python<'_>, waits: Option<Arc<Waits>>) -> Situation {
        Situation {
            session: context::session().map(|session| session.handle().clone_ref(py)),
            cause: Arc::new(Cause {
                origin: context::origin().map(|origin| origin.lasting().unwrap_or(origin)),
                acting: server().acting(),
                waits,
            }),
        }
    }

    /// The same in another session.
    pub(crate) fn within(self, session: Py<PyExecutionSession>) -> Situation {
        Situation {
            session: Some(session),
            ..self
        }
    }

    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Situation {
        Situation {
            session: self.session.as_ref().map(|session| session.clone_ref(py)),
            cause: self.cause.clone(),
        }
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.session)
    }

    pub(crate) fn session(&self) -> Option<&PyExecutionSession> {
        self.session.as_ref().map(Py::get)
    }

    /// Of the chain whose record the coroutine completes.
    pub(crate) fn waits(&self) -> Option<&Arc<Waits>> {
        self.cause.waits.as_ref()
    }

    /// Its name in the log.
    pub(crate) fn name(&self) -> &str {
        self.session().map_or("(none)", PyExecutionSession::id)
    }

    /// Code of the situation runs on this thread until the guard goes.
    pub(crate) fn enter(&self, py: Python<'_>) -> Inside {
        let session = self.session.as_ref();
        let session = session.map(|session| PyExecutionSession::session(session.bind(py)));
        let visit = context::visit_coroutine(self.clone_ref(py), session, self.cause.origin.clone());
        Inside {
            before: Some(server().act_as(self.cause.acting.clone())),
            _visit: visit,
        }
    }
}

/// See `Situation::enter`. The order counts: the rights go before the place.
pub(crate) struct Inside {
    before: Option<Acting>,
    _visit: Visit,
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            server().act_as(before);
        }
    }
}
