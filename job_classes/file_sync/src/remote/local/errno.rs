//! Errors of the operating system as errors of a storage.

use std::fmt::Display;

use rustix::io::Errno;

use crate::storage::{ErrorKind, StorageError};

/// What failed with which error, for people; `doing` and the name make a sentence: `cannot write "a/b": …`.
pub(crate) fn failed(doing: &str, name: impl Display, errno: Errno) -> StorageError {
    let why = match errno {
        Errno::LOOP => "a symbolic link leads out of the root, or in a circle".to_owned(),
        errno => errno.to_string(),
    };
    StorageError::new(kind_of(errno), format!("cannot {doing} {:?}: {why}", name.to_string()))
}

/// The same for what std reports.
pub(crate) fn io_failed(doing: &str, name: impl Display, error: &std::io::Error) -> StorageError {
    match Errno::from_io_error(error) {
        Some(errno) => failed(doing, name, errno),
        None => StorageError::new(ErrorKind::Failed, format!("cannot {doing} {:?}: {error}", name.to_string())),
    }
}

pub(crate) fn kind_of(errno: Errno) -> ErrorKind {
    match errno {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::EXIST => ErrorKind::ConditionFailed,
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::LOOP => ErrorKind::Denied,
        // To another file system.
        Errno::XDEV => ErrorKind::Unsupported,
        Errno::NOSPC | Errno::DQUOT => ErrorKind::NoSpace,
        Errno::NAMETOOLONG | Errno::ILSEQ => ErrorKind::InvalidName,
        Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY => ErrorKind::WrongKind,
        Errno::AGAIN | Errno::BUSY | Errno::INTR | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::STALE | Errno::TIMEDOUT => {
            ErrorKind::Temporary
        }
        _ => ErrorKind::Failed,
    }
}
