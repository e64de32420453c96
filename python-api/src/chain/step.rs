//! The steps of a chain: what each does with one record.

use pyo3::ffi;

use super::{
    item::{Item, Key, Raised, call1, is_coroutine, key_text, pair_dict},
    table::KeyTable,
    text,
};
use crate::obj::Obj;

/// A function of the plan's table, which outlives the chain.
pub(super) type Function = *mut ffi::PyObject;

/// What became of a record.
pub(super) enum Flow {
    /// Goes on to the next step.
    Next(Item),
    /// Dropped or kept by the step.
    Gone,
    /// The elements of a list go on one by one.
    List(Obj),
    /// The callback raised; the exception is set.
    Failed,
    /// One of the engine's own operations raised; the exception is set.
    Broken,
    /// The record becomes an error with this text.
    Refused(&'static str),
    /// The step wants no more records.
    Satisfied,
}

impl From<Raised> for Flow {
    fn from(_: Raised) -> Flow {
        Flow::Broken
    }
}

pub(super) const COROUTINE_IN_STEP: &str = "coroutines in steps are not supported yet";
pub(super) const COROUTINE_IN_EXTRACTOR: &str = "coroutine are not allow on extractor";
pub(super) const COROUTINE_IN_REDUCER: &str = "coroutine are not allow on reduce";

/// Per key accumulators; `None` after a failure.
pub(super) type Accumulators = KeyTable<Option<Obj>>;

/// A sum of Python numbers, native as long as all are floats.
pub(super) enum Sum {
    Nothing,
    Float(f64),
    Object(Obj),
}

/// What a step does, and what it keeps.
pub(super) enum Kind {
    Map(Function),
    ToStr,
    ToFloat,
    Filter(Function),
    ForEach(Function),
    FlatMap(Function),
    Limit {
        end: u64,
        start: u64,
        seen: u64,
    },
    ExtractKey(Function),
    DropKey,
    KeyedToDict,
    Accumulate {
        f: Function,
        kept: Option<Obj>,
    },
    Fold {
        zero: Function,
        f: Function,
        kept: Option<Obj>,
    },
    ReduceTable {
        reducer: Function,
        table: Accumulators,
    },
    /// The accumulators are lists.
    BatchTable {
        reducer: Function,
        table: Accumulators,
    },
    FoldTable {
        extractor: Function,
        zero: Function,
        seq: Function,
        table: Accumulators,
    },
    CombineTable {
        zero: Function,
        comb: Function,
        table: Accumulators,
    },
    CountTable {
        extractor: Option<Function>,
        table: KeyTable<i64>,
    },
    SumTable {
        table: KeyTable<i64>,
    },
    CountRecords {
        records: i64,
    },
    SumCounts {
        sum: i64,
        any: bool,
    },
    /// A list.
    SortAll {
        ascending: bool,
        kept: Option<Obj>,
    },
    /// A dict, whose keys are the values in order of first appearance.
    DistinctSet {
        kept: Option<Obj>,
    },
    AvgPartial {
        sum: Sum,
        count: i64,
    },
    AvgFinal {
        sum: Sum,
        count: i64,
    },
}

/// One step.
pub(super) struct Step {
    pub(super) kind: Kind,
    /// Number of the operation among the stage's locals.
    pub(super) local: usize,
    /// Nanoseconds spent, when profiling.
    pub(super) spent_ns: u64,
}

impl Kind {
    /// Takes one record.
    ///
    /// # Safety
    /// The GIL is held; the functions are alive.
    #[inline]
    pub(super) unsafe fn apply(&mut self, item: Item) -> Flow {
        // SAFETY: as for this function; the item is alive.
        unsafe {
            match self {
                Kind::Map(f) => match call1(*f, &item.value) {
                    Ok(value) if is_coroutine(&value) => Flow::Refused(COROUTINE_IN_STEP),
                    Ok(value) => Flow::Next(Item::plain(value)),
                    Err(_) => Flow::Failed,
                },
                Kind::FlatMap(f) => match call1(*f, &item.value) {
                    Ok(value) if ffi::PyList_Check(value.as_ptr()) != 0 => Flow::List(value),
                    Ok(value) if is_coroutine(&value) => Flow::Refused(COROUTINE_IN_STEP),
                    Ok(value) => Flow::Next(Item::plain(value)),
                    Err(_) => Flow::Failed,
                },
                Kind::Filter(f) => filter(*f, item),
                Kind::ForEach(f) => match call1(*f, &item.value) {
                    Ok(value) if is_coroutine(&value) => Flow::Refused(COROUTINE_IN_STEP),
                    Ok(_) => Flow::Next(item),
                    Err(_) => Flow::Failed,
                },
                Kind::ToStr => match ffi::PyUnicode_CheckExact(item.value.as_ptr()) {
                    0 => match text::of_container(item.value.as_ptr()) {
                        Some(value) => Flow::Next(Item::plain(value)),
                        None => own(ffi::PyObject_Str(item.value.as_ptr())),
                    },
                    _ => Flow::Next(item),
                },
                Kind::ToFloat => own(ffi::PyNumber_Float(item.value.as_ptr())),
                Kind::Limit { end, start, seen } => {
                    let number = *seen;
                    *seen += 1;
                    match number {
                        n if n < *start => Flow::Gone,
                        n if n < *end => Flow::Next(item),
                        _ => Flow::Satisfied,
                    }
                }
                Kind::ExtractKey(f) => match extract(*f, &item.value) {
                    Ok(key) => Flow::Next(Item {
                        key: Key::Text(key),
                        value: item.value,
                    }),
                    Err(flow) => flow,
                },
                Kind::DropKey => Flow::Next(Item::plain(item.value)),
                Kind::KeyedToDict => match item.key.object().and_then(|key| pair_dict(&key, &item.value)) {
                    Ok(dict) => Flow::Next(Item::plain(dict)),
                    Err(raised) => raised.into(),
                },
                _ => self.keep(item),
            }
        }
    }
}

/// # Safety
/// The GIL is held; `ptr` is a new reference or NULL with an exception set.
#[inline]
unsafe fn own(ptr: *mut ffi::PyObject) -> Flow {
    // SAFETY: as for this function.
    match unsafe { Obj::from_owned(ptr) } {
        Some(value) => Flow::Next(Item::plain(value)),
        None => Flow::Broken,
    }
}

/// # Safety
/// The GIL is held; `f` is alive.
#[inline]
unsafe fn filter(f: Function, item: Item) -> Flow {
    // SAFETY: as for this function; the item is alive.
    unsafe {
        match call1(f, &item.value) {
            Ok(value) if is_coroutine(&value) => Flow::Refused(COROUTINE_IN_STEP),
            Ok(value) => match ffi::PyObject_IsTrue(value.as_ptr()) {
                1 => Flow::Next(item),
                0 => Flow::Gone,
                _ => Flow::Failed,
            },
            Err(_) => Flow::Failed,
        }
    }
}

/// The key text of a record.
///
/// # Safety
/// The GIL is held; `f` is alive.
#[inline]
pub(super) unsafe fn extract(f: Function, value: &Obj) -> Result<Obj, Flow> {
    // SAFETY: as for this function; the value is alive.
    unsafe {
        let key = call1(f, value).map_err(|_| Flow::Failed)?;
        if is_coroutine(&key) {
            return Err(Flow::Refused(COROUTINE_IN_EXTRACTOR));
        }
        key_text(key).map_err(Flow::from)
    }
}
