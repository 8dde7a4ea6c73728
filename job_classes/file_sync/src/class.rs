//! The job class: whole runs, and the batches of runs that go over several workers.
//!
//! | verb | JSON | answer |
//! |---|---|---|
//! | task | `{"run":{"kind":"copy","source":"/a","destination":"/b"}}` | events, see [`Event`]; the last one is `ended` |
//! | task | `{"batch":{"attempt":…,"batch":{…}}}` | none; whoever started it waits for its end by a request |
//! | task | `{"work":{"cluster":"/work","run":…}}` | none; whoever started it watches it by requests |
//! | request | `{"wait":{"attempt":…,"millis":500}}` | `{"running":…}`, `{"ended":…}` or `"unknown"` |
//! | request | `{"close":{"run":…}}` | `{"closed":{"batches":[…]}}` |
//! | request | `{"watch":{"run":…,"seen":0,"millis":500}}` | `{"working":…}`, see [`WorkReport`], or `"unknown"` |
//! | command | `"progress"`, `"pause"`, `"resume"`, `"look"`, `"cancel"`, `"abandon"`, `{"set_bandwidth":"10M"}` | numbers, see [`Snapshot`] |
//!
//! It reads and writes wherever the operations say, so a worker needs the class in its `grants`.

mod worker;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nkcluster::job::{CommandContext, JobClass, RequestContext, Started, TaskClass, TaskContext};
use nkcluster::types::NodeStatus;
use nkcluster::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

pub(crate) use self::worker::{NO_QUEUE, NO_RUN, worker_id};
pub use self::worker::{WorkReport, WorkTask};
use crate::attempt::{Attempt, RunId};
use crate::executor::{Executor, RunShare};
use crate::operation::Operation;
use crate::options::Rate;
use crate::queue::{Batch, BatchResult, Failure, Work};
use crate::remote::{RemoteConfig, Remotes, without_secrets};
use crate::run::{Control, Here, Order, Snapshot, Summary, Told, run};
use crate::stats::StatsReport;

/// Batches whose end a worker remembers, for whoever still asks.
const REMEMBERED_MAX: usize = 256;
/// Runs of which a worker remembers that it is to begin nothing more of them.
const CLOSED_MAX: usize = 256;
/// Longest time that a request waits for the end of a batch.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a run tells its progress.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);
/// Files that fail of which a run tells each; of the rest there is the number at the end.
const FAILURES_TOLD_MAX: u64 = 1_000;

/// The class. One value serves a whole process.
#[derive(Clone, Debug)]
pub struct FileSync {
    remotes: Arc<Remotes>,
    executor: Executor,
    batches: Arc<Mutex<Batches>>,
    /// The queues that it works for, by the run for whose sake it does.
    queues: worker::Queues,
}

/// The batches that a worker has, or remembers.
#[derive(Debug, Default)]
struct Batches {
    held: VecDeque<Arc<HeldBatch>>,
    /// Runs that somebody else goes on with, under another id.
    closed: VecDeque<RunId>,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What becomes of a batch; waits for its end.
    Wait {
        /// Which.
        attempt: Attempt,
        /// How long at most.
        millis: u64,
    },
    /// Begin nothing more of a run: files that were begun are finished, the others are given back.
    Close {
        /// Which.
        run: RunId,
    },
    /// What happens in the worker of a queue; waits until something does.
    Watch {
        /// The run that it was started for.
        run: RunId,
        /// What was told last, by [`WorkReport::seen`]; 0 at first.
        seen: u64,
        /// How long at most.
        millis: u64,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is under way.
    Running {
        /// Its numbers.
        stats: Box<StatsReport>,
    },
    /// It has ended.
    Ended(Box<BatchEnd>),
    /// Nothing more of a run is begun.
    Closed {
        /// Its batches that this worker has, or remembers.
        batches: Vec<Attempt>,
    },
    /// What has happened in the worker of a queue.
    Working(WorkReport),
    /// This worker knows nothing of it: it never had it, was restarted, or has forgotten.
    Unknown,
}

/// How a batch ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BatchEnd {
    /// Operations that were done.
    pub done: u64,
    /// Those that failed.
    pub failures: Vec<Failure>,
    /// Those that the worker gives back, as it is stopping.
    pub rest: Vec<Operation>,
    /// Its numbers.
    pub stats: StatsReport,
}

