//! The bytes of a state, in snapshots of the log, in dumps and between nodes: versioned and checksummed.

use thiserror::Error;

use super::Registry;

/// Why bytes are no state.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("the registry's bytes are cut off or damaged: {0}")]
    Damaged(String),
    #[error("the registry was written by a newer version (format {0}); upgrade this node")]
    Newer(u16),
}

impl Registry {
    /// The state as bytes, equal for equal states.
    pub fn encode(&self) -> Vec<u8> {
        unimplemented!()
    }

    /// Reads and validates what `encode` made.
    pub fn decode(_bytes: &[u8]) -> Result<Registry, StateError> {
        unimplemented!()
    }
}
