//! Lists one local directory in the order of names.
//!
//! The kernel tells names in no order, so all of them are read first, packed one behind the other; they are looked at only as the listing is
//! consumed. A million names of twenty bytes take some thirty megabytes.

use std::path::PathBuf;

use futures_util::stream::{self, BoxStream, StreamExt};
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::errno::failed;
use super::names::{name_to_native, to_text};
use super::open::{OpenRoot, Parents};
use super::staging::is_staging_name;
use super::{LinkView, entry_of};
use crate::entry::Entry;
use crate::path::EntryPath;
use crate::storage::{ErrorKind, StorageError};

/// Entries that are looked at in one go.
const BATCH_ENTRIES: usize = 256;
/// Such batches that wait for the consumer.
const BATCHES_MAX: usize = 2;

type Batch = Vec<Result<Entry, StorageError>>;

/// The listing; it begins when it is first asked for an entry.
pub(super) fn list(root: PathBuf, directory: EntryPath, links: LinkView) -> BoxStream<'static, Result<Entry, StorageError>> {
    let start = stream::once(async move {
        let (sender, receiver) = mpsc::channel::<Batch>(BATCHES_MAX);
        // Ends by itself when the consumer is gone, as it can send no more.
        drop(tokio::task::spawn_blocking(move || produce(&root, &directory, links, &sender)));
        stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|batch| (batch, receiver)) }).flat_map(stream::iter)
    });
    start.flatten().boxed()
}

fn produce(root: &std::path::Path, directory: &EntryPath, links: LinkView, sender: &mpsc::Sender<Batch>) {
    let refuse = |error| {
        let _ = sender.blocking_send(vec![Err(error)]);
    };
    let opened = OpenRoot::open(root, false).and_then(|root| open_for_listing(&root, directory, links));
    let (fd, names) = match opened.and_then(|fd| read_names(&fd, directory).map(|names| (fd, names))) {
        Ok(read) => read,
        Err(error) => return refuse(error),
    };
    let mut batch = Batch::with_capacity(BATCH_ENTRIES);
    for name in names.iter() {
        match look(&fd, directory, name, links) {
            Ok(None) => continue,
            Ok(Some(entry)) => batch.push(Ok(entry)),
            Err(error) => batch.push(Err(error)),
        }
        if batch.len() == BATCH_ENTRIES && sender.blocking_send(std::mem::replace(&mut batch, Batch::with_capacity(BATCH_ENTRIES))).is_err()
        {
            return;
        }
    }
    if !batch.is_empty() {
        let _ = sender.blocking_send(batch);
    }
}

fn open_for_listing(root: &OpenRoot, directory: &EntryPath, links: LinkView) -> Result<rustix::fd::OwnedFd, StorageError> {
    if links == LinkView::Followed {
        return root.follow_directory(directory);
    }
    root.directory(directory.as_str(), Parents::MustExist)
}

/// One entry; none if it is gone meanwhile.
fn look(fd: &rustix::fd::OwnedFd, directory: &EntryPath, name: &str, links: LinkView) -> Result<Option<Entry>, StorageError> {
    let path = directory.join(name).map_err(|error| StorageError::new(ErrorKind::InvalidName, error.to_string()))?;
    let native = name_to_native(name);
    let mut stat = match rustix::fs::statat(fd, &*native, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("look at", path, errno)),
    };
    let mut target = None;
    if FileType::from_raw_mode(stat.st_mode).is_symlink() {
        if links == LinkView::Followed {
            // A link that leads nowhere is told as an error, as rclone does.
            stat = rustix::fs::statat(fd, &*native, AtFlags::empty()).map_err(|errno| failed("follow the link", &path, errno))?;
        } else {
            let read = rustix::fs::readlinkat(fd, &*native, Vec::new()).map_err(|errno| failed("read the link", &path, errno))?;
            target = Some(to_text(read.as_bytes()).into());
        }
    }
    Ok(Some(entry_of(path, &stat, target)))
}

/// Names, packed one behind the other.
struct Names {
    text: String,
    /// Where each begins and ends, in the order of the names.
    ranges: Vec<(u32, u16)>,
}

impl Names {
    fn iter(&self) -> impl Iterator<Item = &str> {
        self.ranges.iter().map(|(start, length)| self.name(*start, *length))
    }

    fn name(&self, start: u32, length: u16) -> &str {
        &self.text[start as usize..start as usize + usize::from(length)]
    }
}

fn read_names(fd: &rustix::fd::OwnedFd, directory: &EntryPath) -> Result<Names, StorageError> {
    let failed = |errno| failed("list", directory, errno);
    let mut names = Names { text: String::new(), ranges: Vec::new() };
    for found in Dir::read_from(fd).map_err(failed)? {
        let found = found.map_err(failed)?;
        let name = to_text(found.file_name().to_bytes());
        if matches!(&*name, "." | "..") || is_staging_name(&name) {
            continue;
        }
        let (Ok(start), Ok(length)) = (u32::try_from(names.text.len()), u16::try_from(name.len())) else {
            return Err(StorageError::new(ErrorKind::Failed, format!("cannot list {:?}: it holds too many names", directory.as_str())));
        };
        names.text.push_str(&name);
        names.ranges.push((start, length));
    }
    let text = &names.text;
    let name = |(start, length): &(u32, u16)| &text[*start as usize..*start as usize + usize::from(*length)];
    names.ranges.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    Ok(names)
}
