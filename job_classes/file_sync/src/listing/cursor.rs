//! One directory of one side, entry by entry in order.

use std::sync::Arc;

use futures_util::stream::{BoxStream, StreamExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::arena::{Arena, Sorted};
use super::item::Item;
use super::names::folded;
use super::retry::retried;
use super::scope::Scope;
use crate::entry::{Entry, EntryKind};
use crate::path::EntryPath;
use crate::storage::{ErrorKind, Storage, StorageError};

/// Entries from which on a directory is very large: only one such directory is held at a time. Few for tests, so that directories wait for each other there.
const LARGE_ENTRIES: usize = if cfg!(test) { 3 } else { 100_000 };

/// Errors of single entries that one directory remembers until they are told; further ones are dropped, as there are enough then.
const ERRORS_MAX: usize = 1000;

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
    /// Times that each question to the storage is asked, while its failure may pass.
    pub(super) tries: u32,
}

/// A directory that is being read. What of it cannot be read is remembered, and the rest is told.
pub(super) struct Cursor {
    entries: Entries,
    errors: Vec<StorageError>,
}

enum Entries {
    Sorted(Sorted, usize),
    Streamed(Box<Streamed>),
}

/// A listing in order, read one entry ahead: of two entries of one name, the directory is told first.
struct Streamed {
    entries: BoxStream<'static, Result<Entry, StorageError>>,
    storage: Arc<dyn Storage>,
    scope: Scope,
    tries: u32,
    current: Option<Ahead>,
    next: Option<Ahead>,
}

/// An entry with the place in its path where its name begins, which is asked for many times.
struct Ahead {
    entry: Entry,
    name_at: usize,
}

impl Ahead {
    fn new(entry: Entry) -> Self {
        let name_at = entry.path.as_str().len() - entry.path.name().len();
        Self { entry, name_at }
    }

    fn name(&self) -> &str {
        &self.entry.path.as_str()[self.name_at..]
    }

    fn item(&self) -> Item<'_> {
        Item::named(&self.entry, self.name())
    }
}

impl Cursor {
    /// A directory without entries.
    pub(super) fn empty() -> Self {
        Self { entries: Entries::Sorted(Sorted::default(), 0), errors: Vec::new() }
    }

    /// Begins to read a directory; it is at its first entry then. A listing that failed, and may not do so again, begins anew unless some of it was told already.
    pub(super) async fn open(directory: &EntryPath, reading: Reading<'_>) -> Result<Self, StorageError> {
        let opened = retried(reading.tries, || async {
            let cursor = Self::try_open(directory, &reading).await?;
            let is_begun = matches!(cursor.entries, Entries::Streamed(_)) && cursor.current().is_some();
            match cursor.errors.iter().find(|error| error.kind.is_temporary() && !is_begun) {
                Some(error) => Err(error.clone()),
                None => Ok(cursor),
            }
        });
        opened.await
    }

    async fn try_open(directory: &EntryPath, reading: &Reading<'_>) -> Result<Self, StorageError> {
        let Reading { storage, scope, folds, large, tries } = *reading;
        // Other directories were asked for their markers when they were met.
        if directory.is_root() && scope.is_marked(directory, storage.as_ref(), tries).await? {
            return Ok(Self::empty());
        }
        let mut entries = storage.list(directory);
        let mut cursor = Self::empty();
        if storage.abilities().lists_in_order && !folds {
            let (storage, scope) = (storage.clone(), scope.clone());
            let mut streamed = Box::new(Streamed { entries, storage, scope, tries, current: None, next: None });
            streamed.next = streamed.read(&mut cursor.errors).await;
            streamed.advance(&mut cursor.errors).await?;
            cursor.entries = Entries::Streamed(streamed);
            return Ok(cursor);
        }
        let mut arena = Arena::default();
        while let Some(entry) = entries.next().await {
            let Some(entry) = admitted(entry, storage.as_ref(), (scope, tries), &mut cursor.errors).await else { continue };
            let key = folds.then(|| folded(entry.path.name()));
            let too_much = |error| StorageError::new(ErrorKind::Failed, format!("the directory {directory:?} cannot be held: {error}"));
            arena.push(&entry, key.as_deref()).map_err(too_much)?;
            if arena.len() == LARGE_ENTRIES {
                large.wait().await;
            }
        }
        cursor.entries = Entries::Sorted(arena.sort(), 0);
        Ok(cursor)
    }

