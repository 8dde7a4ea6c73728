//! Faults that tests build in on purpose. A simulation that finds nothing proves nothing, so each rule of membership can be taken away, and its loss must be
//! noticed. Outside of tests no fault can be built in, and the compiler drops the questions.

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// What comes late, from a session that was given up, counts.
    NoFencing,
    /// Whoever slept acts at once.
    NoFreeze,
    /// The smaller part of a split acts.
    NoMinority,
    /// Whoever was lost is back with its first word.
    NoReentry,
    /// A link counts if one of its ends names it.
    OneWay,
    /// What was forgotten returns by hearsay.
    NoTombstones,
    /// Tables that differ stay so.
    NoComparison,
    /// Of two lives of one name both act.
    NoElder,
}

#[cfg(test)]
thread_local! {
    static BUILT_IN: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Builds a fault into the machines of this thread, or repairs them.
#[cfg(test)]
pub(super) fn build_in(fault: Option<Fault>) {
    BUILT_IN.set(fault);
}

#[cfg(test)]
pub(super) fn has(fault: Fault) -> bool {
    BUILT_IN.get() == Some(fault)
}

#[cfg(not(test))]
pub(super) const fn has(_: Fault) -> bool {
    false
}
