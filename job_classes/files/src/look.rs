//! The requests: what is there.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nkcluster::transfer::FileRoot;
use nkcluster::{Error, ErrorCode, Result};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::api::{Entry, Kind, LIST_MAX, Listing, Stat, hexadecimal, shown};
use crate::below;
use crate::page::{Page, look};

/// No name has a `/`, so it can mark a name that is told in hexadecimal.
const RAW_MARK: char = '/';

pub(crate) fn stat(root: &FileRoot, path: &str) -> Result<Stat> {
    let found: Metadata = root.metadata(below(path)?.as_ref())?;
    let kind = kind(FileType::from_raw_mode(found.mode()));
    Ok(Stat { size: found.size(), mtime_ms: milliseconds(found.mtime(), found.mtime_nsec()), kind })
}

pub(crate) fn list(root: &FileRoot, path: &str, after: Option<&str>, limit: Option<u32>) -> Result<Listing> {
    let limit = limit.unwrap_or(LIST_MAX);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(Error::new(ErrorCode::InvalidPayload, format!("limit = {limit}: a page has 1 to {LIST_MAX} entries")));
    }
    let after = after.map(read_mark).transpose()?;
    let directory = root.open_dir(below(path)?.as_ref())?;
    let failed = |errno: Errno| Error::new(ErrorCode::InvalidFile, format!("cannot read {path:?}: {errno}"));
    let page = Page::read(&directory, after.as_deref(), limit as usize).map_err(failed)?;
    let next = page.names.last().filter(|_| page.more).map(|(name, _)| mark(name));
    let mut entries = Vec::with_capacity(page.names.len());
    for (bytes, _) in page.names {
        let found = match look(&directory, &bytes) {
            Ok(found) => found,
            // Removed since the scan.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        let (name, raw) = shown(&bytes);
        let stat = Stat {
            size: u64::try_from(found.st_size).unwrap_or(0),
            mtime_ms: milliseconds(found.st_mtime, i64::try_from(found.st_mtime_nsec).unwrap_or(0)),
            kind: kind(FileType::from_raw_mode(found.st_mode)),
        };
        entries.push(Entry { name, raw, stat });
    }
    Ok(Listing { entries, next })
}

fn mark(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("{RAW_MARK}{}", hexadecimal(name)),
    }
}

fn read_mark(text: &str) -> Result<Vec<u8>> {
    let Some(digits) = text.strip_prefix(RAW_MARK) else { return Ok(text.as_bytes().to_vec()) };
    let bytes = digits.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes.collect::<Option<_>>().ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        Error::new(ErrorCode::InvalidPayload, format!("after = {shown:?}: a name, or `next` of the page before"))
    })
}

fn kind(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    }
}

fn milliseconds(seconds: i64, nanos: i64) -> i64 {
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn site() -> (tempfile::TempDir, FileRoot) {
        let dir = tempfile::tempdir().expect("a directory");
        let root = FileRoot::open(dir.path().join("root")).expect("a root");
        (dir, root)
    }

    #[test]
    fn stat_follows_links_that_stay_inside_and_refuses_the_others() {
        let (dir, root) = site();
        fs::create_dir(root.path().join("d")).expect("made");
        fs::write(root.path().join("d/file"), "four").expect("written");
        symlink("d/file", root.path().join("inside")).expect("linked");
        fs::write(dir.path().join("secret"), "x").expect("written");
        symlink("../secret", root.path().join("outside")).expect("linked");

        let file = stat(&root, "d/file").expect("there");
        assert_eq!((file.size, file.kind), (4, Kind::File));
        assert!(file.mtime_ms > 1_500_000_000_000, "{file:?}");
        assert_eq!(stat(&root, "inside").expect("there"), file);
        assert_eq!(stat(&root, "d/").expect("there").kind, Kind::Directory);
        assert_eq!(stat(&root, "").expect("there").kind, Kind::Directory);
        for (path, code) in
            [("outside", ErrorCode::InvalidPath), ("../secret", ErrorCode::InvalidPath), ("missing", ErrorCode::InvalidFile)]
        {
            assert_eq!(stat(&root, path).expect_err(path).code(), &code, "{path}");
        }
    }

    #[test]
    fn a_listing_goes_on_behind_every_name_even_one_that_is_not_text() {
        let (_dir, root) = site();
        let names: [&[u8]; 5] = [b"a", b"b\xfe", b"b\xff", "ü".as_bytes(), b"link"];
        for name in &names[..4] {
            fs::write(root.path().join(OsStr::from_bytes(name)), "x").expect("written");
        }
        symlink("missing", root.path().join("link")).expect("linked");
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = list(&root, ".", after.as_deref(), Some(1)).expect("listed");
            assert_eq!(page.entries.len(), 1);
            seen.extend(page.entries.into_iter().map(|entry| (entry.name, entry.raw, entry.stat.kind)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let told = |name: &str, raw: Option<&str>, kind| (name.to_owned(), raw.map(str::to_owned), kind);
        let expected = [
            told("a", None, Kind::File),
            told("b\u{fffd}", Some("62fe"), Kind::File),
            told("b\u{fffd}", Some("62ff"), Kind::File),
            told("link", None, Kind::Symlink),
            told("ü", None, Kind::File),
        ];
        assert_eq!(seen, expected);
        assert_eq!(list(&root, "", Some("ü"), None).expect("listed"), Listing { entries: vec![], next: None });
    }

    #[test]
    fn pages_of_no_or_too_many_entries_and_wrong_marks_are_refused() {
        let (_dir, root) = site();
        for (after, limit) in
            [(None, Some(0)), (None, Some(1001)), (Some("/6"), None), (Some("/zz"), None), (Some("/+1"), None), (Some("/é"), None)]
        {
            let error = list(&root, "", after, limit).expect_err("refused");
            assert_eq!(error.code(), &ErrorCode::InvalidPayload, "{after:?} {limit:?}");
        }
        fs::write(root.path().join("file"), "x").expect("written");
        assert_eq!(list(&root, "file", None, None).expect_err("refused").code(), &ErrorCode::InvalidFile);
    }

    proptest! {
        #[test]
        fn a_mark_names_its_name(name in proptest::collection::vec(prop_oneof![1_u8..=b'.', b'0'..=255], 1..12)) {
            prop_assert_eq!(read_mark(&mark(&name)).expect("a mark"), name);
        }
    }
}
