//! An operation, understood: its remotes opened, its paths read, its conditions known.

use std::sync::Arc;

use super::error::{Failure, OperationError};
use crate::fence::Fence;
use crate::operation::{Operation, Planned, Seen};
use crate::path::EntryPath;
use crate::remote::local::LocalTree;
use crate::remote::local::staging::StagingDirectory;
use crate::remote::{Access, Remote, Remotes};
use crate::storage::Condition;

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Copy(Transfer),
    Move(Transfer),
    Delete { file: End, planned: Option<Planned> },
}

/// One file on its way.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) source: End,
    pub(super) target: End,
    pub(super) planned: Option<Planned>,
}

/// One end of the way.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) remote: Arc<Remote>,
    pub(super) path: EntryPath,
    /// The directory of the attempt there, if effects there are staged.
    pub(super) staging: Option<Arc<StagingDirectory>>,
}

/// The trees of a task whose ends are all local.
#[derive(Clone, Copy)]
pub(super) struct LocalEnds<'a> {
    pub(super) source: &'a Arc<LocalTree>,
    pub(super) target: &'a Arc<LocalTree>,
}

impl Task {
    pub(super) fn new(operation: &Operation, remotes: &Remotes, fence: &Fence) -> Result<Self, OperationError> {
        let end = |text: &str, path: &str| {
            let remote = remotes.open(text).map_err(|error| OperationError::new(Failure::Remote, error.to_string()))?;
            let path = EntryPath::parse(path).map_err(|error| OperationError::new(Failure::Invalid, error.to_string()))?;
            if path.is_root() {
                return Err(OperationError::new(Failure::Invalid, "an operation names a file, not the root of a remote"));
            }
            Ok(End { remote, path, staging: fence.staging(text).cloned() })
        };
        let changed = |text: &str, path: &str| {
            let end: End = end(text, path)?;
            let needs_staging = fence.attempt().is_some() && end.tree().is_some();
            match needs_staging && end.staging.is_none() {
                true => Err(OperationError::new(Failure::Invalid, format!("{}: its attempt was not claimed there", end.remote))),
                false => Ok(end),
            }
        };
        match operation {
            Operation::CopyFile { src_fs, src_remote, dst_fs, dst_remote, planned } => {
                let source = End { staging: None, ..end(src_fs, src_remote)? };
                Ok(Self::Copy(Transfer::new(source, changed(dst_fs, dst_remote)?, planned)?))
            }
            Operation::MoveFile { src_fs, src_remote, dst_fs, dst_remote, planned } => {
                Ok(Self::Move(Transfer::new(changed(src_fs, src_remote)?, changed(dst_fs, dst_remote)?, planned)?))
            }
            Operation::DeleteFile { fs, remote, planned } => Ok(Self::Delete { file: changed(fs, remote)?, planned: planned.clone() }),
        }
    }

    /// The trees, if all ends are local.
    pub(super) fn local(&self) -> Option<LocalEnds<'_>> {
        match self {
            Self::Copy(transfer) | Self::Move(transfer) => {
                Some(LocalEnds { source: transfer.source.tree()?, target: transfer.target.tree()? })
            }
            Self::Delete { file, .. } => file.tree().map(|tree| LocalEnds { source: tree, target: tree }),
        }
    }

    /// The file it is about.
    pub(super) fn shown(&self) -> &str {
        match self {
            Self::Copy(transfer) | Self::Move(transfer) => transfer.source.path.as_str(),
            Self::Delete { file, .. } => file.path.as_str(),
        }
    }
}

impl Transfer {
    /// A file that is moved to itself would be gone in the end.
    fn new(source: End, target: End, planned: &Option<Planned>) -> Result<Self, OperationError> {
        let is_same = match (source.remote.access(), target.remote.access()) {
            (Access::Local(from), Access::Local(to)) => from.path().join(source.path.as_str()) == to.path().join(target.path.as_str()),
            (Access::Object(from), Access::Object(to)) => {
                from.account == to.account && from.prefix.join(source.path.as_str()) == to.prefix.join(target.path.as_str())
            }
            _ => false,
        };
        match is_same {
            true => {
                Err(OperationError::new(Failure::Invalid, format!("{:?}: source and destination are the same file", source.path.as_str())))
            }
            false => Ok(Self { source, target, planned: planned.clone() }),
        }
    }

    /// When the file may appear: what the plan saw must still be so.
    pub(super) fn condition(&self) -> Condition {
        match self.planned.as_ref().and_then(|planned| planned.destination.as_ref()) {
            None => Condition::Always,
            Some(Seen::Nothing) => Condition::Absent,
            Some(Seen::Tag(tag)) => Condition::Tag(tag.clone()),
        }
    }

    /// What the source must be for a move to remove it.
    pub(super) fn planned_tag(&self) -> Option<&str> {
        self.planned.as_ref().and_then(|planned| planned.tag.as_deref())
    }
}

impl End {
    pub(super) fn tree(&self) -> Option<&Arc<LocalTree>> {
        match self.remote.access() {
            Access::Local(tree) => Some(tree),
            Access::Object(_) => None,
        }
    }
}
