//! CPython inside OxiGears: the script environment, `GearsBuilder`, the steps that call Python.
//!
//! Knows nothing of Redis: it reaches the server through the trait [`Server`]. Lock order: a thread that holds the
//! GIL never waits for the server lock; it gives the GIL back first (`lock`).
//!
//! * `init`, `bootstrap`, `runtime`, `memory`: the interpreter and the embedded Python sources
//! * `gil`, `lock`, `precedence`: threads that come back keep their state; who has GIL and server lock
//! * `session`, `script`, `functions`, `pickling`: what a script leaves behind and how it travels
//! * `native`: the functions that scripts call (`execute`, `atomic`, `log`, `run`, ...)
//! * `codec`: Python objects to record bytes and back
//! * `chain`: the compiled steps of a stage
//! * `origin`: what fired the running code
//! * `later`: coroutines, futures, the event loop

#![warn(missing_docs)]

mod bootstrap;
mod chain;
mod codec;
mod context;
mod errors;
mod functions;
mod gil;
mod init;
mod interrupt;
mod later;
mod lock;
mod memory;
mod native;
mod obj;
mod origin;
mod precedence;
mod reaper;
mod registration;
mod runtime;
mod script;
mod server;
mod session;

pub use chain::{Continuation, ExecContext, Invoked, Invoker, compile};
pub use codec::encode_arguments;
pub use errors::error_text;
pub use functions::{Functions, RunRequest, load_functions, resolve_reader};
pub use gil::{attach_and_stay, is_kept_long, leave, stays};
pub use init::{InitOptions, initialize, python_version};
pub use interrupt::Interrupt;
pub use lock::{gil_holder, gil_is_free, with_interpreter, with_server_locked};
pub use memory::{MemoryStats, memory_stats};
pub use native::TimerDraft;
pub use origin::{AtOnce, Origin, current_origin};
pub use precedence::Precedence;
pub use registration::{RegistrationDraft, call_function};
pub use script::{ScriptOutcome, run_script};
pub use server::{Acting, LogLevel, Reply, RunOver, Server, WhenOver};
pub use session::Session;

#[cfg(test)]
mod tests;
