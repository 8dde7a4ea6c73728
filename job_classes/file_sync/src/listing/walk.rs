//! Both trees, directory by directory.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::cursor::{Cursor, LargeDirectory, Reading};
use super::item::Item;
use super::scope::Scope;
use crate::path::EntryPath;
use crate::storage::{ErrorKind, Storage, StorageError};

/// Pairs after which what the visitor found is handed over.
const VISITS_PER_DELIVERY: usize = 256;

/// Which of the two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where files come from.
    Source,
    /// Where they go.
    Destination,
}

/// What to walk, and how.
pub(crate) struct Walk {
    /// The source; without one there is nothing in it.
    pub(crate) source: Option<(Arc<dyn Storage>, Scope)>,
    /// The destination, likewise.
    pub(crate) destination: Option<(Arc<dyn Storage>, Scope)>,
    /// Directories in work at the same time.
    pub(crate) checkers: usize,
    /// Directories are entered this deep; the root is the first.
    pub(crate) max_depth: Option<u32>,
    /// Whether the destination takes names for the same that differ by case or Unicode form.
    pub(crate) folds: bool,
    /// Times that each question to a storage is asked, while its failure may pass.
    pub(crate) tries: u32,
}

/// On which sides a directory is to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descend {
    No,
    Source,
    Destination,
    Both,
}

/// One directory as it is in work.
#[derive(Clone, Debug)]
pub(crate) struct WalkedDirectory {
    /// Where it is; the same on both sides, unless names fold.
    pub(crate) path: EntryPath,
    /// Where it is at the destination, if it has another name there.
    pub(crate) destination_path: Option<EntryPath>,
    /// On which sides it is.
    pub(crate) sides: Descend,
    /// Its time at the source, where it is there; the root has none.
    pub(crate) source_modified: Option<SystemTime>,
    /// Its time at the destination, likewise.
    pub(crate) destination_modified: Option<SystemTime>,
    /// The root has depth 1.
    pub(crate) depth: u32,
}

impl WalkedDirectory {
    /// Where it is on one side.
    pub(crate) fn path_at(&self, side: Side) -> &EntryPath {
        match side {
            Side::Source => &self.path,
            Side::Destination => self.destination_path.as_ref().unwrap_or(&self.path),
        }
    }
}

/// Whoever is told what the walk meets. Calls for one directory come one after the other; directories are in work side by side.
pub(crate) trait Visitor: Send + Sync + 'static {
    /// What is kept of a directory while it is in work.
    type State: Send;

    /// A directory begins.
    fn begin(&self, directory: &WalkedDirectory) -> Self::State;

    /// One name, on the sides where it is. The two may be of different kinds.
    fn visit(&self, state: &mut Self::State, source: Option<Item<'_>>, destination: Option<Item<'_>>) -> Descend;

    /// A name of the source which the destination takes for one that was visited before.
    fn clashes(&self, state: &mut Self::State, source: Item<'_>);

    /// A directory, or something in it, could not be read. What is visited of it holds; the rest is unknown.
    fn failed(&self, state: &mut Self::State, side: Side, error: StorageError);

    /// Time to hand over what was found; after the last visit `is_end` is set. False ends the walk.
    fn deliver<'a>(&'a self, state: &'a mut Self::State, is_end: bool) -> BoxFuture<'a, bool>;
}

/// What the tasks of a walk share. Waiting directories are taken last in, first out: so no more wait than the siblings along the paths in work.
struct Waiting {
    state: std::sync::Mutex<WaitingState>,
    changed: Notify,
}

struct WaitingState {
    directories: Vec<WalkedDirectory>,
    in_work: usize,
    is_stopped: bool,
}

