//! The client's command at hand, for registrations with `commands=`: the interception sets it while the command runs.

use std::{cell::RefCell, sync::Arc};

use oxigears_coordinator::registry::RegisterMode;
use oxigears_python_api::Origin;

/// How executions that the command fires are tied to its client.
pub trait Tie: Send + Sync {
    /// An execution of this mode was fired: what it may ask of its cause. `None`: the client does not wait for it.
    fn fired(&self, mode: RegisterMode) -> Option<Arc<dyn Origin>>;
    /// Such an execution is over, or will not run. Once for each `fired` that gave something; on any thread, with or
    /// without the server lock: must not wait.
    fn ended(&self);
}

/// The command.
pub struct Linked {
    /// Its name in lower case.
    pub command: Arc<str>,
    /// Its client.
    pub tie: Arc<dyn Tie>,
}

thread_local! {
    static AT_HAND: RefCell<Option<Linked>> = const { RefCell::new(None) };
}

/// The command at hand until this goes; then the one before.
pub struct Entered(Option<Linked>);

/// This command runs on this thread; `None`: events belong to no command from here on.
pub fn enter(linked: Option<Linked>) -> Entered {
    Entered(AT_HAND.replace(linked))
}

impl Drop for Entered {
    fn drop(&mut self) {
        AT_HAND.set(self.0.take());
    }
}

/// The command at hand.
pub fn at_hand<R>(look: impl FnOnce(&Linked) -> R) -> Option<R> {
    AT_HAND.with_borrow(|linked| linked.as_ref().map(look))
}
