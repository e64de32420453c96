//! A map whose clones share what they have in common, and a FIFO of such maps. Never shares what was changed.
//!
//! Two levels of fixed width, then small sorted lists: a change copies one path, a clone copies one pointer, and two
//! maps are compared without looking at what they share.

use std::{borrow::Borrow, cmp::Ordering, sync::Arc};

use bytes::Bytes;

/// Branches of a level. The square of it is the number of lists.
const FANOUT: usize = 32;

type Leaf<K, V> = Arc<Vec<(K, Arc<V>)>>;
type Branch<K, V> = Arc<[Leaf<K, V>; FANOUT]>;

/// What decides about the place of a key. The same on every node and in every run, so that maps are comparable; the
/// same for a key and for what it is borrowed as.
pub(super) trait Spread {
    /// Well spread bits.
    fn spread(&self) -> u32;
}

impl Spread for str {
    fn spread(&self) -> u32 {
        crc32fast::hash(self.as_bytes())
    }
}

impl Spread for [u8] {
    fn spread(&self) -> u32 {
        crc32fast::hash(self)
    }
}

impl Spread for Arc<str> {
    fn spread(&self) -> u32 {
        str::spread(self)
    }
}

impl Spread for Bytes {
    fn spread(&self) -> u32 {
        <[u8]>::spread(self)
    }
}

impl Spread for u64 {
    fn spread(&self) -> u32 {
        *self as u32
    }
}

impl Spread for u128 {
    fn spread(&self) -> u32 {
        *self as u32
    }
}

fn place(spread: u32) -> (usize, usize) {
    let spread = spread as usize;
    (spread % FANOUT, spread / FANOUT % FANOUT)
}

/// The map.
pub(super) struct SharedMap<K, V> {
    top: Arc<[Branch<K, V>; FANOUT]>,
    len: usize,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap {
            top: self.top.clone(),
            len: self.len,
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        let leaf: Leaf<K, V> = Arc::default();
        let branch: Branch<K, V> = Arc::new(std::array::from_fn(|_| leaf.clone()));
        SharedMap {
            top: Arc::new(std::array::from_fn(|_| branch.clone())),
            len: 0,
        }
    }
}

impl<K, V> std::fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} entries", self.len)
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut equal = self.len == other.len;
        if equal {
            self.compare(other, |_, _| equal = false);
        }
        equal
    }
}

impl<K, V> SharedMap<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// All entries, in an order that only the map knows.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        let leaves = self.top.iter().flat_map(|branch| branch.iter());
        leaves.flat_map(|leaf| leaf.iter()).map(|(key, value)| (key, value))
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    pub fn get<Q>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
        Q: Spread + Ord + ?Sized,
    {
        let (first, second) = place(key.spread());
        let leaf = &self.top[first][second];
        let at = leaf.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        Some(&leaf[at].1)
    }

    /// Calls `differs(old, new)` for every key whose value is there on one side only, or is not equal.
    pub fn compare<'a>(
        &'a self,
        new: &'a SharedMap<K, V>,
        mut differs: impl FnMut(Option<&'a Arc<V>>, Option<&'a Arc<V>>),
    ) where
        V: PartialEq,
    {
        if Arc::ptr_eq(&self.top, &new.top) {
            return;
        }
        for (old, new) in self.top.iter().zip(new.top.iter()) {
            if Arc::ptr_eq(old, new) {
                continue;
            }
            for (old, new) in old.iter().zip(new.iter()) {
                if !Arc::ptr_eq(old, new) {
                    compare_leaves(old, new, &mut differs);
                }
            }
        }
    }
}

fn compare_leaves<'a, K: Ord, V: PartialEq>(
    mut old: &'a [(K, Arc<V>)],
    mut new: &'a [(K, Arc<V>)],
    differs: &mut impl FnMut(Option<&'a Arc<V>>, Option<&'a Arc<V>>),
) {
    loop {
        let order = match (old.first(), new.first()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let (take_old, take_new) = (order != Ordering::Greater, order != Ordering::Less);
        let a = old.first().filter(|_| take_old).map(|(_, value)| value);
        let b = new.first().filter(|_| take_new).map(|(_, value)| value);
        match (a, b) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) || a == b => {}
            _ => differs(a, b),
        }
        old = &old[usize::from(take_old)..];
        new = &new[usize::from(take_new)..];
    }
}

impl<K: Ord + Clone, V> SharedMap<K, V> {
    /// Sets the value of a key; gives the one that it had.
    pub fn insert(&mut self, key: K, value: Arc<V>) -> Option<Arc<V>>
    where
        K: Spread,
    {
        let (first, second) = place(key.spread());
        let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.top)[first]);
        let leaf = Arc::make_mut(&mut branch[second]);
        match leaf.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut leaf[at].1, value)),
            Err(at) => {
                leaf.insert(at, (key, value));
                self.len += 1;
                None
            }
        }
    }

    pub fn remove<Q>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Spread + Ord + ?Sized,
    {
        // Looked at first: what is not there must not make a copy.
        self.get(key)?;
        let (first, second) = place(key.spread());
        let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.top)[first]);
        let leaf = Arc::make_mut(&mut branch[second]);
        let at = leaf.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        self.len -= 1;
        Some(leaf.remove(at).1)
    }
}

