//! Groups on a simulated network, disk and clock.
