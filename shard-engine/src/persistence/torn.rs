//! An AOF that a crash has cut off inside a transaction.
//!
//! The server takes off the command that is not whole, but leaves the beginning of its transaction in the file, if the cut
//! was within a command. It has not run that, and goes on writing behind it. After the *next* restart the beginning is the
//! head of what follows: with the end of the first transaction behind it, it runs after all, so what a batch did is there
//! twice; without one, all that follows is lost. So it is taken off as well, as the server itself does it where the cut is
//! between two commands.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use crate::redis::{
    cluster::server_config,
    events::{Event, LoadKind},
    lock::ServerLock,
    log,
};

/// The file to which the server will go on to write, and its size before it is loaded.
static LAST: Mutex<Option<(PathBuf, u64)>> = Mutex::new(None);

/// Longer lines are no heads of commands or arguments.
const LINE_BYTES: u64 = 4096;

/// Looks at the file after it was loaded, before the server opens it to write.
pub(super) fn on_event(guard: &ServerLock, event: Event) {
    match event {
        Event::LoadStarted(LoadKind::AppendOnlyFile) => {
            let size = |path: PathBuf| path.metadata().ok().map(|about| (path, about.len()));
            *LAST.lock() = last_file(guard).and_then(size);
        }
        Event::LoadEnded => {
            let Some((path, size)) = LAST.lock().take() else { return };
            // A look at the whole file is only worth while where the server took something off.
            if path.metadata().is_ok_and(|about| about.len() < size) {
                repair(&path);
            }
        }
        Event::LoadStarted(_) | Event::LoadFailed => *LAST.lock() = None,
        _ => {}
    }
}

/// The newest incremental file, as the server's manifest names it. Where CONFIG is renamed, with the names that the server
/// has by itself.
fn last_file(guard: &ServerLock) -> Option<PathBuf> {
    let config = |name, default: &str| {
        let value = server_config(guard, name).filter(|value| !value.is_empty());
        value.unwrap_or_else(|| default.to_owned())
    };
    // The server works in its directory.
    let directory = Path::new(&config("dir", ".")).join(config("appenddirname", "appendonlydir"));
    let manifest = directory.join(format!("{}.manifest", config("appendfilename", "appendonly.aof")));
    let manifest = std::fs::read(manifest).ok()?;
    Some(directory.join(OsStr::from_bytes(&last_incremental(&manifest)?)))
}

/// Lines are like `file NAME seq NUMBER type i`.
fn last_incremental(manifest: &[u8]) -> Option<Vec<u8>> {
    let of_line = |line: &[u8]| {
        let (name, rest) = name(line.strip_prefix(b"file ")?)?;
        let rest = std::str::from_utf8(rest).ok()?.strip_prefix(" seq ")?;
        let (number, rest) = rest.split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        rest.starts_with("type i").then_some((number, name))
    };
    let files = manifest.split(|&byte| byte == b'\n').filter_map(of_line);
    files.max().map(|(_, name)| name)
}

/// A name, and what is behind it. The server quotes those with blanks or bytes that can not be shown.
fn name(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|&byte| byte == b' ')?;
        return Some((text[..end].to_vec(), &text[end..]));
    };
    let mut name = Vec::new();
    loop {
        let (byte, behind) = match rest {
            [b'"', behind @ ..] => return Some((name, behind)),
            [b'\\', b'x', high, low, behind @ ..] => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                ((digit(*high)? * 16 + digit(*low)?) as u8, behind)
            }
            [b'\\', escaped, behind @ ..] => match escaped {
                b'n' => (b'\n', behind),
                b'r' => (b'\r', behind),
                b't' => (b'\t', behind),
                b'a' => (7, behind),
                b'b' => (8, behind),
                other => (*other, behind),
            },
            [byte, behind @ ..] => (*byte, behind),
            [] => return None,
        };
        name.push(byte);
        rest = behind;
    }
}

fn repair(path: &Path) {
    let cut = || -> io::Result<Option<u64>> {
        let Some(offset) = open_transaction(BufReader::with_capacity(1 << 20, File::open(path)?))? else {
            return Ok(None);
        };
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(offset)?;
        file.sync_all()?;
        Ok(Some(offset))
    };
    match cut() {
        Ok(None) => {}
        Ok(Some(offset)) => log::warning(&format!(
            "{} ended within a transaction, of which nothing was done: its beginning is taken off, at offset {offset}",
            path.display()
        )),
        Err(e) => log::warning(&format!(
            "{} could not be searched for the beginning of a transaction without an end, which may run at the next \
             restart (BGREWRITEAOF removes it): {e}",
            path.display()
        )),
    }
}

