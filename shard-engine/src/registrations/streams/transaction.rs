//! A batch whose writes are one transaction with its acknowledgement.
//!
//! While its steps run, on one thread and with the server lock held, `execute()` of a command that writes only queues it;
//! commands that read run at once and see what was there before the batch. When all steps have succeeded the queued
//! commands run, in order, and the acknowledgement after them, in the same hold of the lock: replicas and the AOF get one
//! MULTI/EXEC with all of it. When a step fails nothing of the batch has happened.
//!
//! Each command is judged when it is queued: name, number of arguments, slots, rights, memory. What can not be part of
//! the transaction is refused there. A command may still fail when it runs, because of what its keys hold: as with
//! MULTI/EXEC the others count, so the batch must not run again.
//!
//! In a cluster the server itself is asked whether it serves the slots of the batch, by its own table of this moment: when
//! they are first used, and all of them once more before the first command runs. A key of another shard is the script's
//! mistake. A slot on the move, or a cluster that is down, hinders the batch: it has done nothing and runs again, whatever
//! the policy and whatever the steps made of the error.
//!
//! What the commands of the steps fire (handlers of events, hooks) are other functions, with rights of their own: they are
//! not part of the transaction.

use std::cell::RefCell;

use hashbrown::HashMap;
use oxigears_coordinator::topology::{Slot, key_slot};
use parking_lot::Mutex;

use super::{
    super::{intercept, limits},
    batch::Verdict,
};
use crate::{
    identity,
    redis::{
        call::{self, CallError, Flags, Reply, call},
        cluster::{self, Serving},
        context::server_flags,
        lock::{self, ServerLock},
    },
    server::PythonHere,
};

struct Transaction {
    user: Option<String>,
    /// The stream of the batch.
    key: Vec<u8>,
    writes: Vec<Vec<Vec<u8>>>,
    bytes: usize,
    /// Those of its keys; whether this server serves them. Else they are another shard's.
    slots: HashMap<Slot, bool>,
    /// Why it can not be done now.
    hindrance: Option<String>,
    /// See `identity::nesting`.
    nesting: u32,
}

thread_local! {
    static CURRENT: RefCell<Option<Transaction>> = const { RefCell::new(None) };
}

/// The code on this thread runs in a transaction.
pub fn is_active() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|t| t.nesting == identity::nesting()))
}

/// Why something can not be done there.
pub fn refusal(what: &str) -> String {
    format!("ERR {what} can not be part of an atomic batch, nothing of it was done")
}

/// Ends the transaction, also when a panic passes: the one around it goes on.
struct Ending(Option<Transaction>);