/// Walks both trees to their ends, or until the visitor wants no more. Dropped, it stops.
pub(crate) async fn walk<V: Visitor>(walk: Arc<Walk>, visitor: Arc<V>) {
    let sides = match (&walk.source, &walk.destination) {
        (Some(_), Some(_)) => Descend::Both,
        (Some(_), None) => Descend::Source,
        _ => Descend::Destination,
    };
    let root = WalkedDirectory {
        path: EntryPath::root(),
        destination_path: None,
        sides,
        source_modified: None,
        destination_modified: None,
        depth: 1,
    };
    let state = WaitingState { directories: vec![root], in_work: 0, is_stopped: false };
    let waiting = Arc::new(Waiting { state: state.into(), changed: Notify::new() });
    let large = Arc::new(Semaphore::new(1));
    let mut tasks = JoinSet::new();
    for _ in 0..walk.checkers.max(1) {
        let (walk, visitor, waiting, large) = (walk.clone(), visitor.clone(), waiting.clone(), large.clone());
        tasks.spawn(async move {
            while let Some(directory) = waiting.next().await {
                let mut found = Vec::new();
                let goes_on = walk.directory(&directory, visitor.as_ref(), LargeDirectory::new(large.clone()), &mut found).await;
                waiting.done(found, goes_on);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, WaitingState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The next directory; none when all are done.
    async fn next(&self) -> Option<WalkedDirectory> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if state.is_stopped || (state.directories.is_empty() && state.in_work == 0) {
                    return None;
                }
                if let Some(directory) = state.directories.pop() {
                    state.in_work += 1;
                    return Some(directory);
                }
            }
            changed.await;
        }
    }

    fn done(&self, found: Vec<WalkedDirectory>, goes_on: bool) {
        let mut state = self.lock();
        state.in_work -= 1;
        state.is_stopped |= !goes_on;
        // The last in is the first out, so they are taken in order.
        state.directories.extend(found.into_iter().rev());
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Walk {
    /// Works one directory off. Whether to go on.
    async fn directory<V: Visitor>(
        &self,
        directory: &WalkedDirectory,
        visitor: &V,
        large: LargeDirectory,
        found: &mut Vec<WalkedDirectory>,
    ) -> bool {
        let mut state = visitor.begin(directory);
        let opened = |side: Side| self.open(directory, side, &large);
        let (source, destination) = tokio::join!(opened(Side::Source), opened(Side::Destination));
        let merged = match (source, destination) {
            (Ok(source), Ok(destination)) => self.merge(directory, (source, destination), visitor, &mut state, found).await,
            (Err(error), _) => Err((Side::Source, error)),
            (_, Err(error)) => Err((Side::Destination, error)),
        };
        let goes_on = merged.unwrap_or_else(|(side, error)| {
            visitor.failed(&mut state, side, error);
            true
        });
        goes_on && visitor.deliver(&mut state, true).await
    }

    async fn open(&self, directory: &WalkedDirectory, side: Side, large: &LargeDirectory) -> Result<Cursor, StorageError> {
        let (place, is_there) = match side {
            Side::Source => (&self.source, matches!(directory.sides, Descend::Source | Descend::Both)),
            Side::Destination => (&self.destination, matches!(directory.sides, Descend::Destination | Descend::Both)),
        };
        let Some((storage, scope)) = place.as_ref().filter(|_| is_there) else { return Ok(Cursor::empty()) };
        let opened = Cursor::open(directory.path_at(side), Reading { storage, scope, folds: self.folds, large, tries: self.tries }).await;
        match opened {
            // A destination comes into being with what is copied.
            Ok(mut cursor) if side == Side::Destination && cursor.current().is_none() => {
                let errors = cursor.take_errors();
                match errors.into_iter().find(|error| error.kind != ErrorKind::NotFound) {
                    Some(error) => Err(error),
                    None => Ok(cursor),
                }
            }
            opened => opened,
        }
    }

    async fn merge<V: Visitor>(
        &self,
        directory: &WalkedDirectory,
        (mut source, mut destination): (Cursor, Cursor),
        visitor: &V,
        state: &mut V::State,
        found: &mut Vec<WalkedDirectory>,
    ) -> Result<bool, (Side, StorageError)> {
        let is_flat = [&self.source, &self.destination].iter().all(|side| match side {
            Some((storage, _)) => !storage.abilities().has_directories,
            None => true,
        });
        let (mut visits, mut is_source_whole) = (0, true);
        loop {
            for error in source.take_errors() {
                is_source_whole = false;
                visitor.failed(state, Side::Source, error);
            }
            if let Some(error) = destination.take_errors().into_iter().next() {
                return Err((Side::Destination, error));
            }
            let order = match (source.current(), destination.current()) {
                (None, None) => return Ok(true),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((one, one_key)), Some((other, other_key))) => one_key.cmp(other_key).then_with(|| match is_flat {
                    // Where nothing has directories, a file and a directory of one name are two things.
                    true => one.rank().cmp(&other.rank()),
                    false => Ordering::Equal,
                }),
            };
            let (from_source, from_destination) = (order != Ordering::Greater, order != Ordering::Less);
            let here = source.current().map(|(item, _)| item).filter(|_| from_source);
            let there = destination.current().map(|(item, _)| item).filter(|_| from_destination);
            // What could not be read at the source is not missing there.
            let is_known = is_source_whole || here.is_some();
            let descend = if is_known { visitor.visit(state, here, there) } else { Descend::No };
            if descend != Descend::No && self.max_depth.is_none_or(|depth| directory.depth < depth) {
                found.extend(below(directory, here, there, descend));
            }
            if from_source {
                self.advance_source(&mut source, visitor, state).await.map_err(|error| (Side::Source, error))?;
            }
            if from_destination {
                destination.advance().await.map_err(|error| (Side::Destination, error))?;
            }
            visits += 1;
            if visits % VISITS_PER_DELIVERY == 0 && !visitor.deliver(state, false).await {
                return Ok(false);
            }
        }
    }

    /// Goes to the next name that the destination can tell from this one.
    async fn advance_source<V: Visitor>(&self, source: &mut Cursor, visitor: &V, state: &mut V::State) -> Result<(), StorageError> {
        let left = source.current().filter(|_| self.folds).map(|(_, key)| key.to_owned());
        loop {
            source.advance().await?;
            match source.current() {
                Some((item, key)) if left.as_deref() == Some(key) => visitor.clashes(state, item),
                _ => return Ok(()),
            }
        }
    }
}

/// The directory that was just visited. A name that makes its path too long is left to whoever lists it by another way.
fn below(directory: &WalkedDirectory, source: Option<Item<'_>>, destination: Option<Item<'_>>, sides: Descend) -> Option<WalkedDirectory> {
    let name = source.or(destination)?.name;
    let path = directory.path.join(name).ok()?;
    let other_name = destination.map_or(name, |item| item.name);
    let is_same = directory.destination_path.is_none() && other_name == name;
    let destination_path = if is_same { None } else { directory.path_at(Side::Destination).join(other_name).ok() };
    let times = [source, destination].map(|item| item.and_then(|item| item.modified));
    let [source_modified, destination_modified] = times;
    Some(WalkedDirectory { path, destination_path, sides, source_modified, destination_modified, depth: directory.depth + 1 })
}
