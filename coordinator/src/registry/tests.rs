//! The registry on its own.
