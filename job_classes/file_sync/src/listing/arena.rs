//! The entries of one directory, packed and sorted.
//!
//! An entry is a [`Record`] of forty bytes and its texts, one after the other, in blocks that are never moved; so a growing directory is not copied, and nothing is
//! allocated per entry. Sorting works on eight bytes of each name, those behind what all names begin with, and looks at the names themselves only where these are equal.

use std::time::{Duration, SystemTime};

use super::item::{Item, ItemKind, Tag};
use crate::entry::{Entry, EntryKind};

/// Bytes of one block of texts.
const TEXT_BLOCK_BYTES: usize = 1 << 20;
/// Records of one block.
const RECORD_BLOCK: usize = 1 << 13;
/// Bytes of tags that one directory keeps. Tags are only asked for where something is to be done, so those of further entries can be asked for again.
const TAG_BYTES_MAX: usize = 4 << 20;
/// Few for tests, so that some of theirs are not kept.
const KEPT_TAG_BYTES: usize = if cfg!(test) { 200 } else { TAG_BYTES_MAX };
/// Longest single text.
const ONE_TEXT_BYTES_MAX: usize = u16::MAX as usize;

const IS_TIMED: u8 = 1;
const HAS_MODE: u8 = 2;
const HAS_TAG: u8 = 4;
const LOST_TAG: u8 = 8;

#[derive(Clone, Copy, Debug)]
struct Record {
    size: u64,
    seconds: i64,
    nanoseconds: u32,
    text: u32,
    name_bytes: u16,
    link_bytes: u16,
    tag_bytes: u16,
    /// Of the key by which it is sorted; 0 if that is its name.
    key_bytes: u16,
    mode: u16,
    kind: Kind,
    flags: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Link,
    Other,
}

/// What an arena cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArenaError {
    #[error("it has more than 4 GiB of names")]
    Full,
    #[error("a name or link has more than 65535 bytes")]
    TextTooLong,
}

/// Collects entries in any order.
#[derive(Debug, Default)]
pub(super) struct Arena {
    records: Vec<Vec<Record>>,
    texts: Vec<Vec<u8>>,
    len: usize,
    tag_bytes: usize,
    /// What all keys begin with, as far as it is known.
    common: Option<Vec<u8>>,
}

/// The entries of an [`Arena`] in order of their keys, directories before files of the same key.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    arena: Arena,
    order: Vec<u32>,
}

impl Arena {
    /// Adds an entry; `key` is what it is sorted by, if that is not its name.
    pub(super) fn push(&mut self, entry: &Entry, key: Option<&str>) -> Result<(), ArenaError> {
        let name = entry.path.name();
        let (kind, link) = match &entry.kind {
            EntryKind::File => (Kind::File, ""),
            EntryKind::Directory => (Kind::Directory, ""),
            EntryKind::Link(target) => (Kind::Link, &**target),
            EntryKind::Other => (Kind::Other, ""),
        };
        let key = key.filter(|key| *key != name && !key.is_empty()).unwrap_or_default();
        let mut flags = 0;
        let mut tag = "";
        if let Some(known) = entry.tag.as_deref() {
            if known.len() <= ONE_TEXT_BYTES_MAX && self.tag_bytes + known.len() <= KEPT_TAG_BYTES {
                (tag, flags) = (known, HAS_TAG);
            } else {
                flags = LOST_TAG;
            }
        }
        let (seconds, nanoseconds) = entry.modified.map(parts).inspect(|_| flags |= IS_TIMED).unwrap_or_default();
        let mode = entry.mode.inspect(|_| flags |= HAS_MODE).unwrap_or_default() as u16;
        let lengths = [name, link, tag, key].map(|text| u16::try_from(text.len()));
        let [Ok(name_bytes), Ok(link_bytes), Ok(tag_bytes), Ok(key_bytes)] = lengths else { return Err(ArenaError::TextTooLong) };
        let text = self.store([name, link, tag, key])?;
        let sorted_by = if key.is_empty() { name } else { key };
        match &mut self.common {
            None => self.common = Some(sorted_by.as_bytes().to_vec()),
            Some(common) => {
                let same = common.iter().zip(sorted_by.as_bytes()).take_while(|(one, other)| one == other).count();
                common.truncate(same);
            }
        }
        self.tag_bytes += tag.len();
        if self.records.last().is_none_or(|block| block.len() == RECORD_BLOCK) {
            // The first block grows as it fills, since most directories are small.
            self.records.push(if self.records.is_empty() { Vec::new() } else { Vec::with_capacity(RECORD_BLOCK) });
        }
        let record =
            Record { size: entry.size, seconds, nanoseconds, text, name_bytes, link_bytes, tag_bytes, key_bytes, mode, kind, flags };
        self.records.last_mut().expect("just looked at").push(record);
        self.len += 1;
        Ok(())
    }

