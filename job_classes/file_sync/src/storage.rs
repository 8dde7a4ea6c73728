//! What a place for files can do, whatever it is.
//!
//! Nothing above asks what a storage *is*, only what it *can*: [`Abilities`]. Paths are below the root with which the storage was opened.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::entry::Entry;
use crate::path::EntryPath;

/// What a storage can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// A listing of a directory comes in the order of names, so nobody needs to sort it.
    pub lists_in_order: bool,
    /// It has directories of their own, also empty ones.
    pub has_directories: bool,
    /// It has symbolic links.
    pub has_links: bool,
    /// It keeps permission bits.
    pub has_modes: bool,
    /// A file can be given a time at no cost; listings tell it.
    pub sets_times: bool,
    /// It moves a file without copying its bytes, and the new name appears whole or not at all.
    pub renames: bool,
    /// It copies within itself, without the bytes passing through us.
    pub copies: bool,
    /// It honours [`Condition`]s on writes; probed, never assumed.
    pub conditional_writes: bool,
    /// It honours [`Condition`]s on deletes.
    pub conditional_deletes: bool,
    /// A file appears under its name only when it was written completely.
    pub atomic_writes: bool,
    /// The hash that listings or `stat` tell without reading the content.
    pub hash: Option<Hash>,
    /// Finest difference between two times that it keeps, in nanoseconds; none if it keeps none.
    pub time_precision_ns: Option<u64>,
}

/// A hash of content that a storage knows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// MD5, the tag of most objects that were written in one part.
    Md5,
}

/// What must be so for an effect to take place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Always,
    /// Nothing has the name.
    Absent,
    /// What has the name has this [`Entry::tag`].
    Tag(Box<str>),
}

/// How a file is to be written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// When it may appear under its name.
    pub condition: Condition,
    /// The time it is to have.
    pub modified: Option<SystemTime>,
    /// The permission bits it is to have.
    pub mode: Option<u32>,
    /// Bytes that will come, if known.
    pub size: Option<u64>,
}

/// Content of a file, part by part.
pub type Content = BoxStream<'static, Result<Bytes, StorageError>>;

/// A file that is being written. Dropped before [`Writer::finish`], it leaves nothing under its name.
pub trait Writer: Send {
    /// Adds bytes; resolves when the storage can take more.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Makes it appear under its name.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Entry, StorageError>>;
}

/// A tree of files.
pub trait Storage: Send + Sync + 'static {
    /// What it can do.
    fn abilities(&self) -> &Abilities;

    /// The entries of one directory, not of those below; in the order of names if [`Abilities::lists_in_order`]. A directory that does not exist is
    /// [`ErrorKind::NotFound`] where the storage has directories, else empty.
    fn list(&self, directory: &EntryPath) -> BoxStream<'static, Result<Entry, StorageError>>;

    /// What has this name, links not followed; none if nothing has.
    fn stat(&self, path: &EntryPath) -> BoxFuture<'static, Result<Option<Entry>, StorageError>>;

    /// The content of a file, or a part of it.
    fn read(&self, path: &EntryPath, range: Range<u64>) -> BoxFuture<'static, Result<Content, StorageError>>;

    /// Begins a file; directories above it are made.
    fn write(&self, path: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Box<dyn Writer>, StorageError>>;

    /// Copies within the storage, if it [can](Abilities::copies); directories above are made.
    fn copy(&self, from: &EntryPath, to: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Entry, StorageError>>;

    /// Renames within the storage, if it [can](Abilities::renames), over what is there if the condition allows it; directories above are made.
    fn rename(&self, from: &EntryPath, to: &EntryPath, condition: Condition) -> BoxFuture<'static, Result<(), StorageError>>;

    /// Removes a file or link.
    fn remove(&self, path: &EntryPath, condition: Condition) -> BoxFuture<'static, Result<(), StorageError>>;

    /// Makes a directory and those above it; one that is there is no error. Nothing happens where there are no directories.
    fn make_directory(&self, path: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>>;

    /// Removes an empty directory.
    fn remove_directory(&self, path: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>>;

    /// Gives a file or directory a time and permission bits, where it has such.
    fn set_attributes(
        &self,
        path: &EntryPath,
        modified: Option<SystemTime>,
        mode: Option<u32>,
    ) -> BoxFuture<'static, Result<(), StorageError>>;
}

/// Why a storage did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct StorageError {
    /// What kind of failure, for programs.
    pub kind: ErrorKind,
    /// What failed, on which file, and why, for people.
    pub what: String,
}

/// Kinds of [`StorageError`]. Whoever retries asks [`ErrorKind::is_temporary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such file or directory.
    NotFound,
    /// A [`Condition`] was not met: somebody else was there. Nothing was changed.
    ConditionFailed,
    /// The attempt that asked was revoked: another one does its work. Nothing was changed.
    Revoked,
    /// Not permitted, or credentials were refused.
    Denied,
    /// No space, or a quota was reached.
    NoSpace,
    /// The name cannot be used there.
    InvalidName,
    /// It is a directory where a file was expected, or the other way round, or not empty.
    WrongKind,
    /// The content changed while it was read, or did not arrive as it was sent.
    Changed,
    /// The storage cannot do that; whoever asks [`Abilities`] first never sees it.
    Unsupported,
    /// Overloaded, unreachable or too slow; may work later.
    Temporary,
    /// Anything else.
    Failed,
}

impl ErrorKind {
    /// Whether a later try may succeed without anybody doing anything.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Temporary | Self::Changed)
    }
}

impl StorageError {
    /// One of a kind.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}
