//! Results that come later: coroutines on the event loop, futures that scripts complete.
//!
//! * `ticket`: one postponed record; `waits`: what those of a chain share
//! * `moment`: what a chain is at, for `gearsFuture()` and `isAsyncAllow()`
//! * `situation`: what a coroutine takes along from the code that made it
//! * `driver`: a coroutine that runs in its situation
//! * `event_loop`: the one loop and its thread; `watch`: says who blocks it

mod driver;
mod event_loop;
mod moment;
mod situation;
mod ticket;
mod waits;
mod watch;

pub(crate) use driver::{Driver, caller, drive};
pub(crate) use event_loop::{Message, drain, event_loop, post, tell, wake};
pub(crate) use moment::{Called, Moment, Spot, close, is_coroutine};
pub(crate) use situation::Situation;
pub(crate) use ticket::Ticket;
pub(crate) use watch::stop_running;

/// Records can not be postponed where nobody can wait.
pub(crate) const NOT_ALLOWED: &str = "Creating async record is not allowed";
/// Whoever could have completed the record is gone.
pub(crate) const NEVER_CONTINUED: &str = "Async record did not called continue";
