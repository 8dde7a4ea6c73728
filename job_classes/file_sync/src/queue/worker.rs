//! A worker: claims batches, has them carried out, and tells what became of them.

mod board;
mod claim;
mod hold;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::queue::name::{JobName, WorkerId};
use crate::queue::pacing::{Pacing, random};
use crate::queue::status::WorkerStatus;
use crate::queue::store::{Content, Listed, SharedStore, StoreError, marker_of};
use crate::queue::work::{Execute, Work};

use board::Board;
use claim::Claim;
use hold::{Hold, HoldEnd};

/// Of the oldest batches so many are taken into account; among them each worker begins elsewhere, so that not all race for one.
const CLAIM_WINDOW: usize = 16;
/// Longest note of a job that tells workers to stop.
const QUIT_BYTES_MAX: u64 = 64 << 10;
/// Batches that others were quicker with and that are remembered, so that they are not tried again where files cannot be moved.
const LOST_MAX: usize = 4_096;
/// Statuses of a worker without work come so much less often.
const IDLE_STATUS: u32 = 3;

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Its name in the queue.
    pub id: WorkerId,
    /// Batches that it has at one time.
    pub batches: usize,
    /// How it learns that there is work.
    pub waits: Waits,
    /// Time between two statuses while it has work.
    pub status_interval: Duration,
    /// Time between two looks whether a batch was taken from it.
    pub claim_check_interval: Duration,
    /// Inputs that must wait in a batch for a part of it to be given to a worker without work.
    pub split_inputs_min: usize,
    /// Time without any work after which it stops.
    pub idle_timeout: Option<Duration>,
}

/// How a worker learns that there is work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// It looks, at most this long after it looked last.
    Looks(Duration),
    /// It is [woken](WorkerHandle::wake), and without work it makes no calls of the storage. Where nothing makes claims exclusive, batches are only for workers that
    /// tell that they live; there it tells that, and nothing else.
    IsWoken,
}

impl WorkerOptions {
    /// The defaults, for a worker of this name.
    pub fn new(id: WorkerId) -> Self {
        Self {
            id,
            batches: 2,
            waits: Waits::Looks(Duration::from_secs(1)),
            status_interval: Duration::from_secs(1),
            claim_check_interval: Duration::from_secs(5),
            split_inputs_min: 8,
            idle_timeout: None,
        }
    }
}

/// What happens in a worker. Whoever listens must not wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// It has a batch.
    Claimed(JobName),
    /// Its result is written.
    Finished(JobName),
    /// It was taken away; its effects are void.
    Abandoned(JobName),
    /// A part of it was given away.
    Split {
        /// The batch.
        job: JobName,
        /// The part.
        child: JobName,
        /// Inputs of the part.
        files: usize,
        /// The file in `queue/wanted` of whoever asked for it; none if the worker gives everything back.
        asked: Option<String>,
    },
    /// Something is odd: for people.
    Warning(String),
}

impl WorkerEvent {
    /// Whether people are told it even if they asked for nothing.
    pub fn is_odd(&self) -> bool {
        matches!(self, Self::Abandoned(_) | Self::Warning(_))
    }
}

/// For people.
impl std::fmt::Display for WorkerEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Claimed(job) => write!(f, "batch {job} begins"),
            Self::Finished(job) => write!(f, "batch {job} is done"),
            Self::Abandoned(job) => write!(f, "batch {job} was taken away; what it still does is void"),
            Self::Split { job, child, files, .. } => write!(f, "batch {job} gave {files} files away as {child}"),
            Self::Warning(what) => f.write_str(what),
        }
    }
}

/// Whoever is told what happens.
pub type WorkerListener = Arc<dyn Fn(WorkerEvent) + Send + Sync>;

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerEnd {
    /// It was [stopped](WorkerHandle::stop).
    Stopped,
    /// A controller told it to stop.
    Quit,
    /// It had no work for too long.
    Idle,
}

/// For people.
impl std::fmt::Display for WorkerEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Quit => "the controller told it to stop",
            Self::Idle => "there was no work for too long",
        })
    }
}

/// A worker that is on its way. Dropped, it stops gracefully.
#[derive(Debug)]
pub struct WorkerHandle {
    stop: watch::Sender<bool>,
    wake: Arc<Notify>,
    end: JoinHandle<WorkerEnd>,
}

