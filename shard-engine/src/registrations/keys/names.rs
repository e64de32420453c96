//! Names of events in lower case. The server uses some eighty; each is kept once and for ever, so that an event costs neither
//! memory nor a count of references for its name.

use std::{
    ops::Deref,
    sync::{Arc, LazyLock},
};

use hashbrown::HashMap;
use parking_lot::RwLock;

use super::super::limits;

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

/// By the server's own spelling.
type Names = HashMap<Box<[u8]>, &'static str>;

static NAMES: LazyLock<RwLock<Names>> = LazyLock::new(RwLock::default);

/// The name in lower case, as text.
pub fn of(event: &[u8]) -> Name {
    if let Some(name) = NAMES.read().get(event) {
        return Name::Kept(name);
    }
    let name = String::from_utf8_lossy(&event.to_ascii_lowercase()).into_owned();
    let mut names = NAMES.write();
    if names.len() >= limits::EVENT_NAMES || event.len() > limits::EVENT_NAME_BYTES {
        return Name::Own(name.into());
    }
    let name: &'static str = name.leak();
    names.insert(event.into(), name);
    Name::Kept(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_once_and_in_lower_case() {
        let (one, two) = (of(b"RENAME_from"), of(b"RENAME_from"));
        assert_eq!(&*one, "rename_from");
        assert!(matches!((one, two), (Name::Kept(one), Name::Kept(two)) if std::ptr::eq(one, two)));
        assert_eq!(&*of(b"a\xff"), "a\u{fffd}");
        let long = vec![b'A'; limits::EVENT_NAME_BYTES + 1];
        assert!(matches!(of(&long), Name::Own(name) if name.starts_with("aaa")));
    }
}
