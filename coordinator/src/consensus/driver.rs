//! The thread around a member: clock, queue, disk.
