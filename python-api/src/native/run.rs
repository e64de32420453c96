//! `run()`: freezes a builder's steps into a plan and hands it to the engine.

use std::sync::Arc;

use oxigears_coordinator::{
    limits::PLAN_STEPS,
    plan::{FnId, KeysArgs, Mode, Op, Plan, Reader},
};
use pyo3::{
    prelude::*,
    types::{PyList, PyTuple},
};

use crate::{
    context::{self, Place},
    errors::gears_error,
    functions::{Functions, RunRequest, dump_functions},
    server::server,
    session::Session,
};

/// Makes the plan and starts it; gives the execution's id unless a script body asked, whose run starts later.
#[pyfunction]
pub(crate) fn run(
    py: Python<'_>,
    reader: &Bound<'_, PyTuple>,
    steps: &Bound<'_, PyList>,
    local: bool,
) -> PyResult<Option<String>> {
    let Some(session) = context::session().filter(|_| context::registered()) else {
        return Err(gears_error(py, "Can only run execution on registered gears thread"));
    };
    let nested = context::place() != Place::Script;
    if !nested && context::has_request() {
        return Err(gears_error(py, "Can not run more then 1 executions in a single script"));
    }
    let request = request(py, reader, steps, local, session, nested)?;
    if !nested {
        context::set_request(request);
        return Ok(None);
    }
    match py.detach(|| server().start_run(request)) {
        Ok(id) => Ok(Some(id)),
        Err(text) => Err(gears_error(py, text)),
    }
}

fn request(
    py: Python<'_>,
    reader: &Bound<'_, PyTuple>,
    steps: &Bound<'_, PyList>,
    local: bool,
    session: Arc<Session>,
    nested: bool,
) -> PyResult<RunRequest> {
    if steps.len() > PLAN_STEPS {
        let text = format!(
            "the pipeline has {} steps, at most {PLAN_STEPS} are allowed",
            steps.len()
        );
        return Err(gears_error(py, text));
    }
    let mut table = Table::default();
    let reader = table.reader(reader)?;
    let mut ops = Vec::with_capacity(steps.len());
    for step in steps.iter() {
        ops.push(table.op(step.cast::<PyTuple>()?)?);
    }
    let shards = server().cluster_size();
    if shards == 0 {
        return Err(gears_error(py, "Cluster is not initialized, can not start executions."));
    }
    let code = match !local && shards > 1 {
        true => dump_functions(py, &table.objects, &session)?,
        false => Vec::new(),
    };
    let plan = Plan {
        reader,
        ops,
        mode: if local { Mode::AsyncLocal } else { Mode::Async },
        function_names: table.names,
        code,
        session: session.id().to_owned(),
        user: None,
    };
    let functions = Functions::new(table.objects, session.clone());
    Ok(RunRequest {
        plan,
        functions,
        session,
        nested,
    })
}

/// Collects functions and start values under numbers.
#[derive(Default)]
struct Table {
    objects: Vec<Py<PyAny>>,
    names: Vec<String>,
}

impl Table {
    fn add(&mut self, object: Bound<'_, PyAny>) -> FnId {
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

    fn optional(&mut self, object: Bound<'_, PyAny>) -> Option<FnId> {
        (!object.is_none()).then(|| self.add(object))
    }

    fn reader(&mut self, reader: &Bound<'_, PyTuple>) -> PyResult<Reader> {
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
