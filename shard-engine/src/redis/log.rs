//! The server log, from any thread. Never waits for the server lock.

use std::ffi::CStr;

use super::{
    ffi::{api, c_string},
    lock,
};

/// Longest line that is written; the server cuts at 1,024 bytes, its own prefix included.
const LINE_BYTES: usize = 960;
/// Lines of one text that are written at most.
const LINES: usize = 64;

/// Level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Debug,
    Verbose,
    Notice,
    Warning,
}

impl Level {
    fn word(self) -> &'static CStr {
        match self {
            Level::Debug => c"debug",
            Level::Verbose => c"verbose",
            Level::Notice => c"notice",
            Level::Warning => c"warning",
        }
    }
}

/// Writes a text, one log line for each of its lines; long lines and long texts are cut.
pub fn log(level: Level, text: &str) {
    let ctx = lock::detached();
    if ctx.is_null() {
        return;
    }
    for line in lines(text) {
        // SAFETY: the format has one `%s` for one C string; logging is thread safe and uses only the context's name.
        unsafe { api!(RedisModule_Log)(ctx, level.word().as_ptr(), c"%s".as_ptr(), c_string(&line).as_ptr()) }
    }
}

/// Writes at level notice.
pub fn notice(text: &str) {
    log(Level::Notice, text);
}

/// Writes at level warning.
pub fn warning(text: &str) {
    log(Level::Warning, text);
}

fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().take(LINES).map(one_line).collect();
    if text.lines().nth(LINES).is_some() {
        lines.push("...".to_owned());
    }
    lines
}

fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LINE_BYTES + 3));
    for c in text.chars() {
        if line.len() + c.len_utf8() > LINE_BYTES {
            line.push_str("...");
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_clean_and_bounded() {
        assert_eq!(lines("a\0b\r\nc"), ["a b", "c"]);
        let long = one_line(&"é".repeat(5000));
        assert!(long.len() <= LINE_BYTES + 3 && long.ends_with("..."));
        assert_eq!(lines(&"x\n".repeat(1000)).len(), LINES + 1);
    }
}
