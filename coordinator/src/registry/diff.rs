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
    pub fn between(old: &Registry, new: &Registry) -> Difference {
        let mut difference = Difference {
            clear_statistics: old.statistics_epoch != new.statistics_epoch,
            ..Difference::default()
        };
        old.registrations
            .compare(&new.registrations, |was, is| match (was, is) {
                (Some(was), Some(is)) if is_only_paused(was, is) => difference.changed.push(is.clone()),
                _ => {
                    let abort = |r: &Arc<Registration>| new.tombstones.get(&*r.id).is_some_and(|t| t.abort_pending);
                    difference.removed.extend(was.map(|r| (r.clone(), abort(r))));
                    difference.added.extend(is.cloned());
                }
            });
        old.sessions.compare(&new.sessions, |was, is| {
            let replaced = |was: &&Arc<Session>| is.is_none_or(|is| is.sequence != was.sequence);
            difference.sessions_removed.extend(was.filter(replaced).cloned());
            difference.sessions_changed.extend(is.cloned());
        });
        difference.removed.sort_unstable_by_key(|(r, _)| r.sequence);
        difference.added.sort_unstable_by_key(|r| r.sequence);
        difference.changed.sort_unstable_by_key(|r| r.sequence);
        difference.sessions_removed.sort_unstable_by_key(|s| s.sequence);
        difference.sessions_changed.sort_unstable_by_key(|s| s.sequence);
        difference
    }

    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Difference::default()
    }
}

/// The same registration; another one can have the same id only if the two states have different histories.
fn is_only_paused(was: &Registration, is: &Registration) -> bool {
    let as_it_was = Registration {
        paused: was.paused,
        unpaused: was.unpaused,
        ..is.clone()
    };
    as_it_was == *was
}
