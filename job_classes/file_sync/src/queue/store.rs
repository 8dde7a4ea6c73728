//! Where the files of a queue are, and the few things that a queue needs of such a place.
//!
//! Two places are known: a [directory](LocalStore) that all nodes see, and an [object store](ObjectStore). They differ in what decides who has a batch. Everywhere the
//! record that is *created first* decides; where files can be renamed, the batch is moved too, as rclone does it. Whether a place honours either is tried when it is
//! opened, never assumed.

mod local;
#[cfg(test)]
pub(crate) mod memory;
mod object;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use local::LocalStore;
pub use object::ObjectStore;

/// Most files of one directory that are listed; the oldest names come first.
pub const LISTED_MAX: usize = 200_000;

/// One file of a directory of the queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name in the directory.
    pub name: String,
    /// Changes whenever its content does.
    pub marker: u64,
}

/// What a place honours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Honours {
    /// Of those that create one file, one succeeds.
    pub creates_once: bool,
    /// Files can be renamed, and of those that rename one file, one succeeds.
    pub renames: bool,
}

/// Why a place did not do what it was asked for. Whether a write that failed was done is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct StoreError {
    /// Trying again may help.
    pub is_temporary: bool,
    /// What failed, on which file, and why, for people.
    pub what: String,
}

/// What was found under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Missing,
    /// A file.
    Bytes(Bytes),
    /// A file that is longer than was allowed.
    TooLong,
}

/// A place for the files of a queue. Paths are below its root, with `/`; directories above a file that is written are made.
pub trait QueueStore: Send + Sync + 'static {
    /// What it honours; found out when it was opened.
    fn honours(&self) -> Honours;

    /// The files of a directory in the order of their names, at most [`LISTED_MAX`]; none if there is no such directory.
    fn list<'a>(&'a self, directory: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>>;

    /// The content of a file.
    fn read<'a>(&'a self, path: &'a str, bytes_max: u64) -> BoxFuture<'a, Result<Content, StoreError>>;

    /// Creates a file, whole or not at all; false if there is one.
    fn create<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Writes a file, whole or not at all, over one that may be there.
    fn replace<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Moves a file. False if there is no such file, or if there is one already at its destination. Where files are not [renamed](Honours::renames), it is a copy,
    /// followed by the deletion of the first, and decides nothing.
    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Deletes a file, if it is there.
    fn delete<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// A store that is shared.
pub type SharedStore = Arc<dyn QueueStore>;

/// Creates a file, and knows its own: after an answer that was lost, a second try finds the file there.
pub(crate) async fn create_or_same(store: &dyn QueueStore, path: &str, content: Bytes) -> Result<bool, StoreError> {
    // Where creating decides nothing, it must at least not write over what is there.
    let is_free = store.honours().creates_once || store.read(path, content.len() as u64).await? == Content::Missing;
    if is_free && store.create(path, content.clone()).await? {
        return Ok(true);
    }
    Ok(store.read(path, content.len() as u64).await? == Content::Bytes(content))
}

impl StoreError {
    pub(crate) fn new(is_temporary: bool, what: impl Into<String>) -> Self {
        Self { is_temporary, what: what.into() }
    }
}

/// A marker of anything.
pub(crate) fn marker_of(parts: &impl std::hash::Hash) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    parts.hash(&mut hasher);
    hasher.digest()
}

#[cfg(test)]
mod tests;
