//! The value that a plain SET has just written, for the handler that runs right after it: what is at hand need not be asked
//! of the server again. Counts on this thread, and only until some handler has run.

use std::cell::RefCell;

use super::super::limits;
use crate::redis::wrapper::{Ran, Wrapped};

#[derive(Default)]
struct Fresh {
    is_valid: bool,
    key: Vec<u8>,
    value: Vec<u8>,
}

thread_local! {
    static FRESH: RefCell<Fresh> = RefCell::default();
}

/// The command has run, and this came of it.
#[inline]
pub fn note(call: &Wrapped, ran: Option<&Ran>) {
    // With more arguments the key may expire, or keep its value.
    let is_plain_set = call.len() == 3 && call.arg(0).eq_ignore_ascii_case(b"set");
    let is_small = is_plain_set && call.arg(2).len() <= limits::FRESH_VALUE;
    if is_small && ran.is_some_and(|ran| !ran.is_error()) && call.database() == 0 {
        FRESH.with_borrow_mut(|fresh| fresh.set(call.arg(1), call.arg(2)));
    }
}

impl Fresh {
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.is_valid = true;
        self.key.clear();
        self.key.extend_from_slice(key);
        self.value.clear();
        self.value.extend_from_slice(value);
    }
}

/// The command that is under way: with it all ends, also when a panic passes.
pub struct Scope;

impl Drop for Scope {
    fn drop(&mut self) {
        forget();
    }
}

/// A handler has run: it may have changed the key.
#[inline]
pub fn forget() {
    FRESH.with_borrow_mut(|fresh| fresh.is_valid = false);
}

/// Gives `f` the value of the key, if it is at hand.
#[inline]
pub fn with<R>(key: &[u8], f: impl FnOnce(Option<&[u8]>) -> R) -> R {
    FRESH.with_borrow(|fresh| f((fresh.is_valid && *fresh.key == *key).then_some(&fresh.value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_for_its_key_until_it_is_forgotten() {
        assert_eq!(with(b"", |value| value.map(<[u8]>::to_vec)), None);
        FRESH.with_borrow_mut(|fresh| fresh.set(b"k", b"v"));
        assert_eq!(with(b"k", |value| value.map(<[u8]>::to_vec)), Some(b"v".to_vec()));
        assert_eq!(with(b"l", |value| value.map(<[u8]>::to_vec)), None);
        forget();
        assert_eq!(with(b"k", |value| value.map(<[u8]>::to_vec)), None);
    }
}
