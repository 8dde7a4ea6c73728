//! The directory that a worker opens to its cluster, and nothing else.
//!
//! A check of a path followed by an open of it can be raced, and a `canonicalize` sees yesterday's links. So no path
//! is ever checked here: the kernel resolves each one below the directory's descriptor with `openat2` and
//! `RESOLVE_BENEATH`, and refuses whatever would leave it (`..`, absolute links, links through `/proc`). Without
//! `openat2` (Linux before 5.6, or a sandbox that forbids it) there is no root: a weaker way is not offered.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorCode, Result};

use super::path::RelPath;

/// Mode of a root that is made; what lies in it is nobody else's business.
const ROOT_MODE: u32 = 0o700;

/// Mode of directories that are made below a root, before the process's mask.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// How often a resolution that raced with a rename is tried again.
const RACES_MAX: u32 = 32;

/// A directory; files below it can be named by a [`RelPath`], and nothing else can.
///
/// Cheap to clone. Symbolic links that stay inside are followed, those that lead out are `invalid_path`.
#[derive(Clone, Debug)]
pub struct FileRoot {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: OwnedFd,
    path: PathBuf,
}

impl FileRoot {
    /// Opens the directory; it is made with mode 0700 if it is missing, with its parents.
    ///
    /// Blocks for a few system calls. Fails with `invalid_config` if it is no directory, cannot be made or opened,
    /// or if the kernel cannot confine paths to it (`openat2`, Linux 5.6).
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let path = directory.as_ref();
        let refuse = |what: &str, why: &dyn std::fmt::Display| {
            let text = format!("cannot {what} the file root {}: {why}", path.display());
            Error::new(ErrorCode::InvalidConfig, text)
        };
        DirBuilder::new().recursive(true).mode(ROOT_MODE).create(path).map_err(|error| refuse("make", &error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| refuse("open", &error))?;
        if let Err(error) = openat_beneath(opened.as_fd(), Path::new("."), flags) {
            let why = format!("the kernel does not confine paths to it (openat2, Linux 5.6 or later): {error}");
            return Err(refuse("use", &why));
        }
        let path = std::path::absolute(path).map_err(|error| refuse("name", &error))?;
        Ok(Self { inner: Arc::new(Inner { directory: opened, path }) })
    }

    /// Where the directory was when it was opened.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Opens a regular file for reading.
    ///
    /// Blocks for a few system calls. `invalid_path` if a link leads out, `invalid_file` if there is no such regular
    /// file or it may not be read.
    pub fn open_file(&self, path: &RelPath) -> Result<File> {
        // Without NONBLOCK the open of a pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = self.resolve(path.as_path(), flags).map_err(|errno| reading(errno, path.as_str()))?;
        regular(File::from(file), path.as_str())
    }

    /// Opens a directory for reading; without a path, the root itself.
    ///
    /// What is opened relative to it, one name at a time and without following links, stays below the root as well.
    /// Blocks for a few system calls. `invalid_path` if a link leads out, `invalid_file` if there is no such directory or
    /// it may not be read.
    pub fn open_dir(&self, path: Option<&RelPath>) -> Result<OwnedFd> {
        let path = path.map_or(Path::new("."), RelPath::as_path);
        self.directory(path).map_err(|errno| reading(errno, &path.to_string_lossy()))
    }

    /// What the path names now, links inside of the root followed; without a path, the root itself.
    ///
    /// Needs no right to read the file. Blocks for a few system calls. `invalid_path` if a link leads out, `invalid_file` if
    /// there is no such thing.
    pub fn metadata(&self, path: Option<&RelPath>) -> Result<Metadata> {
        let path = path.map_or(Path::new("."), RelPath::as_path);
        let found = self.resolve(path, OFlags::PATH | OFlags::CLOEXEC).map_err(io::Error::from);
        found.and_then(|found| File::from(found).metadata()).map_err(|error| reading(error, &path.to_string_lossy()))
    }

    /// A descriptor that only tells what the path now names.
    pub(super) fn look(&self, path: &RelPath) -> io::Result<File> {
        let found = self.resolve(path.as_path(), OFlags::PATH | OFlags::CLOEXEC)?;
        Ok(File::from(found))
    }