    /// The entry where it is, and what it is ordered by; none at the end.
    pub(super) fn current(&self) -> Option<(Item<'_>, &str)> {
        match &self.entries {
            Entries::Sorted(sorted, at) => sorted.at(*at),
            Entries::Streamed(streamed) => streamed.current.as_ref().map(|ahead| (ahead.item(), ahead.name())),
        }
    }

    /// Goes to the next entry.
    pub(super) async fn advance(&mut self) -> Result<(), StorageError> {
        match &mut self.entries {
            Entries::Sorted(_, at) => {
                *at += 1;
                Ok(())
            }
            Entries::Streamed(streamed) => streamed.advance(&mut self.errors).await,
        }
    }

    /// What could not be read since it was last asked.
    pub(super) fn take_errors(&mut self) -> Vec<StorageError> {
        std::mem::take(&mut self.errors)
    }
}

impl Streamed {
    async fn advance(&mut self, errors: &mut Vec<StorageError>) -> Result<(), StorageError> {
        let left = std::mem::replace(&mut self.current, self.next.take());
        if self.current.is_none() {
            return Ok(());
        }
        self.next = self.read(errors).await;
        let Some(current) = &mut self.current else { return Ok(()) };
        if let Some(next) = &mut self.next
            && next.name() == current.name()
            && next.item().rank() < current.item().rank()
        {
            std::mem::swap(next, current);
        }
        // Whoever merges unordered names would take what is on both sides for missing, and delete it.
        let is_ordered = left.is_none_or(|left| left.name() <= current.name());
        is_ordered.then_some(()).ok_or_else(|| {
            let place = current.entry.path.parent().unwrap_or_default();
            StorageError::new(ErrorKind::Failed, format!("the storage does not list the directory {place:?} in order"))
        })
    }

    async fn read(&mut self, errors: &mut Vec<StorageError>) -> Option<Ahead> {
        loop {
            let entry = self.entries.next().await?;
            if let Some(entry) = admitted(entry, self.storage.as_ref(), (&self.scope, self.tries), errors).await {
                return Some(Ahead::new(entry));
            }
        }
    }
}

/// The entry, if it can be read and belongs to the run.
async fn admitted(
    entry: Result<Entry, StorageError>,
    storage: &dyn Storage,
    (scope, tries): (&Scope, u32),
    errors: &mut Vec<StorageError>,
) -> Option<Entry> {
    let is_admitted = match entry {
        Ok(entry) if scope.is_simple() => return scope.admits(&entry).then_some(entry),
        Ok(entry) => asked(entry, storage, scope, tries).await,
        Err(error) => Err(error),
    };
    is_admitted.unwrap_or_else(|error| {
        if errors.len() < ERRORS_MAX {
            errors.push(error);
        }
        None
    })
}

/// The same where the storage must be asked for more.
async fn asked(mut entry: Entry, storage: &dyn Storage, scope: &Scope, tries: u32) -> Result<Option<Entry>, StorageError> {
    let is_directory = entry.kind == EntryKind::Directory;
    if entry.modified.is_none() && !is_directory && scope.depends_on_times() && storage.abilities().time_precision_ns.is_some() {
        let Some(found) = retried(tries, || storage.stat(&entry.path)).await? else { return Ok(None) };
        entry = found;
    }
    let is_admitted = scope.admits(&entry) && !(is_directory && scope.is_marked(&entry.path, storage, tries).await?);
    Ok(is_admitted.then_some(entry))
}
