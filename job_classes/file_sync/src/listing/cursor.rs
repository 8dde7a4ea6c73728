//! One directory of one side, entry by entry in order.

use std::sync::Arc;

use futures_util::stream::{BoxStream, StreamExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::arena::{Arena, Sorted};
use super::item::Item;
use super::names::folded;
use super::scope::Scope;
use crate::entry::{Entry, EntryKind};
use crate::path::EntryPath;
use crate::storage::{ErrorKind, Storage, StorageError};

/// Entries from which on a directory is very large: only one such directory is held at a time.
const LARGE_ENTRIES: usize = 100_000;

/// The permission to hold a very large directory, shared by both sides of it.
#[derive(Debug)]
pub(super) struct LargeDirectory {
    permits: Arc<Semaphore>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl LargeDirectory {
    /// One that may be held as soon as none other is; `permits` has one permit for the whole walk.
    pub(super) fn new(permits: Arc<Semaphore>) -> Self {
        Self { permits, held: Mutex::new(None) }
    }

    async fn wait(&self) {
        let mut held = self.held.lock().await;
        if held.is_none() {
            *held = self.permits.clone().acquire_owned().await.ok();
        }
    }
}

/// What is needed to read one directory.
pub(super) struct Reading<'a> {
    pub(super) storage: &'a Arc<dyn Storage>,
    pub(super) scope: &'a Scope,
    /// Whether names count as the same that differ by case or form.
    pub(super) folds: bool,
    pub(super) large: &'a LargeDirectory,
}

/// A directory that is being read.
pub(super) enum Cursor {
    Sorted(Sorted, usize),
    Streamed(Box<Streamed>),
}

/// A listing in order, read one entry ahead: of two entries of one name, the directory is told first.
pub(super) struct Streamed {
    entries: BoxStream<'static, Result<Entry, StorageError>>,
    storage: Arc<dyn Storage>,
    scope: Scope,
    current: Option<Entry>,
    next: Option<Entry>,
}

impl Cursor {
    /// A directory without entries.
    pub(super) fn empty() -> Self {
        Self::Sorted(Sorted::default(), 0)
    }

    /// Begins to read a directory; it is at its first entry then.
    pub(super) async fn open(directory: &EntryPath, reading: Reading<'_>) -> Result<Self, StorageError> {
        let Reading { storage, scope, folds, large } = reading;
        let mut entries = storage.list(directory);
        if storage.abilities().lists_in_order && !folds {
            let (storage, scope) = (storage.clone(), scope.clone());
            let mut streamed = Box::new(Streamed { entries, storage, scope, current: None, next: None });
            streamed.next = streamed.read().await?;
            streamed.advance().await?;
            return Ok(Self::Streamed(streamed));
        }
        let mut arena = Arena::default();
        while let Some(entry) = entries.next().await {
            let Some(entry) = admitted(entry?, storage.as_ref(), scope).await? else { continue };
            let key = folds.then(|| folded(entry.path.name()));
            let too_much = |error| StorageError::new(ErrorKind::Failed, format!("the directory {directory:?} cannot be held: {error}"));
            arena.push(&entry, key.as_deref()).map_err(too_much)?;
            if arena.len() == LARGE_ENTRIES {
                large.wait().await;
            }
        }
        Ok(Self::Sorted(arena.sort(), 0))
    }

    /// The entry where it is, and what it is ordered by; none at the end.
    pub(super) fn current(&self) -> Option<(Item<'_>, &str)> {
        match self {
            Self::Sorted(sorted, at) => sorted.at(*at),
            Self::Streamed(streamed) => streamed.current.as_ref().map(|entry| (Item::of(entry), entry.path.name())),
        }
    }

    /// Goes to the next entry.
    pub(super) async fn advance(&mut self) -> Result<(), StorageError> {
        match self {
            Self::Sorted(_, at) => {
                *at += 1;
                Ok(())
            }
            Self::Streamed(streamed) => streamed.advance().await,
        }
    }
}

impl Streamed {
    async fn advance(&mut self) -> Result<(), StorageError> {
        let left = std::mem::replace(&mut self.current, self.next.take());
        if self.current.is_none() {
            return Ok(());
        }
        self.next = self.read().await?;
        let Some(current) = &mut self.current else { return Ok(()) };
        if let Some(next) = &mut self.next
            && next.path.name() == current.path.name()
            && Item::of(next).rank() < Item::of(current).rank()
        {
            std::mem::swap(next, current);
        }
        // Whoever merges unordered names would take what is on both sides for missing, and delete it.
        let is_ordered = left.is_none_or(|left| left.path.name() <= current.path.name());
        is_ordered.then_some(()).ok_or_else(|| {
            let place = current.path.parent().unwrap_or_default();
            StorageError::new(ErrorKind::Failed, format!("the storage does not list the directory {place:?} in order"))
        })
    }

    async fn read(&mut self) -> Result<Option<Entry>, StorageError> {
        while let Some(entry) = self.entries.next().await {
            if let Some(entry) = admitted(entry?, self.storage.as_ref(), &self.scope).await? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// The entry, if it belongs to the run.
async fn admitted(mut entry: Entry, storage: &dyn Storage, scope: &Scope) -> Result<Option<Entry>, StorageError> {
    let is_directory = entry.kind == EntryKind::Directory;
    if entry.modified.is_none() && !is_directory && scope.depends_on_times() && storage.abilities().time_precision_ns.is_some() {
        let Some(found) = storage.stat(&entry.path).await? else { return Ok(None) };
        entry = found;
    }
    let is_admitted = scope.admits(&entry) && !(is_directory && scope.is_marked(&entry.path, storage).await?);
    Ok(is_admitted.then_some(entry))
}