    /// Puts texts into one block, and tells where.
    fn store(&mut self, texts: [&str; 4]) -> Result<u32, ArenaError> {
        const { assert!(4 * ONE_TEXT_BYTES_MAX <= TEXT_BLOCK_BYTES) };
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        if self.texts.last().is_none_or(|block| block.len() + bytes > TEXT_BLOCK_BYTES) {
            self.texts.push(if self.texts.is_empty() { Vec::new() } else { Vec::with_capacity(TEXT_BLOCK_BYTES) });
        }
        let block_start = (self.texts.len() - 1) * TEXT_BLOCK_BYTES;
        let block = self.texts.last_mut().expect("just looked at");
        let at = u32::try_from(block_start + block.len()).map_err(|_| ArenaError::Full)?;
        texts.iter().for_each(|text| block.extend_from_slice(text.as_bytes()));
        Ok(at)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that it holds in all.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let records: usize = self.records.iter().map(|block| block.capacity() * size_of::<Record>()).sum();
        records + self.texts.iter().map(Vec::capacity).sum::<usize>()
    }

    pub(super) fn sort(self) -> Sorted {
        let skipped = self.common.as_ref().map_or(0, Vec::len);
        let mut order: Vec<(u64, u32)> = Vec::with_capacity(self.len);
        for at in 0..self.len as u32 {
            let rest = &self.key(at).as_bytes()[skipped..];
            let mut prefix = [0; 8];
            let known = rest.len().min(8);
            prefix[..known].copy_from_slice(&rest[..known]);
            order.push((u64::from_be_bytes(prefix), at));
        }
        // The names decide where the eight bytes are equal; directories come first, and what was listed first comes first.
        order.sort_unstable_by(|(a_prefix, a), (b_prefix, b)| {
            let names = || self.key(*a).cmp(self.key(*b));
            let ranks = || (self.record(*a).kind != Kind::Directory).cmp(&(self.record(*b).kind != Kind::Directory));
            a_prefix.cmp(b_prefix).then_with(names).then_with(ranks).then(a.cmp(b))
        });
        let order = order.iter().map(|(_, at)| *at).collect();
        Sorted { arena: self, order }
    }

    fn record(&self, at: u32) -> &Record {
        &self.records[at as usize / RECORD_BLOCK][at as usize % RECORD_BLOCK]
    }

    fn text(&self, at: usize, bytes: u16) -> &str {
        let block = &self.texts[at / TEXT_BLOCK_BYTES];
        let start = at % TEXT_BLOCK_BYTES;
        std::str::from_utf8(&block[start..start + usize::from(bytes)]).expect("it was text when it was put there")
    }

    fn key(&self, at: u32) -> &str {
        let record = self.record(at);
        if record.key_bytes == 0 {
            return self.text(record.text as usize, record.name_bytes);
        }
        let before = [record.name_bytes, record.link_bytes, record.tag_bytes].map(usize::from).iter().sum::<usize>();
        self.text(record.text as usize + before, record.key_bytes)
    }

    fn item(&self, at: u32) -> Item<'_> {
        let record = self.record(at);
        let text = record.text as usize;
        let link_at = text + usize::from(record.name_bytes);
        let tag_at = link_at + usize::from(record.link_bytes);
        let kind = match record.kind {
            Kind::File => ItemKind::File,
            Kind::Directory => ItemKind::Directory,
            Kind::Link => ItemKind::Link(self.text(link_at, record.link_bytes)),
            Kind::Other => ItemKind::Other,
        };
        let tag = match record.flags & (HAS_TAG | LOST_TAG) {
            HAS_TAG => Tag::Known(self.text(tag_at, record.tag_bytes)),
            LOST_TAG => Tag::NotKept,
            _ => Tag::None,
        };
        Item {
            name: self.text(text, record.name_bytes),
            kind,
            size: record.size,
            modified: (record.flags & IS_TIMED != 0).then(|| moment(record.seconds, record.nanoseconds)),
            mode: (record.flags & HAS_MODE != 0).then_some(record.mode.into()),
            tag,
        }
    }
}

impl Sorted {
    /// The entry at a position, and what it is sorted by.
    pub(super) fn at(&self, position: usize) -> Option<(Item<'_>, &str)> {
        let at = *self.order.get(position)?;
        Some((self.arena.item(at), self.arena.key(at)))
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.arena.bytes() + self.order.capacity() * size_of::<u32>()
    }
}

/// A time as whole seconds, rounded down, and nanoseconds.
fn parts(time: SystemTime) -> (i64, u32) {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (after.as_secs().cast_signed(), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            match before.subsec_nanos() {
                0 => (-before.as_secs().cast_signed(), 0),
                ns => (-before.as_secs().cast_signed() - 1, 1_000_000_000 - ns),
            }
        }
    }
}

