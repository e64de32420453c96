//! The steps of a chain: what each does with one record.

use pyo3::ffi;

use super::{
    item::{Item, Key, Raised, call1, key_text, pair_dict, refuses_coroutine},
    table::KeyTable,
    text,
    waiting::Slots,
};
use crate::{
    later::{Called, Moment, Spot, Ticket},
    obj::Obj,
};

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
    /// The record becomes an error with this text, which came back later.
    Error(String),
    /// The step wants no more records.
    Satisfied,
    /// The callback's value comes back later; the record that it was called with, if it may go on.
    Postponed(Ticket, Option<Item>),
}

impl From<Raised> for Flow {
    fn from(_: Raised) -> Flow {
        Flow::Broken
    }
}

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
    /// Records that were postponed here, and those behind them.
    pub(super) slots: Slots,
}

impl Kind {
    /// Takes one record.
    ///
    /// # Safety
    /// The GIL is held; the functions are alive.
    #[inline]
    pub(super) unsafe fn apply(&mut self, item: Item, moment: &Moment) -> Flow {
        // SAFETY: as for this function; the item is alive.
        unsafe {
            match self {
                Kind::Map(f) => {
                    moment.at(Spot::Able);
                    match moment.called(call1(*f, &item.value)) {
                        Called::Value(value) => Flow::Next(Item::plain(value)),
                        Called::Later(ticket) => Flow::Postponed(ticket, None),
                        other => other.into(),
                    }
                }
                Kind::FlatMap(f) => {
                    moment.at(Spot::Able);
                    match moment.called(call1(*f, &item.value)) {
                        Called::Value(value) => flattened(value),
                        Called::Later(ticket) => Flow::Postponed(ticket, None),
                        other => other.into(),
                    }
                }
                Kind::Filter(f) => {
                    moment.at(Spot::Able);
                    match moment.called(call1(*f, &item.value)) {
                        Called::Value(value) => filtered(&value, item),
                        Called::Later(ticket) => postponed(ticket, item),
                        other => other.into(),
                    }
                }
                Kind::ForEach(f) => {
                    moment.at(Spot::Able);
                    match moment.called(call1(*f, &item.value)) {
                        Called::Value(_) => Flow::Next(item),
                        Called::Later(ticket) => postponed(ticket, item),
                        other => other.into(),
                    }
                }
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
                Kind::ExtractKey(f) => match extract(*f, &item.value, moment) {
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
                _ => self.keep(item, moment),
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

/// What a value that came back later makes of its record.
///
/// # Safety
/// The GIL is held.
pub(super) unsafe fn come_back(kind: &mut Kind, value: Obj, item: Option<Item>) -> Flow {
    // SAFETY: as for this function.
    unsafe {
        match (kind, item) {
            (Kind::FlatMap(_), _) => flattened(value),
            (Kind::Filter(_), Some(item)) => filtered(&value, item),
            (Kind::ForEach(_), Some(item)) => Flow::Next(item),
            (Kind::Map(_), _) => Flow::Next(Item::plain(value)),
            (kind, item) => kind.take_later(value, item),
        }
    }
}

/// # Safety
/// The GIL is held.
#[inline]
unsafe fn flattened(value: Obj) -> Flow {
    // SAFETY: the value is alive.
    match unsafe { ffi::PyList_Check(value.as_ptr()) } {
        0 => Flow::Next(Item::plain(value)),
        _ => Flow::List(value),
    }
}

/// # Safety
/// The GIL is held.
#[inline]
unsafe fn filtered(value: &Obj, item: Item) -> Flow {
    // SAFETY: the value is alive.
    match unsafe { ffi::PyObject_IsTrue(value.as_ptr()) } {
        1 => Flow::Next(item),
        0 => Flow::Gone,
        _ => Flow::Failed,
    }
}

/// The record waits for what its callback gives.
///
/// # Safety
/// The GIL is held; the key's bytes are still alive.
#[cold]
unsafe fn postponed(ticket: Ticket, item: Item) -> Flow {
    // SAFETY: as for this function.
    match unsafe { item.detached() } {
        Ok(item) => Flow::Postponed(ticket, Some(item)),
        Err(raised) => raised.into(),
    }
}

impl From<Called> for Flow {
    #[cold]
    fn from(called: Called) -> Flow {
        match called {
            Called::Refused(text) => Flow::Refused(text),
            Called::Later(ticket) => Flow::Postponed(ticket, None),
            Called::Value(value) => Flow::Next(Item::plain(value)),
            Called::Raised => Flow::Failed,
        }
    }
}

/// The key text of a record.
///
/// # Safety
/// The GIL is held; `f` is alive.
#[inline]
pub(super) unsafe fn extract(f: Function, value: &Obj, moment: &Moment) -> Result<Obj, Flow> {
    moment.at(Spot::Unable);
    // SAFETY: as for this function; the value is alive.
    unsafe {
        let key = call1(f, value).map_err(|_| Flow::Failed)?;
        if refuses_coroutine(&key) {
            return Err(Flow::Refused(COROUTINE_IN_EXTRACTOR));
        }
        key_text(key).map_err(Flow::from)
    }
}
