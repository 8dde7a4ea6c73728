//! An object store as a storage, by OpenDAL.
//!
//! There are no directories and no modes. The time of a file is kept as rclone keeps it, as the user metadata `mtime` in seconds; a listing does not
//! tell it, a `stat` does. What the store honours of conditions is found out by [`ObjectTree::probe`]; until then, and where it honours none, a look
//! comes just before the effect.
//!
//! Every wait ends: a store that stops answering is [`ErrorKind::Temporary`].

mod errors;
mod probe;
pub(in crate::remote) mod s3;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use opendal::{Metadata, Operator};

use self::errors::{bounded, failed, timed_out};
use self::write::ObjectWriter;
use crate::entry::{Entry, EntryKind};
use crate::path::EntryPath;
use crate::remote::is_staging_name;
use crate::storage::{Abilities, Condition, Content, ErrorKind, Hash, Storage, StorageError, WriteOptions, Writer};

/// Longest wait for an answer that carries little.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the next bytes, or until bytes are taken.
const DATA_TIMEOUT: Duration = Duration::from_secs(300);
/// Files from this size on are written and read in parts, several at the same time.
pub(crate) const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts of one file at the same time.
const PARTS_AT_ONCE: usize = 4;
/// Most parts of one object.
const PARTS_MAX: u64 = 10_000;
/// Largest object that a store copies by itself at once. In parts it would lose its metadata.
pub(crate) const COPY_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;
/// Key of the user metadata that holds the time.
const MTIME_KEY: &str = "mtime";

/// Which store it is: objects of the same account and container can be copied without passing through us.
#[derive(PartialEq, Eq)]
pub(crate) struct Account {
    kind: &'static str,
    settings: BTreeMap<String, String>,
    container: String,
}

/// How long answers are waited for.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    control: Duration,
    data: Duration,
}

/// The objects below a prefix.
#[derive(Clone)]
pub(crate) struct ObjectTree {
    operator: Operator,
    prefix: EntryPath,
    timeouts: Timeouts,
    unprobed: Abilities,
    /// What the store was found to honour; shared by all trees of one opening.
    probed: Arc<OnceLock<Abilities>>,
    probing: Arc<tokio::sync::Mutex<()>>,
}

impl ObjectTree {
    fn new(operator: Operator, prefix: EntryPath, timeouts: Timeouts) -> Self {
        let unprobed = Abilities {
            // Not in the order of names: a directory `a` comes as `a/`, behind a file `a-b`.
            lists_in_order: false,
            copies: operator.info().capability().copy,
            atomic_writes: true,
            hash: Some(Hash::Md5),
            time_precision_ns: Some(1),
            ..Abilities::default()
        };
        Self { operator, prefix, timeouts, unprobed, probed: Arc::default(), probing: Arc::default() }
    }

    fn below(&self, prefix: &EntryPath) -> Self {
        Self { prefix: prefix.clone(), ..self.clone() }
    }

    /// The store below it, at the root of its container.
    pub(crate) fn operator(&self) -> &Operator {
        &self.operator
    }

    /// The key of a path.
    fn key(&self, path: &EntryPath) -> Result<String, StorageError> {
        let key = match (self.prefix.is_root(), path.is_root()) {
            (true, _) => path.to_string(),
            (false, true) => self.prefix.to_string(),
            (false, false) => format!("{}/{path}", self.prefix),
        };
        // OpenDAL cuts white space off the ends, and would so name another object.
        match key.trim() == key {
            true => Ok(key),
            false => Err(StorageError::new(ErrorKind::InvalidName, format!("{:?}: a key with white space at its ends", path.as_str()))),
        }
    }

