//! What fired an execution on this shard, as far as it does not travel: its input here, whom it answers, how deep it is.

use std::{any::Any, sync::Arc};

use oxigears_coordinator::stage::Input;
use oxigears_python_api::Origin;
use parking_lot::Mutex;

/// What fired an execution. The engine carries it in `Fired::here`.
#[derive(Default)]
pub struct Occasion {
    /// What the first stage reads on this shard; `None`: what all shards get.
    input: Mutex<Option<Input>>,
    /// Told when the first stage takes its input.
    begun: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// What the code may ask about its cause.
    pub origin: Option<Arc<dyn Origin>>,
    /// See `depth`; counts on this shard, if it is more than that of the thread that creates the execution.
    pub depth: u32,
}

impl Occasion {
    /// An occasion with an input of this shard's own.
    pub fn with_input(input: Input, origin: Option<Arc<dyn Origin>>) -> Occasion {
        Occasion {
            input: Mutex::new(Some(input)),
            origin,
            ..Occasion::default()
        }
    }

    /// An occasion whose code may ask about its cause.
    pub fn of_cause(origin: Arc<dyn Origin>) -> Occasion {
        Occasion {
            origin: Some(origin),
            ..Occasion::default()
        }
    }

    /// The same at a depth of events.
    pub fn at_depth(self, depth: u32) -> Occasion {
        Occasion { depth, ..self }
    }

    /// The same, which tells when its input is taken.
    pub fn telling(self, begun: impl FnOnce() + Send + 'static) -> Occasion {
        Occasion {
            begun: Mutex::new(Some(Box::new(begun))),
            ..self
        }
    }

    /// For the engine.
    pub fn carried(self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(self))
    }

    /// What the engine carries.
    pub fn of(here: &Option<Arc<dyn Any + Send + Sync>>) -> Option<&Occasion> {
        here.as_ref()?.downcast_ref()
    }

    /// The input; there is one only once.
    pub fn take_input(&self) -> Option<Input> {
        let begun = self.begun.lock().take();
        if let Some(begun) = begun {
            begun();
        }
        self.input.lock().take()
    }
}
