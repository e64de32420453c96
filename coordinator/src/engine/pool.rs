//! Worker threads: `ExecutionThreads` for executions, some more that get executions ready, answer and manage.
//!
//! Their stacks are large, because Python recursion uses them; no thread of tokio ever runs Python.
//!
//! A thread that has just begun a task will come back for the next one soon, as a rule: then nobody else is woken,
//! because two threads that take turns at the interpreter are slower than one. One sleeping thread looks after a
//! short while whether the task still waits. So nothing waits behind a long task for longer than that.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::limits::{POOL_LOOKS, POOL_OVERDUE, POOL_PATIENCE};

/// Stack of a thread that may run Python, in bytes (only touched pages cost memory).
pub const PYTHON_STACK_BYTES: usize = 64 * 1024 * 1024;

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    /// With the times since when they have waited.
    tasks: VecDeque<(Instant, Task)>,
    closed: bool,
    /// Since when each thread has been on its task; `None`: it sleeps, or is looking for one.
    busy: Vec<Option<Instant>>,
    /// Those that sleep and have not been woken. The last one goes first: its memory is in some cache still.
    asleep: Vec<usize>,
    /// Threads that were woken and have not come yet.
    waking: usize,
    /// A sleeping thread looks again and again, while there is something to do.
    has_watch: bool,
    /// It looks for a while though there is nothing to do: tasks come for which nobody is woken at once.
    watches_on: bool,
}

impl Queue {
    /// A thread will come for a task soon.
    fn is_served(&self) -> bool {
        let began = self.busy.iter().flatten().max();
        self.waking > 0 || began.is_some_and(|began| began.elapsed() < POOL_PATIENCE)
    }

    /// The oldest task has waited for so long.
    fn is_overdue(&self, bound: Duration) -> bool {
        self.tasks.front().is_some_and(|(since, _)| since.elapsed() >= bound)
    }

    /// Somebody has to be woken: for a task, or to watch.
    fn needs_wake(&self) -> bool {
        let is_looked_after = self.has_watch && self.is_served();
        !(self.tasks.is_empty() || self.asleep.is_empty() || is_looked_after)
    }
}

struct Shared {
    queue: Mutex<Queue>,
    /// Of each thread.
    wake: Vec<Condvar>,
}

/// A fixed set of threads with one queue.
pub struct Pool(Arc<Shared>);

impl Pool {
    /// Starts `threads` threads. `on_panic` gets the text of a panic that a task let out.
    pub fn start(
        name: &str,
        threads: usize,
        on_panic: impl Fn(String) + Send + Sync + 'static,
    ) -> std::io::Result<Pool> {
        let queue = Queue {
            busy: vec![None; threads],
            ..Queue::default()
        };
        let pool = Pool(Arc::new(Shared {
            queue: Mutex::new(queue),
            wake: (0..threads).map(|_| Condvar::new()).collect(),
        }));
        let on_panic = Arc::new(on_panic);
        for number in 0..threads {
            let (shared, on_panic) = (pool.0.clone(), on_panic.clone());
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .stack_size(PYTHON_STACK_BYTES)
                .spawn(move || {
                    while let Some(task) = shared.next_task(number) {
                        if let Err(panic) = catch_unwind(AssertUnwindSafe(task)) {
                            on_panic(panic_text(panic.as_ref()));
                        }
                    }
                })?;
        }
        Ok(pool)
    }

    /// Queues a task.
    pub fn submit(&self, task: impl FnOnce() + Send + 'static) {
        let task = Box::new(task);
        let mut queue = self.0.queue.lock();
        queue.tasks.push_back((Instant::now(), task));
        self.0.wake_one(&mut queue);
    }

    /// Queues a task of several that come at once: `wake` is to follow soon. If it does not, the task is found by a thread that
    /// watches.
    pub fn submit_soon(&self, task: impl FnOnce() + Send + 'static) {
        let task = Box::new(task);
        let mut queue = self.0.queue.lock();
        queue.tasks.push_back((Instant::now(), task));
        queue.watches_on = true;
        if !queue.has_watch {
            self.0.wake_one(&mut queue);
        }
    }