    /// The place of a file that will be written: missing directories are made.
    pub(super) fn place(&self, path: &RelPath) -> Result<Place> {
        let directory = match path.parent() {
            None => self.directory(Path::new(".")),
            Some(parent) => self.make_directories(parent),
        };
        let directory = directory.map_err(|errno| match errno {
            Errno::XDEV | Errno::LOOP => outside(path.as_str()),
            Errno::NOTDIR => {
                Error::new(ErrorCode::WriteError, format!("cannot write {path:?}: a part of its directory is not a directory"))
            }
            errno => writing(errno.into(), path.as_str()),
        })?;
        let place = Place { directory, name: path.name().into(), shown: path.to_string() };
        place.check(|| match self.look(path) {
            Err(error) if leads_out(&error) => outside(path.as_str()),
            _ => not_regular(path.as_str(), "a symbolic link; name the file that it leads to"),
        })?;
        Ok(place)
    }

    fn make_directories(&self, path: &str) -> Result<OwnedFd, Errno> {
        match self.directory(Path::new(path)) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        // Every prefix is resolved from the root, so that a link inside of it may lead from one part to another;
        // only the new name is relative to the directory that was found so.
        let mut parent = self.directory(Path::new("."))?;
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            let prefix = Path::new(&path[..end]);
            let next = match self.directory(prefix) {
                Err(Errno::NOENT) => {
                    let name = prefix.file_name().ok_or(Errno::INVAL)?;
                    match rustix::fs::mkdirat(&parent, name, DIRECTORY_MODE) {
                        Ok(()) => rustix::fs::fsync(&parent)?,
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                    self.directory(prefix)?
                }
                other => other?,
            };
            parent = next;
        }
        Ok(parent)
    }

    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat_beneath(self.inner.directory.as_fd(), path, flags)
    }
}

/// Opens what lies beneath the directory; `XDEV` or `LOOP` when the path leads out.
#[cfg(target_os = "linux")]
fn openat_beneath(directory: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};

    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut races = 0;
    loop {
        match openat2(directory, path, flags, Mode::empty(), resolve) {
            // The kernel cannot tell whether a path with `..` was renamed meanwhile; it asks to try again.
            Err(Errno::AGAIN | Errno::INTR) if races < RACES_MAX => races += 1,
            other => return other,
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn openat_beneath(_: BorrowedFd<'_>, _: &Path, _: OFlags) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// A directory that is held open and the name that a file gets in it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
    /// The path as the user wrote it, for messages.
    pub(super) shown: String,
}

impl Place {
    /// The place of a file of the local user, who may write wherever he may; a link leads to its target.
    pub(super) fn local(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let followed;
        let path = match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_symlink() => {
                followed = std::fs::canonicalize(path).map_err(|error| writing(error, &shown))?;
                &followed
            }
            _ => path,
        };
        let Some(name) = path.file_name() else {
            return Err(not_regular(&shown, "a directory; name the file"));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty()).map_err(|errno| writing(errno.into(), &shown))?;
        let place = Place { directory, name: name.into(), shown };
        place.check(|| not_regular(&place.shown, "a symbolic link that was made just now"))?;
        Ok(place)
    }

    /// Only a regular file may be replaced; `link` tells what is wrong with a link.
    fn check(&self, link: impl FnOnce() -> Error) -> Result<()> {
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(writing(errno.into(), &self.shown)),
            Ok(found) => match FileType::from_raw_mode(found.st_mode) {
                FileType::RegularFile => Ok(()),
                FileType::Directory => Err(not_regular(&self.shown, "a directory")),
                FileType::Symlink => Err(link()),
                _ => Err(not_regular(&self.shown, "a device, pipe or socket")),
            },
        }
    }
}

/// The file itself, if it is a regular one.
pub(super) fn regular(file: File, shown: &str) -> Result<File> {
    let found = file.metadata().map_err(|error| reading(error, shown))?;
    if found.is_dir() {
        return Err(not_regular(shown, "a directory"));
    }
    if !found.is_file() {
        return Err(not_regular(shown, "a device, pipe or socket"));
    }
    Ok(file)
}

/// Why a file cannot be read.
pub(super) fn reading(error: impl Into<io::Error>, shown: &str) -> Error {
    let error = error.into();
    if leads_out(&error) {
        return outside(shown);
    }
    Error::new(ErrorCode::InvalidFile, format!("cannot read {shown:?}: {error}"))
}

/// Why a file cannot be written.
pub(super) fn writing(error: io::Error, shown: &str) -> Error {
    Error::new(ErrorCode::WriteError, format!("cannot write {shown:?}: {error}"))
}

pub(super) fn not_regular(shown: &str, what: &str) -> Error {
    let text = format!("{shown:?} is {what}: only regular files can be transferred");
    Error::new(ErrorCode::InvalidFile, text)
}

fn outside(shown: &str) -> Error {
    let text = format!("the path {shown:?} leads out of the file root");
    Error::new(ErrorCode::InvalidPath, text)
}

fn leads_out(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::XDEV | Errno::LOOP))
}