impl WorkerHandle {
    /// There is work, or there may be a worker without work: look at once. One that finds no work says once more that it wants some.
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Claims nothing more; inputs that nobody has begun go back to the queue, the others are finished.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// What [stops](WorkerHandle::stop) it when it is set, for those who do not have the handle.
    pub fn stopper(&self) -> watch::Sender<bool> {
        self.stop.clone()
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.end.is_finished()
    }

    /// Resolves when it has ended.
    pub async fn ended(self) -> WorkerEnd {
        self.end.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => WorkerEnd::Stopped,
        })
    }

    /// Ends it at once, as if its machine had failed: it tells nobody, and its batches are given to others when their leases expire.
    pub fn kill(self) {
        self.end.abort();
    }
}

/// Starts a worker.
pub fn run_worker(store: SharedStore, execute: Arc<dyn Execute>, options: WorkerOptions, listener: WorkerListener) -> WorkerHandle {
    let (stop, stopped) = watch::channel(false);
    let wake = Arc::new(Notify::new());
    let life = format!("{:016x}", random());
    let board = Arc::new(Board::new(options.id.clone(), life));
    let longest = match options.waits {
        Waits::Looks(longest) => longest,
        Waits::IsWoken => options.status_interval,
    };
    let worker = Worker {
        store,
        execute,
        pacing: Pacing::new(longest),
        options,
        listener,
        board,
        held: BTreeMap::new(),
        tasks: JoinSet::new(),
        lost: std::collections::BTreeSet::new(),
        old_quit: None,
        has_looked: false,
        has_failed: false,
        wants: false,
        wants_again: false,
        refused: false,
    };
    let end = tokio::spawn(worker.run(stopped, Arc::clone(&wake)));
    WorkerHandle { stop, wake, end }
}

/// Where a worker is told to stop.
pub(crate) fn quit_path(worker: &WorkerId) -> String {
    format!("queue/pending/QUIT-{worker}.json")
}

/// What it is told: which life of the worker is meant, so that a later one of the same name goes on.
pub(crate) fn quit_note(life: Option<&str>) -> Vec<u8> {
    match life {
        Some(life) => crate::queue::batch::indented(&serde_json::json!({ "_nkcluster": { "life": life } })),
        None => b"{}".to_vec(),
    }
}

struct Worker {
    store: SharedStore,
    execute: Arc<dyn Execute>,
    options: WorkerOptions,
    listener: WorkerListener,
    board: Arc<Board>,
    held: BTreeMap<JobName, Held>,
    tasks: JoinSet<(JobName, HoldEnd)>,
    /// Others have them; where files are not moved they are still seen.
    lost: std::collections::BTreeSet<JobName>,
    /// The marker of a `QUIT.json` that was there before this worker. rclone never deletes them.
    old_quit: Option<u64>,
    has_looked: bool,
    /// The last look failed, so there may be work.
    has_failed: bool,
    /// It has said that it has no work.
    wants: bool,
    /// Whoever gave it work took that away, and another may have been quicker.
    wants_again: bool,
    /// It was told that jobs of rclone are not taken here.
    refused: bool,
    pacing: Pacing,
}

#[derive(Debug)]
struct Held {
    work: Arc<Work>,
    orders: mpsc::Sender<hold::Order>,
}

/// What a look has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Claimed,
    Nothing,
    Quit,
}

