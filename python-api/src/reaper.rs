//! Frees Python objects that threads without the GIL let go, and the globals of sessions that ended.

use std::{
    any::Any,
    sync::{OnceLock, mpsc},
    time::Duration,
};

use parking_lot::Mutex;
use pyo3::ffi;

use crate::{context, gil, session};

type Thing = Box<dyn Any + Send>;

static QUEUE: OnceLock<Mutex<mpsc::Sender<Thing>>> = OnceLock::new();

/// Starts the thread that takes the GIL to free things.
pub(crate) fn start() -> Result<(), String> {
    let (sender, receiver) = mpsc::channel::<Thing>();
    std::thread::Builder::new()
        .name("rg-py-reaper".into())
        // Finalisers are Python code, which needs a big stack.
        .stack_size(crate::init::PYTHON_STACK_BYTES)
        .spawn(move || run(&receiver))
        .map_err(|e| format!("can not start the thread that frees Python objects: {e}"))?;
    let _ = QUEUE.set(Mutex::new(sender));
    Ok(())
}

fn run(receiver: &mpsc::Receiver<Thing>) {
    loop {
        let next = match session::next_collection() {
            Some(wait) => receiver.recv_timeout(wait),
            None => receiver.recv().map_err(mpsc::RecvTimeoutError::from),
        };
        match next {
            Ok(thing) => gil::attach(|_| {
                let _visit = context::visit_nobody();
                drop(thing);
            }),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        if session::next_collection() == Some(Duration::ZERO) {
            gil::attach(|py| {
                let _visit = context::visit_nobody();
                session::collect_ended(py);
            });
        }
    }
}

/// A session has ended: the thread should look in a while.
pub(crate) fn wake() {
    if let Some(queue) = QUEUE.get() {
        let _ = queue.lock().send(Box::new(()));
    }
}

/// Frees `thing` under the GIL: here if this thread holds it, else soon on the reaper's thread.
pub(crate) fn free<T: Any + Send>(thing: Box<T>) {
    // SAFETY: may be called by any thread once the interpreter is initialised.
    if unsafe { ffi::PyGILState_Check() } == 1 {
        drop(thing);
    } else if let Some(queue) = QUEUE.get() {
        let _ = queue.lock().send(thing);
    } else {
        gil::attach(|_| drop(thing));
    }
}
