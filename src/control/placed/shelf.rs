//! Records of durable actors in the state directory, and marks of those that are over: one file for each, in `placed`.
//!
//! A file is written beside the old one, and renamed, so a crash leaves the one or the other. One that cannot be read is set aside under another name and told; the
//! copies on other nodes may still have what it had. Everything here blocks.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Belongings, HandOvers, RECORD_BYTES_MAX, Stamp};
use crate::cluster::{PLACED_KEY_BYTES_MAX, PlacedKey};
use crate::types::Payload;

/// Name of the directory in the state directory.
const DIRECTORY: &str = "placed";
/// What the files of records end with.
const RECORD: &str = "record";
/// What the files end with that say that an actor is over.
const OVER: &str = "over";
/// What those end with that could not be read.
const DAMAGED: &str = "damaged";
/// What those end with that are being written.
const NEW: &str = "new";
/// Files that are read at a start.
const FILES_MAX: usize = 65_536;
/// Largest file that is read: a record, with its key and what stands between them.
const FILE_BYTES_MAX: u64 = (RECORD_BYTES_MAX + PLACED_KEY_BYTES_MAX + 1024) as u64;

/// The files of a control node.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
    /// The files by what they are of. A key may have any characters.
    files: BTreeMap<PlacedKey, File>,
    next: u64,
}

/// The file of one key.
#[derive(Clone, Copy, Debug, PartialEq)]
struct File {
    number: u64,
    ending: &'static str,
}

/// What a file says of its key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// The last record of its actor.
    Record(Belongings),
    /// Its actor is over.
    Over(Mark),
}

/// A mark, as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) key: PlacedKey,
    /// Of its last record.
    pub(super) stamp: Stamp,
    /// Those that it went back to.
    #[serde(default)]
    pub(super) hand_overs: HandOvers,
}

impl Found {
    fn key(&self) -> &PlacedKey {
        match self {
            Self::Record(belongings) => &belongings.key,
            Self::Over(mark) => &mark.key,
        }
    }

    /// What is newer counts; of a record and the mark of the same age, the mark.
    fn age(&self) -> (Stamp, bool) {
        match self {
            Self::Record(belongings) => (belongings.record.stamp, false),
            Self::Over(mark) => (mark.stamp, true),
        }
    }
}

