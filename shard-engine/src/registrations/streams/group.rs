//! The consumer group of a registration on one stream: where it stands, reading behind that, acknowledging, trimming.
//!
//! A group of the registration's own stands at the last entry that was acknowledged: what is behind is read natively
//! and one command acknowledges a batch. In a group that has other members, entries are taken and acknowledged as any
//! consumer does it, because others move it too. All of it happens under the server lock; what it writes is replicated,
//! and what one hold of the lock writes is one transaction for replicas and the AOF.

use std::{cell::Cell, ops::ControlFlow};

use bytes::Bytes;
use hashbrown::HashSet;
use oxigears_coordinator::codec::{put_bytes, put_head, put_tagged, tag};

use super::limits;
use crate::{
    readers::{slices::Deadline, values},
    redis::{
        call::{CallError, Flags, Reply, call},
        key::{Key, Kind, StreamId},
        lock::ServerLock,
    },
};

/// The consumer under whose name entries are taken, as clients know it.
pub const CONSUMER: &[u8] = b"__gears_client__";

/// Why nothing could be done with the stream.
#[derive(Debug)]
pub enum Trouble {
    /// There is no such stream (any more), or not on this shard.
    Gone,
    /// Writes are paused, or the cluster is down: later.
    Paused,
    /// The server refuses.
    Failed(String),
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Trouble {
        match error {
            CallError::WritesPaused(_) | CallError::ClusterDown(_) => Trouble::Paused,
            CallError::OtherShard(_) => Trouble::Gone,
            CallError::Answered(text)
                if text.starts_with("NOGROUP")
                    || text.starts_with("WRONGTYPE")
                    || text.contains("no such key")
                    || text.contains("requires the key to exist") =>
            {
                Trouble::Gone
            }
            other => Trouble::Failed(other.to_string()),
        }
    }
}

/// Where a group stands.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    name: Vec<u8>,
    /// The last entry that it was given.
    pub last: StreamId,
    /// Entries that it has passed, those that are deleted by now too; `None`: the server does not know.
    pub entries_read: Option<u64>,
    pending: u64,
}

fn run(guard: &ServerLock, args: &[&[u8]]) -> Result<Reply, Trouble> {
    let flags = Flags {
        replicate: true,
        ..Flags::default()
    };
    Ok(call(guard, args, flags)?)
}

fn ask(guard: &ServerLock, args: &[&[u8]]) -> Result<Reply, Trouble> {
    Ok(call(guard, args, Flags::default())?)
}

fn field<'a>(reply: &'a Reply, name: &str) -> Option<&'a Reply> {
    let pairs = reply.pairs();
    let found = pairs.into_iter().find(|(key, _)| key.text() == Some(name));
    found.map(|(_, value)| value)
}

fn number(reply: &Reply, name: &str) -> Option<u64> {
    field(reply, name)?.int()?.try_into().ok()
}

/// All groups of the stream.
fn standings(guard: &ServerLock, key: &[u8]) -> Result<Vec<Standing>, Trouble> {
    let reply = ask(guard, &[b"XINFO", b"GROUPS", key])?;
    let groups = reply.array().unwrap_or_default();
    Ok(groups
        .iter()
        .filter_map(|group| {
            Some(Standing {
                name: field(group, "name")?.bytes()?.to_vec(),
                last: StreamId::parse(field(group, "last-delivered-id")?.text()?)?,
                entries_read: number(group, "entries-read"),
                pending: number(group, "pending").unwrap_or(0),
            })
        })
        .collect())
}

/// Where the group stands; it is made, at the beginning of the stream, if it is missing.
pub fn standing(guard: &ServerLock, key: &[u8], group: &[u8]) -> Result<Standing, Trouble> {
    if !is_stream(guard, key) {
        return Err(Trouble::Gone);
    }
    let found = standings(guard, key)?.into_iter().find(|known| known.name == group);
    found.map_or_else(|| create(guard, key, group), Ok)
}

/// There is a stream of this name.
pub fn is_stream(guard: &ServerLock, key: &[u8]) -> bool {
    Key::open(guard, key).is_some_and(|key| key.kind() == Kind::Stream)
}

