//! What clients asked for and were told, and whether the states agree with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    consensus::ProposeError,
    registry::{Command, Registry},
};

/// A change that some client asked for.
pub(super) struct Asked {
    pub command: Command,
    pub at_ms: u64,
    pub answer: Option<Answer>,
}

/// What the client was told.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Made {
        group: String,
        index: u64,
    },
    Refused(String),
    /// Nothing was or will be changed.
    NoQuorum,
    Unknown,
}

#[derive(Default)]
pub(super) struct History {
    pub asked: Vec<Asked>,
    /// All states that any node ever published, by group and index.
    states: BTreeMap<(String, u64), Arc<Registry>>,
    /// Who led which term of which group.
    leaders: BTreeMap<(String, u64), u64>,
}

/// The registration that a change makes.
fn made(command: &Command) -> Option<&str> {
    match command {
        Command::ChangeSession(change) => change.registrations.first().map(|r| &*r.id),
        _ => None,
    }
}

fn has(state: &Registry, id: &str) -> bool {
    state.registration(id).is_some()
}

impl History {
    pub fn ask(&mut self, command: Command, at_ms: u64) -> u64 {
        self.asked.push(Asked {
            command,
            at_ms,
            answer: None,
        });
        self.asked.len() as u64 - 1
    }

    pub fn answer(&mut self, ticket: u64, group: Option<String>, result: Result<u64, ProposeError>) -> Answer {
        let answer = match result {
            Ok(index) => Answer::Made {
                group: group.unwrap_or_default(),
                index,
            },
            Err(ProposeError::Refused(refusal)) => Answer::Refused(refusal.to_string()),
            Err(ProposeError::Unknown(_)) => Answer::Unknown,
            Err(_) => Answer::NoQuorum,
        };
        let asked = &mut self.asked[ticket as usize];
        assert!(asked.answer.is_none(), "change {ticket} is answered twice");
        asked.answer = Some(answer.clone());
        answer
    }

    pub fn led(&mut self, group: &str, term: u64, raft_id: u64) {
        let leader = *self.leaders.entry((group.to_owned(), term)).or_insert(raft_id);
        assert_eq!(leader, raft_id, "two leaders of term {term} in group {group}");
    }

    /// The newest term of a group that anybody led.
    pub fn last_term(&self, group: &str) -> u64 {
        let terms = self.leaders.range((group.to_owned(), 0)..=(group.to_owned(), u64::MAX));
        terms.last().map_or(0, |((_, term), _)| *term)
    }

    /// Equal index, equal state.
    pub fn published(&mut self, group: &str, state: &Arc<Registry>) {
        let known = self
            .states
            .entry((group.to_owned(), state.index()))
            .or_insert_with(|| state.clone());
        let same = Arc::ptr_eq(known, state) || known == state;
        assert!(same, "two different states of group {group} at index {}", state.index());
    }

    /// Groups that told a client that a change was made.
    pub fn groups(&self) -> BTreeSet<String> {
        let groups = self.asked.iter().filter_map(|asked| match &asked.answer {
            Some(Answer::Made { group, .. }) => Some(group.clone()),
            _ => None,
        });
        groups.collect()
    }

    pub fn count(&self, answer: fn(&Answer) -> bool) -> usize {
        self.asked
            .iter()
            .filter(|asked| asked.answer.as_ref().is_some_and(answer))
            .count()
    }

    /// Whether some change that may have been made removes this registration.
    fn may_be_removed(&self, id: &str, session: &str) -> bool {
        self.asked.iter().any(|asked| {
            let possible = !matches!(asked.answer, Some(Answer::Refused(_) | Answer::NoQuorum));
            let removes = match &asked.command {
                Command::Unregister { id: removed, .. } => **removed == *id,
                Command::ChangeSession(change) => {
                    let names = [Some(&change.name), change.replace.as_ref()];
                    (change.upgrade || change.replace.is_some())
                        && change.registrations.iter().all(|r| *r.id != *id)
                        && names.into_iter().flatten().any(|name| **name == *session)
                }
                _ => false,
            };
            possible && removes
        })
    }

