//! A table from key texts to values that keeps the order of first appearance and needs little memory per key.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Key bytes are gathered in chunks of this size, so that growing never copies them.
const CHUNK_BYTES: usize = 64 * 1024;

struct Entry<V> {
    chunk: u32,
    start: u32,
    len: u32,
    hash: u32,
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
fn key_of<'a, V>(entry: &Entry<V>, chunks: &'a [Vec<u8>]) -> &'a [u8] {
    let start = entry.start as usize;
    &chunks[entry.chunk as usize][start..start + entry.len as usize]
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
        let hash = self.hasher.hash_one(key) as u32;
        let (entries, chunks) = (&self.entries, &self.chunks);
        let same = |&i: &u32| {
            let entry = &entries[i as usize];
            entry.hash == hash && key_of(entry, chunks) == key
        };
        if let Some(&i) = self.index.find(spread(hash), same) {
            return &mut self.entries[i as usize].value;
        }
        self.insert(key, hash, new())
    }

    #[cold]
    fn insert(&mut self, key: &[u8], hash: u32, value: V) -> &mut V {
        let room = self.chunks.last().is_some_and(|c| c.capacity() - c.len() >= key.len());
        if !room {
            self.chunks.push(Vec::with_capacity(CHUNK_BYTES.max(key.len())));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        let start = chunk.len() as u32;
        chunk.extend_from_slice(key);
        let entry = Entry { chunk: number as u32, start, len: key.len() as u32, hash, value };
        self.entries.push(entry);
        let i = self.entries.len() - 1;
        let entries = &self.entries;
        self.index.insert_unique(spread(hash), i as u32, |&i| spread(entries[i as usize].hash));
        &mut self.entries[i].value
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Key and value number `i` in order of first appearance.
    #[inline]
    pub(crate) fn get(&mut self, i: usize) -> (&[u8], &mut V) {
        let entry = &mut self.entries[i];
        let start = entry.start as usize;
        let key = &self.chunks[entry.chunk as usize][start..start + entry.len as usize];
        (key, &mut entry.value)
    }

    /// Gives the memory back.
    pub(crate) fn clear(&mut self) {
        *self = KeyTable::new();
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
            let key = if i % 5000 == 0 { "x".repeat(CHUNK_BYTES + 1) } else { format!("key{}", i % 7919) };
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
    fn empty_keys_are_keys() {
        let mut table = KeyTable::new();
        *table.entry(b"", || 0) += 1;
        *table.entry(b"", || 0) += 1;
        assert_eq!((table.len(), table.get(0).0.len(), *table.get(0).1), (1, 0, 2));
    }
}
