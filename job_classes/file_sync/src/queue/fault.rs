//! Faults that tests build in on purpose. A simulation that finds nothing proves nothing, so each rule of the queue can be taken away, and its loss must be noticed.
//! Outside of tests no fault can be built in, and the compiler drops the questions.

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A result counts whatever attempt it is of.
    NoNames,
    /// A batch counts for each result that is found.
    CountsTwice,
    /// A batch is offered again without being taken from its worker.
    NoRevocation,
    /// What a holder split off is not looked for.
    NoChildren,
    /// A worker that was given up may still split.
    NoSeal,
    /// A batch that failed as a whole is not counted as failed.
    NoBatchFailure,
    /// A controller does not look whether there is a newer one.
    NoController,
    /// Whoever moved the file has the batch, though the record of the claim is another's.
    NoRecord,
    /// Without a worker the controller waits for ever.
    NoEnd,
}

#[cfg(test)]
thread_local! {
    static BUILT_IN: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Builds a fault into the queues of this thread, or repairs them.
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
