//! Objects that cross an exchange without leaving this shard: they go on as they are, not as copies.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;
use pyo3::ffi;

use crate::{obj::Obj, reaper};

/// The objects of one execution on this shard that wait for its next stage.
#[derive(Default)]
pub(crate) struct Kept {
    next: AtomicU64,
    objects: Mutex<HashMap<u64, Obj>>,
}

impl Kept {
    /// Keeps an object; gives the number to write instead of it.
    ///
    /// # Safety
    /// The GIL is held; `value` is alive.
    pub(crate) unsafe fn keep(&self, value: *mut ffi::PyObject) -> u64 {
        let number = self.next.fetch_add(1, Relaxed);
        // SAFETY: as for this function.
        self.objects.lock().insert(number, unsafe { Obj::from_borrowed(value) });
        number
    }

    /// Gives an object back, once.
    pub(crate) fn take(&self, number: u64) -> Option<Obj> {
        self.objects.lock().remove(&number)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let objects = std::mem::take(self.objects.get_mut());
        if !objects.is_empty() {
            reaper::free(Box::new(objects));
        }
    }
}
