//! The directories of attempts on a local file system; see [`crate::fence`]. Everything here blocks.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::attempt::{Attempt, RunId};
use crate::remote::STAGING_PREFIX;
use crate::remote::local::errno::failed;
use crate::remote::local::open::OpenRoot;
use crate::remote::local::staging::{GONE_PREFIX, OVER_SUFFIX};
use crate::remote::local::tag::LocalTag;
use crate::storage::{ErrorKind, StorageError};

/// Mode of these directories: what lies in them is nobody else's business.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);
/// What a revoked directory is called until it is empty.
const REVOKED_SUFFIX: &str = ".revoked";
/// What begins the name of a file that a revoked attempt had taken by mistake.
const KEPT_PREFIX: &str = "kept-";
/// How often a directory is emptied again, since an attempt that is not yet stopped may still make something in it.
const SWEEPS_MAX: u32 = 1000;

type Result<T> = std::result::Result<T, StorageError>;

/// The directory of a run, below the root.
fn run_directory(run: RunId) -> String {
    format!("{STAGING_PREFIX}{run}")
}

/// The directory of an attempt, below the root.
pub(super) fn path_of(attempt: Attempt) -> String {
    format!("{}/{}.{}", run_directory(attempt.run), attempt.batch, attempt.attempt)
}

pub(super) fn prepare(root: &OpenRoot, run: RunId) -> Result<()> {
    let path = run_directory(run);
    match rustix::fs::mkdirat(root.fd(), &path, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(failed("make the directory", path, errno)),
    }
}

/// Makes the directory of an attempt. The one of its run is never made here: if it is gone, so is the run.
pub(super) fn claim(root: &OpenRoot, path: &str) -> Result<()> {
    match rustix::fs::mkdirat(root.fd(), path, DIRECTORY_MODE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => Err(StorageError::new(ErrorKind::Revoked, "revoked, or the run is over")),
        Err(errno) => Err(failed("make the directory", path, errno)),
    }
}

/// Takes the name of an attempt's directory for good, and removes what it held.
pub(super) fn revoke(root: &OpenRoot, attempt: Attempt) -> Result<()> {
    let path = path_of(attempt);
    // The attempt makes its directory once. Either that has happened, and the directory is taken away; or this file is there first, and it never
    // will.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let take_name = || rustix::fs::openat(root.fd(), &path, flags, Mode::from_raw_mode(0o600));
    match take_name() {
        Ok(_) => {}
        // No run, no attempt.
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::EXIST) if !root.is_there(&path) => {}
        Err(Errno::EXIST) => {
            let revoked = format!("{path}{REVOKED_SUFFIX}");
            match rustix::fs::renameat_with(root.fd(), &path, root.fd(), &revoked, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS) => rename_plainly(root, &path, &revoked)?,
                // Somebody else revokes it at the same time.
                Ok(()) | Err(Errno::NOENT | Errno::EXIST) => {}
                Err(errno) => return Err(failed("revoke", &path, errno)),
            }
            match take_name() {
                Ok(_) | Err(Errno::EXIST | Errno::NOENT) => {}
                Err(errno) => return Err(failed("revoke", &path, errno)),
            }
        }
        Err(errno) => return Err(failed("revoke", &path, errno)),
    }
    remove(root, &format!("{path}{REVOKED_SUFFIX}"), &run_directory(attempt.run), attempt)
}

fn rename_plainly(root: &OpenRoot, path: &str, revoked: &str) -> Result<()> {
    match rustix::fs::renameat(root.fd(), path, root.fd(), revoked) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("revoke", path, errno)),
    }
}

/// Empties and removes a revoked directory. Only when it is removed can nothing more be made in it by somebody who had found it before.
fn remove(root: &OpenRoot, path: &str, run_path: &str, attempt: Attempt) -> Result<()> {
    for _ in 0..SWEEPS_MAX {
        match rustix::fs::unlinkat(root.fd(), path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => sweep(root, path, run_path, attempt)?,
            Err(errno) => return Err(failed("remove", path, errno)),
        }
    }
    Err(StorageError::new(ErrorKind::Temporary, format!("cannot remove {path:?}: something is made in it again and again")))
}

