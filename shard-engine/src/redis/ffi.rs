//! What every wrapper needs: the API's function pointers, strings of the server, and the wall against panics.

use std::{
    ffi::{CStr, CString, c_char},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
    slice,
};

use redis_module::raw;

use super::{filter, lock, log};

/// A function of the API that every supported server has. For use inside `unsafe`.
macro_rules! api {
    ($name:ident) => {
        match redis_module::raw::$name {
            Some(function) => function,
            None => $crate::redis::ffi::missing(stringify!($name)),
        }
    };
}
pub(super) use api;

/// Ends the callback at hand: `guarded` above it catches.
#[cold]
pub(super) fn missing(name: &str) -> ! {
    panic!("the server has no {name}")
}

/// Runs the body of a callback: the server lock counts as held, and a panic ends here.
pub(super) fn guarded<T>(what: &str, body: impl FnOnce() -> T) -> Option<T> {
    filter::others_come();
    let _callback = lock::enter_callback();
    catch(what, body)
}

/// Runs `body`; a panic is logged and gives `None`.
pub(super) fn catch<T>(what: &str, body: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => Some(value),
        Err(panic) => {
            log::warning(&format!("internal error in {what}: {}", panic_text(&*panic)));
            None
        }
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no text"
    }
}

/// Text for a C function: whatever stands before the first NUL.
pub(super) fn c_string(text: &str) -> CString {
    let end = text.bytes().position(|b| b == 0).unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

/// The text behind a C pointer; empty if there is none.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that outlives the call.
pub(super) unsafe fn lossy(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller says so.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The bytes of a server string.
///
/// # Safety
/// `string` is valid for `'a` and not changed meanwhile.
pub(super) unsafe fn string_bytes<'a>(string: *const raw::RedisModuleString) -> &'a [u8] {
    let mut len = 0usize;
    // SAFETY: the caller gives a valid string; null gives an error text, which is harmless.
    let start = unsafe { api!(RedisModule_StringPtrLen)(string, &mut len) };
    // SAFETY: the server gives pointer and length of one buffer.
    unsafe { bytes_at(start, len) }
}

/// A slice from a C pointer and a length; empty for null.
///
/// # Safety
/// `start` is null or valid for `len` bytes during `'a`.
pub(super) unsafe fn bytes_at<'a>(start: *const c_char, len: usize) -> &'a [u8] {
    if start.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the caller says so.
    unsafe { slice::from_raw_parts(start.cast(), len) }
}

/// A server string that we own. Needs no lock: such strings belong to no context.
pub(super) struct OwnedString {
    string: NonNull<raw::RedisModuleString>,
    _not_send: PhantomData<*mut ()>,
}

impl OwnedString {
    /// Copies `bytes`.
    pub fn new(bytes: &[u8]) -> OwnedString {
        // SAFETY: pointer and length are those of a slice; a null context makes a string of no context.
        let string =
            unsafe { api!(RedisModule_CreateString)(std::ptr::null_mut(), bytes.as_ptr().cast(), bytes.len()) };
        OwnedString::adopt(string).unwrap_or_else(|| missing("memory for a string"))
    }

    /// Takes over a string that the server made for us.
    pub fn adopt(string: *mut raw::RedisModuleString) -> Option<OwnedString> {
        NonNull::new(string).map(|string| OwnedString {
            string,
            _not_send: PhantomData,
        })
    }

    /// The pointer, for calls.
    pub fn as_ptr(&self) -> *mut raw::RedisModuleString {
        self.string.as_ptr()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: we own the string and do not change it.
        unsafe { string_bytes(self.string.as_ptr()) }
    }
}

impl Drop for OwnedString {
    fn drop(&mut self) {
        // SAFETY: we own it, and nothing refers to it any more.
        unsafe { api!(RedisModule_FreeString)(std::ptr::null_mut(), self.string.as_ptr()) }
    }
}
