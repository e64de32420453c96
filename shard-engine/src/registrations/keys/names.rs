//! Names of events in lower case. The server uses some eighty; each is kept once, so that an event costs no memory of its
//! own for its name.

use std::sync::{Arc, LazyLock};

use hashbrown::HashMap;
use parking_lot::RwLock;

use super::super::limits;

/// By the server's own spelling.
type Names = HashMap<Box<[u8]>, Arc<str>>;

static NAMES: LazyLock<RwLock<Names>> = LazyLock::new(RwLock::default);

/// The name in lower case, as text.
pub fn of(event: &[u8]) -> Arc<str> {
    if let Some(name) = NAMES.read().get(event) {
        return name.clone();
    }
    let name: Arc<str> = String::from_utf8_lossy(&event.to_ascii_lowercase()).into();
    let mut names = NAMES.write();
    // Modules may make names up; beyond the bound each event brings its own.
    if names.len() < limits::EVENT_NAMES {
        names.insert(event.into(), name.clone());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_once_and_in_lower_case() {
        let (one, two) = (of(b"RENAME_from"), of(b"RENAME_from"));
        assert_eq!(&*one, "rename_from");
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(&*of(b"a\xff"), "a\u{fffd}");
    }
}
