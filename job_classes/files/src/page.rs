//! A part of a directory, in order and in bounded memory.
//!
//! The kernel lists a directory in no order. To have the names sorted without holding all of them, a page is the smallest names behind a mark: one
//! scan of the directory for each page. Names that come and go meanwhile are in it or not; those that stay are there exactly once.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use nkcluster::transfer::RESERVED_PREFIX;
use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

/// The smallest names of a directory behind a mark.
#[derive(Debug)]
pub(crate) struct Page {
    /// Names with their types as the listing says them, `Unknown` on some file systems.
    pub(crate) names: Vec<(Vec<u8>, FileType)>,
    /// Whether there are more behind them.
    pub(crate) more: bool,
}

impl Page {
    /// Scans a directory. Unfinished transfers are nobody's business and left out.
    pub(crate) fn read(directory: impl AsFd, after: Option<&[u8]>, limit: usize) -> Result<Self, Errno> {
        let mut smallest: BTreeMap<Vec<u8>, FileType> = BTreeMap::new();
        let mut more = false;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let ours = name == b"." || name == b".." || name.starts_with(RESERVED_PREFIX.as_bytes());
            if ours || after.is_some_and(|after| name <= after) {
                continue;
            }
            if smallest.len() >= limit && smallest.last_key_value().is_some_and(|(last, _)| name > last.as_slice()) {
                more = true;
                continue;
            }
            smallest.insert(name.to_vec(), entry.file_type());
            if smallest.len() > limit {
                smallest.pop_last();
                more = true;
            }
        }
        Ok(Self { names: smallest.into_iter().collect(), more })
    }
}

/// What a name of a directory is, itself and not what it leads to.
pub(crate) fn look(directory: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn pages_hold_every_name_once_and_in_order(
            names in proptest::collection::btree_set(proptest::collection::vec(prop_oneof![1_u8..=b'.' - 1, b'0'..=255], 1..6), 0..40),
            limit in 1_usize..10,
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            for name in &names {
                File::create(dir.path().join(OsStr::from_bytes(name))).expect("made");
            }
            File::create(dir.path().join(format!("{RESERVED_PREFIX}x"))).expect("made");
            let opened = File::open(dir.path()).expect("opened");
            let mut seen: Vec<Vec<u8>> = Vec::new();
            loop {
                let page = Page::read(&opened, seen.last().map(Vec::as_slice), limit).expect("read");
                prop_assert!(page.names.len() <= limit);
                seen.extend(page.names.into_iter().map(|(name, _)| name));
                if !page.more {
                    break;
                }
            }
            let sorted: BTreeSet<Vec<u8>> = names;
            prop_assert_eq!(seen, sorted.into_iter().collect::<Vec<_>>());
        }
    }
}
