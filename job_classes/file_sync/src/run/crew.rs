//! The workers of a cluster that work for a queue, as its controller has them.
//!
//! ```text
//!   controller ──batch offered──► crew ──look──► task on a worker ──claims, copies, writes the result──► files of the queue
//!        ▲                          ▲                 │                                                        │
//!        │                          └────watch────────┘                                                        │
//!        └──────────────────────────a look at the queue, when a batch has ended────────────────────────────────┘
//! ```
//!
//! The files of the queue stay the only truth: whatever the cluster loses, or tells late, costs time and nothing else. So the crew may be lost, may be doubled by a
//! controller that resumes the run, and works beside other workers of the queue.

mod members;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use nkcluster::cluster::{CallOptions, Cluster, NodesReply, Retry};
use nkcluster::job::{JobClass as _, TypedCalls as _};
use nkcluster::types::{ClassName, NodeId, NodeStatus, Selector, TaskId};
use nkcluster::{Error, ErrorCode};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Duration, Instant};

use self::members::{Action, Members};
use super::tries::Told;
use super::workers::{ABANDON_TIMEOUT, CALL_TIMEOUT};
use crate::attempt::RunId;
use crate::class::{Command, FileSync, Reply, Request, Spec, worker_id};
use crate::queue::{JobName, SharedStore, WorkerId, WorkerStatus, quit_path};

/// How often the cluster is asked who is there.
const NODES_PAUSE: Duration = Duration::from_secs(2);
/// How often it is thought again about whoever rests, and what nobody has taken.
const TICK: Duration = Duration::from_secs(1);
/// How long a worker waits for something to happen before it answers all the same; less, if they are so many that they take turns.
const WATCH: Duration = Duration::from_secs(10);
/// Workers that are watched at one time, and those that are told something: together fewer than the calls that one connection carries.
const WATCHED_AT_ONCE: usize = 1024;
const TOLD_AT_ONCE: usize = 512;
/// The same at the end, when nothing may happen any more but its end.
const WATCH_END: Duration = Duration::from_millis(500);
/// How long the end of a run waits for all its workers to finish what they have begun.
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// What happened in the run and waits to be heard; then the controller waits.
const NEWS_MAX: usize = 1024;
/// Workers that are named where there may be many.
const SOME_MAX: usize = 3;

/// Workers of a cluster that work for a queue.
#[derive(Clone, Debug)]
pub struct Crew {
    cluster: Cluster,
    selector: Selector,
}

impl Crew {
    /// Those that are ready and run the class, while the run lasts.
    pub fn new(cluster: Cluster, selector: Selector) -> Self {
        Self { cluster, selector }
    }

    /// Has them work for a run that is under way in a queue: `remote` as their nodes find it. The controller is woken when it is worth a look.
    pub(super) fn employ(
        &self,
        run: RunId,
        remote: String,
        store: SharedStore,
        controller: Arc<Notify>,
        told: mpsc::Sender<Told>,
    ) -> Employed {
        let (news, hears) = mpsc::channel(NEWS_MAX);
        let crew = Self::clone(self);
        let task = task_of(run);
        let [watching, telling] = [WATCHED_AT_ONCE, TOLD_AT_ONCE].map(|places| Arc::new(Semaphore::new(places)));
        let (members, calls) = (Members::new(run), JoinSet::new());
        let working = Working { crew, run, remote, task, store, controller, told, members, calls, watching, telling };
        Employed { run, news, task: AbortOnDrop(tokio::spawn(working.work(hears))) }
    }
}

/// The id of the task that works for a run, on any node.
fn task_of(run: RunId) -> Option<TaskId> {
    TaskId::new(format!("{run}.queue")).ok()
}

/// A crew at work.
pub(super) struct Employed {
    run: RunId,
    news: mpsc::Sender<News>,
    task: AbortOnDrop<Vec<String>>,
}

/// What happened in the run.
#[derive(Debug)]
pub(super) enum News {
    Offered(JobName),
    /// Somebody has it, or it is over.
    Taken(JobName),
    ToldToStop(WorkerId),
    /// The run has ended, or goes on elsewhere, with the same workers.
    Over {
        elsewhere: bool,
    },
}

impl Employed {
    pub(super) async fn tell(&self, news: News) {
        // Whoever ends it learns that it was lost.
        let _ = self.news.send(news).await;
    }

    /// The node of a worker that is, or was, of this crew.
    pub(super) fn node_of(&self, worker: &WorkerId) -> Option<String> {
        members::node_of(worker, self.run)
    }

