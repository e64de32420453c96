//! The Redis half of OxiGears: the module that the server loads.
//!
//! * `module`, `config`, `info`: what lives in the process, how it is set, what it shows
//! * `commands`: one file a command
//! * `scripts`: the thread that runs the bodies of RG.PYEXECUTE
//! * `readers`: native readers of the keyspace
//! * `host`, `server`: what the engine and Python ask of this server
//! * `identity`: whose rights running code has
//! * `mesh`: joins topology, cluster bus and gRPC mesh
//! * `timers`: what the clock fires
//! * `registrations`: what is registered, as it lives on this shard
//! * `persistence`: dumps, the AOF and replicas
//! * `redis`: the only place that calls the module API

#![warn(missing_docs)]

mod commands;
mod config;
mod host;
mod identity;
mod info;
mod mesh;
mod module;
mod persistence;
mod readers;
mod redis;
mod registrations;
mod scripts;
mod server;
mod timers;
