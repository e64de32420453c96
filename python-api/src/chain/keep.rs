//! The accumulating steps: what they do with one record.

use pyo3::ffi;

use super::{
    item::{Item, Key, Raised, call2, call3, key_text},
    step::{Accumulators, Flow, Function, Kind, Sum, extract},
};
use crate::{
    codec::key_bytes,
    later::{Called, Moment, Spot},
    obj::Obj,
    runtime::runtime,
};

impl Kind {
    /// Forgets what the step keeps. Called with the GIL held.
    pub(super) fn reset(&mut self) {
        match self {
            Kind::Accumulate { kept, .. }
            | Kind::Fold { kept, .. }
            | Kind::SortAll { kept, .. }
            | Kind::DistinctSet { kept } => *kept = None,
            Kind::ReduceTable { table, .. }
            | Kind::BatchTable { table, .. }
            | Kind::FoldTable { table, .. }
            | Kind::CombineTable { table, .. } => table.clear(),
            Kind::CountTable { table, .. } | Kind::SumTable { table } => table.clear(),
            Kind::Limit { seen, .. } => *seen = 0,
            Kind::CountRecords { records } => *records = 0,
            Kind::SumCounts { sum, any } => (*sum, *any) = (0, false),
            Kind::AvgPartial { sum, count } | Kind::AvgFinal { sum, count } => (*sum, *count) = (Sum::Nothing, 0),
            Kind::Map(_)
            | Kind::ToStr
            | Kind::ToFloat
            | Kind::Filter(_)
            | Kind::ForEach(_)
            | Kind::FlatMap(_)
            | Kind::ExtractKey(_)
            | Kind::DropKey
            | Kind::KeyedToDict => {}
        }
    }

    /// The step is after each record as it was before.
    pub(super) fn keeps_nothing(&self) -> bool {
        matches!(
            self,
            Kind::Map(_)
                | Kind::ToStr
                | Kind::ToFloat
                | Kind::Filter(_)
                | Kind::ForEach(_)
                | Kind::FlatMap(_)
                | Kind::ExtractKey(_)
                | Kind::DropKey
                | Kind::KeyedToDict
        )
    }

    /// The step keeps Python objects, or may do so.
    pub(super) fn holds_objects(&self) -> bool {
        match self {
            Kind::Accumulate { kept, .. }
            | Kind::Fold { kept, .. }
            | Kind::SortAll { kept, .. }
            | Kind::DistinctSet { kept } => kept.is_some(),
            Kind::ReduceTable { .. }
            | Kind::BatchTable { .. }
            | Kind::FoldTable { .. }
            | Kind::CombineTable { .. }
            | Kind::CountTable { .. }
            | Kind::SumTable { .. } => true,
            Kind::AvgPartial { sum, .. } | Kind::AvgFinal { sum, .. } => matches!(sum, Sum::Object(_)),
            Kind::Map(_)
            | Kind::ToStr
            | Kind::ToFloat
            | Kind::Filter(_)
            | Kind::ForEach(_)
            | Kind::FlatMap(_)
            | Kind::Limit { .. }
            | Kind::ExtractKey(_)
            | Kind::DropKey
            | Kind::KeyedToDict
            | Kind::CountRecords { .. }
            | Kind::SumCounts { .. } => false,
        }
    }

