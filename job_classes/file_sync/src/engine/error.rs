//! Why an operation was not carried out.

use crate::storage::{ErrorKind, StorageError};

/// An operation that was not carried out. Whatever the kind, nothing incomplete has the final name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct OperationError {
    /// What kind of failure, for programs.
    pub kind: Failure,
    /// What failed, on which file, and why, for people; no secrets.
    pub what: String,
}

/// Kinds of [`OperationError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The operation itself makes no sense: a path that leads out, a remote that cannot be read.
    Invalid,
    /// A remote cannot be opened: unknown, or wrongly configured.
    Remote,
    /// There is no source.
    SourceMissing,
    /// The source changed while it was read, or is not what the plan saw. It was left as it is.
    SourceChanged,
    /// The source is a link, a directory or a device, and no file.
    SourceKind,
    /// Somebody else has written or removed the destination since the plan was made. It was left as it is.
    DestinationChanged,
    /// The attempt was revoked: another one does this work. Nothing was changed.
    Revoked,
    /// The work was cancelled.
    Cancelled,
    /// Not permitted, or credentials were refused.
    Denied,
    /// No space, or a quota was reached.
    NoSpace,
    /// What was written is not what was read.
    Corrupt,
    /// Overloaded, unreachable or too slow, in every try.
    Temporary,
    /// Anything else.
    Failed,
}

impl Failure {
    /// Whether the whole run may succeed if it is run again (`retryError` of the statistics).
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::SourceChanged | Self::SourceMissing | Self::DestinationChanged | Self::Corrupt | Self::Temporary | Self::Failed
        )
    }
}

impl OperationError {
    /// One of a kind.
    pub fn new(kind: Failure, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

/// Where a storage failed: it decides what `not found` and `changed` mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// One try that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) error: OperationError,
    /// Whether the next try may succeed.
    pub(crate) is_temporary: bool,
}

impl Failed {
    pub(crate) fn new(kind: Failure, what: impl Into<String>) -> Self {
        Self { error: OperationError::new(kind, what), is_temporary: false }
    }

    pub(crate) fn temporary(kind: Failure, what: impl Into<String>) -> Self {
        Self { error: OperationError::new(kind, what), is_temporary: true }
    }

    pub(crate) fn at(side: Side, error: StorageError) -> Self {
        let kind = match (error.kind, side) {
            (ErrorKind::NotFound, Side::Source) => Failure::SourceMissing,
            (ErrorKind::Changed | ErrorKind::ConditionFailed, Side::Source) => Failure::SourceChanged,
            (ErrorKind::WrongKind, Side::Source) => Failure::SourceKind,
            (ErrorKind::Changed, Side::Destination) => Failure::Corrupt,
            (ErrorKind::ConditionFailed, Side::Destination) => Failure::DestinationChanged,
            (ErrorKind::Revoked, _) => Failure::Revoked,
            (ErrorKind::Denied, _) => Failure::Denied,
            (ErrorKind::NoSpace, _) => Failure::NoSpace,
            (ErrorKind::InvalidName, _) => Failure::Invalid,
            (ErrorKind::Temporary, _) => Failure::Temporary,
            (ErrorKind::NotFound | ErrorKind::WrongKind, Side::Destination) | (ErrorKind::Unsupported | ErrorKind::Failed, _) => {
                Failure::Failed
            }
        };
        // A name that was not found while writing is a directory that somebody removed in between: the next try makes it again.
        let is_temporary = error.kind.is_temporary() || (error.kind, side) == (ErrorKind::NotFound, Side::Destination);
        Self { error: OperationError::new(kind, error.what), is_temporary }
    }

    pub(crate) fn source(error: StorageError) -> Self {
        Self::at(Side::Source, error)
    }

    /// Of work that reads and writes at once: only what is said to have changed is the source.
    pub(crate) fn destination_or_changed(error: StorageError) -> Self {
        let side = if error.kind == ErrorKind::Changed { Side::Source } else { Side::Destination };
        Self::at(side, error)
    }

    pub(crate) fn destination(error: StorageError) -> Self {
        Self::at(Side::Destination, error)
    }
}
