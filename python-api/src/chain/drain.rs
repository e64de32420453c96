//! What accumulating steps emit when their input has ended, one record at a time.

use pyo3::{ffi, prelude::*};

use super::{
    item::{Item, Raised, call2, pair_dict, refuses_coroutine},
    step::{Accumulators, COROUTINE_IN_REDUCER, Flow, Function, Kind, Sum},
};
use crate::{
    codec::new_text,
    errors,
    later::{Moment, Spot},
    obj::Obj,
    runtime::runtime,
};

/// One emission.
pub(super) enum Drained {
    /// A record, an error, a list: what a record that just arrived could become as well.
    Some(Flow),
    /// Nothing is left; the step's memory is given back.
    Empty,
}

impl Kind {
    /// The emission number `at`.
    ///
    /// # Safety
    /// The GIL is held; the functions are alive.
    pub(super) unsafe fn drain(&mut self, py: Python<'_>, at: &mut usize, moment: &Moment) -> Drained {
        // SAFETY: as for this function.
        unsafe {
            match self {
                Kind::Accumulate { kept, .. } | Kind::Fold { kept, .. } => match kept.take() {
                    Some(value) => Drained::Some(Flow::Next(Item::plain(value))),
                    None => Drained::Empty,
                },
                Kind::ReduceTable { table, .. } | Kind::CombineTable { table, .. } => {
                    next_value(table, at, |key, value| {
                        new_text(key)
                            .ok_or(Raised)
                            .and_then(|key| pair_dict(&key, &value))
                            .map_or_else(Flow::from, |dict| Flow::Next(Item::plain(dict)))
                    })
                }
                Kind::FoldTable { table, .. } => {
                    next_value(table, at, |key, value| Flow::Next(Item::keyed(key, value)))
                }
                Kind::BatchTable { reducer, table } => next_group(table, at, *reducer, moment),
                Kind::CountTable { table, .. } | Kind::SumTable { table } => {
                    if *at >= table.len() {
                        table.clear();
                        return Drained::Empty;
                    }
                    let (key, &mut n) = table.get(*at);
                    *at += 1;
                    Drained::Some(match Obj::from_owned(ffi::PyLong_FromLongLong(n)) {
                        Some(count) => Flow::Next(Item::keyed(key, count)),
                        None => Flow::Broken,
                    })
                }
                Kind::CountRecords { records: n } if *n > 0 => once(at, ffi::PyLong_FromLongLong(*n)),
                Kind::SumCounts { sum, any: true } => once(at, ffi::PyLong_FromLongLong(*sum)),
                Kind::SortAll { ascending, kept } => match kept.take() {
                    Some(list) => Drained::Some(sorted(py, list, *ascending)),
                    None => Drained::Empty,
                },
                Kind::DistinctSet { kept } => match kept.take() {
                    Some(dict) => Drained::Some(match Obj::from_owned(ffi::PyDict_Keys(dict.as_ptr())) {
                        Some(list) => Flow::List(list),
                        None => Flow::Broken,
                    }),
                    None => Drained::Empty,
                },
                Kind::AvgPartial { sum, count } => average(sum, count, true),
                Kind::AvgFinal { sum, count } => average(sum, count, false),
                _ => Drained::Empty,
            }
        }
    }
}

/// # Safety
/// The GIL is held; `value` is a new reference or NULL with an exception set.
unsafe fn once(at: &mut usize, value: *mut ffi::PyObject) -> Drained {
    // SAFETY: as for this function.
    let value = unsafe { Obj::from_owned(value) };
    if std::mem::replace(at, 1) > 0 {
        return Drained::Empty;
    }
    Drained::Some(value.map_or(Flow::Broken, |value| Flow::Next(Item::plain(value))))
}

/// The next key whose accumulator was not dropped.
fn next_value(table: &mut Accumulators, at: &mut usize, emit: impl FnOnce(&[u8], Obj) -> Flow) -> Drained {
    while *at < table.len() {
        let (key, value) = table.get(*at);
        *at += 1;
        if let Some(value) = value.take() {
            return Drained::Some(emit(key, value));
        }
    }
    table.clear();
    Drained::Empty
}

/// `reducer(key, list)`, keys in reverse order of their first appearance.
///
/// # Safety
/// The GIL is held; `reducer` is alive.
unsafe fn next_group(table: &mut Accumulators, at: &mut usize, reducer: Function, moment: &Moment) -> Drained {
    moment.at(Spot::Unable);
    while *at < table.len() {
        let (key, group) = table.get(table.len() - 1 - *at);
        *at += 1;
        let Some(group) = group.take() else { continue };
        // SAFETY: the GIL is held; the key's bytes are in the table.
        let flow = unsafe {
            match new_text(key) {
                None => Flow::Broken,
                Some(key) => match call2(reducer, &key, &group) {
                    Err(_) => Flow::Failed,
                    Ok(value) if refuses_coroutine(&value) => Flow::Refused(COROUTINE_IN_REDUCER),
                    Ok(value) => match pair_dict(&key, &value) {
                        Ok(dict) => Flow::Next(Item::plain(dict)),
                        Err(raised) => raised.into(),
                    },
                },
            }
        };
        return Drained::Some(flow);
    }
    table.clear();
    Drained::Empty
}

/// Sorts a list in place.
fn sorted(py: Python<'_>, list: Obj, ascending: bool) -> Flow {
    // SAFETY: the GIL is held, the list is alive.
    let bound = unsafe { Bound::from_borrowed_ptr(py, list.as_ptr()) };
    // A Python function, so that a failed comparison has a traceback like one in a step.
    match runtime().sort_records.bind(py).call1((bound, ascending)) {
        Ok(_) => Flow::List(list),
        Err(e) => {
            errors::restore(py, e);
            Flow::Failed
        }
    }
}

/// The pair (sum, count), or the quotient.
///
/// # Safety
/// The GIL is held.
unsafe fn average(sum: &mut Sum, count: &mut i64, pair: bool) -> Drained {
    let records = std::mem::take(count);
    if records == 0 {
        return Drained::Empty;
    }
    // SAFETY: the GIL is held; the tuple takes over both references.
    unsafe {
        let objects = std::mem::replace(sum, Sum::Nothing)
            .object()
            .and_then(|sum| Ok((sum, Obj::from_owned(ffi::PyLong_FromLongLong(records)).ok_or(Raised)?)));
        let Ok((sum, records)) = objects else {
            return Drained::Some(Flow::Broken);
        };
        let result = if pair {
            ffi::PyTuple_Pack(2, sum.as_ptr(), records.as_ptr())
        } else {
            ffi::PyNumber_TrueDivide(sum.as_ptr(), records.as_ptr())
        };
        Drained::Some(match Obj::from_owned(result) {
            Some(value) => Flow::Next(Item::plain(value)),
            None => Flow::Broken,
        })
    }
}
