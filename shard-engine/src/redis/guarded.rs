//! Values that the server lock guards. Every use shows that lock, so they need none of their own: what each event of the
//! server looks at costs no atomic operation.

use std::cell::{Ref, RefCell, RefMut};

use super::lock::ServerLock;

/// A value that is used under the server lock only.
///
/// A change while it is borrowed panics, as with `RefCell`: who borrows must not call what may change it.
pub struct Guarded<T>(RefCell<T>);

// SAFETY: every use shows the server lock, which one thread has at a time; a loan of it orders what both threads do.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    /// With a first value.
    pub const fn new(value: T) -> Guarded<T> {
        Guarded(RefCell::new(value))
    }

    /// To look at.
    #[inline]
    pub fn borrow<'a>(&'a self, _guard: &'a ServerLock) -> Ref<'a, T> {
        self.0.borrow()
    }

    /// As `borrow`, but `None` while it is being changed.
    #[inline]
    pub fn try_borrow<'a>(&'a self, _guard: &'a ServerLock) -> Option<Ref<'a, T>> {
        self.0.try_borrow().ok()
    }

    /// To change.
    #[inline]
    pub fn borrow_mut<'a>(&'a self, _guard: &'a ServerLock) -> RefMut<'a, T> {
        self.0.borrow_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::lock;

    #[test]
    fn one_changes_many_look() {
        static VALUE: Guarded<u32> = Guarded::new(1);
        let _callback = lock::enter_callback();
        let guard = lock::lock();
        *VALUE.borrow_mut(&guard) += 1;
        let (one, two) = (VALUE.borrow(&guard), VALUE.borrow(&guard));
        assert_eq!((*one, *two), (2, 2));
    }
}
