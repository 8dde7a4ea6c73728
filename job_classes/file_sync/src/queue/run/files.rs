//! What the controller of a run does with files.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Cleanup, Fence, Fenced, RunError};
use crate::attempt::{Attempt, RunId};
use crate::queue::batch::{Batch, BatchResult, FILE_BYTES_MAX, FormatError, LogRecord, Split, indented, parse};
use crate::queue::controller::Totals;
use crate::queue::fault::{Fault, has};
use crate::queue::name::{JobName, WorkerId, run_directory};
use crate::queue::pacing::random;
use crate::queue::store::{Content, SharedStore, StoreError, create_or_same};

/// Most records of one log. A holder can split twenty times, since each split halves its numbers.
const LOG_MAX: u32 = 64;

/// In place of a record: its number is nobody's.
const SEALED: &[u8] = b"{}";

/// Why something was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// The store did not do it; it may be tried again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The effects could not be fenced; it may be tried again.
    #[error("the effects cannot be fenced: {0}")]
    Fence(String),
    /// What is there cannot be right, now or later.
    #[error("{0}")]
    Broken(String),
    /// A newer controller has the run.
    #[error("a newer controller has the run")]
    Superseded,
}

/// The log of an attempt.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) records: u32,
    pub(super) holder: Option<WorkerId>,
    pub(super) splits: Vec<Split>,
}

/// That a batch is counted, and as what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) job: String,
    pub(super) totals: Totals,
}

/// That a run is over, by which controller.
#[derive(Serialize, Deserialize)]
struct Closed {
    closed: u32,
}

/// The files of one run, in the hands of one controller.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) store: SharedStore,
    pub(super) run: RunId,
    /// Which controller of the run this is.
    pub(super) number: u32,
    pub(super) cleanup: Cleanup,
}

impl Files {
    fn controller(run: RunId, number: u32) -> String {
        format!("{}/controller.{number:06}", run_directory(run))
    }

    /// The number of the last controller that a run had.
    pub(super) async fn last_controller(store: &SharedStore, run: RunId) -> Result<Option<u32>, StoreError> {
        let files = store.list(&run_directory(run)).await?;
        Ok(files.iter().filter_map(|file| file.name.strip_prefix("controller.")?.parse().ok()).max())
    }

    /// Whether a controller said that the run is over.
    pub(super) async fn is_closed(store: &SharedStore, run: RunId, last: u32) -> Result<bool, StoreError> {
        let content = store.read(&Self::controller(run, last), FILE_BYTES_MAX).await?;
        Ok(matches!(content, Content::Bytes(bytes) if parse::<Closed>(&bytes).is_ok()))
    }

    /// Becomes the controller with this number; false if somebody else is.
    pub(super) async fn take_charge(&self) -> Result<bool, StoreError> {
        let content = indented(&serde_json::json!({ "controller": format!("{:016x}{:016x}", random(), random()) }));
        create_or_same(&*self.store, &Self::controller(self.run, self.number), content.into()).await
    }

    /// Fails if there is a newer controller: then nothing of the run may be deleted, taken away or archived by this one.
    pub(super) async fn in_charge(&self) -> Result<(), FilesError> {
        if has(Fault::NoController) {
            return Ok(());
        }
        match self.store.read(&Self::controller(self.run, self.number + 1), 0).await? {
            Content::Missing => Ok(()),
            _ => Err(FilesError::Superseded),
        }
    }

    /// The record of an attempt. Its name has the number only, not the time: if two controllers make a batch of one number, one of them learns it here.
    pub(super) fn record(&self, attempt: &Attempt) -> String {
        format!("{}/batch/{}", run_directory(self.run), record_name(attempt.batch, attempt.attempt))
    }

    /// The record of a job of this run.
    fn record_of(&self, job: &JobName) -> Result<String, FilesError> {
        job.attempt().map(|attempt| self.record(&attempt)).ok_or_else(|| FilesError::Broken(format!("{job} is no job of ours")))
    }

