//! Frees Python objects that threads without the GIL let go.

use std::{
    any::Any,
    sync::{OnceLock, mpsc},
};

use parking_lot::Mutex;
use pyo3::{ffi, prelude::*};

static QUEUE: OnceLock<Mutex<mpsc::Sender<Box<dyn Any + Send>>>> = OnceLock::new();

/// Starts the thread that takes the GIL to free things.
pub(crate) fn start() -> Result<(), String> {
    let (sender, receiver) = mpsc::channel::<Box<dyn Any + Send>>();
    std::thread::Builder::new()
        .name("rg-py-reaper".into())
        // Finalisers are Python code, which needs a big stack.
        .stack_size(crate::init::PYTHON_STACK_BYTES)
        .spawn(move || {
            while let Ok(thing) = receiver.recv() {
                Python::attach(|_| drop(thing));
            }
        })
        .map_err(|e| format!("can not start the thread that frees Python objects: {e}"))?;
    let _ = QUEUE.set(Mutex::new(sender));
    Ok(())
}

/// Frees `thing` under the GIL: here if this thread holds it, else soon on the reaper's thread.
pub(crate) fn free<T: Any + Send>(thing: Box<T>) {
    // SAFETY: may be called by any thread once the interpreter is initialised.
    if unsafe { ffi::PyGILState_Check() } == 1 {
        drop(thing);
    } else if let Some(queue) = QUEUE.get() {
        let _ = queue.lock().send(thing);
    } else {
        Python::attach(|_| drop(thing));
    }
}
