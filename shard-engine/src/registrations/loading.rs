//! Loading the functions of what becomes active, on threads of their own. That runs code of scripts, which may take long or
//! never end (it waits for another server, it loops): others are active meanwhile, and what comes late is taken then.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::Instant,
};

use hashbrown::HashMap;
use oxigears_coordinator::{engine::PYTHON_STACK_BYTES, registry::Registration};
use oxigears_python_api::Interrupt;
use parking_lot::Mutex;

use super::{active::Loaded, limits, prepared};
use crate::redis::log;

/// Functions by the ids of their registrations.
pub type ById = HashMap<Arc<str>, Loaded>;

/// Takes what comes late, on any thread.
pub type Late = Arc<dyn Fn(&Registration, Loaded) + Send + Sync>;

/// Threads that have been left to load one registration's functions each.
static LEFT: Mutex<Vec<Arc<Run>>> = Mutex::new(Vec::new());

/// Loads the functions of these, each as what there is or with the reason why not. What takes too long is left to its thread,
/// and `late` gets it when it is there, on any thread. For a thread that may wait, without locks and the GIL.
pub fn load_all(wanted: Vec<Arc<Registration>>, loaded: &mut ById, late: Late) {
    let mut rest = Vec::new();
    for registration in wanted {
        match prepared::take(&registration.id, &registration.plan) {
            Some(ready) => drop(loaded.insert(registration.id.clone(), ready)),
            None => rest.push(registration),
        }
    }
    let deadline = Instant::now() + limits::LOADING_WAIT;
    let mut at = 0;
    while at < rest.len() {
        let (run, results) = match Run::start(rest[at..].to_vec(), late.clone()) {
            Ok(started) => started,
            Err(why) => {
                let failed = |r: &Arc<Registration>| (r.id.clone(), Loaded::unreadable(format!("no thread: {why}")));
                return loaded.extend(rest[at..].iter().map(failed));
            }
        };
        for registration in &rest[at..] {
            at += 1;
            let id = registration.id.clone();
            let Some(ready) = run.next(&results, registration, deadline) else {
                log::warning(&format!(
                    "the functions of registration {id} take long to load: it is active when that is done, others are now"
                ));
                loaded.insert(id, Loaded::unreadable("that takes long, and is not done yet".into()));
                break;
            };
            loaded.insert(id, ready);
        }
    }
}

/// Some are left.
pub fn is_some_left() -> bool {
    !LEFT.lock().is_empty()
}

/// Of those that are left, the ones that nobody wants any more are to end; to be called again and again.
/// Python code does, what waits in C code does not.
pub fn stop_unwanted(is_wanted: impl Fn(&str) -> bool) {
    let left = LEFT.lock().clone();
    for run in left {
        let at = run.left.lock().as_ref().map(|registration| registration.id.clone());
        if at.is_some_and(|id| !is_wanted(&id)) {
            run.interrupt.request();
        }
    }
}

/// A thread that loads the functions of some, one after another.
struct Run {
    interrupt: Interrupt,
    /// At this one it has been left: it ends after that. Held while a result goes out.
    left: Mutex<Option<Arc<Registration>>>,
}

/// The end of the thread, also by a panic.
struct Ends(Arc<Run>);

impl Drop for Ends {
    fn drop(&mut self) {
        LEFT.lock().retain(|other| !Arc::ptr_eq(other, &self.0));
    }
}

impl Run {
    fn start(list: Vec<Arc<Registration>>, late: Late) -> std::io::Result<(Arc<Run>, Receiver<Loaded>)> {
        let (sender, results) = mpsc::channel();
        let run = Arc::new(Run {
            interrupt: Interrupt::new(),
            left: Mutex::new(None),
        });
        let its = Ends(run.clone());
        let work = move || {
            for registration in list {
                let loaded = its.0.interrupt.during(|| Loaded::from_plan(&registration.plan));
                let loaded = loaded.unwrap_or_else(Loaded::unreadable);
                let left = its.0.left.lock();
                if left.is_some() {
                    drop(left);
                    return late(&registration, loaded);
                }
                // Who waits for all of them is there, or has met a panic.
                let _ = sender.send(loaded);
            }
        };
        let thread = thread::Builder::new().name("oxi-load".into());
        thread.stack_size(PYTHON_STACK_BYTES).spawn(work)?;
        Ok((run, results))
    }

    /// What comes of this one, which is the next. `None`: it is not there until `deadline`, nor within a moment, and the
    /// thread is left.
    fn next(
        self: &Arc<Self>,
        results: &Receiver<Loaded>,
        registration: &Arc<Registration>,
        deadline: Instant,
    ) -> Option<Loaded> {
        let failed = || Loaded::unreadable("internal error, see the server log".into());
        let wait = deadline.saturating_duration_since(Instant::now());
        match results.recv_timeout(wait.max(limits::LOADING_WAIT_EACH)) {
            Ok(loaded) => return Some(loaded),
            Err(RecvTimeoutError::Disconnected) => return Some(failed()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let mut left = self.left.lock();
        match results.try_recv() {
            Ok(loaded) => Some(loaded),
            Err(TryRecvError::Disconnected) => Some(failed()),
            Err(TryRecvError::Empty) => {
                *left = Some(registration.clone());
                LEFT.lock().push(self.clone());
                None
            }
        }
    }
}
