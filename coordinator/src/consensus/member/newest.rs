//! After a restart: which state of the registry is the newest one, as the group's leader tells.
//!
//! What the log says is from the time before. It may say nothing of what was decided while the node was away.

use super::{Member, Part};
use crate::{consensus::disk::Disk, limits, message::GroupHello, topology::NodeId};

/// What is known of it.
pub(super) struct Awaited {
    /// Its index; `u64::MAX` while that is not known.
    index: u64,
    /// The term and the commit index that a leader has told.
    told: Option<(u64, u64)>,
    /// It is not awaited for longer: without a leader the node goes on with what it has. Counted from the first view,
    /// since no link comes up before the server has loaded its dataset.
    until_ms: Option<u64>,
}

impl<D: Disk> Member<D> {
    /// To be called when the process has started: what is on the disk may be old.
    pub fn await_newest(&mut self) {
        if matches!(self.part, Part::In(_)) {
            self.awaited = Some(Awaited {
                index: u64::MAX,
                told: None,
                until_ms: None,
            });
        }
        self.look_for_newest();
    }

    /// Index of the state before which nothing should run here: `u64::MAX` while it is not known, 0 if any will do.
    pub fn awaited_index(&self) -> u64 {
        self.awaited.as_ref().map_or(0, |awaited| awaited.index)
    }

    /// There is a view: links come up now.
    pub(super) fn count_from_now(&mut self) {
        if let Some(awaited) = &mut self.awaited {
            let until_ms = self.now_ms + limits::NEWEST_WAIT.as_millis() as u64;
            awaited.until_ms.get_or_insert(until_ms);
        }
    }

    /// Looks at the time.
    pub(super) fn await_no_longer(&mut self) {
        let is_over = |awaited: &mut Awaited| awaited.until_ms.is_some_and(|until_ms| until_ms <= self.now_ms);
        self.awaited.take_if(is_over);
    }

    /// The leader tells how far it is.
    pub(super) fn leader_told(&mut self, from: &NodeId, hello: &GroupHello) {
        let is_ours = hello.group.is_some() && hello.group == self.own_group();
        if is_ours
            && hello.leader.as_ref() == Some(from)
            && let Some(awaited) = &mut self.awaited
        {
            awaited.told.get_or_insert((hello.term, hello.commit));
        }
    }

    /// What the leader told is applied here, and so is something of its own term: with that all that earlier leaders
    /// have decided, which a new leader may not know when it tells.
    pub(super) fn look_for_newest(&mut self) {
        let (Some(awaited), Part::In(group)) = (&mut self.awaited, &self.part) else {
            return;
        };
        let has_told = |(term, commit)| group.term() >= term && group.commit() >= commit;
        let has_all = group.is_leader() || awaited.told.is_some_and(has_told);
        if awaited.index == u64::MAX && has_all && group.commits_in_term() {
            awaited.index = group.commit();
        }
    }
}
