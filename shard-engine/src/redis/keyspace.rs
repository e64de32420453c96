//! Walking over the keys of database 0, a bucket a call, so that the lock can be given back between any two calls.

use std::{ffi::c_void, ptr::NonNull};

use redis_module::raw;

use super::{
    ffi::{api, catch, string_bytes},
    key::Key,
    lock::ServerLock,
};

/// A walk over all keys. Works on servers with one dictionary a slot, too.
pub struct KeyScan {
    cursor: NonNull<raw::RedisModuleScanCursor>,
    done: bool,
}

// SAFETY: the cursor is plain memory that belongs to us; the keyspace is touched only with the lock.
unsafe impl Send for KeyScan {}

/// The visitor panicked, so the walk has lost keys.
#[derive(Debug, PartialEq, Eq)]
pub struct VisitorPanicked;

/// What a callback needs: the visitor, and whether it panicked.
struct Visit<'a, F> {
    visitor: &'a mut F,
    panicked: bool,
}

impl Default for KeyScan {
    fn default() -> KeyScan {
        KeyScan::new()
    }
}

impl KeyScan {
    /// Begins at the first key.
    pub fn new() -> KeyScan {
        // SAFETY: the call only allocates.
        let cursor = NonNull::new(unsafe { api!(RedisModule_ScanCursorCreate)() });
        KeyScan {
            cursor: cursor.unwrap_or_else(|| super::ffi::missing("memory for a cursor")),
            done: false,
        }
    }

    /// Calls `visitor` with the keys of the next bucket: name and open key. False when all have been visited.
    pub fn step<F: FnMut(&[u8], &Key<'_>)>(
        &mut self,
        guard: &ServerLock,
        visitor: &mut F,
    ) -> Result<bool, VisitorPanicked> {
        if self.done {
            return Ok(false);
        }
        let mut visit = Visit {
            visitor,
            panicked: false,
        };
        let data = (&raw mut visit).cast::<c_void>();
        // SAFETY: lock and cursor are ours; `data` is what `visit_key::<F>` casts back, alive during the call.
        let more = unsafe { api!(RedisModule_Scan)(guard.ctx(), self.cursor.as_ptr(), Some(visit_key::<F>), data) };
        self.done = more == 0;
        if visit.panicked {
            Err(VisitorPanicked)
        } else {
            Ok(!self.done)
        }
    }
}

impl Drop for KeyScan {
    fn drop(&mut self) {
        // SAFETY: we own the cursor; freeing it touches no key.
        unsafe { api!(RedisModule_ScanCursorDestroy)(self.cursor.as_ptr()) }
    }
}

extern "C" fn visit_key<F: FnMut(&[u8], &Key<'_>)>(
    _: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    data: *mut c_void,
) {
    // SAFETY: `step` gave this pointer, and nothing else uses it during the call.
    let visit = unsafe { &mut *data.cast::<Visit<'_, F>>() };
    let outcome = catch("a keyspace reader", || {
        // SAFETY: name and key live during the callback.
        let (name, key) = unsafe { (string_bytes(name), Key::borrowed(key)) };
        if let Some(key) = key {
            (visit.visitor)(name, &key);
        }
    });
    visit.panicked |= outcome.is_none();
}

/// A walk over the elements of a hash, set or sorted set. For several slices the key is opened anew each time.
pub struct ElementScan {
    cursor: NonNull<raw::RedisModuleScanCursor>,
    done: bool,
}

// SAFETY: as for `KeyScan`.
unsafe impl Send for ElementScan {}

impl Default for ElementScan {
    fn default() -> ElementScan {
        ElementScan::new()
    }
}

impl ElementScan {
    /// Begins at the first element.
    pub fn new() -> ElementScan {
        let KeyScan { cursor, .. } = *std::mem::ManuallyDrop::new(KeyScan::new());
        ElementScan { cursor, done: false }
    }

    /// Begins again.
    pub fn restart(&mut self) {
        self.done = false;
        // SAFETY: we own the cursor.
        unsafe { api!(RedisModule_ScanCursorRestart)(self.cursor.as_ptr()) }
    }

    /// Calls `visitor` with some elements: field or member, and value or score as text (none for sets). False when all
    /// have been visited. An element may come twice if the collection grows or shrinks between two calls.
    pub fn step<F: FnMut(&[u8], Option<&[u8]>)>(
        &mut self,
        key: &Key<'_>,
        visitor: &mut F,
    ) -> Result<bool, VisitorPanicked> {
        if self.done {
            return Ok(false);
        }
        let mut visit = Visit {
            visitor,
            panicked: false,
        };
        let data = (&raw mut visit).cast::<c_void>();
        // SAFETY: the key is open under the lock; `data` is what `visit_element::<F>` casts back.
        let more =
            unsafe { api!(RedisModule_ScanKey)(key.as_ptr(), self.cursor.as_ptr(), Some(visit_element::<F>), data) };
        self.done = more == 0;
        if visit.panicked {
            Err(VisitorPanicked)
        } else {
            Ok(!self.done)
        }
    }
}

impl Drop for ElementScan {
    fn drop(&mut self) {
        // SAFETY: we own the cursor; freeing it touches no key.
        unsafe { api!(RedisModule_ScanCursorDestroy)(self.cursor.as_ptr()) }
    }
}

extern "C" fn visit_element<F: FnMut(&[u8], Option<&[u8]>)>(
    _: *mut raw::RedisModuleKey,
    field: *mut raw::RedisModuleString,
    value: *mut raw::RedisModuleString,
    data: *mut c_void,
) {
    // SAFETY: `step` gave this pointer, and nothing else uses it during the call.
    let visit = unsafe { &mut *data.cast::<Visit<'_, F>>() };
    let outcome = catch("a keyspace reader", || {
        // SAFETY: both strings live during the callback.
        let field = unsafe { string_bytes(field) };
        // SAFETY: as above.
        let value = (!value.is_null()).then(|| unsafe { string_bytes(value) });
        (visit.visitor)(field, value);
    });
    visit.panicked |= outcome.is_none();
}
