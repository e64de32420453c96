//! What fired the running code, as far as scripts may ask: the command that a hook took over, the client that waits.

use std::sync::Arc;

use oxigears_coordinator::codec::RecordBatch;

use crate::{context, server::Reply};

/// What an execution that an event fired may ask about its cause. The texts of errors are for scripts.
pub trait Origin: Send + Sync {
    /// Runs the next hook on the hooked command, or the command itself, with these arguments (its name is not among
    /// them). Called like `Server::execute`.
    fn call_next(&self, _args: &[Vec<u8>]) -> Result<Reply, String> {
        Err(NO_HOOK.to_owned())
    }

    /// The client's command, name first, if its reply is tied to the execution.
    fn command(&self) -> Option<Vec<Vec<u8>>> {
        None
    }

    /// Sets the reply that the client gets instead of the command's own: one record, encoded as a result.
    fn override_reply(&self, _reply: RecordBatch) -> Result<(), String> {
        Err(NO_COMMAND.to_owned())
    }

    /// Ids of the hook registrations whose code this is: commands that it issues are not for them.
    fn hooks(&self) -> &[Arc<str>] {
        &[]
    }

    /// The same for code that may outlast the execution: it must not hold code of sessions, since the collector does not see
    /// what it holds. `None`: it is as it is.
    fn lasting(&self) -> Option<Arc<dyn Origin>> {
        None
    }

    /// Records may be postponed: somebody can wait for them.
    fn may_postpone(&self) -> bool {
        true
    }
}

/// Code that must be done when the call returns: in MULTI, in Lua, in a command that other code waits for.
pub struct AtOnce;

impl Origin for AtOnce {
    fn may_postpone(&self) -> bool {
        false
    }
}

/// What fired the code that runs on this thread.
pub fn current_origin() -> Option<Arc<dyn Origin>> {
    context::origin()
}

/// There is no hooked command.
pub(crate) const NO_HOOK: &str = "Can not get CommandHook ctx";
/// There is no client whose reply could be changed.
pub(crate) const NO_COMMAND: &str = "Can not get command ctx";
