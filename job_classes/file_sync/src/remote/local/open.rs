//! A local root that is held open for the length of one piece of blocking work.
//!
//! Whatever is written goes through directories that the kernel has resolved *beneath* the root, so that no link leads a write out of it. Reading
//! follows the links that lie between the root and the file, as every program does. Nothing of this is held longer than a piece of work: a root that
//! was removed and made again is found again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::errno::failed;
use super::names::{name_to_native, to_native};
use super::staging::{StagedFile, StagingDirectory, partial_name, step};
use super::tag::LocalTag;
use crate::path::EntryPath;
use crate::storage::{Condition, ErrorKind, StorageError};

/// Mode of directories that are made, before the process's mask.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o777);
/// How often a resolution that raced with a rename is tried again.
const RACES_MAX: u32 = 32;

type Result<T> = std::result::Result<T, StorageError>;

/// How directories that are missing above a file come to be.
#[derive(Clone, Copy)]
pub(crate) enum Parents<'a> {
    /// They do not.
    MustExist,
    /// They are made where they belong.
    Make,
    /// They are made in the directory of an attempt and renamed to where they belong, so that a revoked attempt makes none.
    MakeBy(&'a StagingDirectory),
}

impl<'a> Parents<'a> {
    pub(crate) fn of(staging: Option<&'a StagingDirectory>) -> Self {
        staging.map_or(Self::Make, Self::MakeBy)
    }
}

/// The root of a local tree, opened.
pub(crate) struct OpenRoot {
    root: Arc<OwnedFd>,
    device: u64,
    /// The directory that was used last: neighbours follow each other.
    last: Option<LastDirectory>,
}

/// Which directory the root of a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootIdentity {
    device: u64,
    inode: u64,
}

struct LastDirectory {
    path: Box<str>,
    directory: Arc<OwnedFd>,
    is_foreign: bool,
}

