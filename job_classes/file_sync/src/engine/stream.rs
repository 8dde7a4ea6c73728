//! Operations with an end that is not local: bytes pass through us as a stream, unless one storage copies within itself.

use std::sync::Arc;

use futures_util::stream::StreamExt;
use xxhash_rust::xxh3::Xxh3;

use super::error::{Failed, Failure, Side};
use super::md5::Md5Sums;
use super::task::{End, Task, Transfer};
use super::{Done, Effect, Verify, Work};
use crate::entry::{Entry, EntryKind};
use crate::operation::Planned;
use crate::path::EntryPath;
use crate::remote::Access;
use crate::remote::object::COPY_BYTES_MAX;
use crate::storage::{Condition, Content, ErrorKind, Storage, StorageError, WriteOptions, Writer};

/// One try.
pub(super) async fn carry_out(work: &Work, task: &Task) -> Result<Done, Failed> {
    match task {
        Task::Copy(transfer) => copy(work, transfer, None).await.map(|(done, _)| done),
        Task::Move(transfer) => move_file(work, transfer).await,
        Task::Delete { file, planned } => delete(work, file, planned.as_ref()).await,
    }
}

async fn copy(work: &Work, transfer: &Transfer, wanted_tag: Option<&str>) -> Result<(Done, Entry), Failed> {
    let source = look(work, &transfer.source, Side::Source).await?;
    let source = source.ok_or_else(|| missing(&transfer.source))?;
    if source.kind != EntryKind::File {
        return Err(Failed::new(Failure::SourceKind, format!("cannot copy {:?}: it is no file", source.path.as_str())));
    }
    if wanted_tag.is_some() && wanted_tag != source.tag.as_deref() {
        return Err(changed_since_plan(&transfer.source));
    }
    let options = work.engine.options();
    let write = WriteOptions {
        condition: transfer.condition(),
        modified: if options.keeps_times { source.modified } else { None },
        mode: if options.keeps_modes { source.mode } else { None },
        size: Some(source.size),
    };
    let copied = match within(transfer, source.size) {
        Some(way) => copy_within(work, transfer, &source, way, write).await,
        None => stream(work, transfer, &source, write).await,
    };
    match copied {
        Ok(done) => Ok((done, source)),
        Err(failed) if failed.error.kind == Failure::DestinationChanged && is_there(work, transfer, &source).await? => {
            Ok((Done { effect: Effect::AlreadyThere, bytes: source.size, hash: None }, source))
        }
        Err(failed) => Err(failed),
    }
}

/// A copy that a store makes by itself.
struct Within {
    storage: Arc<dyn Storage>,
    from: EntryPath,
    to: EntryPath,
}

/// Whether both ends are one store, and how it names them.
fn within(transfer: &Transfer, size: u64) -> Option<Within> {
    let (Access::Object(from), Access::Object(to)) = (transfer.source.remote.access(), transfer.target.remote.access()) else {
        return None;
    };
    let is_one = from.account == to.account && to.whole.abilities().copies && size <= COPY_BYTES_MAX;
    let path = |prefix: &EntryPath, path: &EntryPath| prefix.join(path.as_str()).ok();
    let (from_path, to_path) = (path(&from.prefix, &transfer.source.path)?, path(&to.prefix, &transfer.target.path)?);
    is_one.then(|| Within { storage: to.whole.clone(), from: from_path, to: to_path })
}

async fn copy_within(work: &Work, transfer: &Transfer, source: &Entry, way: Within, write: WriteOptions) -> Result<Done, Failed> {
    work.check()?;
    let written = tokio::select! {
        biased;
        () = work.cancel.cancelled() => return Err(Failed::new(Failure::Cancelled, "cancelled")),
        written = way.storage.copy(&way.from, &way.to, write) => written.map_err(Failed::destination)?,
    };
    let is_whole = written.size == source.size;
    if !is_whole && work.engine.options().verify != Verify::Off {
        return Err(changed(source, "another"));
    }
    tracing::trace!(path = transfer.target.path.as_str(), "copied within its store");
    Ok(Done { effect: Effect::CopiedWithin, bytes: source.size, hash: None })
}

