//! What a script asked for: a reader and operations, and how they are cut into stages.
//!
//! A plan knows callbacks only as numbers into its function table; it never looks into their code.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits;

/// Number of a callback in the plan's function table.
pub type FnId = u32;

/// Where the records of an execution come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reader {
    /// KeysReader: records are dicts of event, key, type, value.
    Keys(KeysArgs),
    /// KeysOnlyReader: records are key names.
    KeysOnly {
        /// Glob pattern, or the exact name with `no_scan`.
        pattern: Vec<u8>,
        /// Look at exactly one key.
        no_scan: bool,
        /// Keys to look at in one lock slice; text as the script gave it, checked like SCAN's COUNT.
        count: String,
        /// Function that gives (pattern, no_scan) on each shard.
        generator: Option<FnId>,
    },
    /// StreamReader: entries of one stream with an id greater than `from_id`.
    Stream {
        /// Name of the stream.
        key: Vec<u8>,
        /// Exclusive lower bound, as the script gave it.
        from_id: String,
    },
    /// PythonReader: what the function yields on each shard.
    Python {
        /// The generator function.
        generator: FnId,
    },
    /// ShardsIDReader: one record per shard, its id.
    ShardsId,
    /// What a registration fires: its records come with the execution.
    Command,
}

/// Arguments of KeysReader in run mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeysArgs {
    /// Glob pattern, or the exact name with `no_scan`.
    pub pattern: Vec<u8>,
    /// Read exactly one key; a missing one gives a record as well.
    pub no_scan: bool,
    /// Records hold type and value.
    pub read_value: bool,
    /// Give values of sets, sorted sets and streams, and the type word `stream`.
    pub all_types: bool,
}

/// An operation as the script named it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Op {
    Map(FnId),
    /// The `map(str)` that `run` appends.
    ToStr,
    Filter(FnId),
    ForEach(FnId),
    FlatMap(FnId),
    Accumulate(FnId),
    /// Passes records number `start` to `start + length - 1` of each shard.
    Limit {
        length: u64,
        start: u64,
    },
    Collect,
    Repartition(FnId),
    LocalGroupBy {
        extractor: FnId,
        reducer: FnId,
    },
    GroupBy {
        extractor: FnId,
        reducer: FnId,
    },
    BatchGroupBy {
        extractor: FnId,
        reducer: FnId,
    },
    /// `zero` is a number of the function table as well: the pickled start value.
    Aggregate {
        zero: FnId,
        seq: FnId,
        comb: FnId,
    },
    AggregateBy {
        extractor: FnId,
        zero: FnId,
        seq: FnId,
        comb: FnId,
    },
    LocalAggregateBy {
        extractor: FnId,
        zero: FnId,
        seq: FnId,
    },
    Count,
    CountBy {
        extractor: Option<FnId>,
    },
    Sort {
        reverse: bool,
    },
    Distinct,
    Avg {
        extractor: Option<FnId>,
    },
}

/// Which shards take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// All shards.
    Async,
    /// This shard only.
    AsyncLocal,
}

/// A frozen pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Where records come from.
    pub reader: Reader,
    /// Operations in order.
    pub ops: Vec<Op>,
    /// Which shards take part.
    pub mode: Mode,
    /// `repr` of each entry of the function table, shown by RG.GETEXECUTION.
    pub function_names: Vec<String>,
    /// The pickled function table; empty when the execution stays on this shard.
    pub code: Vec<u8>,
    /// Name of the session that the functions belong to.
    pub session: String,
    /// ACL user with whose rights the functions run commands and keys are read; `None`: all rights.
    pub user: Option<String>,
}

