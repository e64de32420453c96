//! The sections of `INFO rg`.

use oxigears_python_api::memory_stats;

use crate::{
    commands::PLUGIN,
    mesh::mesh,
    module::module,
    redis::{
        info::{self, InfoWriter},
        lock::ServerLock,
    },
};

/// The project's commit that the module was built from.
pub const COMMIT: &str = env!("OXIGEARS_COMMIT");

/// Registers the callback.
pub fn register(guard: &ServerLock) -> Result<(), String> {
    info::register(guard, write)
}

fn write(out: &mut InfoWriter) {
    if out.section("") {
        write_main(out);
    }
    // No registrations yet: the section is there, and empty.
    out.section("regisrations");
    if out.section("plugins") {
        out.dict(PLUGIN.0, &[("version", PLUGIN.1.to_string())]);
    }
    if out.section("python_stats") {
        let stats = memory_stats();
        out.field_u64("TotalAllocated", stats.total);
        out.field_u64("PeakAllocated", stats.peak);
        out.field_u64("CurrAllocated", stats.current);
    }
    out.section("python_requirements");
    out.section("python_sessions");
}

fn write_main(out: &mut InfoWriter) {
    let engine = &module().engine;
    out.field_u64("nexecutions", engine.executions() as u64);
    out.field_u64("nregistrations", 0);
    out.field_str("oxigears_version", env!("CARGO_PKG_VERSION"));
    out.field_str("oxigears_commit", COMMIT);
    out.field_str("python_version", &oxigears_python_api::python_version());
    out.field_u64("cluster_shards", engine.topology().shards.len() as u64);
    if let Some(mesh) = mesh() {
        let peers = mesh.peers();
        out.field_u64("mesh_port", u64::from(mesh.port()));
        out.field_u64("mesh_peers", peers.len() as u64);
        out.field_u64(
            "mesh_peers_connected",
            peers.iter().filter(|p| p.connected).count() as u64,
        );
    }
}
