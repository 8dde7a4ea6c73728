//! A tree in memory for tests of what needs to list and read alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};

use crate::entry::{Entry, EntryKind};
use crate::path::EntryPath;
use crate::storage::{Abilities, Condition, Content, ErrorKind, Hash, Storage, StorageError, WriteOptions, Writer};

/// What kind of storage a [`Tree`] behaves like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Like {
    /// A local disk: in order, with directories and links.
    Disk,
    /// A storage that lists in no order.
    Unordered,
    /// An object store: hashes, no directories; times only where it is asked for a single object.
    Objects,
}

/// One file, directory or link.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: EntryKind,
    pub(crate) content: Bytes,
    pub(crate) seconds: u64,
}

/// Files by path.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    abilities: Abilities,
    like: Like,
    nodes: BTreeMap<EntryPath, Node>,
    broken: BTreeSet<EntryPath>,
    /// Questions that fail for now, before all is well.
    failing: Arc<AtomicU32>,
}

pub(crate) fn path(text: &str) -> EntryPath {
    EntryPath::parse(text).expect("a path")
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Whether there is an rclone to compare with. Tests that need it are skipped without it, unless all must run.
pub(crate) fn has_rclone() -> bool {
    let found = std::process::Command::new("rclone").arg("version").output().is_ok_and(|output| output.status.success());
    if !found {
        assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "no rclone to compare with");
        eprintln!("skipped: no rclone to compare with");
    }
    found
}

impl Tree {
    pub(crate) fn new(like: Like) -> Self {
        let is_flat = like == Like::Objects;
        let abilities = Abilities {
            lists_in_order: like != Like::Unordered,
            has_directories: !is_flat,
            has_links: !is_flat,
            sets_times: !is_flat,
            hash: is_flat.then_some(Hash::Md5),
            time_precision_ns: Some(1),
            ..Abilities::default()
        };
        Self { abilities, like, nodes: BTreeMap::new(), broken: BTreeSet::new(), failing: Arc::default() }
    }

    /// Adds a file, and the directories above it.
    pub(crate) fn file(self, name: &str, content: &str, seconds: u64) -> Self {
        self.node(name, Node { kind: EntryKind::File, content: Bytes::copy_from_slice(content.as_bytes()), seconds })
    }

    pub(crate) fn directory(self, name: &str, seconds: u64) -> Self {
        self.node(name, Node { kind: EntryKind::Directory, content: Bytes::new(), seconds })
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.node(name, Node { kind: EntryKind::Link(target.into()), content: Bytes::new(), seconds: 0 })
    }

    pub(crate) fn special(self, name: &str) -> Self {
        self.node(name, Node { kind: EntryKind::Other, content: Bytes::new(), seconds: 0 })
    }

    /// What has this name cannot be listed, looked at or read.
    pub(crate) fn broken(mut self, name: &str) -> Self {
        self.broken.insert(path(name));
        self
    }

    /// The first so many questions fail, and may be asked again.
    pub(crate) fn failing(self, questions: u32) -> Self {
        self.failing.store(questions, Ordering::Relaxed);
        self
    }

    /// It says that it lists in order, and does not.
    pub(crate) fn pretending_order(mut self) -> Self {
        self.abilities.lists_in_order = true;
        self
    }

    fn node(mut self, name: &str, node: Node) -> Self {
        let mut above = path(name).parent();
        while let Some(directory) = above.filter(|directory| !directory.is_root()) {
            let missing = Node { kind: EntryKind::Directory, content: Bytes::new(), seconds: 1 };
            self.nodes.entry(directory.clone()).or_insert(missing);
            above = directory.parent();
        }
        self.nodes.insert(path(name), node);
        self
    }

    fn entry(&self, path: &EntryPath, node: &Node, is_listed: bool) -> Entry {
        let is_object = self.like == Like::Objects;
        let tag = match is_object {
            true => md5_text(&node.content),
            false => format!("{}-{}-{}", node.seconds, node.content.len(), xxhash_rust::xxh3::xxh3_64(&node.content)),
        };
        Entry {
            path: path.clone(),
            kind: node.kind.clone(),
            size: node.content.len() as u64,
            modified: (!is_object || !is_listed).then(|| at(node.seconds)),
            mode: None,
            tag: (node.kind != EntryKind::Directory).then(|| tag.into()),
        }
    }