impl OpenRoot {
    /// Opens it; makes it first if asked to.
    pub(crate) fn open(path: &Path, makes: bool) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) if makes => {
                std::fs::create_dir_all(path).map_err(|error| super::errno::io_failed("make", path.display(), &error))?;
                rustix::fs::open(path, flags, Mode::empty())
            }
            other => other,
        };
        let root = opened.map_err(|errno| failed("open", path.display(), errno))?;
        let device = device_of(&root).map_err(|errno| failed("open", path.display(), errno))?;
        Ok(Self { root: Arc::new(root), device, last: None })
    }

    /// What has this name.
    pub(crate) fn stat(&self, path: &EntryPath, follows: bool) -> Result<Option<Stat>> {
        let flags = if follows { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        match rustix::fs::statat(&self.root, &*to_native(path), flags) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(failed("look at", path, errno)),
        }
    }

    /// Opens a file for reading; whether it is a regular one is for the caller to see.
    pub(crate) fn read(&self, path: &EntryPath, follows: bool) -> Result<File> {
        // Without NONBLOCK the open of a pipe would wait for a writer.
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if !follows {
            flags |= OFlags::NOFOLLOW;
        }
        match rustix::fs::openat(&self.root, &*to_native(path), flags, Mode::empty()) {
            Ok(file) => Ok(File::from(file)),
            Err(Errno::LOOP) if !follows => {
                Err(StorageError::new(ErrorKind::WrongKind, format!("cannot read {:?}: it is a symbolic link", path.as_str())))
            }
            Err(errno) => Err(failed("read", path, errno)),
        }
    }

    /// Where a symbolic link leads.
    pub(crate) fn link_target(&self, path: &EntryPath) -> Result<OsString> {
        use std::os::unix::ffi::OsStringExt;
        let target = rustix::fs::readlinkat(&self.root, &*to_native(path), Vec::new()).map_err(|errno| failed("read", path, errno))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// The directory that holds a file, and the file's name in it.
    pub(crate) fn place(&mut self, path: &EntryPath, parents: Parents<'_>) -> Result<Place> {
        let (parent, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
        if name.is_empty() {
            return Err(StorageError::new(ErrorKind::WrongKind, "the root of a remote is no file"));
        }
        if self.last.as_ref().is_none_or(|last| *last.path != *parent) {
            let directory = self.directory(parent, parents)?;
            let device = device_of(&directory).map_err(|errno| failed("open the directory", parent, errno))?;
            self.last = Some(LastDirectory { path: parent.into(), directory: Arc::new(directory), is_foreign: device != self.device });
        }
        let last = self.last.as_ref().expect("filled just above");
        Ok(Place { directory: last.directory.clone(), name: name_to_native(name).into_owned(), is_foreign: last.is_foreign })
    }

    /// Opens a directory; the empty text is the root itself.
    pub(crate) fn directory(&self, path: &str, parents: Parents<'_>) -> Result<OwnedFd> {
        match self.beneath(path) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT) if !matches!(parents, Parents::MustExist) => {}
            Err(errno) => return Err(failed("open the directory", path, errno)),
        }
        // Every prefix is resolved from the root, so that a link inside of it may lead from one part to another; only the new name is relative to the
        // directory that was found so.
        let mut parent = self.beneath("").map_err(|errno| failed("open the directory", path, errno))?;
        for end in path.match_indices('/').map(|(end, _)| end).chain([path.len()]) {
            let prefix = &path[..end];
            let next = match self.beneath(prefix) {
                Err(Errno::NOENT) => {
                    let name = prefix.rsplit_once('/').map_or(prefix, |(_, name)| name);
                    self.make_directory(&parent, &name_to_native(name), parents).map_err(|errno| match parents {
                        Parents::MakeBy(staging) if self.is_revoked(staging, errno) => staging.revoked("make the directory", prefix),
                        _ => failed("make the directory", prefix, errno),
                    })?;
                    self.beneath(prefix)
                }
                other => other,
            };
            parent = next.map_err(|errno| failed("make the directory", prefix, errno))?;
        }
        Ok(parent)
    }

    fn make_directory(&self, parent: &OwnedFd, name: &OsStr, parents: Parents<'_>) -> std::result::Result<(), Errno> {
        let staging = match parents {
            Parents::MakeBy(staging) if device_of(parent)? == self.device => Some(staging),
            Parents::MakeBy(staging) if !self.is_there(staging.path()) => return Err(Errno::NOENT),
            _ => None,
        };
        let Some(staging) = staging else {
            return match rustix::fs::mkdirat(parent, name, DIRECTORY_MODE) {
                Err(Errno::EXIST) => Ok(()),
                other => other,
            };
        };
        let staged = staging.next("directory");
        step();
        rustix::fs::mkdirat(&self.root, &staged, DIRECTORY_MODE)?;
        step();
        let renamed = match rustix::fs::renameat_with(&self.root, &staged, parent, name, RenameFlags::NOREPLACE) {
            // Without that flag a rename replaces an empty directory, which is the same, and no other.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(&self.root, &staged, parent, name),
            other => other,
        };
        match renamed {
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                let _ = rustix::fs::unlinkat(&self.root, &staged, AtFlags::REMOVEDIR);
                Ok(())
            }
            other => other,
        }
    }

    /// Opens a directory, whatever links lead there.
    pub(crate) fn follow_directory(&self, path: &EntryPath) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, &*to_native(path), flags, Mode::empty()).map_err(|errno| failed("list", path, errno))
    }

    /// Begins a file that appears under its name only when it is committed.
    pub(crate) fn stage(&mut self, path: &EntryPath, staging: Option<&StagingDirectory>, mode: u32) -> Result<StagedFile> {
        let place = self.place(path, Parents::of(staging))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (from_directory, from) = self.from(&place, staging, "file");
        // Others must not read a file before it has the mode it is to have.
        step();
        let opened = rustix::fs::openat(&from_directory, &from, flags, Mode::from_raw_mode(mode & 0o777));
        match opened {
            Ok(file) => Ok(StagedFile::new(Some(File::from(file)), from_directory, from, place, self.claim(staging))),
            Err(errno) => Err(self.staging_failed(staging, "write", path, errno)),
        }
    }

    /// Where a file lies until it is committed: by path from the root, each time, so that an attempt that was revoked finds nothing there.
    fn from(&self, place: &Place, staging: Option<&StagingDirectory>, what: &str) -> (Arc<OwnedFd>, OsString) {
        match staging.filter(|_| !place.is_foreign) {
            Some(staging) => (self.root.clone(), OsString::from(staging.next(what))),
            None => (place.directory.clone(), partial_name()),
        }
    }

    fn claim(&self, staging: Option<&StagingDirectory>) -> Option<Claim> {
        staging.map(|staging| Claim { root: self.root.clone(), path: staging.path().to_owned() })
    }

    /// A link that appears under its name only when it is committed.
    pub(crate) fn stage_link(&mut self, path: &EntryPath, target: &OsStr, staging: Option<&StagingDirectory>) -> Result<StagedFile> {
        let place = self.place(path, Parents::of(staging))?;
        let (from_directory, from) = self.from(&place, staging, "link");
        step();
        rustix::fs::symlinkat(target, &from_directory, &from)
            .map_err(|errno| self.staging_failed(staging, "make the link", path, errno))?;
        Ok(StagedFile::new(None, from_directory, from, place, self.claim(staging)))
    }

    /// Gives a file a second name in the directory of an attempt, from where it can be committed.
    pub(crate) fn stage_same(&mut self, source: &Place, path: &EntryPath, staging: &StagingDirectory) -> Result<StagedFile> {
        let place = self.place(path, Parents::MakeBy(staging))?;
        let from = OsString::from(staging.next("same"));
        step();
        rustix::fs::linkat(&source.directory, &source.name, &self.root, &from, AtFlags::empty())
            .map_err(|errno| self.staging_failed(Some(staging), "link", path, errno))?;
        Ok(StagedFile::new(None, self.root.clone(), from, place, self.claim(Some(staging))))
    }

    /// Removes a file that has the wanted content: into the directory of the attempt first, a second look there, and then for good.
    ///
    /// The name in that directory tells what the file should be, so that whoever revokes the attempt in between does not destroy another one.
    pub(crate) fn remove_by(&mut self, path: &EntryPath, wanted: &LocalTag, staging: &StagingDirectory) -> Result<()> {
        let place = self.place(path, Parents::MustExist)?;
        if place.is_foreign {
            return self.remove_foreign(path, &place, wanted, staging);
        }
        let taken = staging.next_gone(wanted);
        step();
        rustix::fs::renameat(&place.directory, &place.name, &self.root, &taken)
            .map_err(|errno| self.staging_failed(Some(staging), "remove", path, errno))?;
        step();
        let look = rustix::fs::statat(&self.root, &taken, AtFlags::SYMLINK_NOFOLLOW);
        let stat = look.map_err(|errno| self.staging_failed(Some(staging), "remove", path, errno))?;
        if LocalTag::of(&stat).is_same_content(wanted) {
            step();
            return match rustix::fs::unlinkat(&self.root, &taken, AtFlags::empty()) {
                // Whoever revoked the attempt has removed it.
                Err(Errno::NOENT) | Ok(()) => Ok(()),
                Err(errno) => Err(failed("remove", path, errno)),
            };
        }
        step();
        let back = rustix::fs::renameat_with(&self.root, &taken, &place.directory, &place.name, RenameFlags::NOREPLACE);
        let kept = if back.is_ok() { "it was left there" } else { "it is kept in the run's directory" };
        Err(StorageError::new(
            ErrorKind::ConditionFailed,
            format!("cannot remove {:?}: another file took its place; {kept}", path.as_str()),
        ))
    }

    /// The same on another file system below the root, where there is no directory of the attempt: two looks, and then the end.
    fn remove_foreign(&self, path: &EntryPath, place: &Place, wanted: &LocalTag, staging: &StagingDirectory) -> Result<()> {
        let found = place.stat().map_err(|errno| failed("remove", path, errno))?;
        match found {
            None => return Err(failed("remove", path, Errno::NOENT)),
            Some(stat) if LocalTag::of(&stat).is_same_content(wanted) => {}
            Some(_) => return Err(condition_failed("remove", path.as_str(), true)),
        }
        if !self.is_there(staging.path()) {
            return Err(staging.revoked("remove", path.as_str()));
        }
        rustix::fs::unlinkat(&place.directory, &place.name, AtFlags::empty()).map_err(|errno| failed("remove", path, errno))
    }

    /// Why something in a staging directory failed; a directory that is gone means that the attempt was revoked.
    fn staging_failed(&self, staging: Option<&StagingDirectory>, doing: &str, path: &EntryPath, errno: Errno) -> StorageError {
        match staging {
            Some(staging) if self.is_revoked(staging, errno) => staging.revoked(doing, path.as_str()),
            _ => failed(doing, path, errno),
        }
    }

    fn is_revoked(&self, staging: &StagingDirectory, errno: Errno) -> bool {
        matches!(errno, Errno::NOENT | Errno::NOTDIR) && !self.is_there(staging.path())
    }

    pub(crate) fn is_there(&self, directory: &str) -> bool {
        is_directory(&self.root, directory)
    }

    /// Which directory it is, whatever paths lead there.
    pub(crate) fn identity(&self) -> Result<RootIdentity> {
        let stat = rustix::fs::fstat(&self.root).map_err(|errno| failed("look at", "the root", errno))?;
        Ok(RootIdentity { device: stat.st_dev, inode: stat.st_ino })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn beneath(&self, path: &str) -> std::result::Result<OwnedFd, Errno> {
        let native = name_to_native(if path.is_empty() { "." } else { path });
        openat_beneath(self.root.as_fd(), Path::new(&*native))
    }
}