/// Where the transaction begins in which the commands end; `None` if they end outside of one.
fn open_transaction(mut commands: impl BufRead + SkipBytes) -> io::Result<Option<u64>> {
    let (mut offset, mut open, mut line) = (0, None, Vec::new());
    loop {
        let begin = offset;
        if read_line(&mut commands, &mut line, &mut offset)? == 0 {
            return Ok(open);
        }
        let count = match line.first() {
            // A remark of the server.
            Some(b'#') => continue,
            Some(b'*') => number(&line)?,
            _ => return Err(broken()),
        };
        for at in 0..count {
            read_line(&mut commands, &mut line, &mut offset)?;
            let length = match line.first() {
                Some(b'$') => number(&line)?,
                _ => return Err(broken()),
            };
            if at == 0 && count == 1 && length <= 5 {
                let mut name = vec![0; length as usize + 2];
                commands.read_exact(&mut name)?;
                match &name.trim_ascii_end().to_ascii_lowercase()[..] {
                    b"multi" => open = open.or(Some(begin)),
                    b"exec" => open = None,
                    _ => {}
                }
            } else {
                commands.skip_bytes(length + 2)?;
            }
            offset += length + 2;
        }
    }
}

/// One line, and how long it is.
fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>, offset: &mut u64) -> io::Result<u64> {
    line.clear();
    let length = from.by_ref().take(LINE_BYTES).read_until(b'\n', line)? as u64;
    *offset += length;
    Ok(length)
}

fn number(line: &[u8]) -> io::Result<u64> {
    let digits = line
        .get(1..)
        .and_then(|rest| std::str::from_utf8(rest.trim_ascii_end()).ok());
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(broken)
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no list of commands")
}

/// Moves on without reading, where that is possible.
trait SkipBytes {
    fn skip_bytes(&mut self, count: u64) -> io::Result<()>;
}

impl SkipBytes for BufReader<File> {
    fn skip_bytes(&mut self, count: u64) -> io::Result<()> {
        self.seek_relative(i64::try_from(count).map_err(|_| broken())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SkipBytes for &[u8] {
        fn skip_bytes(&mut self, count: u64) -> io::Result<()> {
            *self = self.get(count as usize..).ok_or_else(broken)?;
            Ok(())
        }
    }

    fn commands(texts: &[&str]) -> Vec<u8> {
        let encode = |text: &&str| {
            let words: Vec<&str> = text.split(' ').collect();
            let args = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
            format!("*{}\r\n{}", words.len(), args.collect::<String>())
        };
        texts.iter().map(encode).collect::<String>().into_bytes()
    }

    fn open(texts: &[&str]) -> Option<u64> {
        open_transaction(&commands(texts)[..]).unwrap()
    }

    #[test]
    fn the_transaction_without_an_end_is_found() {
        let done = ["SELECT 0", "MULTI", "incr n", "EXEC", "set multi exec"];
        assert_eq!(open(&[]), None);
        assert_eq!(open(&done), None);
        let length = commands(&done).len() as u64;
        assert_eq!(open(&[&done[..], &["MULTI"]].concat()), Some(length));
        assert_eq!(
            open(&[&done[..], &["multi", "incr n", "SELECT 0", "MULTI", "x"]].concat()),
            Some(length)
        );
        assert_eq!(open(&[&done[..], &["MULTI", "incr n", "MULTI", "exec"]].concat()), None);
        let remark = [b"#TS:1\r\n".to_vec(), commands(&["MULTI"])].concat();
        assert_eq!(open_transaction(&remark[..]).unwrap(), Some(7));
    }

    #[test]
    fn what_is_no_list_of_commands_is_left_alone() {
        let whole = commands(&["MULTI", "set a b"]);
        for end in 16..whole.len() {
            assert!(open_transaction(&whole[..end]).is_err(), "{end}");
        }
        for wrong in ["REDIS0011", "*1\r\n+x\r\n", "*x\r\n", "*-1\r\n", "*1\r\n$-1\r\n"] {
            assert!(open_transaction(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_newest_incremental_file_counts() {
        let last = |manifest: &str| last_incremental(manifest.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        let manifest =
            "file a.1.base.rdb seq 1 type b\nfile a.9.incr.aof seq 9 type i\nfile a.10.incr.aof seq 10 type i\n";
        assert_eq!(last(manifest).as_deref(), Some("a.10.incr.aof"));
        assert_eq!(last("file a.1.base.rdb seq 1 type b\n"), None);
        let quoted = r#"file "a \"b\\\xc3\xb6\n" seq 1 type i"#;
        assert_eq!(last(quoted).as_deref(), Some("a \"b\\ö\n"));
        for wrong in [
            "file \"a",
            "file \"a\\xg0\" seq 1 type i",
            "file a seq x type i",
            "file",
        ] {
            assert_eq!(last(wrong), None, "{wrong}");
        }
    }
}