    fn check(&self, path: &EntryPath) -> Result<(), StorageError> {
        let fails = self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if fails.is_ok() {
            return Err(StorageError::new(ErrorKind::Temporary, "slow down"));
        }
        match self.broken.contains(path) {
            true => Err(StorageError::new(ErrorKind::Denied, format!("cannot read {path:?}"))),
            false => Ok(()),
        }
    }
}

fn md5_text(content: &[u8]) -> String {
    use md5::{Digest, Md5};
    Md5::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unsupported<T: Send + 'static>() -> BoxFuture<'static, Result<T, StorageError>> {
    std::future::ready(Err(StorageError::new(ErrorKind::Unsupported, "this tree is only read"))).boxed()
}

impl Storage for Tree {
    fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    fn list(&self, directory: &EntryPath) -> BoxStream<'static, Result<Entry, StorageError>> {
        let is_there = directory.is_root() || self.nodes.get(directory).is_some_and(|node| node.kind == EntryKind::Directory);
        let mut entries: Vec<_> = match (self.check(directory), is_there || !self.abilities.has_directories) {
            (Err(error), _) => vec![Err(error)],
            (Ok(()), false) => vec![Err(StorageError::new(ErrorKind::NotFound, format!("no directory {directory:?}")))],
            (Ok(()), true) => {
                let below = self.nodes.iter().filter(|(path, _)| path.parent().as_ref() == Some(directory));
                below.map(|(path, node)| self.check(path).map(|()| self.entry(path, node, true))).collect()
            }
        };
        // Directories that cannot be listed are told all the same.
        for entry in &mut entries {
            if let Err(error) = entry
                && let Some((path, node)) = self.nodes.iter().find(|(path, _)| error.what.ends_with(&format!("{path:?}")))
                && node.kind == EntryKind::Directory
                && path != directory
            {
                *entry = Ok(self.entry(path, node, true));
            }
        }
        if self.like == Like::Unordered {
            entries.sort_by_key(|entry| entry.as_ref().map_or(0, |entry| xxhash_rust::xxh3::xxh3_64(entry.path.name().as_bytes())));
        }
        stream::iter(entries).boxed()
    }

    fn stat(&self, path: &EntryPath) -> BoxFuture<'static, Result<Option<Entry>, StorageError>> {
        let found = self.check(path).map(|()| self.nodes.get(path).map(|node| self.entry(path, node, false)));
        std::future::ready(found).boxed()
    }

    fn read(&self, path: &EntryPath, range: Range<u64>) -> BoxFuture<'static, Result<Content, StorageError>> {
        let content = self.check(path).map(|()| self.nodes[path].content.slice(range.start as usize..range.end as usize));
        let parts = content.map(|content| {
            let parts: Vec<_> = content.chunks(3).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
            stream::iter(parts).boxed()
        });
        std::future::ready(parts).boxed()
    }

    fn write(&self, _: &EntryPath, _: WriteOptions) -> BoxFuture<'static, Result<Box<dyn Writer>, StorageError>> {
        unsupported()
    }

    fn copy(&self, _: &EntryPath, _: &EntryPath, _: WriteOptions) -> BoxFuture<'static, Result<Entry, StorageError>> {
        unsupported()
    }

    fn rename(&self, _: &EntryPath, _: &EntryPath, _: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        unsupported()
    }

    fn remove(&self, _: &EntryPath, _: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        unsupported()
    }

    fn make_directory(&self, _: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        unsupported()
    }

    fn remove_directory(&self, _: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        unsupported()
    }

    fn set_attributes(&self, _: &EntryPath, _: Option<SystemTime>, _: Option<u32>) -> BoxFuture<'static, Result<(), StorageError>> {
        unsupported()
    }
}
