//! A view of a storage where only one file of the root exists: a run whose source is a file, not a directory.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};

use crate::entry::Entry;
use crate::path::EntryPath;
use crate::storage::{Abilities, Condition, Content, ErrorKind, Storage, StorageError, WriteOptions, Writer};

/// The view; everything but listings passes through.
pub(super) struct OneFile {
    storage: Arc<dyn Storage>,
    file: EntryPath,
    /// Without it the root does not exist: a source that is gone is no empty tree.
    is_required: bool,
}

impl OneFile {
    /// Sees nothing but `file`, which lies directly in the root and must be there.
    pub(super) fn source(storage: Arc<dyn Storage>, file: EntryPath) -> Arc<Self> {
        Arc::new(Self { storage, file, is_required: true })
    }

    /// Sees nothing but `file`, if it is there.
    pub(super) fn destination(storage: Arc<dyn Storage>, file: EntryPath) -> Arc<Self> {
        Arc::new(Self { storage, file, is_required: false })
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
        let (found, file, is_required) = (self.storage.stat(&self.file), self.file.clone(), self.is_required);
        let told = async move {
            match found.await {
                Ok(None) if is_required => Some(Err(StorageError::new(ErrorKind::NotFound, format!("{file}: there is no such file")))),
                found => found.transpose(),
            }
        };
        stream::once(told).filter_map(std::future::ready).boxed()
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
