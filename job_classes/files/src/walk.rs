//! The walk of a hash task: a value that goes on for one bounded step whenever it is told to.
//!
//! The order is that of the bytes of the names, directory by directory, and a directory is walked where its name stands. Directories are opened name by
//! name from the one above, never through a link, so a walk stays in the tree where it began even if names are exchanged under it.
//!
//! Memory is bounded whatever the tree is: each level holds one [`Page`] of names, deeper levels smaller ones, and there are at most [`DEPTH_MAX`] levels. A
//! large file takes several steps, so that a pause or a cancellation never waits for it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use nkcluster::transfer::Checksum;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::page::{Page, look};

/// Deepest nesting; each level holds one descriptor.
pub(crate) const DEPTH_MAX: usize = 128;

/// Longest path below the start, as everywhere on Linux. The event that tells it fits even if no byte of it is text.
pub(crate) const PATH_BYTES_MAX: usize = 4096;

/// Names that the top level holds at once; each level below half of it, but not less than [`PAGE_NAMES_MIN`].
const PAGE_NAMES_MAX: usize = 32 * 1024;
const PAGE_NAMES_MIN: usize = 1024;

/// Most of what one step does: some milliseconds.
const STEP_BYTES: u64 = 8 * 1024 * 1024;
const STEP_NAMES: usize = 128;

const CHUNK_BYTES: usize = 256 * 1024;

/// One thing that was done.
#[derive(Debug)]
pub(crate) enum Found {
    /// A file was read to its end.
    Hashed { path: Vec<u8>, bytes: u64, xxh3: Checksum },
    /// A file or directory cannot be read.
    Failed { path: Vec<u8>, error: String },
}

/// What one step did.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) found: Vec<Found>,
    /// Nothing is left.
    pub(crate) done: bool,
}

/// A walk that is under way.
pub(crate) struct Walk {
    levels: Vec<Level>,
    /// Path of the directory in hand, with a `/` at its end unless it is the start.
    path: Vec<u8>,
    reading: Option<Reading>,
    buffer: Vec<u8>,
}

struct Level {
    directory: OwnedFd,
    /// Length of the path of the directory above.
    above: usize,
    names: VecDeque<(Vec<u8>, FileType)>,
    /// The last name that was taken into a page, and whether there are more behind it.
    after: Option<Vec<u8>>,
    more: bool,
}

impl Level {
    fn new(directory: OwnedFd, above: usize) -> Self {
        Self { directory, above, names: VecDeque::new(), after: None, more: true }
    }
}

impl Walk {
    /// Everything below a directory.
    pub(crate) fn of_directory(directory: OwnedFd) -> Self {
        Self { levels: vec![Level::new(directory, 0)], path: Vec::new(), reading: None, buffer: vec![0; CHUNK_BYTES] }
    }

    /// One file.
    pub(crate) fn of_file(file: File, name: &str) -> Self {
        let reading = Some(Reading::new(file, name.as_bytes().to_vec()));
        Self { levels: Vec::new(), path: Vec::new(), reading, buffer: vec![0; CHUNK_BYTES] }
    }

    /// Goes on for a bounded time. Blocks.
    pub(crate) fn step(&mut self) -> Step {
        let mut step = Step::default();
        let mut bytes_left = STEP_BYTES;
        for _ in 0..STEP_NAMES {
            let outcome = match self.reading.take() {
                Some(reading) => self.read(reading, &mut bytes_left),
                None if self.levels.is_empty() => {
                    step.done = true;
                    break;
                }
                None => self.advance(),
            };
            step.found.extend(outcome);
            if bytes_left == 0 {
                break;
            }
        }
        step
    }

    /// Takes the next name: opens a file or directory, or leaves the directory that has none any more.
    fn advance(&mut self) -> Option<Found> {
        let page_names = (PAGE_NAMES_MAX >> (self.levels.len() - 1).min(16)).max(PAGE_NAMES_MIN);
        let level = self.levels.last_mut()?;
        let Some((name, kind)) = level.names.pop_front() else {
            if level.more {
                return self.next_page(page_names);
            }
            self.path.truncate(level.above);
            self.levels.pop();
            return None;
        };
        let kind = match kind {
            FileType::Unknown => look(&level.directory, &name).map(|found| FileType::from_raw_mode(found.st_mode)),
            known => Ok(known),
        };
        let path = [&self.path, &name[..]].concat();
        match kind {
            Ok(FileType::Directory) => self.enter(&name, path),
            Ok(FileType::RegularFile) => self.open(&name, path),
            // Links are not followed, and devices, pipes and sockets have no content.
            Ok(_) => None,
            Err(errno) => Some(failed(path, errno)),
        }
    }

    fn next_page(&mut self, limit: usize) -> Option<Found> {
        let level = self.levels.last_mut()?;
        match Page::read(&level.directory, level.after.as_deref(), limit) {
            Ok(page) => {
                level.more = page.more;
                level.after = page.names.last().map(|(name, _)| name.clone());
                level.names = page.names.into();
                None
            }
            Err(errno) => {
                level.more = false;
                Some(failed(directory_path(&self.path), errno))
            }
        }
    }