    /// Makes the next numbers impossible for whoever had the run before, and may be about to write batches of which nobody knows. It writes at most so many at one
    /// time, so it can be at none beyond these.
    pub(super) async fn seal_numbers(&self, taken: &BTreeSet<u64>, in_flight: u64) -> Result<u64, FilesError> {
        let end = taken.last().map_or(0, |last| last + 1) + in_flight;
        for number in (0..end).filter(|number| !taken.contains(number)) {
            let path = format!("{}/batch/{}", run_directory(self.run), record_name(number, 0));
            self.store.create(&path, Bytes::from_static(SEALED)).await?;
        }
        Ok(end)
    }

    pub(super) fn counted(&self, batch: u64) -> String {
        counted_path(self.run, batch)
    }

    /// A batch as it was offered.
    pub(super) async fn read_batch(&self, job: &JobName) -> Result<Batch, FilesError> {
        let path = self.record_of(job)?;
        self.read_record(&path).await?.ok_or_else(|| FilesError::Broken(format!("the record of {job} was never written")))
    }

    /// A record; none if its number was sealed.
    pub(super) async fn read_record(&self, path: &str) -> Result<Option<Batch>, FilesError> {
        match self.store.read(path, FILE_BYTES_MAX).await? {
            Content::Bytes(bytes) if bytes == SEALED => Ok(None),
            Content::Bytes(bytes) => {
                Batch::from_json(&bytes).map(Some).map_err(|error| FilesError::Broken(format!("{path} is broken: {error}")))
            }
            Content::Missing => Err(FilesError::Broken(format!("{path} is gone"))),
            Content::TooLong => Err(FilesError::Broken(format!("{path} is broken: {}", FormatError::TooLong))),
        }
    }

    /// Writes a batch and offers it. The record comes first: a batch that was offered can always be offered again.
    pub(super) async fn offer(&self, job: &JobName, mut batch: Batch, to: Option<WorkerId>) -> Result<(), FilesError> {
        self.in_charge().await?;
        batch.note.job = Some(job.to_string());
        if !create_or_same(&*self.store, &self.record_of(job)?, batch.to_json().into()).await? && !has(Fault::NoController) {
            // Nobody but another controller makes a batch of this number.
            return Err(FilesError::Superseded);
        }
        let is_addressed = to.is_some();
        batch.note.worker = to;
        let content = Bytes::from(batch.to_json());
        match is_addressed {
            true => self.store.replace(&job.pending(), content).await?,
            // If the file is there, this is a second try. If the first succeeded and the batch was claimed meanwhile, the offer is here twice; its log allows one claim.
            false => drop(self.store.create(&job.pending(), content).await?),
        }
        Ok(())
    }

    /// What an attempt has to do still: its batch without what was split off.
    pub(super) async fn rest_of(&self, job: &JobName) -> Result<Batch, FilesError> {
        let mut batch = self.read_batch(job).await?;
        if let Some(split) = self.read_log(job, false).await?.splits.pop().filter(|_| !has(Fault::NoChildren)) {
            (batch.inputs, batch.note.width) = (split.kept, split.kept_width);
        }
        Ok(batch)
    }

    /// Reads the log of an attempt, and seals it if asked to. What was split off gets a record, so that it is never lost.
    pub(super) async fn read_log(&self, job: &JobName, seal: bool) -> Result<Log, FilesError> {
        let mut log = Log::default();
        let broken = |error: FormatError| FilesError::Broken(format!("the log of {job} is broken: {error}"));
        while log.records < LOG_MAX {
            let path = job.log(log.records);
            let record = match self.store.read(&path, FILE_BYTES_MAX).await? {
                Content::Bytes(bytes) => LogRecord::from_json(&bytes).map_err(broken)?,
                Content::TooLong => return Err(broken(FormatError::TooLong)),
                Content::Missing if seal && !has(Fault::NoSeal) => {
                    let sealed = LogRecord::Sealed { controller: self.number };
                    // Whoever was there first has the word: then its record is read next.
                    create_or_same(&*self.store, &path, sealed.to_json().into()).await?;
                    continue;
                }
                Content::Missing => break,
            };
            log.records += 1;
            match record {
                LogRecord::Claimed { worker, .. } => log.holder = Some(worker),
                LogRecord::Split(split) => log.splits.push(split),
                LogRecord::Sealed { .. } => break,
            }
        }
        self.record_children(job, &log).await?;
        Ok(log)
    }

