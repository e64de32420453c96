//! Loading functions for those behind whom others wait: the timers of a shard, and peers that ask whether they can be loaded
//! here. That runs code of scripts, which may take long or never end. So it is done on threads of its own, one errand after
//! the other as long as each takes a moment; what takes longer is left to its thread, and the next one begins.

use std::{
    collections::VecDeque,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
};

use oxigears_coordinator::engine::{PYTHON_STACK_BYTES, panic_text};
use oxigears_python_api::Interrupt;

use super::limits;
use crate::redis::log;

/// Something to be loaded.
pub struct Errand {
    /// Its line: while one of that takes long, the others of it wait.
    pub line: String,
    /// Loads it and tells who waits, without locks; once.
    pub load: Arc<dyn Fn(&Interrupt) + Send + Sync>,
    /// Somebody wants it still; else it is not begun, or interrupted. Python code ends then, what waits in C code does not.
    pub is_wanted: Box<dyn Fn() -> bool + Send>,
}

/// The threads.
pub struct Loaders(Sender<Errand>);

impl Loaders {
    /// Starts the one that gives the others their errands.
    pub fn start() -> std::io::Result<Loaders> {
        let (sender, errands) = mpsc::channel();
        let thread = thread::Builder::new().name("oxi-loaders".into());
        thread.spawn(move || hand_out(&errands))?;
        Ok(Loaders(sender))
    }

    /// Has it loaded.
    pub fn submit(&self, errand: Errand) {
        if self.0.send(errand).is_err() {
            log::warning("functions are not loaded: the thread `oxi-loaders` is gone");
        }
    }
}

/// A thread that was left to its errand.
struct Left {
    line: String,
    thread: JoinHandle<()>,
    interrupt: Arc<Interrupt>,
    is_wanted: Box<dyn Fn() -> bool + Send>,
}

fn hand_out(errands: &Receiver<Errand>) {
    let mut left: Vec<Left> = Vec::new();
    // Wait for a thread to end.
    let mut waiting: VecDeque<Errand> = VecDeque::new();
    loop {
        let next = match left.is_empty() {
            true => errands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => errands.recv_timeout(limits::LOADERS_LOOK),
        };
        match next {
            Ok(errand) => waiting.push_back(errand),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        waiting.extend(errands.try_iter());
        look_after(&mut left);
        for errand in mem::take(&mut waiting) {
            let is_busy = left.len() >= limits::LOADERS || left.iter().any(|one| one.line == errand.line);
            match is_busy {
                true => waiting.push_back(errand),
                false => left.extend(run(errand)),
            }
        }
    }
}

/// What nobody wants any more is to end.
fn look_after(left: &mut Vec<Left>) {
    left.retain(|one| !one.thread.is_finished());
    for one in left {
        if !(one.is_wanted)() {
            one.interrupt.request();
        }
    }
}

/// Runs it, and waits a moment for its end; else its thread is left.
fn run(errand: Errand) -> Option<Left> {
    let Errand { line, load, is_wanted } = errand;
    let interrupt = Arc::new(Interrupt::new());
    loop {
        if !is_wanted() {
            return None;
        }
        let (end, ended) = mpsc::channel::<()>();
        let (its, load) = (interrupt.clone(), load.clone());
        let work = move || {
            let _end = end;
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| load(&its))) {
                let text = panic_text(panic.as_ref());
                log::warning(&format!("loading functions met an internal error: {text}"));
            }
        };
        let thread = thread::Builder::new().name("oxi-load".into());
        match thread.stack_size(PYTHON_STACK_BYTES).spawn(work) {
            Ok(thread) => {
                let is_over = ended.recv_timeout(limits::LOADERS_PATIENCE) != Err(RecvTimeoutError::Timeout);
                return (!is_over).then_some(Left {
                    line,
                    thread,
                    interrupt,
                    is_wanted,
                });
            }
            Err(why) => {
                log::warning(&format!(
                    "functions can not be loaded now, which is tried again: no thread: {why}"
                ));
                thread::sleep(limits::LOADED_AGAIN);
            }
        }
    }
}
