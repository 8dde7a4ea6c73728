//! A local directory as a storage.
//!
//! Work goes to the blocking pool in whole pieces, a file or a batch of entries at a time, never call by call: twenty thousand small files would pay
//! more for the way to the pool than for the disk. The engine works on [`LocalTree`] directly, many files in one piece.

pub(crate) mod content;
pub(crate) mod errno;
pub(crate) mod folding;
mod list;
mod names;
pub(crate) mod open;
pub(crate) mod staging;
pub(crate) mod tag;
#[cfg(test)]
pub(crate) mod tests;
mod write;

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use rustix::fs::{AtFlags, FileType, Mode, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use self::content::{Unlimited, copy_content};
use self::errno::{failed, io_failed};
use self::names::to_text;
use self::open::{OpenRoot, Parents};
use self::staging::{StagedFile, StagingDirectory};
use self::tag::{LocalTag, time_of, timespec_of};
use self::write::LocalWriter;
use crate::entry::{Entry, EntryKind};
use crate::path::EntryPath;
use crate::storage::{Abilities, Condition, Content, ErrorKind, Storage, StorageError, WriteOptions, Writer};

/// Bytes that are read at once for a stream.
const READ_BYTES: usize = 1024 * 1024;
/// Mode of a file that is given none.
const FILE_MODE: u32 = 0o666;
/// The bits that a mode consists of.
const MODE_BITS: u32 = 0o7777;

/// How symbolic links appear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LinkView {
    /// As links, with what they point to.
    #[default]
    Told,
    /// As what they point to.
    Followed,
}

/// The tree of files below one local directory.
#[derive(Clone, Debug)]
pub(crate) struct LocalTree {
    path: Arc<Path>,
    links: LinkView,
}

impl LocalTree {
    /// The tree below an absolute path, which need not exist yet.
    pub(crate) fn new(path: PathBuf, links: LinkView) -> Self {
        Self { path: path.into(), links }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether links are taken for what they point to.
    pub(crate) fn follows(&self) -> bool {
        self.links == LinkView::Followed
    }

    pub(crate) fn open(&self) -> Result<OpenRoot, StorageError> {
        OpenRoot::open(&self.path, false)
    }

    pub(crate) fn open_or_make(&self) -> Result<OpenRoot, StorageError> {
        OpenRoot::open(&self.path, true)
    }

    /// Begins a file, in the directory of an attempt if there is one.
    pub(crate) fn begin(&self, path: &EntryPath, options: WriteOptions, staging: Option<Arc<StagingDirectory>>) -> Box<dyn Writer> {
        Box::new(LocalWriter::new(self.clone(), path.clone(), options, staging))
    }

    async fn with<T: Send + 'static>(
        self,
        work: impl FnOnce(&Self) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        blocking(move || work(&self)).await
    }
}

/// Runs a piece of work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StorageError::new(ErrorKind::Failed, "the process ends")),
    }
}

/// What a listing tells of a file.
pub(crate) fn entry_of(path: EntryPath, stat: &Stat, target: Option<Box<str>>) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Link(target.unwrap_or_default()),
        _ => EntryKind::Other,
    };
    let is_file = kind == EntryKind::File;
    Entry {
        path,
        kind,
        size: if is_file { stat.st_size as u64 } else { 0 },
        modified: Some(time_of(stat.st_mtime, stat.st_mtime_nsec)),
        mode: Some(stat.st_mode & MODE_BITS),
        tag: Some(LocalTag::of(stat).to_string().into()),
    }
}

/// Refuses whatever is no regular file.
pub(crate) fn regular(file: &File, path: &EntryPath) -> Result<Stat, StorageError> {
    let stat = rustix::fs::fstat(file).map_err(|errno| failed("read", path, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        FileType::Directory => Err(StorageError::new(ErrorKind::WrongKind, format!("cannot read {:?}: it is a directory", path.as_str()))),
        _ => Err(StorageError::new(ErrorKind::WrongKind, format!("cannot read {:?}: it is no regular file", path.as_str()))),
    }
}

/// Whether a file is no longer what it was.
pub(crate) fn check_unchanged(file: &File, before: &Stat, path: &EntryPath) -> Result<(), StorageError> {
    let now = rustix::fs::fstat(file).map_err(|errno| failed("read", path, errno))?;
    match LocalTag::of(&now) == LocalTag::of(before) {
        true => Ok(()),
        false => Err(StorageError::new(ErrorKind::Changed, format!("{:?} changed while it was read", path.as_str()))),
    }
}

/// Gives an open file its time and its mode.
pub(crate) fn finish_attributes(file: &File, modified: Option<Timespec>, mode: Option<u32>) -> Result<(), Errno> {
    if let Some(mode) = mode.filter(|mode| !is_kept_at_creation(*mode)) {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & MODE_BITS))?;
    }
    if let Some(modified) = modified {
        let omitted = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        rustix::fs::futimens(file, &Timestamps { last_access: omitted, last_modification: modified })?;
    }
    Ok(())
}