async fn stream(work: &Work, transfer: &Transfer, source: &Entry, write: WriteOptions) -> Result<Done, Failed> {
    let (from, to) = (&transfer.source, &transfer.target);
    let content = from.remote.storage().read(&from.path, 0..source.size).await.map_err(Failed::source)?;
    let mut writer = match to.tree() {
        Some(tree) => tree.begin(&to.path, write, to.staging.clone()),
        None => to.remote.storage().write(&to.path, write).await.map_err(Failed::destination)?,
    };
    let shown = work.stats.transfer(from.path.as_str(), source.size);
    let mut hash = Xxh3::new();
    let mut md5 = Md5Sums::wanted(work.engine.options().verify, from, to, source);
    let copied = async {
        pump(work, content, writer.as_mut(), source, |bytes| {
            hash.update(bytes);
            md5.update(bytes);
            shown.advance(bytes.len() as u64);
        })
        .await?;
        let sums = md5.finish();
        // What arrived otherwise than it was stored gets no name.
        if sums.as_ref().is_some_and(|sums| sums.contradict(source.tag.as_deref())) {
            return Err(corrupt(source));
        }
        work.check()?;
        let written = writer.finish().await.map_err(Failed::destination)?;
        if sums.is_some_and(|sums| sums.contradict(written.tag.as_deref())) {
            // Only what was written just now is removed; if somebody has written over it since, it is his.
            let _ = remove(work, to, written.tag).await;
            return Err(corrupt(source));
        }
        verify(work, to, &written, source, hash.digest128()).await
    };
    if let Err(error) = copied.await {
        shown.restart();
        return Err(error);
    }
    Ok(Done { effect: Effect::Copied, bytes: source.size, hash: Some(hash.digest128()) })
}

/// Moves all of the content, which must have the length that the source was said to have.
async fn pump(
    work: &Work,
    mut content: Content,
    writer: &mut dyn Writer,
    source: &Entry,
    mut on_bytes: impl FnMut(&[u8]),
) -> Result<(), Failed> {
    let cancelled = work.cancel.cancelled();
    tokio::pin!(cancelled);
    let mut left = source.size;
    loop {
        let next = tokio::select! {
            biased;
            () = &mut cancelled => return Err(Failed::new(Failure::Cancelled, "cancelled")),
            next = content.next() => next,
        };
        let Some(bytes) = next else { break };
        let bytes = bytes.map_err(Failed::source)?;
        if bytes.len() as u64 > left {
            return Err(changed(source, "longer"));
        }
        left -= bytes.len() as u64;
        work.check()?;
        tokio::select! {
            biased;
            () = &mut cancelled => return Err(Failed::new(Failure::Cancelled, "cancelled")),
            () = work.engine.bandwidth().pass(bytes.len()) => {}
        }
        on_bytes(&bytes);
        tokio::select! {
            biased;
            () = &mut cancelled => return Err(Failed::new(Failure::Cancelled, "cancelled")),
            written = writer.write(bytes) => written.map_err(Failed::destination)?,
        }
    }
    if left == 0 { Ok(()) } else { Err(changed(source, "shorter")) }
}

/// Compares what was written with what was read.
async fn verify(work: &Work, target: &End, written: &Entry, source: &Entry, hash: u128) -> Result<(), Failed> {
    match work.engine.options().verify {
        Verify::Off => return Ok(()),
        _ if written.size != source.size => return Err(corrupt(source)),
        Verify::Cheap => return Ok(()),
        Verify::ReadBack => {}
    }
    let mut content = target.remote.storage().read(&target.path, 0..written.size).await.map_err(Failed::destination)?;
    let mut read_back = Xxh3::new();
    while let Some(bytes) = content.next().await {
        read_back.update(&bytes.map_err(Failed::destination)?);
        work.check()?;
    }
    if read_back.digest128() == hash { Ok(()) } else { Err(corrupt(source)) }
}

async fn move_file(work: &Work, transfer: &Transfer) -> Result<Done, Failed> {
    let copied = match copy(work, transfer, transfer.planned_tag()).await {
        Err(failed) if failed.error.kind == Failure::SourceMissing => return moved_before(work, transfer, failed).await,
        other => other?,
    };
    let (done, source) = copied;
    remove(work, &transfer.source, source.tag).await?;
    Ok(Done { effect: Effect::Moved, ..done })
}

