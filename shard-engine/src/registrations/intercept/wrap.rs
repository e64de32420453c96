//! Running a command that was taken over: its hooks, the command itself, then the sync handlers that it made due.

use std::{sync::Arc, thread, time::Duration};

use oxigears_python_api::{self as python, Reply};

use super::{
    super::{
        due::{self, Which},
        keys::{fresh, queue},
        sync,
    },
    access, hooks, judge,
    links::{self, Link},
    table::Entry,
};
use crate::redis::{
    blocked::BlockedClient,
    event_loop, filter,
    lock::{self, ServerLock},
    plain_call, replicate, slot_tables,
    wrapper::{Ran, Wrapped},
};
use crate::server::{PythonHere, python_is_here};

pub const BUSY: &str = "ERR the Python interpreter is busy, and this command can not wait for it here; nothing was run";
/// Pause between two looks whether writes are still paused.
const PAUSE_POLL: Duration = Duration::from_millis(5);

/// Runs what stands behind an internal command.
pub fn handle(call: &mut Wrapped) {
    let flags = call.flags();
    let known = judge::entry(call.guard(), call.arg(0));
    // What the master or the log sends is the plain command; so is one whose registrations are gone meanwhile.
    let is_taken = |entry: &&Arc<Entry>| entry.taken.is_some() && !flags.replicated && !flags.loading;
    match known.as_ref().filter(is_taken) {
        Some(entry) => {
            if entry.has_hooks() {
                python::leave();
            }
            if !hooks::run(call, entry) {
                command(call, entry);
            }
        }
        None => {
            python::leave();
            let ran = call.run();
            call.answer(ran);
        }
    }
    // The filter did not see it run. What a hook runs later tells of that itself.
    if known.is_some_and(|entry| entry.of_rights) {
        access::rights_changed();
    }
}

/// Runs the command itself, with what is due after it.
fn command(call: &mut Wrapped, entry: &Arc<Entry>) {
    let Some(taken) = &entry.taken else { return };
    let found = taken.judge(call.len(), |at| call.arg(at));
    let wanted = links::wanted(taken, call.len(), |at| call.arg(at));
    let (may_block, in_script) = (call.flags().may_block(), call.flags().lua);
    if !wanted.any && !in_script && plain_call::is_running() {
        // The command around it is not over: what this one makes due is fired after that.
        let ran = call.run();
        return call.answer(ran);
    }
    let link = wanted.any.then(|| Link::new(call.args(), may_block));
    let python = found.sync || wanted.sync;
    if !python {
        // It may be a long one.
        python::leave();
    }
    if found.slow && call.may_park() {
        return park(call, link, python, true);
    }
    if !python {
        let ran = run_tied(link.as_ref(), || call.run());
        return end(call, link, ran);
    }
    if sync::interpreter_is_free() {
        let _fresh = fresh::Scope;
        let run = || {
            let ran = call.run();
            fresh::note(call, ran.as_ref());
            ran
        };
        let work = || with_handlers(call.guard(), link.as_ref(), may_block, run);
        let ran = match stays(call) {
            true => python::attach_and_stay(work),
            false => python::with_interpreter(work),
        };
        return end(call, link, ran);
    }
    if call.may_park() {
        return park(call, link, true, false);
    }
    let lent = call.lent();
    let done = sync::for_waiting(call.guard(), move || {
        let ran = lent.with(|call| with_handlers(call.guard(), link.as_ref(), false, || call.run()));
        (link, ran)
    });
    match done {
        Some((link, ran)) => end(call, link, ran),
        None => call.reply().error(BUSY),
    }
}

/// The thread may keep the interpreter: the next command of a pipeline is another one of these, as a rule. Before anything else
/// happens it gives it back.
fn stays(call: &Wrapped) -> bool {
    let may_stay = call.flags().may_block() && event_loop::is_in_turn() && !python_is_here();
    if may_stay {
        filter::before_others(call.guard(), python::leave);
    }
    may_stay
}

/// The command; its events are tied to its client.
fn run_tied<R>(link: Option<&Link>, run: impl FnOnce() -> R) -> R {
    let _tied = link.map(Link::enter);
    run()
}

/// The command, then its handlers: on a thread that has the interpreter, and keeps it.
fn with_handlers<R>(guard: &ServerLock, link: Option<&Link>, may_block: bool, run: impl FnOnce() -> R) -> R {
    let _here = PythonHere::enter(true);
    let ran = run_tied(link, run);
    if due::is_empty() {
        return ran;
    }
    // Nobody waits for what the others do but the client, whose reply has not gone out then, either.
    let which = match slot_tables::after_command(guard, !may_block) {
        true if link.is_none() => return ran,
        true => Which::Tied,
        false => Which::All,
    };
    if may_block {
        due::run(guard, which);
    } else {
        due::run_waiting(guard, which);
    }
    ran
}

/// Answers the client, or parks it until the executions that its command fired are over.
fn end(call: &mut Wrapped, link: Option<Link>, ran: Option<Ran>) {
    let Some(link) = link else {
        return call.answer(ran);
    };
    if !link.is_over() && call.flags().may_block() {
        let reply = own_reply(ran);
        let client = BlockedClient::block(call, None);
        return link.wait(client, reply);
    }
    match link.instead() {
        Some(record) => links::write_instead(call.reply(), &record),
        None => call.answer(ran),
    }
}

fn own_reply(ran: Option<Ran>) -> Reply {
    let failed = || Reply::Error("ERR error happened running the command".into());
    ran.map_or_else(failed, |ran| ran.to_client())
}

/// Leaves it to a helper thread: that has time to wait for the interpreter, or for room in the queue of events.
fn park(call: &mut Wrapped, link: Option<Link>, python: bool, for_room: bool) {
    let (args, user) = (call.args(), call.client_user());
    let client = BlockedClient::block(call, None);
    let work = move |client: BlockedClient| {
        if python {
            python::with_server_locked(|| run_parked(&lock::lock(), client, link, &args, user.as_deref(), true));
        } else {
            run_parked(&lock_unpaused(), client, link, &args, user.as_deref(), false);
        }
    };
    if for_room {
        queue::when_room(Box::new(move || sync::for_parked(client, work)));
    } else {
        sync::for_parked(client, work);
    }
}

/// The server lock, while writes are not paused.
fn lock_unpaused() -> ServerLock {
    loop {
        let guard = lock::lock_to_write();
        if !replicate::is_paused(&guard) {
            return guard;
        }
        drop(guard);
        thread::sleep(PAUSE_POLL);
    }
}

fn run_parked(
    guard: &ServerLock,
    client: BlockedClient,
    link: Option<Link>,
    args: &[Vec<u8>],
    user: Option<&str>,
    python: bool,
) {
    let own = client.writing(|writer| {
        let mut run = || writer.run_parked(guard, args, user);
        let ran = if python {
            with_handlers(guard, link.as_ref(), true, run)
        } else {
            run_tied(link.as_ref(), &mut run)
        };
        match &link {
            None => {
                writer.answer(ran);
                None
            }
            Some(_) => Some(ran.map_or_else(Reply::Error, |ran| ran.to_client())),
        }
    });
    match (link, own.flatten()) {
        (Some(link), Some(own)) => link.wait(client, own),
        _ => client.reply(|_| {}),
    }
}
