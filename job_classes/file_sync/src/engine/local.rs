//! Operations between local trees: blocking, many in one piece.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FileType, Stat, Timespec};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::error::{Failed, Failure};
use super::task::{End, LocalEnds, Task, Transfer};
use super::{Done, Effect, Links, Verify, Work};
use crate::operation::Planned;
use crate::path::EntryPath;
use crate::remote::local::content::{Allowance, SMALL_BYTES_MAX, copy_content};
use crate::remote::local::errno::{failed, io_failed};
use crate::remote::local::open::{self, OpenRoot, Parents, Place};
use crate::remote::local::staging::{StagedFile, StagingDirectory};
use crate::remote::local::tag::LocalTag;
use crate::remote::local::{LocalTree, check_unchanged, finish_attributes, regular};
use crate::stats::{Counter, TransferGuard};
use crate::storage::{ErrorKind, StorageError};

/// The bits of a mode that a copy takes over.
const MODE_BITS: u32 = 0o7777;
/// Mode of a copy that takes over none.
const FILE_MODE: u32 = 0o666;
/// Bytes that are hashed at once when a file is read back.
const HASHED_BYTES: usize = 256 * 1024;

/// What the operations of one piece of work share: opened roots and a buffer.
pub(super) struct Session<'a> {
    work: &'a Work,
    source: Option<(Arc<LocalTree>, OpenRoot)>,
    target: Option<(Arc<LocalTree>, OpenRoot)>,
    buffer: Vec<u8>,
}

impl<'a> Session<'a> {
    pub(super) fn new(work: &'a Work) -> Self {
        Self { work, source: None, target: None, buffer: Vec::new() }
    }

    /// One try.
    pub(super) fn carry_out(&mut self, task: &Task) -> Result<Done, Failed> {
        self.work.check()?;
        let Some(trees) = task.local() else {
            return Err(Failed::new(Failure::Failed, "both ends must be local"));
        };
        match task {
            Task::Copy(transfer) => self.copy(transfer, trees).map(|copied| copied.done),
            Task::Move(transfer) => self.move_file(transfer, trees),
            Task::Delete { file, planned } => self.delete(file, trees.target, planned.as_ref()),
        }
    }

