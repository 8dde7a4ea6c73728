//! One entry of a listing, borrowed from wherever the listing keeps it.

use std::time::SystemTime;

use crate::entry::{Entry, EntryKind};
use crate::path::EntryPath;

/// An entry without the path of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: ItemKind<'a>,
    pub(crate) size: u64,
    pub(crate) modified: Option<SystemTime>,
    pub(crate) mode: Option<u32>,
    pub(crate) tag: Tag<'a>,
}

/// As [`EntryKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ItemKind<'a> {
    File,
    Directory,
    Link(&'a str),
    Other,
}

/// As [`Entry::tag`], which a very large directory does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag<'a> {
    None,
    Known(&'a str),
    /// There was one; who needs it must ask the storage again.
    NotKept,
}

impl<'a> Item<'a> {
    pub(crate) fn of(entry: &'a Entry) -> Self {
        Self::named(entry, entry.path.name())
    }

    /// The same where the name is known already.
    pub(super) fn named(entry: &'a Entry, name: &'a str) -> Self {
        let kind = match &entry.kind {
            EntryKind::File => ItemKind::File,
            EntryKind::Directory => ItemKind::Directory,
            EntryKind::Link(target) => ItemKind::Link(target),
            EntryKind::Other => ItemKind::Other,
        };
        let tag = entry.tag.as_deref().map_or(Tag::None, Tag::Known);
        Self { name, kind, size: entry.size, modified: entry.modified, mode: entry.mode, tag }
    }

    /// As an entry of its own; whether it is complete, or lacks the tag.
    pub(crate) fn to_entry(self, path: EntryPath) -> (Entry, bool) {
        let kind = match self.kind {
            ItemKind::File => EntryKind::File,
            ItemKind::Directory => EntryKind::Directory,
            ItemKind::Link(target) => EntryKind::Link(target.into()),
            ItemKind::Other => EntryKind::Other,
        };
        let tag = if let Tag::Known(tag) = self.tag { Some(tag.into()) } else { None };
        let entry = Entry { path, kind, size: self.size, modified: self.modified, mode: self.mode, tag };
        (entry, self.tag != Tag::NotKept)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == ItemKind::Directory
    }

    /// Where it stands among entries of the same name: object stores may have both a directory and a file.
    pub(super) fn rank(&self) -> u8 {
        u8::from(!self.is_directory())
    }
}