    fn enter(&mut self, name: &[u8], path: Vec<u8>) -> Option<Found> {
        if self.levels.len() >= DEPTH_MAX {
            return Some(Found::Failed { path: cut(path), error: format!("nested deeper than {DEPTH_MAX} directories") });
        }
        if path.len() >= PATH_BYTES_MAX {
            return Some(Found::Failed { path: cut(path), error: format!("its path is longer than {PATH_BYTES_MAX} bytes") });
        }
        let above = self.path.len();
        match open_at(&self.levels.last()?.directory, name, OFlags::DIRECTORY) {
            Ok(directory) => {
                self.levels.push(Level::new(directory, above));
                self.path = path;
                self.path.push(b'/');
                None
            }
            Err(errno) => Some(failed(path, errno)),
        }
    }

    fn open(&mut self, name: &[u8], path: Vec<u8>) -> Option<Found> {
        if path.len() > PATH_BYTES_MAX {
            return Some(Found::Failed { path: cut(path), error: format!("its path is longer than {PATH_BYTES_MAX} bytes") });
        }
        // Without NONBLOCK the open of a pipe that has taken the name would wait for a writer.
        match open_at(&self.levels.last()?.directory, name, OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => {
                self.reading = Some(Reading::new(File::from(file), path));
                None
            }
            Err(errno) => Some(failed(path, errno)),
        }
    }

    fn read(&mut self, mut reading: Reading, bytes_left: &mut u64) -> Option<Found> {
        match reading.go_on(&mut self.buffer, bytes_left) {
            Ok(None) => {
                self.reading = Some(reading);
                None
            }
            Ok(Some(xxh3)) => Some(Found::Hashed { bytes: reading.offset, path: reading.path, xxh3 }),
            Err(error) => Some(failed(reading.path, error)),
        }
    }
}

/// A file that is being read.
struct Reading {
    file: File,
    path: Vec<u8>,
    before: Option<Identity>,
    offset: u64,
    hasher: Box<Xxh3>,
}

/// What changes when a file is written to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    size: u64,
    modified: (i64, i64),
}

impl Reading {
    fn new(file: File, path: Vec<u8>) -> Self {
        Self { file, path, before: None, offset: 0, hasher: Box::default() }
    }

    /// Reads as much as it may; the checksum comes with the end of the file.
    fn go_on(&mut self, buffer: &mut [u8], bytes_left: &mut u64) -> io::Result<Option<Checksum>> {
        let before = match self.before {
            Some(before) => before,
            None => *self.before.insert(self.identity()?),
        };
        while self.offset < before.size {
            if *bytes_left == 0 {
                return Ok(None);
            }
            let want = (before.size - self.offset).min(*bytes_left).min(buffer.len() as u64);
            let chunk = &mut buffer[..usize::try_from(want).unwrap_or(CHUNK_BYTES)];
            match self.file.read_exact_at(chunk, self.offset) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
                Err(error) => return Err(error),
            }
            self.hasher.update(chunk);
            self.offset += want;
            *bytes_left -= want;
        }
        if self.identity()? != before {
            return Err(changed());
        }
        Ok(Some(Checksum::from_u128(self.hasher.digest128())))
    }

    fn identity(&self) -> io::Result<Identity> {
        let found = self.file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is no regular file any more"));
        }
        Ok(Identity { size: found.size(), modified: (found.mtime(), found.mtime_nsec()) })
    }
}

fn changed() -> io::Error {
    io::Error::other("it was written to while it was read")
}

