//! Worker threads: `ExecutionThreads` for executions, two more that get executions ready.
//!
//! Their stacks are large, because Python recursion uses them; no thread of tokio ever runs Python.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use parking_lot::{Condvar, Mutex};

/// Stack of a thread that may run Python, in bytes (only touched pages cost memory).
pub const PYTHON_STACK_BYTES: usize = 64 * 1024 * 1024;

type Task = Box<dyn FnOnce() + Send>;

struct Queue {
    tasks: VecDeque<Task>,
    closed: bool,
}

/// A fixed set of threads with one queue.
pub struct Pool {
    queue: Arc<(Mutex<Queue>, Condvar)>,
}

impl Pool {
    /// Starts `threads` threads. `on_panic` gets the text of a panic that a task let out.
    pub fn start(
        name: &str,
        threads: usize,
        on_panic: impl Fn(String) + Send + Sync + 'static,
    ) -> std::io::Result<Pool> {
        let queue = Arc::new((
            Mutex::new(Queue {
                tasks: VecDeque::new(),
                closed: false,
            }),
            Condvar::new(),
        ));
        let on_panic = Arc::new(on_panic);
        for number in 0..threads {
            let (queue, on_panic) = (queue.clone(), on_panic.clone());
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .stack_size(PYTHON_STACK_BYTES)
                .spawn(move || {
                    while let Some(task) = next_task(&queue) {
                        if let Err(panic) = catch_unwind(AssertUnwindSafe(task)) {
                            on_panic(panic_text(panic.as_ref()));
                        }
                    }
                })?;
        }
        Ok(Pool { queue })
    }

    /// Queues a task.
    pub fn submit(&self, task: impl FnOnce() + Send + 'static) {
        let (queue, wake) = &*self.queue;
        queue.lock().tasks.push_back(Box::new(task));
        wake.notify_one();
    }

    /// Tasks that wait for a thread.
    pub fn queued(&self) -> usize {
        self.queue.0.lock().tasks.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (queue, wake) = &*self.queue;
        queue.lock().closed = true;
        wake.notify_all();
    }
}

fn next_task(queue: &(Mutex<Queue>, Condvar)) -> Option<Task> {
    let mut guard = queue.0.lock();
    loop {
        if let Some(task) = guard.tasks.pop_front() {
            return Some(task);
        }
        if guard.closed {
            return None;
        }
        queue.1.wait(&mut guard);
    }
}

/// The message of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".into())
}
