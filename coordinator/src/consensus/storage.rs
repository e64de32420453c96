//! The log and the snapshot on disk.