impl Drop for Ending {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Runs `steps`, which give their first error, and then what they wrote. The batch is one of the stream `key`.
pub fn run(guard: &ServerLock, key: &[u8], user: Option<&str>, steps: impl FnOnce() -> Option<String>) -> Verdict {
    if is_active() {
        return Verdict::Failure(refusal("another batch"));
    }
    // The acknowledgement belongs to it.
    let slots = HashMap::from_iter([(key_slot(key), true)]);
    if let Some(text) = hindrance(guard, &slots) {
        return Verdict::Hindered(text);
    }
    let ending = Ending(CURRENT.replace(Some(Transaction {
        user: user.map(str::to_owned),
        key: key.to_vec(),
        writes: Vec::new(),
        bytes: 0,
        slots,
        hindrance: None,
        nesting: identity::nesting(),
    })));
    let error = steps();
    let transaction = CURRENT.take();
    drop(ending);
    let Some(transaction) = transaction else {
        return Verdict::Failure(refusal("what was interrupted"));
    };
    if let Some(text) = transaction.hindrance {
        return Verdict::Hindered(text);
    }
    if let Some(text) = error {
        return Verdict::Failure(text);
    }
    // The lock is held: what is true now is true until the acknowledgement.
    match hindrance(guard, &transaction.slots) {
        Some(text) => Verdict::Hindered(text),
        None => write(guard, &transaction.writes, user),
    }
}

fn write(guard: &ServerLock, writes: &[Vec<Vec<u8>>], user: Option<&str>) -> Verdict {
    let flags = Flags {
        replicate: true,
        user,
        ..Flags::default()
    };
    let mut first = None;
    // What they make due belongs to the transaction, too.
    let _here = PythonHere::enter(true);
    for args in writes {
        if let Err(e) = call(guard, args, flags) {
            let name = String::from_utf8_lossy(&args[0]);
            first.get_or_insert_with(|| format!("{e} (command {name} of an atomic batch; the others took effect)"));
        }
    }
    first.map_or(Verdict::Success, Verdict::FailureAfterWrites)
}

/// Why a batch with keys in these slots can not be done now.
fn hindrance(guard: &ServerLock, slots: &HashMap<Slot, bool>) -> Option<String> {
    let mut served = slots.iter().filter_map(|(&slot, &is_served)| is_served.then_some(slot));
    served.find_map(|slot| match cluster::serving(guard, slot) {
        Serving::All => None,
        Serving::Elsewhere => Some(try_again(&format!("slot {slot} has gone to another shard"))),
        Serving::NotNow(why) => Some(try_again(&why)),
    })
}

fn try_again(why: &str) -> String {
    format!("TRYAGAIN {why}: nothing of the atomic batch was done, it runs again")
}

/// Queues or runs a command of a transaction; `None` if there is none on this thread.
pub fn execute(args: &[Vec<u8>]) -> Option<Result<Reply, String>> {
    if !is_active() {
        return None;
    }
    let guard = lock::lock();
    match judge(&guard, args) {
        Ok(Kind::Queued) => Some(queue(&guard, args)),
        Ok(Kind::AtOnce) => None,
        Err(text) => Some(Err(text)),
    }
}

fn queue(guard: &ServerLock, args: &[Vec<u8>]) -> Result<Reply, String> {
    let user = CURRENT.with_borrow(|current| current.as_ref().and_then(|t| t.user.clone()));
    if let Some(user) = user {
        identity::check_command(guard, &user, args, 0)?;
    }
    CURRENT.with_borrow_mut(|current| {
        let Some(transaction) = current else {
            return Err(refusal("a late command"));
        };
        transaction.bytes += args.iter().map(Vec::len).sum::<usize>();
        if transaction.writes.len() >= limits::TRANSACTION_COMMANDS || transaction.bytes > limits::TRANSACTION_BYTES {
            return Err(format!(
                "ERR an atomic batch can have {} commands of {} bytes, not more",
                limits::TRANSACTION_COMMANDS,
                limits::TRANSACTION_BYTES
            ));
        }
        transaction.writes.push(args.to_vec());
        Ok(Reply::Simple(b"QUEUED".to_vec()))
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Queued,
    AtOnce,
}

/// What the server says of a command.
#[derive(Clone)]
struct Described {
    arity: i64,
    flags: Vec<String>,
}

impl Described {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }
}

/// Commands that were looked up; they do not change while the server runs, but for those of modules.
static DESCRIBED: Mutex<Option<HashMap<String, Described>>> = Mutex::new(None);
const DESCRIBED_MOST: usize = 4096;

/// They write, but not to keys of this shard only, or they replace everything.
const REFUSED: [&str; 6] = ["flushall", "flushdb", "swapdb", "migrate", "move", "restore-asking"];
/// Those of ours that change nothing.
const OURS: [&str; 9] = [
    "rg.configget",
    "rg.dumpexecutions",
    "rg.dumpregistrations",
    "rg.getexecution",
    "rg.getresults",
    "rg.infocluster",
    "rg.pydumpreqs",
    "rg.pydumpsessions",
    "rg.pystats",
];
/// No writes for the server, but what they do is seen by others at once.
const ALSO_QUEUED: [&str; 2] = ["publish", "spublish"];

fn judge(guard: &ServerLock, args: &[Vec<u8>]) -> Result<Kind, String> {
    let shown = String::from_utf8_lossy(&args[0]).into_owned();
    let name = shown.to_ascii_lowercase();
    let described = describe(guard, &name, args).ok_or_else(|| CallError::UnknownCommand(shown.clone()).to_string())?;
    let count = args.len() as i64;
    if (described.arity >= 0 && count != described.arity) || count < -described.arity {
        return Err(CallError::WrongArity(shown).to_string());
    }
    let reads = only_reads(&name, &args[1..]);
    let writes = !reads && (described.has("write") || ALSO_QUEUED.contains(&&*name));
    if (described.has("blocking") && !reads) || REFUSED.contains(&&*name) {
        return Err(refusal(&format!("the command '{shown}'")));
    }
    if !writes {
        let harmless = match name.starts_with("rg.") {
            true => OURS.contains(&&*name),
            false => described.has("readonly") || !(described.has("noscript") || described.has("admin")),
        };
        if !harmless || matches!(&*name, "eval" | "evalsha" | "fcall") {
            return Err(refusal(&format!("the command '{shown}'")));
        }
        return is_here(guard, &shown, args).map(|()| Kind::AtOnce);
    }
    if described.has("noscript") {
        return Err(refusal(&format!("the command '{shown}'")));
    }
    // The group would go along before it has the acknowledgement, and where it goes the effects would come again.
    if matches!(&*name, "rename" | "renamenx" | "copy") && is_own_stream(&args[1]) {
        return Err(refusal(&format!("the command '{shown}' of the batch's own stream")));
    }
    // The hook's function would have to run now, and the command later.
    if intercept::is_hooked(guard, args) {
        return Err(refusal(&format!("the command '{shown}', which a hook takes over,")));
    }
    let server = server_flags(guard);
    if described.has("denyoom") && server.out_of_memory && !server.evicts {
        return Err("OOM command not allowed when used memory > 'maxmemory'.".into());
    }
    is_here(guard, &shown, args)?;
    Ok(Kind::Queued)
}

/// The server says of these commands that they may write, or wait; with these arguments they do not.
fn only_reads(name: &str, args: &[Vec<u8>]) -> bool {
    let has = |words: &[&str]| {
        let is_one = |arg: &Vec<u8>| words.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
        args.iter().any(is_one)
    };
    match name {
        "sort" | "georadius" | "georadiusbymember" => !has(&["store", "storedist"]),
        "bitfield" => !has(&["set", "incrby"]),
        "xread" => !has(&["block"]),
        _ => false,
    }
}

fn is_own_stream(key: &[u8]) -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|t| t.key == key))
}

