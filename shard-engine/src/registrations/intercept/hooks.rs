//! Command hooks: functions that take the place of a client's command.
//!
//! The newest hook that is for the command runs first. What it gives to `call_next` goes to the next older one, and in
//! the end to the command itself. The caller must have the right to run its command before any hook sees it.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use oxigears_coordinator::{
    codec::Cursor,
    execution::Outcome,
    registry::{EventSource, RegisterMode},
};
use oxigears_python_api::{self as python, Invoked, Origin, Reply};
use parking_lot::Mutex;

use super::{
    super::{
        Active,
        activation::Activation,
        active::Code,
        depth, due,
        keys::fire,
        limits, registrations,
        stats::End,
        sync,
        trigger::{self, Shot},
    },
    access, judge,
    links::{self, Link},
    table::{Entry, Hook, Taken},
    wrap::BUSY,
};
use crate::{
    identity,
    module::module,
    redis::{
        blocked::BlockedClient,
        call::{self, Flags},
        lock,
        reply::ReplyWriter,
        wrapper::{Lent, Verdict, Wrapped},
    },
    server::PythonHere,
};

const NOT_ONE: &str = "Command hook must return exactly one result";

thread_local! {
    /// Hooks whose functions run on this thread: they do not take over the commands that these issue.
    static RUNNING: RefCell<Vec<Arc<str>>> = const { RefCell::new(Vec::new()) };
}

/// The commands of code with this origin are not for its own hooks, as long as the result lives.
pub fn issuing(origin: Option<&dyn Origin>) -> Issuing {
    let own = origin.map_or(&[][..], |origin| origin.hooks());
    RUNNING.with_borrow_mut(|running| running.extend(own.iter().cloned()));
    Issuing(own.len())
}

/// See `issuing`.
pub struct Issuing(usize);

impl Drop for Issuing {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(|running| running.truncate(running.len().saturating_sub(self.0)));
    }
}

/// A command that hooks have taken over.
struct Original {
    typed: Arc<Typed>,
    /// What is known of the command.
    entry: Arc<Entry>,
    /// Hooks on the command that may run, newest first.
    chain: Vec<Hook>,
    /// The command itself, as long as the server runs it: while a hook of mode `sync` has not returned.
    live: Mutex<Option<Lent>>,
}

/// The command of a client.
struct Typed {
    /// As the client typed it.
    args: Vec<Vec<u8>>,
    /// The client's user, if its rights count.
    caller: Option<Arc<str>>,
    /// The client's database.
    database: i32,
}

/// While it lives, the command can be run where its client is.
struct Live<'a>(&'a Original);

impl Drop for Live<'_> {
    fn drop(&mut self) {
        *self.0.live.lock() = None;
    }
}

/// What code of a hook may do about its cause.
struct HookOrigin {
    original: Arc<Original>,
    /// Its place in the chain.
    at: usize,
    /// Ids of the hooks up to here.
    hooks: Vec<Arc<str>>,
    /// Somebody can wait for results that are postponed.
    may_postpone: bool,
}

impl Origin for HookOrigin {
    fn call_next(&self, args: &[Vec<u8>]) -> Result<Reply, String> {
        // A thread that holds the server lock keeps the GIL for the call.
        let _here = PythonHere::enter(lock::is_held());
        self.original.next(self.at + 1, &self.hooks, args)
    }

    fn hooks(&self) -> &[Arc<str>] {
        &self.hooks
    }

    fn lasting(&self) -> Option<Arc<dyn Origin>> {
        let weak = |hook: &Hook| (Arc::downgrade(&hook.active), hook.prefix.clone());
        Some(Arc::new(Lasting {
            original: Arc::downgrade(&self.original),
            typed: self.original.typed.clone(),
            at: self.at,
            older: self.original.chain[self.at + 1..].iter().map(weak).collect(),
            hooks: self.hooks.clone(),
            may_postpone: self.may_postpone,
        }))
    }

    fn may_postpone(&self) -> bool {
        self.may_postpone
    }
}

