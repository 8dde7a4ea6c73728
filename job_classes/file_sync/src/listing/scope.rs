//! Which entries of one side a walk tells.

use std::sync::Arc;

use super::{OWN_NAME_PREFIX, retried};
use crate::entry::{Entry, EntryKind};
use crate::filter::Filter;
use crate::path::EntryPath;
use crate::storage::{Storage, StorageError};

/// What of one tree a run is about.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// What the operator asked for; shared with the other side.
    pub filter: Arc<Filter>,
    /// Paths that are no content, with all that is below them: the directory of the queue, for one.
    pub excluded: Vec<EntryPath>,
    /// Passes over the filter: `--delete-excluded` for the destination.
    pub ignores_filter: bool,
}

impl Scope {
    /// Whether an entry belongs to the run, as far as its path, size and time tell.
    pub(super) fn admits(&self, entry: &Entry) -> bool {
        if entry.path.name().starts_with(OWN_NAME_PREFIX) || self.excluded.contains(&entry.path) {
            return false;
        }
        match entry.kind {
            _ if self.ignores_filter => true,
            EntryKind::Directory => self.filter.includes_directory(entry.path.as_str()),
            _ => self.filter.includes_file(entry.path.as_str(), entry.size, entry.modified),
        }
    }

    /// Whether no storage needs to be asked for more than it lists.
    pub(super) fn is_simple(&self) -> bool {
        self.ignores_filter || (self.filter.markers().is_empty() && !self.filter.depends_on_times())
    }

    /// Whether [`Scope::admits`] needs the times of files.
    pub(super) fn depends_on_times(&self) -> bool {
        !self.ignores_filter && self.filter.depends_on_times()
    }

    /// Whether a directory holds a file that excludes it.
    pub(super) async fn is_marked(&self, directory: &EntryPath, storage: &dyn Storage, tries: u32) -> Result<bool, StorageError> {
        if self.ignores_filter {
            return Ok(false);
        }
        for marker in self.filter.markers() {
            let Ok(path) = directory.join(marker) else { continue };
            if retried(tries, || storage.stat(&path)).await?.is_some_and(|entry| entry.kind == EntryKind::File) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
