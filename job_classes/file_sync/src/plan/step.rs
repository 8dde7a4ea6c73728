//! What whoever carries a plan out is told.

use std::fmt;
use std::time::SystemTime;

use crate::listing::Side;
use crate::operation::Operation;
use crate::path::EntryPath;
use crate::storage::ErrorKind;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A directory to be made at the destination; directories above it come first.
    MakeDirectory {
        /// Where.
        path: EntryPath,
        /// Its permission bits.
        mode: Option<u32>,
    },
    /// A file to be copied or moved.
    Transfer {
        /// What is to be queued.
        operation: Operation,
        /// What must be done before: the file that is replaced goes to where backups are kept. If that fails, the operation must not be queued.
        backup: Option<Operation>,
    },
    /// A file to be deleted, by an [`Operation::DeleteFile`], or by an [`Operation::MoveFile`] to where backups are kept.
    Delete {
        /// On which side.
        side: Side,
        /// What is to be queued.
        operation: Operation,
    },
    /// A file of the destination that has the content of its source already, and gets its time.
    UpdateTimes {
        /// Where.
        path: EntryPath,
        /// Its new time.
        modified: SystemTime,
    },
    /// A directory to be removed, if it is empty; one that is not, or is gone, is no error. Deeper ones come first, so these are done in order.
    RemoveDirectory {
        /// On which side.
        side: Side,
        /// Where.
        path: EntryPath,
    },
    /// A directory of the destination to be given a time. One that does not exist is no error.
    SetDirectoryTimes {
        /// Where.
        path: EntryPath,
        /// Its new time.
        modified: SystemTime,
    },
    /// Everything before must be done before anything after.
    Barrier,
    /// Something that could not be planned; the run cannot succeed.
    Problem(Problem),
    /// Something that the operator may want to know; the run can succeed.
    Notice(Notice),
}

/// Something that could not be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// On which side.
    pub side: Side,
    /// Which file or directory; the root if it concerns the run.
    pub path: EntryPath,
    /// What kind of problem, for programs.
    pub kind: ProblemKind,
    /// What is wrong, for people.
    pub what: String,
}

/// Kinds of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemKind {
    /// A directory or file could not be read. Below it nothing was planned.
    Unreadable(ErrorKind),
    /// A file is a directory on the other side.
    WrongKind,
    /// Two names of the source are one at the destination.
    Clash,
    /// A file differs, and `--immutable` forbids to change it.
    Immutable,
    /// `--max-delete` was reached: fatal, and nothing more is deleted.
    MaxDelete,
    /// There was something to delete, and it stays because something failed before.
    DeletesSuppressed,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_root() {
            true => f.write_str(&self.what),
            false => write!(f, "{}: {}", self.path, self.what),
        }
    }
}

/// Something worth to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which file.
    pub path: EntryPath,
    /// What about it.
    pub kind: NoticeKind,
}

/// Kinds of [`Notice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoticeKind {
    /// A symbolic link of the source is left out: neither `--links` nor `--copy-links` is set, or the destination has no links.
    LinkSkipped,
    /// A socket, pipe or device of the source is left out.
    SpecialSkipped,
    /// Another name in the same directory of the source differs by its Unicode form alone.
    SameLook,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            NoticeKind::LinkSkipped => "symbolic link skipped; --links copies it as a link, --copy-links what it points to",
            NoticeKind::SpecialSkipped => "neither a file nor a directory; skipped",
            NoticeKind::SameLook => "another name in this directory looks the same and differs by its Unicode form alone",
        };
        write!(f, "{}: {what}", self.path)
    }
}
