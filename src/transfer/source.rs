//! The file that is read, and the proof that it stayed the same meanwhile.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, ErrorCode, Result};

use super::Checksum;
use super::path::RelPath;
use super::root::{FileRoot, reading, regular};
use super::wire::{HEADER_BYTES, Modified, Offer};

/// Data of one frame that is sent.
pub(super) const CHUNK_BYTES: usize = 512 * 1024;

/// An open file that is read once, from front to end, with a running hash.
///
/// All methods block.
pub(super) struct Source {
    file: File,
    origin: Origin,
    before: Identity,
    mode: u32,
    offset: u64,
    hasher: Box<Xxh3>,
}

enum Origin {
    Local(PathBuf),
    Beneath(FileRoot, RelPath),
}

/// What changes when a file is written to or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: Modified,
}

impl Identity {
    fn of(found: &Metadata) -> Self {
        let nanos = u32::try_from(found.mtime_nsec()).unwrap_or(0);
        Self { device: found.dev(), inode: found.ino(), size: found.size(), modified: Modified { seconds: found.mtime(), nanos } }
    }
}

impl Source {
    /// Opens a file of the local user.
    pub(super) fn local(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let file = File::options()
            .read(true)
            // Without NONBLOCK the open of a pipe would wait for a writer.
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
            .open(path)
            .map_err(|error| {
                let text = format!("cannot read {shown:?}: {error}");
                Error::new(ErrorCode::InvalidFile, text)
            })?;
        Self::new(regular(file, &shown)?, Origin::Local(path.to_owned()))
    }

    /// Opens a file below a root.
    pub(super) fn beneath(root: &FileRoot, path: &RelPath) -> Result<Self> {
        Self::new(root.open_file(path)?, Origin::Beneath(root.clone(), path.clone()))
    }

    fn new(file: File, origin: Origin) -> Result<Self> {
        let found = file.metadata().map_err(|error| reading(error, &origin.shown()))?;
        let before = Identity::of(&found);
        Ok(Self { file, origin, before, mode: found.mode(), offset: 0, hasher: Box::default() })
    }

    pub(super) fn size(&self) -> u64 {
        self.before.size
    }

    pub(super) fn offer(&self) -> Offer {
        Offer { size: self.size(), mode: self.mode & 0o777, modified: Some(self.before.modified) }
    }

    /// Hash of everything that was read or skipped so far.
    pub(super) fn checksum(&self) -> Checksum {
        Checksum::from_u128(self.hasher.digest128())
    }

    /// Skips the first `length` bytes if they have this hash; otherwise the reading begins at 0.
    pub(super) fn skip(&mut self, length: u64, checksum: Checksum) -> Result<u64> {
        if length <= self.size() {
            let mut buffer = vec![0; CHUNK_BYTES];
            while self.offset < length {
                let want = buffer.len().min(usize::try_from(length - self.offset).unwrap_or(usize::MAX));
                self.read_at_offset(&mut buffer[..want])?;
            }
            if self.checksum() == checksum {
                return Ok(length);
            }
        }
        self.offset = 0;
        self.hasher.reset();
        Ok(0)
    }

    /// Reads the next chunk behind [`HEADER_BYTES`] free bytes of the buffer; at the end the chunk is empty.
    pub(super) fn chunk(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        let left = usize::try_from(self.size() - self.offset).unwrap_or(usize::MAX);
        buffer.resize(HEADER_BYTES + left.min(CHUNK_BYTES), 0);
        self.read_at_offset(&mut buffer[HEADER_BYTES..])
    }

    fn read_at_offset(&mut self, buffer: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(buffer, self.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.changed("became shorter"));
            }
            Err(error) => return Err(reading(error, &self.origin.shown())),
        }
        self.hasher.update(buffer);
        self.offset += buffer.len() as u64;
        Ok(())
    }

    /// Fails if the file was written to, replaced or removed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let here = self.file.metadata().map_err(|error| reading(error, &self.origin.shown()))?;
        if Identity::of(&here) != self.before {
            return Err(self.changed("was written to"));
        }
        // Files of `/proc` tell a length of 0 and have more.
        if self.file.read_at(&mut [0], self.before.size).is_ok_and(|bytes| bytes > 0) {
            return Err(self.changed("is longer than it says"));
        }
        let named = match &self.origin {
            Origin::Local(path) => std::fs::metadata(path),
            Origin::Beneath(root, path) => root.look(path).and_then(|file| file.metadata()),
        };
        match named {
            Ok(found) if Identity::of(&found) == self.before => Ok(()),
            Ok(_) => Err(self.changed("was replaced")),
            Err(_) => Err(self.changed("was removed")),
        }
    }

    fn changed(&self, how: &str) -> Error {
        let shown = self.origin.shown();
        let text = format!("{shown:?} {how} during the transfer; try again when it is at rest");
        Error::new(ErrorCode::InvalidFile, text)
    }
}

impl Origin {
    fn shown(&self) -> String {
        match self {
            Origin::Local(path) => path.display().to_string(),
            Origin::Beneath(_, path) => path.to_string(),
        }
    }
}
