//! Operations go to workers of a running cluster, which run the class `file_sync`.
//!
//! ```text
//!   operations ──► batches ──► a worker with a free slot ──start task──► executor there
//!                     ▲                                   ◄──wait────── what was done, what failed, what is given back
//!                     └── next attempt, once the effects of the one before are impossible
//! ```
//!
//! Nobody looks at a storage to find work, so no batch waits for somebody to look, and idle workers make no calls of it. Whether a batch was begun is decided by its task: the
//! id of the task is that of the attempt, and a worker starts it once.

mod sending;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nkcluster::cluster::{CallOptions, Cluster, NodesReply};
use nkcluster::job::{JobClass as _, TypedCalls as _};
use nkcluster::types::{NodeId, NodeStatus, Selector, TaskId};
use nkcluster::{Error, ErrorCode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::sending::Sending;
pub(super) use self::sending::task_id;
use super::carrier::{Failed, Outcome, Sent, Sink, carrier};
use super::control::Control;
use super::ledger::Ledger;
use super::tries::{Carrying, Journey, Told, Way};
use crate::attempt::{Attempt, RunId};
use crate::class::{BatchEnd, Command, FileSync};
use crate::fence::{self, FenceStrength};
use crate::operation::Operation;
use crate::options::{Audience, OptionsJson, Rate, with_rate};
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
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it waits for the end of a batch before it tells its numbers.
pub(super) const WAIT: Duration = Duration::from_millis(500);
/// Silence of a worker that has a batch, after which the batch is taken from it.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a worker may take to hear that nothing of a batch is wanted any more.
pub(super) const ABANDON_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest that one operation of a worker whose effects cannot be fenced may take.
pub(super) const LONGEST_OPERATION: Duration = Duration::from_secs(300);
/// Times that the effects of a lost attempt are tried to be fenced before its batch has failed.
pub(super) const FENCE_TRIES_MAX: u32 = 20;
/// Pause before a worker that refused is asked again.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How often the cluster is asked who is there.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// The workers of a cluster that a selector names.
#[derive(Clone, Debug)]
pub struct Workers {
    cluster: Cluster,
    selector: Selector,
    /// How long a run waits for one.
    patience: Option<Duration>,
    persistent: Option<Persistent>,
}

/// Keeps what is known of a life where the next one finds it, before anything of that can have effects.
pub(crate) type Keep = Arc<dyn Fn(RunId) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What a run needs that may be taken over.
#[derive(Clone)]
pub(crate) struct Persistent {
    pub(crate) ledger: Ledger,
    pub(crate) keep: Keep,
}

impl std::fmt::Debug for Persistent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Persistent").finish_non_exhaustive()
    }
}

impl Workers {
    /// Those that are ready and run the class.
    pub fn new(cluster: Cluster, selector: Selector) -> Self {
        Self { cluster, selector, patience: None, persistent: None }
    }

    /// The same for a run that may be taken over.
    pub(crate) fn persistent(self, persistent: Persistent) -> Self {
        Self { persistent: Some(persistent), ..self }
    }
}

