//! One batch of one stream: what is read for it, and what is done at its end. Always under the server lock.

use std::{
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hashbrown::HashMap;
use oxigears_coordinator::{plan::Reader, registry::FailurePolicy};
use parking_lot::Mutex;

use super::{
    super::{is_master, limits, registrations, stats::End},
    all,
    consumer::{Consumer, Key, Status},
    flow::{Ended, Found, Next, Wanted},
    group::{self, Entries, Range, Standing, Trouble},
    room::Room,
    running,
};
use crate::{
    identity,
    readers::slices::Deadline,
    redis::{cluster, key::StreamId, lock::ServerLock, log, replicate},
};

/// Who has which groups of a stream now: batches of one stream in one group are run one after another, whatever
/// registration they belong to.
static HOLDERS: Mutex<Option<HashMap<Key, Vec<Held>>>> = Mutex::new(None);

struct Held {
    group: Bytes,
    /// The stream of that name is another one by now.
    lost: bool,
}

/// The right to work on a stream in a group; given back when it is dropped.
pub struct Hold {
    key: Key,
    group: Bytes,
}

impl Hold {
    fn take(consumer: &Consumer, key: &Key) -> Option<Hold> {
        let group = consumer.group.clone();
        let mut holders = HOLDERS.lock();
        let held = holders.get_or_insert_default().entry(key.clone()).or_default();
        if held.iter().any(|held| held.group == group) {
            return None;
        }
        held.push(Held {
            group: group.clone(),
            lost: false,
        });
        Some(Hold {
            key: key.clone(),
            group,
        })
    }

    /// The stream went away, and maybe came back, since it was held, or since it was last asked here.
    fn ask_lost(&self) -> bool {
        let mut holders = HOLDERS.lock();
        let held = holders.as_mut().and_then(|holders| holders.get_mut(&self.key));
        let own = held.and_then(|held| held.iter_mut().find(|held| held.group == self.group));
        own.is_some_and(|own| std::mem::take(&mut own.lost))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holders = HOLDERS.lock();
        let Some(holders) = holders.as_mut() else { return };
        if let Some(held) = holders.get_mut(&self.key) {
            held.retain(|held| held.group != self.group);
            if held.is_empty() {
                holders.remove(&self.key);
            }
        }
    }
}

/// The stream of this name went away, or all of them: what is under way must not acknowledge or trim what comes instead.
pub fn lost(key: Option<&[u8]>) {
    let mut holders = HOLDERS.lock();
    let Some(holders) = holders.as_mut() else { return };
    match key {
        Some(key) => holders
            .get_mut(key)
            .into_iter()
            .flatten()
            .for_each(|held| held.lost = true),
        None => holders.values_mut().flatten().for_each(|held| held.lost = true),
    }
}

/// A batch that is being read.
pub struct Reading {
    hold: Hold,
    number: u64,
    depth: u32,
    wanted: Wanted,
    standing: Standing,
    entries: Entries,
    /// They are what the group had pending.
    pending: bool,
    /// What the group has pending behind this one is still to be read.
    pending_behind: Option<StreamId>,
    /// New ones were looked for.
    new: bool,
    room: Option<Room>,
}

/// A batch that is to be run.
pub struct Batch {
    hold: Hold,
    /// That of its flow.
    pub number: u64,
    /// How deep the events are that told of it.
    pub depth: u32,
    standing: Standing,
    /// What was read; its records are taken out to be run.
    pub entries: Entries,
    /// In a group with other members: so many are acknowledged.
    acknowledged: usize,
    /// Where it waits for a thread; `None` if it does not.
    pub room: Option<Room>,
}

/// How a batch ended.
pub enum Verdict {
    /// Without an error.
    Success,
    /// With this error first.
    Failure(String),
    /// The same, but what it wrote is there already: it must not run again.
    FailureAfterWrites(String),
    /// It did not run to its end, for a reason that will pass.
    Hindered(String),
    /// It did not run to its end.
    Aborted,
}

/// What came of a look at a stream.
pub enum Look {
    /// The time was not enough: go on.
    More(Box<Reading>),
    /// To be run.
    Run(Box<Batch>),
    /// Nothing is to be run now.
    Nothing(Next),
}

/// A clock in ms that no correction of the time of day moves.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// Wall clock in ms, as in the ids of entries.
fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// Ids with older times are taken for numbers that somebody made up.
const OLDEST_LAG_MS: u64 = 10 * 365 * 24 * 3600 * 1000;

/// Begins to read the batch that the flow of this number wants; its flow is taken.
pub fn begin(
    guard: &ServerLock,
    (consumer, key): (&Consumer, &Key),
    flow: u64,
    hold: Option<Kept>,
    room: Option<Room>,
) -> Look {
    // The stream may have another flow by now, for which somebody else comes.
    let Some((number, depth)) = consumer.number(key).filter(|(number, _)| *number == flow) else {
        return over(guard, consumer, key, hold);
    };
    if !is_master() || cluster::is_replica(guard) {
        consumer.forget(key);
        return Look::Nothing(Next::Wait);
    }
    if replicate::is_paused(guard) || registrations().activation.is_behind() {
        return later(consumer, key, number);
    }
    let (hold, known) = match hold {
        Some((hold, standing)) => {
            // Asked in any case: what is lost now is not lost for the batch that is to be read.
            let is_lost = hold.ask_lost();
            (hold, standing.filter(|_| !is_lost))
        }
        None => match Hold::take(consumer, key) {
            Some(hold) => (hold, None),
            None => return later(consumer, key, number),
        },
    };
    let Some(wanted) = consumer.with(key, number, |flow, rules| flow.wanted(rules)) else {
        return Look::Nothing(Next::Wait);
    };
    if let Err(text) = check_rights(guard, consumer, key) {
        return refused(consumer, key, number, &text);
    }
    let standing = match known {
        Some(standing) if consumer.has_own_group => Ok(standing),
        _ => group::standing(guard, key, &consumer.group),
    };
    match standing {
        Ok(standing) => Look::More(Box::new(Reading {
            hold,
            number,
            depth,
            wanted,
            standing,
            entries: Entries::default(),
            pending: false,
            pending_behind: (wanted.fresh || wanted.until.is_some()).then(StreamId::default),
            new: consumer.has_own_group,
            room,
        })),
        Err(trouble) => in_trouble(guard, consumer, key, number, trouble),
    }
}

/// The stream is not to be looked at any more. What held it is given back, which may have kept the registration from
/// leaving.
fn over<T>(guard: &ServerLock, consumer: &Consumer, key: &Key, held: Option<T>) -> Look {
    let was_held = held.is_some();
    drop(held);
    if was_held && consumer.is_gone() {
        leave(guard, consumer, key);
    }
    Look::Nothing(Next::Wait)
}

/// Somebody looks again in a moment.
fn later(consumer: &Consumer, key: &Key, number: u64) -> Look {
    let ms = limits::STREAM_RETRY.as_millis() as u64;
    let next = consumer.with(key, number, |flow, _| flow.postponed(ms));
    Look::Nothing(next.unwrap_or(Next::Wait))
}

/// What is done with a stream is done for the user who registered that.
fn check_rights(guard: &ServerLock, consumer: &Consumer, key: &Key) -> Result<(), String> {
    let Some(user) = &consumer.core.loaded.user else {
        return Ok(());
    };
    let reader = Reader::Stream {
        key: key.to_vec(),
        from_id: "0-0".into(),
    };
    identity::check_reader(user, &reader)?;
    if !consumer.has_own_group {
        identity::check_group(guard, user, key, &consumer.group)?;
    }
    if consumer.trim {
        identity::check_trim(guard, user, key)?;
    }
    let dead_letter = consumer.dead_letter(key);
    dead_letter.map_or(Ok(()), |stream| identity::check_dead_letters(guard, user, &stream))
}

/// The registration can not have this stream: a failure, with which the policy deals as with others.
fn refused(consumer: &Consumer, key: &Key, number: u64, text: &str) -> Look {
    consumer.core.stats.ran(&End::Failure(text), 0);
    stop(consumer, text);
    let least_ms = limits::STREAM_RETRY.as_millis() as u64;
    let next = consumer.with(key, number, |flow, rules| flow.barred(rules, least_ms));
    Look::Nothing(next.unwrap_or(Next::Wait))
}

fn in_trouble(guard: &ServerLock, consumer: &Consumer, key: &Key, number: u64, trouble: Trouble) -> Look {
    match trouble {
        // While its slot moves here the stream is there, but not yet ours.
        Trouble::Gone if !group::is_stream(guard, key) => {
            consumer.forget(key);
            Look::Nothing(Next::Wait)
        }
        Trouble::Gone | Trouble::Paused => later(consumer, key, number),
        Trouble::Failed(text) => refused(consumer, key, number, &text),
    }
}

/// Goes on reading; without a deadline to the end.
pub fn go_on(
    guard: &ServerLock,
    consumer: &Consumer,
    key: &Key,
    mut reading: Box<Reading>,
    deadline: Option<&mut Deadline>,
) -> Look {
    let number = reading.number;
    // It may have been paused, or deleted, since the last slice.
    if consumer.number(key).is_none_or(|(now, _)| now != number) {
        return over(guard, consumer, key, Some(reading));
    }
    let whole = if consumer.has_own_group {
        let range = Range {
            after: reading.standing.last,
            until: reading.wanted.until,
            count: match reading.wanted.until {
                Some(_) => u64::MAX,
                None => reading.wanted.count,
            },
        };
        group::read(guard, key, &range, &mut reading.entries, deadline)
    } else {
        take_in_turn(guard, consumer, key, &mut reading, deadline)
    };
    match whole {
        Ok(true) => judge(consumer, key, reading),
        Ok(false) => Look::More(reading),
        Err(trouble) => in_trouble(guard, consumer, key, number, trouble),
    }
}

/// What is pending comes before what is new. False if the time is over before the end.
fn take_in_turn(
    guard: &ServerLock,
    consumer: &Consumer,
    key: &Key,
    reading: &mut Reading,
    deadline: Option<&mut Deadline>,
) -> Result<bool, Trouble> {
    let (entries, wanted) = (&mut reading.entries, reading.wanted);
    let is_over = || deadline.as_ref().is_some_and(|deadline| deadline.is_over_now());
    let most = limits::STREAM_TAKEN_AT_ONCE;
    while reading.pending_behind.is_some() {
        reading.pending_behind = group::take(guard, key, &consumer.group, reading.pending_behind, most, entries)?;
        reading.pending = entries.count > 0;
        if reading.pending_behind.is_some() && is_over() {
            return Ok(false);
        }
    }
    if !reading.pending && wanted.until.is_none() && wanted.new {
        reading.new = true;
        while !entries.is_full(wanted.count) {
            let most = most.min(wanted.count - entries.count);
            if group::take(guard, key, &consumer.group, None, most, entries)?.is_none() {
                break;
            }
            if !entries.is_full(wanted.count) && is_over() {
                return Ok(false);
            }
        }
    }
    entries.more = group::has_entries_behind(guard, key, reading.standing.last.max(entries.last));
    Ok(true)
}

fn judge(consumer: &Consumer, key: &Key, reading: Box<Reading>) -> Look {
    let found = Found {
        read: reading.entries.count,
        more: reading.entries.more,
        taken: !consumer.has_own_group,
        new: reading.new,
    };
    let judged = consumer.with(key, reading.number, |flow, rules| {
        let run = flow.looked(found, rules, now_ms());
        (run, if run { Next::Wait } else { flow.next(rules, now_ms()) })
    });
    let Some((run, next)) = judged else {
        return Look::Nothing(Next::Wait);
    };
    if reading.wanted.fresh && !reading.pending {
        // Clients know an execution that reads what is pending, also if there is nothing.
        consumer.core.stats.ran(&End::Success, 0);
    }
    if !run {
        return Look::Nothing(next);
    }
    let mut room = reading.room;
    if let Some(room) = &mut room {
        room.take(reading.entries.bytes.len());
    }
    consumer.core.stats.triggered();
    Look::Run(Box::new(Batch {
        hold: reading.hold,
        number: reading.number,
        depth: reading.depth,
        standing: reading.standing,
        entries: reading.entries,
        acknowledged: 0,
        room,
    }))
}

/// What one batch leaves to the next one of its stream; where the group stands, if that is known.
pub type Kept = (Hold, Option<Standing>);

/// A batch that has been settled.
pub enum Settled {
    /// What the flow wants next, and the group for it.
    Done(Next, Kept),
    /// Writes are paused: again in a moment.
    Later(Box<Batch>, Verdict),
    /// The time was not enough: go on.
    More(Box<Batch>, Verdict),
}

/// What becomes of the entries.
enum Fate {
    Acknowledge,
    Bury(String),
    Again,
    AgainUncounted,
    Keep,
}

/// The batch is over, after so many ns: acknowledges it, or what else the policy says. Without a deadline in one go.
pub fn settle(
    guard: &ServerLock,
    (consumer, key): (&Consumer, &Key),
    mut batch: Box<Batch>,
    verdict: Verdict,
    ns: u64,
    mut deadline: Option<&mut Deadline>,
) -> Settled {
    let fate = fate(consumer, key, &batch, &verdict);
    let writes = matches!(fate, Fate::Acknowledge | Fate::Bury(_));
    // A replica must not write; the new master runs the entries again.
    let can_write = is_master() && !cluster::is_replica(guard);
    let (last, mut gone) = (batch.entries.last, false);
    let mut written = || {
        if batch.hold.ask_lost() {
            return Err(Trouble::Gone);
        }
        match write(guard, (consumer, key), &mut batch, &fate, deadline.take()) {
            // What it wrote is there: it must not run again, buried or not.
            Err(Trouble::Failed(text)) if matches!(verdict, Verdict::FailureAfterWrites(_)) => {
                log::warning(&format!(
                    "registration {} can not put entries of {} into its dead letters, they are acknowledged: {text}",
                    consumer.registration.id,
                    String::from_utf8_lossy(key)
                ));
                write(guard, (consumer, key), &mut batch, &Fate::Acknowledge, None)
            }
            written => written,
        }
    };
    let ended = match &fate {
        _ if writes && can_write => match written() {
            Ok(true) => Ended::Acknowledged,
            Ok(false) => return Settled::More(batch, verdict),
            Err(Trouble::Paused) => return Settled::Later(batch, verdict),
            Err(Trouble::Failed(text)) => {
                log::warning(&format!(
                    "registration {} can not acknowledge entries of {}, they run again: {text}",
                    consumer.registration.id,
                    String::from_utf8_lossy(key)
                ));
                Ended::Failed(last)
            }
            Err(Trouble::Gone) => {
                gone = true;
                Ended::Dropped
            }
        },
        Fate::Again => Ended::Failed(last),
        Fate::AgainUncounted => Ended::Hindered(last),
        _ => Ended::Dropped,
    };
    count(consumer, &batch, &verdict, ns);
    let passed = passed(&batch);
    let Batch {
        hold,
        number,
        mut standing,
        ..
    } = *batch;
    if matches!(ended, Ended::Acknowledged) {
        standing.last = last;
        standing.entries_read = passed;
    }
    let standing = (!gone).then_some(standing);
    let mut next = consumer.with(key, number, |flow, rules| flow.ended(ended, rules, now_ms()));
    if gone && next.is_some() {
        next = found_anew(guard, consumer, key);
    }
    if let Verdict::Failure(text) | Verdict::FailureAfterWrites(text) = &verdict {
        stop(consumer, text);
    }
    let next = if consumer.is_ok() {
        next.unwrap_or(Next::Wait)
    } else {
        Next::Wait
    };
    if consumer.is_gone() {
        leave_now(guard, consumer, key);
    }
    Settled::Done(next, (hold, standing))
}

/// The stream or the group went away while a batch was under way; what is there now begins anew.
fn found_anew(guard: &ServerLock, consumer: &Consumer, key: &Key) -> Option<Next> {
    consumer.forget(key);
    let is_there = group::is_stream(guard, key);
    if !is_there {
        return None;
    }
    consumer.found(key, now_ms()).map(|(_, next)| next)
}

fn passed(batch: &Batch) -> Option<u64> {
    batch.standing.entries_read.map(|n| n + batch.entries.count)
}

fn fate(consumer: &Consumer, key: &Key, batch: &Batch, verdict: &Verdict) -> Fate {
    match verdict {
        Verdict::Success => Fate::Acknowledge,
        Verdict::Aborted => Fate::Keep,
        Verdict::Hindered(_) => Fate::AgainUncounted,
        Verdict::FailureAfterWrites(text) => match &consumer.dead_letter(key) {
            Some(_) => Fate::Bury(text.clone()),
            None => Fate::Acknowledge,
        },
        Verdict::Failure(text) if pauses(text) => Fate::Keep,
        Verdict::Failure(text) => match consumer.policy {
            FailurePolicy::Continue => Fate::Acknowledge,
            FailurePolicy::Abort => Fate::Keep,
            FailurePolicy::Retry => {
                let last = consumer.with(key, batch.number, |flow, rules| flow.is_last_try(rules));
                match last {
                    Some(true) => Fate::Bury(text.clone()),
                    _ => Fate::Again,
                }
            }
        },
    }
}

/// The registration is paused by an error that begins so.
pub fn pauses(error: &str) -> bool {
    error.starts_with("PAUSE")
}

/// The error that says what becomes of a batch: the first one, unless one pauses.
pub fn decisive(errors: &[String]) -> Option<&String> {
    errors.iter().find(|text| pauses(text)).or(errors.first())
}

/// An error may stop the registration on this shard.
fn stop(consumer: &Consumer, text: &str) {
    if !consumer.is_ok() {
        return;
    }
    if pauses(text) {
        consumer.set_status(Status::Paused);
    } else if consumer.policy == FailurePolicy::Abort {
        consumer.set_status(Status::Aborted);
    }
}

fn count(consumer: &Consumer, batch: &Batch, verdict: &Verdict, ns: u64) {
    let end = match verdict {
        Verdict::Success => End::Success,
        Verdict::Failure(text) | Verdict::FailureAfterWrites(text) | Verdict::Hindered(text) => End::Failure(text),
        Verdict::Aborted => End::Aborted,
    };
    let (now, first) = (wall_ms(), batch.entries.first.ms);
    let lag = now.checked_sub(first).filter(|lag| *lag < OLDEST_LAG_MS);
    consumer
        .core
        .stats
        .ended_with_lag(&end, ns, lag.unwrap_or(ns / 1_000_000));
}

/// Writes what acknowledges the batch; false if the time was not enough.
fn write(
    guard: &ServerLock,
    (consumer, key): (&Consumer, &Key),
    batch: &mut Batch,
    fate: &Fate,
    mut deadline: Option<&mut Deadline>,
) -> Result<bool, Trouble> {
    if let Fate::Bury(text) = fate
        && let Some(dead_letter) = consumer.dead_letter(key)
    {
        let tries = consumer.with(key, batch.number, |flow, _| flow.tries()).unwrap_or(0) + 1;
        let reason = group::Reason { text, tries };
        if !bury(
            guard,
            (consumer, key),
            batch,
            (&dead_letter, &reason),
            deadline.as_deref_mut(),
        )? {
            return Ok(false);
        }
    }
    let (first, last) = (batch.entries.first, batch.entries.last);
    if consumer.has_own_group {
        count_again(guard, consumer, key, batch)?;
        group::acknowledge(guard, key, &consumer.group, last, passed(batch))?;
    } else {
        for ids in batch.entries.ids[batch.acknowledged..].chunks(limits::STREAM_IDS) {
            group::acknowledge_each(guard, key, &consumer.group, ids)?;
            batch.acknowledged += ids.len();
            let is_whole = batch.acknowledged == batch.entries.ids.len();
            if !is_whole && deadline.as_ref().is_some_and(|deadline| deadline.is_over_now()) {
                return Ok(false);
            }
        }
    }
    trim(guard, consumer, key, (first, last))?;
    Ok(true)
}

/// Entries that others have removed before they were read are not in the batch's number. How many there were is known
/// where nothing is behind the batch.
fn count_again(guard: &ServerLock, consumer: &Consumer, key: &Key, batch: &mut Batch) -> Result<(), Trouble> {
    if !consumer.is_uncounted(key, batch.number) || group::has_entries_behind(guard, key, batch.entries.last) {
        return Ok(());
    }
    let added = group::added_ever(guard, key)?;
    batch.standing.entries_read = added.map(|added| added.saturating_sub(batch.entries.count));
    consumer.counted(key, batch.number);
    Ok(())
}

/// A registration is gone: removes its group if nobody can go on with it, and entries that only it had not passed; unless
/// its last batch is under way, which does it.
pub fn leave(guard: &ServerLock, consumer: &Consumer, key: &Key) {
    let is_held = HOLDERS.lock().as_ref().is_some_and(|holders| {
        let held = holders.get(key);
        held.is_some_and(|held| held.iter().any(|held| held.group == consumer.group))
    });
    if !is_held {
        leave_now(guard, consumer, key);
    }
}

fn leave_now(guard: &ServerLock, consumer: &Consumer, key: &Key) {
    if !is_ours(guard, key) {
        return;
    }
    // The same session may have registered it again. What goes wrong does no harm: writes are paused, or the stream is gone.
    if consumer.is_alone_with_its_group() && !all().groups_of(key).contains(&consumer.group) {
        let _ = group::destroy(guard, key, &consumer.group);
    }
    if let Ok(false) = trim_passed(guard, key) {
        running::trim_later(key);
    }
}

fn is_ours(guard: &ServerLock, key: &Key) -> bool {
    is_master() && !cluster::is_replica(guard) && group::is_stream(guard, key)
}

/// Goes on to remove what all registrations of the stream have passed; false if the time is over before the end.
pub fn trim_on(guard: &ServerLock, key: &Key, deadline: &Deadline) -> bool {
    loop {
        match trim_passed(guard, key) {
            Ok(false) if deadline.is_over_now() => return false,
            Ok(false) => {}
            // The next batch does it.
            Ok(true) | Err(_) => return true,
        }
    }
}

/// Removes some of what all registrations of the stream have passed; true if there is nothing left of it.
fn trim_passed(guard: &ServerLock, key: &Key) -> Result<bool, Trouble> {
    if !is_ours(guard, key) || !all().is_trimmed(key) {
        return Ok(true);
    }
    let passed = group::passed_by_all(guard, key, &all().groups_of(key))?;
    passed.map_or(Ok(true), |last| group::trim_some(guard, key, last))
}

/// Copies the entries to the dead letters; false if the time was not enough for all. Those that are there are acknowledged
/// then, so they are not copied again after a restart, and the batch is the rest.
fn bury(
    guard: &ServerLock,
    (consumer, key): (&Consumer, &Key),
    batch: &mut Batch,
    (dead_letter, reason): (&[u8], &group::Reason<'_>),
    deadline: Option<&mut Deadline>,
) -> Result<bool, Trouble> {
    let (entries, standing) = (&mut batch.entries, &mut batch.standing);
    let after = match entries.ids.get(batch.acknowledged) {
        _ if consumer.has_own_group => standing.last,
        Some(first) => first.previous().unwrap_or_default(),
        None => return Ok(true),
    };
    let range = (after, entries.last);
    let Some((last, count)) = group::bury(guard, key, range, &entries.ids, (dead_letter, reason), deadline)? else {
        return Ok(true);
    };
    if consumer.has_own_group {
        let passed = standing.entries_read.map(|n| n + count);
        group::acknowledge(guard, key, &consumer.group, last, passed)?;
        (standing.last, standing.entries_read) = (last, passed);
        entries.count = entries.count.saturating_sub(count);
    } else {
        let part = entries.ids.partition_point(|id| *id <= last);
        group::acknowledge_each(guard, key, &consumer.group, &entries.ids[batch.acknowledged..part])?;
        batch.acknowledged = part;
    }
    Ok(false)
}

/// Removes what all registrations of the stream have passed, if one of them wants that. Of a batch from `first` to `last`.
fn trim(
    guard: &ServerLock,
    consumer: &Consumer,
    key: &Key,
    (first, last): (StreamId, StreamId),
) -> Result<(), Trouble> {
    // Entries that others would have removed may have waited for this one.
    if !(consumer.trim || all().is_trimmed(key)) {
        return Ok(());
    }
    let mut groups = all().groups_of(key);
    // If the registration is gone, this is its last batch.
    groups.insert(consumer.group.clone());
    if groups.len() > limits::GROUPS_ASKED {
        // To ask each time how far all are would take a time that grows with their square.
        running::trim_later(key);
        return Ok(());
    }
    let is_alone = groups.len() == 1 && consumer.has_own_group;
    let passed = match is_alone {
        true => Some(last),
        false => group::passed_by_all(guard, key, &groups)?,
    };
    let Some(passed) = passed else { return Ok(()) };
    // Another registration kept them until a moment ago.
    if group::has_many_before(guard, key, first) {
        if !group::trim_some(guard, key, passed)? {
            running::trim_later(key);
        }
        return Ok(());
    }
    group::trim(guard, key, passed)
}
