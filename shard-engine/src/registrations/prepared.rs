//! Functions that were loaded for a change before it was made: on the initiator those of the script itself, on the
//! others those that were loaded to answer whether they can be.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::{active::Loaded, limits};

/// By registration id, which is used once in a cluster's life.
static STORE: Mutex<Option<Store>> = Mutex::new(None);

#[derive(Default)]
struct Store {
    by_id: HashMap<Arc<str>, Entry>,
    /// In the order in which they came; some are taken already.
    order: VecDeque<(Instant, Arc<str>)>,
}

struct Entry {
    plan: Bytes,
    loaded: Loaded,
}

/// Keeps functions for the activation. Beyond the bound the oldest go; they are loaded again then.
pub fn keep(id: Arc<str>, plan: Bytes, loaded: Loaded) {
    let mut gone = Vec::new();
    let mut store = STORE.lock();
    let store_ref = store.get_or_insert_default();
    store_ref.order.push_back((Instant::now(), id.clone()));
    gone.extend(store_ref.by_id.insert(id, Entry { plan, loaded }));
    while store_ref.order.len() > limits::PREPARED {
        let Some((_, oldest)) = store_ref.order.pop_front() else {
            break;
        };
        gone.extend(store_ref.by_id.remove(&oldest));
    }
    drop(store);
    // Freed outside the lock.
    drop(gone);
}

/// The functions of the registration with this id, if they were loaded from this plan.
pub fn take(id: &str, plan: &Bytes) -> Option<Loaded> {
    let entry = STORE.lock().as_mut()?.by_id.remove(id)?;
    (entry.plan == plan).then_some(entry.loaded)
}

/// Lets go of what nobody came for.
pub fn tidy() {
    let mut gone = Vec::new();
    let mut store = STORE.lock();
    let Some(store_ref) = store.as_mut() else { return };
    while let Some((since, id)) = store_ref.order.front() {
        let taken = !store_ref.by_id.contains_key(id);
        if !taken && since.elapsed() < limits::PREPARED_LIFE {
            break;
        }
        gone.extend(store_ref.by_id.remove(id));
        store_ref.order.pop_front();
    }
    drop(store);
    drop(gone);
}

/// Nothing was made of it.
pub fn forget<'a>(ids: impl Iterator<Item = &'a Arc<str>>) {
    let mut store = STORE.lock();
    let Some(store_ref) = store.as_mut() else { return };
    let gone: Vec<Entry> = ids.filter_map(|id| store_ref.by_id.remove(id)).collect();
    drop(store);
    drop(gone);
}
