//! Carries out operations: copies, moves, deletes.
//!
//! ```text
//!   Operation ──► Task ──┬── both local ─────► blocking pool: reflink, kernel, buffer   (many small files in one piece)
//!                        ├── one storage ────► server-side copy
//!                        └── anything else ──► stream, hashed on its way
//! ```
//!
//! Whatever the way, a file appears under its name only complete and verified, a source that changes meanwhile is an error of its own, and every
//! effect goes through the [`Fence`]. What may work later is tried again here; what a whole run should try again is for its controller.

mod bandwidth;
mod cancel;
mod error;
mod local;
mod md5;
mod options;
mod stream;
mod task;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};

pub use self::bandwidth::Bandwidth;
pub use self::cancel::Cancel;
pub use self::error::{Failure, OperationError};
pub use self::options::{EngineOptions, Links, Verify};

use self::error::Failed;
use self::task::Task;
use crate::fence::Fence;
use crate::operation::Operation;
use crate::remote::Remotes;
use crate::remote::local::blocking;
use crate::stats::{Counter, Stats};

/// Files up to this size are carried out several at a time in one piece of blocking work.
const GROUPED_BYTES_MAX: u64 = 256 * 1024;
/// Bytes of all files of such a piece.
const GROUP_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Files of such a piece.
const GROUP_FILES_MAX: usize = 128;

/// What became of an operation that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What happened.
    pub effect: Effect,
    /// Bytes of the file.
    pub bytes: u64,
    /// xxh3-128 of its content, where all of it passed through us as a stream.
    pub hash: Option<u128>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The bytes were copied by us.
    Copied,
    /// The storage copied them itself.
    CopiedWithin,
    /// The bytes were copied by us, and the source is gone.
    Moved,
    /// The storage moved the file itself.
    MovedWithin,
    /// The file is gone.
    Deleted,
    /// The destination was already what it was to become: an earlier attempt had done it.
    AlreadyThere,
    /// There was nothing to delete: an earlier attempt had done it, or somebody else.
    AlreadyGone,
}

/// Carries out operations. Cheap to clone; clones share options, remotes and the limit of bandwidth.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
    bandwidth: Arc<Bandwidth>,
}

#[derive(Debug)]
struct Inner {
    options: EngineOptions,
    remotes: Arc<Remotes>,
}

/// What belongs to one call: shared by all its operations.
#[derive(Clone)]
struct Work {
    engine: Engine,
    fence: Arc<Fence>,
    stats: Arc<Stats>,
    cancel: Cancel,
}

impl Engine {
    /// One that finds its remotes in `remotes`.
    pub fn new(options: EngineOptions, remotes: Arc<Remotes>) -> Self {
        let bandwidth = Arc::new(Bandwidth::new(options.bandwidth));
        Self { inner: Arc::new(Inner { options, remotes }), bandwidth }
    }

    /// The same engine under another limit of bandwidth, which it may share with others.
    pub(crate) fn limited_by(&self, bandwidth: Arc<Bandwidth>) -> Self {
        Self { inner: Arc::clone(&self.inner), bandwidth }
    }

    /// The options.
    pub fn options(&self) -> &EngineOptions {
        &self.inner.options
    }

    /// Opened remotes.
    pub fn remotes(&self) -> &Arc<Remotes> {
        &self.inner.remotes
    }

    /// The limit of bandwidth, which may be changed at any time.
    pub fn bandwidth(&self) -> &Bandwidth {
        &self.bandwidth
    }

    /// Carries out one operation. Counts transfers, bytes, deletes and errors in `stats`, not the totals, which are the plan's.
    ///
    /// # Errors
    /// If it was not carried out. A move that fails may have copied already; the source is then still there.
    ///
    /// # Cancellation
    /// By `cancel`. A future that is dropped leaves nothing incomplete under a final name, but blocking work may still end with its effect.
    pub async fn execute(
        &self,
        operation: &Operation,
        fence: &Arc<Fence>,
        stats: &Arc<Stats>,
        cancel: &Cancel,
    ) -> Result<Done, OperationError> {
        let work = Work { engine: self.clone(), fence: fence.clone(), stats: stats.clone(), cancel: cancel.clone() };
        work.execute(operation).await
    }

    /// Carries out many operations, [`EngineOptions::transfers`] at the same time in this call; the results are in their order. Small local files
    /// share the way to the blocking pool, so this is the way for many.
    pub async fn execute_all(
        &self,
        operations: Arc<[Operation]>,
        fence: &Arc<Fence>,
        stats: &Arc<Stats>,
        cancel: &Cancel,
    ) -> Vec<Result<Done, OperationError>> {
        let work = Work { engine: self.clone(), fence: fence.clone(), stats: stats.clone(), cancel: cancel.clone() };
        let mut results: Vec<Option<Result<Done, OperationError>>> = Vec::new();
        results.resize_with(operations.len(), || None);
        let mut groups = self.groups(&operations).into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.inner.options.transfers.max(1)
                && let Some(group) = groups.next()
            {
                let (work, operations) = (work.clone(), operations.clone());
                running.push(async move { (group.start, work.execute_group(&operations, group).await) });
            }
            let Some((start, group)) = running.next().await else { break };
            for (at, result) in group.into_iter().enumerate() {
                results[start + at] = Some(result);
            }
        }
        results.into_iter().map(|result| result.expect("each operation is in one group, and each group was carried out")).collect()
    }

    /// Neighbours that are carried out in one piece.
    fn groups(&self, operations: &[Operation]) -> Vec<Range<usize>> {
        // With few operations each is a piece of its own, so that all transfers have work.
        let files_max = (operations.len() / (2 * self.inner.options.transfers.max(1))).clamp(1, GROUP_FILES_MAX);
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut bytes = 0;
        for (at, operation) in operations.iter().enumerate() {
            let is_small = operation.planned().is_some() && operation.size() <= GROUPED_BYTES_MAX;
            match groups.last_mut() {
                Some(group) if is_small && group.len() < files_max && bytes + operation.size() <= GROUP_BYTES_MAX => group.end += 1,
                _ => {
                    groups.push(at..at + 1);
                    bytes = 0;
                }
            }
            bytes += if is_small { operation.size() } else { GROUP_BYTES_MAX };
        }
        groups
    }
}