    /// Everything that must hold at the end, when `group` is the cluster's and has come to the state `last`.
    pub fn check(&self, group: &str, last: &Registry) {
        let range = (group.to_owned(), 0)..=(group.to_owned(), u64::MAX);
        let states: Vec<&Registry> = self.states.range(range).map(|(_, state)| &**state).collect();
        let newest = states.last().map_or(0, |state| state.index());
        assert!(
            last.index() >= newest,
            "the state went back from {newest} to {}",
            last.index()
        );
        self.check_lives(&states);
        for (number, asked) in self.asked.iter().enumerate() {
            self.check_answer(number, asked, group, &states);
        }
        self.check_counts(group, last);
        let again = Registry::decode(&last.encode()).expect("the state's bytes");
        assert!(again == *last, "the state does not survive its bytes");
    }

    /// An id lives once: it never comes back, and its registration never changes.
    fn check_lives(&self, states: &[&Registry]) {
        let mut gone = BTreeSet::new();
        let mut alive = BTreeMap::new();
        for state in states {
            let now: BTreeMap<Arc<str>, u64> = state
                .registrations()
                .iter()
                .map(|r| (r.id.clone(), r.sequence))
                .collect();
            for (id, sequence) in &now {
                assert!(!gone.contains(id), "{id} is back at index {}", state.index());
                let known = *alive.entry(id.clone()).or_insert(*sequence);
                assert_eq!(known, *sequence, "{id} was made twice");
            }
            let dead: Vec<Arc<str>> = alive.keys().filter(|id| !now.contains_key(*id)).cloned().collect();
            for id in dead {
                alive.remove(&id);
                gone.insert(id);
            }
        }
    }

    fn check_answer(&self, number: usize, asked: &Asked, group: &str, states: &[&Registry]) {
        let made = made(&asked.command);
        match &asked.answer {
            Some(Answer::Made { group: by, index }) if by == group => {
                let after = states.iter().find(|state| state.index() >= *index);
                let after = after.unwrap_or_else(|| panic!("change {number}, acknowledged at {index}, is lost"));
                match (&asked.command, made) {
                    (Command::ChangeSession(change), Some(id)) => assert!(
                        has(after, id) || self.may_be_removed(id, &change.name),
                        "{id} of change {number}, acknowledged at {index}, is not there at {}",
                        after.index()
                    ),
                    (Command::Unregister { id, .. }, _) => {
                        assert!(!has(after, id), "{id} is there after its end was acknowledged")
                    }
                    _ => {}
                }
            }
            Some(Answer::Refused(_) | Answer::NoQuorum) => {
                let Some(id) = made else { return };
                let found = self.states.iter().find(|(_, state)| has(state, id));
                assert!(
                    found.is_none(),
                    "{id} of change {number} is there, but its client was told {:?}",
                    asked.answer
                );
            }
            _ => {}
        }
        // What was made and could not be removed is there at the end.
        if let (Some(id), Command::ChangeSession(change)) = (made, &asked.command)
            && states.iter().any(|state| has(state, id))
            && !self.may_be_removed(id, &change.name)
            && let Some(last) = states.last()
        {
            assert!(has(last, id), "{id} of change {number} is lost");
        }
    }

    /// Each request took effect once at most: clearing statistics counts.
    fn check_counts(&self, group: &str, last: &Registry) {
        let cleared = |possible: &dyn Fn(&Option<Answer>) -> bool| {
            let clears = self
                .asked
                .iter()
                .filter(|a| matches!(a.command, Command::ClearStatistics));
            clears.filter(|a| possible(&a.answer)).count() as u64
        };
        let least = cleared(&|a| matches!(a, Some(Answer::Made { group: by, .. }) if by == group));
        let most = cleared(&|a| !matches!(a, Some(Answer::NoQuorum | Answer::Refused(_))));
        let epoch = last.statistics_epoch();
        assert!(
            (least..=most).contains(&epoch),
            "statistics were cleared {epoch} times, {least} were acknowledged of {most}"
        );
    }
}