/// Whether a file that is created with this mode has it, so that nothing more is to be done.
fn is_kept_at_creation(mode: u32) -> bool {
    static MASK: OnceLock<u32> = OnceLock::new();
    let mask = *MASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        // Unknown is as good as all: the mode is then set once more.
        mask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
    });
    mode & MODE_BITS & !0o777 == 0 && mode & mask == 0
}

fn abilities() -> &'static Abilities {
    static ABILITIES: OnceLock<Abilities> = OnceLock::new();
    ABILITIES.get_or_init(|| Abilities {
        lists_in_order: true,
        has_directories: true,
        has_links: true,
        has_modes: true,
        sets_times: true,
        renames: true,
        copies: true,
        conditional_writes: true,
        conditional_deletes: true,
        atomic_writes: true,
        hash: None,
        time_precision_ns: Some(1),
    })
}

impl Storage for LocalTree {
    fn abilities(&self) -> &Abilities {
        abilities()
    }

    fn list(&self, directory: &EntryPath) -> BoxStream<'static, Result<Entry, StorageError>> {
        list::list(self.path.to_path_buf(), directory.clone(), self.links)
    }

    fn stat(&self, path: &EntryPath) -> BoxFuture<'static, Result<Option<Entry>, StorageError>> {
        let path = path.clone();
        self.clone().with(move |tree| tree.look(&path)).boxed()
    }

    fn read(&self, path: &EntryPath, range: Range<u64>) -> BoxFuture<'static, Result<Content, StorageError>> {
        let path = path.clone();
        let opened = self.clone().with(move |tree| {
            let file = tree.open()?.read(&path, tree.follows())?;
            let stat = regular(&file, &path)?;
            let end = range.end.min(stat.st_size as u64);
            let mut reading = Reading { file, stat, path, at: range.start, end };
            let first = reading.next()?;
            Ok((first, reading))
        });
        opened.map(|opened| opened.map(|(first, reading)| content(first, reading))).boxed()
    }

    fn write(&self, path: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Box<dyn Writer>, StorageError>> {
        std::future::ready(Ok(self.begin(path, options, None))).boxed()
    }

    fn copy(&self, from: &EntryPath, to: &EntryPath, options: WriteOptions) -> BoxFuture<'static, Result<Entry, StorageError>> {
        let (from, to) = (from.clone(), to.clone());
        self.clone().with(move |tree| tree.copy_within(&from, &to, &options)).boxed()
    }

    fn rename(&self, from: &EntryPath, to: &EntryPath, condition: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        let (from, to) = (from.clone(), to.clone());
        let renamed = self.clone().with(move |tree| {
            let mut root = tree.open()?;
            let source = root.place(&from, Parents::MustExist)?;
            let place = root.place(&to, Parents::Make)?;
            open::rename(&source, &place, &condition, &to)
        });
        renamed.boxed()
    }

    fn remove(&self, path: &EntryPath, condition: Condition) -> BoxFuture<'static, Result<(), StorageError>> {
        let path = path.clone();
        let removed = self.clone().with(move |tree| {
            let place = tree.open()?.place(&path, Parents::MustExist)?;
            place.check(&condition, "remove", path.as_str())?;
            rustix::fs::unlinkat(&place.directory, &place.name, AtFlags::empty()).map_err(|errno| failed("remove", &path, errno))
        });
        removed.boxed()
    }

    fn make_directory(&self, path: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        let path = path.clone();
        self.clone().with(move |tree| tree.open_or_make()?.directory(path.as_str(), Parents::Make).map(drop)).boxed()
    }

    fn remove_directory(&self, path: &EntryPath) -> BoxFuture<'static, Result<(), StorageError>> {
        let path = path.clone();
        let removed = self.clone().with(move |tree| {
            if path.is_root() {
                return std::fs::remove_dir(tree.path()).map_err(|error| io_failed("remove", tree.path().display(), &error));
            }
            let place = tree.open()?.place(&path, Parents::MustExist)?;
            rustix::fs::unlinkat(&place.directory, &place.name, AtFlags::REMOVEDIR).map_err(|errno| failed("remove", &path, errno))
        });
        removed.boxed()
    }

    fn set_attributes(
        &self,
        path: &EntryPath,
        modified: Option<SystemTime>,
        mode: Option<u32>,
    ) -> BoxFuture<'static, Result<(), StorageError>> {
        let path = path.clone();
        self.clone().with(move |tree| tree.set(&path, modified, mode)).boxed()
    }
}