/// What a task is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spec {
    /// A whole copy, sync or move, by this worker alone.
    Run(Box<Order>),
    /// A batch of a run.
    Batch {
        /// Which attempt at which batch.
        attempt: Attempt,
        /// The batch as it stands in a queue.
        batch: Value,
    },
    /// A worker of a queue, until the run is over. It takes batches of other runs in that queue too, as all its workers do.
    Work {
        /// The storage of the queue, as this node finds it.
        cluster: String,
        /// The run, which must be under way there.
        run: RunId,
    },
}

/// What can be told to a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Nothing; the numbers are the answer.
    Progress,
    /// Begin no more files.
    Pause,
    /// Go on.
    Resume,
    /// There may be work in the queue: look at once. Whatever is no worker of a queue has nothing to look for.
    Look,
    /// End soon: what has begun is finished.
    Cancel,
    /// End now: what has begun has no effect any more. A worker of a queue ends as by `cancel`.
    Abandon,
    /// Bytes per second of the run at this worker, such as `10M`; `off` is no limit.
    SetBandwidth(String),
}

/// What a run tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The numbers of now.
    Progress(Box<Snapshot>),
    /// A file that failed.
    Failed {
        /// Its path.
        path: String,
        /// Why.
        error: String,
    },
    /// The run is over.
    Ended(Box<Summary>),
}

/// A batch in work, or one that has ended.
#[derive(Debug)]
struct HeldBatch {
    work: Arc<Work>,
    given_back: Mutex<Vec<Operation>>,
    end: watch::Sender<Option<BatchEnd>>,
}

/// A running task.
#[derive(Debug)]
pub enum SyncTask {
    /// A whole run.
    Run(Control),
    /// A batch.
    Batch(BatchTask),
    /// A worker of a queue.
    Work(WorkTask),
}

/// A batch as its commands see it.
#[derive(Clone, Debug)]
pub struct BatchTask {
    held: Arc<HeldBatch>,
    /// Shared with the other batches of its run.
    share: Arc<RunShare>,
}

impl FileSync {
    /// One that finds its remotes in a configuration and carries out so many files at the same time.
    pub fn new(remotes: RemoteConfig, transfers: usize) -> Self {
        let remotes = Arc::new(Remotes::new(remotes));
        Self { executor: Executor::new(remotes.clone(), transfers), remotes, batches: Arc::default(), queues: Arc::default() }
    }

    pub(crate) fn remotes(&self) -> &Arc<Remotes> {
        &self.remotes
    }

    fn find(&self, attempt: Attempt) -> Option<Arc<HeldBatch>> {
        lock(&self.batches).held.iter().find(|held| held.work.attempt() == attempt).cloned()
    }

    /// Has a batch from now on, unless its run was closed.
    fn hold(&self, held: Arc<HeldBatch>) -> Result<()> {
        let mut batches = lock(&self.batches);
        let run = held.work.attempt().run;
        if batches.closed.contains(&run) {
            return Err(Error::new(ErrorCode::NotAllowed, format!("another control node goes on with the run {run}")));
        }
        // Those in work are bounded by whoever sends them.
        while batches.held.len() >= REMEMBERED_MAX
            && let Some(ended) = batches.held.iter().position(|held| held.end.borrow().is_some())
        {
            batches.held.remove(ended);
        }
        batches.held.push_back(held);
        Ok(())
    }

    /// Begins nothing more of a run; tells what it has of it.
    fn close(&self, run: RunId) -> Vec<Attempt> {
        let of_run: Vec<Arc<HeldBatch>> = {
            let mut batches = lock(&self.batches);
            if !batches.closed.contains(&run) {
                batches.closed.push_back(run);
                if batches.closed.len() > CLOSED_MAX {
                    batches.closed.pop_front();
                }
            }
            batches.held.iter().filter(|held| held.work.attempt().run == run).cloned().collect()
        };
        for held in of_run.iter().filter(|held| held.end.borrow().is_none()) {
            held.give_back();
            // Files that wait behind a closed gate were not begun; what was begun goes on to its end.
            held.work.gate().open();
        }
        of_run.iter().map(|held| held.work.attempt()).collect()
    }

