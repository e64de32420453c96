//! Every bound of the engine in one table: queues, buffers, lists, retries. Units are in the names.

use std::time::Duration;

/// A record batch is closed when it has reached this size.
pub const BATCH_BYTES: usize = 128 * 1024;
/// A record batch holds at most this many records (one GIL hold, about).
pub const BATCH_RECORDS: usize = 1024;
/// Unconsumed bytes that one source may have under way to one destination in one exchange, unless one batch has more.
pub const WINDOW_BYTES: u64 = 1024 * 1024;
/// A receiver gives credit back in portions of this size; less than that may be used up and not told.
pub const CREDIT_STEP_BYTES: u64 = WINDOW_BYTES / 4;
/// Batches that may wait for a missing predecessor from one source.
pub const REORDER_BATCHES: usize = 64;
/// Largest payload of a message of the mesh; a record must fit (Redis values reach 512 MB).
pub const MESSAGE_BYTES: usize = 640 * 1024 * 1024;
/// Payloads cross a link in pieces of at most this size.
pub const FRAGMENT_BYTES: usize = 512 * 1024;
/// Texts and lists of one message, all but its payload.
pub const MESSAGE_HEAD_BYTES: usize = 1024 * 1024;
/// Largest frame of a link.
pub const FRAME_BYTES: usize = FRAGMENT_BYTES + MESSAGE_HEAD_BYTES;
/// Largest message of a peer that has not proved yet who it is.
pub const DOOR_MESSAGE_BYTES: usize = 1024;
/// Messages that may wait for one peer's link.
pub const LINK_QUEUE_MESSAGES: usize = 16 * 1024;
/// Strangers (connections without a proof yet, each with one nonce at most) that may be at the door.
pub const OPEN_CHALLENGES: usize = 1024;
/// Life of a nonce.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(10);
/// Connections without a proof yet that one address may hold.
pub const CONNECTIONS_PER_ADDRESS: usize = 64;
/// Connections that wait for the kernel to be accepted.
pub const LISTEN_BACKLOG: i32 = 511;
/// Accepted connections that wait for the services.
pub const ACCEPTED_WAITING: usize = 64;
/// Pause after a connection could not be accepted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Threads of the mesh for what would block it: host names, TLS files.
pub const BLOCKING_THREADS: usize = 4;
/// Time a connection has for TLS, HTTP/2 set-up and proof.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two heartbeats on a link.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);
/// A peer that has been silent this long is lost.
pub const PEER_SILENCE: Duration = Duration::from_millis(2500);
/// Pause between two looks at a link's silence.
pub const SILENCE_CHECK: Duration = Duration::from_millis(250);
/// Pause before the first attempt to open a link again.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
pub const RECONNECT_MOST: Duration = Duration::from_millis(1000);
/// Time that a link's closing words have to reach the peer.
pub const LINK_FAREWELL: Duration = Duration::from_millis(500);
/// HTTP/2 window of a link's stream.
pub const LINK_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// HTTP/2 window of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// HTTP/2 frame size.
pub const HTTP_FRAME_BYTES: u32 = 256 * 1024;
/// HTTP/2 headers of one request.
pub const HEADER_BYTES: u32 = 16 * 1024;
/// HTTP/2 streams of one connection.
pub const STREAMS_PER_CONNECTION: u32 = 8;
/// Longest announcement of a node to its peers.
pub const ANNOUNCEMENT_BYTES: usize = 4096;
/// Announcements of nodes that are no members (yet, or any more) that are kept.
pub const STRANGE_ANNOUNCEMENTS: usize = 1024;
/// Longest text of versions.
pub const VERSIONS_BYTES: usize = 256;
/// Longest node id.
pub const NODE_ID_BYTES: usize = 64;
/// Longest execution id.
pub const EXECUTION_ID_BYTES: usize = 128;
/// Longest path of a Unix socket that every system takes.
pub const SOCKET_PATH_BYTES: usize = 100;
/// Pause between two log lines about strangers that were refused.
pub const REFUSAL_LOG_EVERY: Duration = Duration::from_secs(1);
/// TLS files are read again for a new connection after this time.
pub const TLS_FILES_LIFE: Duration = Duration::from_secs(1);
/// Pause between two log lines about the same trouble.
pub const REPEAT_LOG_EVERY: Duration = Duration::from_secs(10);
/// Waiting time for a peer whose link is not up when an execution starts, from the moment when it was lost.
pub const LINK_WAIT: Duration = Duration::from_millis(2000);
/// The same for a peer that has been away for longer than that: executions on this shard alone wait behind.
pub const LINK_GLANCE: Duration = Duration::from_millis(50);
/// Waiting time for the topology to settle before an execution starts.
pub const TOPOLOGY_SETTLE: Duration = Duration::from_millis(2000);
/// Answers of other shards to a query (GETEXECUTION, ABORTEXECUTION) are awaited this long.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Queries that may be under way.
pub const OPEN_QUERIES: usize = 4096;
/// Drops of executions that shards have not been told of, as they could not be reached.
pub const OWED_DROPS: usize = 1024;
/// A shard is told so many times of one, at most.
pub const DROP_TRIES: u32 = 10;
/// Steps (operations) of one plan.
pub const PLAN_STEPS: usize = 4096;
/// Bytes of one plan, functions included.
pub const PLAN_BYTES: usize = 64 * 1024 * 1024;
/// Shards that may take part in one execution.
pub const PARTICIPANTS: usize = 1024;
/// Messages of one execution that travel as one.
pub const MESSAGES_IN_ONE: usize = 8;
/// Batches up to this size travel within them, and need no thread of their own where they only pass.
pub const SMALL_BATCH_BYTES: usize = 4 * 1024;
/// The answer to a trigger is written by the thread that ended its execution if it has at most this size.
pub const SMALL_REPLY_BYTES: usize = 16 * 1024;
/// A thread of a pool that has been on its task for longer is not expected back soon.
pub const POOL_PATIENCE: Duration = Duration::from_millis(1);
/// A task that has waited for so long gets a thread of its own, if one sleeps.
pub const POOL_OVERDUE: Duration = Duration::from_millis(6);
/// Looks at an empty queue before nobody looks any more.
pub const POOL_LOOKS: u32 = 10;
/// Records that one step of an execution may have postponed on a shard (a step that accumulates: one).
pub const PENDING_RECORDS: usize = 1000;
/// Coroutines that may wait to be started by the event loop.
pub const LOOP_QUEUE: usize = 1_000_000;
/// A coroutine that keeps the event loop for longer is named in the log.
pub const LOOP_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks at the event loop while it is busy.
pub const LOOP_LOOK: Duration = Duration::from_millis(100);
/// Executions that may wait for a worker thread, or for records that were postponed, on one shard.
pub const QUEUED_EXECUTIONS: usize = 100_000;
/// Nesting depth that the typed codec takes; deeper values are pickled.
pub const CODEC_DEPTH: usize = 64;
/// Longest text of one error that is kept or sent.
pub const ERROR_TEXT_BYTES: usize = 512 * 1024;
/// Pause between two interrupts of a function that is to end.
pub const INTERRUPT_EVERY: Duration = Duration::from_millis(1);
/// A function of an execution that has failed may go on for so long. An abort does not wait.
pub const INTERRUPT_AFTER: Duration = Duration::from_secs(1);
/// Pause between two looks at idle executions and lost peers.
pub const TICK: Duration = Duration::from_millis(100);
/// Requests (by log index) whose outcome the registry remembers, so that copies of them change nothing.
pub const REMEMBERED_REQUESTS: u64 = 4096;
/// Removed registrations that the registry remembers.
pub const TOMBSTONES: usize = 10_000;
/// Registrations that may exist.
pub const REGISTRATIONS: usize = 100_000;
/// Registrations of one change of a session.
pub const REGISTRATIONS_PER_CHANGE: usize = 20_000;
/// Requirements that may be known.
pub const REQUIREMENTS: usize = 10_000;
/// Names (session, trigger, user, requirement, file) in the registry.
pub const NAME_BYTES: usize = 64 * 1024;
/// Descriptions in the registry.
pub const DESCRIPTION_BYTES: usize = 1024 * 1024;
/// One change of the registry, functions included.
pub const PROPOSAL_BYTES: usize = 32 * 1024 * 1024;
/// Entries of one list of names (event types, requirements, files) in the registry.
pub const NAMES_PER_LIST: usize = 10_000;
/// Longest part of a name in the text of a refusal, which is remembered.
pub const REFUSAL_NAME_BYTES: usize = 512;
/// All of the registry.
pub const REGISTRY_BYTES: usize = 512 * 1024 * 1024;
/// The encoded registry with what it remembers of removed registrations and of requests.
pub const STATE_BYTES: usize = REGISTRY_BYTES + 32 * 1024 * 1024;
/// Changes that may wait for their outcome on one node.
pub const OPEN_PROPOSALS: usize = 4096;
/// A change has its answer after this time.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause before a proposal whose outcome is not seen yet is handed in again.
pub const PROPOSE_AGAIN: Duration = Duration::from_millis(300);
/// After a change the answer waits this long for shards that are there but have not activated it yet.
pub const ACTIVATION_WAIT: Duration = Duration::from_secs(1);
/// Before a change other shards that are there have this long to say whether they could load it.
pub const CHECK_WAIT: Duration = Duration::from_secs(3);
/// Voting members of the group; further masters and all replicas learn.
pub const VOTERS: usize = 7;
/// Length of a Raft tick.
pub const RAFT_TICK: Duration = Duration::from_millis(100);
/// Ticks between two heartbeats of a leader.
pub const RAFT_HEARTBEAT_TICKS: usize = 2;
/// Ticks without a leader before an election (up to twice as many).
pub const RAFT_ELECTION_TICKS: usize = 10;
/// Entries in one message to a member that catches up.
pub const RAFT_MESSAGE_BYTES: u64 = 4 * 1024 * 1024;
/// Messages under way to a member.
pub const RAFT_INFLIGHT: usize = 64;
/// Events (messages, proposals) that may wait for the group's thread.
pub const RAFT_QUEUE: usize = 16 * 1024;
/// Bytes of messages that may wait for it.
pub const RAFT_QUEUE_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of proposals that a leader has in its log and that are not committed yet, before it takes no more.
pub const RAFT_UNCOMMITTED_BYTES: u64 = 4 * PROPOSAL_BYTES as u64;
/// Ticks before a snapshot that a member does not confirm is sent again, and bytes for which one more is added.
pub const RAFT_SNAPSHOT_TICKS: u64 = 50;
/// See there.
pub const RAFT_SNAPSHOT_TICK_BYTES: u64 = 1024 * 1024;
/// Entries in one message: more than fit into its bytes.
pub const RAFT_MESSAGE_ENTRIES: usize = 512 * 1024;
/// Members of a group.
pub const GROUP_MEMBERS: usize = 10_000;
/// A peer's term may be ahead of ours by this much.
pub const RAFT_TERM_LEAP: u64 = 1_000_000;
/// Entries behind the last snapshot before a new one is made.
pub const LOG_ENTRIES: u64 = 4096;
/// Bytes of log behind the last snapshot before a new one is made (or twice the snapshot, if that is more).
pub const LOG_BYTES: u64 = 8 * 1024 * 1024;
/// Folders of logs that were given up (damaged, of another group) which are kept, of each kind.
pub const KEPT_LOGS: usize = 4;
/// Entries before a snapshot that stay in the log for members that are only a little behind.
pub const LOG_KEPT_ENTRIES: u64 = 1024;
/// Bytes of those entries.
pub const LOG_KEPT_BYTES: u64 = 2 * 1024 * 1024;
/// Largest file of the log that is read.
pub const LOG_FILE_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Pause between two hellos while something is unsettled, and when all is well.
pub const HELLO_BUSY: Duration = Duration::from_millis(200);
/// The same when all is well.
pub const HELLO_CALM: Duration = Duration::from_secs(2);
/// A node that is no member of the cluster any more leaves the group after this time.
pub const LEAVE_AFTER: Duration = Duration::from_secs(3);
/// A log is given up for another group after this time in which that was always the right thing to do.
pub const GIVE_WAY_AFTER: Duration = Duration::from_secs(3);
/// Pause before a leader that should not lead tries again to hand the lead over.
pub const TRANSFER_AGAIN: Duration = Duration::from_secs(5);
/// A node that has started does not run registrations before a leader has told how old its log is, for this time at most.
/// Longer than an election takes.
pub const NEWEST_WAIT: Duration = Duration::from_secs(3);
/// Pause before a log that could not be written is tried again.
pub const DISK_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between two calls of a timer, in ms: a hundred years.
pub const TIMER_PERIOD_MS: u64 = 100 * 366 * 24 * 3600 * 1000;
/// Of the executions of a registration that are over, the oldest ones are forgotten while what they gave has more bytes,
/// but for the newest.
pub const KEPT_BYTES: usize = 64 * 1024 * 1024;
