//! Small commands about the interpreter: RG.PYSTATS, RG.DUMPPLUGINS, and two that are kept for old clients.

use oxigears_python_api::memory_stats;

use crate::redis::register::Call;

/// Name and version of the language plugin as clients know it.
pub const PLUGIN: (&str, i64) = ("GearsPythonPlugin", 10000);

/// RG.PYSTATS
pub fn pystats(call: &mut Call) {
    let stats = memory_stats();
    let reply = call.reply();
    reply.array(6);
    reply.named_int("TotalAllocated", stats.total as i64);
    reply.named_int("PeakAllocated", stats.peak as i64);
    reply.named_int("CurrAllocated", stats.current as i64);
}

/// RG.DUMPPLUGINS
pub fn dumpplugins(call: &mut Call) {
    let reply = call.reply();
    reply.array(1);
    reply.array(2);
    reply.bulk(PLUGIN.0.as_bytes());
    reply.int(PLUGIN.1);
}

/// RG.PYFREEINTERPRETER
pub fn pyfreeinterpreter(call: &mut Call) {
    call.reply().bulk(b"Free interpreter is not longer supported");
}

/// RG.PYEXECUTEREMOTE
pub fn pyexecuteremote(call: &mut Call) {
    call.reply().bulk(b"Execute remote is not longer supported");
}
