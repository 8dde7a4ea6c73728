//! Moves the bytes of one local file into another: the cheapest way that the file systems offer.
//!
//! A reflink shares the blocks; `copy_file_range` leaves the bytes in the kernel; else they pass through a buffer. Small files always pass through
//! the buffer, as two calls for them are cheaper than any ladder.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;

use super::errno::{failed, io_failed};
use crate::storage::{ErrorKind, StorageError};

/// Files up to this size are read and written at once.
pub(crate) const SMALL_BYTES_MAX: u64 = 128 * 1024;
/// Bytes of one step, after which progress is told and cancellation is seen.
const STEP_BYTES: usize = 8 * 1024 * 1024;
/// Size of the buffer where bytes have to pass through us.
const BUFFER_BYTES: usize = 512 * 1024;
/// Bytes of one block, in the unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// Lets bytes pass: a limit of the rate, a cancellation, a display of progress.
pub(crate) trait Allowance {
    /// Waits until some of the wanted bytes may pass; tells how many.
    fn grant(&mut self, wanted: usize) -> Result<usize, StorageError>;

    /// That many have passed.
    fn passed(&mut self, bytes: u64);
}

/// Everything may pass.
pub(crate) struct Unlimited;

impl Allowance for Unlimited {
    fn grant(&mut self, wanted: usize) -> Result<usize, StorageError> {
        Ok(wanted)
    }

    fn passed(&mut self, _: u64) {}
}

/// How the bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Reflink,
    Kernel,
    Buffer,
}

/// Copies what `stat` says of the source into an empty target. A source that is shorter by now is an error; one that is longer is not looked at.
pub(crate) fn copy_content(
    source: &File,
    stat: &Stat,
    target: &File,
    buffer: &mut Vec<u8>,
    allowance: &mut dyn Allowance,
    shown: &str,
) -> Result<Way, StorageError> {
    let size = stat.st_size as u64;
    if size <= SMALL_BYTES_MAX {
        copy_small(source, size as usize, target, buffer, allowance, shown)?;
        return Ok(Way::Buffer);
    }
    // A limit of the rate is meant for the disks as well; a reflink moves nothing.
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        allowance.passed(size);
        return Ok(Way::Reflink);
    }
    let is_sparse = (stat.st_blocks as u64) * BLOCK_BYTES < size;
    let mut way = Way::Kernel;
    let mut at = 0;
    while at < size {
        let end = if is_sparse { next_data(source, &mut at, size) } else { size };
        while at < end {
            let wanted = allowance.grant(usize::try_from(end - at).unwrap_or(usize::MAX).min(STEP_BYTES))?;
            let moved = match way {
                Way::Kernel => match in_kernel(source, target, at, wanted) {
                    Ok(moved) => moved,
                    Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BADF | Errno::PERM) => {
                        way = Way::Buffer;
                        continue;
                    }
                    Err(errno) => return Err(failed("copy", shown, errno)),
                },
                _ => through_buffer(source, target, at, wanted, buffer, shown)?,
            };
            if moved == 0 {
                return Err(shorter(shown));
            }
            at += moved as u64;
            allowance.passed(moved as u64);
        }
    }
    if is_sparse {
        rustix::fs::ftruncate(target, size).map_err(|errno| failed("write", shown, errno))?;
    }
    Ok(way)
}

fn copy_small(
    source: &File,
    size: usize,
    target: &File,
    buffer: &mut Vec<u8>,
    allowance: &mut dyn Allowance,
    shown: &str,
) -> Result<(), StorageError> {
    if size == 0 {
        // Files of /proc and the like have content and no size.
        return match source.read_at(&mut [0], 0) {
            Ok(0) => Ok(()),
            Ok(_) => Err(StorageError::new(ErrorKind::Changed, format!("{shown:?} has content and no size"))),
            Err(error) => Err(io_failed("read", shown, &error)),
        };
    }
    if buffer.len() < size {
        buffer.resize(SMALL_BYTES_MAX as usize, 0);
    }
    let mut granted = 0;
    while granted < size {
        granted += allowance.grant(size - granted)?;
    }
    let mut filled = 0;
    while filled < size {
        match source.read_at(&mut buffer[filled..size], filled as u64) {
            Ok(0) => return Err(shorter(shown)),
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_failed("read", shown, &error)),
        }
    }
    target.write_all_at(&buffer[..size], 0).map_err(|error| io_failed("write", shown, &error))?;
    allowance.passed(size as u64);
    Ok(())
}

/// Moves `at` to where data begins and tells where it ends. Where the file system cannot say, all of it is data.
fn next_data(source: &File, at: &mut u64, size: u64) -> u64 {
    match rustix::fs::seek(source, SeekFrom::Data(*at)) {
        Ok(begin) => *at = begin.min(size),
        // Only a hole is left.
        Err(Errno::NXIO) => *at = size,
        Err(_) => return size,
    }
    rustix::fs::seek(source, SeekFrom::Hole(*at)).map_or(size, |end| end.min(size))
}

fn in_kernel(source: &File, target: &File, at: u64, wanted: usize) -> Result<usize, Errno> {
    let (mut from, mut to) = (at, at);
    loop {
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn through_buffer(source: &File, target: &File, at: u64, wanted: usize, buffer: &mut Vec<u8>, shown: &str) -> Result<usize, StorageError> {
    if buffer.len() < BUFFER_BYTES {
        buffer.resize(BUFFER_BYTES, 0);
    }
    let mut moved = 0;
    while moved < wanted {
        let part = (wanted - moved).min(BUFFER_BYTES);
        let position = at + moved as u64;
        let read = match source.read_at(&mut buffer[..part], position) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io_failed("read", shown, &error)),
        };
        target.write_all_at(&buffer[..read], position).map_err(|error| io_failed("write", shown, &error))?;
        moved += read;
    }
    Ok(moved)
}

fn shorter(shown: &str) -> StorageError {
    StorageError::new(ErrorKind::Changed, format!("{shown:?} became shorter while it was copied"))
}
