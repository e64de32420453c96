//! Small safe wrappers over the Redis module API, and the only place that calls it.
//!
//! * `load`: the doors that the server calls at load and unload
//! * `lock`, `sharing`: the server lock as a token, which a function that needs the lock takes; who has it next
//! * `before_serving`: when threads may write on older servers
//! * `guarded`: values that this lock guards
//! * `call`, `call_reply`, `value`: running commands of the server; `caller`: for whom one runs
//! * `register`, `command_info`: our own commands
//! * `blocked`, `reply`, `records`: answering clients
//! * `keyspace`, `key`: scanning and reading keys
//! * `cluster`, `slots`, `bus`: who is in the cluster, who owns what, messages between nodes
//! * `notify`: events of keys
//! * `data_type`: values of our own under keys
//! * `aux_data`, `replicate`, `events`: data in dumps, commands for replicas and the AOF, what the server tells
//! * `filter`, `front`, `wrapper`, `refusal`: taking over commands of clients
//! * `unfit`: commands that functions may not run
//! * `slot_tables`: keys that newer servers would not find within a client's command
//! * `later`, `event_loop`: when the command at hand is over; the turns of the main thread
//! * `timer`, `info`, `log`, `version`, `context`: the rest
//!
//! Never lets a panic out into the server: every callback runs inside `ffi::guarded`. Knows nothing of executions.

mod at_hand;
pub mod aux_data;
mod before_serving;
pub mod blocked;
mod bus;
pub mod call;
mod call_reply;
mod caller;
pub mod cluster;
mod command_info;
pub mod context;
pub mod data_type;
pub mod event_loop;
pub mod events;
mod ffi;
mod files;
pub mod filter;
pub mod front;
pub mod guarded;
pub mod info;
pub mod key;
pub mod keyspace;
pub mod later;
mod load;
pub mod lock;
pub mod log;
mod lost_reply;
pub mod notify;
pub mod plain_call;
pub mod records;
mod refusal;
pub mod register;
pub mod replicate;
pub mod reply;
pub mod sharing;
pub mod slot_tables;
mod slots;
pub mod timer;
pub mod unfit;
pub mod value;
pub mod version;
pub mod wrapper;
