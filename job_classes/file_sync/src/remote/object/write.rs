//! An object that is written as a stream, in parts if it is large.

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::errors::bounded;
use super::{MTIME_KEY, ObjectTree, PARTS_AT_ONCE, part_bytes, text_of};
use crate::entry::{Entry, EntryKind};
use crate::path::EntryPath;
use crate::storage::{Condition, Storage, StorageError, WriteOptions, Writer};

pub(super) struct ObjectWriter {
    tree: ObjectTree,
    path: EntryPath,
    options: WriteOptions,
    /// None once it is finished.
    writer: Option<opendal::Writer>,
    written: u64,
}

impl ObjectWriter {
    pub(super) async fn begin(tree: ObjectTree, path: EntryPath, options: WriteOptions) -> Result<Self, StorageError> {
        let key = tree.key(&path)?;
        let mut writer = tree.operator.writer_with(&key).chunk(part_bytes(options.size.unwrap_or(0)) as usize).concurrent(PARTS_AT_ONCE);
        if let Some(modified) = options.modified {
            writer = writer.user_metadata([(MTIME_KEY.to_owned(), text_of(modified))]);
        }
        if tree.abilities().conditional_writes {
            writer = match &options.condition {
                Condition::Always => writer,
                Condition::Absent => writer.if_not_exists(true),
                Condition::Tag(tag) => writer.if_match(tag),
            };
        }
        let limit = tree.timeouts.control;
        let writer = bounded(limit, "write", path.as_str(), async { writer.await }).await?;
        Ok(Self { tree, path, options, writer: Some(writer), written: 0 })
    }

    async fn end(mut self) -> Result<Entry, StorageError> {
        let (tree, path) = (self.tree.clone(), self.path.clone());
        if !tree.abilities().conditional_writes {
            // Dropped on failure, the writer takes its parts back.
            tree.check(&path, &self.options.condition, "write").await?;
        }
        let writer = self.writer.as_mut().expect("only the end takes it");
        let metadata = bounded(tree.timeouts.data, "write", path.as_str(), writer.close()).await?;
        self.writer = None;
        Ok(Entry {
            path,
            kind: EntryKind::File,
            size: self.written,
            modified: self.options.modified,
            mode: None,
            tag: metadata.etag().map(Box::from),
        })
    }
}

impl Writer for ObjectWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>> {
        let written = async {
            let count = bytes.len() as u64;
            let writer = self.writer.as_mut().expect("only the end takes it");
            bounded(self.tree.timeouts.data, "write", self.path.as_str(), writer.write(bytes)).await?;
            self.written += count;
            Ok(())
        };
        written.boxed()
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Entry, StorageError>> {
        self.end().boxed()
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        // Parts that were uploaded cost money until they are taken back.
        if let (Some(mut writer), Ok(runtime)) = (self.writer.take(), tokio::runtime::Handle::try_current()) {
            let limit = self.tree.timeouts.control;
            drop(runtime.spawn(async move { tokio::time::timeout(limit, writer.abort()).await.is_ok() }));
        }
    }
}