/// The same for coroutines that a hook's code has started. When its execution is over, older hooks are passed by that are
/// gone.
struct Lasting {
    original: Weak<Original>,
    typed: Arc<Typed>,
    at: usize,
    older: Vec<(Weak<Active>, Option<Bytes>)>,
    hooks: Vec<Arc<str>>,
    may_postpone: bool,
}

impl Lasting {
    fn afterwards(&self) -> Arc<Original> {
        let here = |(active, prefix): &(Weak<Active>, Option<Bytes>)| {
            let active = active.upgrade()?;
            let prefix = prefix.clone();
            Some(Hook { active, prefix })
        };
        Arc::new(Original {
            typed: self.typed.clone(),
            entry: judge::entry(&lock::lock(), &self.typed.args[0]).unwrap_or_default(),
            chain: self.older.iter().filter_map(here).collect(),
            live: Mutex::new(None),
        })
    }
}

impl Origin for Lasting {
    fn call_next(&self, args: &[Vec<u8>]) -> Result<Reply, String> {
        let _here = PythonHere::enter(lock::is_held());
        match self.original.upgrade() {
            Some(original) => original.next(self.at + 1, &self.hooks, args),
            None => self.afterwards().next(0, &self.hooks, args),
        }
    }

    fn hooks(&self) -> &[Arc<str>] {
        &self.hooks
    }

    fn may_postpone(&self) -> bool {
        self.may_postpone
    }
}

/// What code of a hook may do on the other shards: nothing about the command, which is not there.
struct Elsewhere([Arc<str>; 1]);

impl Origin for Elsewhere {
    fn hooks(&self) -> &[Arc<str>] {
        &self.0
    }
}

/// The origin of what a registration has fired on another shard.
pub fn origin_elsewhere(id: &str) -> Option<Arc<dyn Origin>> {
    let table = registrations().activation.table().read();
    let registration = &table.get_late(id)?.registration;
    let is_hook = matches!(registration.source, EventSource::Hook { .. });
    is_hook.then(|| Arc::new(Elsewhere([registration.id.clone()])) as Arc<dyn Origin>)
}

impl Original {
    /// The place of the first hook from `from` on that is for this command.
    fn hook(&self, from: usize, args: &[Vec<u8>]) -> Option<usize> {
        let taken = self.entry.taken.as_ref()?;
        (from..self.chain.len()).find(|&at| self.chain[at].takes(&taken.facts, args))
    }

    fn live(&self, call: &Wrapped) -> Live<'_> {
        *self.live.lock() = Some(call.lent());
        Live(self)
    }

    fn origin(self: &Arc<Self>, at: usize, before: &[Arc<str>], may_postpone: bool) -> Arc<dyn Origin> {
        let mut hooks = before.to_vec();
        hooks.push(self.chain[at].active.registration.id.clone());
        Arc::new(HookOrigin {
            original: self.clone(),
            at,
            hooks,
            may_postpone,
        })
    }

    /// Runs the next hook from `from` on, or the command, with these arguments.
    fn next(self: &Arc<Self>, from: usize, before: &[Arc<str>], args: &[Vec<u8>]) -> Result<Reply, String> {
        let args: Vec<Vec<u8>> = self.typed.args[..1].iter().chain(args).cloned().collect();
        let Some(at) = self.hook(from, &args) else {
            return self.command(&args);
        };
        // What is not the client's own is the hook's, which must not get the rights of the next one.
        if args != self.typed.args
            && let Some(user) = identity::current()
        {
            identity::check_command(&lock::lock(), &user, &args, self.typed.database)?;
        }
        let active = &self.chain[at].active;
        // Only the newest one of a chain may run elsewhere, and that is not reached from here.
        if active.registration.mode != RegisterMode::Sync {
            return Err(trigger::refuse(active).into());
        }
        let code = active.code()?;
        // Who called waits: nothing can be postponed.
        let origin = self.origin(at, before, false);
        let run = || one_result(&sync::done(sync::run(active, code, &args, Some(origin))));
        if lock::is_held() {
            run()
        } else {
            python::with_server_locked(run)
        }
    }

    /// Runs the command itself: as the client typed it with the client's rights, else with those of the hook's user.
    fn command(&self, args: &[Vec<u8>]) -> Result<Reply, String> {
        let own = identity::current();
        let typed = &*self.typed;
        let user = if args == typed.args { typed.caller.clone() } else { own };
        let flags = Flags {
            user: user.as_deref(),
            interceptable: false,
            database: typed.database,
            ..Flags::from_script()
        };
        // On the thread that holds the lock it can only be there while that runs the command.
        let live = (*self.live.lock()).filter(|_| lock::is_held() && args == typed.args);
        let arg = |at: usize| args[at].as_slice();
        let taken = self.entry.taken.as_ref();
        let link = taken.filter(|taken| links::wanted(taken, args.len(), arg).any);
        // Nobody waits for executions elsewhere: the hook wants the reply now.
        let link = link.map(|_| Link::new(args.to_vec(), false));
        let reply = {
            let _tied = link.as_ref().map(Link::enter);
            match live {
                Some(live) => live.with(Wrapped::run_for_code),
                None => call::call_patiently(args, flags, || false).map_err(|e| e.to_string()),
            }
        };
        if self.entry.of_rights {
            access::rights_changed();
        }
        if live.is_some() && !call::in_nested_call() {
            due::run_after_call(&lock::lock(), link.is_some());
        }
        match link.and_then(|link| link.instead()) {
            Some(record) => Ok(links::instead_to_reply(&record)),
            None => reply,
        }
    }
}