impl Shelf {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join(DIRECTORY), files: BTreeMap::new(), next: 0 }
    }

    fn path(&self, number: u64, ending: &str) -> PathBuf {
        self.directory.join(format!("{number:08}.{ending}"))
    }

    /// Reads what an earlier life of this node has written.
    ///
    /// # Errors
    /// If the directory cannot be read; a file that cannot is told.
    pub(super) fn load(&mut self) -> io::Result<Vec<Found>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut all: BTreeMap<PlacedKey, Found> = BTreeMap::new();
        for entry in entries.take(FILES_MAX) {
            let path = entry?.path();
            let number = path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse::<u64>().ok());
            let Some(number) = number else { continue };
            self.next = self.next.max(number + 1);
            let (read, ending) = match path.extension().and_then(OsStr::to_str) {
                Some(RECORD) => (read(&path).map(Found::Record), RECORD),
                Some(OVER) => (read(&path).map(Found::Over), OVER),
                // A write that did not come to its end.
                Some(NEW) => {
                    let _ = fs::remove_file(&path);
                    continue;
                }
                _ => continue,
            };
            let found = match read {
                Ok(found) => found,
                // It may be read the next time.
                Err(error) if error.raw_os_error().is_some() => {
                    tracing::error!(path = %path.display(), %error, "the record of a placed actor cannot be read; the copies of other control nodes are used");
                    continue;
                }
                Err(error) => {
                    let aside = self.path(number, DAMAGED);
                    let is_aside = fs::rename(&path, &aside).is_ok();
                    tracing::error!(path = %path.display(), %error, is_aside, "the record of a placed actor cannot be read; it is set aside as .{DAMAGED}");
                    continue;
                }
            };
            let (key, file) = (found.key().clone(), File { number, ending });
            // A crash may leave a record and the mark that was to replace it, or the other way round; the newer one counts.
            let is_older = all.get(&key).is_some_and(|known| known.age() >= found.age());
            let obsolete = if is_older { Some(file) } else { self.files.insert(key.clone(), file) };
            if !is_older {
                all.insert(key, found);
            }
            if let Some(File { number, ending }) = obsolete {
                let _ = fs::remove_file(self.path(number, ending));
            }
        }
        Ok(all.into_values().collect())
    }

    /// Writes the record of an actor.
    pub(super) fn write(&mut self, belongings: &Belongings) -> io::Result<()> {
        self.put(&belongings.key, belongings, RECORD)
    }

    /// Writes that an actor is over, in the place of its record.
    pub(super) fn mark(&mut self, mark: &Mark) -> io::Result<()> {
        self.put(&mark.key, mark, OVER)
    }

    fn put(&mut self, key: &PlacedKey, content: &impl Serialize, ending: &'static str) -> io::Result<()> {
        let before = self.files.get(key).copied();
        let number = before.map_or(self.next, |file| file.number);
        let (new, path) = (self.path(number, NEW), self.path(number, ending));
        let bytes = Payload::encode(content).map_err(io::Error::other)?.into_bytes();
        // What it does may be told by connection strings with passwords.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let written =
            write_to(&new, &bytes).and_then(|()| fs::rename(&new, &path)).and_then(|()| fs::File::open(&self.directory)?.sync_all());
        if let Err(error) = written {
            // On a full disk every byte counts; it may not be there.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        self.next = self.next.max(number + 1);
        self.files.insert(key.clone(), File { number, ending });
        match before.filter(|before| before.ending != ending) {
            Some(File { number, ending }) => remove(&self.path(number, ending)),
            None => Ok(()),
        }
    }

    /// Removes what is there of an actor, if anything is.
    pub(super) fn remove(&mut self, key: &PlacedKey) -> io::Result<()> {
        match self.files.remove(key) {
            Some(File { number, ending }) => remove(&self.path(number, ending)),
            None => Ok(()),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Payload::from_bytes(bytes).decode().map_err(io::Error::other)
}

fn write_to(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Record;
    use super::*;
    use crate::types::ClassName;

    fn belongings(key: &str, version: u64) -> Belongings {
        let key = PlacedKey { kind: ClassName::new("counter").expect("valid"), key: key.to_owned() };
        Belongings {
            key,
            hash: 7,
            record: Record { stamp: Stamp { life: 1, version }, hand_overs: vec![3].into(), bytes: vec![version as u8; 9] },
        }
    }

    fn loaded(dir: &Path) -> Vec<(String, u64)> {
        let found = Shelf::new(dir).load().expect("readable").into_iter();
        let records = found.filter_map(|found| match found {
            Found::Record(found) => Some((found.key.key, found.record.stamp.version)),
            Found::Over(_) => None,
        });
        records.collect()
    }

    fn mark(key: &str, version: u64) -> Mark {
        let Belongings { key, record, .. } = belongings(key, version);
        Mark { key, stamp: record.stamp, hand_overs: vec![4, version].into() }
    }

    fn endings(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir.join(DIRECTORY)).expect("there").map(|entry| entry.expect("readable").path());
        let mut endings: Vec<_> = entries.map(|path| path.extension().expect("one").to_str().expect("text").to_owned()).collect();
        endings.sort_unstable();
        endings
    }

    #[test]
    fn the_newest_record_of_each_actor_returns_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(loaded(dir.path()), [], "no directory is no record");
        let mut shelf = Shelf::new(dir.path());
        for (key, version) in [("a/../\0b", 1), ("other", 1), ("a/../\0b", 2), ("gone", 1)] {
            shelf.write(&belongings(key, version)).expect("written");
        }
        shelf.remove(&belongings("gone", 0).key).expect("removed");
        assert_eq!(loaded(dir.path()), [("a/../\0b".to_owned(), 2), ("other".to_owned(), 1)]);
        for entry in fs::read_dir(dir.path().join(DIRECTORY)).expect("there") {
            assert_eq!(entry.expect("readable").metadata().expect("there").permissions().mode() & 0o777, 0o600);
        }
        // A later life writes over the same files, and takes no number that is in use.
        let mut shelf = Shelf::new(dir.path());
        shelf.load().expect("readable");
        shelf.write(&belongings("other", 5)).expect("written");
        shelf.write(&belongings("new", 1)).expect("written");
        assert_eq!(loaded(dir.path()).len(), 3);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_others_are_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut shelf = Shelf::new(dir.path());
        shelf.write(&belongings("whole", 1)).expect("written");
        shelf.write(&belongings("torn", 1)).expect("written");
        let torn = shelf.path(shelf.files[&belongings("torn", 0).key].number, RECORD);
        let bytes = fs::read(&torn).expect("read");
        fs::write(&torn, &bytes[..bytes.len() - 1]).expect("written");
        fs::write(shelf.path(99, NEW), "a write that was cut").expect("written");
        assert_eq!(loaded(dir.path()), [("whole".to_owned(), 1)]);
        assert_eq!(endings(dir.path()), [DAMAGED, RECORD]);
        assert_eq!(loaded(dir.path()), [("whole".to_owned(), 1)]);
    }

    #[test]
    fn the_mark_of_an_actor_that_is_over_is_in_the_place_of_its_record() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut shelf = Shelf::new(dir.path());
        shelf.write(&belongings("over", 1)).expect("written");
        shelf.write(&belongings("anew", 1)).expect("written");
        for key in ["over", "anew"] {
            shelf.mark(&mark(key, 2)).expect("written");
        }
        shelf.write(&belongings("anew", 3)).expect("written");
        let expected = [Found::Record(belongings("anew", 3)), Found::Over(mark("over", 2))];
        assert_eq!(endings(dir.path()), [OVER, RECORD]);
        assert_eq!(Shelf::new(dir.path()).load().expect("readable"), expected);
        // As if the process had died between the two steps, whichever way it went.
        let mut other = Shelf::new(dir.path());
        other.next = 7;
        other.write(&belongings("over", 2)).expect("written");
        other.mark(&mark("anew", 2)).expect("written");
        let mut shelf = Shelf::new(dir.path());
        assert_eq!(shelf.load().expect("readable"), expected);
        assert_eq!(endings(dir.path()), [OVER, RECORD]);
        shelf.remove(&mark("over", 0).key).expect("removed");
        assert_eq!(endings(dir.path()), [RECORD]);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_record_and_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut shelf = Shelf::new(dir.path());
        shelf.write(&belongings("a", 1)).expect("written");
        // A directory in the place of the file that is written, so that it fails.
        fs::create_dir(shelf.path(0, NEW)).expect("made");
        shelf.write(&belongings("a", 2)).expect_err("cannot be");
        fs::remove_dir(shelf.path(0, NEW)).expect("it is there");
        assert_eq!(loaded(dir.path()), [("a".to_owned(), 1)]);
    }
}
