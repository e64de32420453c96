//! Deliberately broken variants of single steps, by which the simulation shows that it would notice.
//!
//! Without the feature `broken` every question is answered with a constant `false`: nothing of this is in a release.

/// A step that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Entries are acknowledged before they are synced.
    NoSync,
    /// The vote is not written.
    ForgetVote,
    /// A damaged log is taken for what is left of it.
    TakeDamaged,
    /// A node whose log is lost keeps its number.
    KeepNumber,
    /// Copies of a request are applied again.
    ApplyAgain,
    /// A leader goes on although another group is seen.
    IgnoreOtherGroup,
    /// Any node without a group founds one at once.
    FoundAtOnce,
    /// A group takes changes before most masters vote in it.
    DecideAsFew,
}

/// Whether this step is broken now, on this thread.
#[cfg(not(feature = "broken"))]
#[inline(always)]
pub(crate) fn is_on(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "broken")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether this step is broken now, on this thread.
#[cfg(feature = "broken")]
pub(crate) fn is_on(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Breaks one step on this thread, or none.
#[cfg(all(test, feature = "broken"))]
pub(crate) fn set(mutant: Option<Mutant>) {
    ACTIVE.set(mutant);
}
