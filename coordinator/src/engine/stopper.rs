//! Seeing executions leave their threads: those that are aborted, and those that are over while a thread is still in a
//! function of theirs, because they failed here or on another shard. Such a function gets some time to end by itself; but
//! it could run for ever, and hold the server meanwhile.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{execution::Execution, pool::Pool, swift::Swift};
use crate::{execution::Phase, limits};

/// Called when an execution has left its thread. Must not wait: all others are seen to by the same thread.
type Left = Box<dyn FnOnce() + Send>;

/// What is to leave its thread.
#[derive(Clone)]
pub(super) enum Target {
    /// An execution.
    Execution(Arc<Execution>),
    /// One that handles an event in one go, by its number.
    Event(Arc<Swift>, u64),
}

impl Target {
    fn interrupt(&self) {
        match self {
            Target::Execution(execution) => execution.interrupt.request(),
            Target::Event(swift, number) => swift.interrupt(*number),
        }
    }
}

struct Leaving {
    target: Target,
    /// When it is interrupted.
    when: Instant,
    left: Option<Left>,
}

impl Leaving {
    fn is_gone(&self) -> bool {
        match &self.target {
            Target::Execution(execution) => {
                let is_done = self.left.is_some() && execution.phase() == Phase::Done;
                is_done || !execution.is_on_thread()
            }
            Target::Event(swift, number) => !swift.runs(*number),
        }
    }
}

type List = Mutex<Vec<Leaving>>;

/// Interrupts them.
pub(super) struct Stopper {
    thread: Pool,
    /// The thread works until there is none.
    list: Arc<List>,
}

impl Stopper {
    pub fn start(on_panic: impl Fn(String) + Send + Sync + 'static) -> io::Result<Stopper> {
        Ok(Stopper {
            thread: Pool::start("oxi-stop", 1, on_panic)?,
            list: Arc::default(),
        })
    }

    /// Sees to it that the thread of an execution that is over leaves it.
    pub fn stop(&self, execution: &Arc<Execution>) {
        self.see(Target::Execution(execution.clone()), limits::INTERRUPT_AFTER, None);
    }

    /// Interrupts one at once; `left` is called when it is done, or its thread has left it.
    pub fn interrupt(&self, target: Target, left: impl FnOnce() + Send + 'static) {
        self.see(target, Duration::ZERO, Some(Box::new(left)));
    }

    fn see(&self, target: Target, after: Duration, left: Option<Left>) {
        let mut list = self.list.lock();
        list.push(Leaving {
            target,
            when: Instant::now() + after,
            left,
        });
        if list.len() == 1 {
            let list = self.list.clone();
            self.thread.submit(move || see_them_leave(&list));
        }
    }
}

fn see_them_leave(list: &List) {
    loop {
        let (gone, late, is_last) = {
            let mut list = list.lock();
            let gone: Vec<Leaving> = list.extract_if(.., |one| one.is_gone()).collect();
            let now = Instant::now();
            let late = list.iter().filter(|one| one.when <= now);
            let late: Vec<Target> = late.map(|one| one.target.clone()).collect();
            (gone, late, list.is_empty())
        };
        gone.into_iter().filter_map(|one| one.left).for_each(|left| left());
        if is_last {
            return;
        }
        late.iter().for_each(Target::interrupt);
        thread::sleep(match late.is_empty() {
            true => limits::INTERRUPT_AFTER / 10,
            false => limits::INTERRUPT_EVERY,
        });
    }
}