/// What an effect needs to be still there: the directory of its attempt.
#[derive(Debug)]
pub(crate) struct Claim {
    root: Arc<OwnedFd>,
    path: String,
}

impl Claim {
    pub(crate) fn is_there(&self) -> bool {
        is_directory(&self.root, &self.path)
    }
}

fn is_directory(root: &OwnedFd, path: &str) -> bool {
    let found = rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

fn device_of(file: &OwnedFd) -> std::result::Result<u64, Errno> {
    rustix::fs::fstat(file).map(|stat| stat.st_dev)
}

/// A directory, opened, and a name in it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) directory: Arc<OwnedFd>,
    pub(crate) name: OsString,
    /// Whether another file system is mounted there, so that nothing can be renamed to it from the root.
    pub(crate) is_foreign: bool,
}

impl Place {
    /// Whether both are one place, whatever paths have led there.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let directory = |place: &Self| rustix::fs::fstat(&place.directory).map(|stat| (stat.st_dev, stat.st_ino));
        self.name == other.name && matches!((directory(self), directory(other)), (Ok(own), Ok(others)) if own == others)
    }

    /// What has the name.
    pub(crate) fn stat(&self) -> std::result::Result<Option<Stat>, Errno> {
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether what has the name is what a condition asks for, now.
    pub(crate) fn check(&self, condition: &Condition, doing: &str, shown: &str) -> Result<()> {
        let found = match condition {
            Condition::Always => return Ok(()),
            _ => self.stat().map_err(|errno| failed(doing, shown, errno))?,
        };
        let is_met = match (condition, &found) {
            (Condition::Absent, found) => found.is_none(),
            (Condition::Tag(wanted), Some(stat)) => LocalTag::parse(wanted) == Some(LocalTag::of(stat)),
            _ => false,
        };
        if is_met { Ok(()) } else { Err(condition_failed(doing, shown, found.is_some())) }
    }
}