    fn copy(&mut self, transfer: &Transfer, trees: LocalEnds<'_>) -> Result<Copied, Failed> {
        let work = self.work;
        let path = &transfer.source.path;
        let source = opened(&mut self.source, trees.source, false).map_err(Failed::source)?;
        let file = match source.read(path, trees.source.follows()) {
            Ok(file) => file,
            Err(error) if error.kind == ErrorKind::WrongKind && work.engine.options().links == Links::Keep => {
                return self.copy_link(transfer, trees);
            }
            Err(error) => return Err(Failed::source(error)),
        };
        let stat = regular(&file, path).map_err(Failed::source)?;
        let size = stat.st_size as u64;
        let options = work.engine.options();
        let mode = options.keeps_modes.then_some(stat.st_mode & MODE_BITS);
        let target = opened(&mut self.target, trees.target, true).map_err(Failed::destination)?;
        let to = &transfer.target.path;
        let staged = target.stage(to, transfer.target.staging.as_deref(), mode.unwrap_or(FILE_MODE)).map_err(Failed::destination)?;
        let mut pace = Pace::new(work, path, size);
        let copied = copy_content(&file, &stat, staged.file(), &mut self.buffer, &mut pace, path.as_str());
        let finished = copied.map_err(Failed::destination_or_changed).and_then(|_| {
            check_unchanged(&file, &stat, path).map_err(Failed::source)?;
            self.verify(&file, &staged, &stat, path)?;
            let modified = options.keeps_times.then_some(Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ });
            finish_attributes(staged.file(), modified, mode).map_err(|errno| Failed::destination(failed("write", to, errno)))?;
            self.commit(staged, transfer, &stat)
        });
        match finished {
            Ok(effect) => Ok(Copied { done: Done { effect, bytes: size, hash: None }, source: LocalTag::of(&stat) }),
            Err(error) => {
                pace.take_back();
                Err(error)
            }
        }
    }

    fn copy_link(&mut self, transfer: &Transfer, trees: LocalEnds<'_>) -> Result<Copied, Failed> {
        let source = opened(&mut self.source, trees.source, false).map_err(Failed::source)?;
        let path = &transfer.source.path;
        let stat = source.stat(path, false).map_err(Failed::source)?.ok_or_else(|| missing(path))?;
        let leads_to = source.link_target(path).map_err(Failed::source)?;
        let target = opened(&mut self.target, trees.target, true).map_err(Failed::destination)?;
        let staged =
            target.stage_link(&transfer.target.path, &leads_to, transfer.target.staging.as_deref()).map_err(Failed::destination)?;
        let effect = self.commit(staged, transfer, &stat)?;
        Ok(Copied { done: Done { effect, bytes: 0, hash: None }, source: LocalTag::of(&stat) })
    }

    /// Gives the file its name. Where something else has it by now, that is no failure if it is the same already.
    fn commit(&self, staged: StagedFile, transfer: &Transfer, source: &Stat) -> Result<Effect, Failed> {
        self.work.check()?;
        let place = staged.place().clone();
        match staged.commit(&transfer.condition(), &transfer.target.path) {
            Ok(()) => Ok(Effect::Copied),
            Err(error) if error.kind == ErrorKind::ConditionFailed && is_same(&place, source) => Ok(Effect::AlreadyThere),
            Err(error) => Err(Failed::destination(error)),
        }
    }

    fn verify(&mut self, source: &File, staged: &StagedFile, stat: &Stat, path: &EntryPath) -> Result<(), Failed> {
        let size = stat.st_size as u64;
        let verify = self.work.engine.options().verify;
        // A small file went by one call, which has told how many bytes it has written.
        if verify == Verify::Off || (verify == Verify::Cheap && size <= SMALL_BYTES_MAX) {
            return Ok(());
        }
        let corrupt = || Failed::temporary(Failure::Corrupt, format!("{:?}: the copy is not what was read", path.as_str()));
        let written = rustix::fs::fstat(staged.file()).map_err(|errno| Failed::destination(failed("verify", path, errno)))?;
        if written.st_size as u64 != size {
            return Err(corrupt());
        }
        if verify == Verify::ReadBack {
            let target = staged.read_back().map_err(Failed::destination)?;
            let read = |file: &File, buffer: &mut Vec<u8>| hash(file, buffer).map_err(|error| io_failed("verify", path, &error));
            let expected = read(source, &mut self.buffer).map_err(Failed::source)?;
            if read(&target, &mut self.buffer).map_err(Failed::destination)? != expected {
                return Err(corrupt());
            }
        }
        Ok(())
    }

    fn move_file(&mut self, transfer: &Transfer, trees: LocalEnds<'_>) -> Result<Done, Failed> {
        let path = &transfer.source.path;
        let source = opened(&mut self.source, trees.source, false).map_err(Failed::source)?;
        let from = match source.place(path, Parents::MustExist) {
            Err(error) if error.kind == ErrorKind::NotFound => return self.moved_before(transfer, trees),
            other => other.map_err(Failed::source)?,
        };
        let found = from.stat().map_err(|errno| Failed::source(failed("move", path, errno)))?;
        let Some(stat) = found else { return self.moved_before(transfer, trees) };
        check_planned(transfer.planned_tag(), &stat, path)?;
        self.check_moves(&from, transfer, trees)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_file() || (kind.is_symlink() && self.work.engine.options().links == Links::Keep && !trees.source.follows()) {
            let renamed = match (&transfer.source.staging, &transfer.target.staging) {
                (Some(source_staging), Some(staging)) => {
                    let (source_staging, staging) = (source_staging.clone(), staging.clone());
                    self.rename_staged(transfer, trees, &from, &stat, &source_staging, &staging)?
                }
                _ => self.rename_plainly(transfer, trees, &from)?,
            };
            if let Some(effect) = renamed {
                return Ok(Done { effect, bytes: stat.st_size as u64, hash: None });
            }
        }
        let copied = self.copy(transfer, trees)?;
        self.delete_copied(transfer, trees, &copied.source)?;
        Ok(Done { effect: Effect::Moved, ..copied.done })
    }

    /// Refuses a move of a file to itself, which two paths through a link may name.
    fn check_moves(&mut self, from: &Place, transfer: &Transfer, trees: LocalEnds<'_>) -> Result<(), Failed> {
        let target = opened(&mut self.target, trees.target, true).map_err(Failed::destination)?;
        let parents = Parents::of(transfer.target.staging.as_deref());
        let to = target.place(&transfer.target.path, parents).map_err(Failed::destination)?;
        match from.is_same(&to) {
            true => {
                Err(Failed::new(Failure::Invalid, format!("{:?}: source and destination are the same file", transfer.source.path.as_str())))
            }
            false => Ok(()),
        }
    }

    /// Renames within one file system; none if it is not one.
    fn rename_plainly(&mut self, transfer: &Transfer, trees: LocalEnds<'_>, from: &Place) -> Result<Option<Effect>, Failed> {
        let target = opened(&mut self.target, trees.target, true).map_err(Failed::destination)?;
        let to = target.place(&transfer.target.path, Parents::Make).map_err(Failed::destination)?;
        self.work.check()?;
        match open::rename(from, &to, &transfer.condition(), &transfer.target.path) {
            Ok(()) => Ok(Some(Effect::MovedWithin)),
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(Failed::destination(error)),
        }
    }

    /// The same for an attempt that may be revoked at any moment: the file has its old name until it has its new one.
    fn rename_staged(
        &mut self,
        transfer: &Transfer,
        trees: LocalEnds<'_>,
        from: &Place,
        stat: &Stat,
        source_staging: &StagingDirectory,
        staging: &StagingDirectory,
    ) -> Result<Option<Effect>, Failed> {
        let target = opened(&mut self.target, trees.target, true).map_err(Failed::destination)?;
        let to = target.place(&transfer.target.path, Parents::MakeBy(staging)).map_err(Failed::destination)?;
        if to.is_foreign {
            return Ok(None);
        }
        let staged = match target.stage_same(from, &transfer.target.path, staging) {
            Ok(staged) => staged,
            Err(error) if error.kind == ErrorKind::Revoked => return Err(Failed::destination(error)),
            // No links on this file system, or none of this file: it is copied.
            Err(_) => return Ok(None),
        };
        let wanted = LocalTag::of(stat);
        if !staged.tag().is_some_and(|tag| tag.is_same_content(&wanted)) {
            return Err(changed_since_plan(&transfer.source.path));
        }
        self.commit(staged, transfer, stat)?;
        let source = opened(&mut self.source, trees.source, false).map_err(Failed::source)?;
        remove_staged(source, &transfer.source.path, &wanted, source_staging)?;
        Ok(Some(Effect::MovedWithin))
    }

    /// There is no source: an earlier attempt may have come to the end before it was given up.
    fn moved_before(&mut self, transfer: &Transfer, trees: LocalEnds<'_>) -> Result<Done, Failed> {
        let planned = transfer.planned_tag().and_then(LocalTag::parse);
        let target = opened(&mut self.target, trees.target, false).map_err(|_| missing(&transfer.source.path))?;
        let found = target.stat(&transfer.target.path, false).map_err(Failed::destination)?.map(|stat| LocalTag::of(&stat));
        match (planned, found) {
            (Some(planned), Some(found)) if (planned.size, planned.modified_ns) == (found.size, found.modified_ns) => {
                Ok(Done { effect: Effect::AlreadyThere, bytes: found.size, hash: None })
            }
            _ => Err(missing(&transfer.source.path)),
        }
    }

    fn delete_copied(&mut self, transfer: &Transfer, trees: LocalEnds<'_>, wanted: &LocalTag) -> Result<(), Failed> {
        let source = opened(&mut self.source, trees.source, false).map_err(Failed::source)?;
        self.work.check()?;
        match &transfer.source.staging {
            Some(staging) => remove_staged(source, &transfer.source.path, wanted, staging),
            None => remove_plainly(source, &transfer.source.path, wanted),
        }
    }

    fn delete(&mut self, file: &End, tree: &Arc<LocalTree>, planned: Option<&Planned>) -> Result<Done, Failed> {
        let gone = |bytes| Done { effect: Effect::AlreadyGone, bytes, hash: None };
        let root = match opened(&mut self.target, tree, false) {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(gone(0)),
            other => other.map_err(Failed::destination)?,
        };
        let Some(stat) = root.stat(&file.path, false).map_err(Failed::destination)? else { return Ok(gone(0)) };
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Err(Failed::new(Failure::SourceKind, format!("cannot delete {:?}: it is a directory", file.path.as_str())));
        }
        check_planned(planned.and_then(|planned| planned.tag.as_deref()), &stat, &file.path)?;
        let wanted = LocalTag::of(&stat);
        let bytes = stat.st_size as u64;
        match &file.staging {
            Some(staging) => match root.remove_by(&file.path, &wanted, staging) {
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(gone(bytes)),
                other => other.map_err(Failed::source)?,
            },
            None => match rustix_remove(root, &file.path) {
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(gone(bytes)),
                other => other.map_err(Failed::destination)?,
            },
        }
        Ok(Done { effect: Effect::Deleted, bytes, hash: None })
    }
}

