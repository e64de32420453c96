//! The sections of `INFO rg`.

use oxigears_python_api::memory_stats;

use crate::{
    commands::PLUGIN,
    mesh::mesh,
    module::module,
    redis::{
        info::{self, InfoWriter},
        lock::ServerLock,
        sharing,
    },
    registrations::{
        self,
        describe::{self, SessionTexts, SessionView},
        due, keys, registrations,
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
    if out.section("lock") {
        let lent = sharing::numbers();
        out.field_u64("slices", lent.slices);
        out.field_u64("calls_in_slices", lent.calls);
        out.field_u64("slices_us", lent.total_us);
        out.field_u64("longest_slice_us", lent.longest_us);
    }
    if out.section("registry") {
        write_registry(out);
    }
    if out.section("regisrations") {
        let mut texts = SessionTexts::default();
        for active in registrations().activation.table().read().registrations() {
            out.dict(&active.registration.id, &describe::info_fields(&active, &mut texts));
        }
    }
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
    if out.section("python_sessions") {
        let table = registrations().activation.table().read();
        let dead = table.dead_sessions();
        let views = table.sessions().map(SessionView::linked);
        for view in views.chain(dead.iter().map(SessionView::dead)) {
            out.field_str(&view.is.name, &view.literal());
        }
    }
}

fn write_registry(out: &mut InfoWriter) {
    let status = registrations::status();
    let or_none = |text: Option<&str>| text.unwrap_or("").to_owned();
    out.field_str("role", status.role);
    out.field_u64("term", status.term);
    out.field_str("leader", &or_none(status.leader.as_ref().map(|leader| leader.as_str())));
    out.field_str("group", &or_none(status.group.as_deref()));
    out.field_u64("commit", status.commit);
    out.field_u64("applied", status.applied);
    out.field_u64("active", registrations().activation.index());
    out.field_u64("log_bytes", status.disk_bytes);
    out.field_u64("members", status.members.len() as u64);
    let lag = status.members.iter().filter_map(|member| member.lag).max();
    out.field_str("lag", &lag.map_or_else(String::new, |lag| lag.to_string()));
    out.field_str("error", &or_none(status.error.as_deref()));
}

/// Events of keys and streams.
fn write_events(out: &mut InfoWriter) {
    let (events, due) = (keys::queue::numbers(), due::numbers());
    out.field_u64("events_waiting", events.waiting);
    out.field_u64("events_waiting_most", events.most);
    out.field_u64("events_refused", events.refused);
    out.field_u64("events_postponed", events.postponed);
    out.field_u64("events_too_deep", keys::fire::too_deep());
    out.field_u64("sync_due", due.waiting);
    out.field_u64("sync_due_most", due.most);
    out.field_u64("sync_refused", due.refused);
    out.field_u64("sync_handed_over", due.handed_over);
}

fn write_main(out: &mut InfoWriter) {
    let engine = &module().engine;
    out.field_u64("nexecutions", engine.executions() as u64);
    // Some of their records were postponed and have not come back.
    out.field_u64("nexecutions_pending", engine.pending() as u64);
    let registered = registrations().activation.table().read().state().registration_count();
    out.field_u64("nregistrations", registered as u64);
    out.field_str("oxigears_version", env!("CARGO_PKG_VERSION"));
    out.field_str("oxigears_commit", COMMIT);
    out.field_str("python_version", &oxigears_python_api::python_version());
    out.field_u64("cluster_shards", engine.topology().shards.len() as u64);
    write_events(out);
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