/// The one result of a hook, or its error.
fn one_result(outcome: &Outcome) -> Result<Reply, String> {
    if let Some(text) = outcome.errors.first() {
        return Err(text.clone());
    }
    let mut filled = outcome.results.iter().filter(|batch| batch.records > 0);
    match (filled.next(), filled.next()) {
        (Some(batch), None) if batch.records == 1 => {
            Ok(crate::redis::records::to_reply(&mut Cursor::new(&batch.bytes)))
        }
        _ => Err(NOT_ONE.into()),
    }
}

/// Answers with the one result, bare, or with the error.
pub fn answer(reply: &mut ReplyWriter, outcome: &Outcome) {
    match one_result(outcome) {
        Ok(value) => reply.value(&value),
        Err(text) => reply.error(&text),
    }
}

/// Runs the hooks of a command; false if none is for it.
pub fn run(call: &mut Wrapped, entry: &Arc<Entry>) -> bool {
    let Some(taken) = &entry.taken else { return false };
    // Most of many may be for other keys: nothing is copied before one is known to be for these.
    if taken.hooks.is_empty() || !taken.judge(call.len(), |at| call.arg(at)).hook {
        return false;
    }
    let args = call.args();
    let (chain, running): (Vec<Hook>, usize) = RUNNING.with_borrow(|running| {
        let is_running = |hook: &&Hook| !running.contains(&hook.active.registration.id);
        (taken.hooks.iter().filter(is_running).cloned().collect(), running.len())
    });
    let takes = |hook: &Hook| hook.takes(&taken.facts, &args);
    let Some(at) = chain.iter().position(takes) else {
        return false;
    };
    if running >= limits::HOOK_DEPTH {
        call.reply().error(&format!(
            "ERR hooks call each other more than {} deep",
            limits::HOOK_DEPTH
        ));
        return true;
    }
    let deep = match call::in_nested_call() {
        // An execution that a hook started is not its own code: it is known by its depth alone.
        true => depth::of_event(),
        false => depth::current(),
    };
    let most = module().config.max_event_depth();
    if deep > 1 && i64::from(deep) > most {
        let text = format!(
            "ERR the hook was not run: it is the end of a chain of {most} events and hooks that functions caused (MaxEventDepth)"
        );
        fire::count_too_deep(&chain[at].active, &text);
        call.reply().error(&text);
        return true;
    }
    if let Err(text) = may_run(call, taken) {
        call.reply().error(&text);
        return true;
    }
    let typed = Typed {
        args,
        caller: caller(call),
        database: call.database(),
    };
    let original = Original {
        typed: Arc::new(typed),
        entry: entry.clone(),
        chain,
        live: Mutex::new(None),
    };
    let _depth = depth::enter(deep);
    begin(call, &Arc::new(original), at);
    true
}