pub(crate) fn condition_failed(doing: &str, shown: &str, is_there: bool) -> StorageError {
    let why = if is_there { "something else has its name now" } else { "it is gone" };
    StorageError::new(ErrorKind::ConditionFailed, format!("cannot {doing} {shown:?}: {why}"))
}

/// Opens the directory that lies beneath another; `XDEV` or `LOOP` when the path leads out.
fn openat_beneath(directory: BorrowedFd<'_>, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut races = 0;
    loop {
        match rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if races < RACES_MAX => races += 1,
            Err(Errno::XDEV) => return Err(Errno::LOOP),
            other => return other,
        }
    }
}

/// Renames a file, if the condition is met.
pub(crate) fn rename(source: &Place, place: &Place, condition: &Condition, path: &EntryPath) -> Result<()> {
    let renamed = match condition {
        Condition::Absent => rename_to_absent(&source.directory, &source.name, place),
        condition => {
            place.check(condition, "write", path.as_str())?;
            rustix::fs::renameat(&source.directory, &source.name, &place.directory, &place.name)
        }
    };
    match renamed {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(condition_failed("write", path.as_str(), true)),
        Err(errno) => Err(failed("write", path, errno)),
    }
}

/// Renames only if nothing has the name, which the kernel decides.
pub(crate) fn rename_to_absent(directory: &OwnedFd, name: &OsStr, place: &Place) -> std::result::Result<(), Errno> {
    match rustix::fs::renameat_with(directory, name, &place.directory, &place.name, RenameFlags::NOREPLACE) {
        // Network file systems know no such flag, but a link is never made over a name that is there.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(directory, name, &place.directory, &place.name, AtFlags::empty())?;
            rustix::fs::unlinkat(directory, name, AtFlags::empty())
        }
        other => other,
    }
}
