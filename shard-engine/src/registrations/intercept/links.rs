//! The tie between a client's command and the executions that its events fire (`commands=` of KeysReader).
//!
//! The client has its reply when all of them are over: what the first `override_reply` gave, else the command's own.
//! Where nobody may wait (MULTI, Lua, a function) only handlers of mode `sync` are tied, which are over by then.

use std::sync::Arc;

use oxigears_coordinator::{
    codec::{Cursor, RecordBatch},
    registry::RegisterMode,
};
use oxigears_python_api::{Origin, Reply};
use parking_lot::Mutex;

use super::{
    super::keys::link::{self, Entered, Linked, Tie},
    table::{Taken, is_linked},
};
use crate::redis::{blocked::BlockedClient, records, reply::ReplyWriter};

const TWICE: &str = "Can only override reply once";
/// The client has its reply: what runs still was only started by an execution.
const TOO_LATE: &str = "Can not get command ctx";

/// One command of one client.
pub struct Link(Arc<Shared>);

struct Shared {
    /// The command as it came.
    command: Vec<Vec<u8>>,
    /// The client can wait for executions that run elsewhere.
    may_wait: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Executions that are not over.
    pending: usize,
    /// What the client gets instead of the command's own reply.
    instead: Option<RecordBatch>,
    /// The client, and the reply of its command.
    waiting: Option<(BlockedClient, Reply)>,
}

/// What the executions know of the client.
struct ClientTie(Arc<Shared>);

impl Tie for ClientTie {
    fn fired(&self, mode: RegisterMode) -> Option<Arc<dyn Origin>> {
        if mode != RegisterMode::Sync && !self.0.may_wait {
            return None;
        }
        self.0.state.lock().pending += 1;
        Some(Arc::new(LinkOrigin(self.0.clone())))
    }

    fn ended(&self) {
        let mut state = self.0.state.lock();
        state.pending = state.pending.saturating_sub(1);
        if state.pending > 0 {
            return;
        }
        let Some((client, reply)) = state.waiting.take() else {
            return;
        };
        let instead = state.instead.clone();
        drop(state);
        client.reply(|writer| write(writer, instead.as_ref(), &reply));
    }
}

/// What code of such an execution may do about its cause.
struct LinkOrigin(Arc<Shared>);

impl Origin for LinkOrigin {
    fn command(&self) -> Option<Vec<Vec<u8>>> {
        Some(self.0.command.clone())
    }

    fn override_reply(&self, reply: RecordBatch) -> Result<(), String> {
        let mut state = self.0.state.lock();
        if state.pending == 0 {
            return Err(TOO_LATE.to_owned());
        }
        if state.instead.is_some() {
            return Err(TWICE.to_owned());
        }
        state.instead = Some(reply);
        Ok(())
    }

    fn may_postpone(&self) -> bool {
        self.0.may_wait
    }
}

/// What is needed to tie a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Some registration is for the command.
    pub any: bool,
    /// One of mode `sync` is.
    pub sync: bool,
}

/// Whether registrations are for a command with these arguments.
pub fn wanted<'a>(taken: &Taken, count: usize, arg: impl Fn(usize) -> &'a [u8]) -> Wanted {
    let mut wanted = Wanted {
        any: false,
        sync: false,
    };
    if taken.links.is_empty() || !taken.facts.takes(count) {
        return wanted;
    }
    for active in taken
        .links
        .iter()
        .filter(|active| is_linked(active, &taken.facts, count, &arg))
    {
        wanted.any = true;
        wanted.sync |= active.registration.mode == RegisterMode::Sync;
    }
    wanted
}

impl Link {
    /// A command that runs now.
    pub fn new(command: Vec<Vec<u8>>, may_wait: bool) -> Link {
        Link(Arc::new(Shared {
            command,
            may_wait,
            state: Mutex::default(),
        }))
    }

    /// Events belong to this command until the result goes.
    pub fn enter(&self) -> Entered {
        let name = String::from_utf8_lossy(&self.0.command[0]).to_lowercase();
        link::enter(Some(Linked {
            command: name.into(),
            tie: Arc::new(ClientTie(self.0.clone())),
        }))
    }

    /// All executions are over.
    pub fn is_over(&self) -> bool {
        self.0.state.lock().pending == 0
    }

    /// What the client gets instead of the command's own reply.
    pub fn instead(&self) -> Option<RecordBatch> {
        self.0.state.lock().instead.clone()
    }

    /// The client gets its reply when all executions are over; that may be now.
    pub fn wait(&self, client: BlockedClient, reply: Reply) {
        let mut state = self.0.state.lock();
        if state.pending > 0 {
            state.waiting = Some((client, reply));
            return;
        }
        let instead = state.instead.clone();
        drop(state);
        client.reply(|writer| write(writer, instead.as_ref(), &reply));
    }
}

fn write(writer: &mut ReplyWriter, instead: Option<&RecordBatch>, own: &Reply) {
    match instead {
        Some(record) => write_instead(writer, record),
        None => writer.value(own),
    }
}

/// Writes what stands instead of a command's own reply.
pub fn write_instead(writer: &mut ReplyWriter, record: &RecordBatch) {
    writer.write_record(&mut Cursor::new(&record.bytes));
}

/// The same for code that asked for the command.
pub fn instead_to_reply(record: &RecordBatch) -> Reply {
    records::to_reply(&mut Cursor::new(&record.bytes))
}
