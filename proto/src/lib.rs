//! The wire contract between shards: generated types and the `Mesh` service, nothing else.
//!
//! Only `oxigears-coordinator`'s `net` module uses these types; everything else sees its own message types.

#![allow(missing_docs, clippy::all, rust_2018_idioms)]

tonic::include_proto!("oxigears.mesh.v1");
