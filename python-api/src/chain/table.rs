//! A table from key texts to values that keeps the order of first appearance and needs little memory per key.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Long keys are gathered in chunks of this size, so that growing never copies them.
const CHUNK_BYTES: usize = 64 * 1024;

/// Keys up to this length sit in their entry, so that finding one touches no further memory.
const SHORT_BYTES: usize = 16;

/// A short key, padded with zeros; or the chunk and the offset of a long one.
type Place = [u8; SHORT_BYTES];

struct Entry<V> {
    hash: u32,
    len: u32,
    place: Place,
    value: V,
}

/// The table.
pub(crate) struct KeyTable<V> {
    entries: Vec<Entry<V>>,
    index: HashTable<u32>,
    chunks: Vec<Vec<u8>>,
    hasher: DefaultHashBuilder,
}

/// Spreads the stored 32 bits, because the hash table uses the highest and the lowest ones.
#[inline]
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[inline]
fn short(key: &[u8]) -> Place {
    let mut place = [0; SHORT_BYTES];
    place[..key.len()].copy_from_slice(key);
    place
}

fn long<'a>(place: &Place, len: u32, chunks: &'a [Vec<u8>]) -> &'a [u8] {
    let [a, b, c, d, e, f, g, h, ..] = *place;
    let (chunk, start) = (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]) as usize,
    );
    &chunks[chunk as usize][start..start + len as usize]
}

impl<V> KeyTable<V> {
    pub(crate) fn new() -> KeyTable<V> {
        KeyTable {
            entries: Vec::new(),
            index: HashTable::new(),
            chunks: Vec::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// The value of a key, made by `new` if there is none yet.
    #[inline]
    pub(crate) fn entry(&mut self, key: &[u8], new: impl FnOnce() -> V) -> &mut V {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        let hash = hasher.finish() as u32;
        let (entries, chunks) = (&self.entries, &self.chunks);
        let found = if key.len() <= SHORT_BYTES {
            let place = short(key);
            let len = key.len() as u32;
            self.index.find(spread(hash), |&i| {
                let entry = &entries[i as usize];
                entry.place == place && entry.len == len
            })
        } else {
            self.index.find(spread(hash), |&i| {
                let entry = &entries[i as usize];
                entry.hash == hash && entry.len as usize == key.len() && long(&entry.place, entry.len, chunks) == key
            })
        };
        match found {
            Some(&i) => &mut self.entries[i as usize].value,
            None => self.insert(key, hash, new()),
        }
    }

    #[cold]
    fn insert(&mut self, key: &[u8], hash: u32, value: V) -> &mut V {
        let place = if key.len() <= SHORT_BYTES {
            short(key)
        } else {
            self.store(key)
        };
        self.entries.push(Entry {
            hash,
            len: key.len() as u32,
            place,
            value,
        });
        let i = self.entries.len() - 1;
        let entries = &self.entries;
        self.index
            .insert_unique(spread(hash), i as u32, |&i| spread(entries[i as usize].hash));
        &mut self.entries[i].value
    }

    fn store(&mut self, key: &[u8]) -> Place {
        let room = self.chunks.last().is_some_and(|c| c.capacity() - c.len() >= key.len());
        if !room {
            self.chunks.push(Vec::with_capacity(CHUNK_BYTES.max(key.len())));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        let mut place = [0; SHORT_BYTES];
        place[..4].copy_from_slice(&(number as u32).to_le_bytes());
        place[4..8].copy_from_slice(&(chunk.len() as u32).to_le_bytes());
        chunk.extend_from_slice(key);
        place
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Key and value number `i` in order of first appearance.
    #[inline]
    pub(crate) fn get(&mut self, i: usize) -> (&[u8], &mut V) {
        let Entry { len, place, value, .. } = &mut self.entries[i];
        let key = match *len as usize {
            len if len <= SHORT_BYTES => &place[..len],
            _ => long(place, *len, &self.chunks),
        };
        (key, value)
    }

    /// Gives the memory back.
    pub(crate) fn clear(&mut self) {
        if !self.entries.is_empty() {
            *self = KeyTable::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_like_a_map_and_keeps_the_order() {
        let mut table = KeyTable::new();
        for i in 0..100_000u64 {
            // Keys of odd lengths, one of them longer than a chunk.
            let key = if i % 5000 == 0 {
                "x".repeat(CHUNK_BYTES + 1)
            } else {
                format!("key{}", i % 7919)
            };
            *table.entry(key.as_bytes(), || 0) += 1;
        }
        assert_eq!(table.len(), 7920);
        assert_eq!(table.get(0).0.len(), CHUNK_BYTES + 1);
        assert_eq!(table.get(1).0, b"key1");
        let total: i64 = (0..table.len()).map(|i| *table.get(i).1).sum();
        assert_eq!(total, 100_000);
        let mut expected = std::collections::HashMap::new();
        for i in (0..100_000u64).filter(|i| i % 5000 != 0) {
            *expected.entry(format!("key{}", i % 7919)).or_insert(0) += 1;
        }
        for i in 1..table.len() {
            let (key, &mut count) = table.get(i);
            assert_eq!(expected[std::str::from_utf8(key).unwrap()], count);
        }
    }

    #[test]
    fn lengths_around_the_short_form_are_told_apart() {
        let mut table = KeyTable::new();
        for len in 0..40 {
            // Zeros: a padded short key must differ from one that ends in zeros.
            *table.entry(&vec![0; len], || 0) += len;
        }
        for len in 0..40 {
            assert_eq!(table.get(len), (&vec![0; len][..], &mut { len }));
            *table.entry(&vec![0; len], || 0) += 1;
        }
        assert_eq!(table.len(), 40);
    }

    #[test]
    fn empty_keys_are_keys() {
        let mut table = KeyTable::new();
        *table.entry(b"", || 0) += 1;
        *table.entry(b"", || 0) += 1;
        assert_eq!((table.len(), table.get(0).0.len(), *table.get(0).1), (1, 0, 2));
    }
}