    /// Takes one record into what the step keeps.
    ///
    /// # Safety
    /// The GIL is held; the functions are alive.
    pub(super) unsafe fn keep(&mut self, item: Item, moment: &Moment) -> Flow {
        // SAFETY: as for this function; the item is alive.
        unsafe {
            match self {
                Kind::Accumulate { f, kept } => {
                    // Taken out: a failure throws it away.
                    let before = kept.take().unwrap_or_else(|| Obj::none());
                    moment.at(Spot::Able);
                    settle(kept, moment.called(call2(*f, &before, &item.value)), Flow::Failed)
                }
                Kind::Fold { zero, f, kept } => {
                    moment.at(Spot::Able);
                    let result = started(kept.take(), *zero).and_then(|a| call2(*f, &a, &item.value));
                    settle(kept, moment.called(result), Flow::Broken)
                }
                Kind::ReduceTable { reducer, table } => reduce(table, (*reducer, None), &item, moment, Flow::Failed),
                Kind::CombineTable { zero, comb, table } => {
                    reduce(table, (*comb, Some(*zero)), &item, moment, Flow::Broken)
                }
                Kind::FoldTable {
                    extractor,
                    zero,
                    seq,
                    table,
                } => match extract(*extractor, &item.value, moment) {
                    Ok(key) => {
                        let keyed = Item {
                            key: Key::Text(key),
                            value: item.value,
                        };
                        reduce(table, (*seq, Some(*zero)), &keyed, moment, Flow::Broken)
                    }
                    Err(Flow::Failed) => Flow::Broken,
                    Err(flow) => flow,
                },
                Kind::BatchTable { table, .. } => gather(table, &item),
                Kind::CountTable { extractor, table } => {
                    let key = match extractor {
                        Some(f) => extract(*f, &item.value, moment),
                        None => key_text(item.value).map_err(Flow::from),
                    };
                    let mut spare = Vec::new();
                    match key {
                        Ok(key) => match key_bytes(key.as_ptr(), &mut spare) {
                            Ok(bytes) => {
                                *table.entry(bytes, || 0) += 1;
                                Flow::Gone
                            }
                            Err(_) => Flow::Broken,
                        },
                        Err(Flow::Failed) => Flow::Broken,
                        Err(flow) => flow,
                    }
                }
                Kind::SumTable { table } => {
                    let mut spare = Vec::new();
                    let n = ffi::PyLong_AsLongLong(item.value.as_ptr());
                    if n == -1 && !ffi::PyErr_Occurred().is_null() {
                        return Flow::Broken;
                    }
                    match item.key.bytes(&mut spare) {
                        Ok(key) => {
                            let sum = table.entry(key, || 0);
                            *sum = sum.saturating_add(n);
                            Flow::Gone
                        }
                        Err(raised) => raised.into(),
                    }
                }
                Kind::CountRecords { records } => {
                    *records += 1;
                    Flow::Gone
                }
                Kind::SumCounts { sum, any } => {
                    let n = ffi::PyLong_AsLongLong(item.value.as_ptr());
                    if n == -1 && !ffi::PyErr_Occurred().is_null() {
                        return Flow::Broken;
                    }
                    (*sum, *any) = (sum.saturating_add(n), true);
                    Flow::Gone
                }
                Kind::SortAll { kept, .. } => append(kept, &item.value).map_or_else(Flow::from, |()| Flow::Gone),
                Kind::DistinctSet { kept } => distinct(kept, &item.value),
                Kind::AvgPartial { sum, count } => add(sum, &item.value, count, 1),
                Kind::AvgFinal { sum, count } => add_pair(sum, count, &item.value),
                _ => Flow::Next(item),
            }
        }
    }
}

impl Kind {
    /// Takes an accumulator that came back later; `keyed` has the key that it belongs to.
    ///
    /// # Safety
    /// The GIL is held.
    pub(super) unsafe fn take_later(&mut self, value: Obj, keyed: Option<Item>) -> Flow {
        match self {
            Kind::Accumulate { kept, .. } | Kind::Fold { kept, .. } => *kept = Some(value),
            Kind::ReduceTable { table, .. } | Kind::CombineTable { table, .. } | Kind::FoldTable { table, .. } => {
                let mut spare = Vec::new();
                // SAFETY: the GIL is held; a record that waited has a key of its own.
                match keyed.as_ref().map(|item| unsafe { item.key.bytes(&mut spare) }) {
                    Some(Ok(key)) => *table.entry(key, || None) = Some(value),
                    Some(Err(raised)) => return raised.into(),
                    None => {}
                }
            }
            _ => {}
        }
        Flow::Gone
    }
}

