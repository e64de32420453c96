//! The one event loop of the process and its thread: started at the first need, asleep while nothing is to be done.
//!
//! Other threads leave messages and wake it; a thread without the GIL may do so too.

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use oxigears_coordinator::{
    codec::{Cursor, RecordBatch},
    execution::ABORTED,
    limits::LOOP_QUEUE,
};
use parking_lot::Mutex;
use pyo3::{
    ffi, intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyList, PyWeakrefReference},
};

use super::{driver::Driver, watch};
use crate::{
    codec::{DecodeError, Decoder, Kept},
    errors::{self, gears_error},
    gil,
    init::PYTHON_STACK_BYTES,
    server::{LogLevel, RunOver, server},
    session::Session,
};

/// What the loop is asked to do.
pub(crate) enum Message {
    /// Run a coroutine, after so many seconds.
    Start { driver: Py<Driver>, delay: f64 },
    /// Cancel a task, given by a weak reference.
    Cancel { task: Py<PyAny> },
    /// An execution is over that a future stands for.
    RunOver {
        future: Py<PyAny>,
        over: RunOver,
        session: Arc<Session>,
        kept: Arc<Kept>,
    },
    /// Go on with what an execution gave.
    Decode(Box<Decoding>),
}

/// The loop, for those who hold the GIL.
pub(crate) struct EventLoop {
    /// asyncio's object.
    pub(crate) object: Py<PyAny>,
    /// `start(loop, driver, delay)` gives a weak reference to the task, if there is one already.
    start: Py<PyAny>,
    /// `set_result(future, value)`
    set_result: Py<PyAny>,
}

/// For everybody.
struct Post {
    messages: Mutex<Vec<Message>>,
    /// The loop has been woken and has not looked.
    woken: AtomicBool,
    /// Wakes it.
    event: OwnedFd,
}

static LOOP: PyOnceLock<EventLoop> = PyOnceLock::new();
static POST: OnceLock<Post> = OnceLock::new();

/// The loop; starts it at the first call.
pub(crate) fn event_loop(py: Python<'_>) -> PyResult<&EventLoop> {
    LOOP.get_or_try_init(py, || begin(py))
}

fn begin(py: Python<'_>) -> PyResult<EventLoop> {
    let post = match POST.get() {
        Some(post) => post,
        None => {
            let post = Post::new()?;
            POST.get_or_init(|| post)
        }
    };
    let module = py.import("oxigears.event_loop")?;
    let object = module.getattr("create")?.call1((post.event.as_raw_fd(),))?;
    let (run, running) = (module.getattr("run")?.unbind(), object.clone().unbind());
    watch::start()?;
    gil::loop_runs();
    std::thread::Builder::new()
        .name("oxi-loop".into())
        .stack_size(PYTHON_STACK_BYTES)
        .spawn(move || {
            let ended = gil::attach(|py| run.call1(py, (running,)).map_err(|e| errors::bare_text(py, &e)));
            let why = ended.err().unwrap_or_default();
            server().log(LogLevel::Warning, &format!("GEARS: the event loop has ended: {why}"));
        })?;
    Ok(EventLoop {
        object: object.unbind(),
        start: module.getattr("start")?.unbind(),
        set_result: module.getattr("set_result")?.unbind(),
    })
}

