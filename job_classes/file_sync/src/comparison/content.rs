//! Whether two files have the same content.
//!
//! A storage that knows the hash of a file is asked for that; one that does not is read. So an object is never downloaded to be compared, unless that was asked for.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use md5::{Digest, Md5};

use super::Answer;
use crate::entry::{Entry, EntryKind};
use crate::storage::{Content, ErrorKind, Hash, Storage, StorageError};

/// An MD5 in bytes.
type Md5Sum = [u8; 16];

/// Compares two files. `downloads` reads both, whatever hashes there are.
pub(crate) async fn same_content(
    (one, one_entry): (&Arc<dyn Storage>, &Entry),
    (other, other_entry): (&Arc<dyn Storage>, &Entry),
    downloads: bool,
) -> Result<Answer, StorageError> {
    if let (EntryKind::Link(a), EntryKind::Link(b)) = (&one_entry.kind, &other_entry.kind) {
        return Ok(if a == b { Answer::Same } else { Answer::Differs });
    }
    if one_entry.size != other_entry.size {
        return Ok(Answer::Differs);
    }
    let knows = |storage: &Arc<dyn Storage>| storage.abilities().hash == Some(Hash::Md5) && !downloads;
    if !knows(one) && !knows(other) {
        return read_both((one, one_entry), (other, other_entry)).await;
    }
    let hash = async |storage: &Arc<dyn Storage>, entry: &Entry| match knows(storage) {
        true => Ok(told_md5(entry)),
        false => md5_of(storage, entry).await.map(Some),
    };
    // The told one first: without it nothing needs to be read.
    let (first, second) = if knows(one) { ((one, one_entry), (other, other_entry)) } else { ((other, other_entry), (one, one_entry)) };
    let Some(a) = hash(first.0, first.1).await? else { return Ok(Answer::Unknown) };
    let Some(b) = hash(second.0, second.1).await? else { return Ok(Answer::Unknown) };
    Ok(if a == b { Answer::Same } else { Answer::Differs })
}

/// The MD5 that a tag is, if it is one: objects written in parts have tags of another form.
fn told_md5(entry: &Entry) -> Option<Md5Sum> {
    let tag = entry.tag.as_deref()?.trim_matches('"');
    if tag.len() != 32 {
        return None;
    }
    let mut sum = Md5Sum::default();
    for (byte, digits) in sum.iter_mut().zip(tag.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(sum)
}

async fn md5_of(storage: &Arc<dyn Storage>, entry: &Entry) -> Result<Md5Sum, StorageError> {
    let mut content = storage.read(&entry.path, 0..entry.size).await?;
    let (mut hash, mut read) = (Md5::new(), 0);
    while let Some(bytes) = content.next().await {
        let bytes = bytes?;
        read += bytes.len() as u64;
        hash.update(&bytes);
    }
    if read != entry.size {
        return Err(StorageError::new(ErrorKind::Changed, format!("{:?} changed while it was compared", entry.path)));
    }
    Ok(hash.finalize().into())
}

/// Reads both, side by side, up to the first difference.
async fn read_both(
    (one, one_entry): (&Arc<dyn Storage>, &Entry),
    (other, other_entry): (&Arc<dyn Storage>, &Entry),
) -> Result<Answer, StorageError> {
    let size = one_entry.size;
    let (one, other) = tokio::try_join!(one.read(&one_entry.path, 0..size), other.read(&other_entry.path, 0..size))?;
    let (mut one, mut other) = (Parts::new(one), Parts::new(other));
    loop {
        let (has_one, has_other) = tokio::try_join!(one.fill(), other.fill())?;
        if !has_one || !has_other {
            return Ok(if has_one == has_other { Answer::Same } else { Answer::Differs });
        }
        let bytes = one.rest.len().min(other.rest.len());
        if one.rest.split_to(bytes) != other.rest.split_to(bytes) {
            return Ok(Answer::Differs);
        }
    }
}

struct Parts {
    content: Content,
    rest: Bytes,
}

impl Parts {
    fn new(content: Content) -> Self {
        Self { content, rest: Bytes::new() }
    }

    /// Sees to it that there are bytes; false at the end.
    async fn fill(&mut self) -> Result<bool, StorageError> {
        while self.rest.is_empty() {
            match self.content.next().await {
                Some(bytes) => self.rest = bytes?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::EntryPath;

    #[test]
    fn only_a_tag_of_32_digits_is_an_md5() {
        let tagged = |tag: &str| Entry {
            path: EntryPath::root(),
            kind: EntryKind::File,
            size: 0,
            modified: None,
            mode: None,
            tag: Some(tag.into()),
        };
        let empty = "d41d8cd98f00b204e9800998ecf8427e";
        assert_eq!(told_md5(&tagged(empty)), Some(Md5::digest(b"").into()));
        assert_eq!(told_md5(&tagged(&format!("\"{empty}\""))), Some(Md5::digest(b"").into()));
        for tag in ["", "d41d8cd98f00b204e9800998ecf8427e-2", "x41d8cd98f00b204e9800998ecf8427e", "éééééééééééééééé"] {
            assert_eq!(told_md5(&tagged(tag)), None, "{tag}");
        }
    }
}
