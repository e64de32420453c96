//! Reading lists and words of hostile bytes within bounds, and the bytes of commands.
//!
//! A short text may claim a long list of empty things, which cost far more memory than they have bytes: lists end
//! with an error at their bound. Nothing here is recursive.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error, SeqAccess, Visitor},
};

use super::{Command, Proposal, Refusal, SessionChange};
use crate::limits;

struct ListVisitor<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let claimed = entries.size_hint().unwrap_or(0);
        if claimed > MOST {
            return Err(A::Error::invalid_length(claimed, &self));
        }
        // The claim may be a lie: room comes with the entries.
        let mut list = Vec::with_capacity(claimed.min(64));
        while let Some(entry) = entries.next_element()? {
            if list.len() == MOST {
                return Err(A::Error::invalid_length(MOST + 1, &self));
            }
            list.push(entry);
        }
        list.shrink_to_fit();
        Ok(list)
    }
}

/// A list with a bound.
pub(super) fn list<'de, D, T, const MOST: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    from.deserialize_seq(ListVisitor::<T, MOST>(PhantomData))
}

pub(super) fn names<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    list::<D, String, { limits::NAMES_PER_LIST }>(from)
}

#[derive(Deserialize)]
struct Names(#[serde(deserialize_with = "names")] Vec<String>);

pub(super) fn some_names<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Option::<Names>::deserialize(from)?.map(|names| names.0))
}

/// What one change holds.
pub(super) fn change_list<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    list::<D, T, { limits::REGISTRATIONS_PER_CHANGE }>(from)
}

/// What the whole state holds.
pub(super) fn state_list<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    list::<D, T, { limits::REGISTRATIONS }>(from)
}

/// The words that refusals are made of.
pub(super) mod words {
    pub const REGISTRATIONS: &str = "registrations";
    pub const IN_ONE_CHANGE: &str = "registrations of one change";
    pub const IDS: &str = "registration ids of one command";
    pub const REQUIREMENTS: &str = "requirements";
    pub const LIST: &str = "entries of one list of names";
    pub const NAME: &str = "a name";
    pub const DESCRIPTION: &str = "a description";
    pub const PLAN: &str = "a plan";
    pub const CHANGE: &str = "the change";
    pub const REGISTRY: &str = "the registry with this change";
    pub const PAUSE: &str = "pause";
    pub const UNPAUSE: &str = "unpause";
    pub const ALL: [&str; 15] = [
        REGISTRATIONS,
        IN_ONE_CHANGE,
        IDS,
        REQUIREMENTS,
        LIST,
        NAME,
        DESCRIPTION,
        PLAN,
        CHANGE,
        REGISTRY,
        PAUSE,
        UNPAUSE,
        "CommandReader",
        "KeysReader",
        "StreamReader",
    ];
}

/// A word of a refusal. One of a newer version is replaced: the outcome is what counts.
pub(super) fn word<'de, D: Deserializer<'de>>(from: D) -> Result<&'static str, D::Error> {
    let text = String::deserialize(from)?;
    Ok(words::ALL
        .iter()
        .find(|w| **w == text)
        .copied()
        .unwrap_or("the request"))
}

/// Format of commands in logs and messages: the first byte.
const FORMAT: u8 = 1;

fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, Refusal> {
    let bytes = postcard::to_extend(value, vec![FORMAT]).map_err(|e| Refusal::Malformed(e.to_string()))?;
    too_large(&bytes).map(|()| bytes)
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    too_large(bytes)?;
    let (format, rest) = bytes
        .split_first()
        .ok_or_else(|| Refusal::Malformed("it is empty".into()))?;
    if *format != FORMAT {
        let text = format!("it has format {format}, this node knows {FORMAT}; upgrade it");
        return Err(Refusal::Malformed(text));
    }
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Refusal::Malformed(format!("{} bytes too many", rest.len()))),
        Err(e) => Err(Refusal::Malformed(e.to_string())),
    }
}

fn too_large(bytes: &[u8]) -> Result<(), Refusal> {
    let (bytes, most) = (bytes.len(), limits::PROPOSAL_BYTES);
    if bytes > most {
        return Err(Refusal::TooLarge {
            what: words::CHANGE,
            bytes,
            most,
        });
    }
    Ok(())
}

impl Proposal {
    /// The bytes for the log and for other nodes; refused if they are too many.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        to_bytes(self)
    }

    /// Reads what `encode` made. Whether the command can be carried out is for `Registry` to say.
    pub fn decode(bytes: &[u8]) -> Result<Proposal, Refusal> {
        from_bytes(bytes)
    }
}

impl Command {
    /// The bytes for replicas and files; refused if they are too many.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        to_bytes(self)
    }

    /// Reads what `encode` made.
    pub fn decode(bytes: &[u8]) -> Result<Command, Refusal> {
        from_bytes(bytes)
    }
}

impl SessionChange {
    /// Refuses what is too large or malformed, whatever state it would meet.
    pub fn check(&self) -> Result<(), Refusal> {
        super::rules::whole_change(self)
    }

    /// The bytes for other nodes; refused if they are too many.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        to_bytes(self)
    }

    /// Reads what `encode` made.
    pub fn decode(bytes: &[u8]) -> Result<SessionChange, Refusal> {
        from_bytes(bytes)
    }
}