    /// Ends all that it has begun; tells why workers were not used.
    pub(super) async fn end(mut self, elsewhere: bool) -> Vec<String> {
        self.tell(News::Over { elsewhere }).await;
        match (&mut self.task.0).await {
            Ok(reasons) => reasons,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Vec::new(),
        }
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a call has come to.
enum Answer {
    Nodes(nkcluster::Result<NodesReply>),
    Started(NodeId, nkcluster::Result<()>),
    Watched(NodeId, nkcluster::Result<Reply>),
    Looked(NodeId),
}

struct Working {
    crew: Crew,
    run: RunId,
    remote: String,
    task: Option<TaskId>,
    store: SharedStore,
    controller: Arc<Notify>,
    told: mpsc::Sender<Told>,
    members: Members,
    calls: JoinSet<Answer>,
    watching: Arc<Semaphore>,
    telling: Arc<Semaphore>,
}

impl Working {
    async fn work(mut self, mut hears: mpsc::Receiver<News>) -> Vec<String> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut asks, mut asked) = (false, None::<Instant>);
        let elsewhere = loop {
            for action in self.members.actions() {
                self.perform(action).await;
            }
            tokio::select! {
                biased;
                news = hears.recv() => match news {
                    Some(News::Offered(job)) => self.members.handle_offered(&job),
                    Some(News::Taken(job)) => self.members.handle_taken(&job),
                    Some(News::ToldToStop(worker)) => self.members.handle_told_to_stop(&worker),
                    Some(News::Over { elsewhere }) => break elsewhere,
                    None => break false,
                },
                Some(answer) = self.calls.join_next() => {
                    let now = Instant::now();
                    match answer {
                        Ok(Answer::Nodes(nodes)) => {
                            asks = false;
                            self.see(nodes, now);
                        }
                        Ok(Answer::Started(node, started)) => self.members.handle_started(&node, started, now),
                        Ok(Answer::Watched(node, watched)) => self.members.handle_watched(&node, watched, now),
                        Ok(Answer::Looked(node)) => self.members.handle_looked(&node),
                        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                        Err(_) => {}
                    }
                }
                _ = tick.tick() => {
                    self.members.handle_tick(Instant::now());
                    if !asks && asked.is_none_or(|asked| asked.elapsed() >= NODES_PAUSE) {
                        (asks, asked) = (true, Some(Instant::now()));
                        let Crew { cluster, selector } = self.crew.clone();
                        self.calls.spawn(async move { Answer::Nodes(cluster.nodes(Some(&selector), CALL_TIMEOUT).await) });
                    }
                }
            }
        };
        if !elsewhere {
            self.end().await;
        }
        self.members.unused().take(SOME_MAX).map(|(node, why)| format!("{node}: {why}")).collect()
    }

    fn see(&mut self, nodes: nkcluster::Result<NodesReply>, now: Instant) {
        match nodes {
            Ok(reply) => {
                let ready = reply
                    .nodes
                    .into_iter()
                    .filter(|node| node.status == NodeStatus::Ready && node.classes.iter().any(|class| class.as_str() == FileSync::NAME));
                self.members.handle_nodes(ready.map(|node| node.id).collect(), now);
            }
            Err(error) => tracing::warn!(%error, "the cluster does not tell its nodes"),
        }
    }

    async fn perform(&mut self, action: Action) {
        let Some(task) = self.task.clone() else { return };
        let (cluster, run) = (self.crew.cluster.clone(), self.run);
        let (watching, telling) = (self.watching.clone(), self.telling.clone());
        match action {
            Action::Start(node) => {
                let spec = Spec::Work { cluster: self.remote.clone(), run };
                let options = CallOptions { task_id: Some(task), retry: Retry::UntilDeadline, ..CallOptions::timeout(CALL_TIMEOUT) };
                drop(self.calls.spawn(async move {
                    let Ok(_place) = telling.acquire().await else {
                        return Answer::Started(node, Err(Error::new(ErrorCode::Busy, "the run is over")));
                    };
                    let started = cluster.start::<FileSync>(&node, &spec, options).await.map(drop);
                    Answer::Started(node, started)
                }));
            }
            Action::Watch { node, seen, pause } => {
                let wait = WATCH * WATCHED_AT_ONCE as u32 / self.members.working().max(WATCHED_AT_ONCE) as u32;
                drop(self.calls.spawn(async move {
                    tokio::time::sleep(pause).await;
                    let _place = watching.acquire().await;
                    let request = Request::Watch { run, seen, millis: wait.as_millis() as u64 };
                    let watched = cluster.ask::<FileSync>(&node, &request, CallOptions::timeout(wait + CALL_TIMEOUT)).await;
                    Answer::Watched(node, watched)
                }));
            }
            Action::Look(node) => drop(self.calls.spawn(async move {
                let Ok(_place) = telling.acquire().await else { return Answer::Looked(node) };
                // One that is lost is made up for by the next, or by the look of a worker that nobody tells to.
                let _ = cluster.tell::<FileSync>(&node, &task, &Command::Look, CallOptions::timeout(CALL_TIMEOUT)).await;
                Answer::Looked(node)
            })),
            Action::Tell(what) => drop(self.told.send(Told::Notice(what)).await),
            Action::WakeController => self.controller.notify_one(),
        }
    }