/// A copy that was made, and of what.
struct Copied {
    done: Done,
    source: LocalTag,
}

/// The root of a tree, opened once for a piece of work.
fn opened<'s>(
    slot: &'s mut Option<(Arc<LocalTree>, OpenRoot)>,
    tree: &Arc<LocalTree>,
    makes: bool,
) -> Result<&'s mut OpenRoot, StorageError> {
    if !slot.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, tree)) {
        *slot = Some((tree.clone(), if makes { tree.open_or_make()? } else { tree.open()? }));
    }
    Ok(&mut slot.as_mut().expect("filled just above").1)
}

fn missing(path: &EntryPath) -> Failed {
    Failed::new(Failure::SourceMissing, format!("{:?}: there is no such file", path.as_str()))
}

fn changed_since_plan(path: &EntryPath) -> Failed {
    Failed::new(Failure::SourceChanged, format!("{:?} changed since the plan was made; it was left as it is", path.as_str()))
}

/// Refuses a file that is not what the plan saw. A rename or a further link changes nothing of that.
fn check_planned(tag: Option<&str>, stat: &Stat, path: &EntryPath) -> Result<(), Failed> {
    let Some(tag) = tag else { return Ok(()) };
    match LocalTag::parse(tag).is_some_and(|planned| planned.is_same_content(&LocalTag::of(stat))) {
        true => Ok(()),
        false => Err(changed_since_plan(path)),
    }
}