    fn start_batch(&self, attempt: Attempt, batch: &Value) -> Result<Started<Self>> {
        let read = serde_json::to_vec(batch)
            .map_err(|error| error.to_string())
            .and_then(|bytes| Batch::from_json(&bytes).map_err(|error| error.to_string()));
        if self.find(attempt).is_some() {
            return Err(Error::new(
                ErrorCode::AlreadyStarted,
                format!("this worker has, or had, the batch {attempt}; it is not carried out twice"),
            ));
        }
        let batch = read.map_err(|why| Error::new(ErrorCode::InvalidPayload, format!("the batch {attempt} cannot be read: {why}")))?;
        let held =
            Arc::new(HeldBatch { work: Arc::new(Work::new(attempt, batch)), given_back: Mutex::default(), end: watch::Sender::new(None) });
        self.hold(held.clone())?;
        // At once: whoever is told that the batch has begun may change its limit.
        let share = self.executor.share(&held.work);
        let (executor, task) = (self.executor.clone(), BatchTask { held: held.clone(), share: share.clone() });
        // Also if the task is killed, before it has begun even.
        let ends = Ends(held.clone());
        let future = async move {
            let _ends = ends;
            executor.carry_out(held.work.clone(), share).await;
            Ok(())
        };
        Ok(Started::future(SyncTask::Batch(task), future))
    }

    fn start_run(&self, ctx: TaskContext<Self>, order: Order) -> Result<Started<Self>> {
        let options = order.options().map_err(|error| Error::new(ErrorCode::InvalidPayload, error.to_string()))?;
        if options.filter.reads_standard_input() {
            return Err(Error::new(
                ErrorCode::InvalidPayload,
                "`-` as a file of filters is the standard input, which a worker does not have",
            ));
        }
        let control = Control::default();
        let (task, remotes) = (SyncTask::Run(control.clone()), self.remotes.clone());
        let future = async move {
            let _cancels = CancelOnDrop(control.clone());
            let (mut failed, mut progress) = (0_u64, tokio::time::interval(PROGRESS_PAUSE));
            let (told, mut hears) = tokio::sync::mpsc::channel(256);
            let running = run(&order, &Here, &remotes, &control, told);
            tokio::pin!(running);
            let summary = loop {
                tokio::select! {
                    summary = &mut running => break summary,
                    Some(told) = hears.recv() => if let Told::Failed { path, error } = told {
                        failed += 1;
                        if failed <= FAILURES_TOLD_MAX {
                            ctx.emit_paced(&Event::Failed { path, error }).await?;
                        }
                    },
                    _ = progress.tick() => {
                        ctx.emit(&Event::Progress(Box::new(control.snapshot())))?;
                    }
                }
            };
            ctx.emit(&Event::Ended(Box::new(summary)))?;
            Ok(())
        };
        Ok(Started::future(task, future))
    }
}

/// Tells whoever waits how a batch ended.
struct Ends(Arc<HeldBatch>);

impl Drop for Ends {
    fn drop(&mut self) {
        let held = &self.0;
        // Nothing is given back between this and the result.
        let mut given_back = lock(&held.given_back);
        let rest = std::mem::take(&mut *given_back);
        let (mut done, mut failures) = (0, Vec::new());
        match held.work.result() {
            BatchResult::Inputs(results) => {
                for result in results {
                    match result {
                        Some(failure) => failures.push(failure),
                        None => done += 1,
                    }
                }
            }
            BatchResult::Failed(failure) => failures.push(failure),
        }
        held.end.send_replace(Some(BatchEnd { done, failures, rest, stats: held.stats() }));
    }
}

/// A run whose task is killed ends.
struct CancelOnDrop(Control);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl HeldBatch {
    fn stats(&self) -> StatsReport {
        serde_json::from_value(self.work.progress()).unwrap_or_default()
    }

    /// Takes out of the batch what nobody has begun.
    fn give_back(&self) {
        // Held over the whole, so that an end meanwhile counts them either here or there.
        let mut given_back = lock(&self.given_back);
        let cut = self.work.cut(true);
        let (_, given) = self.work.parts(&cut);
        self.work.gave(&cut, self.work.width());
        given_back.extend(given);
    }
}

impl JobClass for FileSync {
    const NAME: &'static str = "file_sync";
    type Request = Request;
    type Reply = Reply;