    /// Ends the tasks, and removes what those have left in the queue that were lost.
    async fn end(&mut self) {
        let deadline = Instant::now() + END_TIMEOUT;
        // What waits for its turn is not sent any more.
        self.telling.close();
        let mut calls = std::mem::take(&mut self.calls);
        let this = &*self;
        let starting: BTreeSet<&NodeId> = this.members.starting().collect();
        let started = async {
            let mut open = starting.clone();
            while !open.is_empty()
                && let Some(answer) = calls.join_next().await
            {
                if let Ok(Answer::Started(node, _)) = answer {
                    open.remove(&node);
                }
            }
        };
        let (mut late, _) =
            futures_util::join!(this.end_all(this.members.employed(), deadline), tokio::time::timeout_at(deadline, started));
        // A start that was on its way may have arrived behind the word to end.
        late.append(&mut this.end_all(starting.into_iter(), deadline).await);
        let gone = this.members.employed().filter(|node| !late.contains(node));
        let _ = tokio::time::timeout(END_TIMEOUT, this.forget(gone)).await;
        if !late.is_empty() {
            let some: Vec<_> = late.iter().take(SOME_MAX).map(|node| node.as_str()).collect();
            let what = format!(
                "{} workers still finish what they have begun, and give back the rest; some of them: {}",
                late.len(),
                some.join(", ")
            );
            let _ = self.told.send(Told::Notice(what)).await;
        }
    }

    /// Ends the tasks of these nodes; returns those that take longer.
    async fn end_all<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>, deadline: Instant) -> BTreeSet<&'a NodeId> {
        let ends = nodes.map(|node| async move { tokio::time::timeout_at(deadline, self.end_of(node)).await.is_err().then_some(node) });
        let ends = futures_util::stream::iter(ends.collect::<Vec<_>>());
        ends.buffer_unordered(TOLD_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// Resolves when the task of a node has ended, or the node cannot be reached.
    async fn end_of(&self, node: &NodeId) {
        let (mut seen, mut is_told) = (0, false);
        loop {
            is_told = is_told || self.is_told_to_end(node).await;
            let request = Request::Watch { run: self.run, seen, millis: WATCH_END.as_millis() as u64 };
            match self.crew.cluster.ask::<FileSync>(node, &request, CallOptions::timeout(WATCH_END + ABANDON_TIMEOUT)).await {
                Ok(Reply::Working(report)) => seen = report.seen,
                Ok(_) if is_told => return,
                // It may just be starting.
                Ok(_) => tokio::time::sleep(WATCH_END).await,
                Err(_) => return,
            }
        }
    }

    /// Whether a node knows that its task is to end.
    async fn is_told_to_end(&self, node: &NodeId) -> bool {
        let (Some(task), Ok(class)) = (&self.task, ClassName::new(FileSync::NAME)) else { return true };
        let cluster = &self.crew.cluster;
        let is_missing = |error: &Error| *error.code() == ErrorCode::TaskNotFound;
        match cluster.tell::<FileSync>(node, task, &Command::Cancel, CallOptions::timeout(ABANDON_TIMEOUT)).await {
            Ok(_) => true,
            // It has ended, or is being started, and then no command reaches it.
            Err(error) if is_missing(&error) => {
                cluster.stop_task(node, &class, task, ABANDON_TIMEOUT).await.map_or_else(|error| is_missing(&error), |()| true)
            }
            Err(_) => false,
        }
    }

    /// Workers that were lost leave their status, that they want work, and that they were told to stop.
    async fn forget(&self, nodes: impl Iterator<Item = &NodeId>) {
        let workers = nodes.filter_map(|node| worker_id(node, self.run));
        let files: BTreeSet<String> =
            workers.flat_map(|worker| [WorkerStatus::path(&worker), format!("queue/wanted/{worker}"), quit_path(&worker)]).collect();
        // Few have left something, if any.
        for directory in ["queue/status", "queue/wanted", "queue/pending"] {
            let listed = self.store.list(directory).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "what lost workers have left stays");
                Vec::new()
            });
            let left = listed.into_iter().map(|file| format!("{directory}/{}", file.name)).filter(|path| files.contains(path));
            let deletes = futures_util::stream::iter(left).for_each_concurrent(TOLD_AT_ONCE, |path| async move {
                if let Err(error) = self.store.delete(&path).await {
                    tracing::debug!(%error, "what a lost worker has left stays");
                }
            });
            deletes.await;
        }
    }
}