/// The caller may run its command. The server can not judge one with a wrong number of arguments or an unknown
/// subcommand: the hook of a caller who may do everything gets it all the same.
fn may_run(call: &Wrapped, taken: &Taken) -> Result<(), String> {
    let Some(user) = caller(call) else {
        return Ok(());
    };
    let fault = if taken.facts.takes(call.len()) {
        match call.permits(&user) {
            Verdict::Allowed => return Ok(()),
            Verdict::Denied(denial) => return Err(denial.text),
            Verdict::Unknown => unknown_subcommand(call),
        }
    } else {
        format!("ERR wrong number of arguments for '{}' command", call.name())
    };
    match identity::is_unlimited(call.guard(), &user) {
        true => Ok(()),
        false => Err(fault),
    }
}

/// The server's own words.
fn unknown_subcommand(call: &Wrapped) -> String {
    let word = if call.len() > 1 { call.arg(1) } else { b"" };
    let shown = String::from_utf8_lossy(&word[..word.len().min(128)]);
    format!(
        "ERR unknown subcommand '{shown}'. Try {} HELP.",
        call.name().to_uppercase()
    )
}

/// The user with whose rights the command itself runs; `None`: all rights.
fn caller(call: &Wrapped) -> Option<Arc<str>> {
    if call::in_nested_call() {
        return identity::current();
    }
    call.client_user().map(Arc::from)
}

fn begin(call: &mut Wrapped, original: &Arc<Original>, at: usize) {
    let active = original.chain[at].active.clone();
    let code = match active.code() {
        Ok(code) => code.clone(),
        Err(text) => {
            active.core.stats.ran(&End::Failure(&text), 0);
            return call.reply().error(&text);
        }
    };
    let origin = original.origin(at, &[], call.flags().may_block());
    if active.registration.mode == RegisterMode::Sync {
        return run_sync(call, original, active, code, origin);
    }
    if !call.flags().may_block() {
        return call.reply().error(trigger::refuse(&active));
    }
    let input = python::encode_arguments(&original.typed.args);
    let index = index_of(&registrations().activation);
    let client = BlockedClient::block(call, None);
    trigger::fire(Shot { active, code, index }, input, Some(origin), client, answer);
}

fn index_of(activation: &Activation) -> u64 {
    activation.table().read().state().index()
}

fn run_sync(
    call: &mut Wrapped,
    original: &Arc<Original>,
    active: Arc<Active>,
    code: Arc<Code>,
    origin: Arc<dyn Origin>,
) {
    if sync::interpreter_is_free() {
        let _live = original.live(call);
        return match sync::run(&active, &code, &original.typed.args, Some(origin)) {
            Invoked::Done(outcome) => answer(call.reply(), &outcome),
            rest => {
                let client = BlockedClient::block(call, None);
                sync::answer_client_by(answer, &active, rest, client);
            }
        };
    }
    if call.may_park() {
        let original = original.clone();
        let client = BlockedClient::block(call, None);
        let depth = depth::current();
        return sync::for_parked(client, move |client| {
            let _depth = depth::enter(depth);
            let ran = python::with_server_locked(|| sync::run(&active, &code, &original.typed.args, Some(origin)));
            sync::answer_client_by(answer, &active, ran, client);
        });
    }
    let stats = active.clone();
    let _live = original.live(call);
    let original = original.clone();
    let depth = depth::current();
    let work = move || {
        let _depth = depth::enter(depth);
        sync::done(sync::run(&active, &code, &original.typed.args, Some(origin)))
    };
    match sync::for_waiting(call.guard(), work) {
        Some(outcome) => answer(call.reply(), &outcome),
        None => {
            stats.core.stats.ran(&End::Aborted, 0);
            call.reply().error(BUSY);
        }
    }
}