fn sweep(root: &OpenRoot, path: &str, run_path: &str, attempt: Attempt) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(root.fd(), path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed("open", path, errno)),
    };
    let failed = |errno| failed("empty", path, errno);
    for found in Dir::read_from(&directory).map_err(failed)? {
        let found = found.map_err(failed)?;
        let name = found.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let removed = match name.to_str().ok().and_then(|name| name.strip_prefix(GONE_PREFIX)) {
            Some(rest) => {
                let number = rest.split_once('-').map_or("0", |(number, _)| number);
                let kept = format!("{run_path}/{KEPT_PREFIX}{}.{}-{number}", attempt.batch, attempt.attempt);
                remove_or_keep(root, &directory, name, rest, &kept)
            }
            None => remove_any(&directory, name),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

fn remove_any(directory: &OwnedFd, name: &std::ffi::CStr) -> std::result::Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR),
        other => other,
    }
}

/// A file which the attempt had taken away to remove it: it is removed if it is what the plan wanted to be removed. If not, the attempt had not come
/// to see that, and nobody knows its old name any more; it is kept.
fn remove_or_keep(root: &OpenRoot, directory: &OwnedFd, name: &std::ffi::CStr, rest: &str, kept: &str) -> std::result::Result<(), Errno> {
    let wanted = rest.split_once('-').and_then(|(_, tag)| LocalTag::parse(tag));
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if wanted.is_some_and(|wanted| wanted.is_same_content(&LocalTag::of(&stat))) {
        return rustix::fs::unlinkat(directory, name, AtFlags::empty());
    }
    tracing::warn!(kept, "a file was taken away that is not the one to be removed; it is kept");
    rustix::fs::renameat(directory, name, root.fd(), kept)
}

/// Ends a run by one rename, after which no path into its directory leads anywhere; then empties it.
pub(super) fn retire(root: &OpenRoot, run: RunId) -> Result<Vec<String>> {
    let (path, over) = (run_directory(run), format!("{}{OVER_SUFFIX}", run_directory(run)));
    match rustix::fs::renameat(root.fd(), &path, root.fd(), &over) {
        Ok(()) | Err(Errno::NOENT) => {}
        // It was ended before, with something kept, and prepared again.
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            return Err(StorageError::new(ErrorKind::WrongKind, format!("cannot end the run {run}: {over:?} is there already")));
        }
        Err(errno) => return Err(failed("end the run", run, errno)),
    }
    for _ in 0..SWEEPS_MAX {
        match rustix::fs::unlinkat(root.fd(), &over, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(failed("remove", over, errno)),
        }
        let kept = empty_run(root, &over, run)?;
        if !kept.is_empty() {
            return Ok(kept);
        }
    }
    Err(StorageError::new(ErrorKind::Temporary, format!("cannot remove {over:?}: something is made in it again and again")))
}

/// Removes everything but files that were kept; tells these.
fn empty_run(root: &OpenRoot, over: &str, run: RunId) -> Result<Vec<String>> {
    let failed = |errno| failed("empty", over, errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(root.fd(), over, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(failed(errno)),
    };
    let mut names = Vec::new();
    for found in Dir::read_from(&directory).map_err(failed)? {
        let found = found.map_err(failed)?;
        names.extend(found.file_name().to_str().ok().map(str::to_owned));
    }
    for name in &names {
        let Some(attempt) = attempt_of(run, name.strip_suffix(REVOKED_SUFFIX).unwrap_or(name)) else { continue };
        let path = format!("{over}/{name}");
        match rustix::fs::unlinkat(root.fd(), &path, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => remove(root, &path, over, attempt)?,
            Err(errno) => return Err(failed(errno)),
        }
    }
    // Listed anew, as emptying an attempt may have kept something.
    let mut kept = Vec::new();
    for found in Dir::read_from(&directory).map_err(failed)? {
        let found = found.map_err(failed)?;
        kept.extend(found.file_name().to_str().ok().filter(|name| name.starts_with(KEPT_PREFIX)).map(|name| format!("{over}/{name}")));
    }
    Ok(kept)
}

fn attempt_of(run: RunId, name: &str) -> Option<Attempt> {
    let (batch, attempt) = name.split_once('.')?;
    Some(Attempt { run, batch: batch.parse().ok()?, attempt: attempt.parse().ok()? })
}