    async fn record_children(&self, job: &JobName, log: &Log) -> Result<(), FilesError> {
        if log.splits.is_empty() || has(Fault::NoChildren) {
            return Ok(());
        }
        let parent = self.read_batch(job).await?;
        for split in &log.splits {
            let Some(child) = job.sibling(split.child) else { continue };
            let mut batch = child_batch(&parent, split);
            batch.note.job = Some(child.to_string());
            create_or_same(&*self.store, &self.record_of(&child)?, batch.to_json().into()).await?;
        }
        Ok(())
    }

    /// The result of an attempt, after its log; none if it is gone again.
    pub(super) async fn read_result(
        &self,
        job: &JobName,
        named: &JobName,
    ) -> Result<(Log, Option<Result<BatchResult, FormatError>>), FilesError> {
        let log = self.read_log(job, false).await?;
        let files = match log.splits.last() {
            Some(split) => split.kept.len(),
            None => self.read_batch(job).await?.inputs.len(),
        };
        let result = match self.store.read(&named.done(), FILE_BYTES_MAX).await? {
            Content::Bytes(bytes) => Some(BatchResult::from_json(&bytes, files)),
            Content::TooLong => Some(Err(FormatError::TooLong)),
            Content::Missing => None,
        };
        Ok((log, result))
    }

    /// Takes an attempt from its worker: its log is sealed, then its effects are fenced.
    pub(super) async fn revoke(&self, job: &JobName, worker: Option<&WorkerId>, fence: &dyn Fence) -> Result<(Log, bool), FilesError> {
        self.in_charge().await?;
        let log = self.read_log(job, true).await?;
        let Some(attempt) = job.attempt() else { return Ok((log, true)) };
        // Nobody has ever held it: there are no effects.
        if worker.is_none() && log.holder.is_none() {
            return Ok((log, true));
        }
        let fenced = fence.revoke(attempt).await.map_err(FilesError::Fence)?;
        Ok((log, fenced == Fenced::Firmly))
    }

    /// Counts a batch and archives its files; returns as what it is counted, which may have happened before.
    pub(super) async fn count(
        &self,
        job: &JobName,
        worker: Option<&WorkerId>,
        totals: Totals,
        result: &BatchResult,
    ) -> Result<Totals, FilesError> {
        let Some(attempt) = job.attempt() else { return Ok(totals) };
        self.in_charge().await?;
        let path = self.counted(attempt.batch);
        let counted = Counted { job: job.to_string(), totals };
        let totals = match create_or_same(&*self.store, &path, indented(&counted).into()).await? {
            true => totals,
            false => read_counted(&self.store, &path).await?.totals,
        };
        let is_ok = matches!(result, BatchResult::Inputs(inputs) if inputs.iter().all(Option::is_none));
        let (input, output) = if is_ok { ("input-ok", "output-ok") } else { ("input-error", "output-failed") };
        if let Some(worker) = worker {
            self.archive(&job.processing(worker), input, is_ok).await?;
        }
        self.archive(&job.done(), output, is_ok).await?;
        self.store.delete(&job.pending()).await?;
        self.forget_attempts(job).await?;
        Ok(totals)
    }

    /// Deletes the logs and records of all attempts at a batch. Each log goes from its beginning: a holder that wakes up and still can write its record finds its claim
    /// gone, and withdraws it.
    async fn forget_attempts(&self, last: &JobName) -> Result<(), FilesError> {
        let Some(attempt) = last.attempt() else { return Ok(()) };
        let mut job = last.sibling(attempt.batch);
        while let Some(name) = job.filter(|name| name <= last) {
            let mut records = 0;
            while records < LOG_MAX && self.store.read(&name.log(records), 0).await? != Content::Missing {
                self.store.delete(&name.log(records)).await?;
                records += 1;
            }
            self.store.delete(&self.record_of(&name)?).await?;
            job = name.next();
        }
        Ok(())
    }