impl Post {
    fn new() -> std::io::Result<Post> {
        // SAFETY: no preconditions; the descriptor is new and ours.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Post {
            messages: Mutex::default(),
            woken: AtomicBool::new(false),
            event,
        })
    }

    fn put(&self, message: Message) {
        self.messages.lock().push(message);
        self.wake();
    }

    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight bytes of ours. It can fail only when the counter is full, and then the loop is awake.
            unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    fn take(&self) -> Vec<Message> {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes of ours; without an event the call fails at once, which changes nothing.
        unsafe { libc::read(self.event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        self.woken.store(false, Ordering::Release);
        std::mem::take(&mut *self.messages.lock())
    }
}

/// Leaves a message that may be refused: a coroutine to start.
pub(crate) fn post(py: Python<'_>, message: Message) -> PyResult<()> {
    event_loop(py)?;
    let Some(post) = POST.get() else {
        return Err(gears_error(py, "there is no event loop"));
    };
    if post.messages.lock().len() >= LOOP_QUEUE {
        let text = format!("{LOOP_QUEUE} coroutines wait for the event loop already");
        return Err(gears_error(py, text));
    }
    post.put(message);
    Ok(())
}

/// Leaves a message for the loop, which was started before. By any thread.
pub(crate) fn tell(message: Message) {
    if let Some(post) = POST.get() {
        post.put(message);
    }
}

/// Coroutines were closed on this thread, which is not the loop's: what that has left the loop to do does not wake it.
pub(crate) fn wake() {
    if let Some(post) = POST.get() {
        post.wake();
    }
}

/// Does what the messages say. Called by the loop.
#[pyfunction]
pub(crate) fn drain(py: Python<'_>) -> PyResult<()> {
    let (Some(post), Some(own)) = (POST.get(), LOOP.get(py)) else {
        return Ok(());
    };
    for message in post.take() {
        if let Err(e) = own.handle(py, message) {
            let text = format!("GEARS: the event loop met an error: {}", errors::bare_text(py, &e));
            py.detach(|| server().log(LogLevel::Warning, &text));
        }
    }
    Ok(())
}

impl EventLoop {
    fn handle(&self, py: Python<'_>, message: Message) -> PyResult<()> {
        match message {
            Message::Start { driver, delay } => self.start(py, driver.bind(py), delay),
            Message::Cancel { task } => {
                let reference = task.bind(py).cast::<PyWeakrefReference>()?;
                if let Some(task) = reference.upgrade() {
                    task.call_method0("cancel")?;
                }
                Ok(())
            }
            Message::RunOver {
                future,
                over,
                session,
                kept,
            } => {
                // Nobody holds the future but this message, and nobody is to be called.
                // SAFETY: the GIL is held; the object is alive.
                let is_alone = unsafe { ffi::Py_REFCNT(future.as_ptr()) } == 1;
                if is_alone && future.getattr(py, intern!(py, "_callbacks"))?.is_none(py) {
                    return Ok(());
                }
                self.go_on(py, Box::new(Decoding::new(py, future, over, session, kept)))
            }
            Message::Decode(decoding) => self.go_on(py, decoding),
        }
    }

    /// Gives a future the results of its execution as objects. If they are many others have the loop in between.
    fn go_on(&self, py: Python<'_>, mut decoding: Box<Decoding>) -> PyResult<()> {
        if decoding.slice(py)? {
            let (future, pair) = decoding.pair(py)?;
            return self.set_result.call1(py, (future, pair)).map(|_| ());
        }
        tell(Message::Decode(decoding));
        Ok(())
    }

    fn start(&self, py: Python<'_>, driver: &Bound<'_, Driver>, delay: f64) -> PyResult<()> {
        let ticket = driver.borrow().ticket();
        let ended = ticket.as_ref().is_some_and(|ticket| ticket.waits().has_ended());
        if ended {
            return driver.call_method0("close").map(|_| ());
        }
        let task = self.start.call1(py, (&self.object, driver, delay))?;
        if let Some(ticket) = ticket.filter(|_| !task.is_none(py)) {
            ticket.set_task(task.clone_ref(py));
            // Whoever ended it in between found no task to cancel.
            if ticket.waits().has_ended() {
                return self.handle(py, Message::Cancel { task });
            }
        }
        Ok(())
    }
}

/// What an execution gave, on its way to its future.
pub(crate) struct Decoding {
    future: Py<PyAny>,
    session: Arc<Session>,
    kept: Arc<Kept>,
    /// Batches whose records are still to be decoded.
    batches: std::vec::IntoIter<RecordBatch>,
    batch: RecordBatch,
    /// Where the next record of `batch` is, and how many follow.
    at: usize,
    left: u32,
    results: Py<PyList>,
    errors: Vec<String>,
}

/// So long the loop does nothing else.
const DECODE_SLICE: Duration = Duration::from_millis(2);
/// Records between two looks at the clock.
const DECODED_AT_ONCE: u32 = 32;

impl Decoding {
    fn new(py: Python<'_>, future: Py<PyAny>, over: RunOver, session: Arc<Session>, kept: Arc<Kept>) -> Decoding {
        let mut errors = over.outcome.errors;
        if over.aborted && errors.is_empty() {
            errors.push(ABORTED.to_owned());
        }
        Decoding {
            future,
            session,
            kept,
            batches: over.outcome.results.into_vec().into_iter(),
            batch: RecordBatch::default(),
            at: 0,
            left: 0,
            results: PyList::empty(py).unbind(),
            errors,
        }
    }

    /// Decodes for a while; true if that was all.
    fn slice(&mut self, py: Python<'_>) -> PyResult<bool> {
        let start = Instant::now();
        loop {
            if self.left == 0 {
                let Some(batch) = self.batches.next() else {
                    return Ok(true);
                };
                (self.at, self.left) = (0, batch.records);
                self.batch = batch;
            }
            self.some(py)?;
            if start.elapsed() >= DECODE_SLICE {
                return Ok(false);
            }
        }
    }

    /// Decodes a few records of the batch.
    fn some(&mut self, py: Python<'_>) -> PyResult<()> {
        let decoder = Decoder {
            globals: self.session.globals().as_ptr(),
            kept: &*self.kept,
        };
        let results = self.results.bind(py);
        let mut cursor = Cursor::at(&self.batch.bytes, self.at);
        for _ in 0..self.left.min(DECODED_AT_ONCE) {
            // SAFETY: the GIL is held, the globals and the kept objects are alive.
            match unsafe { decoder.next(&mut cursor) } {
                // SAFETY: the GIL is held; the reference is given away.
                Ok(value) => results.append(unsafe { Bound::from_owned_ptr(py, value.into_ptr()) })?,
                Err(DecodeError::Python) => self.errors.push(errors::take_error_text(py)),
                Err(DecodeError::Codec(e)) => {
                    self.errors.push(crate::chain::undecodable(&e.to_string(), self.left));
                    self.left = 0;
                    return Ok(());
                }
            }
            self.left -= 1;
        }
        self.at = cursor.position();
        Ok(())
    }

    /// The future, and `[results, errors]` for it.
    fn pair(self, py: Python<'_>) -> PyResult<(Py<PyAny>, Bound<'_, PyList>)> {
        let errors = PyList::new(py, self.errors)?;
        Ok((self.future, PyList::new(py, [self.results.into_bound(py), errors])?))
    }
}