/// Entries that were removed before count as read, so that the server can tell how far behind the group is.
fn create(guard: &ServerLock, key: &[u8], group: &[u8]) -> Result<Standing, Trouble> {
    let stream = ask(guard, &[b"XINFO", b"STREAM", key])?;
    let removed = number(&stream, "entries-added")
        .zip(number(&stream, "length"))
        .map(|(added, length)| added.saturating_sub(length));
    let text = removed.unwrap_or(0).to_string();
    let mut args: Vec<&[u8]> = vec![b"XGROUP", b"CREATE", key, group, b"0"];
    if removed.is_some() {
        args.extend([b"ENTRIESREAD".as_slice(), text.as_bytes()]);
    }
    run(guard, &args)?;
    run(guard, &[b"XGROUP", b"CREATECONSUMER", key, group, CONSUMER])?;
    Ok(Standing {
        name: group.to_vec(),
        entries_read: removed,
        ..Standing::default()
    })
}

/// Entries that are read for one batch.
#[derive(Debug, Default)]
pub struct Entries {
    /// Their records.
    pub bytes: Vec<u8>,
    /// How many.
    pub count: u64,
    /// Ids of the first and the last one.
    pub first: StreamId,
    /// See `first`.
    pub last: StreamId,
    /// Others follow.
    pub more: bool,
    /// Ids of all, in a group with other members.
    pub ids: Vec<StreamId>,
}

impl Entries {
    fn add(&mut self, key: &[u8], id: StreamId, fields: impl FnOnce(&mut Vec<u8>)) {
        if self.count == 0 {
            self.first = id;
        }
        self.last = id;
        self.count += 1;
        self.bytes.push(tag::STREAM_RECORD);
        put_bytes(&mut self.bytes, key);
        put_bytes(&mut self.bytes, id.to_string().as_bytes());
        fields(&mut self.bytes);
    }

    /// Nothing is to be added to a batch of `count` entries.
    pub fn is_full(&self, count: u64) -> bool {
        self.count >= count
            || self.bytes.len() >= limits::STREAM_BATCH_BYTES
            || self.count >= limits::STREAM_BATCH_ENTRIES
    }
}

/// What to read.
pub struct Range {
    /// Entries behind this one.
    pub after: StreamId,
    /// Up to this one.
    pub until: Option<StreamId>,
    /// At most so many.
    pub count: u64,
}

/// Adds entries until there are enough; false if the time is over before.
pub fn read(
    guard: &ServerLock,
    name: &[u8],
    range: &Range,
    entries: &mut Entries,
    mut deadline: Option<&mut Deadline>,
) -> Result<bool, Trouble> {
    let key = Key::open(guard, name).filter(|key| key.kind() == Kind::Stream);
    let key = key.ok_or(Trouble::Gone)?;
    let after = if entries.count == 0 { range.after } else { entries.last };
    let mut whole = true;
    entries.more = false;
    key.stream_entries(Some(after), None, |id, fields| {
        if entries.is_full(range.count) || range.until.is_some_and(|until| id > until) {
            entries.more = true;
            return ControlFlow::Break(());
        }
        if deadline.as_mut().is_some_and(|deadline| deadline.is_over()) {
            (entries.more, whole) = (true, false);
            return ControlFlow::Break(());
        }
        entries.add(name, id, |out| values::put_fields(out, fields));
        ControlFlow::Continue(())
    });
    Ok(whole)
}

/// The stream has entries behind this one.
pub fn has_entries_behind(guard: &ServerLock, name: &[u8], after: StreamId) -> bool {
    let mut some = false;
    if let Some(key) = Key::open(guard, name).filter(|key| key.kind() == Kind::Stream) {
        key.stream_entries(Some(after), None, |_, _| {
            some = true;
            ControlFlow::Break(())
        });
    }
    some
}

/// Takes entries in a group with other members, at most so many: new ones, or those that this consumer has pending behind
/// an id. Pending ones that are deleted by now are acknowledged on the way. The last one, if there may be more.
pub fn take(
    guard: &ServerLock,
    key: &[u8],
    group: &[u8],
    pending: Option<StreamId>,
    count: u64,
    entries: &mut Entries,
) -> Result<Option<StreamId>, Trouble> {
    let (most, from) = (count.to_string(), pending.map(|id| id.to_string()));
    let from = from.as_ref().map_or(b">".as_slice(), |id| id.as_bytes());
    let mut args: Vec<&[u8]> = vec![b"XREADGROUP", b"GROUP", group, CONSUMER];
    args.extend([b"COUNT".as_slice(), most.as_bytes(), b"STREAMS", key, from]);
    let reply = run(guard, &args)?;
    let streams = reply.array().unwrap_or_default();
    let stream = streams.first().and_then(|stream| stream.array()?.get(1)?.array());
    let (mut deleted, mut last, mut taken) = (Vec::new(), None, 0);
    for entry in stream.unwrap_or_default() {
        let Some([id, fields]) = entry.array() else { continue };
        let Some(id) = id.text().and_then(StreamId::parse) else {
            continue;
        };
        (last, taken) = (Some(id), taken + 1);
        let Some(fields) = fields.array() else {
            deleted.push(id);
            continue;
        };
        entries.ids.push(id);
        entries.add(key, id, |out| {
            put_head(out, tag::DICT, fields.len() / 2);
            for pair in fields.chunks_exact(2) {
                put_tagged(out, tag::TEXT_KEY, pair[0].bytes().unwrap_or_default());
                put_tagged(out, tag::TEXT, pair[1].bytes().unwrap_or_default());
            }
        });
    }
    if !deleted.is_empty() {
        acknowledge_each(guard, key, group, &deleted)?;
    }
    Ok(last.filter(|_| taken == count))
}