/// All keys are in one slot, which this server serves. A read must not miss what is on the move, either.
fn is_here(guard: &ServerLock, shown: &str, args: &[Vec<u8>]) -> Result<(), String> {
    if !server_flags(guard).cluster {
        return Ok(());
    }
    let mut keys = call::keys_of(guard, args);
    if shown.eq_ignore_ascii_case("spublish") {
        // A channel of a shard is no key, but has a slot.
        keys.push(1);
    }
    let mut slots = keys.iter().map(|&at| key_slot(&args[at]));
    let Some(slot) = slots.next() else { return Ok(()) };
    if slots.any(|other| other != slot) {
        return Err(CallError::CrossSlot(shown.to_owned()).to_string());
    }
    let known = CURRENT.with_borrow(|current| match current {
        Some(transaction) => match &transaction.hindrance {
            Some(text) => Err(text.clone()),
            None => Ok(transaction.slots.get(&slot).copied()),
        },
        None => Err(refusal("a late command")),
    })?;
    let serving = match known {
        None => cluster::serving(guard, slot),
        Some(true) => Serving::All,
        Some(false) => Serving::Elsewhere,
    };
    CURRENT.with_borrow_mut(|current| {
        let Some(transaction) = current else {
            return Err(refusal("a late command"));
        };
        if let Serving::NotNow(why) = serving {
            return Err(transaction.hindrance.insert(try_again(&why)).clone());
        }
        let is_served = serving == Serving::All;
        transaction.slots.insert(slot, is_served);
        match is_served {
            true => Ok(()),
            false => Err(CallError::OtherShard(shown.to_owned()).to_string()),
        }
    })
}

fn describe(guard: &ServerLock, name: &str, args: &[Vec<u8>]) -> Option<Described> {
    let whole = look_up(guard, name)?;
    let sub = args.get(1).map(|sub| String::from_utf8_lossy(sub).to_ascii_lowercase());
    // Containers tell nothing of their subcommands.
    let container = !whole.has("write") && !whole.has("readonly");
    match sub.filter(|_| container) {
        Some(sub) => look_up(guard, &format!("{name}|{sub}")).or(Some(whole)),
        None => Some(whole),
    }
}

fn look_up(guard: &ServerLock, name: &str) -> Option<Described> {
    if let Some(known) = DESCRIBED.lock().as_ref().and_then(|all| all.get(name)) {
        return Some(known.clone());
    }
    let reply = call(
        guard,
        &[b"COMMAND".as_slice(), b"INFO", name.as_bytes()],
        Flags::default(),
    )
    .ok()?;
    let fields = reply.array()?.first()?.array()?;
    let described = Described {
        arity: fields.get(1)?.int()?,
        flags: fields
            .get(2)?
            .array()?
            .iter()
            .filter_map(|flag| flag.text().map(str::to_owned))
            .collect(),
    };
    let mut all = DESCRIBED.lock();
    let all = all.get_or_insert_default();
    if all.len() < DESCRIBED_MOST {
        all.insert(name.to_owned(), described.clone());
    }
    Some(described)
}
