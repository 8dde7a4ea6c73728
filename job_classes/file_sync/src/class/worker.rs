//! A task that is a worker of a queue, for a run whose controller reaches it through the cluster.
//!
//! ```text
//!   controller ──start, "look", "cancel"──► task ──► worker of the queue ──► executor
//!        ▲                                    │
//!        └────────watch: what happened────────┘
//! ```
//!
//! Who has a batch is decided by the files of the queue, as among all its workers; the cluster only tells when a look is worth it. So a batch begins as soon as it was
//! offered, and a worker without work makes no calls of the storage, but for a rare look in case a notification was lost. By that look it also notices that the run is
//! over, if its controller has died and cannot tell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nkcluster::job::Started;
use nkcluster::types::NodeId;
use nkcluster::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{FileSync, Reply, SyncTask, lock};
use crate::attempt::RunId;
use crate::queue::{
    Execute, JobName, SharedStore, Waits, WorkerEnd, WorkerEvent, WorkerHandle, WorkerId, WorkerOptions, is_under_way, run_worker,
};
use crate::remote::without_secrets;

/// Queues that one process works for at one time.
const QUEUES_MAX: usize = 64;
/// How often a worker looks that nobody tells to: a notification may have been lost.
const LOOK_UNASKED: Duration = Duration::from_secs(30);
/// Silence of a controller after which the worker sees for itself whether the run is over; one that lives asks at least every ten seconds.
const CONTROLLER_SILENT: Duration = Duration::from_secs(20);
/// How long a worker stays that has no work, finds none, and hears of no controller: another one may resume the run.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(180);
/// Things that happened and are kept for whoever asks.
const HAPPENED_MAX: usize = 64;
/// Why a worker does not begin: its node can read the place, and sees no such run there.
pub(crate) const NO_RUN: &str = "no_such_run";
/// Why a worker does not begin: its node cannot open or use the place, now or later.
pub(crate) const NO_QUEUE: &str = "no_queue";
/// Why a worker does not begin: the storage fails at the moment.
const QUEUE_FAILS: &str = "queue_fails";

/// The queues of a process, by the run for whose sake it works for them.
pub(super) type Queues = Arc<Mutex<BTreeMap<RunId, InQueue>>>;

/// A worker, and where its queue is, as it was told.
#[derive(Debug)]
pub(super) struct InQueue {
    cluster: String,
    task: WorkTask,
}

/// What has happened in the worker of a queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkReport {
    /// How much has happened in its life; said with the next question.
    pub seen: u64,
    /// Batches that it has.
    pub held: u64,
    /// Batches that have ended in its life.
    pub ended: u64,
    /// Parts of its batches that it has offered since what was seen: for which file of `queue/wanted`, or for anybody.
    pub gave: Vec<Option<String>>,
    /// What was odd since what was seen, for people.
    pub lines: Vec<String>,
}

/// The worker of a queue, as commands and requests reach it. Clones belong together.
#[derive(Clone, Debug)]
pub struct WorkTask {
    wake: Arc<Notify>,
    stop: watch::Sender<bool>,
    log: Log,
    /// When a controller was last heard of.
    heard: Arc<Mutex<Instant>>,
}

type Log = Arc<watch::Sender<Happened>>;

/// What has happened so far.
#[derive(Debug)]
struct Happened {
    count: u64,
    held: BTreeSet<JobName>,
    ended: u64,
    /// Since when it has nothing.
    idle: Instant,
    recent: VecDeque<(u64, Told)>,
}

#[derive(Debug)]
enum Told {
    Gave(Option<String>),
    Line(String),
}

/// The name that the worker of a node has in the queue, for a run. A later one has it again, so that nothing piles up there.
pub(crate) fn worker_id(node: &NodeId, run: RunId) -> Option<WorkerId> {
    // A node may have what a file name may not; what replaces it is in no node's name.
    let name = node.as_str().replace(':', "+");
    match name.strip_prefix('.') {
        Some(rest) => format!("={rest}.{run}"),
        None => format!("{name}.{run}"),
    }
    .parse()
    .ok()
}