fn moment(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
    base + Duration::from_nanos(nanoseconds.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::path::EntryPath;

    fn entry(name: &str, kind: EntryKind, number: u64) -> Entry {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(number);
        Entry {
            path: EntryPath::root().join("dir").and_then(|dir| dir.join(name)).expect("a path"),
            kind,
            size: number,
            modified: (!number.is_multiple_of(3)).then_some(if number.is_multiple_of(2) {
                modified
            } else {
                SystemTime::UNIX_EPOCH - Duration::from_nanos(number)
            }),
            mode: (!number.is_multiple_of(5)).then_some((number % 0o10000) as u32),
            tag: (!number.is_multiple_of(7)).then(|| format!("tag-{number}").into()),
        }
    }

    fn all(sorted: &Sorted) -> Vec<Entry> {
        let dir = EntryPath::parse("dir").expect("a path");
        (0..).map_while(|at| sorted.at(at)).map(|(item, _)| item.to_entry(dir.join(item.name).expect("a path")).0).collect()
    }

    proptest! {
        #[test]
        fn entries_return_as_they_were_in_the_order_of_names(names in prop::collection::vec(("[a-cé]{1,12}", 0..4u8, any::<u32>()), 0..60)) {
            let mut arena = Arena::default();
            let mut expected = Vec::new();
            for (name, kind, number) in &names {
                let kind = match kind {
                    0 => EntryKind::Directory,
                    1 => EntryKind::Link(format!("to-{number}").into()),
                    2 => EntryKind::Other,
                    _ => EntryKind::File,
                };
                let mut entry = entry(name, kind, u64::from(*number));
                arena.push(&entry, None).expect("room");
                if arena.records.last().and_then(|block| block.last()).is_some_and(|record| record.flags & LOST_TAG != 0) {
                    entry.tag = None;
                }
                expected.push(entry);
            }
            expected.sort_by(|a, b| (a.path.name(), a.kind != EntryKind::Directory).cmp(&(b.path.name(), b.kind != EntryKind::Directory)));
            prop_assert_eq!(all(&arena.sort()), expected);
        }
    }

    #[test]
    fn a_key_decides_the_order_and_the_name_stays() {
        let mut arena = Arena::default();
        for (name, key) in [("B", "b"), ("a", "a"), ("C", "c")] {
            arena.push(&entry(name, EntryKind::File, 1), Some(key)).expect("room");
        }
        let sorted = arena.sort();
        let names: Vec<_> =
            (0..3).map(|at| sorted.at(at).map(|(item, key)| (item.name.to_owned(), key.to_owned())).expect("three")).collect();
        assert_eq!(names, [("a", "a"), ("B", "b"), ("C", "c")].map(|(name, key)| (name.to_owned(), key.to_owned())));
    }

    #[test]
    fn a_million_entries_stay_below_a_hundred_megabytes() {
        const ENTRIES: u32 = 150_000;
        let mut arena = Arena::default();
        let mut entry = entry("x", EntryKind::File, 1);
        for number in 0..ENTRIES {
            // Names come in no order, as those of a hashed directory do.
            let name = format!("dir/image-{:08}.jpeg", number.wrapping_mul(2_654_435_761));
            entry.path = EntryPath::parse(&name).expect("a path");
            entry.tag = Some(format!("{number:-<60}").into());
            arena.push(&entry, None).expect("room");
        }
        let growing = arena.bytes();
        let sorted = arena.sort();
        // While they are sorted, sixteen bytes an entry come on top. Tags are bounded for the whole directory.
        let most = growing.max(sorted.bytes()) + ENTRIES as usize * 16;
        let of_each = (most - KEPT_TAG_BYTES) as f64 / f64::from(ENTRIES);
        assert!(of_each * 1e6 + (TAG_BYTES_MAX as f64) < 100e6, "{of_each} bytes an entry");
        let is_sorted = (1..ENTRIES as usize).all(|at| sorted.at(at - 1).expect("there").0.name < sorted.at(at).expect("there").0.name);
        assert!(is_sorted);
        let tags: Vec<_> = (0..ENTRIES as usize).map(|at| sorted.at(at).expect("there").0.tag).collect();
        assert!(tags.iter().any(|tag| matches!(tag, Tag::Known(_))) && tags.contains(&Tag::NotKept) && !tags.contains(&Tag::None));
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let mut entry = entry("x", EntryKind::File, 1);
        entry.kind = EntryKind::Link("t".repeat(70_000).into());
        assert_eq!(Arena::default().push(&entry, None), Err(ArenaError::TextTooLong));
    }
}
