//! What a listing tells of one file, directory or link.

use std::time::SystemTime;

use crate::path::EntryPath;

/// One thing below the root of a remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is, relative to the root of the remote.
    pub path: EntryPath,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file; 0 of anything else.
    pub size: u64,
    /// When it was changed last, if the storage knows. Object stores tell the time which a copy has left with the object, where the listing has it.
    pub modified: Option<SystemTime>,
    /// Permission bits of Unix, if the storage has them.
    pub mode: Option<u32>,
    /// What changes whenever the content does: the tag of an object store, or device, inode, size and change time of a local file.
    pub tag: Option<Box<str>>,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, or an object.
    File,
    /// A directory; object stores tell a common prefix as one.
    Directory,
    /// A symbolic link, with what it points to. Only storages with [`Abilities::has_links`](crate::Abilities::has_links) tell it.
    Link(Box<str>),
    /// A socket, pipe or device, which no copy takes.
    Other,
}
