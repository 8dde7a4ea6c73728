//! Files that are not yet under their name.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::errno::failed;
use super::open::{Claim, Place, condition_failed, rename_to_absent};
use super::tag::LocalTag;
use crate::attempt::RunId;
use crate::path::EntryPath;
use crate::storage::{Condition, ErrorKind, StorageError};

/// What begins the names of everything that belongs to a run and not to the tree.
pub const STAGING_PREFIX: &str = ".nkcluster-";
/// What ends the name of a file that lies beside its place until it is complete.
const PARTIAL_SUFFIX: &str = ".partial";
/// What the name of a run's directory ends with when the run is over, until it is empty.
pub(crate) const OVER_SUFFIX: &str = ".over";
/// What begins the name of a file that is about to be removed, in the directory of an attempt.
pub(crate) const GONE_PREFIX: &str = "gone-";

/// Called before each system call that changes something; tests stop an attempt there.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn step() {}

#[cfg(test)]
pub(super) use super::tests::step;

/// Whether a name belongs to a run and not to the tree: listings leave it out, copies and deletes never touch it.
pub fn is_staging_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(STAGING_PREFIX) else { return false };
    let run = rest.strip_suffix(OVER_SUFFIX).unwrap_or(rest);
    run.parse::<RunId>().is_ok()
        || rest.strip_suffix(PARTIAL_SUFFIX).is_some_and(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A name for a file that lies beside its place. It is random, since other nodes may write to the same directory.
pub(super) fn partial_name() -> OsString {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(rand::random);
    format!("{STAGING_PREFIX}{process:016x}{:016x}{PARTIAL_SUFFIX}", NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// The name of an object by which a store is probed; listings leave it out.
pub(crate) fn probe_name() -> String {
    partial_name().to_string_lossy().into_owned()
}

/// The directory of one attempt below a root. It is named by its path and never held open: see [`crate::fence`].
#[derive(Debug)]
pub(crate) struct StagingDirectory {
    path: String,
    next: AtomicU64,
}

impl StagingDirectory {
    pub(crate) fn new(path: String) -> Self {
        Self { path, next: AtomicU64::new(0) }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A new name in it, as a path from the root.
    pub(crate) fn next(&self, what: &str) -> String {
        format!("{}/{what}-{}", self.path, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A new name for a file that is to be removed, which tells what it must be.
    pub(crate) fn next_gone(&self, wanted: &LocalTag) -> String {
        format!("{}/{GONE_PREFIX}{}-{wanted}", self.path, self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn revoked(&self, doing: &str, path: &str) -> StorageError {
        StorageError::new(ErrorKind::Revoked, format!("cannot {doing} {path:?}: this attempt was revoked"))
    }
}

/// A file, complete or not, that is not yet under its name. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct StagedFile {
    file: Option<File>,
    from_directory: Arc<OwnedFd>,
    from: OsString,
    place: Place,
    /// What may be taken away, if it belongs to an attempt.
    claim: Option<Claim>,
    is_committed: bool,
}

impl StagedFile {
    pub(super) fn new(file: Option<File>, from_directory: Arc<OwnedFd>, from: OsString, place: Place, claim: Option<Claim>) -> Self {
        Self { file, from_directory, from, place, claim, is_committed: false }
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_ref().expect("only links are staged without content, and nobody writes to these")
    }

    /// What it is now.
    pub(crate) fn tag(&self) -> Option<LocalTag> {
        let stat = rustix::fs::statat(&self.from_directory, &self.from, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(LocalTag::of(&stat))
    }

    /// Opens it for reading.
    pub(crate) fn read_back(&self) -> Result<File, StorageError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.from_directory, &self.from, flags, Mode::empty());
        opened.map(File::from).map_err(|errno| failed("read back", self.place.name.display(), errno))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Makes it appear under its name, if the condition is met.
    ///
    /// `Absent` is decided by the kernel; for `Tag` a look comes just before the rename.
    pub(crate) fn commit(mut self, condition: &Condition, path: &EntryPath) -> Result<(), StorageError> {
        self.file = None;
        step();
        // A file that could not be staged in the directory of its attempt: a look is all that is left.
        if self.place.is_foreign && self.claim.as_ref().is_some_and(|claim| !claim.is_there()) {
            return Err(revoked(path));
        }
        let renamed = match condition {
            Condition::Absent => rename_to_absent(&self.from_directory, &self.from, &self.place),
            condition => {
                self.place.check(condition, "write", path.as_str())?;
                step();
                rustix::fs::renameat(&self.from_directory, &self.from, &self.place.directory, &self.place.name)
            }
        };
        match renamed {
            Ok(()) => {
                self.is_committed = true;
                Ok(())
            }
            Err(Errno::EXIST) => Err(condition_failed("write", path.as_str(), true)),
            Err(Errno::NOENT | Errno::NOTDIR) if self.claim.as_ref().is_some_and(|claim| !claim.is_there()) => Err(revoked(path)),
            Err(errno) => Err(failed("write", path, errno)),
        }
    }
}

fn revoked(path: &EntryPath) -> StorageError {
    StorageError::new(ErrorKind::Revoked, format!("cannot write {:?}: this attempt was revoked", path.as_str()))
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.is_committed {
            let _ = rustix::fs::unlinkat(&self.from_directory, &self.from, AtFlags::empty());
        }
    }
}
