//! MD5 of what passes, in both forms in which object stores tell it as a tag.
//!
//! An object that was written at once has the MD5 of its content as its tag; one that was written in parts has the MD5 of the parts' MD5s, with their
//! number behind. Encrypted objects have neither, so a tag of another form contradicts nothing.

use md5::{Digest, Md5};

use super::options::Verify;
use super::task::End;
use crate::entry::Entry;
use crate::remote::object::part_bytes;
use crate::storage::Hash;

/// Bytes of an MD5.
const MD5_BYTES: usize = 16;

/// The sums while bytes pass; nothing at all where nobody tells an MD5.
pub(super) struct Md5Sums(Option<Running>);

struct Running {
    whole: Md5,
    part: Md5,
    parts: Vec<u8>,
    part_bytes: u64,
    in_part: u64,
}

/// The sums of a file.
pub(super) struct Md5Tags {
    whole: String,
    /// For an object in parts of the size that we make, if it has more than one.
    in_parts: String,
    parts: usize,
}

impl Md5Sums {
    /// Sums only where one of both ends tells one.
    pub(super) fn wanted(verify: Verify, from: &End, to: &End, source: &Entry) -> Self {
        let tells = |end: &End| end.remote.storage().abilities().hash == Some(Hash::Md5);
        let is_wanted = verify != Verify::Off && (tells(from) || tells(to));
        Self(is_wanted.then(|| Running::new(part_bytes(source.size))))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(running) = &mut self.0 {
            running.update(bytes);
        }
    }

    pub(super) fn finish(&mut self) -> Option<Md5Tags> {
        self.0.take().map(Running::finish)
    }
}

impl Running {
    fn new(part_bytes: u64) -> Self {
        Self { whole: Md5::new(), part: Md5::new(), parts: Vec::new(), part_bytes, in_part: 0 }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let room = usize::try_from(self.part_bytes - self.in_part).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.part.update(now);
            self.in_part += now.len() as u64;
            if self.in_part == self.part_bytes {
                self.end_part();
            }
            bytes = later;
        }
    }

    fn end_part(&mut self) {
        self.parts.extend_from_slice(&self.part.finalize_reset());
        self.in_part = 0;
    }

    fn finish(mut self) -> Md5Tags {
        if self.in_part > 0 || self.parts.is_empty() {
            self.end_part();
        }
        let parts = self.parts.len() / MD5_BYTES;
        Md5Tags { whole: hex(&self.whole.finalize()), in_parts: hex(&Md5::digest(&self.parts)), parts }
    }
}

impl Md5Tags {
    /// Whether a tag is an MD5 of something else.
    pub(super) fn contradict(&self, tag: Option<&str>) -> bool {
        let Some(tag) = tag else { return false };
        let tag = tag.trim_matches('"');
        let is_sum = |text: &str| text.len() == 2 * MD5_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match tag.split_once('-') {
            None => is_sum(tag) && !tag.eq_ignore_ascii_case(&self.whole),
            // Parts of another size, as another program makes them, cannot be compared.
            Some((sum, parts)) => {
                is_sum(sum) && parts.parse() == Ok(self.parts) && self.parts > 1 && !sum.eq_ignore_ascii_case(&self.in_parts)
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tags(bytes: &[u8], part_bytes: u64) -> Md5Tags {
        let mut running = Running::new(part_bytes);
        running.update(bytes);
        running.finish()
    }

    #[test]
    fn tags_are_those_of_the_stores() {
        let tags = tags(b"hello", 1 << 20);
        assert_eq!((tags.whole.as_str(), tags.parts), ("5d41402abc4b2a76b9719d911017c592", 1));
        assert!(!tags.contradict(Some("\"5d41402abc4b2a76b9719d911017c592\"")));
        assert!(tags.contradict(Some("\"5d41402abc4b2a76b9719d911017c593\"")));
        assert!(
            !tags.contradict(None)
                && !tags.contradict(Some("\"encrypted\""))
                && !tags.contradict(Some("5d41402abc4b2a76b9719d911017c593-3"))
        );
    }

    #[test]
    fn parts_are_summed_each_for_itself() {
        let tags = tags(b"abcdef", 3);
        let expected = hex(&Md5::digest([Md5::digest(b"abc"), Md5::digest(b"def")].concat()));
        assert!(!tags.contradict(Some(&format!("\"{expected}-2\""))));
        assert!(tags.contradict(Some("5d41402abc4b2a76b9719d911017c593-2")));
    }

    proptest! {
        #[test]
        fn how_bytes_arrive_changes_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200, part in 1_u64..50) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut running = Running::new(part);
            running.update(first);
            running.update(second);
            let (split, whole) = (running.finish(), tags(&bytes, part));
            prop_assert_eq!((split.whole, split.in_parts, split.parts), (whole.whole, whole.in_parts, whole.parts));
        }
    }
}