/// Stores a callback's new accumulator.
fn settle(kept: &mut Option<Obj>, called: Called, failed: Flow) -> Flow {
    match called {
        Called::Value(value) => {
            *kept = Some(value);
            Flow::Gone
        }
        Called::Raised => failed,
        other => other.into(),
    }
}

/// The start value rule: a falsy accumulator is replaced by a deep copy of `zero`.
///
/// # Safety
/// The GIL is held; `zero` is alive.
unsafe fn started(kept: Option<Obj>, zero: Function) -> Result<Obj, Raised> {
    // SAFETY: as for this function.
    unsafe {
        if let Some(kept) = kept {
            match ffi::PyObject_IsTrue(kept.as_ptr()) {
                1 => return Ok(kept),
                0 => {}
                _ => return Err(Raised),
            }
        }
        let kind = ffi::Py_TYPE(zero);
        if kind == &raw mut ffi::PyLong_Type
            || kind == &raw mut ffi::PyFloat_Type
            || kind == &raw mut ffi::PyUnicode_Type
            || zero == ffi::Py_None()
        {
            return Ok(Obj::from_borrowed(zero));
        }
        if kind == &raw mut ffi::PyList_Type && ffi::PyList_GET_SIZE(zero) == 0 {
            return Obj::from_owned(ffi::PyList_New(0)).ok_or(Raised);
        }
        if kind == &raw mut ffi::PyDict_Type && ffi::PyDict_Size(zero) == 0 {
            return Obj::from_owned(ffi::PyDict_New()).ok_or(Raised);
        }
        let args = [zero];
        let copy = ffi::PyObject_Vectorcall(runtime().deepcopy.as_ptr(), args.as_ptr(), 1, std::ptr::null_mut());
        Obj::from_owned(copy).ok_or(Raised)
    }
}

/// `f(key, accumulator, value)`; without `zero` the first accumulator is `None`. A failure drops the key's
/// accumulator.
///
/// # Safety
/// The GIL is held; the functions are alive.
unsafe fn reduce(
    table: &mut Accumulators,
    (f, zero): (Function, Option<Function>),
    item: &Item,
    moment: &Moment,
    failed: Flow,
) -> Flow {
    let mut spare = Vec::new();
    // SAFETY: as for this function; the item and its key are alive.
    unsafe {
        let (key, text) = match (item.key.object(), item.key.bytes(&mut spare)) {
            (Ok(key), Ok(text)) => (key, text),
            _ => return Flow::Broken,
        };
        let kept = table.entry(text, || None);
        let before = match (kept.take(), zero) {
            (before, Some(zero)) => match started(before, zero) {
                Ok(before) => before,
                Err(raised) => return raised.into(),
            },
            (before, None) => before.unwrap_or_else(|| Obj::none()),
        };
        moment.at(Spot::Able);
        match settle(kept, moment.called(call3(f, &key, &before, &item.value)), failed) {
            // The key is all that is needed of the record.
            Flow::Postponed(ticket, None) => Flow::Postponed(
                ticket,
                Some(Item {
                    value: Obj::from_borrowed(key.as_ptr()),
                    key: Key::Text(key),
                }),
            ),
            flow => flow,
        }
    }
}

/// Appends a record to the list of its key.
///
/// # Safety
/// The GIL is held.
unsafe fn gather(table: &mut Accumulators, item: &Item) -> Flow {
    let mut spare = Vec::new();
    // SAFETY: as for this function; the item and its key are alive.
    unsafe {
        match item.key.bytes(&mut spare) {
            Ok(key) => append(table.entry(key, || None), &item.value).map_or_else(Flow::from, |()| Flow::Gone),
            Err(raised) => raised.into(),
        }
    }
}

