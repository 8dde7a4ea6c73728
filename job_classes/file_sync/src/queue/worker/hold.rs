//! A batch that a worker has, from its claim to its result.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::claim::again;
use super::{WorkerEvent, WorkerListener};
use crate::queue::batch::{Batch, BatchResult, FILE_BYTES_MAX, LogRecord, Split};
use crate::queue::fault::{Fault, has};
use crate::queue::name::{JobName, WorkerId, child_of};
use crate::queue::pacing::{LONGEST, SHORTEST};
use crate::queue::run::child_batch;
use crate::queue::store::{Content, SharedStore, StoreError, create_or_same};
use crate::queue::work::Work;

/// Times that a result is tried to be written. While it is tried, the status says that the batch is held; after that, another does it again.
const RESULT_TRIES_MAX: u32 = 100;

/// What a batch is asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// Give half of what nobody has begun to another worker, which has asked by this file.
    Split(String),
    /// Give all of it back.
    Stop,
}

/// How the hold of a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldEnd {
    /// Its result is written.
    Finished,
    /// It was taken away.
    Abandoned,
}

/// A batch that a worker has.
pub(super) struct Hold {
    pub(super) store: SharedStore,
    pub(super) listener: WorkerListener,
    pub(super) job: JobName,
    pub(super) worker: WorkerId,
    pub(super) work: Arc<Work>,
    /// Records of its log.
    pub(super) records: u32,
    pub(super) check_interval: Duration,
}

impl Hold {
    pub(super) async fn run(mut self, execution: BoxFuture<'static, ()>, mut orders: mpsc::Receiver<Order>) -> (JobName, HoldEnd) {
        // A task of its own, so that its panic is no panic of ours: what it did not report has failed.
        let mut execution = AbortOnDrop(tokio::spawn(execution));
        let mut check = tokio::time::interval(self.check_interval.max(SHORTEST));
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        check.tick().await;
        let mut takes_orders = true;
        loop {
            tokio::select! {
                biased;
                done = &mut execution.0 => {
                    if let Err(error) = done {
                        (self.listener)(WorkerEvent::Warning(format!("{}: {error}", self.job)));
                    }
                    break;
                }
                order = orders.recv(), if takes_orders => match order {
                    Some(Order::Split(asked)) => self.split(Some(asked)).await,
                    Some(Order::Stop) => self.split(None).await,
                    None => takes_orders = false,
                },
                _ = check.tick() => if self.is_taken_away().await { self.work.abandon() },
            }
        }
        let end = match self.work.is_abandoned() {
            true => HoldEnd::Abandoned,
            false => self.finish().await,
        };
        (self.job, end)
    }

    /// Writes the result.
    async fn finish(&self) -> HoldEnd {
        if self.is_taken_away().await {
            return HoldEnd::Abandoned;
        }
        let result = self.work.result();
        match write_result(&self.store, &self.job, result).await {
            Ok(()) => {}
            Err(error) => {
                (self.listener)(WorkerEvent::Warning(format!("{}: its result could not be written: {error}", self.job)));
                return HoldEnd::Abandoned;
            }
        }
        // The controller of a run of ours archives the claim; that of rclone leaves it to the worker.
        if self.job.attempt().is_none()
            && let Err(error) = self.store.delete(&self.job.processing(&self.worker)).await
        {
            (self.listener)(WorkerEvent::Warning(error.what));
        }
        HoldEnd::Finished
    }

    /// Whether somebody wrote on in the log: only a seal can be there.
    async fn is_taken_away(&self) -> bool {
        if self.job.attempt().is_none() || has(Fault::NoNames) {
            return false;
        }
        let next = self.store.read(&self.job.log(self.records), FILE_BYTES_MAX).await;
        let first = self.store.read(&self.job.log(0), 0).await;
        // A log that is gone belonged to a batch that is counted.
        matches!(next, Ok(Content::Bytes(_) | Content::TooLong)) || matches!(first, Ok(Content::Missing))
    }

    /// Gives inputs away that nobody has begun: half of them to whoever asked, or all. They are recorded first; if the record cannot be written, the batch is not ours any more.
    async fn split(&mut self, asked: Option<String>) {
        let Some(attempt) = self.job.attempt() else { return };
        let width = self.work.width();
        let Some((child, half)) = child_of(attempt.batch, width) else { return };
        let Some(name) = self.job.sibling(child) else { return };
        let cut = self.work.cut(asked.is_none());
        if cut.is_empty() {
            return;
        }
        let (kept, inputs) = self.work.parts(&cut);
        let split = Split { kept, kept_width: half, child, child_width: half, inputs };
        let record = Bytes::from(LogRecord::Split(split.clone()).to_json());
        let (log, path) = (self.job.log(0), self.job.log(self.records));
        match again(|| create_or_same(&*self.store, &path, record.clone())).await {
            Ok(true) => self.records += 1,
            Ok(false) => return self.work.abandon(),
            Err(error) => {
                // It may stand there. Without knowing what is ours we have nothing: the record decides, and whoever takes the batch over reads it.
                (self.listener)(WorkerEvent::Warning(format!("{}: it is not known whether it was split: {error}", self.job)));
                return self.work.abandon();
            }
        }
        // Whoever counts a batch deletes its log from the beginning. If ours is gone, so is the batch, and the record was written into nothing. If nobody can tell, the
        // record is enough: whoever takes the batch over finds it.
        let first = again(|| self.store.read(&log, 0)).await;
        if !has(Fault::NoSeal) && !matches!(first, Ok(Content::Bytes(_) | Content::TooLong)) {
            if first == Ok(Content::Missing) {
                let _ = self.store.delete(&path).await;
            }
            return self.work.abandon();
        }
        self.work.gave(&cut, half);
        let batch = child_batch(&self.template(), &split);
        // If this fails, the controller finds the record.
        let (pending, content) = (name.pending(), Bytes::from(batch.to_json()));
        match again(|| self.store.create(&pending, content.clone())).await {
            Ok(_) => (self.listener)(WorkerEvent::Split { job: self.job.clone(), child: name, files: split.inputs.len(), asked }),
            Err(error) => (self.listener)(WorkerEvent::Warning(format!("{name} could not be offered: {error}"))),
        }
    }

    fn template(&self) -> Batch {
        Batch { config: self.work.config().clone(), filter: self.work.filter().clone(), ..Batch::default() }
    }
}

/// Writes what became of a batch. If a result is there already, that one counts.
pub(super) async fn write_result(store: &SharedStore, job: &JobName, result: BatchResult) -> Result<(), StoreError> {
    let content = Bytes::from(result.to_json());
    let mut wait = SHORTEST;
    for _ in 1..RESULT_TRIES_MAX {
        match store.create(&job.done(), content.clone()).await {
            Ok(_) => return Ok(()),
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait = (wait * 2).min(LONGEST);
    }
    store.create(&job.done(), content).await.map(|_| ())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
