//! Running a command with the very strings that it came with.
//!
//! Numbers are copied: the server keeps a number in its short form only if nobody else refers to its string, and the command
//! that it came with does.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_void},
    ptr::null_mut,
};

use redis_module::raw;

use super::{
    ffi::{OwnedString, api, string_bytes},
    unfit::{self, Change},
};

/// Most arguments of which numbers are copied; more are handed over as one array.
const SINGLE: usize = 8;
/// Room for the letters of a call: how it runs, and one for each argument.
const FORMAT: usize = 8 + SINGLE + 1;
/// Longest number, with its sign.
const NUMBER: usize = 20;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Such a command is under way on this thread: what comes now is run by another module's code, for that command or because
/// it was told of an event of it, or by a script.
pub fn is_running() -> bool {
    RUNNING.get()
}

/// Runs the command `name` with these arguments; `how`: flags of the call.
///
/// # Safety
/// The context is alive, `name` is a C string, the lock is held, the strings live during the call.
pub(super) unsafe fn call(
    ctx: *mut raw::RedisModuleCtx,
    name: *const c_char,
    how: &str,
    rest: &mut [*mut raw::RedisModuleString],
) -> *mut raw::RedisModuleCallReply {
    // SAFETY: the caller says so.
    let arg = |at: usize| unsafe {
        match at.checked_sub(1) {
            None => CStr::from_ptr(name).to_bytes(),
            Some(at) => string_bytes(rest[at]),
        }
    };
    let Some(change) = unfit::change(rest.len() + 1, arg) else {
        // SAFETY: as for this function.
        return unsafe { call_with(ctx, name, how, rest) };
    };
    let (mut args, mut word) = (rest.to_vec(), None);
    match change {
        Change::Append(text) => args.push(word.insert(OwnedString::new(text)).as_ptr()),
        Change::Remove(at) => drop(args.remove(at - 1)),
    }
    // SAFETY: as for this function; the word lives long enough.
    unsafe { call_with(ctx, name, how, &mut args) }
}

/// # Safety
/// As `call`.
#[inline]
unsafe fn call_with(
    ctx: *mut raw::RedisModuleCtx,
    name: *const c_char,
    how: &str,
    rest: &mut [*mut raw::RedisModuleString],
) -> *mut raw::RedisModuleCallReply {
    let mut format = [0u8; FORMAT];
    format[..how.len()].copy_from_slice(how.as_bytes());
    let (count, places) = (rest.len(), &mut format[how.len()..]);
    let mut args = [null_mut::<c_void>(); SINGLE];
    if (1..=SINGLE).contains(&count) {
        for ((arg, place), slot) in rest.iter().zip(places.iter_mut()).zip(&mut args) {
            // SAFETY: the caller says so; strings of the server end with a NUL, and numbers have none inside.
            unsafe {
                let bytes = string_bytes(*arg);
                (*place, *slot) = match is_number(bytes) {
                    true => (b'c', bytes.as_ptr().cast_mut().cast()),
                    false => (b's', arg.cast()),
                };
            }
        }
    } else {
        places[0] = b'v';
    }
    let format = format.as_ptr().cast::<c_char>();
    let [a, b, c, d, e, f, g, h] = args;
    let before = RUNNING.replace(true);
    // SAFETY: the caller says so; "s" takes a string, "c" a C string, "v" an array of strings and its length, and the
    // format has a letter for each argument.
    let reply = unsafe {
        let run = api!(RedisModule_Call);
        match count {
            1 => run(ctx, name, format, a),
            2 => run(ctx, name, format, a, b),
            3 => run(ctx, name, format, a, b, c),
            4 => run(ctx, name, format, a, b, c, d),
            5 => run(ctx, name, format, a, b, c, d, e),
            6 => run(ctx, name, format, a, b, c, d, e, f),
            7 => run(ctx, name, format, a, b, c, d, e, f, g),
            8 => run(ctx, name, format, a, b, c, d, e, f, g, h),
            _ => run(ctx, name, format, rest.as_mut_ptr(), count),
        }
    };
    RUNNING.set(before);
    reply
}

/// It could be a number in its shortest form.
#[inline]
fn is_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    text.len() <= NUMBER && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for text in ["0", "-1", "12345678901234567890", "007"] {
            assert!(is_number(text.as_bytes()), "{text}");
        }
        for text in ["", "-", "1a", "+1", "1.5", "123456789012345678901", "1\0"] {
            assert!(!is_number(text.as_bytes()), "{text}");
        }
    }
}
