//! The temporary in which a file arrives.
//!
//! It lies in the directory of the file, under a name made of the file's name and the transfer's id, so that a retry
//! finds it, and a rename puts it in place. A lock on it keeps two attempts of one transfer apart, and the sweep away
//! from those that live. What a crash leaves in it needs no trust: a retry resumes only what has the right hash.
//!
//! ```text
//! open ──► (begin at 0 | at its length) ──► write … ──► commit: verify, mode, time, fsync, rename, fsync directory
//!              │ dropped: stays, for a retry within 24 h      │ discard: gone
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, ErrorCode, Result};

use super::path::RESERVED_PREFIX;
use super::root::{Place, not_regular, writing};
use super::source::CHUNK_BYTES;
use super::wire::Offer;
use super::{Checksum, TransferId};

/// A temporary that nothing was written to for so long is given up.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Entries of a directory that a sweep looks at, so that a huge directory does not slow every transfer down.
const SWEEP_ENTRIES_MAX: usize = 20_000;

/// How often the opening races with the end of an earlier attempt before it is an error.
const RACES_MAX: u32 = 32;

/// The file being written, with a running hash of its first `offset` bytes.
///
/// All methods block.
pub(super) struct Partial {
    place: Place,
    name: String,
    file: File,
    offset: u64,
    hasher: Box<Xxh3>,
}

impl Partial {
    /// Opens or makes the temporary of this transfer and locks it; `busy` if another attempt has it.
    ///
    /// Stale temporaries of the directory are removed on the way.
    pub(super) fn open(place: Place, id: TransferId) -> Result<Self, (Place, Error)> {
        sweep(place.directory.as_fd(), SystemTime::now());
        let name = partial_name(&place, id);
        match open_locked(&place, &name) {
            Ok(file) => Ok(Self { place, name, file, offset: 0, hasher: Box::default() }),
            Err(error) => Err((place, error)),
        }
    }