    /// What has this key.
    async fn look(&self, path: &EntryPath) -> Result<Option<Entry>, StorageError> {
        let key = self.key(path)?;
        match bounded(self.timeouts.control, "look at", path.as_str(), self.operator.stat(&key)).await {
            Ok(metadata) => Ok(Some(entry_of(path.clone(), &metadata))),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A look just before an effect, where the store decides nothing by itself.
    async fn check(&self, path: &EntryPath, condition: &Condition, doing: &str) -> Result<(), StorageError> {
        let found = match condition {
            Condition::Always => return Ok(()),
            _ => self.look(path).await?,
        };
        let is_met = match (condition, &found) {
            (Condition::Absent, found) => found.is_none(),
            (Condition::Tag(wanted), Some(found)) => found.tag.as_ref() == Some(wanted),
            _ => false,
        };
        match is_met {
            true => Ok(()),
            false => {
                let why = if found.is_some() { "something else has its name now" } else { "it is gone" };
                Err(StorageError::new(ErrorKind::ConditionFailed, format!("cannot {doing} {:?}: {why}", path.as_str())))
            }
        }
    }

    async fn read_content(self, path: EntryPath, range: Range<u64>) -> Result<Content, StorageError> {
        let key = self.key(&path)?;
        let bytes = range.end.saturating_sub(range.start);
        let mut reader = self.operator.reader_with(&key);
        if bytes > PART_BYTES {
            // Several requests must not see several versions.
            let found = self.look(&path).await?;
            let found =
                found.ok_or_else(|| StorageError::new(ErrorKind::NotFound, format!("cannot read {:?}: it is gone", path.as_str())))?;
            if let Some(tag) = &found.tag {
                reader = reader.if_match(tag);
            }
            reader = reader.chunk(PART_BYTES as usize).concurrent(PARTS_AT_ONCE);
        }
        let reader = bounded(self.timeouts.control, "read", path.as_str(), async { reader.await }).await?;
        let opened = reader.into_stream(range);
        let bytes = bounded(self.timeouts.control, "read", path.as_str(), opened).await?;
        let limit = self.timeouts.data;
        let content = stream::unfold(Some((bytes, path)), move |state| async move {
            let (mut bytes, path) = state?;
            match tokio::time::timeout(limit, bytes.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(read))) => Some((Ok(read.to_bytes()), Some((bytes, path)))),
                Ok(Some(Err(error))) => Some((Err(reading_failed(&path, &error)), None)),
                Err(_) => Some((Err(timed_out("read", path.as_str())), None)),
            }
        });
        Ok(content.boxed())
    }

    async fn copy_object(self, from: EntryPath, to: EntryPath, options: WriteOptions) -> Result<Entry, StorageError> {
        if options.size.is_some_and(|size| size > COPY_BYTES_MAX) {
            return Err(StorageError::new(ErrorKind::Unsupported, format!("{:?} is too large to be copied by the store", from.as_str())));
        }
        let (from_key, to_key) = (self.key(&from)?, self.key(&to)?);
        let mut copy = self.operator.copy_with(&from_key, &to_key);
        if self.abilities().conditional_writes {
            copy = match &options.condition {
                Condition::Always => copy,
                Condition::Absent => copy.if_not_exists(true),
                Condition::Tag(tag) => copy.if_match(tag),
            };
        } else {
            self.check(&to, &options.condition, "write").await?;
        }
        bounded(self.timeouts.data, "copy", to.as_str(), async { copy.await }).await?;
        // The answer tells neither size nor time.
        let written = self.look(&to).await?;
        written.ok_or_else(|| StorageError::new(ErrorKind::Changed, format!("{:?} was removed as soon as it was written", to.as_str())))
    }

    async fn remove_object(self, path: EntryPath, condition: Condition) -> Result<(), StorageError> {
        let key = self.key(&path)?;
        let mut delete = self.operator.delete_with(&key);
        match &condition {
            Condition::Tag(tag) if self.abilities().conditional_deletes => delete = delete.if_match(tag),
            condition => self.check(&path, condition, "remove").await?,
        }
        bounded(self.timeouts.control, "remove", path.as_str(), async { delete.await }).await
    }

