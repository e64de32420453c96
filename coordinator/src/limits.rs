//! Every bound of the engine in one table: queues, buffers, lists, retries. Units are in the names.

use std::time::Duration;

/// A record batch is closed when it has reached this size.
pub const BATCH_BYTES: usize = 128 * 1024;
/// A record batch holds at most this many records (one GIL hold, about).
pub const BATCH_RECORDS: usize = 1024;
/// Unconsumed bytes that one source may have under way to one destination in one exchange.
pub const WINDOW_BYTES: u64 = 1024 * 1024;
/// A receiver gives credit back in portions of this size.
pub const CREDIT_STEP_BYTES: u64 = WINDOW_BYTES / 4;
/// Batches that may wait for a missing predecessor from one source.
pub const REORDER_BATCHES: usize = 64;
/// Largest message of the mesh; a record must fit (Redis values reach 512 MB).
pub const MESSAGE_BYTES: usize = 640 * 1024 * 1024;
/// Largest message of a peer that has not proved yet who it is.
pub const DOOR_MESSAGE_BYTES: usize = 1024;
/// Messages that may wait for one peer's link.
pub const LINK_QUEUE_MESSAGES: usize = 16 * 1024;
/// Nonces that may be outstanding at the door.
pub const OPEN_CHALLENGES: usize = 1024;
/// Life of a nonce.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(10);
/// Connections that one peer, or one stranger's address, may hold.
pub const CONNECTIONS_PER_ADDRESS: usize = 64;
/// Time a connection has for TLS and HTTP/2 set-up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two heartbeats on a link.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);
/// A peer that has been silent this long is lost.
pub const PEER_SILENCE: Duration = Duration::from_millis(2500);
/// Waiting time for a peer whose link is not up when an execution starts.
pub const LINK_WAIT: Duration = Duration::from_millis(2000);
/// Waiting time for the topology to settle before an execution starts.
pub const TOPOLOGY_SETTLE: Duration = Duration::from_millis(2000);
/// Answers of other shards to a query (GETEXECUTION, ABORTEXECUTION) are awaited this long.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Queries that may be under way.
pub const OPEN_QUERIES: usize = 4096;
/// Steps (operations) of one plan.
pub const PLAN_STEPS: usize = 4096;
/// Bytes of one plan, functions included.
pub const PLAN_BYTES: usize = 64 * 1024 * 1024;
/// Shards that may take part in one execution.
pub const PARTICIPANTS: usize = 1024;
/// Executions that may wait for a worker thread on one shard.
pub const QUEUED_EXECUTIONS: usize = 100_000;
/// Nesting depth that the typed codec takes; deeper values are pickled.
pub const CODEC_DEPTH: usize = 64;
/// Longest text of one error that is kept or sent.
pub const ERROR_TEXT_BYTES: usize = 64 * 1024;
/// Pause between two looks at idle executions and lost peers.
pub const TICK: Duration = Duration::from_millis(100);
