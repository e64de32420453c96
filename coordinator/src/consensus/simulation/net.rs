//! Links between the nodes: late messages, broken links, partitions in one or both directions.
//!
//! A link keeps the order of what it carries and loses nothing while it is up; when it breaks, what is under way is
//! lost. That is what the mesh promises. Order between links is free.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, rngs::StdRng};

use crate::message::RegistryMessage;

/// Place of a node in the world's list.
pub(super) type Place = usize;

#[derive(Default)]
struct Link {
    up: bool,
    /// Counts the times it came up; messages of an earlier time are lost.
    life: u64,
    /// Blocked since, in some direction.
    blocked_ms: Option<u64>,
    /// When it is opened again.
    open_ms: Option<u64>,
    /// When it breaks although nothing is blocked.
    break_ms: Option<u64>,
}

/// A message on its way.
pub(super) struct Letter {
    pub from: Place,
    pub to: Place,
    pub message: RegistryMessage,
    life: u64,
}

/// What the links did.
pub(super) enum Change {
    Up(Place, Place),
    Down(Place, Place),
}

#[derive(Default)]
pub(super) struct Net {
    links: BTreeMap<(Place, Place), Link>,
    /// From, to.
    blocked: BTreeSet<(Place, Place)>,
    /// Arrival and a number that keeps letters apart.
    letters: BTreeMap<(u64, u64), Letter>,
    /// Last arrival of each direction: nothing overtakes.
    last: BTreeMap<(Place, Place), u64>,
    sent: u64,
    /// Longest delay of a message.
    pub delay_ms: u64,
}

fn pair(a: Place, b: Place) -> (Place, Place) {
    (a.min(b), a.max(b))
}

impl Net {
    pub fn is_blocked(&self, from: Place, to: Place) -> bool {
        self.blocked.contains(&(from, to))
    }

    pub fn block(&mut self, from: Place, to: Place) {
        self.blocked.insert((from, to));
    }

    pub fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    /// Breaks a link soon, though it will come back.
    pub fn flap(&mut self, a: Place, b: Place, now_ms: u64) {
        if let Some(link) = self.links.get_mut(&pair(a, b)) {
            link.break_ms = Some(now_ms);
        }
    }

    /// A process ended: its links break, even if it is back at once.
    pub fn cut_off(&mut self, place: Place) {
        for (pair, link) in &mut self.links {
            if pair.0 == place || pair.1 == place {
                link.life += 1;
                link.break_ms = link.up.then_some(0);
            }
        }
    }

    /// Hands a message to a link; false if it is not up.
    pub fn send(&mut self, rng: &mut StdRng, now_ms: u64, from: Place, to: Place, message: RegistryMessage) -> bool {
        let Some(link) = self.links.get(&pair(from, to)).filter(|link| link.up) else {
            return false;
        };
        let life = link.life;
        let last = self.last.entry((from, to)).or_default();
        let arrival = (now_ms + rng.random_range(1..=self.delay_ms.max(1))).max(*last);
        *last = arrival;
        self.sent += 1;
        self.letters.insert(
            (arrival, self.sent),
            Letter {
                from,
                to,
                message,
                life,
            },
        );
        true
    }

    /// When the next message arrives.
    pub fn next_ms(&self) -> Option<u64> {
        self.letters.first_key_value().map(|(key, _)| key.0)
    }

    /// The next message that arrives by now; held back while its direction is blocked, as TCP does.
    pub fn receive(&mut self, now_ms: u64) -> Option<Letter> {
        loop {
            let (&key, _) = self.letters.first_key_value().filter(|(key, _)| key.0 <= now_ms)?;
            let letter = self.letters.remove(&key)?;
            let link = self.links.get(&pair(letter.from, letter.to));
            if !link.is_some_and(|link| link.up && link.life == letter.life) {
                continue;
            }
            if self.is_blocked(letter.from, letter.to) {
                self.letters.insert((now_ms + 20, key.1), letter);
                continue;
            }
            return Some(letter);
        }
    }

    /// Lets the links notice what has happened. `linked`: both are alive and know each other.
    pub fn tend(
        &mut self,
        rng: &mut StdRng,
        now_ms: u64,
        nodes: usize,
        linked: impl Fn(Place, Place) -> Linked,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for a in 0..nodes {
            for b in a + 1..nodes {
                let blocked = self.is_blocked(a, b) || self.is_blocked(b, a);
                let link = self.links.entry((a, b)).or_default();
                let linked = linked(a, b);
                let silent = blocked || linked == Linked::Silent;
                if link.up {
                    let since = match silent {
                        true => *link.blocked_ms.get_or_insert(now_ms),
                        false => {
                            link.blocked_ms = None;
                            now_ms
                        }
                    };
                    let torn = link.break_ms.is_some_and(|at| at <= now_ms);
                    if linked == Linked::No || torn || now_ms - since > 2500 {
                        *link = Link {
                            life: link.life + 1,
                            ..Link::default()
                        };
                        changes.push(Change::Down(a, b));
                    }
                } else if silent || linked == Linked::No {
                    link.open_ms = None;
                } else {
                    let open_ms = *link.open_ms.get_or_insert_with(|| now_ms + rng.random_range(10..1000));
                    if open_ms <= now_ms {
                        link.up = true;
                        link.life += 1;
                        link.open_ms = None;
                        changes.push(Change::Up(a, b));
                    }
                }
            }
        }
        changes
    }
}

/// Whether two nodes have a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linked {
    Yes,
    /// One of them does not answer.
    Silent,
    /// They do not know each other, or one is dead.
    No,
}
