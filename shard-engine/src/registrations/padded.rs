//! A value with cache lines of its own: what one thread writes all the time is not to slow down others that use what lies
//! beside it.

/// Two lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);