impl Worker {
    async fn run(mut self, mut stopped: watch::Receiver<bool>, wake: Arc<Notify>) -> WorkerEnd {
        let writer = self.start_status();
        let (mut look, mut busy) = (Instant::now(), Instant::now());
        let mut give = Instant::now() + self.options.status_interval;
        let end = loop {
            if *stopped.borrow() || stopped.has_changed().is_err() {
                break WorkerEnd::Stopped;
            }
            if Instant::now() >= look {
                let looked = self.look().await;
                self.has_failed = looked.is_err();
                match looked {
                    Ok(Look::Quit) => break WorkerEnd::Quit,
                    Ok(Look::Claimed) => self.pacing.hurry(),
                    Ok(Look::Nothing) => {}
                    Err(error) => (self.listener)(WorkerEvent::Warning(error.what)),
                }
                look = Instant::now() + self.pacing.next(random());
            }
            if Instant::now() >= give {
                self.give_to_others().await;
                give = Instant::now() + self.options.status_interval;
            }
            if !self.held.is_empty() {
                busy = Instant::now();
            }
            let idle = self.options.idle_timeout.filter(|_| self.held.is_empty());
            if idle.is_some_and(|limit| busy.elapsed() >= limit) {
                break WorkerEnd::Idle;
            }
            // Without work, a worker that is woken waits for that and nothing else.
            let sleeps = self.held.is_empty()
                && self.options.waits == Waits::IsWoken
                && self.has_looked
                && !self.has_failed
                && self.pacing.is_slow();
            tokio::select! {
                biased;
                _ = stopped.changed() => {}
                () = wake.notified() => {
                    self.wants_again = true;
                    (look, give) = (Instant::now(), Instant::now());
                }
                () = tokio::time::sleep_until(look), if !sleeps => {}
                () = tokio::time::sleep_until(give), if !self.held.is_empty() => {}
                () = tokio::time::sleep_until(busy + idle.unwrap_or_default()), if idle.is_some() => {}
                Some(done) = self.tasks.join_next() => {
                    self.finished(done);
                    self.pacing.hurry();
                    look = Instant::now();
                }
            }
        };
        self.stop().await;
        writer.stop(&*self.store, &self.options.id).await;
        end
    }

    fn start_status(&self) -> board::Writer {
        let idle = match self.options.waits {
            Waits::Looks(_) => Some(self.options.status_interval * IDLE_STATUS),
            Waits::IsWoken if self.store.honours().creates_once => None,
            Waits::IsWoken => Some(self.options.status_interval * IDLE_STATUS),
        };
        board::Writer::start(Arc::clone(&self.store), Arc::clone(&self.board), self.options.status_interval, idle)
    }

    /// Looks for work, and takes as much as there is room for.
    async fn look(&mut self) -> Result<Look, StoreError> {
        if self.held.len() >= self.options.batches {
            return Ok(Look::Nothing);
        }
        let listed = self.store.list("queue/pending").await?;
        let quit = listed.iter().find(|file| file.name == "QUIT.json").map(|file| file.marker);
        if !self.has_looked {
            (self.has_looked, self.old_quit) = (true, quit);
        }
        let jobs: Vec<_> = listed.iter().filter_map(|file| JobName::parse(&file.name)).filter(|job| !self.lost.contains(job)).collect();
        let mut claimed = Look::Nothing;
        for window in jobs.chunks(CLAIM_WINDOW) {
            let start = marker_of(&(self.options.id.as_str(), jobs.len())) as usize % window.len();
            for job in window[start..].iter().chain(&window[..start]) {
                if self.held.len() >= self.options.batches {
                    return Ok(claimed);
                }
                if self.claim(job).await? {
                    claimed = Look::Claimed;
                }
            }
        }
        if claimed == Look::Claimed || !self.held.is_empty() {
            return Ok(claimed);
        }
        if self.is_told_to_quit(&listed, quit).await? {
            return Ok(Look::Quit);
        }
        if !self.wants || self.wants_again {
            self.store.replace(&self.wanted_path(), bytes::Bytes::from_static(b"{}")).await?;
            (self.wants, self.wants_again) = (true, false);
        }
        Ok(Look::Nothing)
    }

    fn wanted_path(&self) -> String {
        format!("queue/wanted/{}", self.options.id)
    }

    /// Tries to have a batch; false if it is another's.
    async fn claim(&mut self, job: &JobName) -> Result<bool, StoreError> {
        let claim = claim::claim(&self.store, job, &self.options.id).await?;
        let hold = match claim {
            Claim::Ours(attempt, batch) => {
                let work = Arc::new(Work::new(attempt, batch));
                let (orders, receiver) = mpsc::channel(1);
                self.held.insert(job.clone(), Held { work: Arc::clone(&work), orders });
                self.board.begin(job, Arc::clone(&work));
                let hold = Hold {
                    store: Arc::clone(&self.store),
                    listener: Arc::clone(&self.listener),
                    job: job.clone(),
                    worker: self.options.id.clone(),
                    work,
                    records: 1,
                    check_interval: self.options.claim_check_interval,
                };
                (self.listener)(WorkerEvent::Claimed(job.clone()));
                let execution = self.execute.execute(Arc::clone(&hold.work));
                self.tasks.spawn(hold.run(execution, receiver));
                true
            }
            Claim::Broken(why) => {
                (self.listener)(WorkerEvent::Warning(format!("{job} is no batch: {why}")));
                // It ends with an error; nobody could do it.
                hold::write_result(&self.store, job, crate::queue::BatchResult::Failed(crate::queue::Failure::of_batch(why))).await?;
                false
            }
            Claim::Foreign => {
                if !std::mem::replace(&mut self.refused, true) {
                    let what =
                        format!("{job} is a job of rclone; this storage cannot rename files, so nobody can be sure to have it alone");
                    (self.listener)(WorkerEvent::Warning(what));
                }
                self.lose(job);
                false
            }
            Claim::Others => {
                self.lose(job);
                false
            }
        };
        if hold && std::mem::take(&mut self.wants) {
            self.store.delete(&self.wanted_path()).await?;
        }
        Ok(hold)
    }

