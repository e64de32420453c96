//! Groups on a simulated network, disk and clock.

pub(super) mod disk;
