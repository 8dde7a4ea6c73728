//! What a run has to do, as a stream of steps.
//!
//! The two trees are walked and compared, and what differs becomes [`Step`]s in a bounded stream: transfers begin while the listing goes on, and a listing waits for
//! transfers that do not keep up. Some steps must wait for others; a [`Step::Barrier`] stands between them.
//!
//! ```text
//!   copy, move          transfers                                   │ barrier │ directories: removed at the source, times
//!   sync, after         transfers                                   │ barrier │ deletes │ barrier │ directories removed, times
//!   sync, during        transfers and deletes                       │ barrier │ directories removed, times
//!   sync, before        deletes │ barrier │ directories removed │ barrier │ transfers │ barrier │ times
//!   delete              deletes
//! ```
//!
//! Nothing is deleted once something failed, here or in the hands of whoever carries the steps out ([`Planner::tell_failure`]), unless `--ignore-errors` says so.

mod check;
mod comparing;
mod known;
mod overlap;
mod phases;
mod step;
mod suffix;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

pub use self::check::{Checking, Difference, Finding, check};
pub use self::overlap::{Location, OverlapError, Relation, relation};
pub use self::step::{Notice, NoticeKind, Problem, ProblemKind, Step};
use crate::filter::Filter;
use crate::listing::Scope;
use crate::options::Options;
use crate::path::EntryPath;
use crate::storage::Storage;

/// Steps that wait to be taken; then the listing waits.
const STEPS_WAITING_MAX: usize = 1024;

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// What is missing or differs is copied.
    Copy,
    /// The destination becomes the same as the source.
    Sync,
    /// What was copied is gone from the source.
    Move,
    /// The files of the destination are deleted; there is no source.
    Delete,
}

/// One side of a run.
#[derive(Clone)]
pub struct Root {
    /// Its root, as operations name it: in rclone's syntax.
    pub fs: String,
    /// Its tree.
    pub storage: Arc<dyn Storage>,
    /// What of it is no content, such as the directory of the queue.
    pub excluded: Vec<EntryPath>,
}

/// What is to be planned.
#[derive(Clone)]
pub struct PlanRequest {
    /// What the run does.
    pub task: Task,
    /// Where files come from; not looked at by [`Task::Delete`].
    pub source: Option<Root>,
    /// Where they go.
    pub destination: Root,
    /// The root of `--backup-dir`, as operations name it.
    pub backup_fs: Option<String>,
    /// Whether the destination takes names for the same that differ by case or Unicode form.
    pub folds_names: bool,
    /// Files that earlier tries have deleted; `--max-delete` holds for all together.
    pub deleted: u64,
    /// What the operator said.
    pub options: Options,
    /// Built from them.
    pub filter: Arc<Filter>,
}

/// What a plan has seen so far. Counters only grow.
#[derive(Debug, Default)]
pub struct PlanCounts {
    listed: AtomicU64,
    compared: AtomicU64,
    transfers: AtomicU64,
    transfer_bytes: AtomicU64,
    deletes: AtomicU64,
    problems: AtomicU64,
    is_complete: AtomicBool,
}

impl PlanCounts {
    /// Entries listed, of both sides.
    pub fn listed(&self) -> u64 {
        self.listed.load(Ordering::Relaxed)
    }

    /// Files compared that are on both sides.
    pub fn compared(&self) -> u64 {
        self.compared.load(Ordering::Relaxed)
    }

    /// Files to be copied or moved.
    pub fn transfers(&self) -> u64 {
        self.transfers.load(Ordering::Relaxed)
    }

    /// Their bytes.
    pub fn transfer_bytes(&self) -> u64 {
        self.transfer_bytes.load(Ordering::Relaxed)
    }

    /// Files to be deleted.
    pub fn deletes(&self) -> u64 {
        self.deletes.load(Ordering::Relaxed)
    }

    /// Problems, those told by [`Planner::tell_failure`] included.
    pub fn problems(&self) -> u64 {
        self.problems.load(Ordering::Relaxed)
    }

    /// Whether both trees were walked to their ends, so that the counts of transfers are final.
    pub fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Relaxed)
    }
}

/// The steps of a run, one after the other. Dropped, it stops listing.
pub struct Planner {
    steps: mpsc::Receiver<Step>,
    counts: Arc<PlanCounts>,
    /// One permit for each barrier that was passed.
    passed: Arc<Semaphore>,
    is_at_barrier: bool,
    task: Option<JoinHandle<()>>,
}

impl Planner {
    /// Begins to plan. Must be called within a runtime.
    pub fn start(request: PlanRequest) -> Self {
        let (sender, steps) = mpsc::channel(STEPS_WAITING_MAX);
        let (counts, passed) = (Arc::new(PlanCounts::default()), Arc::new(Semaphore::new(0)));
        let task = tokio::spawn(phases::run(request, counts.clone(), sender, passed.clone()));
        Self { steps, counts, passed, is_at_barrier: false, task: Some(task) }
    }

    /// The next step; none at the end. After a [`Step::Barrier`], asking for the next one says that all before it is done.
    ///
    /// Cancelled, it loses nothing.
    ///
    /// # Panics
    /// If planning panicked: a plan that ends early must not look complete.
    pub async fn next(&mut self) -> Option<Step> {
        if std::mem::take(&mut self.is_at_barrier) {
            self.passed.add_permits(1);
        }
        let step = self.steps.recv().await;
        self.is_at_barrier = matches!(step, Some(Step::Barrier));
        if step.is_none()
            && let Some(task) = &mut self.task
        {
            let ended = task.await;
            self.task = None;
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        step
    }

    /// Tells that a step failed. From then on nothing is deleted, unless errors are to be ignored.
    pub fn tell_failure(&self) {
        self.counts.problems.fetch_add(1, Ordering::Relaxed);
    }

    /// What was seen so far.
    pub fn counts(&self) -> Arc<PlanCounts> {
        self.counts.clone()
    }
}

impl Drop for Planner {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl PlanRequest {
    fn source_scope(&self) -> Scope {
        let excluded = self.source.as_ref().map(|place| place.excluded.clone()).unwrap_or_default();
        Scope { filter: self.filter.clone(), excluded, ignores_filter: false }
    }

    fn destination_scope(&self) -> Scope {
        let ignores_filter = self.options.filter.delete_excluded && self.task == Task::Sync;
        Scope { filter: self.filter.clone(), excluded: self.destination.excluded.clone(), ignores_filter }
    }
}

/// A directory whose time is to be that of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DirectoryTime {
    path: EntryPath,
    modified: SystemTime,
}

#[cfg(test)]
mod tests;
