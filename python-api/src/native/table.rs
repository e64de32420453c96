//! From the builder's words to a plan and its table of functions.

use std::sync::Arc;

use oxigears_coordinator::{
    limits::PLAN_STEPS,
    plan::{FnId, KeysArgs, Mode, Op, Plan, Reader},
};
use pyo3::{
    prelude::*,
    types::{PyList, PyTuple},
};

use crate::{errors::gears_error, functions::Functions, functions::dump_functions, session::Session};

/// Collects functions and start values under numbers.
#[derive(Default)]
pub(super) struct Table {
    objects: Vec<Py<PyAny>>,
    names: Vec<String>,
}

impl Table {
    pub(super) fn add(&mut self, object: Bound<'_, PyAny>) -> FnId {
        // A start value may have a `__repr__` that raises, or a huge one.
        let mut name = match object.repr() {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => "<object without repr>".to_owned(),
        };
        if let Some((end, _)) = name.char_indices().nth(200) {
            name.truncate(end);
        }
        self.names.push(name);
        self.objects.push(object.unbind());
        (self.objects.len() - 1) as FnId
    }

    pub(super) fn optional(&mut self, object: Bound<'_, PyAny>) -> Option<FnId> {
        (!object.is_none()).then(|| self.add(object))
    }

    pub(super) fn reader(&mut self, reader: &Bound<'_, PyTuple>) -> PyResult<Reader> {
        let kind: String = reader.get_item(0)?.extract()?;
        let arg = |i: usize| reader.get_item(i);
        Ok(match kind.as_str() {
            "keys" => Reader::Keys(KeysArgs {
                pattern: arg(1)?.extract()?,
                no_scan: arg(2)?.extract()?,
                read_value: arg(3)?.extract()?,
                all_types: arg(4)?.extract()?,
            }),
            "keysonly" => Reader::KeysOnly {
                pattern: arg(1)?.extract()?,
                no_scan: arg(2)?.extract()?,
                count: arg(3)?.extract()?,
                generator: self.optional(arg(4)?),
            },
            "stream" => Reader::Stream {
                key: arg(1)?.extract()?,
                from_id: arg(2)?.extract()?,
            },
            "python" => Reader::Python {
                generator: self.add(arg(1)?),
            },
            _ => Reader::ShardsId,
        })
    }

    /// All steps of a builder.
    pub(super) fn ops(&mut self, steps: &Bound<'_, PyList>) -> PyResult<Vec<Op>> {
        if steps.len() > PLAN_STEPS {
            let text = format!(
                "the pipeline has {} steps, at most {PLAN_STEPS} are allowed",
                steps.len()
            );
            return Err(gears_error(steps.py(), text));
        }
        steps.iter().map(|step| self.op(step.cast::<PyTuple>()?)).collect()
    }

    /// The plan, with pickled functions if they travel, and the functions.
    pub(super) fn plan(
        self,
        py: Python<'_>,
        (reader, ops, mode): (Reader, Vec<Op>, Mode),
        session: &Arc<Session>,
        travels: bool,
    ) -> PyResult<(Plan, Functions)> {
        let code = match travels {
            true => dump_functions(py, &self.objects, session)?,
            false => Vec::new(),
        };
        let plan = Plan {
            reader,
            ops,
            mode,
            function_names: self.names,
            code,
            session: session.id().to_owned(),
            user: None,
        };
        Ok((plan, Functions::new(self.objects, session.clone())))
    }

    fn op(&mut self, step: &Bound<'_, PyTuple>) -> PyResult<Op> {
        let word: String = step.get_item(0)?.extract()?;
        let mut arg = |i: usize| -> PyResult<FnId> { Ok(self.add(step.get_item(i)?)) };
        Ok(match word.as_str() {
            "map" => Op::Map(arg(1)?),
            "str" => Op::ToStr,
            "filter" => Op::Filter(arg(1)?),
            "foreach" => Op::ForEach(arg(1)?),
            "flatmap" => Op::FlatMap(arg(1)?),
            "accumulate" => Op::Accumulate(arg(1)?),
            "limit" => Op::Limit {
                length: step.get_item(1)?.extract()?,
                start: step.get_item(2)?.extract()?,
            },
            "collect" => Op::Collect,
            "repartition" => Op::Repartition(arg(1)?),
            "localgroupby" => Op::LocalGroupBy {
                extractor: arg(1)?,
                reducer: arg(2)?,
            },
            "groupby" => Op::GroupBy {
                extractor: arg(1)?,
                reducer: arg(2)?,
            },
            "batchgroupby" => Op::BatchGroupBy {
                extractor: arg(1)?,
                reducer: arg(2)?,
            },
            "aggregate" => Op::Aggregate {
                zero: arg(1)?,
                seq: arg(2)?,
                comb: arg(3)?,
            },
            "aggregateby" => Op::AggregateBy {
                extractor: arg(1)?,
                zero: arg(2)?,
                seq: arg(3)?,
                comb: arg(4)?,
            },
            "localaggregateby" => Op::LocalAggregateBy {
                extractor: arg(1)?,
                zero: arg(2)?,
                seq: arg(3)?,
            },
            "count" => Op::Count,
            "countby" => Op::CountBy {
                extractor: self.optional(step.get_item(1)?),
            },
            "sort" => Op::Sort {
                reverse: step.get_item(1)?.extract()?,
            },
            "distinct" => Op::Distinct,
            "avg" => Op::Avg {
                extractor: self.optional(step.get_item(1)?),
            },
            other => {
                let text = format!("unknown step {other}");
                return Err(gears_error(step.py(), text));
            }
        })
    }
}