impl Way for Workers {
    fn start<'a>(&'a self, journey: Journey<'a>) -> BoxFuture<'a, Result<Carrying, String>> {
        async move {
            let run = RunId::from_random(rand::random());
            let ledger = self.persistent.as_ref().map(|persistent| persistent.ledger.clone()).unwrap_or_default();
            ledger.open(run, journey.changed.clone(), journey.firm);
            if let Some(Persistent { keep, .. }) = &self.persistent {
                keep(run).await?;
            }
            for text in &journey.changed {
                let remote = journey.remotes.open(text).map_err(|error| error.to_string())?;
                let strength = fence::prepare(&remote, run).await.map_err(|error| error.to_string())?;
                if strength < journey.firm {
                    let what = format!("{remote} cannot refuse what a worker that was given up still does; its batches are offered again only after {LONGEST_OPERATION:?}");
                    let _ = journey.told.send(Told::Notice(what)).await;
                }
            }
            let patience = self.patience.or(journey.options.no_worker_timeout.duration()).unwrap_or(Duration::MAX);
            let dispatcher = Dispatcher {
                cluster: self.cluster.clone(),
                selector: self.selector.clone(),
                patience,
                run,
                ledger,
                keep: self.persistent.as_ref().map(|persistent| persistent.keep.clone()),
                kept: Arc::default(),
                options: journey.options.to_json(Audience::Worker),
                batch_files: (journey.options.cluster_batch_files as usize).min(BATCH_FILES_MAX),
                batch_bytes: journey.options.cluster_batch_size.bytes().unwrap_or(u64::MAX).min(BATCH_BYTES_MAX),
                remotes: journey.remotes.clone(),
                changed: journey.changed.clone(),
                control: journey.control.clone(),
                told: journey.told.clone(),
                workers: BTreeMap::new(),
                waiting: VecDeque::new(),
                resting: Vec::new(),
                firm: journey.firm,
                held: Arc::default(),
                looks: JoinSet::new(),
                refused: None,
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
    /// Its attempt was lost, and could not be fenced yet: so often it was tried.
    unfenced: u32,
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
    ledger: Ledger,
    keep: Option<Keep>,
    /// Workers of which is kept that they have batches.
    kept: Arc<Mutex<BTreeSet<NodeId>>>,
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
    /// Parcels that wait for a time: until what a lost worker may still do is over, or until their attempt can be fenced.
    resting: Vec<(Instant, Parcel)>,
    collected: Vec<Operation>,
    collected_bytes: u64,
    next_batch: u64,
    firm: FenceStrength,
    /// Batches that workers have, with their tasks.
    held: Arc<Mutex<BTreeMap<Attempt, (NodeId, TaskId)>>>,
    looks: JoinSet<nkcluster::Result<NodesReply>>,
    /// Since when everything that was sent was refused, and why the last time.
    refused: Option<(Instant, String)>,
    running: JoinSet<(NodeId, Parcel, Verdict)>,
    /// Since when no worker can take anything.
    alone_since: Option<Instant>,
}

impl Dispatcher {
    async fn run(mut self, mut sink: Sink) -> Result<(), String> {
        let teller = sink.teller();
        let (cancelling, leaving) = (self.control.cancelling().clone(), self.control.leaving().clone());
        let mut look = tokio::time::interval(LOOK_PAUSE);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_complete = false;
        loop {
            self.wake_up(&teller).await;
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
                // Whoever goes on with the run ends what is under way.
                () = leaving.cancelled() => {
                    self.running.shutdown().await;
                    return Err("the run goes on elsewhere".to_owned());
                }
                Some(ended) = self.running.join_next() => match ended {
                    Ok((worker, parcel, verdict)) => self.hear(&worker, parcel, verdict, &teller).await,
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                },
                _ = look.tick() => {
                    if self.looks.is_empty() {
                        let (cluster, selector) = (self.cluster.clone(), self.selector.clone());
                        self.looks.spawn(async move { cluster.nodes(Some(&selector), CALL_TIMEOUT).await });
                    }
                }
                Some(Ok(looked)) = self.looks.join_next() => if let Err(why) = self.look(looked) {
                    self.give_up().await;
                    return Err(why);
                },
                () = rested(self.resting.iter().map(|(until, _)| *until).min()) => {}
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
        self.waiting.is_empty() && self.resting.is_empty() && self.running.is_empty() && self.collected.is_empty()
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
        self.waiting.push_back(Parcel { attempt, inputs: std::mem::take(&mut self.collected).into(), unfenced: 0 });
    }

    /// Parcels that have rested go on.
    async fn wake_up(&mut self, teller: &mpsc::Sender<Outcome>) {
        let now = Instant::now();
        let (awake, resting) = std::mem::take(&mut self.resting).into_iter().partition(|(until, _)| *until <= now);
        self.resting = resting;
        let awake: Vec<(Instant, Parcel)> = awake;
        for (_, parcel) in awake {
            match parcel.unfenced {
                0 => self.waiting.push_front(parcel),
                _ => self.offer_again(parcel, "its worker was lost", teller).await,
            }
        }
    }

    /// Learns who is there; an error if nobody was for too long.
    fn look(&mut self, looked: nkcluster::Result<NodesReply>) -> Result<(), String> {
        let is_silent = looked.is_err();
        match looked {
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
        // Whoever has a batch and answers is there, whatever its status.
        let is_held = !lock(&self.held).is_empty();
        if is_held {
            self.refused = None;
        }
        if let Some((since, why)) = &self.refused
            && since.elapsed() >= self.patience
        {
            return Err(format!("no worker took a batch for {:?}; the last one refused: {why}", self.patience));
        }
        let is_alone = !is_held && (is_silent || !self.workers.values().any(|worker| worker.is_there && worker.useless.is_none()));
        if !is_alone || self.is_idle() {
            self.alone_since = None;
            let refused = self.refused.as_ref().filter(|_| !self.is_idle());
            self.control.wait_for(refused.map(|(_, why)| format!("no worker takes a batch; the last one refused: {why}")));
            return Ok(());
        }
        let since = *self.alone_since.get_or_insert_with(Instant::now);
        let (what, why) = match is_silent {
            true => ("no control node answered".to_owned(), None),
            false => {
                let useless = self.workers.iter().find_map(|(id, worker)| worker.useless.as_ref().map(|why| format!("; {id}: {why}")));
                (format!("no ready worker that runs `{}` matches `{}`", FileSync::NAME, self.selector), useless)
            }
        };
        let why = why.unwrap_or_default();
        if since.elapsed() >= self.patience {
            return Err(format!("{what} for {:?}{why}", self.patience));
        }
        self.control.wait_for(Some(what + &why));
        Ok(())
    }

    /// Sends what waits to whoever is free, those with the fewest batches first.
    fn dispatch(&mut self) {
        if self.control.gate().is_closed() {
            return;
        }
        let now = Instant::now();
        while !self.waiting.is_empty() {
            let free = self.workers.iter_mut().filter(|(_, worker)| worker.is_free(now)).min_by_key(|(_, worker)| worker.busy);
            let Some((id, worker)) = free else { return };
            let Some(parcel) = self.waiting.pop_front() else { return };
            worker.busy += 1;
            // Whoever steers may have set another limit since the run began.
            let config = match self.control.bandwidth() {
                Some(limit) => with_rate(&self.options.config, Rate::from_bytes_per_second(limit)),
                None => self.options.config.clone(),
            };
            let sending = Sending {
                cluster: self.cluster.clone(),
                node: id.clone(),
                control: self.control.clone(),
                batch: Batch { config, filter: self.options.filter.clone(), inputs: parcel.inputs.to_vec(), note: BatchNote::default() },
                attempt: parcel.attempt,
                held: self.held.clone(),
                ledger: self.ledger.clone(),
                keep: self.keep.clone(),
                kept: self.kept.clone(),
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
        lock(&self.held).remove(&parcel.attempt);
        match verdict {
            Verdict::Ended(end) => self.count(id, parcel, end, teller).await,
            Verdict::Refused(error) => {
                self.refused.get_or_insert_with(|| (Instant::now(), String::new())).1 = format!("{id}: {}", error.message());
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
        // What a worker says is held against what it was given: nothing may vanish, and nothing come that was not asked for.
        let told = end.done + end.failures.len() as u64 + end.rest.len() as u64;
        if told != parcel.inputs.len() as u64 || !end.rest.iter().all(|operation| parcel.inputs.contains(operation)) {
            const WHY: &str = "its result does not fit its batch";
            if let Some(worker) = self.workers.get_mut(id)
                && worker.useless.replace(WHY.to_owned()).is_none()
            {
                let _ = self.told.send(Told::Notice(format!("worker {id} is not used: {WHY}"))).await;
            }
            self.control.done(id.as_str(), Some(parcel.attempt.batch), &StatsReport::default());
            return self.offer_again(parcel, WHY, teller).await;
        }
        self.refused = None;
        let BatchEnd { done, failures, rest, stats } = end;
        let counted = self.control.stats();
        let amounts = [
            (Counter::Bytes, stats.bytes),
            (Counter::Transfers, stats.transfers),
            (Counter::Deletes, stats.deletes),
            (Counter::Renames, stats.renames),
            (Counter::ServerSideCopies, stats.server_side_copies),
            (Counter::ServerSideCopyBytes, stats.server_side_copy_bytes),
            (Counter::ServerSideMoves, stats.server_side_moves),
            (Counter::ServerSideMoveBytes, stats.server_side_move_bytes),
        ];
        self.ledger.count(self.run, parcel.attempt.batch, || amounts.iter().for_each(|(counter, amount)| counted.add(*counter, *amount)));
        self.control.done(id.as_str(), Some(parcel.attempt.batch), &StatsReport { transferring: Vec::new(), ..stats });
        for failure in failures {
            counted.error(&failure.error, failure.is_retryable());
            self.tell_failure(failure, teller).await;
        }
        tracing::debug!(batch = %parcel.attempt, worker = %id, done, given_back = rest.len(), "a batch has ended");
        if !rest.is_empty() {
            let attempt = Attempt { run: self.run, batch: self.next_batch, attempt: 0 };
            self.next_batch += 1;
            self.waiting.push_front(Parcel { attempt, inputs: rest.into(), unfenced: 0 });
        }
    }

    async fn tell_failure(&self, failure: Failure, teller: &mpsc::Sender<Outcome>) {
        let path = failure.file().to_owned();
        // The run hears until it is over.
        let failed = Failed { is_retryable: failure.is_retryable(), error: failure.error };
        let _ = teller.send(Outcome { path, failure: Some(failed) }).await;
    }

    /// Makes the effects of an attempt impossible, and offers what it was for again.
    async fn offer_again(&mut self, parcel: Parcel, why: &str, teller: &mpsc::Sender<Outcome>) {
        let revoked = self.revoke(parcel.attempt).await;
        let failed = match revoked {
            Ok(strength) if parcel.attempt.attempt + 1 < ATTEMPTS_MAX => {
                let attempt = Attempt { attempt: parcel.attempt.attempt + 1, ..parcel.attempt };
                let next = Parcel { attempt, unfenced: 0, ..parcel };
                match strength >= self.firm {
                    true => self.waiting.push_front(next),
                    // What the lost worker had begun must be over first.
                    false => self.resting.push((Instant::now() + LONGEST_OPERATION, next)),
                }
                return;
            }
            Ok(_) => format!("{ATTEMPTS_MAX} workers were lost with it, the last one: {why}"),
            Err(error) if parcel.unfenced < FENCE_TRIES_MAX => {
                tracing::warn!(batch = %parcel.attempt, %error, "the effects of a lost attempt cannot be fenced yet");
                let unfenced = parcel.unfenced + 1;
                return self.resting.push((Instant::now() + REFUSED_PAUSE, Parcel { unfenced, ..parcel }));
            }
            Err(error) => format!("it was lost with its worker, and what it may still do cannot be prevented: {error}"),
        };
        for operation in parcel.inputs.iter() {
            self.control.stats().error(&failed, true);
            self.tell_failure(Failure::of(operation, failed.clone()), teller).await;
        }
    }

    async fn revoke(&self, attempt: Attempt) -> Result<FenceStrength, String> {
        let mut weakest = FenceStrength::Staged;
        for text in &self.changed {
            let remote = self.remotes.open(text).map_err(|error| error.to_string())?;
            weakest = weakest.min(fence::revoke(&remote, attempt).await.map_err(|error| error.to_string())?);
        }
        Ok(weakest)
    }

    /// What is under way at workers ends.
    async fn give_up(&mut self) {
        self.running.shutdown().await;
        let held: Vec<_> = std::mem::take(&mut *lock(&self.held)).into_values().collect();
        let abandoned = held.iter().map(|(node, task)| async {
            // One that cannot be reached is fenced as far as the storage can.
            let _ = self.cluster.tell::<FileSync>(node, task, &Command::Abandon, CallOptions::timeout(ABANDON_TIMEOUT)).await;
        });
        futures_util::future::join_all(abandoned).await;
        self.retire().await;
    }

    /// Nothing of the run takes effect any more, and nothing is left of it.
    async fn retire(&self) {
        let mut is_retired = true;
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
                    is_retired = false;
                }
            }
        }
        if is_retired {
            self.ledger.close(self.run);
        }
    }
}

impl WorkerState {
    fn is_free(&self, now: Instant) -> bool {
        self.is_there && self.useless.is_none() && self.busy < SLOTS && self.rests_until.is_none_or(|until| until <= now)
    }
}

/// Resolves at a time, if there is one.
async fn rested(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
