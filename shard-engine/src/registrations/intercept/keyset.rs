//! A set of keys: some by name, some by how they begin. Answers in a time that does not grow with their number.

use bytes::Bytes;
use hashbrown::HashSet;

/// Names and beginnings.
#[derive(Default, Clone)]
pub struct KeySet {
    names: HashSet<Bytes>,
    beginnings: HashSet<Bytes>,
    /// Lengths of the beginnings, each once, ascending.
    lengths: Vec<usize>,
    /// A bit for each byte that some beginning begins with: most keys that are not meant need no more than this look.
    first: [u64; 4],
}

impl KeySet {
    /// A registration's prefix: a key's name, or its beginning with a `*`.
    pub fn add_pattern(&mut self, pattern: &Bytes) {
        match pattern.split_last() {
            Some((b'*', _)) => self.add_beginning(pattern.slice(..pattern.len() - 1)),
            // It matches nothing.
            None => {}
            Some(_) => drop(self.names.insert(pattern.clone())),
        }
    }

    /// All keys that begin so.
    pub fn add_beginning(&mut self, beginning: Bytes) {
        if let Some(first) = beginning.first() {
            self.first[usize::from(first / 64)] |= 1 << (first % 64);
        }
        if let Err(at) = self.lengths.binary_search(&beginning.len()) {
            self.lengths.insert(at, beginning.len());
        }
        self.beginnings.insert(beginning);
    }

    /// The first bytes of the keys that are meant. `None`: any may be.
    pub fn first_bytes(&self) -> Option<[u64; 4]> {
        let mut first = self.first;
        for name in &self.names {
            let byte = name.first()?;
            first[usize::from(byte / 64)] |= 1 << (byte % 64);
        }
        (self.lengths.first() != Some(&0)).then_some(first)
    }

    /// All of these are also in `other`.
    pub fn add_to(&self, other: &mut KeySet) {
        other.names.extend(self.names.iter().cloned());
        self.beginnings
            .iter()
            .for_each(|beginning| other.add_beginning(beginning.clone()));
    }

    /// The key is meant.
    #[inline]
    pub fn has(&self, key: &[u8]) -> bool {
        self.begins(key) || (!self.names.is_empty() && self.names.contains(key))
    }

    #[inline]
    fn begins(&self, key: &[u8]) -> bool {
        if self.lengths.first() == Some(&0) {
            return true;
        }
        let Some(first) = key.first() else { return false };
        if self.first[usize::from(first / 64)] & 1 << (first % 64) == 0 {
            return false;
        }
        let mut lengths = self.lengths.iter().take_while(|&&length| length <= key.len());
        lengths.any(|&length| self.beginnings.contains(&key[..length]))
    }

    /// No key is meant.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.beginnings.is_empty()
    }
}

/// The key begins so. To compare with an empty slice, which points nowhere, costs some processors more than a hundred cycles.
#[inline]
pub fn begins_with(key: &[u8], beginning: &[u8]) -> bool {
    beginning.is_empty() || key.starts_with(beginning)
}

/// A registration's prefix means this key.
pub fn matches(pattern: &[u8], key: &[u8]) -> bool {
    match pattern.split_last() {
        Some((b'*', beginning)) => begins_with(key, beginning),
        None => false,
        Some(_) => pattern == key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_or_beginnings() {
        let mut set = KeySet::default();
        for pattern in ["p*", "user:*", "exact", "", "a?*"] {
            set.add_pattern(&Bytes::from_static(pattern.as_bytes()));
        }
        for (key, is_in) in [
            ("p", true),
            ("pq", true),
            ("user:1", true),
            ("user", false),
            ("exact", true),
            ("exact1", false),
            ("", false),
            ("a?x", true),
            ("abx", false),
        ] {
            assert_eq!(set.has(key.as_bytes()), is_in, "{key}");
        }
        set.add_pattern(&Bytes::from_static(b"*"));
        assert!(set.has(b"") && set.has(b"anything") && set.first_bytes().is_none());
        assert!(KeySet::default().is_empty() && !KeySet::default().has(b"x"));
    }

    #[test]
    fn first_bytes_of_names_and_beginnings() {
        let mut set = KeySet::default();
        assert_eq!(set.first_bytes(), Some([0; 4]));
        set.add_pattern(&Bytes::from_static(b"exact"));
        set.add_pattern(&Bytes::from_static(b"\xffab*"));
        assert_eq!(set.first_bytes(), Some([0, 1 << (b'e' % 64), 0, 1 << 63]));
    }

    #[test]
    fn one_pattern_alone() {
        for (pattern, key, is) in [
            ("*", "", true),
            ("k*", "k", true),
            ("k", "k1", false),
            ("k", "k", true),
            ("", "", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), key.as_bytes()), is, "{pattern} {key}");
        }
    }
}