    /// Removes a file, or keeps it under `finished`, as it was asked for.
    async fn archive(&self, path: &str, kind: &str, is_ok: bool) -> Result<(), FilesError> {
        let is_kept = match self.cleanup {
            Cleanup::Full => false,
            Cleanup::Completed => !is_ok,
            Cleanup::None => true,
        };
        let name = path.rsplit('/').next().unwrap_or(path);
        if is_kept {
            self.store.rename(path, &format!("queue/finished/{kind}/{name}")).await?;
        }
        // A copy that was archived before is left where it is.
        Ok(self.store.delete(path).await?)
    }

    /// Takes a file that belongs to nothing out of the way.
    pub(super) async fn set_aside(&self, path: &str) -> Result<(), FilesError> {
        self.in_charge().await?;
        self.archive(path, "set-aside", false).await
    }

    /// The run is over. The number of the next controller is taken, so that nobody resumes it while its files go away.
    pub(super) async fn close(&self) -> Result<(), FilesError> {
        let path = Self::controller(self.run, self.number + 1);
        let content = indented(&Closed { closed: self.number });
        match has(Fault::NoController) || create_or_same(&*self.store, &path, content.into()).await? {
            true => Ok(()),
            false => Err(FilesError::Superseded),
        }
    }

    /// Nothing of a run that is closed stays, unless all is to be kept. The controllers go last.
    pub(super) async fn end(&self) -> Result<(), FilesError> {
        if self.cleanup == Cleanup::None {
            return Ok(());
        }
        for log in self.store.list("queue/claims").await? {
            if JobName::parse_log(&log.name).and_then(|(job, _)| job.attempt()).is_some_and(|attempt| attempt.run == self.run) {
                self.store.delete(&format!("queue/claims/{}", log.name)).await?;
            }
        }
        let root = run_directory(self.run);
        for directory in [format!("{root}/batch"), format!("{root}/counted"), root] {
            // A listing is bounded, so it may take several.
            loop {
                let files = self.store.list(&directory).await?;
                for file in &files {
                    self.store.delete(&format!("{directory}/{}", file.name)).await?;
                }
                if files.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The name of a record: which attempt at which batch.
fn record_name(batch: u64, attempt: u32) -> String {
    format!("{batch:012x}.{attempt:04}")
}

/// Reads the name of a record.
pub(super) fn parse_record_name(name: &str) -> Option<(u64, u32)> {
    let (batch, attempt) = name.split_once('.')?;
    Some((u64::from_str_radix(batch, 16).ok()?, attempt.parse().ok()?))
}

/// Where it stands that a batch of a run is counted.
pub(crate) fn counted_path(run: RunId, batch: u64) -> String {
    format!("{}/counted/{batch:012x}", run_directory(run))
}

/// The batch that was split off another.
pub(crate) fn child_batch(parent: &Batch, split: &Split) -> Batch {
    let note = crate::queue::batch::BatchNote { width: split.child_width, ..Default::default() };
    Batch { config: parent.config.clone(), filter: parent.filter.clone(), inputs: split.inputs.clone(), note }
}

pub(super) async fn read_counted(store: &SharedStore, path: &str) -> Result<Counted, FilesError> {
    match store.read(path, FILE_BYTES_MAX).await? {
        Content::Bytes(bytes) => parse(&bytes).map_err(|error| FilesError::Broken(format!("{path} is broken: {error}"))),
        _ => Err(FilesError::Broken(format!("{path} is gone"))),
    }
}

impl From<FilesError> for RunError {
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::Superseded => Self::Superseded,
            FilesError::Store(error) => Self::Store(error.what),
            FilesError::Fence(what) | FilesError::Broken(what) => Self::Store(what),
        }
    }
}
