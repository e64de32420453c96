//! The compiled steps of a stage: one runner per stage drives records through a chain of fused steps.

mod build;
mod drain;
mod fused;
mod input;
mod invoker;
mod item;
mod keep;
mod native;
mod output;
mod runner;
mod state;
mod step;
mod table;
mod text;
mod waiting;

use std::sync::Arc;

pub use invoker::{Continuation, Invoked, Invoker};
pub(crate) use item::{Raised, refuses_coroutine};
pub(crate) use native::undecodable;
use oxigears_coordinator::{
    plan::{Output, Plan, Reader, Stage},
    stage::StageRunner,
};

use crate::{functions::Functions, interrupt::Interrupt, origin::Origin};

/// What the runners of one execution on one shard share.
#[derive(Clone)]
pub struct ExecContext {
    /// Stops running Python code.
    pub interrupt: Arc<Interrupt>,
    /// What fired the execution.
    pub origin: Option<Arc<dyn Origin>>,
    /// Number of shards that take part.
    pub participants: usize,
    /// This shard's number among them.
    pub me: usize,
    /// Measure the steps.
    pub profile: bool,
    /// This shard started the execution.
    pub is_initiator: bool,
    /// Error records of this shard stay in its own list, which stops its reader.
    pub errors_are_own: bool,
}

/// Makes one runner per stage.
pub fn compile(
    plan: &Plan,
    stages: &[Stage],
    functions: &Functions,
    ctx: ExecContext,
) -> Result<Vec<Box<dyn StageRunner>>, String> {
    let kept = functions.kept().cloned().unwrap_or_default();
    let mut runners: Vec<Box<dyn StageRunner>> = Vec::with_capacity(stages.len());
    for (number, stage) in stages.iter().enumerate() {
        let generator = match (number, &plan.reader) {
            (0, Reader::Python { generator }) => Some(functions.get(*generator)?),
            _ => None,
        };
        let state = state::State::new(
            stage,
            number == 0,
            generator,
            functions,
            &ctx,
            &kept,
            is_result(stages, number),
        )?;
        runners.push(Box::new(runner::Runner::new(state)));
    }
    Ok(runners)
}

/// What leaves the stage goes to the client as it is: nothing but a collect may follow.
fn is_result(stages: &[Stage], number: usize) -> bool {
    match stages[number].output {
        Output::Result => true,
        Output::Collect => stages
            .get(number + 1)
            .is_some_and(|next| next.passes && next.output == Output::Result),
        Output::Shuffle { .. } => false,
    }
}