/// There is no source: an earlier attempt may have come to the end before it was given up. Without a time of the source only sizes can be compared,
/// and only a batch that was offered before has such a past.
async fn moved_before(work: &Work, transfer: &Transfer, failed: Failed) -> Result<Done, Failed> {
    let was_offered_before = work.fence.attempt().is_some_and(|attempt| attempt.attempt > 0);
    let planned = transfer.planned.as_ref().map(|planned| planned.size);
    let found = look(work, &transfer.target, Side::Destination).await?;
    match found {
        Some(found) if was_offered_before && Some(found.size) == planned => {
            Ok(Done { effect: Effect::AlreadyThere, bytes: found.size, hash: None })
        }
        _ => Err(failed),
    }
}

async fn delete(work: &Work, file: &End, planned: Option<&Planned>) -> Result<Done, Failed> {
    let Some(found) = look(work, file, Side::Destination).await? else {
        return Ok(Done { effect: Effect::AlreadyGone, bytes: 0, hash: None });
    };
    if found.kind == EntryKind::Directory {
        return Err(Failed::new(Failure::SourceKind, format!("cannot delete {:?}: it is a directory", file.path.as_str())));
    }
    let planned = planned.and_then(|planned| planned.tag.as_deref());
    if planned.is_some() && planned != found.tag.as_deref() {
        return Err(changed_since_plan(file));
    }
    remove(work, file, found.tag).await?;
    Ok(Done { effect: Effect::Deleted, bytes: found.size, hash: None })
}

/// Removes what has this tag, and nothing else.
async fn remove(work: &Work, file: &End, tag: Option<Box<str>>) -> Result<(), Failed> {
    work.check()?;
    if let (Some(tree), Some(staging)) = (file.tree(), file.staging.clone()) {
        let (tree, path) = (tree.clone(), file.path.clone());
        let wanted = tag.as_deref().and_then(crate::remote::local::tag::LocalTag::parse);
        let wanted = wanted.ok_or_else(|| Failed::new(Failure::Failed, format!("{path:?}: no tag of a local file")))?;
        let removed = crate::remote::local::blocking(move || tree.open()?.remove_by(&path, &wanted, &staging)).await;
        return gone_is_fine(removed);
    }
    let condition = tag.map_or(Condition::Always, Condition::Tag);
    gone_is_fine(file.remote.storage().remove(&file.path, condition).await)
}

fn gone_is_fine(removed: Result<(), StorageError>) -> Result<(), Failed> {
    match removed {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        other => other.map_err(Failed::source),
    }
}

async fn look(work: &Work, end: &End, side: Side) -> Result<Option<Entry>, Failed> {
    work.check()?;
    let looked = tokio::select! {
        biased;
        () = work.cancel.cancelled() => return Err(Failed::new(Failure::Cancelled, "cancelled")),
        looked = end.remote.storage().stat(&end.path) => looked,
    };
    looked.map_err(|error| Failed::at(side, error))
}

/// Whether the destination is already what it was to become.
async fn is_there(work: &Work, transfer: &Transfer, source: &Entry) -> Result<bool, Failed> {
    let found = look(work, &transfer.target, Side::Destination).await?;
    Ok(found.is_some_and(|found| found.size == source.size && found.modified.is_some() && is_same_time(&found, source)))
}

/// Object stores keep times as a number of seconds with a fraction, which may lose the last digits.
fn is_same_time(found: &Entry, source: &Entry) -> bool {
    const TOLERANCE: std::time::Duration = std::time::Duration::from_micros(1);
    let (Some(found), Some(source)) = (found.modified, source.modified) else { return false };
    found.duration_since(source).unwrap_or_else(|error| error.duration()) <= TOLERANCE
}

fn missing(end: &End) -> Failed {
    Failed::new(Failure::SourceMissing, format!("{:?}: there is no such file", end.path.as_str()))
}

fn changed(source: &Entry, how: &str) -> Failed {
    Failed::temporary(Failure::SourceChanged, format!("{:?} became {how} while it was copied", source.path.as_str()))
}

fn corrupt(source: &Entry) -> Failed {
    Failed::temporary(Failure::Corrupt, format!("{:?}: the copy is not what was read", source.path.as_str()))
}

fn changed_since_plan(end: &End) -> Failed {
    Failed::new(Failure::SourceChanged, format!("{:?} changed since the plan was made; it was left as it is", end.path.as_str()))
}
