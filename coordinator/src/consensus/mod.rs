//! How the nodes of a cluster agree on the registry: Raft over the mesh, on a log of our own.
//!
//! A server that is alone has no log and no thread for one: `RegistryService` applies directly. As soon as a cluster
//! node knows peers, or has a log from before, its part in the group decides.
//!
//! * `service`: the one door to the registry for the rest of the program
//! * `member`: one node's part. No clock, no thread: simulated in tests
//! * `formation`, `membership`: which group counts, and who belongs to it
//! * `group`: the Raft node of one group, and what it applies; `proposals`: changes this node waits for
//! * `source`: the log as Raft reads it; `snapshot`: what its snapshots hold
//! * `guard`: what a peer's Raft message must look like before it is looked at
//! * `storage`, `disk`: the log and the snapshot on disk
//! * `driver`: the thread around a member
//! * `mutants`: deliberately broken steps, for the test of the tests

pub mod disk;
mod driver;
mod formation;
mod group;
mod guard;
mod member;
mod membership;
mod mutants;
mod proposals;
mod service;
#[cfg(test)]
mod simulation;
mod snapshot;
mod source;
mod storage;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_service;
mod view;

pub use self::{
    service::{GroupConfig, ProposeError, RegistryHost, RegistryService},
    view::{ClusterNode, ClusterView, MemberStatus, RegistryStatus},
};
