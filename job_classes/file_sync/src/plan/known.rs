//! What is known of one file that was listed.

use crate::entry::{Entry, EntryKind};
use crate::listing::{Item, retried};
use crate::path::EntryPath;
use crate::storage::{ErrorKind, Storage, StorageError};

/// An entry, and whether it has all that its listing told.
pub(super) struct Known {
    pub(super) entry: Entry,
    pub(super) is_complete: bool,
}

impl Known {
    /// The file of a visit; none if its path is longer than any can be.
    pub(super) fn of(item: Item<'_>, directory: &EntryPath) -> Option<Self> {
        let (entry, is_complete) = item.to_entry(directory.join(item.name).ok()?);
        Some(Self { entry, is_complete })
    }

    /// Asks for what the listing of a very large directory did not keep.
    pub(super) async fn complete(&mut self, storage: &dyn Storage, tries: u32) -> Result<(), StorageError> {
        match self.is_complete {
            true => Ok(()),
            false => self.ask(storage, tries).await,
        }
    }

    /// Asks for the time, if the listing does not tell it.
    pub(super) async fn ask_time(&mut self, storage: &dyn Storage, tries: u32) -> Result<(), StorageError> {
        match self.entry.modified {
            Some(_) => Ok(()),
            None => self.ask(storage, tries).await,
        }
    }

    async fn ask(&mut self, storage: &dyn Storage, tries: u32) -> Result<(), StorageError> {
        let found = retried(tries, || storage.stat(&self.entry.path)).await?;
        let gone = || StorageError::new(ErrorKind::NotFound, format!("{:?} vanished while it was compared", self.entry.path));
        self.entry = found.filter(|found| found.kind != EntryKind::Directory).ok_or_else(gone)?;
        self.is_complete = true;
        Ok(())
    }
}
