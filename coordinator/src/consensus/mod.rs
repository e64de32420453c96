//! How the nodes of a cluster agree on the registry: Raft over the mesh, on a log of our own.
//!
//! A server that is alone has no log and no thread for one: `RegistryService` applies directly. As soon as a cluster
//! node knows peers, or has a log from before, its part in the group decides.
//!
//! * `service`: the one door to the registry for the rest of the program
//! * `member`: one node's part: log, Raft, applied state, formation, membership. No clock, no thread: simulated in tests
//! * `formation`, `membership`: which group counts, and who belongs to it
//! * `guard`: what a peer's Raft message must look like before it is looked at
//! * `storage`, `disk`: the log and the snapshot on disk
//! * `driver`: the thread around a member

pub mod disk;
mod driver;
mod member;
mod service;
mod storage;
mod view;
#[cfg(test)]
mod simulation;

pub use self::{
    service::{GroupConfig, ProposeError, RegistryHost, RegistryService},
    view::{ClusterNode, ClusterView, MemberStatus, RegistryStatus},
};
