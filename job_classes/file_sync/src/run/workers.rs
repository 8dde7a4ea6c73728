//! Operations go to workers of a running cluster, which run the class `file_sync`.
//!
//! ```text
//!   operations ──► batches ──► a worker with a free slot ──start task──► executor there
//!                     ▲                                   ◄──wait────── what was done, what failed, what is given back
//!                     └── next attempt, once the effects of the one before are impossible
//! ```
//!
//! Nobody looks at a storage to find work, so a batch begins within milliseconds, and idle workers cost nothing. Whether a batch was begun is decided by its task: the
//! id of the task is that of the attempt, and a worker starts it once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nkcluster::cluster::{CallOptions, Cluster, Retry};
use nkcluster::job::{JobClass as _, TypedCalls as _};
use nkcluster::types::{NodeId, NodeStatus, Selector, TaskId};
use nkcluster::{Error, ErrorCode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::carrier::{Failed, Outcome, Sent, Sink, carrier};
use super::control::Control;
use super::tries::{Carrying, Journey, Told, Way};
use crate::attempt::{Attempt, RunId};
use crate::class::{BatchEnd, Command, FileSync, Reply, Request, Spec};
use crate::fence;
use crate::operation::Operation;
use crate::options::{Audience, OptionsJson};
use crate::queue::{Batch, BatchNote, Failure};
use crate::remote::Remotes;
use crate::stats::{Counter, StatsReport};

/// Batches that a worker has at one time: while it works on one, the next is there.
const SLOTS: usize = 2;
/// Files of a batch; fewer than through a queue, as sending one costs little, and many small ones share the end of a run better.
const BATCH_FILES_MAX: usize = 256;
/// Bytes of a batch, unless one file has more.
const BATCH_BYTES_MAX: u64 = 256 << 20;
/// Batches that wait for a worker; then planning waits.
const WAITING_MAX: usize = 64;
/// Attempts at one batch, of which each lost its worker, before the batch has failed: it may be what kills them.
const ATTEMPTS_MAX: u32 = 5;
/// How long a worker may take to answer anything but a batch.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it waits for the end of a batch before it tells its numbers.
const WAIT: Duration = Duration::from_millis(500);
/// Silence of a worker that has a batch, after which the batch is taken from it.
const SILENCE: Duration = Duration::from_secs(15);
/// Pause before a worker that refused is asked again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How often the cluster is asked who is there.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// The workers of a cluster that a selector names.
#[derive(Clone, Debug)]
pub struct Workers {
    cluster: Cluster,
    selector: Selector,
    /// How long a run waits for one.
    patience: Option<Duration>,
}

impl Workers {
    /// Those that are ready and run the class.
    pub fn new(cluster: Cluster, selector: Selector) -> Self {
        Self { cluster, selector, patience: None }
    }
}

impl Way for Workers {
    fn start<'a>(&'a self, journey: Journey<'a>) -> BoxFuture<'a, Result<Carrying, String>> {
        async move {
            let run = RunId::from_random(rand::random());
            for text in &journey.changed {
                let remote = journey.remotes.open(text).map_err(|error| error.to_string())?;
                fence::prepare(&remote, run).await.map_err(|error| error.to_string())?;
            }
            let patience = self.patience.or(journey.options.no_worker_timeout.duration()).unwrap_or(Duration::MAX);
            let dispatcher = Dispatcher {
                cluster: self.cluster.clone(),
                selector: self.selector.clone(),
                patience,
                run,
                options: journey.options.to_json(Audience::Worker),
                batch_files: (journey.options.cluster_batch_files as usize).min(BATCH_FILES_MAX),
                batch_bytes: journey.options.cluster_batch_size.bytes().unwrap_or(u64::MAX).min(BATCH_BYTES_MAX),
                remotes: journey.remotes.clone(),
                changed: journey.changed.clone(),
                control: journey.control.clone(),
                told: journey.told.clone(),
                workers: BTreeMap::new(),
                waiting: VecDeque::new(),
                settling: None,
                collected: Vec::new(),
                collected_bytes: 0,
                next_batch: 0,
                running: JoinSet::new(),
                alone_since: None,
            };
            Ok(Carrying(carrier(move |sink| dispatcher.run(sink))))
        }
        .boxed()
    }
}

/// A batch on its way.
#[derive(Clone, Debug)]
struct Parcel {
    attempt: Attempt,
    inputs: Arc<[Operation]>,
}

/// What became of a parcel at a worker.
enum Verdict {
    /// It was carried out, as far as it says.
    Ended(BatchEnd),
    /// The worker did not take it; nothing was done.
    Refused(Error),
    /// Nobody knows what was done; its effects must be made impossible first.
    Lost(String),
}

#[derive(Debug, Default)]
struct WorkerState {
    busy: usize,
    /// It is not asked before.
    rests_until: Option<Instant>,
    /// It will never take anything: why.
    useless: Option<String>,
    is_there: bool,
}

struct Dispatcher {
    cluster: Cluster,
    selector: Selector,
    patience: Duration,
    run: RunId,
    options: OptionsJson,
    batch_files: usize,
    batch_bytes: u64,
    remotes: Arc<Remotes>,
    changed: Vec<String>,
    control: Control,
    told: mpsc::Sender<Told>,
    workers: BTreeMap<NodeId, WorkerState>,
    waiting: VecDeque<Parcel>,
    settling: Option<oneshot::Sender<()>>,
    collected: Vec<Operation>,
    collected_bytes: u64,
    next_batch: u64,
    running: JoinSet<(NodeId, Parcel, Verdict)>,
    /// Since when no worker can take anything.
    alone_since: Option<Instant>,
}

impl Dispatcher {
    async fn run(mut self, mut sink: Sink) -> Result<(), String> {
        let teller = sink.teller();
        let cancelling = self.control.cancelling().clone();
        let mut look = tokio::time::interval(LOOK_PAUSE);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_complete = false;
        loop {
            self.dispatch();
            if self.is_idle() {
                if let Some(waiting) = self.settling.take() {
                    // Whoever does not wait any more need not know.
                    let _ = waiting.send(());
                }
                if is_complete {
                    break;
                }
            }
            let has_room = !is_complete && self.settling.is_none() && self.waiting.len() < WAITING_MAX;
            tokio::select! {
                biased;
                () = cancelling.cancelled() => {
                    self.give_up().await;
                    return Err("cancelled".to_owned());
                }
                Some(ended) = self.running.join_next() => match ended {
                    Ok((worker, parcel, verdict)) => self.hear(&worker, parcel, verdict, &teller).await,
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                },
                _ = look.tick() => self.look().await?,
                sent = sink.next(), if has_room => match sent {
                    Some(Sent::Operation(operation)) => self.collect(operation),
                    // So few that waiting for more would only delay them: whoever is free begins.
                    Some(Sent::Flush) if self.waiting.is_empty() => self.pack(),
                    Some(Sent::Flush) => {}
                    Some(Sent::Settle(waiting)) => {
                        self.pack();
                        self.settling = Some(waiting);
                    }
                    None => {
                        self.pack();
                        is_complete = true;
                    }
                },
            }
        }
        self.retire().await;
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.collected.is_empty()
    }

    fn collect(&mut self, operation: Operation) {
        self.collected_bytes = self.collected_bytes.saturating_add(operation.size());
        self.collected.push(operation);
        if self.collected.len() >= self.batch_files || self.collected_bytes >= self.batch_bytes {
            self.pack();
        }
    }

    /// What was collected becomes a batch.
    fn pack(&mut self) {
        if self.collected.is_empty() {
            return;
        }
        let attempt = Attempt { run: self.run, batch: self.next_batch, attempt: 0 };
        self.next_batch += 1;
        self.collected_bytes = 0;
        self.waiting.push_back(Parcel { attempt, inputs: std::mem::take(&mut self.collected).into() });
    }

    /// Asks who is there.
    async fn look(&mut self) -> Result<(), String> {
        match self.cluster.nodes(Some(&self.selector), CALL_TIMEOUT).await {
            Ok(reply) => {
                for worker in self.workers.values_mut() {
                    worker.is_there = false;
                }
                for node in reply.nodes {
                    let runs_it = node.classes.iter().any(|class| class.as_str() == FileSync::NAME);
                    if node.status == NodeStatus::Ready && runs_it {
                        self.workers.entry(node.id).or_default().is_there = true;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the cluster does not tell its nodes"),
        }
        let is_alone = !self.workers.values().any(|worker| worker.is_there && worker.useless.is_none());
        match (is_alone && !self.is_idle(), self.alone_since) {
            (false, _) => self.alone_since = None,
            (true, None) => self.alone_since = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() < self.patience => {}
            (true, Some(_)) => {
                let why = self.workers.iter().find_map(|(id, worker)| worker.useless.as_ref().map(|why| format!("; {id}: {why}")));
                let what = format!("no ready worker that runs `{}` matches `{}` for {:?}", FileSync::NAME, self.selector, self.patience);
                return Err(what + &why.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Sends what waits to whoever is free, those with the fewest batches first.
    fn dispatch(&mut self) {
        let now = Instant::now();
        while !self.waiting.is_empty() {
            let free = self.workers.iter_mut().filter(|(_, worker)| worker.is_free(now)).min_by_key(|(_, worker)| worker.busy);
            let Some((id, worker)) = free else { return };
            let Some(parcel) = self.waiting.pop_front() else { return };
            worker.busy += 1;
            let sending = Sending {
                cluster: self.cluster.clone(),
                node: id.clone(),
                control: self.control.clone(),
                batch: Batch {
                    config: self.options.config.clone(),
                    filter: self.options.filter.clone(),
                    inputs: parcel.inputs.to_vec(),
                    note: BatchNote::default(),
                },
                attempt: parcel.attempt,
            };
            self.running.spawn(async move {
                let verdict = sending.carry().await;
                (sending.node, parcel, verdict)
            });
        }
    }

    async fn hear(&mut self, id: &NodeId, parcel: Parcel, verdict: Verdict, teller: &mpsc::Sender<Outcome>) {
        let worker = self.workers.entry(id.clone()).or_default();
        worker.busy = worker.busy.saturating_sub(1);
        match verdict {
            Verdict::Ended(end) => self.count(id, parcel, end, teller).await,
            Verdict::Refused(error) => {
                match error.code() {
                    // Its configuration says so, and will not change meanwhile.
                    ErrorCode::NotAllowed | ErrorCode::UnknownClass | ErrorCode::InvalidPayload => {
                        if worker.useless.is_none() {
                            let _ = self.told.send(Told::Notice(format!("worker {id} is not used: {}", error.message()))).await;
                        }
                        worker.useless = Some(error.message().to_owned());
                    }
                    _ => worker.rests_until = Some(Instant::now() + REFUSED_PAUSE),
                }
                self.waiting.push_front(parcel);
            }
            Verdict::Lost(why) => {
                self.control.done(id.as_str(), Some(parcel.attempt.batch), &StatsReport::default());
                worker.rests_until = Some(Instant::now() + REFUSED_PAUSE);
                let what = format!("batch {} was taken from {id} and is offered again: {why}", parcel.attempt);
                let _ = self.told.send(Told::Notice(what)).await;
                self.offer_again(parcel, &why, teller).await;
            }
        }
    }

    async fn count(&mut self, id: &NodeId, parcel: Parcel, end: BatchEnd, teller: &mpsc::Sender<Outcome>) {
        let BatchEnd { done, failures, rest, stats } = end;
        let counted = self.control.stats();
        for (counter, amount) in [
            (Counter::Bytes, stats.bytes),
            (Counter::Transfers, stats.transfers),
            (Counter::Deletes, stats.deletes),
            (Counter::Renames, stats.renames),
            (Counter::ServerSideCopies, stats.server_side_copies),
            (Counter::ServerSideCopyBytes, stats.server_side_copy_bytes),
            (Counter::ServerSideMoves, stats.server_side_moves),
            (Counter::ServerSideMoveBytes, stats.server_side_move_bytes),
        ] {
            counted.add(counter, amount);
        }
        self.control.done(id.as_str(), Some(parcel.attempt.batch), &StatsReport { transferring: Vec::new(), ..stats });
        for failure in failures {
            counted.error(&failure.error, true);
            self.tell_failure(failure, teller).await;
        }
        tracing::debug!(batch = %parcel.attempt, worker = %id, done, given_back = rest.len(), "a batch has ended");
        if !rest.is_empty() {
            let attempt = Attempt { run: self.run, batch: self.next_batch, attempt: 0 };
            self.next_batch += 1;
            self.waiting.push_front(Parcel { attempt, inputs: rest.into() });
        }
    }

    async fn tell_failure(&self, failure: Failure, teller: &mpsc::Sender<Outcome>) {
        let path = failure.file().to_owned();
        // The run hears until it is over.
        let _ = teller.send(Outcome { path, failure: Some(Failed { error: failure.error, is_retryable: true }) }).await;
    }

    /// Makes the effects of an attempt impossible, and offers what it was for again.
    async fn offer_again(&mut self, parcel: Parcel, why: &str, teller: &mpsc::Sender<Outcome>) {
        let revoked = self.revoke(parcel.attempt).await;
        let failed = match revoked {
            Ok(()) if parcel.attempt.attempt + 1 < ATTEMPTS_MAX => {
                let attempt = Attempt { attempt: parcel.attempt.attempt + 1, ..parcel.attempt };
                return self.waiting.push_front(Parcel { attempt, ..parcel });
            }
            Ok(()) => format!("{ATTEMPTS_MAX} workers were lost with it, the last one: {why}"),
            Err(error) => format!("it was lost with its worker, and what it may still do cannot be prevented: {error}"),
        };
        for operation in parcel.inputs.iter() {
            self.control.stats().error(&failed, true);
            self.tell_failure(Failure::of(operation, failed.clone()), teller).await;
        }
    }

    async fn revoke(&self, attempt: Attempt) -> Result<(), String> {
        for text in &self.changed {
            let remote = self.remotes.open(text).map_err(|error| error.to_string())?;
            fence::revoke(&remote, attempt).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// What is under way at workers ends.
    async fn give_up(&mut self) {
        self.running.shutdown().await;
        self.retire().await;
    }

    /// Nothing of the run takes effect any more, and nothing is left of it.
    async fn retire(&self) {
        for text in &self.changed {
            let Ok(remote) = self.remotes.open(text) else { continue };
            match fence::retire(&remote, self.run).await {
                Ok(kept) => {
                    for path in kept {
                        let what = format!("{remote}: {path} was kept, as it is not what an attempt was to remove");
                        let _ = self.told.send(Told::Notice(what)).await;
                    }
                }
                Err(error) => {
                    let _ = self.told.send(Told::Notice(format!("{remote}: what attempts have left was not removed: {error}"))).await;
                }
            }
        }
    }
}

impl WorkerState {
    fn is_free(&self, now: Instant) -> bool {
        self.is_there && self.useless.is_none() && self.busy < SLOTS && self.rests_until.is_none_or(|until| until <= now)
    }
}

/// One batch at one worker.
struct Sending {
    cluster: Cluster,
    node: NodeId,
    control: Control,
    batch: Batch,
    attempt: Attempt,
}

impl Sending {
    async fn carry(&self) -> Verdict {
        let id = format!("{}.{}.{}", self.attempt.run, self.attempt.batch, self.attempt.attempt);
        let Ok(task) = TaskId::new(&id) else { return Verdict::Lost(format!("{id} is no id of a task")) };
        let Ok(batch) = serde_json::from_slice(&self.batch.to_json()) else { return Verdict::Lost("the batch is no JSON".to_owned()) };
        let spec = Spec::Batch { attempt: self.attempt, batch };
        // Its identity keeps it from being started twice, whichever control node carries it.
        let options = CallOptions { task_id: Some(task.clone()), retry: Retry::UntilDeadline, ..CallOptions::timeout(CALL_TIMEOUT) };
        match self.cluster.start::<FileSync>(&self.node, &spec, options).await {
            Ok(_) => {}
            // An earlier call of ours has started it.
            Err(error) if *error.code() == ErrorCode::AlreadyStarted => {}
            Err(error) if error.may_have_run() => return Verdict::Lost(error.message().to_owned()),
            Err(error) => return Verdict::Refused(error),
        }
        let mut heard = Instant::now();
        loop {
            let request = Request::Wait { attempt: self.attempt, millis: WAIT.as_millis() as u64 };
            match self.cluster.ask::<FileSync>(&self.node, &request, CallOptions::timeout(CALL_TIMEOUT)).await {
                Ok(Reply::Ended(end)) => return Verdict::Ended(*end),
                Ok(Reply::Running { stats }) => {
                    heard = Instant::now();
                    self.control.does(self.node.as_str(), self.attempt.batch, *stats);
                }
                Ok(Reply::Unknown) => return Verdict::Lost("the worker does not know it; it was restarted".to_owned()),
                Err(error) if heard.elapsed() >= SILENCE => {
                    // Should it still be there, it need not go on.
                    let cancelled = self.cluster.tell::<FileSync>(&self.node, &task, &Command::Cancel, CallOptions::timeout(CALL_TIMEOUT));
                    drop(tokio::time::timeout(Duration::from_millis(100), cancelled).await);
                    return Verdict::Lost(error.message().to_owned());
                }
                Err(_) => tokio::time::sleep(WAIT).await,
            }
        }
    }
}