    fn list_keys(self, directory: EntryPath) -> BoxStream<'static, Result<Entry, StorageError>> {
        let listing = async move {
            let key = self.key(&directory)?;
            let prefix = if key.is_empty() { String::new() } else { format!("{key}/") };
            let limit = self.timeouts.data;
            let lister = bounded(self.timeouts.control, "list", directory.as_str(), self.operator.lister(&prefix)).await?;
            Ok(stream::unfold(Some((lister, directory, prefix)), move |state| async move {
                let (mut lister, directory, prefix) = state?;
                loop {
                    match tokio::time::timeout(limit, lister.next()).await {
                        Ok(None) => return None,
                        Ok(Some(Ok(found))) => match listed(&directory, &prefix, found) {
                            Some(entry) => return Some((entry, Some((lister, directory, prefix)))),
                            None => continue,
                        },
                        Ok(Some(Err(error))) => return Some((Err(failed("list", directory.as_str(), &error)), None)),
                        Err(_) => return Some((Err(timed_out("list", directory.as_str())), None)),
                    }
                }
            }))
        };
        let started = listing.map(|listing: Result<_, StorageError>| match listing {
            Ok(entries) => entries.boxed(),
            Err(error) => stream::once(std::future::ready(Err(error))).boxed(),
        });
        stream::once(started).flatten().boxed()
    }
}

/// An entry of a listing; none for the directory itself, and for what belongs to a run.
fn listed(directory: &EntryPath, prefix: &str, found: opendal::Entry) -> Option<Result<Entry, StorageError>> {
    let (key, metadata) = found.into_parts();
    let name = key.strip_prefix(prefix).unwrap_or(&key);
    let is_directory = name.ends_with('/');
    let name = name.strip_suffix('/').unwrap_or(name);
    if name.is_empty() || is_staging_name(name) {
        return None;
    }
    // A key such as `a//b` cannot be named below a root.
    let path = match directory.join(name) {
        Ok(path) => path,
        Err(error) => return Some(Err(StorageError::new(ErrorKind::InvalidName, error.to_string()))),
    };
    let mut entry = entry_of(path, &metadata);
    // When it was uploaded is not when it was changed; the time that a copy has left is not in a listing.
    entry.modified = None;
    if is_directory {
        entry = Entry { kind: EntryKind::Directory, size: 0, tag: None, ..entry };
    }
    Some(Ok(entry))
}

fn entry_of(path: EntryPath, metadata: &Metadata) -> Entry {
    let kept = metadata.user_metadata().and_then(|kept| kept.get(MTIME_KEY).and_then(time_of));
    Entry {
        path,
        kind: if metadata.is_dir() { EntryKind::Directory } else { EntryKind::File },
        size: metadata.content_length(),
        modified: kept.or_else(|| metadata.last_modified().map(SystemTime::from)),
        mode: None,
        tag: metadata.etag().map(Box::from),
    }
}

fn reading_failed(path: &EntryPath, error: &opendal::Error) -> StorageError {
    let mut failed = failed("read", path.as_str(), error);
    // Another version than the one whose reading began.
    let is_other = failed.kind == ErrorKind::ConditionFailed || error.kind() == opendal::ErrorKind::RangeNotSatisfied;
    if is_other {
        failed.kind = ErrorKind::Changed;
    }
    failed
}

