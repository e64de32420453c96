//! RG.TRIGGER and RG.TRIGGERONKEY: one handler; the second only names its key for the server.

use super::wrong_arity;
use crate::{
    redis::{call::in_nested_call, register::Call, slot_tables},
    registrations::trigger,
};

/// RG.TRIGGER <trigger> [arg ...]
pub fn trigger(call: &mut Call) {
    if !wrong_arity(call, 2..) {
        run(call, None);
    }
}

/// RG.TRIGGERONKEY <trigger> <key> [arg ...]
pub fn triggeronkey(call: &mut Call) {
    if !wrong_arity(call, 3..) {
        run(call, Some(2));
    }
}

/// `key`: which argument is one.
fn run(call: &mut Call, key: Option<usize>) {
    let flags = call.context_flags();
    let _at_hand = (flags.cluster && !in_nested_call()).then(|| call.at_hand());
    let _inside = (!in_nested_call()).then(|| slot_tables::enter(flags, key.map(|at| &*call.args[at])));
    trigger::trigger(call, key);
}
