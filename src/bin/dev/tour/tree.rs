//! A tree of real files: our own program and pieces of it, documentation of the machine, random bytes, and odd names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use nkcluster::transfer::Checksum;
use rand::RngExt as _;

/// The tree has at least so many files.
pub(super) const FILES_MIN: usize = 200;
/// And at least so many bytes.
pub(super) const BYTES_MIN: u64 = 50 * 1000 * 1000;

/// What this file holds: more than the largest payload's usual fragments, and not a whole number of blocks.
const LARGE_BYTES: usize = 12 * 1024 * 1024 + 12_345;
const PIECES: usize = 120;
const DOCUMENTS_MAX: usize = 60;
const DOCUMENT_BYTES_MAX: u64 = 256 * 1024;
const RANDOM_FILES: usize = 40;
const RANDOM_BYTES: usize = 256 * 1024;

/// What a file of the tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) bytes: u64,
    /// XXH3-128 in hexadecimal digits, computed here.
    pub(super) xxh3: String,
}

/// The files of a tree by their path in it.
pub(super) type Files = BTreeMap<String, Content>;

/// The name of the largest file.
pub(super) const LARGE: &str = "program/large";

/// Writes the tree into a directory.
pub(super) fn grow(root: &Path) -> io::Result<Files> {
    let mut tree = Tree { root, files: Files::new() };
    let program = padded(fs::read(std::env::current_exe()?)?);
    tree.write(LARGE, &program[..LARGE_BYTES])?;
    for number in 0..PIECES {
        // Of every length, from everywhere in the program.
        let length = 1000 + number * 4999 % 600_000;
        let start = number * 1_000_003 % (program.len() - length);
        tree.write(&format!("program/pieces/{number:03}"), &program[start..start + length])?;
    }
    for (number, text) in documents().into_iter().enumerate() {
        tree.write(&format!("documents/{}/{number}", number % 7), &text)?;
    }
    tree.write("odd/empty", b"")?;
    tree.write("odd/one byte", b"1")?;
    tree.write("odd/Übung macht/den Mëister.txt", b"names are any UTF-8\n")?;
    let mut number = 0;
    while number < RANDOM_FILES || tree.files.len() < FILES_MIN || tree.bytes() < BYTES_MIN {
        tree.write(&format!("random/{number:03}"), &random(RANDOM_BYTES + number))?;
        number += 1;
    }
    Ok(tree.files)
}

struct Tree<'a> {
    root: &'a Path,
    files: Files,
}

impl Tree<'_> {
    fn write(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.root.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        let bytes = content.len() as u64;
        self.files.insert(name.to_owned(), Content { bytes, xxh3: Checksum::of(content).to_string() });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

/// At least as long as the largest file, whatever the size of the program.
fn padded(mut program: Vec<u8>) -> Vec<u8> {
    const LONGEST: usize = 64 * 1024 * 1024;
    program.truncate(LONGEST);
    if program.len() <= LARGE_BYTES {
        program.extend(random(LARGE_BYTES + 1 - program.len()));
    }
    program
}

/// Small files of the machine's documentation, as many as there are.
fn documents() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let Ok(packages) = fs::read_dir("/usr/share/doc") else {
        return found;
    };
    for package in packages.flatten() {
        for entry in fs::read_dir(package.path()).into_iter().flatten().flatten() {
            if found.len() == DOCUMENTS_MAX {
                return found;
            }
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            let mut text = Vec::new();
            if is_file
                && let Ok(file) = File::open(entry.path())
                && file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text).is_ok()
            {
                found.push(text);
            }
        }
    }
    found
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_large_enough() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = grow(dir.path()).expect("written");
        assert!(files.len() >= FILES_MIN);
        assert!(files.values().map(|file| file.bytes).sum::<u64>() >= BYTES_MIN);
        assert!(files[LARGE].bytes > 8 * 1024 * 1024);
        let on_disk = fs::read(dir.path().join(LARGE)).expect("reads");
        assert_eq!(files[LARGE].xxh3, Checksum::of(&on_disk).to_string());
    }
}