/// A step that runs inside one stage on one shard.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Local {
    Map(FnId),
    ToStr,
    Filter(FnId),
    ForEach(FnId),
    FlatMap(FnId),
    Accumulate(FnId),
    Limit {
        length: u64,
        start: u64,
    },
    /// Plain record -> keyed record (key text of the extractor's value).
    ExtractKey(FnId),
    /// Keyed record -> plain record (the record itself).
    DropKey,
    /// Keyed records -> per key `reducer(key, a, record)`; emits `{'key', 'value'}` at the end.
    ReduceTable {
        reducer: FnId,
    },
    /// Keyed records -> per key list, `reducer(key, list)`; emits `{'key', 'value'}` at the end.
    BatchTable {
        reducer: FnId,
    },
    /// Plain records -> per key `seq(key?, a, record)` with the start value rule; emits keyed (key, a).
    /// `seq` has the two-argument form `seq(key, a, record)` for aggregateby.
    FoldTable {
        extractor: FnId,
        zero: FnId,
        seq: FnId,
    },
    /// Keyed (key, a) -> per key `comb(key, a, value)` with the start value rule; emits `{'key', 'value'}`.
    CombineTable {
        zero: FnId,
        comb: FnId,
    },
    /// Keyed (key, value) -> `{'key', 'value'}`.
    KeyedToDict,
    /// Plain records -> number per key; emits keyed (key, int).
    CountTable {
        extractor: Option<FnId>,
    },
    /// Keyed (key, int) -> sum per key; emits `{'key', 'value'}`.
    SumTable,
    /// Counts records; emits one int unless there was none.
    CountRecords,
    /// Adds ints; emits one int unless there was none.
    SumCounts,
    /// `zero`, then `f(a, record)` with the start value rule; emits one record unless there was none.
    Fold {
        zero: FnId,
        f: FnId,
    },
    /// Keeps all, sorts at the end.
    SortAll {
        reverse: bool,
    },
    /// Keeps distinct values, emits them at the end.
    DistinctSet,
    /// `float(record)`.
    ToFloat,
    /// Adds and counts; emits the pair (sum, count) unless there was none.
    AvgPartial,
    /// Pairs -> quotient.
    AvgFinal,
}

/// What leaves a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The execution's result on this shard.
    Result,
    /// Every record moves to the initiator.
    Collect,
    /// Keyed records move to the shard that owns the key's slot; `with_key` tells whether the key travels along.
    Shuffle {
        /// The next stage needs the key.
        with_key: bool,
    },
}

/// Steps between two exchanges.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// What arrives are keyed records.
    pub keyed_input: bool,
    /// The steps.
    pub locals: Vec<Local>,
    /// For each step the number of the operation that it belongs to.
    pub op_of: Vec<usize>,
    /// Where the records go.
    pub output: Output,
    /// Records go on as the bytes that came: there are no steps, and the bytes are fit for where they go. A shuffle
    /// writes for a stage on the same shard that makes objects of them (see `tag::LOCAL`), so what it brings is read.
    pub passes: bool,
    /// The user's word for the last step of the stage, for error texts.
    pub last_step: &'static str,
}

/// A plan that cannot be run.
#[derive(Debug, Error, PartialEq)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("the plan has {0} steps, at most {max} are allowed", max = limits::PLAN_STEPS)]
    TooManySteps(usize),
    #[error("the plan has {0} bytes, at most {max} are allowed", max = limits::PLAN_BYTES)]
    TooLarge(usize),
    #[error("step {step} names function {function}, but the plan has only {known}")]
    UnknownFunction { step: usize, function: FnId, known: usize },
    #[error("the plan can not be decoded: {0}")]
    Malformed(String),
}

