//! RG.TRIGGER and RG.TRIGGERONKEY: one handler; the second only names its key for the server.

use super::wrong_arity;
use crate::{redis::register::Call, registrations::trigger};

/// RG.TRIGGER <trigger> [arg ...]
pub fn trigger(call: &mut Call) {
    if !wrong_arity(call, 2..) {
        trigger::trigger(call);
    }
}

/// RG.TRIGGERONKEY <trigger> <key> [arg ...]
pub fn triggeronkey(call: &mut Call) {
    if !wrong_arity(call, 3..) {
        trigger::trigger(call);
    }
}
