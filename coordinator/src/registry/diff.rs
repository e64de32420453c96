//! What a node has to do to get from the state that is active on it to a newer one.

use std::sync::Arc;

use super::{Registration, Registry, Session};

/// The way from one state to another. Whatever came and went in between does not show.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Difference {
    /// Registrations that are gone, in their order, and whether their pending executions are to be aborted.
    pub removed: Vec<(Arc<Registration>, bool)>,
    /// New registrations, in their order.
    pub added: Vec<Arc<Registration>>,
    /// Registrations that were paused or unpaused: as they are now.
    pub changed: Vec<Arc<Registration>>,
    /// Sessions that are gone or were replaced (under the same name too), by sequence.
    pub sessions_removed: Vec<Arc<Session>>,
    /// New sessions; those that got or lost registrations, as they are now.
    pub sessions_changed: Vec<Arc<Session>>,
    /// Statistics go to zero.
    pub clear_statistics: bool,
}

impl Difference {
    /// Compares; parts that the two states share cost nothing.
    pub fn between(_old: &Registry, _new: &Registry) -> Difference {
        unimplemented!()
    }
}
