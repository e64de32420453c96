//! The look at every command of clients, scripts and functions: is it taken over, and by which internal command?
//!
//! Must be fast: it costs every command. Allocates nothing unless the command is taken over.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    super::is_master,
    access::{self, Access},
    table::{self, Entry, Place, Table},
};
use crate::redis::{
    filter::{self, Judge, Passing},
    front::Front,
    guarded::Guarded,
    lock::ServerLock,
    notify, timer, unfit,
};

static TABLE: Guarded<Option<Table>> = Guarded::new(None);
/// The dataset is being loaded.
static LOADING: AtomicBool = AtomicBool::new(false);

/// The table to go by from now on.
pub fn publish(guard: &ServerLock, table: Table) {
    let table = (!table.is_empty()).then_some(table);
    filter::show::<Look>(guard, table.as_ref().map_or_else(Arc::default, Table::places));
    // Goes when nobody looks at it any more.
    let _before = mem::replace(&mut *TABLE.borrow_mut(guard), table);
    see_to_filter(guard);
}

/// Looks at commands from now on, or does not: as the table wants it. Each look costs the server.
pub fn see_to_filter(guard: &ServerLock) {
    let table = TABLE.borrow(guard);
    if !table.as_ref().is_some_and(Table::is_wanted) {
        return filter::uninstall(guard);
    }
    if !filter::is_installed() {
        access::begin(guard);
        filter::install::<Look>(guard);
    }
}

/// The entry of a command.
pub fn entry(guard: &ServerLock, name: &[u8]) -> Option<Arc<Entry>> {
    TABLE.borrow(guard).as_ref()?.find(name).cloned()
}

/// A hook takes over this command.
pub fn is_hooked(guard: &ServerLock, args: &[Vec<u8>]) -> bool {
    let entry = args.first().and_then(|name| entry(guard, name));
    let taken = entry.as_ref().and_then(|entry| entry.taken.as_ref());
    taken.is_some_and(|taken| taken.judge(args.len(), |at| &args[at]).hook)
}

/// A dataset is about to be loaded, or is there.
pub fn set_loading(loading: bool) {
    LOADING.store(loading, Ordering::Release);
}

/// The look itself.
enum Look {}

impl Judge for Look {
    type Sight = Place;

    #[inline]
    fn judge(places: &[Place], command: &Passing<'_>) -> Option<Front> {
        match table::find_at_once(places, command.arg(0)) {
            Some(place) if place.is_for_nobody(|| command.len(), |at| command.first_byte(at)) => None,
            place => filter::seldom(|| look_further(place, command)),
        }
    }
}

/// Most commands end before this. `place` is where the command was found, if that was easy.
fn look_further(place: Option<&Place>, command: &Passing<'_>) -> Option<Front> {
    // Looking at rights runs commands, which come here again: a second reader, and nobody changes it.
    let table = TABLE.try_borrow(command.guard())?;
    let table = table.as_ref()?;
    let entry = match place {
        Some(place) => place.entry(),
        None => table.find(command.arg(0)),
    };
    let is_for_nobody = |entry: &Arc<Entry>| entry.is_for_nobody(command.len(), |at| command.first_byte(at));
    if place.is_none() && entry.is_some_and(is_for_nobody) {
        return None;
    }
    tell_if_needed(table, entry, command);
    let entry = entry?;
    access::settle(command.guard());
    if entry.of_rights && access::changes_rights(command.len(), |at| command.arg(at)) {
        access::rights_will_change(command.guard(), command.client());
    } else if entry.is_exec {
        access::transaction_runs(command.guard(), command.client());
    }
    let taken = entry.taken.as_ref()?;
    let found = taken.judge(command.len(), |at| command.arg(at));
    if !(found.hook || found.link || ((found.sync || found.slow) && is_master())) || LOADING.load(Ordering::Acquire) {
        return None;
    }
    if found.hook && unfit::is_for_server(command.len(), |at| command.arg(at)) {
        return None;
    }
    let kind = taken.kind();
    match access::now() {
        Access::Open => Some(Front { kind, free: true }),
        Access::Granted => Some(Front { kind, free: false }),
        // A hook is not by-passed: who may not run the internal command gets NOPERM.
        Access::Restricted => found.hook.then_some(Front { kind, free: false }),
    }
}

/// Has the server tell of the events that this command may raise, if it does not yet.
fn tell_if_needed(table: &Table, entry: Option<&Arc<Entry>>, command: &Passing<'_>) {
    if !table.is_to_tell(entry.map(|entry| &**entry), command.len(), |at| command.arg(at)) {
        return;
    }
    let guard = command.guard();
    notify::tell_of_all(guard);
    // The filter may not be needed any more, and can not go while it runs.
    timer::once(guard, Duration::from_millis(1), see_to_filter);
}