/// # Safety
/// The GIL is held; `list` holds a list or nothing yet.
unsafe fn append(list: &mut Option<Obj>, value: &Obj) -> Result<(), Raised> {
    // SAFETY: as for this function.
    unsafe {
        if list.is_none() {
            *list = Some(Obj::from_owned(ffi::PyList_New(0)).ok_or(Raised)?);
        }
        match list {
            Some(list) if ffi::PyList_Append(list.as_ptr(), value.as_ptr()) == 0 => Ok(()),
            _ => Err(Raised),
        }
    }
}

/// # Safety
/// The GIL is held; `kept` holds a dict or nothing yet.
unsafe fn distinct(kept: &mut Option<Obj>, value: &Obj) -> Flow {
    // SAFETY: as for this function.
    unsafe {
        let dict = match kept.take() {
            Some(dict) => dict,
            None => match Obj::from_owned(ffi::PyDict_New()) {
                Some(dict) => dict,
                None => return Flow::Broken,
            },
        };
        // Keeps the first of equal values. A failure throws the set away, as in every aggregate.
        if ffi::PyDict_SetDefault(dict.as_ptr(), value.as_ptr(), ffi::Py_None()).is_null() {
            return Flow::Broken;
        }
        *kept = Some(dict);
        Flow::Gone
    }
}

/// Adds a number; a failure throws sum and count away.
///
/// # Safety
/// The GIL is held.
unsafe fn add(sum: &mut Sum, value: &Obj, count: &mut i64, records: i64) -> Flow {
    // SAFETY: as for this function; a float is read as what it is.
    unsafe {
        let is_float = ffi::PyFloat_CheckExact(value.as_ptr()) != 0;
        let added = match std::mem::replace(sum, Sum::Nothing) {
            Sum::Nothing if is_float => Sum::Float(0.0 + ffi::PyFloat_AS_DOUBLE(value.as_ptr())),
            Sum::Float(x) if is_float => Sum::Float(x + ffi::PyFloat_AS_DOUBLE(value.as_ptr())),
            before => match before
                .object()
                .and_then(|before| Obj::from_owned(ffi::PyNumber_Add(before.as_ptr(), value.as_ptr())).ok_or(Raised))
            {
                Ok(after) => Sum::Object(after),
                Err(_) => {
                    *count = 0;
                    return Flow::Broken;
                }
            },
        };
        *sum = added;
        *count += records;
        Flow::Gone
    }
}

/// Adds a pair (sum, count).
///
/// # Safety
/// The GIL is held.
unsafe fn add_pair(sum: &mut Sum, count: &mut i64, pair: &Obj) -> Flow {
    // SAFETY: as for this function; the items of a tuple of two are alive as long as the tuple.
    unsafe {
        if ffi::PyTuple_CheckExact(pair.as_ptr()) == 0 || ffi::PyTuple_GET_SIZE(pair.as_ptr()) != 2 {
            return Flow::Refused("avg got a record that is no pair of sum and count");
        }
        let part = Obj::from_borrowed(ffi::PyTuple_GET_ITEM(pair.as_ptr(), 0));
        let records = ffi::PyLong_AsLongLong(ffi::PyTuple_GET_ITEM(pair.as_ptr(), 1));
        if records == -1 && !ffi::PyErr_Occurred().is_null() {
            return Flow::Broken;
        }
        add(sum, &part, count, records)
    }
}

impl Sum {
    /// The sum as a Python number; 0 of nothing.
    ///
    /// # Safety
    /// The GIL is held.
    pub(super) unsafe fn object(self) -> Result<Obj, Raised> {
        // SAFETY: as for this function.
        unsafe {
            match self {
                Sum::Nothing => Obj::from_owned(ffi::PyLong_FromLong(0)).ok_or(Raised),
                Sum::Float(x) => Obj::from_owned(ffi::PyFloat_FromDouble(x)).ok_or(Raised),
                Sum::Object(object) => Ok(object),
            }
        }
    }
}