/// Entries in the order in which they came, found by key.
pub(super) struct SharedFifo<K, V> {
    entries: SharedMap<K, V>,
    /// Keys by place in the queue.
    order: SharedMap<u64, K>,
    front: u64,
    back: u64,
}

impl<K, V> Clone for SharedFifo<K, V> {
    fn clone(&self) -> Self {
        SharedFifo {
            entries: self.entries.clone(),
            order: self.order.clone(),
            ..*self
        }
    }
}

impl<K, V> Default for SharedFifo<K, V> {
    fn default() -> Self {
        SharedFifo {
            entries: SharedMap::default(),
            order: SharedMap::default(),
            front: 0,
            back: 0,
        }
    }
}

impl<K, V> std::fmt::Debug for SharedFifo<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.entries.fmt(f)
    }
}

impl<K: Spread + Ord + Clone, V> SharedFifo<K, V> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn get<Q>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
        Q: Spread + Ord + ?Sized,
    {
        self.entries.get(key)
    }

    /// Adds an entry at the end. The key must be new.
    pub fn push(&mut self, key: K, value: V) {
        if self.entries.insert(key.clone(), Arc::new(value)).is_none() {
            self.order.insert(self.back, Arc::new(key));
            self.back += 1;
        }
    }

    pub fn oldest(&self) -> Option<&Arc<V>> {
        self.entries.get::<K>(self.order.get(&self.front)?)
    }

    pub fn newest(&self) -> Option<&Arc<V>> {
        self.entries.get::<K>(self.order.get(&self.back.checked_sub(1)?)?)
    }

    pub fn pop_oldest(&mut self) {
        if let Some(key) = self.order.remove(&self.front) {
            self.front += 1;
            self.entries.remove::<K>(&key);
        }
    }

    /// All entries, oldest first.
    pub fn in_order(&self) -> impl Iterator<Item = &Arc<V>> {
        (self.front..self.back).filter_map(|place| self.entries.get::<K>(self.order.get(&place)?))
    }
}

impl<K: Spread + Ord + Clone, V: PartialEq> PartialEq for SharedFifo<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.in_order().eq(other.in_order())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn it_is_a_map_and_clones_stay_as_they_were() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut map = SharedMap::<u64, u64>::default();
        let mut model = BTreeMap::new();
        let mut kept = Vec::new();
        for round in 0..20_000 {
            let key = rng.random_range(0..3000) * 0x9e37_79b9;
            match rng.random_range(0..3) {
                0 => assert_eq!(map.remove(&key).map(|v| *v), model.remove(&key)),
                _ => assert_eq!(map.insert(key, Arc::new(round)).map(|v| *v), model.insert(key, round)),
            }
            if round % 2000 == 0 {
                kept.push((map.clone(), model.clone()));
            }
        }
        kept.push((map, model));
        for (map, model) in &kept {
            assert_eq!(map.len(), model.len());
            let all: BTreeMap<u64, u64> = map.iter().map(|(k, v)| (*k, **v)).collect();
            assert_eq!(&all, model);
            assert!(model.iter().all(|(k, v)| map.get(k).is_some_and(|found| **found == *v)));
        }
        for ((old, old_model), (new, new_model)) in kept.iter().zip(kept.iter().skip(1)) {
            let mut changed = 0;
            old.compare(new, |_, _| changed += 1);
            let keys = old_model.keys().chain(new_model.keys());
            let expected: std::collections::BTreeSet<_> =
                keys.filter(|k| old_model.get(k) != new_model.get(k)).collect();
            assert_eq!(changed, expected.len());
            assert!(old != new && old == &old.clone());
        }
    }

    #[test]
    fn equal_contents_are_equal_however_they_came_about() {
        let (mut a, mut b) = (SharedMap::<u64, u64>::default(), SharedMap::default());
        for key in 0..500 {
            a.insert(key, Arc::new(key));
            b.insert(499 - key, Arc::new(499 - key));
        }
        a.insert(1000, Arc::new(0));
        assert!(a != b);
        a.remove(&1000);
        assert!(a == b);
    }

    #[test]
    fn a_fifo_keeps_its_order() {
        let mut fifo = SharedFifo::<u128, u64>::default();
        for n in 0..100u64 {
            fifo.push(u128::from(n) << 3, n);
            if fifo.len() > 10 {
                fifo.pop_oldest();
            }
        }
        assert_eq!(
            fifo.in_order().map(|v| **v).collect::<Vec<_>>(),
            (90..100).collect::<Vec<_>>()
        );
        assert_eq!(fifo.oldest().map(|v| **v), Some(90));
        assert!(fifo.get(&(89 << 3)).is_none() && fifo.get(&(99 << 3)).is_some());
    }
}