    /// Wakes a thread for tasks that wait, if one is needed.
    pub fn wake(&self) {
        self.0.wake_one(&mut self.0.queue.lock());
    }

    /// For how long no task has been taken, while some wait.
    pub fn stands(&self) -> Duration {
        let queue = self.0.queue.lock();
        let newest = queue.busy.iter().flatten().max().filter(|_| !queue.tasks.is_empty());
        newest.map_or(Duration::ZERO, Instant::elapsed)
    }

    /// Tasks that wait for a thread.
    pub fn queued(&self) -> usize {
        self.0.queue.lock().tasks.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.queue.lock().closed = true;
        for wake in &self.0.wake {
            wake.notify_one();
        }
    }
}

impl Shared {
    fn wake_one(&self, queue: &mut Queue) {
        if queue.needs_wake()
            && let Some(thread) = queue.asleep.pop()
        {
            queue.waking += 1;
            self.wake[thread].notify_one();
        }
    }

    fn next_task(&self, me: usize) -> Option<Task> {
        let mut queue = self.queue.lock();
        queue.busy[me] = None;
        // Where one thread is enough the others step back.
        if !queue.is_overdue(POOL_OVERDUE / 2) && queue.busy.iter().any(Option::is_some) && queue.is_served() {
            self.sleep(me, &mut queue);
        }
        loop {
            if let Some((_, task)) = queue.tasks.pop_front() {
                queue.busy[me] = Some(Instant::now());
                // What is left may need a thread that watches it.
                self.wake_one(&mut queue);
                return Some(task);
            }
            if queue.closed {
                return None;
            }
            self.sleep(me, &mut queue);
        }
    }

    /// Until there is a task that nobody else is about to take.
    fn sleep(&self, me: usize, queue: &mut MutexGuard<'_, Queue>) {
        while !queue.closed && !self.watch(me, queue) {
            queue.asleep.push(me);
            self.wake[me].wait(queue);
            Shared::is_up(me, queue);
        }
    }

    fn is_up(me: usize, queue: &mut Queue) {
        match queue.asleep.iter().position(|thread| *thread == me) {
            Some(at) => {
                queue.asleep.remove(at);
            }
            None => queue.waking -= 1,
        }
    }

    /// True if there is a task that nobody else is about to take. Watches for a while, if nobody else does.
    fn watch(&self, me: usize, queue: &mut MutexGuard<'_, Queue>) -> bool {
        if queue.tasks.is_empty() && !queue.watches_on {
            return false;
        }
        if queue.has_watch {
            return !queue.tasks.is_empty() && !queue.is_served();
        }
        queue.has_watch = true;
        let mut takes = false;
        let mut quiet = 0;
        while !queue.closed {
            let waits = !queue.tasks.is_empty();
            takes = waits && (!queue.is_served() || queue.is_overdue(POOL_OVERDUE));
            quiet = if waits { 0 } else { quiet + 1 };
            // Not after the wait below: a task that came meanwhile, perhaps with a call for this thread, would be left.
            if takes || quiet > POOL_LOOKS {
                break;
            }
            // Woken after all others.
            queue.asleep.insert(0, me);
            self.wake[me].wait_for(queue, POOL_PATIENCE);
            Shared::is_up(me, queue);
        }
        queue.has_watch = false;
        queue.watches_on &= takes;
        takes
    }
}