/// The group has passed everything up to `last`.
pub fn acknowledge(
    guard: &ServerLock,
    key: &[u8],
    group: &[u8],
    last: StreamId,
    entries_read: Option<u64>,
) -> Result<(), Trouble> {
    let (last, read) = (last.to_string(), entries_read.map(|n| n.to_string()));
    let mut args: Vec<&[u8]> = vec![b"XGROUP", b"SETID", key, group, last.as_bytes()];
    if let Some(read) = &read {
        args.extend([b"ENTRIESREAD".as_slice(), read.as_bytes()]);
    }
    run(guard, &args).map(drop)
}

/// Acknowledges entries of a group with other members.
pub fn acknowledge_each(guard: &ServerLock, key: &[u8], group: &[u8], ids: &[StreamId]) -> Result<(), Trouble> {
    for ids in ids.chunks(limits::STREAM_IDS) {
        let ids: Vec<String> = ids.iter().map(StreamId::to_string).collect();
        let mut args: Vec<&[u8]> = vec![b"XACK", key, group];
        args.extend(ids.iter().map(String::as_bytes));
        run(guard, &args)?;
    }
    Ok(())
}

/// The last entry that all these groups have passed; `None` if one of them has passed nothing.
pub fn passed_by_all(guard: &ServerLock, key: &[u8], groups: &HashSet<Bytes>) -> Result<Option<StreamId>, Trouble> {
    let mut known = standings(guard, key)?;
    known.retain(|known| groups.contains(&*known.name));
    if known.len() < groups.len() {
        return Ok(None);
    }
    let mut least: Option<StreamId> = None;
    for standing in known {
        let mut passed = standing.last;
        if standing.pending > 0 {
            let reply = ask(guard, &[b"XPENDING", key, &standing.name])?;
            let first = reply.array().and_then(|summary| summary.get(1)?.text());
            match first.and_then(StreamId::parse).and_then(StreamId::previous) {
                Some(before) => passed = passed.min(before),
                None => return Ok(None),
            }
        }
        least = Some(least.map_or(passed, |least| least.min(passed)));
    }
    Ok(least.filter(|id| *id > StreamId::default()))
}

/// Entries that were ever added to the stream.
pub fn added_ever(guard: &ServerLock, key: &[u8]) -> Result<Option<u64>, Trouble> {
    let stream = ask(guard, &[b"XINFO", b"STREAM", key])?;
    Ok(number(&stream, "entries-added"))
}

/// Removes the group, if there is one.
pub fn destroy(guard: &ServerLock, key: &[u8], group: &[u8]) -> Result<(), Trouble> {
    run(guard, &[b"XGROUP", b"DESTROY", key, group]).map(drop)
}

thread_local! {
    static TRIMMING: Cell<bool> = const { Cell::new(false) };
}

/// What is removed from a stream now is removed by `trim`, on this thread.
pub fn is_trimming() -> bool {
    TRIMMING.get()
}

/// See `is_trimming`. Ends also when a panic passes.
struct Trimming;

impl Trimming {
    fn begin() -> Trimming {
        TRIMMING.set(true);
        Trimming
    }
}

impl Drop for Trimming {
    fn drop(&mut self) {
        TRIMMING.set(false);
    }
}

/// There may be more entries before this one than are to be removed in one go.
pub fn has_many_before(guard: &ServerLock, key: &[u8], id: StreamId) -> bool {
    let mut earlier = false;
    if let Some(key) = Key::open(guard, key).filter(|key| key.kind() == Kind::Stream)
        && key.len() > limits::STREAM_TRIMMED_AT_ONCE
    {
        key.stream_entries(None, None, |first, _| {
            earlier = first < id;
            ControlFlow::Break(())
        });
    }
    earlier
}