impl FileSync {
    pub(super) async fn start_work(&self, node: &NodeId, cluster: &str, run: RunId) -> Result<Started<Self>> {
        let shown = without_secrets(cluster);
        let unusable = |why: String| Error::class(NO_QUEUE, format!("worker {node} cannot use the queue {shown}: {why}"));
        let remote = self.remotes.open(cluster).map_err(|error| unusable(error.to_string()))?;
        let store = match remote.open_queue_of(run).await {
            Ok(Some(store)) => store,
            Ok(None) => {
                let what = format!("worker {node} sees no run {run} under way in {shown}; is it the same storage there?");
                return Err(Error::class(NO_RUN, what));
            }
            Err(error) if error.is_temporary => return Err(Error::class(QUEUE_FAILS, format!("worker {node}: {shown}: {error}"))),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let id = worker_id(node, run).ok_or_else(|| unusable("its name makes no name of a file".to_owned()))?;
        let mut queues = lock(&self.queues);
        if let Some(other) = queues.get(&run) {
            if other.cluster != cluster {
                let other = without_secrets(&other.cluster);
                return Err(Error::new(ErrorCode::Busy, format!("worker {node} works for a run {run} in another queue, {other}")));
            }
            return Err(Error::new(ErrorCode::AlreadyStarted, format!("worker {node} works for the run {run} already")));
        }
        if queues.len() >= QUEUES_MAX {
            return Err(Error::new(ErrorCode::Busy, format!("worker {node} works for {QUEUES_MAX} queues already, the most it may")));
        }
        let (task, worker) = WorkTask::begin(store.clone(), Arc::new(self.executor.clone()), id);
        queues.insert(run, InQueue { cluster: cluster.to_owned(), task: task.clone() });
        drop(queues);
        let (left, serving) = (Left { queues: self.queues.clone(), run, task: task.clone() }, task.clone());
        // The worker of a task that is killed gives back what it has. Until it has ended it is found, and no other begins under its name.
        let serving = tokio::spawn(async move {
            let _left = left;
            let end = serving.serve(&store, run, worker).await;
            tracing::info!(%run, %end, "the worker of a queue has ended");
        });
        let stops = StopOnDrop(task.clone());
        let future = async move {
            // Also if the task is killed, before it has begun even.
            let _stops = stops;
            match serving.await {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => Ok(()),
            }
        };
        Ok(Started::future(SyncTask::Work(task), future))
    }

    pub(super) async fn watch(&self, run: RunId, seen: u64, longest: Duration) -> Reply {
        let Some(task) = lock(&self.queues).get(&run).map(|known| known.task.clone()) else { return Reply::Unknown };
        task.hear();
        let mut log = task.log.subscribe();
        // Whoever asks with what another life of the worker has told hears at once.
        let waited = tokio::time::timeout(longest, log.wait_for(|happened| happened.count != seen)).await;
        drop(waited);
        // It may have ended meanwhile.
        match lock(&self.queues).get(&run).is_some_and(|now| Arc::ptr_eq(&now.task.log, &task.log)) {
            true => Reply::Working(task.log.borrow().since(seen)),
            false => Reply::Unknown,
        }
    }
}

impl WorkTask {
    fn begin(store: SharedStore, execute: Arc<dyn Execute>, id: WorkerId) -> (Self, WorkerHandle) {
        let happened = Happened { count: 0, held: BTreeSet::new(), ended: 0, idle: Instant::now(), recent: VecDeque::new() };
        let log: Log = Arc::new(watch::Sender::new(happened));
        let listener = {
            let log = log.clone();
            Arc::new(move |event: WorkerEvent| log.send_modify(|happened| happened.take(event)))
        };
        let options = WorkerOptions { waits: Waits::IsWoken, ..WorkerOptions::new(id) };
        let worker = run_worker(store, execute, options, listener);
        (Self { wake: worker.wake(), stop: worker.stopper(), log, heard: Arc::new(Mutex::new(Instant::now())) }, worker)
    }

    /// Looks for work at once.
    pub(super) fn look(&self) {
        self.hear();
        self.wake.notify_one();
    }

    /// Ends: what nobody has begun goes back to the queue.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn hear(&self) {
        *lock(&self.heard) = Instant::now();
    }

    /// Works until it is stopped, the run is over, or nobody wants anything any more.
    async fn serve(&self, store: &SharedStore, run: RunId, worker: WorkerHandle) -> WorkerEnd {
        let ended = worker.ended();
        tokio::pin!(ended);
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_UNASKED, LOOK_UNASKED);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                end = &mut ended => return end,
                _ = look.tick() => {
                    self.wake.notify_one();
                    if self.is_forgotten() || self.is_over(store, run).await {
                        self.stop();
                    }
                }
            }
        }
    }

    fn silence(&self) -> Duration {
        lock(&self.heard).elapsed()
    }

    fn is_forgotten(&self) -> bool {
        let happened = self.log.borrow();
        self.silence() >= FORGOTTEN_AFTER && happened.held.is_empty() && happened.idle.elapsed() >= FORGOTTEN_AFTER
    }

    /// A controller that lives tells the end itself.
    async fn is_over(&self, store: &SharedStore, run: RunId) -> bool {
        self.silence() >= CONTROLLER_SILENT && is_under_way(store, run).await == Ok(false)
    }
}

impl Happened {
    fn take(&mut self, event: WorkerEvent) {
        self.count += 1;
        if event.is_odd() {
            self.keep(Told::Line(event.to_string()));
        }
        match event {
            WorkerEvent::Claimed(job) => drop(self.held.insert(job)),
            WorkerEvent::Finished(job) | WorkerEvent::Abandoned(job) => {
                self.held.remove(&job);
                self.ended += 1;
                self.idle = Instant::now();
            }
            WorkerEvent::Split { asked, .. } => self.keep(Told::Gave(asked)),
            WorkerEvent::Warning(_) => {}
        }
    }

    fn keep(&mut self, told: Told) {
        self.recent.push_back((self.count, told));
        if self.recent.len() > HAPPENED_MAX {
            self.recent.pop_front();
        }
    }

    fn since(&self, seen: u64) -> WorkReport {
        let mut report = WorkReport { seen: self.count, held: self.held.len() as u64, ended: self.ended, ..WorkReport::default() };
        // Another life of the worker may have told more than has happened in this one.
        let seen = if seen > self.count { 0 } else { seen };
        for (_, told) in self.recent.iter().filter(|(number, _)| *number > seen) {
            match told {
                Told::Gave(asked) => report.gave.push(asked.clone()),
                Told::Line(line) => report.lines.push(line.clone()),
            }
        }
        report
    }
}

/// The worker of a task that is killed ends.
#[derive(Debug)]
struct StopOnDrop(WorkTask);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// When a worker has ended, nobody finds it any more.
#[derive(Debug)]
struct Left {
    queues: Queues,
    run: RunId,
    task: WorkTask,
}

impl Drop for Left {
    fn drop(&mut self) {
        lock(&self.queues).remove(&self.run);
        // Whoever watches it learns that it is over.
        self.task.log.send_modify(|happened| happened.count += 1);
    }
}

#[cfg(test)]
mod tests;
