//! The bounds of this folder in one table. Units are in the names; those of the engine are in the coordinator's table.

use std::time::Duration;

/// Pause between two looks at deadlines.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A command that can not be parked waits this long for the interpreter, or `InterpreterMaxWaitTime` if that is longer, while
/// it goes from thread to thread.
pub const INTERPRETER_WAIT_MOST: Duration = Duration::from_millis(1000);
/// Pause between two looks at who has the interpreter.
pub const INTERPRETER_LOOK: Duration = Duration::from_millis(1);
/// Sync handlers whose events have been told, but that have not run yet: what one command or transaction may cause.
pub const DUE_SHOTS: usize = 1_000_000;
/// Names of events that are kept for ever; the server has some eighty.
pub const EVENT_NAMES: usize = 1000;
/// Longer ones are not kept.
pub const EVENT_NAME_BYTES: usize = 256;
/// Events of keys that wait for worker threads before writers are slowed down.
pub const EVENTS_SLOW: usize = 100_000;
/// So many make commands be looked at, because there may soon be too many.
pub const EVENTS_LONG: usize = EVENTS_SLOW / 2;
/// With fewer they are looked at no more.
pub const EVENTS_SHORT: usize = EVENTS_SLOW / 4;
/// So many fewer before they go on.
pub const EVENTS_ROOM: usize = 10_000;
/// Events that may wait because their writers could not be slowed down.
pub const EVENTS_MOST: usize = 1_000_000;
/// Executions of events on all shards that are under way at once, for each shard whose events they are.
pub const EVENTS_SPREAD: usize = 1000;
/// Events whose records are read in one hold of the server lock.
pub const EVENTS_AT_ONCE: usize = 1024;
/// Who aborts an event that waits waits so long for the server lock before it does without.
pub const WITHDRAW_WAIT: Duration = Duration::from_secs(1);
/// With so many records the main thread reads no more at the end of its turn.
pub const EVENTS_READY: usize = 512;
/// Nor with so many bytes of them.
pub const EVENTS_READY_BYTES: usize = 4 << 20;
/// A worker waits so long before it looks again whether another one has read a huge value.
pub const HUGE_LOOK: Duration = Duration::from_millis(1);
/// A worker thread waits so long for records that the main thread is about to read.
pub const EVENTS_COME: Duration = Duration::from_millis(5);
/// Longest such hold.
pub const EVENTS_SLICE: Duration = Duration::from_micros(500);
/// A worker thread that has handled events of one registration for so long looks after others.
pub const EVENTS_TURN: Duration = Duration::from_millis(10);
/// An event that has run for so long may be waiting for something: other threads help with those behind it.
pub const EVENT_STUCK: Duration = Duration::from_millis(4);
/// Looks at a line that moves before the thread is given to others.
pub const EVENTS_LOOKS: u32 = 10;
/// RG.TRIGGER of a registration that is known but not active here yet waits this long.
pub const TRIGGER_WAIT: Duration = Duration::from_secs(10);
/// The answer to a change waits this long for its activation on the node that was asked.
pub const OWN_ACTIVATION_WAIT: Duration = Duration::from_secs(4);
/// Those who may wait for an activation at the same time.
pub const WAITERS: usize = 100_000;
/// The question whether peers can load a change waits this long, so that with the change itself the client has its
/// answer within 5 s; and so much longer for each registration.
pub const CHECK_WAIT: Duration = Duration::from_millis(800);
/// See `CHECK_WAIT`.
pub const CHECK_WAIT_EACH: Duration = Duration::from_millis(1);
/// Questions to peers that may be open.
pub const OPEN_QUESTIONS: usize = 4096;
/// Functions that were loaded for a change that may come.
pub const PREPARED: usize = 40_000;
/// Life of such functions.
pub const PREPARED_LIFE: Duration = Duration::from_secs(30);
/// Other shards may start executions of a removed registration for so long, from the last one on: those that have not heard
/// of it yet, or have its events in line.
pub const RETIRED_LIFE: Duration = Duration::from_secs(5);
/// Removed registrations that are kept for that.
pub const RETIRED: usize = 1000;
/// So long a master waits after a load, and a node of a cluster after its start, before it takes commands, for what is known
/// to become active.
pub const LOADED_WAIT: Duration = Duration::from_millis(1000);
/// So long a timer waits at least, whose function could not be loaded, before that is tried again.
pub const LOADED_AGAIN: Duration = Duration::from_secs(5);
/// So long the activation waits for functions to be loaded, for all together, and so long for each at least. What is not ready
/// then is taken when it is.
pub const LOADING_WAIT: Duration = Duration::from_secs(3);
pub const LOADING_WAIT_EACH: Duration = Duration::from_millis(100);
/// Loading functions for a timer or a peer takes no longer, as a rule. What does is left to a thread of its own.
pub const LOADERS_PATIENCE: Duration = Duration::from_millis(250);
/// Such threads; when all are taken, the next errand waits.
pub const LOADERS: usize = 64;
/// Pause between two looks whether somebody still wants what they load.
pub const LOADERS_LOOK: Duration = Duration::from_millis(200);
/// Rounds in which the activation loads functions outside the server lock before it loads the rest inside.
pub const LOADING_ROUNDS: usize = 5;
/// Changes that may wait for the activation thread on a server that is alone.
pub const WAITING_CHANGES: usize = 4096;
/// Ids of registrations that the text of a session names; beyond, it names some and `...`, because each of its
/// registrations is shown with that text.
pub const IDS_IN_TEXT: usize = 100;
/// How many it names then.
pub const IDS_IN_CUT_TEXT: usize = 20;
/// Pause before a group that could not be started is tried again.
pub const GROUP_RETRY: Duration = Duration::from_secs(5);
/// Timers of `registerTE` on one shard; those that a dump or the master brings are taken all the same.
pub const TIMERS: usize = 10_000;
/// Hooks that may run inside of commands of each other.
pub const HOOK_DEPTH: usize = 32;
/// A pause may have come and gone since somebody looked if that was so long ago.
pub const PAUSE_MISSED: Duration = Duration::from_millis(100);
/// Clients of which it is known that they may have queued changes of rights.
pub const QUEUERS: usize = 1000;
/// So often they are listed at most.
pub const CLIENTS_EVERY: Duration = Duration::from_secs(1);
/// If there are more clients they are not listed to see who is in a transaction.
pub const CLIENTS_LISTED: u64 = 500;
/// So long after the end of a pause no command is held up by it any more.
pub const PAUSE_IS_OVER: Duration = Duration::from_secs(1);
/// Users that are looked at, whether all of them may run the internal commands; if there are more, it counts as no.
pub const USERS_LOOKED_AT: usize = 100;
/// A batch of a stream registration is run when it has this size, or so many entries, though more were asked for.
pub const STREAM_BATCH_BYTES: usize = 64 * 1024 * 1024;
/// See `STREAM_BATCH_BYTES`.
pub const STREAM_BATCH_ENTRIES: u64 = 1_000_000;
/// Bytes of batches that have been read and are not over, of all streams; more are read when some are.
pub const STREAM_WAITING_BYTES: usize = 4 * STREAM_BATCH_BYTES;
/// Batches of a registration that have been read and with which no thread has begun: enough to keep the threads busy, and
/// few, because what clients run waits behind them.
pub const STREAM_WAITING_BATCHES: usize = 8;
/// Entries that are taken out of a group between two looks at the clock.
pub const STREAM_TAKEN_AT_ONCE: u64 = 200;
/// Entries that are removed in one go, where there may be many.
pub const STREAM_TRIMMED_AT_ONCE: usize = 10_000;
/// Ids in one command that acknowledges entries.
pub const STREAM_IDS: usize = 1000;
/// Streams that one registration keeps in mind; beyond, it forgets those on which nothing waits.
pub const STREAMS_KNOWN: usize = 1_000_000;
/// Pause before something is tried again on a stream that can not be done now: writes are paused, another registration has
/// the group.
pub const STREAM_RETRY: Duration = Duration::from_millis(50);
/// The same where no execution can be started.
pub const STREAM_REFUSED_RETRY: Duration = Duration::from_secs(1);
/// Pause between two lines in the log about that.
pub const STREAM_TELL: Duration = Duration::from_secs(10);
/// Registrations that run under the server lock give it back after this time when there is more to do.
pub const STREAM_HOLD: Duration = Duration::from_millis(1);
/// Groups of registrations on one stream that are asked after each batch how far they are, to remove what all have passed;
/// of more together that is asked when somebody comes to it.
pub const GROUPS_ASKED: usize = 8;
/// Pause between two such holds.
pub const STREAM_PAUSE: Duration = Duration::from_micros(100);
/// Longest timer of a stream; the server counts in microseconds.
pub const STREAM_TIMER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Commands that one batch may write in a transaction.
pub const TRANSACTION_COMMANDS: usize = 1_000_000;
/// Their size.
pub const TRANSACTION_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of a value that a SET has just written and that is kept for the handler that runs right after it.
pub const FRESH_VALUE: usize = 4096;
/// Bytes of a record that is copied to memory of its own size.
pub const RECORD_KEPT: usize = 4096;
/// Bytes of small records that share their memory, about.
pub const RECORDS_PACKED: usize = 128 * 1024;
/// Strings that a worker thread asks for in one command, for events of keys.
pub const STRINGS_AT_ONCE: usize = 16;
/// Their bytes, as far as that can be foreseen.
pub const STRINGS_BYTES: usize = 64 * 1024;
