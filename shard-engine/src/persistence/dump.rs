//! The registry in RDB files and full syncs: one string beside the keys, and nothing if nothing was ever registered.

use oxigears_coordinator::registry::Registry;

use super::{loading, log_decides};
use crate::{
    redis::{
        aux_data::{self, AuxData},
        lock::ServerLock,
        log,
    },
    registrations,
};

/// Name of the data in dumps.
const NAME: &str = "oxigears1";
/// Version of what stands around the state, which has a version of its own.
const ENCODING: i32 = 1;

/// Registers the data type.
pub(super) fn register(guard: &ServerLock) -> Result<(), String> {
    aux_data::register(
        guard,
        AuxData {
            name: NAME,
            encoding: ENCODING,
            save,
            load,
        },
    )
}

/// Runs in forked children: reads the published state and nothing else.
fn save() -> Option<Vec<u8>> {
    let state = registrations::service().state();
    (!state.is_empty()).then(|| state.encode())
}

fn load(_: &ServerLock, _: i32, bytes: Option<&[u8]>) -> Result<(), String> {
    let state = bytes.map_or_else(|| Ok(Registry::default()), Registry::decode);
    match state {
        Ok(state) => {
            loading::take(state);
            Ok(())
        }
        // The keys are worth having, and this part of the dump counts for nothing here.
        Err(e) if log_decides() => {
            log::warning(&format!(
                "{e}; the cluster's log has the registrations, so the dump's are not needed"
            ));
            Ok(())
        }
        Err(e) => Err(format!(
            "{e}. The dump holds registrations that this server can not read: load another dump, or this one with the \
             version of the module that wrote it"
        )),
    }
}
