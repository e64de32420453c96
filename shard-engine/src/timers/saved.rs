//! A timer as bytes: in dumps, in the AOF, on its way to replicas and to other shards.

use oxigears_coordinator::{
    codec::{CodecError, Cursor, Item, put_int, put_tagged, tag},
    limits::TIMER_PERIOD_MS,
};

/// Version of the bytes.
const VERSION: i64 = 1;

/// What is kept of a timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Milliseconds from the end of a call to the next one.
    pub period_ms: u64,
    /// Its callback has failed: it does not run any more.
    pub stopped: bool,
    /// Id of its session.
    pub session: String,
    /// ACL user with whose rights it acts; `None`: all rights.
    pub user: Option<String>,
    /// The pickled callback, with the session's number.
    pub code: Vec<u8>,
}

impl Saved {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.code.len() + self.session.len() + 64);
        put_int(&mut out, VERSION);
        put_int(&mut out, i64::try_from(self.period_ms).unwrap_or(i64::MAX));
        put_int(&mut out, i64::from(self.stopped));
        put_tagged(&mut out, tag::STR, self.session.as_bytes());
        match &self.user {
            Some(user) => put_tagged(&mut out, tag::STR, user.as_bytes()),
            None => out.push(tag::NONE),
        }
        put_tagged(&mut out, tag::BYTES, &self.code);
        out
    }

    /// Reads them; the error says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Saved, String> {
        Saved::read(&mut Cursor::new(bytes)).map_err(|e| match e {
            Damage::Codec(e) => format!("its bytes are damaged: {e}"),
            Damage::Form => "its bytes have an unexpected form".to_owned(),
            Damage::Version(n) => format!("it has the format {n}, this version of the module knows {VERSION}"),
        })
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Saved, Damage> {
        match int(cursor)? {
            VERSION => {}
            other => return Err(Damage::Version(other)),
        }
        let period_ms = u64::try_from(int(cursor)?).map_err(|_| Damage::Form)?;
        if period_ms > TIMER_PERIOD_MS {
            return Err(Damage::Form);
        }
        let stopped = int(cursor)? != 0;
        let session = optional_text(cursor)?.ok_or(Damage::Form)?;
        let user = optional_text(cursor)?;
        let Item::Bytes(code) = cursor.next_item()? else {
            return Err(Damage::Form);
        };
        let code = code.to_vec();
        if !cursor.is_empty() {
            return Err(Damage::Form);
        }
        Ok(Saved {
            period_ms,
            stopped,
            session,
            user,
            code,
        })
    }
}

enum Damage {
    Codec(CodecError),
    Form,
    Version(i64),
}

impl From<CodecError> for Damage {
    fn from(e: CodecError) -> Damage {
        Damage::Codec(e)
    }
}

fn int(cursor: &mut Cursor<'_>) -> Result<i64, Damage> {
    match cursor.next_item()? {
        Item::Int(n) => Ok(n),
        _ => Err(Damage::Form),
    }
}

fn optional_text(cursor: &mut Cursor<'_>) -> Result<Option<String>, Damage> {
    match cursor.next_item()? {
        Item::None => Ok(None),
        Item::Str(bytes) => String::from_utf8(bytes.to_vec()).map(Some).map_err(|_| Damage::Form),
        _ => Err(Damage::Form),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(user: Option<&str>) -> Saved {
        Saved {
            period_ms: 1500,
            stopped: false,
            session: "se\u{e9}ssion".into(),
            user: user.map(str::to_owned),
            code: vec![0, 1, 2, 255],
        }
    }

    #[test]
    fn what_is_saved_comes_back() {
        for user in [None, Some("alice")] {
            let saved = timer(user);
            assert_eq!(Saved::decode(&saved.encode()), Ok(saved));
        }
        let stopped = Saved {
            stopped: true,
            ..timer(None)
        };
        assert_eq!(Saved::decode(&stopped.encode()), Ok(stopped));
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let whole = timer(Some("alice")).encode();
        for end in 0..whole.len() {
            assert!(Saved::decode(&whole[..end]).is_err(), "cut at {end}");
        }
        let mut longer = whole.clone();
        longer.push(tag::NONE);
        assert!(Saved::decode(&longer).is_err());
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            // Must not panic; texts and code may still be read.
            let _ = Saved::decode(&changed);
        }
        let mut newer = Vec::new();
        put_int(&mut newer, VERSION + 1);
        assert!(Saved::decode(&newer).is_err_and(|e| e.contains("format 2")));
    }
}