/// Whether a place has what would be put there: size and time, as a comparison would judge.
fn is_same(place: &Place, source: &Stat) -> bool {
    let tags = place.stat().ok().flatten().map(|found| (LocalTag::of(&found), LocalTag::of(source)));
    tags.is_some_and(|(found, source)| (found.size, found.modified_ns) == (source.size, source.modified_ns))
}

fn remove_staged(root: &mut OpenRoot, path: &EntryPath, wanted: &LocalTag, staging: &StagingDirectory) -> Result<(), Failed> {
    match root.remove_by(path, wanted, staging) {
        // Somebody else was faster; the file was to go anyway.
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        other => other.map_err(Failed::source),
    }
}

/// A look, and then the end. Outside of a queue nobody else does the same work.
fn remove_plainly(root: &mut OpenRoot, path: &EntryPath, wanted: &LocalTag) -> Result<(), Failed> {
    match root.stat(path, false).map_err(Failed::source)? {
        None => return Ok(()),
        Some(stat) if !LocalTag::of(&stat).is_same_content(wanted) => return Err(changed_since_plan(path)),
        Some(_) => {}
    }
    match rustix_remove(root, path) {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        other => other.map_err(Failed::source),
    }
}

fn rustix_remove(root: &mut OpenRoot, path: &EntryPath) -> Result<(), StorageError> {
    let place = root.place(path, Parents::MustExist)?;
    rustix::fs::unlinkat(&place.directory, &*place.name as &OsStr, rustix::fs::AtFlags::empty())
        .map_err(|errno: Errno| failed("remove", path, errno))
}

fn hash(file: &File, buffer: &mut Vec<u8>) -> std::io::Result<u128> {
    if buffer.len() < HASHED_BYTES {
        buffer.resize(HASHED_BYTES, 0);
    }
    let (mut hash, mut at) = (Xxh3::new(), 0);
    loop {
        let read = file.read_at(&mut buffer[..HASHED_BYTES], at)?;
        if read == 0 {
            return Ok(hash.digest128());
        }
        hash.update(&buffer[..read]);
        at += read as u64;
    }
}

/// Limits, cancellation and progress of one file.
struct Pace<'a> {
    work: &'a Work,
    /// Small files come and go too fast to be shown.
    shown: Option<TransferGuard>,
    passed: u64,
}

impl<'a> Pace<'a> {
    fn new(work: &'a Work, path: &EntryPath, size: u64) -> Self {
        let shown = (size > SMALL_BYTES_MAX).then(|| work.stats.transfer(path.as_str(), size));
        Self { work, shown, passed: 0 }
    }

    fn take_back(&self) {
        match &self.shown {
            Some(shown) => shown.restart(),
            None => self.work.stats.take_back(Counter::Bytes, self.passed),
        }
    }
}

impl Allowance for Pace<'_> {
    fn grant(&mut self, wanted: usize) -> Result<usize, StorageError> {
        loop {
            if self.work.check().is_err() {
                return Err(StorageError::new(ErrorKind::Revoked, "cancelled"));
            }
            match self.work.engine.bandwidth().take(wanted) {
                Ok(granted) => return Ok(granted),
                Err(wait) => std::thread::sleep(wait),
            }
        }
    }

    fn passed(&mut self, bytes: u64) {
        self.passed += bytes;
        match &self.shown {
            Some(shown) => shown.advance(bytes),
            None => self.work.stats.add(Counter::Bytes, bytes),
        }
    }
}