    /// Hashes what is there already; content longer than `size` is nothing to resume.
    pub(super) fn prefix(&mut self, size: u64) -> Result<()> {
        let found = self.file.metadata().map_err(|error| self.failed(error))?;
        if found.size() > size {
            return Ok(());
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match self.file.read_at(&mut buffer, self.offset) {
                Ok(0) => return Ok(()),
                Ok(bytes) => {
                    self.hasher.update(&buffer[..bytes]);
                    self.offset += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// Hash of the first [`offset`](Self::offset) bytes.
    pub(super) fn checksum(&self) -> Checksum {
        Checksum::from_u128(self.hasher.digest128())
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Drops everything behind `offset`, which is 0 or where it stands.
    pub(super) fn begin_at(&mut self, offset: u64) -> Result<()> {
        if offset != self.offset {
            self.offset = 0;
            self.hasher.reset();
        }
        self.file.set_len(self.offset).map_err(|error| self.failed(error))
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.offset).map_err(|error| self.failed(error))?;
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Puts the file in place if it is what was offered; otherwise the temporary is removed.
    pub(super) fn commit(self, offer: &Offer, size: u64, checksum: Checksum) -> Result<()> {
        match self.put_in_place(offer, size, checksum) {
            Ok(()) => rustix::fs::fsync(&self.place.directory).map_err(|errno| self.failed(errno.into()).after_sending()),
            Err(error) => {
                self.discard();
                Err(error)
            }
        }
    }

    fn put_in_place(&self, offer: &Offer, size: u64, checksum: Checksum) -> Result<()> {
        let shown = &self.place.shown;
        if (self.offset, self.offset) != (size, offer.size) || self.checksum() != checksum {
            let text = format!(
                "the content of {shown:?} was damaged on its way ({} of {} bytes arrived, xxh3 {} \
                 instead of {checksum}); nothing was kept, try again",
                self.offset,
                offer.size,
                self.checksum(),
            );
            return Err(Error::new(ErrorCode::ChecksumMismatch, text));
        }
        // Some file systems know neither modes nor times; that is no reason to refuse the content.
        if let Err(errno) = rustix::fs::fchmod(&self.file, Mode::from_raw_mode(offer.mode & 0o777)) {
            tracing::warn!(path = %shown, mode = offer.mode & 0o777, %errno, "mode not kept");
        }
        if let Some(modified) = offer.modified {
            let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
            let times = Timestamps {
                last_access: omit,
                last_modification: Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanos.min(999_999_999).into() },
            };
            if let Err(errno) = rustix::fs::futimens(&self.file, &times) {
                tracing::warn!(path = %shown, %errno, "time of last change not kept");
            }
        }
        self.file.sync_all().map_err(|error| self.failed(error))?;
        let directory = &self.place.directory;
        match rustix::fs::renameat(directory, &self.name, directory, &self.place.name) {
            Ok(()) => Ok(()),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => Err(not_regular(shown, "a directory")),
            Err(errno) => Err(self.failed(errno.into())),
        }
    }

    /// Removes the temporary.
    pub(super) fn discard(self) {
        if let Err(errno) = rustix::fs::unlinkat(&self.place.directory, &self.name, AtFlags::empty()) {
            tracing::debug!(path = %self.place.shown, %errno, "unfinished transfer not removed");
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        writing(error, &self.place.shown)
    }
}

fn partial_name(place: &Place, id: TransferId) -> String {
    let mut hasher = Xxh3::new();
    hasher.update(&id.as_u128().to_be_bytes());
    hasher.update(place.name.as_bytes());
    format!("{RESERVED_PREFIX}{:032x}", hasher.digest128())
}

fn open_locked(place: &Place, name: &str) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let failed = |errno: Errno| writing(errno.into(), &place.shown);
    for _ in 0..RACES_MAX {
        let opened = rustix::fs::openat(&place.directory, name, flags, Mode::from_raw_mode(0o600));
        let file = match opened {
            Ok(opened) => File::from(opened),
            // A link or device that somebody put there.
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => {
                remove(place.directory.as_fd(), name).map_err(failed)?;
                continue;
            }
            Err(errno) => return Err(failed(errno)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let text = format!("an earlier attempt to write {:?} is still running", place.shown);
                return Err(Error::new(ErrorCode::Busy, text));
            }
            Err(errno) => return Err(failed(errno)),
        }
        // Without the lock the earlier attempt may have put it in place, or removed it: then it is not ours to write to.
        if !still_named(place.directory.as_fd(), name, &file).map_err(failed)? {
            continue;
        }
        let found = file.metadata().map_err(|error| writing(error, &place.shown))?;
        if found.is_file() && found.nlink() == 1 {
            return Ok(file);
        }
        // Another name of the same file, or a pipe, that somebody put there.
        remove(place.directory.as_fd(), name).map_err(failed)?;
    }
    let text = format!("cannot write {:?}: its temporary changes all the time", place.shown);
    Err(Error::new(ErrorCode::Busy, text))
}

/// Whether the name leads to this very file.
fn still_named(directory: BorrowedFd<'_>, name: &str, file: impl AsFd) -> Result<bool, Errno> {
    let here = rustix::fs::fstat(file)?;
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (here.st_dev, here.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn remove(directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR),
        Err(errno) => Err(errno),
    }
}

/// Removes temporaries that nobody resumed in time. Errors are left to the next sweep.
fn sweep(directory: BorrowedFd<'_>, now: SystemTime) {
    let Ok(entries) = Dir::read_from(directory) else { return };
    for entry in entries.take(SWEEP_ENTRIES_MAX) {
        let Ok(entry) = entry else { return };
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with(RESERVED_PREFIX) {
            match remove_if_stale(directory, name, now) {
                Ok(true) => tracing::info!(name, "unfinished transfer given up"),
                Ok(false) => {}
                Err(errno) => tracing::debug!(name, %errno, "unfinished transfer not looked at"),
            }
        }
    }
}

fn remove_if_stale(directory: BorrowedFd<'_>, name: &str, now: SystemTime) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    // Under the lock, since an attempt may just be about to resume it.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    if !still_named(directory, name, &file)? {
        return Ok(false);
    }
    let seconds = rustix::fs::fstat(&file)?.st_mtime;
    let modified = u64::try_from(seconds).map_or(UNIX_EPOCH, |s| UNIX_EPOCH + Duration::from_secs(s));
    // A time in the future is a clock that was set back; it must not live for ever either.
    let age = now.duration_since(modified).unwrap_or_else(|ahead| ahead.duration());
    if age < STALE_AFTER {
        return Ok(false);
    }
    remove(directory, name)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;

    use super::*;

    const ID: TransferId = TransferId(1);

    fn place(directory: &Path) -> Place {
        Place::local(&directory.join("file")).expect("a place")
    }

    fn temporary(directory: &Path) -> PathBuf {
        directory.join(partial_name(&place(directory), ID))
    }

    fn open(directory: &Path) -> Result<Partial> {
        Partial::open(place(directory), ID).map_err(|(_, error)| error)
    }

    #[test]
    fn file_that_lost_its_name_before_the_lock_is_not_written_to() {
        let dir = TempDir::new().expect("a directory");
        let place = place(dir.path());
        let name = partial_name(&place, ID);
        fs::write(temporary(dir.path()), "whole").expect("written");
        let earlier = File::open(temporary(dir.path())).expect("open");
        let named = || still_named(place.directory.as_fd(), &name, &earlier).expect("known");
        assert!(named());

        fs::rename(temporary(dir.path()), dir.path().join("file")).expect("renamed");
        assert!(!named());
        fs::write(temporary(dir.path()), "new").expect("written");
        assert!(!named());
    }

    #[test]
    fn links_and_other_things_under_the_temporary_name_are_replaced() {
        let dir = TempDir::new().expect("a directory");
        let victim = dir.path().join("victim");
        fs::write(&victim, "victim").expect("written");
        let name = temporary(dir.path());
        let traps: [&dyn Fn(); 3] =
            [&|| symlink("victim", &name).expect("linked"), &|| fs::hard_link(&victim, &name).expect("linked"), &|| {
                fs::create_dir(&name).expect("made")
            }];
        for trap in traps {
            trap();
            let mut partial = open(dir.path()).expect("opened");
            partial.prefix(100).expect("read");
            assert_eq!(partial.offset(), 0);
            partial.begin_at(0).expect("empty");
            partial.write(b"mine").expect("written");
            assert_eq!(fs::read(&name).expect("there"), b"mine");
            partial.discard();
            assert!(!name.exists());
        }
        assert_eq!(fs::read(&victim).expect("there"), b"victim");
    }

    #[test]
    fn one_holder_at_a_time() {
        let dir = TempDir::new().expect("a directory");
        let first = open(dir.path()).expect("opened");
        let Err(error) = open(dir.path()) else { panic!("opened twice") };
        assert_eq!(error.code(), &ErrorCode::Busy);
        drop(first);
        open(dir.path()).expect("opened");
    }

    #[test]
    fn content_that_is_longer_than_the_file_is_not_resumed() {
        let dir = TempDir::new().expect("a directory");
        fs::write(temporary(dir.path()), "0123456789").expect("written");
        let mut partial = open(dir.path()).expect("opened");
        partial.prefix(9).expect("read");
        assert_eq!((partial.offset(), partial.checksum()), (0, Checksum::of(b"")));
        partial.prefix(10).expect("read");
        assert_eq!((partial.offset(), partial.checksum()), (10, Checksum::of(b"0123456789")));
        partial.begin_at(0).expect("empty");
        assert_eq!(fs::read(temporary(dir.path())).expect("there"), b"");
    }
}
