//! From a stage's local operations to the steps of its chain.

use oxigears_coordinator::plan::Local;

use super::{
    step::{Function, Kind, Step, Sum},
    table::KeyTable,
    waiting::Slots,
};
use crate::functions::Functions;

/// The steps of a stage. Operations that together change nothing are left out: on one shard the second half of
/// `count`, `countby` and `distinct` sees each key once.
pub(super) fn steps(locals: &[Local], functions: &Functions) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::with_capacity(locals.len() + 1);
    for (local, op) in locals.iter().enumerate() {
        let before = local.checked_sub(1).map(|i| &locals[i]);
        let mut push = |kind| {
            steps.push(Step {
                kind,
                local,
                spent_ns: 0,
                slots: Slots::default(),
            })
        };
        match (before, op) {
            (Some(Local::CountRecords), Local::SumCounts) | (Some(Local::DistinctSet), Local::DistinctSet) => {}
            (Some(Local::CountTable { .. }), Local::SumTable) => push(Kind::KeyedToDict),
            (_, Local::SumTable) => {
                push(Kind::SumTable { table: KeyTable::new() });
                push(Kind::KeyedToDict);
            }
            (_, op) => push(kind(op, &|f| functions.get(f))?),
        }
    }
    Ok(steps)
}

fn kind(op: &Local, get: &dyn Fn(u32) -> Result<Function, String>) -> Result<Kind, String> {
    Ok(match *op {
        Local::Map(f) => Kind::Map(get(f)?),
        Local::ToStr => Kind::ToStr,
        Local::Filter(f) => Kind::Filter(get(f)?),
        Local::ForEach(f) => Kind::ForEach(get(f)?),
        Local::FlatMap(f) => Kind::FlatMap(get(f)?),
        Local::Accumulate(f) => Kind::Accumulate { f: get(f)?, kept: None },
        Local::Limit { length, start } => Kind::Limit {
            end: start.saturating_add(length),
            start,
            seen: 0,
        },
        Local::ExtractKey(f) => Kind::ExtractKey(get(f)?),
        Local::DropKey => Kind::DropKey,
        Local::ReduceTable { reducer } => Kind::ReduceTable {
            reducer: get(reducer)?,
            table: KeyTable::new(),
        },
        Local::BatchTable { reducer } => Kind::BatchTable {
            reducer: get(reducer)?,
            table: KeyTable::new(),
        },
        Local::FoldTable { extractor, zero, seq } => Kind::FoldTable {
            extractor: get(extractor)?,
            zero: get(zero)?,
            seq: get(seq)?,
            table: KeyTable::new(),
        },
        Local::CombineTable { zero, comb } => Kind::CombineTable {
            zero: get(zero)?,
            comb: get(comb)?,
            table: KeyTable::new(),
        },
        Local::KeyedToDict => Kind::KeyedToDict,
        Local::CountTable { extractor } => Kind::CountTable {
            extractor: extractor.map(get).transpose()?,
            table: KeyTable::new(),
        },
        Local::SumTable => Kind::SumTable { table: KeyTable::new() },
        Local::CountRecords => Kind::CountRecords { records: 0 },
        Local::SumCounts => Kind::SumCounts { sum: 0, any: false },
        Local::Fold { zero, f } => Kind::Fold {
            zero: get(zero)?,
            f: get(f)?,
            kept: None,
        },
        Local::SortAll { reverse } => Kind::SortAll {
            ascending: reverse,
            kept: None,
        },
        Local::DistinctSet => Kind::DistinctSet { kept: None },
        Local::ToFloat => Kind::ToFloat,
        Local::AvgPartial => Kind::AvgPartial {
            sum: Sum::Nothing,
            count: 0,
        },
        Local::AvgFinal => Kind::AvgFinal {
            sum: Sum::Nothing,
            count: 0,
        },
    })
}