/// Removes some of what is up to `last`, if it is much; true if there is nothing left of it.
pub fn trim_some(guard: &ServerLock, key: &[u8], last: StreamId) -> Result<bool, Trouble> {
    if let Some(first) = last.next() {
        let _trimming = Trimming::begin();
        let (first, most) = (first.to_string(), limits::STREAM_TRIMMED_AT_ONCE.to_string());
        // Only whole nodes of the stream go.
        let args: [&[u8]; 7] = [
            b"XTRIM",
            key,
            b"MINID",
            b"~",
            first.as_bytes(),
            b"LIMIT",
            most.as_bytes(),
        ];
        if run(guard, &args)?.int().is_some_and(|removed| removed > 0) {
            return Ok(false);
        }
    }
    trim(guard, key, last).map(|()| true)
}

/// Removes everything up to `last`.
pub fn trim(guard: &ServerLock, key: &[u8], last: StreamId) -> Result<(), Trouble> {
    let _trimming = Trimming::begin();
    match last.next() {
        Some(first) => run(guard, &[b"XTRIM", key, b"MINID", first.to_string().as_bytes()]).map(drop),
        None => run(guard, &[b"XTRIM", key, b"MAXLEN", b"0"]).map(drop),
    }
}

/// Why entries go to the dead-letter stream.
pub struct Reason<'a> {
    /// The error.
    pub text: &'a str,
    /// How often they were tried.
    pub tries: u64,
}

/// Entries that are copied to the dead letters between two looks at the clock.
const BURIED_AT_ONCE: usize = 100;

/// Copies the entries behind `after` and up to `last` to the dead-letter stream; `only` these, in order, if there are any.
/// If the time is over before, the last one that is there, and how many were copied.
pub fn bury(
    guard: &ServerLock,
    key: &[u8],
    (mut after, last): (StreamId, StreamId),
    only: &[StreamId],
    (dead_letter, reason): (&[u8], &Reason<'_>),
    mut deadline: Option<&mut Deadline>,
) -> Result<Option<(StreamId, u64)>, Trouble> {
    let mut copied = 0;
    loop {
        // Not while they are written: the stream may be the same.
        let mut copies: Vec<(StreamId, Vec<Vec<u8>>)> = Vec::new();
        if let Some(open) = Key::open(guard, key).filter(|key| key.kind() == Kind::Stream) {
            open.stream_entries(Some(after), Some(last), |id, fields| {
                if only.is_empty() || only.binary_search(&id).is_ok() {
                    let texts = fields.flat_map(|(field, value)| [field.to_vec(), value.to_vec()]);
                    copies.push((id, texts.collect()));
                }
                match copies.len() < BURIED_AT_ONCE {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            });
        }
        for (id, fields) in &copies {
            bury_one(guard, key, (*id, fields), dead_letter, reason)?;
        }
        copied += copies.len() as u64;
        match copies.last() {
            Some((id, _)) if copies.len() == BURIED_AT_ONCE => after = *id,
            _ => return Ok(None),
        }
        if deadline.as_mut().is_some_and(|deadline| deadline.is_over_now()) {
            return Ok(Some((after, copied)));
        }
    }
}

fn bury_one(
    guard: &ServerLock,
    key: &[u8],
    (id, fields): (StreamId, &[Vec<u8>]),
    dead_letter: &[u8],
    reason: &Reason<'_>,
) -> Result<(), Trouble> {
    let (id, tries) = (id.to_string(), reason.tries.to_string());
    let mut args: Vec<&[u8]> = vec![b"XADD", dead_letter, b"*"];
    args.extend(fields.iter().map(Vec::as_slice));
    let more: [&[u8]; 8] = [
        b"oxigears:source",
        key,
        b"oxigears:id",
        id.as_bytes(),
        b"oxigears:reason",
        reason.text.as_bytes(),
        b"oxigears:tries",
        tries.as_bytes(),
    ];
    args.extend(more);
    // Trouble with that stream must not look like trouble with this one.
    run(guard, &args).map(drop).map_err(|trouble| match trouble {
        Trouble::Gone => Trouble::Failed(format!(
            "{} can not take dead letters",
            String::from_utf8_lossy(dead_letter)
        )),
        other => other,
    })
}
