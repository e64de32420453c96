//! What a coroutine takes along from the code that made it: session, cause, whose rights it has, who waits for it.

use std::sync::Arc;

use super::waits::Waits;
use crate::{
    context::{self, Visit},
    origin::Origin,
    server::{Acting, server},
    session::Session,
};

/// Where code belongs, to be taken to another thread.
pub(crate) struct Situation {
    pub(crate) session: Option<Arc<Session>>,
    origin: Option<Arc<dyn Origin>>,
    acting: Acting,
    /// Of the chain whose record it completes.
    pub(crate) waits: Option<Arc<Waits>>,
}

impl Situation {
    /// That of the running code; `waits` is that of the record which is postponed.
    pub(crate) fn here(waits: Option<Arc<Waits>>) -> Situation {
        Situation {
            session: context::session(),
            origin: context::origin(),
            acting: server().acting(),
            waits,
        }
    }

    /// The same in another session.
    pub(crate) fn within(self, session: Arc<Session>) -> Situation {
        Situation {
            session: Some(session),
            ..self
        }
    }

    /// Its name in the log.
    pub(crate) fn name(&self) -> &str {
        self.session.as_ref().map_or("(none)", |session| session.id())
    }

    /// Code of the situation runs on this thread until the guard goes.
    pub(crate) fn enter(self: &Arc<Situation>) -> Inside {
        let visit = context::visit_coroutine(self.clone(), self.session.clone(), self.origin.clone());
        Inside {
            before: Some(server().act_as(self.acting.clone())),
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