    fn lose(&mut self, job: &JobName) {
        if self.store.honours().renames {
            return;
        }
        self.lost.insert(job.clone());
        if self.lost.len() > LOST_MAX {
            self.lost.pop_first();
        }
    }

    /// Whether there is a job that tells this worker to stop. One for it alone is deleted; rclone's, which is for all, stays, and the next worker must not obey it.
    async fn is_told_to_quit(&self, listed: &[Listed], quit: Option<u64>) -> Result<bool, StoreError> {
        let path = quit_path(&self.options.id);
        if listed.iter().any(|file| path.ends_with(&format!("/{}", file.name))) {
            let note = match self.store.read(&path, QUIT_BYTES_MAX).await? {
                Content::Bytes(note) => serde_json::from_slice(&note).unwrap_or(Value::Null),
                _ => Value::Null,
            };
            self.store.delete(&path).await?;
            let life = note.pointer("/_nkcluster/life").and_then(Value::as_str);
            return Ok(life.is_none_or(|life| life == self.board.life()));
        }
        Ok(quit.is_some() && quit != self.old_quit)
    }

    /// If others have no work and nothing waits, one of them gets a part of the largest batch.
    async fn give_to_others(&mut self) {
        let largest = self.held.iter().map(|(job, held)| (held.work.waiting(), job)).max();
        let Some((_, job)) = largest.filter(|(waiting, _)| *waiting >= self.options.split_inputs_min.max(2)) else { return };
        let job = job.clone();
        let give = async {
            let wanted = self.store.list("queue/wanted").await?;
            let mut others = wanted.iter().filter(|other| other.name != self.options.id.as_str());
            let Some(other) = others.next() else { return Ok(()) };
            if self.store.list("queue/pending").await?.iter().any(|file| JobName::parse(&file.name).is_some()) {
                return Ok(());
            }
            // Whoever is served asks again if it comes too late. The channel holds one order, so a batch is not split twice before anybody looked.
            self.store.delete(&format!("queue/wanted/{}", other.name)).await?;
            let _ = self.held[&job].orders.try_send(hold::Order::Split(other.name.clone()));
            Ok::<_, StoreError>(())
        };
        if let Err(error) = give.await {
            tracing::debug!(%error, "nothing is given to others");
        }
    }

    fn finished(&mut self, done: Result<(JobName, HoldEnd), tokio::task::JoinError>) {
        let Ok((job, end)) = done else {
            // A task of ours panicked: its batch is not in the status any more, and goes to another.
            let running: Vec<_> = self.held.keys().filter(|job| self.held[*job].orders.is_closed()).cloned().collect();
            for job in running {
                self.held.remove(&job);
                self.board.end(&job, false);
                (self.listener)(WorkerEvent::Abandoned(job));
            }
            return;
        };
        self.held.remove(&job);
        self.board.end(&job, end == HoldEnd::Finished);
        (self.listener)(match end {
            HoldEnd::Finished => WorkerEvent::Finished(job),
            HoldEnd::Abandoned => WorkerEvent::Abandoned(job),
        });
    }

    async fn stop(&mut self) {
        for held in self.held.values() {
            // A task that is over needs no order.
            let _ = held.orders.send(hold::Order::Stop).await;
        }
        while let Some(done) = self.tasks.join_next().await {
            self.finished(done);
        }
        if self.wants {
            let _ = self.store.delete(&self.wanted_path()).await;
        }
        tracing::debug!(path = WorkerStatus::path(&self.options.id), "the worker stops");
    }
}
