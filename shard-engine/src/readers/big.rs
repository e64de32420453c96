//! Values that are too big for one hold of the lock.
//!
//! They are read in slices, and the key is opened anew in each. Writes between two slices show: such a value is not a
//! snapshot, as with HSCAN or repeated LRANGE. If the key vanishes or changes its type meanwhile, it counts as one that
//! was not there when the reader came by.

use std::ops::ControlFlow;

use oxigears_coordinator::codec::{put_head, put_tagged, tag};

use super::{slices::Deadline, values};
use crate::redis::{
    key::{Key, Kind, StreamId},
    keyspace::{ElementScan, VisitorPanicked},
    lock::ServerLock,
};

/// A value being read.
pub struct BigValue {
    name: Vec<u8>,
    kind: Kind,
    items: Vec<u8>,
    count: usize,
    place: Place,
    /// Members and scores of a sorted set, to be put in order at the end.
    scored: Vec<(f64, Vec<u8>)>,
}

/// Where the next slice goes on.
enum Place {
    Element(ElementScan),
    Index(usize),
    After(Option<StreamId>),
}

impl Place {
    fn start(kind: Kind) -> Place {
        match kind {
            Kind::List => Place::Index(0),
            Kind::Stream => Place::After(None),
            _ => Place::Element(ElementScan::new()),
        }
    }
}

/// How a slice ended.
pub enum Progress {
    /// Another slice is needed.
    More,
    /// All has been read.
    Done,
    /// There is no such value any more.
    Gone,
}

impl BigValue {
    /// Begins with the value of `name`.
    pub fn new(name: Vec<u8>, kind: Kind) -> BigValue {
        BigValue {
            name,
            kind,
            items: Vec::new(),
            count: 0,
            place: Place::start(kind),
            scored: Vec::new(),
        }
    }

    /// The key's name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What the key holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes that have been read.
    pub fn len(&self) -> usize {
        self.items.len() + self.scored.iter().map(|(_, member)| member.len()).sum::<usize>()
    }

    /// Reads on until the slice is over.
    pub fn read(&mut self, guard: &ServerLock, deadline: &mut Deadline) -> Result<Progress, VisitorPanicked> {
        let Some(key) = Key::open(guard, &self.name).filter(|key| key.kind() == self.kind) else {
            return Ok(Progress::Gone);
        };
        let more = match &mut self.place {
            Place::Index(_) => self.read_list(&key, deadline),
            Place::After(_) => self.read_stream(&key, deadline),
            Place::Element(_) => self.read_elements(&key, deadline)?,
        };
        Ok(if more { Progress::More } else { Progress::Done })
    }

    fn read_list(&mut self, key: &Key<'_>, deadline: &mut Deadline) -> bool {
        let Place::Index(index) = &mut self.place else {
            return false;
        };
        while let Some(element) = key.list_element(*index) {
            put_tagged(&mut self.items, tag::TEXT, &element);
            self.count += 1;
            *index += 1;
            if deadline.is_over() {
                return true;
            }
        }
        false
    }

    fn read_stream(&mut self, key: &Key<'_>, deadline: &mut Deadline) -> bool {
        let Place::After(after) = &mut self.place else {
            return false;
        };
        let (items, count, mut more) = (&mut self.items, &mut self.count, false);
        let from = *after;
        key.stream_entries(from, None, |id, fields| {
            values::put_entry(items, &id.to_string(), fields);
            *count += 1;
            *after = Some(id);
            more = deadline.is_over();
            if more {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        more
    }

    fn read_elements(&mut self, key: &Key<'_>, deadline: &mut Deadline) -> Result<bool, VisitorPanicked> {
        let Place::Element(scan) = &mut self.place else {
            return Ok(false);
        };
        let (kind, items, count, scored) = (self.kind, &mut self.items, &mut self.count, &mut self.scored);
        let mut visit = |element: &[u8], value: Option<&[u8]>| {
            if kind == Kind::SortedSet {
                scored.push((score(value), element.to_vec()));
            } else {
                values::put_element(items, kind, element, value);
                *count += 1;
            }
        };
        loop {
            if !scan.step(key, &mut visit)? {
                return Ok(false);
            }
            if deadline.is_over() {
                return Ok(true);
            }
        }
    }

    /// Appends what has been read as one item. Without the lock.
    pub fn put(mut self, out: &mut Vec<u8>) {
        if self.kind == Kind::SortedSet {
            self.put_in_order();
        }
        let container = match self.kind {
            Kind::Hash => tag::DICT,
            Kind::Set => tag::SET,
            _ => tag::LIST,
        };
        put_head(out, container, self.count);
        out.extend_from_slice(&self.items);
    }

    /// As the server orders sorted sets: by score, then by member. A member that was seen twice is given once.
    fn put_in_order(&mut self) {
        let mut scored = std::mem::take(&mut self.scored);
        scored.sort_unstable_by(|a, b| a.1.cmp(&b.1));
        scored.dedup_by(|a, b| a.1 == b.1);
        // -0 is no less than 0 there.
        scored.sort_by(|a, b| (a.0 + 0.0).total_cmp(&(b.0 + 0.0)));
        self.count = scored.len();
        for (score, member) in scored {
            values::put_scored(&mut self.items, &member, score);
        }
    }
}

/// The server writes scores as text with 17 digits, which gives the same number back.
fn score(text: Option<&[u8]>) -> f64 {
    text.and_then(|t| std::str::from_utf8(t).ok())
        .and_then(|t| t.parse().ok())
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxigears_coordinator::codec::{Cursor, Item};

    #[test]
    fn scores_are_read_exactly() {
        for x in [1.5, -0.1, 1e300, 5e-324, f64::INFINITY, f64::NEG_INFINITY, 17.0] {
            assert_eq!(score(Some(format!("{x:e}").as_bytes())), x);
        }
        assert_eq!(score(Some(b"1e+22")), 1e22);
        assert_eq!(score(Some(b"-inf")), f64::NEG_INFINITY);
        assert!(score(None).is_nan());
    }

    #[test]
    fn sorted_sets_are_ordered_and_members_unique() {
        let mut value = BigValue {
            name: b"z".to_vec(),
            kind: Kind::SortedSet,
            items: Vec::new(),
            count: 0,
            place: Place::Index(0),
            scored: [
                (2.0, "b"),
                (1.0, "z"),
                (1.0, "a"),
                (2.0, "b"),
                (-1.0, "q"),
                (-0.0, "y"),
                (0.0, "x"),
            ]
            .map(|(s, m)| (s, m.into()))
            .to_vec(),
        };
        value.put_in_order();
        assert_eq!(value.count, 6);
        let mut cursor = Cursor::new(&value.items);
        let mut seen = Vec::new();
        while !cursor.is_empty() {
            let triple = (cursor.next_item(), cursor.next_item(), cursor.next_item());
            let (Ok(Item::Tuple(2)), Ok(Item::TextKey(member)), Ok(Item::Float(score))) = triple else {
                panic!("{triple:?}");
            };
            seen.push((String::from_utf8_lossy(member).into_owned(), score));
        }
        assert_eq!(
            seen,
            [
                ("q".into(), -1.0),
                ("x".into(), 0.0),
                ("y".into(), -0.0),
                ("a".into(), 1.0),
                ("z".into(), 1.0),
                ("b".into(), 2.0)
            ]
        );
    }
}