/// The message of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".into())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        sync::mpsc,
    };

    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::start("test", threads, |text| panic!("{text}")).unwrap()
    }

    /// Only a hang makes this fail.
    fn wait(what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "{what} does not happen");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_asleep(pool: &Pool, threads: usize) -> bool {
        let queue = pool.0.queue.lock();
        queue.asleep.len() == threads && queue.waking == 0 && !queue.has_watch
    }

    #[test]
    fn every_task_runs_once_however_they_come() {
        for threads in [1, 2, 3, 8] {
            let pool = Arc::new(pool(threads));
            let ran: Arc<Vec<AtomicUsize>> = Arc::new((0..8000).map(|_| AtomicUsize::new(0)).collect());
            let submitters: Vec<_> = (0..4)
                .map(|submitter| {
                    let (pool, ran) = (pool.clone(), ran.clone());
                    thread::spawn(move || {
                        for n in 0..2000 {
                            let (ran, number) = (ran.clone(), submitter * 2000 + n);
                            pool.submit(move || {
                                ran[number].fetch_add(1, Ordering::Relaxed);
                                if number % 97 == 0 {
                                    thread::sleep(Duration::from_micros(1500));
                                }
                            });
                            if n % 50 == 0 {
                                thread::sleep(Duration::from_micros(300));
                            }
                        }
                    })
                })
                .collect();
            submitters.into_iter().for_each(|s| s.join().unwrap());
            wait("all", || ran.iter().all(|r| r.load(Ordering::Relaxed) > 0));
            wait("rest", || is_asleep(&pool, threads));
            assert!(ran.iter().all(|r| r.load(Ordering::Relaxed) == 1));
        }
    }

    /// Nobody is woken for most of them, and nobody calls `wake`.
    #[test]
    fn tasks_that_come_at_once_are_found() {
        for threads in [1, 2, 3] {
            let pool = pool(threads);
            let done = Arc::new(AtomicUsize::new(0));
            for burst in 1..=200 {
                for _ in 0..burst % 7 + 1 {
                    let done = done.clone();
                    pool.submit_soon(move || {
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                }
                if burst % 5 == 0 {
                    thread::sleep(Duration::from_micros(burst * 100));
                }
                if burst % 3 == 0 {
                    pool.wake();
                }
            }
            let all = (1..=200).map(|burst| burst % 7 + 1).sum::<usize>();
            wait("all", || done.load(Ordering::Relaxed) == all);
            wait("rest", || is_asleep(&pool, threads));
        }
    }

    /// Whatever the threads are at: as long as one is free, a task finds it.
    #[test]
    fn tasks_that_do_not_end_hold_up_nobody_else() {
        let pool = pool(4);
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let begun = Arc::new(AtomicUsize::new(0));
        for round in 0..3 {
            let (held, its) = (held.clone(), begun.clone());
            pool.submit(move || {
                its.fetch_add(1, Ordering::Relaxed);
                // The first one waits here, the others for the lock.
                let _ = held.lock().recv();
            });
            // At once behind the one that will not end.
            let done = Arc::new(AtomicUsize::new(0));
            for _ in 0..10 {
                let done = done.clone();
                pool.submit(move || {
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            wait("the others", || done.load(Ordering::Relaxed) == 10);
            wait("the long one", || begun.load(Ordering::Relaxed) == round + 1);
        }
        drop(release);
        wait("rest", || is_asleep(&pool, 4));
    }

    /// Tasks that wait for each other need threads of their own.
    #[test]
    fn all_threads_work_when_there_is_work_for_all() {
        let pool = pool(3);
        let meeting = Arc::new(std::sync::Barrier::new(3));
        let met = Arc::new(AtomicUsize::new(0));
        for _ in 0..30 {
            let (meeting, met) = (meeting.clone(), met.clone());
            pool.submit(move || {
                meeting.wait();
                met.fetch_add(1, Ordering::Relaxed);
            });
        }
        wait("the meetings", || met.load(Ordering::Relaxed) == 30);
    }

    #[test]
    fn panics_are_told_and_the_thread_goes_on() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        let pool = Pool::start("test", 1, move |text| seen.lock().push(text)).unwrap();
        pool.submit(|| panic!("as the test wants it"));
        pool.submit(|| {});
        wait("both", || is_asleep(&pool, 1));
        assert_eq!(*told.lock(), ["as the test wants it"]);
    }

    #[test]
    fn a_dropped_pool_ends_its_threads() {
        let (tell, hear) = mpsc::channel::<()>();
        let pool = pool(2);
        let shared = pool.0.clone();
        pool.submit(move || drop(tell));
        drop(pool);
        assert!(hear.recv_timeout(Duration::from_secs(20)).is_err());
        wait("the threads", || Arc::strong_count(&shared) == 1);
    }
}
