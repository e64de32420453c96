//! What RG.GETEXECUTION shows of an execution on one shard, and how it crosses shards.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::{
    engine::Execution,
    plan::{FnId, Op, Plan},
};

/// A primitive step as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    /// Step type (`map`, `repartition`, ...).
    pub kind: String,
    /// Time in it, in ms; 0 unless `ProfileExecutions` is on.
    pub duration_ms: u64,
    /// Display name.
    pub name: String,
    /// Text form of the argument.
    pub arg: String,
}

/// One shard's part of an execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecutionView {
    /// Status text.
    pub status: String,
    /// Acknowledgements that the initiator has.
    pub shards_received: u64,
    /// Completions that the initiator has.
    pub shards_completed: u64,
    /// Results held here; -1 while not finished.
    pub results: i64,
    /// Errors held here; empty while not finished.
    pub errors: Vec<String>,
    /// Time on worker threads, in ms.
    pub total_ms: u64,
    /// Time in the reader, in ms.
    pub read_ms: u64,
    /// Steps, last one first.
    pub steps: Vec<StepView>,
}

impl ExecutionView {
    /// Looks at an execution.
    pub fn of(execution: &Execution) -> ExecutionView {
        let phase = execution.phase();
        let (received, completed) = execution.counts();
        let (results, errors) = execution.with_outcome(|o| {
            let results: u64 = o.results.iter().map(|b| u64::from(b.records)).sum();
            (results as i64, o.errors.clone())
        });
        let over = phase.is_over();
        ExecutionView {
            status: phase.status().to_owned(),
            shards_received: received as u64,
            shards_completed: completed as u64,
            results: if over { results } else { -1 },
            errors: if over { errors } else { Vec::new() },
            total_ms: execution.total_ns.load(Ordering::Relaxed) / 1_000_000,
            read_ms: execution.read_ns.load(Ordering::Relaxed) / 1_000_000,
            steps: steps(&execution.plan, &op_durations_ns(execution)),
        }
    }

    /// Bytes for another shard.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads what another shard sent.
    pub fn decode(bytes: &[u8]) -> Option<ExecutionView> {
        postcard::from_bytes(bytes).ok()
    }
}

fn op_durations_ns(execution: &Execution) -> Vec<u64> {
    let mut sums = vec![0; execution.plan.ops.len()];
    let distributed = execution.is_distributed();
    let steps_ns = execution.with_outcome(|outcome| outcome.steps_ns.clone());
    for (stage, durations) in execution.plan.stages(distributed).iter().zip(steps_ns) {
        for (&op, ns) in stage.op_of.iter().zip(durations) {
            sums[op] += ns;
        }
    }
    sums
}

/// The primitive steps of a plan, last one first. The time of an operation stands at its first step.
fn steps(plan: &Plan, durations_ns: &[u64]) -> Vec<StepView> {
    let mut steps = vec![StepView {
        kind: "map".into(),
        duration_ms: 0,
        name: "RedisGearsPy_ToPyRecordMapper".into(),
        arg: String::new(),
    }];
    for (op, ns) in plan.ops.iter().zip(durations_ns) {
        for (number, (kind, name, function)) in primitive(op).into_iter().enumerate() {
            let arg = function
                .and_then(|f| plan.function_names.get(f as usize))
                .cloned()
                .unwrap_or_default();
            let duration_ms = if number == 0 { ns / 1_000_000 } else { 0 };
            steps.push(StepView {
                kind: kind.into(),
                duration_ms,
                name: name.into(),
                arg,
            });
        }
    }
    steps.reverse();
    steps
}

type Primitive = (&'static str, &'static str, Option<FnId>);

const TO_PYTHON: Primitive = ("map", "RedisGearsPy_ToPyRecordMapper", None);
const REPARTITION: Primitive = ("repartition", "repartition", None);
const COLLECT: Primitive = ("collect", "collect", None);
const FLAT: Primitive = ("flatmap", "flatmap", None);

fn map(f: Option<FnId>) -> Primitive {
    ("map", "RedisGearsPy_PyCallbackMapper", f)
}

fn flat_map(f: Option<FnId>) -> Primitive {
    ("map", "RedisGearsPy_PyCallbackFlatMapper", f)
}

fn accumulate(f: Option<FnId>) -> Primitive {
    ("accumulate", "RedisGearsPy_PyCallbackAccumulate", f)
}

fn extract(f: Option<FnId>) -> Primitive {
    ("extractkey", "RedisGearsPy_PyCallbackExtractor", f)
}

fn by_key(f: Option<FnId>) -> Primitive {
    ("accumulatebykey", "RedisGearsPy_PyCallbackAccumulateByKey", f)
}

fn aggregate_by(extractor: Option<FnId>, seq: Option<FnId>, comb: Option<FnId>) -> Vec<Primitive> {
    vec![
        extract(extractor),
        by_key(seq),
        TO_PYTHON,
        extract(None),
        REPARTITION,
        by_key(comb),
        TO_PYTHON,
    ]
}

/// What an operation compiles to in the terms that clients know.
fn primitive(op: &Op) -> Vec<Primitive> {
    match *op {
        Op::Map(f) => vec![map(Some(f))],
        Op::ToStr => vec![map(None)],
        Op::Filter(f) => vec![("filter", "RedisGearsPy_PyCallbackFilter", Some(f))],
        Op::ForEach(f) => vec![("foreach", "RedisGearsPy_PyCallbackForEach", Some(f))],
        Op::FlatMap(f) => vec![flat_map(Some(f)), FLAT],
        Op::Accumulate(f) => vec![accumulate(Some(f))],
        Op::Limit { .. } => vec![("limit", "limit", None)],
        Op::Collect => vec![COLLECT],
        Op::Repartition(f) => vec![extract(Some(f)), REPARTITION, ("map", "GetValueMapper", None)],
        Op::LocalGroupBy { extractor, reducer } => vec![extract(Some(extractor)), by_key(Some(reducer)), TO_PYTHON],
        Op::GroupBy { extractor, reducer } => {
            vec![extract(Some(extractor)), REPARTITION, by_key(Some(reducer)), TO_PYTHON]
        }
        Op::BatchGroupBy { extractor, reducer } => vec![
            extract(Some(extractor)),
            REPARTITION,
            ("group", "group", None),
            ("reduce", "RedisGearsPy_PyCallbackReducer", Some(reducer)),
            TO_PYTHON,
        ],
        Op::Aggregate { seq, comb, .. } => vec![accumulate(Some(seq)), COLLECT, accumulate(Some(comb))],
        Op::AggregateBy {
            extractor, seq, comb, ..
        } => aggregate_by(Some(extractor), Some(seq), Some(comb)),
        Op::LocalAggregateBy { extractor, seq, .. } => vec![extract(Some(extractor)), by_key(Some(seq)), TO_PYTHON],
        Op::Count => vec![accumulate(None), COLLECT, accumulate(None)],
        Op::CountBy { extractor } => aggregate_by(extractor, None, None),
        Op::Sort { .. } => vec![
            accumulate(None),
            COLLECT,
            accumulate(None),
            map(None),
            flat_map(None),
            FLAT,
        ],
        Op::Distinct => vec![accumulate(None), COLLECT, accumulate(None), flat_map(None), FLAT],
        Op::Avg { extractor } => vec![map(extractor), accumulate(None), COLLECT, accumulate(None), map(None)],
    }
}
