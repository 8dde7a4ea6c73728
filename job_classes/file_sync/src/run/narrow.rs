//! A view of a storage where only one file of the root exists: a run whose source is a file, not a directory.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};

use crate::entry::Entry;
use crate::path::EntryPath;
use crate::storage::{Abilities, Condition, Content, Storage, StorageError, WriteOptions, Writer};

/// The view; everything but listings passes through.
pub(super) struct OneFile {
    storage: Arc<dyn Storage>,
    file: EntryPath,
}

impl OneFile {
    /// Sees nothing but `file`, which lies directly in the root.
    pub(super) fn new(storage: Arc<dyn Storage>, file: EntryPath) -> Arc<Self> {
        Arc::new(Self { storage, file })
    }
}

impl Storage for OneFile {
    fn abilities(&self) -> &Abilities {
        self.storage.abilities()
    }

    fn list(&self, directory: &EntryPath) -> BoxStream<'static, Result<Entry, StorageError>> {
        if !directory.is_root() {
            return stream::empty().boxed();
        }
        let found = self.storage.stat(&self.file);
        stream::once(found).filter_map(async |found| found.transpose()).boxed()
    }

    fn stat(&self, path: &EntryPath) -> BoxFuture<'static, Result<Option<Entry>, StorageError>> {
        self.storage.stat(path)
    }

    fn read(&self, path: &EntryPath, range: Range<u64>) -> BoxFuture<'static, Result<Content, StorageError>> {
        self.storage.read(path, range)
    }

    fn write(&self, path: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Box<dyn Writer>, StorageError>> {
        self.storage.write(path, options)
    }

    fn copy(&self, from: &EntryPath, to: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Entry, StorageError>> {
        self.storage.copy(from, to, options)
    }

    fn rename(&self, from: &EntryPath, to: &EntryPath, condition: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        self.storage.rename(from, to, condition)
    }

    fn remove(&self, path: &EntryPath, condition: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        self.storage.remove(path, condition)
    }

    fn make_directory(&self, path: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        self.storage.make_directory(path)
    }

    fn remove_directory(&self, path: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        self.storage.remove_directory(path)
    }

    fn set_attributes(
        &self,
        path: &EntryPath,
        modified: Option<SystemTime>,
        mode: Option<u32>,
    ) -> BoxFuture<'static, Result<(), StorageError>> {
        self.storage.set_attributes(path, modified, mode)
    }
}
