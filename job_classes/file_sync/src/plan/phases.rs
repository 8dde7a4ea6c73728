//! The order in which a run does things.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{Semaphore, mpsc};

use super::comparing::{Comparing, Deferred, DeleteLimit, Pass};
use super::step::{Problem, ProblemKind, Step};
use super::{PlanCounts, PlanRequest, Task};
use crate::listing::{Side, Walk, walk};
use crate::options::DeleteMode;
use crate::path::EntryPath;

/// Plans a whole run into a channel. It ends early only if nobody takes the steps any more.
pub(super) async fn run(request: PlanRequest, counts: Arc<PlanCounts>, steps: mpsc::Sender<Step>, passed: Arc<Semaphore>) {
    let phases = Phases { request: Arc::new(request), counts, steps, passed };
    let planned = match (phases.request.task, phases.request.options.delete_mode) {
        (Task::Delete, _) => phases.walk(Pass::Delete).await.map(drop),
        (Task::Sync, DeleteMode::Before) => phases.sync_before().await,
        (Task::Sync, DeleteMode::During) => phases.transfer(Pass::SyncDuring).await,
        (Task::Sync, DeleteMode::After) => phases.transfer(Pass::SyncAfter).await,
        (Task::Copy | Task::Move, _) => phases.transfer(Pass::Transfer).await,
    };
    if planned.is_some() {
        phases.counts.is_complete.store(true, Ordering::Relaxed);
    }
}

struct Phases {
    request: Arc<PlanRequest>,
    counts: Arc<PlanCounts>,
    steps: mpsc::Sender<Step>,
    passed: Arc<Semaphore>,
}

impl Phases {
    async fn sync_before(&self) -> Option<()> {
        let deferred = self.walk(Pass::DeleteBefore).await?;
        self.barrier().await?;
        if self.may_delete() {
            self.remove_directories(Side::Destination, deferred.removable).await?;
            self.barrier().await?;
        }
        self.transfer(Pass::Transfer).await
    }

    /// Transfers, and what follows them.
    async fn transfer(&self, pass: Pass) -> Option<()> {
        let mut deferred = self.walk(pass).await?;
        self.counts.is_complete.store(true, Ordering::Relaxed);
        self.barrier().await?;
        if !deferred.deletes.is_empty() {
            self.delete_after(&mut deferred).await?;
        }
        if !deferred.removable.is_empty() {
            let side = if self.request.task == Task::Move { Side::Source } else { Side::Destination };
            // A directory that a move could not empty is not removed anyway.
            if side == Side::Source || self.may_delete() {
                self.remove_directories(side, deferred.removable).await?;
            }
        }
        // Children before their parents; what happens within a directory changes its time, so times come last.
        deferred.times.sort_unstable_by(|one, other| other.path.cmp(&one.path));
        for time in deferred.times {
            self.send(Step::SetDirectoryTimes { path: time.path, modified: time.modified }).await?;
        }
        Some(())
    }

    async fn tell_suppressed(&self, count: usize) -> Option<()> {
        let what = format!("not deleting {count} files as there were errors before");
        let problem = Problem { side: Side::Destination, path: EntryPath::root(), kind: ProblemKind::DeletesSuppressed, what };
        self.send(Step::Problem(problem)).await
    }

    async fn delete_after(&self, deferred: &mut Deferred) -> Option<()> {
        if !self.may_delete() {
            return self.tell_suppressed(deferred.deletes.len()).await;
        }
        let limit = DeleteLimit::of(&self.request);
        for operation in deferred.deletes.drain(..) {
            if let Some(step) = limit.step(operation) {
                self.send(step).await?;
            }
        }
        self.barrier().await
    }

    async fn remove_directories(&self, side: Side, mut directories: Vec<EntryPath>) -> Option<()> {
        directories.sort_unstable_by(|one, other| other.cmp(one));
        for path in directories {
            self.send(Step::RemoveDirectory { side, path }).await?;
        }
        Some(())
    }

    fn may_delete(&self) -> bool {
        self.request.options.ignore_errors || self.counts.problems() == 0
    }

    /// Walks both trees once; none if nobody takes the steps any more.
    async fn walk(&self, pass: Pass) -> Option<Deferred> {
        let request = &self.request;
        let source = request.source.as_ref().filter(|_| request.task != Task::Delete);
        let plan = Walk {
            source: source.map(|place| (place.storage.clone(), request.source_scope())),
            destination: Some((request.destination.storage.clone(), request.destination_scope())),
            checkers: request.options.checkers as usize,
            max_depth: request.options.max_depth,
            folds: request.folds_names,
            tries: request.options.low_level_retries,
        };
        let visitor = Arc::new(Comparing::new(request.clone(), pass, self.counts.clone(), self.steps.clone()));
        walk(Arc::new(plan), visitor.clone()).await;
        if self.steps.is_closed() {
            return None;
        }
        let deferred = visitor.take_deferred();
        if deferred.suppressed > 0 {
            self.tell_suppressed(deferred.suppressed).await?;
        }
        Some(deferred)
    }

    /// Lets whoever carries the steps out finish what was before.
    async fn barrier(&self) -> Option<()> {
        self.send(Step::Barrier).await?;
        tokio::select! {
            permit = self.passed.acquire() => permit.ok().map(tokio::sync::SemaphorePermit::forget),
            () = self.steps.closed() => None,
        }
    }

    async fn send(&self, step: Step) -> Option<()> {
        if matches!(step, Step::Problem(_)) {
            self.counts.problems.fetch_add(1, Ordering::Relaxed);
        }
        self.steps.send(step).await.ok()
    }
}