/// Reads a time as rclone writes it: seconds with a fraction of up to nine digits.
fn time_of(text: &str) -> Option<SystemTime> {
    let (is_before, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let seconds = Duration::from_secs(seconds.parse().ok()?);
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{:0<9}", &fraction[..fraction.len().min(9)]).parse().ok()?;
    let since = seconds.checked_add(Duration::from_nanos(nanoseconds))?;
    if is_before { SystemTime::UNIX_EPOCH.checked_sub(since) } else { SystemTime::UNIX_EPOCH.checked_add(since) }
}

/// Writes it.
fn text_of(time: SystemTime) -> String {
    let (sign, since) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => ("", since),
        Err(error) => ("-", error.duration()),
    };
    let text = format!("{sign}{}.{:09}", since.as_secs(), since.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes of each part of an object of this size.
pub(crate) fn part_bytes(size: u64) -> u64 {
    // In whole mebibytes, so that the parts of two runs are the same.
    size.div_ceil(PARTS_MAX).next_multiple_of(1024 * 1024).max(PART_BYTES)
}

impl Storage for ObjectTree {
    fn abilities(&self) -> &Abilities {
        self.probed.get().unwrap_or(&self.unprobed)
    }

    fn list(&self, directory: &EntryPath) -> BoxStream<'static, Result<Entry, StorageError>> {
        self.clone().list_keys(directory.clone())
    }

    fn stat(&self, path: &EntryPath) -> BoxFuture<'static, Result<Option<Entry>, StorageError>> {
        let (tree, path) = (self.clone(), path.clone());
        async move {
            match path.is_root() {
                // There is nothing of that name, and yet it can be listed.
                true => Ok(Some(Entry { path, kind: EntryKind::Directory, size: 0, modified: None, mode: None, tag: None })),
                false => tree.look(&path).await,
            }
        }
        .boxed()
    }

    fn read(&self, path: &EntryPath, range: Range<u64>) -> BoxFuture<'static, Result<Content, StorageError>> {
        if range.is_empty() {
            return std::future::ready(Ok(stream::empty().boxed())).boxed();
        }
        self.clone().read_content(path.clone(), range).boxed()
    }

    fn write(&self, path: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Box<dyn Writer>, StorageError>> {
        let writer = ObjectWriter::begin(self.clone(), path.clone(), options);
        writer.map(|writer| writer.map(|writer| Box::new(writer) as Box<dyn Writer>)).boxed()
    }

    fn copy(&self, from: &EntryPath, to: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Entry, StorageError>> {
        self.clone().copy_object(from.clone(), to.clone(), options).boxed()
    }

    fn rename(&self, from: &EntryPath, _: &EntryPath, _: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        std::future::ready(Err(unsupported("rename", from))).boxed()
    }

    fn remove(&self, path: &EntryPath, condition: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        self.clone().remove_object(path.clone(), condition).boxed()
    }

    fn make_directory(&self, _: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn remove_directory(&self, _: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn set_attributes(&self, path: &EntryPath, _: Option<SystemTime>, _: Option<u32>) -> BoxFuture<'static, Result<(), StorageError>> {
        std::future::ready(Err(unsupported("set the attributes of", path))).boxed()
    }
}

fn unsupported(doing: &str, path: &EntryPath) -> StorageError {
    StorageError::new(ErrorKind::Unsupported, format!("cannot {doing} {:?}: an object store does not do that", path.as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_written_as_rclone_writes_it() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_305_205_523, 120_000_000);
        assert_eq!(text_of(time), "1305205523.12");
        assert_eq!(text_of(SystemTime::UNIX_EPOCH + Duration::from_secs(20)), "20");
        for text in ["", "x", "1.x", "-", "1.-5", "99999999999999999999"] {
            assert_eq!(time_of(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_object_never_has_more_parts_than_it_may() {
        for size in [0, 1, PART_BYTES, 80_000_000_000, 5 << 40, 10_000 * (1 << 20) + 1] {
            let part = part_bytes(size);
            assert!(part >= PART_BYTES && size.div_ceil(part) <= PARTS_MAX, "{size}");
        }
    }

    proptest! {
        #[test]
        fn a_time_returns(seconds in 0_u64..20_000_000_000, nanoseconds in 0_u32..1_000_000_000, is_before: bool) {
            let since = Duration::new(seconds, nanoseconds);
            let time = if is_before { SystemTime::UNIX_EPOCH - since } else { SystemTime::UNIX_EPOCH + since };
            prop_assert_eq!(time_of(&text_of(time)), Some(time));
        }
    }
}