impl Plan {
    /// The plan's bytes for other shards.
    pub fn encode(&self) -> Result<Vec<u8>, PlanError> {
        let bytes = postcard::to_allocvec(self).map_err(|e| PlanError::Malformed(e.to_string()))?;
        if bytes.len() > limits::PLAN_BYTES {
            return Err(PlanError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads and validates a plan.
    pub fn decode(bytes: &[u8]) -> Result<Plan, PlanError> {
        if bytes.len() > limits::PLAN_BYTES {
            return Err(PlanError::TooLarge(bytes.len()));
        }
        let plan: Plan = postcard::from_bytes(bytes).map_err(|e| PlanError::Malformed(e.to_string()))?;
        plan.validate()?;
        Ok(plan)
    }

    /// Refuses plans that are too long or name functions that they do not have.
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.ops.len() > limits::PLAN_STEPS {
            return Err(PlanError::TooManySteps(self.ops.len()));
        }
        let known = self.function_names.len();
        for (step, op) in self.ops.iter().enumerate() {
            if let Some(&function) = op.functions().iter().find(|&&f| f as usize >= known) {
                return Err(PlanError::UnknownFunction { step, function, known });
            }
        }
        let reader_function = match self.reader {
            Reader::Python { generator } => Some(generator),
            Reader::KeysOnly { generator, .. } => generator,
            _ => None,
        };
        match reader_function {
            Some(function) if function as usize >= known => Err(PlanError::UnknownFunction {
                step: 0,
                function,
                known,
            }),
            _ => Ok(()),
        }
    }

    /// The stages of the plan. Without other shards (`distributed` false) global steps pass through.
    pub fn stages(&self, distributed: bool) -> Vec<Stage> {
        Cutter::new(distributed).cut(&self.ops)
    }
}

impl Op {
    /// The functions that the operation names.
    pub fn functions(&self) -> Vec<FnId> {
        match *self {
            Op::Map(f) | Op::Filter(f) | Op::ForEach(f) | Op::FlatMap(f) | Op::Accumulate(f) | Op::Repartition(f) => {
                vec![f]
            }
            Op::LocalGroupBy { extractor, reducer }
            | Op::GroupBy { extractor, reducer }
            | Op::BatchGroupBy { extractor, reducer } => vec![extractor, reducer],
            Op::Aggregate { zero, seq, comb } => vec![zero, seq, comb],
            Op::AggregateBy {
                extractor,
                zero,
                seq,
                comb,
            } => vec![extractor, zero, seq, comb],
            Op::LocalAggregateBy { extractor, zero, seq } => vec![extractor, zero, seq],
            Op::CountBy { extractor } | Op::Avg { extractor } => extractor.into_iter().collect(),
            Op::ToStr | Op::Limit { .. } | Op::Collect | Op::Count | Op::Sort { .. } | Op::Distinct => vec![],
        }
    }

    /// The user's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Op::Map(_) | Op::ToStr => "map",
            Op::Filter(_) => "filter",
            Op::ForEach(_) => "foreach",
            Op::FlatMap(_) => "flatmap",
            Op::Accumulate(_) => "accumulate",
            Op::Limit { .. } => "limit",
            Op::Collect => "collect",
            Op::Repartition(_) => "repartition",
            Op::LocalGroupBy { .. } => "localgroupby",
            Op::GroupBy { .. } => "groupby",
            Op::BatchGroupBy { .. } => "batchgroupby",
            Op::Aggregate { .. } => "aggregate",
            Op::AggregateBy { .. } => "aggregateby",
            Op::LocalAggregateBy { .. } => "localaggregateby",
            Op::Count => "count",
            Op::CountBy { .. } => "countby",
            Op::Sort { .. } => "sort",
            Op::Distinct => "distinct",
            Op::Avg { .. } => "avg",
        }
    }
}

/// Cuts operations into stages.
struct Cutter {
    distributed: bool,
    /// All records sit on the initiator already.
    collected: bool,
    stages: Vec<Stage>,
    keyed_input: bool,
    locals: Vec<Local>,
    op_of: Vec<usize>,
    op: usize,
    last_step: &'static str,
}

impl Cutter {
    fn new(distributed: bool) -> Cutter {
        Cutter {
            distributed,
            collected: false,
            stages: Vec::new(),
            keyed_input: false,
            locals: Vec::new(),
            op_of: Vec::new(),
            op: 0,
            last_step: "reader",
        }
    }

    fn push(&mut self, local: Local) {
        self.locals.push(local);
        self.op_of.push(self.op);
    }