/// The same, blocking.
impl LocalTree {
    fn look(&self, path: &EntryPath) -> Result<Option<Entry>, StorageError> {
        let root = match self.open() {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Some(stat) = root.stat(path, self.follows())? else { return Ok(None) };
        let target = match FileType::from_raw_mode(stat.st_mode).is_symlink() {
            true => Some(to_text(std::os::unix::ffi::OsStrExt::as_bytes(&*root.link_target(path)?)).into()),
            false => None,
        };
        Ok(Some(entry_of(path.clone(), &stat, target)))
    }

    fn copy_within(&self, from: &EntryPath, to: &EntryPath, options: &WriteOptions) -> Result<Entry, StorageError> {
        let mut root = self.open()?;
        let file = root.read(from, self.follows())?;
        let stat = regular(&file, from)?;
        let staged = root.stage(to, None, options.mode.unwrap_or(FILE_MODE))?;
        copy_content(&file, &stat, staged.file(), &mut Vec::new(), &mut Unlimited, from.as_str())?;
        check_unchanged(&file, &stat, from)?;
        commit(staged, to, options)
    }

    fn set(&self, path: &EntryPath, modified: Option<SystemTime>, mode: Option<u32>) -> Result<(), StorageError> {
        let root = self.open()?;
        let (directory, name) = match path.is_root() {
            true => (Arc::new(root.directory("", Parents::MustExist)?), OsStr::new(".").to_owned()),
            false => {
                let mut root = root;
                let place = root.place(path, Parents::MustExist)?;
                (place.directory, place.name)
            }
        };
        let failed = |errno| failed("set the attributes of", path, errno);
        if let Some(mode) = mode {
            // A mode would be set for what a link points to; a link itself has none.
            let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
                rustix::fs::chmodat(&directory, &name, Mode::from_raw_mode(mode & MODE_BITS), AtFlags::empty()).map_err(failed)?;
            }
        }
        if let Some(modified) = modified {
            let omitted = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
            let times = Timestamps { last_access: omitted, last_modification: timespec_of(modified) };
            rustix::fs::utimensat(&directory, &name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        Ok(())
    }
}

/// Gives a staged file its attributes and its name.
fn commit(staged: StagedFile, path: &EntryPath, options: &WriteOptions) -> Result<Entry, StorageError> {
    let failed = |errno| failed("write", path, errno);
    finish_attributes(staged.file(), options.modified.map(timespec_of), options.mode).map_err(failed)?;
    let place = staged.place().clone();
    staged.commit(&options.condition, path)?;
    let stat = place.stat().map_err(failed)?;
    let stat =
        stat.ok_or_else(|| StorageError::new(ErrorKind::Changed, format!("{:?} was removed as soon as it was written", path.as_str())))?;
    Ok(entry_of(path.clone(), &stat, None))
}

/// A file that is being read as a stream.
struct Reading {
    file: File,
    stat: Stat,
    path: EntryPath,
    at: u64,
    end: u64,
}

impl Reading {
    /// The next bytes; none at the end, where it must still be the same file.
    fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        if self.at >= self.end {
            check_unchanged(&self.file, &self.stat, &self.path)?;
            return Ok(None);
        }
        let wanted = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(READ_BYTES);
        let mut bytes = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            match self.file.read_at(&mut bytes[filled..], self.at + filled as u64) {
                Ok(0) => {
                    return Err(StorageError::new(
                        ErrorKind::Changed,
                        format!("{:?} became shorter while it was read", self.path.as_str()),
                    ));
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_failed("read", &self.path, &error)),
            }
        }
        self.at += filled as u64;
        Ok(Some(bytes.into()))
    }
}

fn content(first: Option<Bytes>, reading: Reading) -> Content {
    let Some(first) = first else { return stream::empty().boxed() };
    let rest = stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        let read = blocking(move || reading.next().map(|bytes| (bytes, reading))).await;
        match read {
            Ok((None, _)) => None,
            Ok((Some(bytes), reading)) => Some((Ok(bytes), Some(reading))),
            Err(error) => Some((Err(error), None)),
        }
    });
    stream::once(std::future::ready(Ok(first))).chain(rest).boxed()
}
