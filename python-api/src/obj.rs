//! Owned references to Python objects for the hot loops, without the bookkeeping of PyO3's.

use std::ptr::NonNull;

use pyo3::ffi;

/// One owned reference. Made, used and dropped only with the GIL held; whoever may be dropped without it hands its
/// objects to the reaper.
#[repr(transparent)]
pub(crate) struct Obj(NonNull<ffi::PyObject>);

// SAFETY: a reference may move between threads; its users hold the GIL (see the type's promise).
unsafe impl Send for Obj {}

impl Obj {
    /// Takes a new reference; `None` for NULL, which means that an exception is set.
    ///
    /// # Safety
    /// `ptr` is NULL or a reference that the caller owns; the GIL is held.
    #[inline]
    pub(crate) unsafe fn from_owned(ptr: *mut ffi::PyObject) -> Option<Obj> {
        NonNull::new(ptr).map(Obj)
    }

    /// Makes a reference of its own.
    ///
    /// # Safety
    /// `ptr` is a live object; the GIL is held.
    #[inline]
    pub(crate) unsafe fn from_borrowed(ptr: *mut ffi::PyObject) -> Obj {
        debug_assert!(!ptr.is_null());
        // SAFETY: alive and the GIL is held, as the caller promises.
        unsafe {
            ffi::Py_INCREF(ptr);
            Obj(NonNull::new_unchecked(ptr))
        }
    }

    /// `None` of Python.
    ///
    /// # Safety
    /// The GIL is held.
    #[inline]
    pub(crate) unsafe fn none() -> Obj {
        // SAFETY: the singleton is alive.
        unsafe { Obj::from_borrowed(ffi::Py_None()) }
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut ffi::PyObject {
        self.0.as_ptr()
    }

    /// Gives the reference away.
    #[inline]
    pub(crate) fn into_ptr(self) -> *mut ffi::PyObject {
        let ptr = self.0.as_ptr();
        std::mem::forget(self);
        ptr
    }
}

impl Drop for Obj {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the reference is owned and the GIL is held (see the type's promise).
        unsafe { ffi::Py_DECREF(self.0.as_ptr()) }
    }
}