impl Work {
    async fn execute_group(&self, operations: &Arc<[Operation]>, group: Range<usize>) -> Vec<Result<Done, OperationError>> {
        let tasks: Vec<Result<Task, OperationError>> =
            operations[group.clone()].iter().map(|operation| Task::new(operation, self.engine.remotes(), &self.fence)).collect();
        let is_local = |task: &Result<Task, OperationError>| task.as_ref().is_ok_and(|task| task.local().is_some());
        let mut results = Vec::with_capacity(tasks.len());
        if tasks.len() > 1 && tasks.iter().all(is_local) {
            let work = self.clone();
            let tries = blocking(move || {
                let mut session = local::Session::new(&work);
                Ok(tasks.into_iter().map(|task| task.map(|task| (session.carry_out(&task), task))).collect::<Vec<_>>())
            });
            for tried in tries.await.unwrap_or_default() {
                results.push(match tried {
                    Ok((tried, task)) => self.settle(&task, Some(tried)).await,
                    Err(error) => Err(self.count_error(error)),
                });
            }
            // Only at the end of the process does the pool refuse work.
            results.resize_with(group.len(), || Err(OperationError::new(Failure::Cancelled, "the process ends")));
            return results;
        }
        for task in tasks {
            results.push(match task {
                Ok(task) => self.settle(&task, None).await,
                Err(error) => Err(self.count_error(error)),
            });
        }
        results
    }

    async fn execute(&self, operation: &Operation) -> Result<Done, OperationError> {
        match Task::new(operation, self.engine.remotes(), &self.fence) {
            Ok(task) => self.settle(&task, None).await,
            Err(error) => Err(self.count_error(error)),
        }
    }

    /// Tries until it is done or hopeless; a first try may have happened already.
    async fn settle(&self, task: &Task, mut tried: Option<Result<Done, Failed>>) -> Result<Done, OperationError> {
        let options = self.engine.options();
        let mut pause = options.backoff;
        let mut tries = 0;
        loop {
            let result = match tried.take() {
                Some(result) => result,
                None => self.carry_out(task).await,
            };
            tries += 1;
            match result {
                Ok(done) => {
                    self.count(&done);
                    return Ok(done);
                }
                // Whatever failed, it was to end.
                Err(_) if self.cancel.is_cancelled() => {
                    return Err(self.count_error(OperationError::new(Failure::Cancelled, format!("{}: cancelled", task.shown()))));
                }
                Err(failed) if failed.is_temporary && tries < options.tries.max(1) && !self.fence.is_void() => {
                    tracing::debug!(error = %failed.error, tries, "trying again");
                }
                Err(failed) => return Err(self.count_error(failed.error)),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = self.cancel.cancelled() => {}
            }
            pause = (pause * 2).min(options.backoff_max);
        }
    }

    async fn carry_out(&self, task: &Task) -> Result<Done, Failed> {
        self.check()?;
        match task.local() {
            Some(_) => {
                let (work, task) = (self.clone(), task.clone());
                blocking(move || Ok(local::Session::new(&work).carry_out(&task))).await.map_err(Failed::source)?
            }
            None => stream::carry_out(self, task).await,
        }
    }

    /// Refuses to begin what is not wanted any more.
    fn check(&self) -> Result<(), Failed> {
        if self.cancel.is_cancelled() {
            return Err(Failed::new(Failure::Cancelled, "cancelled"));
        }
        if self.fence.is_void() {
            return Err(Failed::new(Failure::Revoked, "this attempt was revoked"));
        }
        Ok(())
    }

    fn count(&self, done: &Done) {
        let stats = &self.stats;
        match done.effect {
            Effect::Copied => stats.add(Counter::Transfers, 1),
            Effect::CopiedWithin => {
                stats.add(Counter::Transfers, 1);
                stats.add(Counter::ServerSideCopies, 1);
                stats.add(Counter::ServerSideCopyBytes, done.bytes);
            }
            Effect::Moved => {
                stats.add(Counter::Transfers, 1);
                stats.add(Counter::Deletes, 1);
            }
            Effect::MovedWithin => {
                stats.add(Counter::Transfers, 1);
                stats.add(Counter::Renames, 1);
                stats.add(Counter::ServerSideMoves, 1);
                stats.add(Counter::ServerSideMoveBytes, done.bytes);
            }
            Effect::Deleted => stats.add(Counter::Deletes, 1),
            Effect::AlreadyThere => stats.add(Counter::Checks, 1),
            Effect::AlreadyGone => {}
        }
    }

    fn count_error(&self, error: OperationError) -> OperationError {
        // What was not wanted any more, or is done by another attempt, has not failed.
        if !matches!(error.kind, Failure::Cancelled | Failure::Revoked) {
            self.stats.error(&error.what, error.kind.is_retryable());
        }
        error
    }
}

/// Half of the pause, and a random part of the other half: many that failed together do not return together.
fn jittered(pause: std::time::Duration) -> std::time::Duration {
    pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}
