//! A queue in an object store.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use opendal::{ErrorKind, Operator};

use super::{Content, Honours, LISTED_MAX, Listed, QueueStore, StoreError, marker_of};

/// Longest time that one call of the store may take; then it has failed, and may have been done.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Objects whose tag is asked for at one time, where listings tell none.
const STATS_IN_FLIGHT: usize = 16;

/// A queue in an object store. Nothing is ever renamed there, and creating an object decides, if the store honours `If-None-Match: *`.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    operator: Operator,
    /// Before the key of each object; empty, or ends with `/`.
    prefix: String,
    honours: Honours,
}

impl ObjectStore {
    /// Opens the place at the root of an operator, and tries whether of two conditional creations of one object the second fails. Some servers take the condition and
    /// ignore it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn open(operator: Operator) -> Result<Self, StoreError> {
        Self::open_below(operator, "").await
    }

    /// The same below a prefix.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn open_below(operator: Operator, prefix: &str) -> Result<Self, StoreError> {
        let mut store = Self::for_reading_below(operator, prefix);
        store.honours.creates_once = true;
        let path = format!("queue/probe/{:032x}", rand::random::<u128>());
        let first = store.create(&path, Bytes::from_static(b"1")).await;
        let creates_once = match first {
            Ok(true) => !store.create(&path, Bytes::from_static(b"2")).await?,
            // It may know no conditions at all; then a plain write tells whether it can be written.
            Ok(false) | Err(StoreError { is_temporary: false, .. }) => {
                store.replace(&path, Bytes::from_static(b"1")).await?;
                false
            }
            Err(error) => return Err(error),
        };
        store.delete(&path).await?;
        store.honours.creates_once = creates_once;
        Ok(store)
    }

    /// One below a prefix that is only read, of which nothing is tried.
    pub(crate) fn for_reading_below(operator: Operator, prefix: &str) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{}/", prefix.trim_matches('/')) };
        Self { operator, prefix, honours: Honours { creates_once: false, renames: false } }
    }

    fn key(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

impl QueueStore for ObjectStore {
    fn honours(&self) -> Honours {
        self.honours
    }

    fn list<'a>(&'a self, directory: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(call("list", directory, async move {
            let lister = self.operator.lister(&self.key(&format!("{directory}/"))).await?;
            let listed = lister.take(LISTED_MAX).try_filter(|entry| std::future::ready(entry.metadata().is_file()));
            let listed = listed.map_ok(|entry| async move {
                let about = match entry.metadata().etag() {
                    Some(_) => entry.metadata().clone(),
                    None => match self.operator.stat(entry.path()).await {
                        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                        about => about?,
                    },
                };
                let marker = marker_of(&(about.etag(), about.last_modified().map(|time| time.to_string()), about.content_length()));
                Ok(Some(Listed { name: entry.name().to_owned(), marker }))
            });
            let mut listed: Vec<_> =
                listed.try_buffered(STATS_IN_FLIGHT).try_filter_map(|listed| std::future::ready(Ok(listed))).try_collect().await?;
            listed.sort_unstable();
            Ok(listed)
        }))
    }

    fn read<'a>(&'a self, path: &'a str, bytes_max: u64) -> BoxFuture<'a, Result<Content, StoreError>> {
        Box::pin(call("read", path, async move {
            let read = async {
                let mut parts = self.operator.reader(&self.key(path)).await?.into_stream(..).await?;
                let mut content = Vec::new();
                while let Some(part) = parts.next().await {
                    content.extend_from_slice(&part?.to_bytes());
                    if content.len() as u64 > bytes_max {
                        return Ok::<_, opendal::Error>(Content::TooLong);
                    }
                }
                Ok(Content::Bytes(content.into()))
            };
            match read.await {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Content::Missing),
                read => read,
            }
        }))
    }

    fn create<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(call("create", path, async move {
            match self.operator.write_with(&self.key(path), content).if_not_exists(true).await {
                Ok(_) => Ok(true),
                // Two that create one object at one time may both be told that there is a conflict; whoever asks again learns who was first.
                Err(error) if matches!(error.kind(), ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists) => Ok(false),
                Err(error) => Err(error),
            }
        }))
    }

    fn replace<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(call("write", path, async move { self.operator.write(&self.key(path), content).await.map(|_| ()) }))
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let content = match self.read(from, crate::queue::batch::FILE_BYTES_MAX).await? {
                Content::Bytes(content) => content,
                Content::Missing => return Ok(false),
                Content::TooLong => return Err(StoreError::new(false, format!("cannot move {from}: it is too long"))),
            };
            if self.read(to, 0).await? != Content::Missing {
                return Ok(false);
            }
            self.replace(to, content).await?;
            self.delete(from).await?;
            Ok(true)
        })
    }

    fn delete<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(call("delete", path, async move { self.operator.delete(&self.key(path)).await }))
    }
}

/// One call of the store, bounded in time and with an error that names the object.
async fn call<T>(what: &str, path: &str, work: impl Future<Output = opendal::Result<T>>) -> Result<T, StoreError> {
    match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            let is_permanent = matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported | ErrorKind::ConfigInvalid);
            Err(StoreError::new(!is_permanent, format!("cannot {what} {path}: {error}")))
        }
        Err(_) => Err(StoreError::new(true, format!("cannot {what} {path}: no answer within {CALL_TIMEOUT:?}"))),
    }
}
