//! A local file that is written as a stream.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::errno::io_failed;
use super::staging::{StagedFile, StagingDirectory};
use super::{FILE_MODE, LocalTree, blocking, commit};
use crate::entry::Entry;
use crate::path::EntryPath;
use crate::storage::{StorageError, WriteOptions, Writer};

/// Bytes that are gathered before they go to the disk: pieces from the network are small, and each way to the blocking pool costs.
const GATHERED_BYTES: usize = 1024 * 1024;

pub(super) struct LocalWriter {
    tree: LocalTree,
    path: EntryPath,
    options: WriteOptions,
    staging: Option<Arc<StagingDirectory>>,
    staged: Option<StagedFile>,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    written: u64,
}

impl LocalWriter {
    pub(super) fn new(tree: LocalTree, path: EntryPath, options: WriteOptions, staging: Option<Arc<StagingDirectory>>) -> Self {
        Self { tree, path, options, staging, staged: None, gathered: Vec::new(), gathered_bytes: 0, written: 0 }
    }

    /// Writes what was gathered, into a file that is begun only now. Blocks.
    fn flush(&mut self) -> Result<(), StorageError> {
        let staged = match &mut self.staged {
            Some(staged) => staged,
            none => {
                let mut root = self.tree.open_or_make()?;
                none.insert(root.stage(&self.path, self.staging.as_deref(), self.options.mode.unwrap_or(FILE_MODE))?)
            }
        };
        for bytes in self.gathered.drain(..) {
            staged.file().write_all_at(&bytes, self.written).map_err(|error| io_failed("write", &self.path, &error))?;
            self.written += bytes.len() as u64;
        }
        self.gathered_bytes = 0;
        Ok(())
    }
}

impl Writer for LocalWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>> {
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes < GATHERED_BYTES {
            return std::future::ready(Ok(())).boxed();
        }
        let flushed = async {
            let empty = Self::new(self.tree.clone(), self.path.clone(), self.options.clone(), self.staging.clone());
            let mut writer = std::mem::replace(self, empty);
            *self = blocking(move || writer.flush().map(|()| writer)).await?;
            Ok(())
        };
        flushed.boxed()
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<Entry, StorageError>> {
        let finished = blocking(move || {
            self.flush()?;
            let staged = self.staged.take().expect("flushed just now, which begins the file");
            commit(staged, &self.path, &self.options)
        });
        finished.boxed()
    }
}
