//! Events that the server causes by itself (keys expire, or are evicted) while its cluster is down: functions can use no keys
//! then, and such an event comes only once. They wait until the cluster is up, and those for all shards until these are
//! reached.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use oxigears_coordinator::registry::RegisterMode;
use parking_lot::Mutex;

use super::{
    fire::{Event, dispatch},
    index::Entry,
    queue,
    worker::REPLICA,
};
use crate::{
    module::module,
    redis::{cluster, lock::ServerLock, notify::Told, replicate, timer},
    registrations::{active::Core, is_master, stats::End},
};

/// How long what was seen of the cluster holds. Many keys expire at once.
const SEEN_FOR: Duration = Duration::from_millis(10);
/// Pause between two looks while events wait.
const PAUSE: Duration = Duration::from_millis(50);
/// How long after the cluster has come up other shards are waited for: a shard that is back has to be found first.
const SHARDS_WAIT: Duration = Duration::from_secs(10);
/// So many fire at once when the cluster is up, and others after this pause.
const AT_ONCE: usize = 100;
const SOON: Duration = Duration::from_millis(1);

type Waiting = VecDeque<(Arc<Entry>, Event)>;

struct Line {
    waiting: Waiting,
    /// When the cluster was seen last, and whether it was down.
    seen: Option<(Instant, bool)>,
    /// Since when it has been up while they waited.
    up_since: Option<Instant>,
}

impl Line {
    fn next(&mut self) -> Option<(Arc<Entry>, Event)> {
        let first = self.waiting.pop_front();
        if first.is_none() {
            self.up_since = None;
        }
        first
    }
}

static LINE: Mutex<Line> = Mutex::new(Line {
    waiting: VecDeque::new(),
    seen: None,
    up_since: None,
});

/// The event has to wait.
#[inline]
pub fn is_to_wait(guard: &ServerLock, told: &Told<'_>) -> bool {
    module().is_cluster && told.is_of_server() && is_held_up(guard)
}

fn is_held_up(guard: &ServerLock) -> bool {
    let seen = {
        let line = LINE.lock();
        if !line.waiting.is_empty() {
            // It stands behind them.
            return true;
        }
        line.seen
    };
    match seen {
        Some((at, down)) if at.elapsed() < SEEN_FOR => down,
        _ => is_down(guard),
    }
}

fn is_down(guard: &ServerLock) -> bool {
    let down = !cluster::is_ok(guard);
    LINE.lock().seen = Some((Instant::now(), down));
    down
}

/// The event waits; it is counted as triggered already.
pub fn push(guard: &ServerLock, entry: &Arc<Entry>, event: Event) {
    if !queue::joins(guard, &entry.active) {
        return;
    }
    let mut line = LINE.lock();
    line.waiting.push_back((entry.clone(), event));
    let is_first = line.waiting.len() == 1;
    drop(line);
    if is_first {
        timer::once(guard, PAUSE, go_on);
    }
}

/// The first ones can fire now.
fn are_ready(guard: &ServerLock) -> bool {
    // Handlers could write nothing during a pause, and could not wait.
    let down = is_down(guard) || replicate::is_paused(guard);
    let mut line = LINE.lock();
    if down {
        line.up_since = None;
        return false;
    }
    let since = *line.up_since.get_or_insert_with(Instant::now);
    let mut first = line.waiting.iter().take(AT_ONCE);
    let is_for_all = first.any(|(entry, _)| entry.mode() == RegisterMode::Async);
    !is_for_all || module().engine.reaches_all() || since.elapsed() >= SHARDS_WAIT
}

/// Events fire if they can: some now, the others soon, so that clients are served in between.
fn go_on(guard: &ServerLock) {
    if is_master() && !are_ready(guard) {
        return timer::once(guard, PAUSE, go_on);
    }
    for _ in 0..AT_ONCE {
        let first = LINE.lock().next();
        let Some((entry, event)) = first else { return };
        queue::left(1);
        match is_master() {
            true => dispatch(guard, &entry, event),
            false => entry.active.core.stats.ended(&End::Refused(REPLICA), 0),
        }
    }
    timer::once(guard, SOON, go_on);
}

/// Takes out what waits for this registration.
pub(super) fn withdraw(core: &Core) -> Vec<Event> {
    let mut line = LINE.lock();
    let is_its = |(entry, _): &(Arc<Entry>, Event)| std::ptr::eq(&*entry.active.core, core);
    if !line.waiting.iter().any(is_its) {
        return Vec::new();
    }
    let (its, others): (Waiting, Waiting) = std::mem::take(&mut line.waiting).into_iter().partition(is_its);
    line.waiting = others;
    its.into_iter().map(|(_, event)| event).collect()
}