    fn end_stage(&mut self, output: Output, keyed_input: bool) {
        let is_shuffle = |output: Output| matches!(output, Output::Shuffle { .. });
        let from_shuffle = self.stages.last().is_some_and(|before| is_shuffle(before.output));
        self.stages.push(Stage {
            keyed_input: self.keyed_input,
            passes: self.locals.is_empty() && !from_shuffle && !is_shuffle(output),
            locals: std::mem::take(&mut self.locals),
            op_of: std::mem::take(&mut self.op_of),
            output,
            last_step: self.last_step,
        });
        self.keyed_input = keyed_input;
    }

    fn collect(&mut self) {
        if self.distributed && !self.collected {
            self.end_stage(Output::Collect, false);
            self.collected = true;
        }
    }

    /// Keyed records go to the owners of their keys; in the next stage they are keyed if `with_key`.
    fn shuffle(&mut self, with_key: bool) {
        if self.distributed {
            self.end_stage(Output::Shuffle { with_key }, with_key);
            self.collected = false;
        } else if !with_key {
            self.push(Local::DropKey);
        }
    }

    fn cut(mut self, ops: &[Op]) -> Vec<Stage> {
        for (number, op) in ops.iter().enumerate() {
            self.op = number;
            self.last_step = op.word();
            self.add(op);
        }
        self.end_stage(Output::Result, false);
        self.stages
    }

    fn add(&mut self, op: &Op) {
        match *op {
            Op::Map(f) => self.push(Local::Map(f)),
            Op::ToStr => self.push(Local::ToStr),
            Op::Filter(f) => self.push(Local::Filter(f)),
            Op::ForEach(f) => self.push(Local::ForEach(f)),
            Op::FlatMap(f) => self.push(Local::FlatMap(f)),
            Op::Accumulate(f) => self.push(Local::Accumulate(f)),
            Op::Limit { length, start } => self.push(Local::Limit { length, start }),
            Op::Collect => self.collect(),
            Op::Repartition(f) => {
                self.push(Local::ExtractKey(f));
                self.shuffle(false);
            }
            Op::LocalGroupBy { extractor, reducer } => {
                self.push(Local::ExtractKey(extractor));
                self.push(Local::ReduceTable { reducer });
            }
            Op::GroupBy { extractor, reducer } => {
                self.push(Local::ExtractKey(extractor));
                self.shuffle(true);
                self.push(Local::ReduceTable { reducer });
            }
            Op::BatchGroupBy { extractor, reducer } => {
                self.push(Local::ExtractKey(extractor));
                self.shuffle(true);
                self.push(Local::BatchTable { reducer });
            }
            Op::Aggregate { zero, seq, comb } => {
                self.push(Local::Fold { zero, f: seq });
                self.collect();
                self.push(Local::Fold { zero, f: comb });
            }
            Op::AggregateBy {
                extractor,
                zero,
                seq,
                comb,
            } => {
                self.push(Local::FoldTable { extractor, zero, seq });
                self.shuffle(true);
                self.push(Local::CombineTable { zero, comb });
            }
            Op::LocalAggregateBy { extractor, zero, seq } => {
                self.push(Local::FoldTable { extractor, zero, seq });
                self.push(Local::KeyedToDict);
            }
            Op::Count => {
                self.push(Local::CountRecords);
                self.collect();
                self.push(Local::SumCounts);
            }
            Op::CountBy { extractor } => {
                self.push(Local::CountTable { extractor });
                self.shuffle(true);
                self.push(Local::SumTable);
            }
            Op::Sort { reverse } => {
                self.collect();
                self.push(Local::SortAll { reverse });
            }
            Op::Distinct => {
                self.push(Local::DistinctSet);
                self.collect();
                self.push(Local::DistinctSet);
            }
            Op::Avg { extractor } => {
                self.push(extractor.map_or(Local::ToFloat, Local::Map));
                self.push(Local::AvgPartial);
                self.collect();
                self.push(Local::AvgFinal);
            }
        }
    }
}