fn open_at(directory: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn failed(path: Vec<u8>, error: impl Into<io::Error>) -> Found {
    Found::Failed { path, error: error.into().to_string() }
}

/// The path of a directory without the `/` at its end; `.` for the start.
fn directory_path(path: &[u8]) -> Vec<u8> {
    path.strip_suffix(b"/").unwrap_or(b".").to_vec()
}

/// So much of a path that is too long as an event holds.
fn cut(mut path: Vec<u8>) -> Vec<u8> {
    path.truncate(PATH_BYTES_MAX);
    path
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn walk(directory: &Path) -> Walk {
        Walk::of_directory(File::open(directory).expect("opened").into())
    }

    fn to_the_end(mut walk: Walk) -> Vec<Found> {
        let mut found = Vec::new();
        loop {
            let step = walk.step();
            assert!(step.found.len() <= STEP_NAMES);
            found.extend(step.found);
            if step.done {
                return found;
            }
        }
    }

    fn hashed(found: &[Found]) -> Vec<(String, u64, Checksum)> {
        let file = |found: &Found| match found {
            Found::Hashed { path, bytes, xxh3 } => (String::from_utf8_lossy(path).into_owned(), *bytes, *xxh3),
            Found::Failed { .. } => panic!("{found:?}"),
        };
        found.iter().map(file).collect()
    }

    #[test]
    fn a_directory_is_walked_where_its_name_stands_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("b/empty")).expect("made");
        for path in ["a", "b/x", "b.txt", "c"] {
            fs::write(dir.path().join(path), path).expect("written");
        }
        fs::write(dir.path().join(".nkcluster-partial-1"), "unfinished").expect("written");
        symlink("c", dir.path().join("link")).expect("linked");
        symlink("..", dir.path().join("b/up")).expect("linked");
        let expected = ["a", "b/x", "b.txt", "c"].map(|path| (path.to_owned(), path.len() as u64, Checksum::of(path.as_bytes())));
        assert_eq!(hashed(&to_the_end(walk(dir.path()))), expected);
    }

    #[test]
    fn a_large_file_takes_several_steps() {
        let dir = tempfile::tempdir().expect("a directory");
        let content: Vec<u8> = (0..2 * STEP_BYTES + 7).map(|at| (at % 251) as u8).collect();
        fs::write(dir.path().join("large"), &content).expect("written");
        let mut walk = walk(dir.path());
        assert!(walk.step().found.is_empty());
        assert!(walk.step().found.is_empty());
        assert_eq!(hashed(&to_the_end(walk)), [("large".to_owned(), content.len() as u64, Checksum::of(&content))]);
    }

    #[test]
    fn a_file_that_is_written_to_meanwhile_fails_and_the_walk_goes_on() {
        for grow in [true, false] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("log");
            let file = File::create(&path).expect("made");
            file.set_len(STEP_BYTES + 1).expect("sparse");
            fs::write(dir.path().join("rest"), "x").expect("written");
            let mut walk = walk(dir.path());
            walk.step();
            file.set_len(if grow { STEP_BYTES + 2 } else { 1 }).expect("resized");
            let found = to_the_end(walk);
            assert!(matches!(&found[0], Found::Failed { path, error } if path == b"log" && error.contains("written to")), "{found:?}");
            assert_eq!(hashed(&found[1..])[0].0, "rest");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_and_the_walk_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("a")).expect("made");
        fs::write(dir.path().join("a/file"), "x").expect("written");
        fs::write(dir.path().join("b"), "x").expect("written");
        let mut walk = walk(dir.path());
        // The page is read; then its names become something else.
        walk.advance();
        fs::rename(dir.path().join("a"), dir.path().join("away")).expect("renamed");
        symlink("away", dir.path().join("a")).expect("linked");
        fs::remove_file(dir.path().join("b")).expect("removed");
        let failed: Vec<_> = to_the_end(walk).into_iter().filter(|found| matches!(found, Found::Failed { .. })).collect();
        assert!(matches!(&failed[0], Found::Failed { path, .. } if path == b"a"), "a link is not entered: {failed:?}");
        assert!(matches!(&failed[1], Found::Failed { path, .. } if path == b"b"), "{failed:?}");
    }

    #[test]
    fn a_directory_without_permission_is_told_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).expect("made");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("closed");
        // Root may read everything.
        let refused = File::open(&closed).is_err();
        let found = to_the_end(walk(dir.path()));
        assert_eq!(found.len(), usize::from(refused), "{found:?}");
        assert!(found.iter().all(|found| matches!(found, Found::Failed { path, .. } if path == b"closed")), "{found:?}");
    }

    #[test]
    fn deep_and_long_paths_are_told_and_not_entered() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut deep = rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).expect("opened");
        for _ in 0..DEPTH_MAX + 2 {
            rustix::fs::mkdirat(&deep, "d", Mode::from_raw_mode(0o755)).expect("made");
            deep = open_at(&deep, b"d", OFlags::DIRECTORY).expect("opened");
        }
        let mut long = rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).expect("opened");
        let name = "l".repeat(255);
        for _ in 0..PATH_BYTES_MAX / 255 + 1 {
            rustix::fs::mkdirat(&long, &name, Mode::from_raw_mode(0o755)).expect("made");
            long = open_at(&long, name.as_bytes(), OFlags::DIRECTORY).expect("opened");
        }
        let found = to_the_end(walk(dir.path()));
        assert!(matches!(&found[0], Found::Failed { error, .. } if error.contains("deeper than 128")), "{found:?}");
        assert!(
            matches!(&found[1], Found::Failed { path, error } if path.len() == PATH_BYTES_MAX && error.contains("longer than 4096")),
            "{found:?}"
        );
        assert_eq!(found.len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_file_is_found_once_in_the_order_of_its_parts(
            paths in proptest::collection::btree_set(proptest::collection::vec("[a-c.]{1,3}x", 1..4), 0..30),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let mut expected = Vec::new();
            for parts in &paths {
                // `f` cannot be a part of another path: no file stands where a directory is needed.
                let path = parts.join("/") + ".f";
                let file = dir.path().join(&path);
                fs::create_dir_all(file.parent().expect("has one")).expect("made");
                fs::write(&file, &path).expect("written");
                expected.push((path.split('/').map(str::to_owned).collect::<Vec<_>>(), path));
            }
            expected.sort();
            let found = hashed(&to_the_end(walk(dir.path())));
            prop_assert_eq!(found.into_iter().map(|(path, ..)| path).collect::<Vec<_>>(), expected.into_iter().map(|(_, path)| path).collect::<Vec<_>>());
        }
    }
}