    async fn request(&self, _: RequestContext, request: Request) -> Result<Reply> {
        let (attempt, millis) = match request {
            Request::Wait { attempt, millis } => (attempt, millis),
            Request::Close { run } => return Ok(Reply::Closed { batches: self.close(run) }),
            Request::Watch { run, seen, millis } => return Ok(self.watch(run, seen, Duration::from_millis(millis).min(WAIT_MAX)).await),
        };
        let Some(held) = self.find(attempt) else { return Ok(Reply::Unknown) };
        let mut end = held.end.subscribe();
        let waited = tokio::time::timeout(Duration::from_millis(millis).min(WAIT_MAX), end.wait_for(Option::is_some)).await;
        Ok(match waited {
            Ok(Ok(end)) => end.clone().map_or(Reply::Unknown, |end| Reply::Ended(Box::new(end))),
            _ => Reply::Running { stats: Box::new(held.stats()) },
        })
    }
}

impl TaskClass for FileSync {
    type Spec = Spec;
    type Accepted = ();
    type Command = Command;
    type Answer = Snapshot;
    type Event = Event;
    type Task = SyncTask;

    async fn task(&self, ctx: TaskContext<Self>, spec: Spec) -> Result<Started<Self>> {
        match spec {
            Spec::Run(order) => {
                ctx.require_grant(&format!("copy from {} to {}", order.shown_source(), order.shown_destination()))?;
                self.start_run(ctx, *order)
            }
            Spec::Batch { attempt, batch } => {
                ctx.require_grant("carry out a batch of file operations")?;
                self.start_batch(attempt, &batch)
            }
            Spec::Work { cluster, run } => {
                ctx.require_grant(&format!("work for the queue {}", without_secrets(&cluster)))?;
                self.start_work(ctx.node_id(), &cluster, run).await
            }
        }
    }

    async fn command(&self, _: CommandContext<Self>, task: &SyncTask, command: Command) -> Result<Snapshot> {
        let rate = match &command {
            Command::SetBandwidth(text) => {
                let rate: std::result::Result<Rate, _> = text.parse();
                Some(rate.map_err(|error| Error::new(ErrorCode::InvalidPayload, error.to_string()))?.bytes_per_second())
            }
            _ => None,
        };
        match task {
            SyncTask::Run(control) => match command {
                Command::Progress | Command::Look => {}
                Command::Pause => control.gate().close(),
                Command::Resume => control.gate().open(),
                Command::Cancel | Command::Abandon => control.cancel(),
                Command::SetBandwidth(_) => control.set_bandwidth(rate.flatten()),
            },
            SyncTask::Batch(batch) => match command {
                Command::Progress | Command::Look => {}
                Command::Pause => batch.held.work.gate().close(),
                Command::Resume => batch.held.work.gate().open(),
                Command::Cancel => batch.held.give_back(),
                Command::Abandon => batch.held.work.abandon(),
                // It holds for all batches of the run that this worker has.
                Command::SetBandwidth(_) => batch.share.set_limit(rate.flatten()),
            },
            SyncTask::Work(work) => match command {
                Command::Progress => {}
                Command::Look => work.look(),
                Command::Cancel | Command::Abandon => work.stop(),
                Command::SetBandwidth(_) => self.executor.set_bandwidth(rate.flatten()),
                Command::Pause | Command::Resume => {
                    return Err(Error::new(ErrorCode::NotAllowed, "a worker of a queue does not rest; stop it, and start it again"));
                }
            },
        }
        Ok(match task {
            SyncTask::Run(control) => control.snapshot(),
            SyncTask::Batch(batch) => Snapshot { stats: batch.held.stats(), ..Snapshot::default() },
            SyncTask::Work(_) => Snapshot::default(),
        })
    }

    async fn status(&self, task: &SyncTask, status: NodeStatus) {
        match (task, status) {
            (SyncTask::Run(control), NodeStatus::Stopping) => control.cancel(),
            (SyncTask::Batch(batch), NodeStatus::Stopping) => batch.held.give_back(),
            // What it claims is new work, which only a worker that is ready takes.
            (SyncTask::Work(work), NodeStatus::Stopping | NodeStatus::Standby) => work.stop(),
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
