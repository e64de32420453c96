//! Names of events in lower case. The server uses some eighty; each is kept once and for ever, so that an event costs neither
//! memory nor a count of references for its name.

use std::{
    ops::Deref,
    sync::{Arc, LazyLock},
};

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::super::{limits, padded::Padded};
use crate::redis::{guarded::Guarded, lock::ServerLock};

/// The name of an event.
#[derive(Debug, Clone)]
pub enum Name {
    /// It is kept.
    Kept(&'static str),
    /// One too many, of a module that makes names up.
    Own(Arc<str>),
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Name::Kept(name) => name,
            Name::Own(name) => name,
        }
    }
}

/// By the server's own spelling. The bytes lie in the table itself, and what others write lies elsewhere.
type Names = HashMap<SmallVec<[u8; 24]>, &'static str>;

static NAMES: LazyLock<Guarded<Names>> = LazyLock::new(|| Guarded::new(Names::new()));

/// The name in lower case, as text.
pub fn of(guard: &ServerLock, event: &[u8]) -> Name {
    if let Some(name) = NAMES.borrow(guard).get(event) {
        return Name::Kept(name);
    }
    let name = String::from_utf8_lossy(&event.to_ascii_lowercase()).into_owned();
    let mut names = NAMES.borrow_mut(guard);
    if names.len() >= limits::EVENT_NAMES || event.len() > limits::EVENT_NAME_BYTES {
        return Name::Own(name.into());
    }
    let name = keep(name);
    names.insert(event.into(), name);
    Name::Kept(name)
}

/// For ever, in cache lines of its own: every event reads it, on two threads.
fn keep(name: String) -> &'static str {
    let mut apart = String::with_capacity(name.len().next_multiple_of(size_of::<Padded<u8>>()));
    apart.push_str(&name);
    apart.leak()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::filter;

    #[test]
    fn names_are_kept_once_and_in_lower_case() {
        let of = |event: &[u8]| filter::in_callback(|guard| of(guard, event));
        let (one, two) = (of(b"RENAME_from"), of(b"RENAME_from"));
        assert_eq!(&*one, "rename_from");
        assert!(matches!((one, two), (Name::Kept(one), Name::Kept(two)) if std::ptr::eq(one, two)));
        assert_eq!(&*of(b"a\xff"), "a\u{fffd}");
        let long = vec![b'A'; limits::EVENT_NAME_BYTES + 1];
        assert!(matches!(of(&long), Name::Own(name) if name.starts_with("aaa")));
    }
}
