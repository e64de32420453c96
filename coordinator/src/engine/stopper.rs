//! Executions that are over while a thread is still in a function of theirs, because they failed here or on another
//! shard. The function gets some time to end by itself; but it could run for ever, and hold the server meanwhile.

use std::{io, sync::Arc, thread, time::Instant};

use parking_lot::Mutex;

use super::{execution::Execution, pool::Pool};
use crate::limits;

/// With the times when they are to be interrupted.
type List = Mutex<Vec<(Instant, Arc<Execution>)>>;

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

    /// Sees to it that the thread of an execution leaves it.
    pub fn stop(&self, execution: &Arc<Execution>) {
        let mut list = self.list.lock();
        list.push((Instant::now() + limits::INTERRUPT_AFTER, execution.clone()));
        if list.len() == 1 {
            let list = self.list.clone();
            self.thread.submit(move || see_them_leave(&list));
        }
    }
}

fn see_them_leave(list: &List) {
    loop {
        let late: Vec<Arc<Execution>> = {
            let mut list = list.lock();
            list.retain(|(_, execution)| execution.is_on_thread());
            if list.is_empty() {
                return;
            }
            let now = Instant::now();
            let late = list.iter().filter(|(when, _)| *when <= now);
            late.map(|(_, execution)| execution.clone()).collect()
        };
        late.iter().for_each(|execution| execution.interrupt.request());
        thread::sleep(match late.is_empty() {
            true => limits::INTERRUPT_AFTER / 10,
            false => limits::INTERRUPT_EVERY,
        });
    }
}
