//! A run: the controller at work.

mod files;
mod survey;
mod terms;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::attempt::{Attempt, RunId};
use crate::operation::Operation;
use crate::queue::batch::{Batch, BatchResult, Failure, FormatError};
use crate::queue::controller::{Action, Controller, Notice, Totals};
use crate::queue::name::{FAMILY, JobName, PLANNED_BATCHES_MAX, WorkerId, planned_of, run_directory};
use crate::queue::pacing::{Pacing, random};
use crate::queue::plan::Plan;
use crate::queue::store::{SharedStore, StoreError};

use files::{Files, FilesError, Log, parse_record_name, read_counted};
pub(crate) use files::{child_batch, counted_path};
use survey::Eyes;
pub use terms::{Cleanup, Fence, Fenced, RunEnd, RunError, RunEvent, RunListener, RunOptions, RunStart};

/// Operations that wait for their turn to be planned; whoever adds more waits.
const PLANNED_MAX: usize = 4_096;
/// Batches that are planned and not written yet, at most. A controller that resumes the run takes so many numbers away from the one before.
const UNWRITTEN_MAX: usize = 32;
/// Batches that are written, read or archived at one time.
const ACTIONS_IN_FLIGHT: usize = 16;
/// Times that files of a run which is over are tried to be cleaned.
const END_TRIES_MAX: u32 = 5;
/// How long a run waits for workers which it has told to stop; one may be in the middle of a large file of another run.
const QUIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait between two of them.
const END_WAIT: Duration = Duration::from_millis(500);

/// What whoever plans says.
#[derive(Debug)]
enum Planned {
    /// One more thing to do.
    Operation(Operation),
    /// Everything so far is to be done before anything else is planned; then this is answered.
    Settle(oneshot::Sender<()>),
    /// That was all.
    Complete,
}

/// A run that is on its way. Dropped, it is cancelled, and can be resumed.
#[derive(Debug)]
pub struct RunHandle {
    operations: mpsc::Sender<Planned>,
    cancel: watch::Sender<bool>,
    wake: Arc<Notify>,
    end: JoinHandle<RunEnd>,
    /// What a resumed run has in batches; once these are settled, planned again it is new work.
    queued: Mutex<HashSet<u128>>,
}

impl RunHandle {
    /// Adds an operation to the plan; waits while too much is in flight. One that a resumed run has in a batch already is left out. False if the run is over.
    pub async fn add(&self, operation: Operation) -> bool {
        self.is_queued(&operation) || self.operations.send(Planned::Operation(operation)).await.is_ok()
    }

    /// Resolves when everything that was added is done, and what a resumed run had before; batches that are not full yet are offered for it. False if the run is over.
    pub async fn settle(&self) -> bool {
        let (done, is_done) = oneshot::channel();
        let settled = self.operations.send(Planned::Settle(done)).await.is_ok() && is_done.await.is_ok();
        if settled {
            self.queued.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        settled
    }

    /// Whether a resumed run had this operation in a batch already.
    pub fn is_queued(&self, operation: &Operation) -> bool {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner).contains(&key_of(operation))
    }

    /// Something happened in the queue: look at once. Calls it as often as you like.
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Ends the run as soon as possible. Its batches stay as they are, and it can be resumed.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// What ends the run, for those who do not have the handle.
    pub fn canceller(&self) -> watch::Sender<bool> {
        self.cancel.clone()
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.end.is_finished()
    }

    /// Ends it at once, as if its machine had failed. It can be resumed.
    pub fn kill(self) {
        self.end.abort();
    }

    /// All is planned; resolves when all is done, or when the run ends otherwise.
    pub async fn finish(self) -> RunEnd {
        // If nobody hears it, the run is over.
        let _ = self.operations.send(Planned::Complete).await;
        // Its task is never aborted, and its panics are ours.
        self.end.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => RunEnd { totals: Totals::default(), error: Some(RunError::Store(error.to_string())) },
        })
    }
}

/// Starts a run, or takes one over: from then on its former controller, if it lives, does nothing more.
///
/// # Errors
/// If the storage fails, or there is a run of this id, or none to be resumed.
pub async fn start_run(
    store: SharedStore,
    fence: Arc<dyn Fence>,
    run: RunId,
    start: RunStart,
    options: RunOptions,
    listener: RunListener,
) -> Result<RunHandle, RunError> {
    let of_store = |error: StoreError| RunError::Store(error.what);
    let last = Files::last_controller(&store, run).await.map_err(of_store)?;
    let mut number = match (start, last) {
        (RunStart::New, None) => 0,
        (RunStart::New, Some(_)) => return Err(RunError::Exists(run)),
        (RunStart::Resume, None) => return Err(RunError::Missing(run)),
        (RunStart::Resume, Some(last)) if Files::is_closed(&store, run, last).await.map_err(of_store)? => {
            return Err(RunError::Missing(run));
        }
        (RunStart::Resume, Some(last)) => last + 1,
    };
    let mut files = Files { store, run, number, cleanup: options.cleanup };
    // Of two that resume at one time the later one has the run.
    while !files.take_charge().await.map_err(of_store)? {
        if start == RunStart::New {
            return Err(RunError::Exists(run));
        }
        number += 1;
        files.number = number;
    }
    let honours = files.store.honours();
    if !honours.creates_once {
        listener(RunEvent::Warning(
            "this storage does not make one creation of a file win: batches are given to one worker each, by convention only, and an attempt that was given up \
             may overlap with the next"
                .to_owned(),
        ));
    }
    let mut controller = Controller::new(run, options.patience.clone(), !honours.creates_once);
    let (next_batch, queued) = load(&files, &mut controller).await?;
    let (operations, planned) = mpsc::channel(PLANNED_MAX);
    let (cancel, cancelled) = watch::channel(false);
    let wake = Arc::new(Notify::new());
    let plan = Plan::new(options.batch_files, options.batch_bytes, options.config.clone(), options.filter.clone());
    let pacing = Pacing::new(options.look_interval);
    let (unwritten, settling) = (BTreeMap::new(), Vec::new());
    let desk = Desk {
        files,
        fence,
        options,
        listener,
        controller,
        plan,
        unwritten,
        settling,
        next_batch,
        eyes: Eyes::default(),
        failing: None,
        pacing,
        was_quiet: true,
    };
    let end = tokio::spawn(desk.run(planned, cancelled, Arc::clone(&wake)));
    Ok(RunHandle { operations, cancel, wake, end, queued: Mutex::new(queued) })
}

/// Whether a queue has a run that no controller has ended.
///
/// # Errors
/// If the storage fails.
pub async fn is_under_way(store: &SharedStore, run: RunId) -> Result<bool, StoreError> {
    match Files::last_controller(store, run).await? {
        Some(last) => Ok(!Files::is_closed(store, run, last).await?),
        None => Ok(false),
    }
}

/// Reads what an earlier controller left; returns the next number of a batch, and which operations are in one.
async fn load(files: &Files, controller: &mut Controller) -> Result<(u64, HashSet<u128>), RunError> {
    let of_store = |error: StoreError| RunError::Store(error.what);
    let root = run_directory(files.run);
    let (mut next, mut queued, mut counted) = (0, HashSet::new(), HashSet::new());
    for file in files.store.list(&format!("{root}/counted")).await.map_err(of_store)? {
        let Ok(batch) = u64::from_str_radix(&file.name, 16) else { continue };
        let record = read_counted(&files.store, &files.counted(batch)).await?;
        controller.resume_counted(batch, &record.totals);
        counted.insert(batch);
    }
    // Whoever had the run may be about to write batches of which nobody knows. Their numbers are taken away first; what was written before is read afterwards.
    let list = async || {
        files.store.list(&format!("{root}/batch")).await.map(|files| files.into_iter().filter_map(|file| parse_record_name(&file.name)))
    };
    let taken = list().await.map_err(of_store)?.map(|(batch, _)| planned_of(batch)).chain(counted.iter().map(|batch| planned_of(*batch)));
    if files.number > 0 {
        next = files.seal_numbers(&taken.collect(), UNWRITTEN_MAX as u64).await?;
    }
    // Names come in their order, so the last attempt at a batch stays.
    let last: BTreeMap<u64, u32> = list().await.map_err(of_store)?.filter(|(batch, _)| !counted.contains(batch)).collect();
    for (batch, attempt) in last {
        let path = files.record(&Attempt { run: files.run, batch, attempt });
        let read = files.read_record(&path).await.map(|read| {
            let read = read?;
            let job = JobName::parse(&format!("{}.json", read.note.job.as_deref()?))?;
            (job.attempt() == Some(Attempt { run: files.run, batch, attempt })).then_some((job, read))
        });
        match read {
            Ok(Some((job, read))) => {
                queued.extend(read.inputs.iter().map(key_of));
                controller.resume(job, read.inputs.len(), read.size());
            }
            Ok(None) => {}
            // The inputs are compared again, so whatever was in it is planned anew.
            Err(FilesError::Broken(why)) => tracing::warn!(batch, %why, "a batch of an earlier controller is left out"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((next, queued))
}

/// What an operation is about, whatever the plan saw.
fn key_of(operation: &Operation) -> u128 {
    let parts = match operation {
        Operation::CopyFile { src_fs, src_remote, dst_fs, dst_remote, .. } => ["copy", src_fs, src_remote, dst_fs, dst_remote],
        Operation::MoveFile { src_fs, src_remote, dst_fs, dst_remote, .. } => ["move", src_fs, src_remote, dst_fs, dst_remote],
        Operation::DeleteFile { fs, remote, .. } => ["delete", fs, remote, "", ""],
    };
    xxhash_rust::xxh3::xxh3_128(parts.join("\0").as_bytes())
}

/// The controller and its tools.
struct Desk {
    files: Files,
    fence: Arc<dyn Fence>,
    options: RunOptions,
    listener: RunListener,
    controller: Controller,
    plan: Plan,
    /// Batches that are planned and not offered yet; at most a few, since planning waits for them.
    unwritten: BTreeMap<JobName, Batch>,
    /// Who waits until nothing is open.
    settling: Vec<oneshot::Sender<()>>,
    next_batch: u64,
    eyes: Eyes,
    /// Since when the storage has failed, and why.
    failing: Option<(Instant, String)>,
    pacing: Pacing,
    /// At the last look nobody was at work.
    was_quiet: bool,
}

/// What an action has come to.
enum Told {
    Offered(JobName, usize),
    Log(JobName, Log),
    Result(JobName, Log, Option<Result<BatchResult, FormatError>>),
    Revoked(JobName, Option<WorkerId>, Log, bool),
    Counted(JobName, Option<WorkerId>, Totals, Vec<Failure>),
    SetAside(String, &'static str),
    Failed(Option<JobName>, FilesError),
}

impl Desk {
    async fn run(mut self, mut planned: mpsc::Receiver<Planned>, mut cancelled: watch::Receiver<bool>, wake: Arc<Notify>) -> RunEnd {
        let mut is_planned = false;
        let mut look = Instant::now();
        let error = loop {
            if *cancelled.borrow() {
                break Some(self.cancelled(&planned));
            }
            let worked = match self.plan_some(&mut planned, &mut is_planned) {
                Ok(actions) => self.perform(actions).await,
                Err(error) => break Some(error),
            };
            if let Err(error) = worked {
                break Some(error);
            }
            if Instant::now() >= look {
                if let Err(error) = self.look().await {
                    break Some(error);
                }
                look = Instant::now() + self.pacing.next(random());
            }
            if self.plan.waiting() == 0 && self.controller.open() == 0 {
                for waiting in self.settling.drain(..) {
                    // Whoever does not wait any more need not know.
                    let _ = waiting.send(());
                }
                if is_planned {
                    break None;
                }
            }
            let has_room = !is_planned && self.has_room();
            tokio::select! {
                biased;
                Ok(()) = cancelled.changed() => {}
                () = wake.notified() => look = Instant::now(),
                () = tokio::time::sleep_until(look) => {}
                operation = planned.recv(), if has_room => match operation {
                    Some(planned) => if let Err(error) = self.plan_next(planned, &mut is_planned) { break Some(error) },
                    // The handle was dropped: whoever planned is gone, and nobody knows what else there was to do.
                    None => break Some(self.cancelled(&planned)),
                },
            }
        };
        let error = match error {
            None => self.end().await.err(),
            error => error,
        };
        RunEnd { totals: self.controller.totals(), error }
    }

    fn cancelled(&self, planned: &mpsc::Receiver<Planned>) -> RunError {
        let batched = self.plan.waiting() as u64 + planned.len() as u64;
        RunError::Cancelled { batched, in_flight: self.controller.open_files() }
    }

    fn has_room(&self) -> bool {
        self.unwritten.len() + 1 < UNWRITTEN_MAX && self.controller.open() < self.options.batches_in_flight
    }

    /// Takes what is there to be planned, as long as there is room; returns what offers the batches.
    fn plan_some(&mut self, planned: &mut mpsc::Receiver<Planned>, is_planned: &mut bool) -> Result<Vec<Action>, RunError> {
        while self.has_room() && !*is_planned {
            match planned.try_recv() {
                Ok(planned) => self.plan_next(planned, is_planned)?,
                // That the handle was dropped is noticed by whoever waits for more.
                Err(_) => break,
            }
        }
        let is_wanted = *is_planned || !self.settling.is_empty();
        if is_wanted && let Some(batch) = self.plan.flush() {
            self.take_up(batch)?;
        }
        let new = self.unwritten.keys().filter(|job| !self.controller.knows(job)).cloned().collect::<Vec<_>>();
        let offers = new.into_iter().filter_map(|job| {
            let batch = &self.unwritten[&job];
            let (files, bytes) = (batch.inputs.len(), batch.size());
            self.controller.add(job, files, bytes)
        });
        Ok(offers.collect())
    }

    fn plan_next(&mut self, planned: Planned, is_planned: &mut bool) -> Result<(), RunError> {
        match planned {
            Planned::Operation(operation) => self.plan.add(operation).map_or(Ok(()), |batch| self.take_up(batch)),
            Planned::Settle(waiting) => {
                self.settling.push(waiting);
                Ok(())
            }
            Planned::Complete => {
                *is_planned = true;
                Ok(())
            }
        }
    }

    fn take_up(&mut self, batch: Batch) -> Result<(), RunError> {
        if self.next_batch >= PLANNED_BATCHES_MAX {
            return Err(RunError::TooManyBatches);
        }
        debug_assert_eq!(batch.note.width, FAMILY);
        let attempt = Attempt { run: self.files.run, batch: self.next_batch, attempt: 0 };
        self.next_batch += 1;
        self.unwritten.insert(JobName::new(SystemTime::now(), attempt), batch);
        Ok(())
    }

    /// One look at the queue, and what follows from it.
    async fn look(&mut self) -> Result<(), RunError> {
        let holders = self.controller.holders();
        let looked = self.eyes.look(&self.files, &holders).await;
        self.eyes.told.drain(..).for_each(|what| (self.listener)(RunEvent::Warning(what)));
        let survey = match looked {
            Ok(survey) => survey,
            Err(error) => {
                self.controller.handle_survey_failed();
                return self.store_failed(&error.what);
            }
        };
        self.failing = None;
        // Another controller may have the run: then there is nothing to be done here, and nobody would ever tell.
        if let Err(FilesError::Superseded) = self.files.in_charge().await {
            return Err(RunError::Superseded);
        }
        let actions = self.controller.handle_survey(&survey, Instant::now().into_std());
        self.tell_notices();
        let held = |(worker, job, _): &(&WorkerId, &str, &serde_json::Value)| {
            JobName::parse(&format!("{job}.json")).is_some_and(|job| self.controller.is_held(&job, worker))
        };
        let running: Vec<_> =
            self.eyes.running().filter(held).map(|(worker, job, stats)| (worker.clone(), job.to_owned(), stats.clone())).collect();
        // Nobody at work is told once.
        let is_quiet = running.is_empty();
        if !is_quiet || !self.was_quiet {
            (self.listener)(RunEvent::Running(running));
        }
        self.was_quiet = is_quiet;
        self.perform(actions).await?;
        match self.controller.is_deserted() {
            true => Err(RunError::NoWorkers { silence: self.options.patience.no_worker_timeout, files: self.controller.open_files() }),
            false => Ok(()),
        }
    }

    fn store_failed(&mut self, why: &str) -> Result<(), RunError> {
        let since = self.failing.get_or_insert_with(|| (Instant::now(), why.to_owned()));
        if since.1 != why {
            tracing::warn!(%why, "the storage of the queue fails");
            since.1 = why.to_owned();
        }
        match since.0.elapsed() >= self.options.store_timeout {
            true => Err(RunError::Store(why.to_owned())),
            false => Ok(()),
        }
    }

    fn tell_notices(&mut self) {
        for notice in self.controller.notices() {
            self.pacing.hurry();
            (self.listener)(match notice {
                Notice::Offered(job, files) => RunEvent::Offered { job, files },
                Notice::Claimed(job, worker) => RunEvent::Claimed { job, worker },
                Notice::WorkerAppeared(worker) => RunEvent::WorkerAppeared(worker),
                Notice::WorkerLost(worker) => RunEvent::WorkerLost(worker),
            });
        }
    }

    /// Does what is to be done, and what follows from it, until nothing does.
    async fn perform(&mut self, mut actions: Vec<Action>) -> Result<(), RunError> {
        while !actions.is_empty() {
            let works: Vec<_> = actions.drain(..).map(|action| self.work(action)).collect();
            let told: Vec<_> = futures_util::stream::iter(works).buffer_unordered(ACTIONS_IN_FLIGHT).collect().await;
            for told in told {
                actions.extend(self.hear(told)?);
            }
        }
        Ok(())
    }

    /// What does an action; it has its own copy of all that it needs.
    fn work(&mut self, action: Action) -> BoxFuture<'static, Told> {
        let (files, fence) = (self.files.clone(), Arc::clone(&self.fence));
        match action {
            Action::Offer { job, previous, to } => {
                let batch = self.unwritten.get(&job).cloned();
                Box::pin(async move {
                    let offer = async {
                        let batch = match (batch, &previous) {
                            (Some(batch), _) => batch,
                            (None, Some(previous)) => files.rest_of(previous).await?,
                            (None, None) => files.read_batch(&job).await?,
                        };
                        let inputs = batch.inputs.len();
                        files.offer(&job, batch, to).await?;
                        Ok(inputs)
                    };
                    match offer.await {
                        Ok(inputs) => Told::Offered(job, inputs),
                        Err(error) => Told::Failed(Some(job), error),
                    }
                })
            }
            Action::ReadLog { job } => Box::pin(async move {
                match files.read_log(&job, false).await {
                    Ok(log) => Told::Log(job, log),
                    Err(error) => Told::Failed(Some(job), error),
                }
            }),
            Action::ReadResult { job, named } => Box::pin(async move {
                match files.read_result(&job, &named).await {
                    Ok((log, result)) => Told::Result(job, log, result),
                    Err(error) => Told::Failed(Some(job), error),
                }
            }),
            Action::Revoke { job, worker } => Box::pin(async move {
                match files.revoke(&job, worker.as_ref(), &*fence).await {
                    Ok((log, is_firm)) => Told::Revoked(job, worker, log, is_firm),
                    Err(error) => Told::Failed(Some(job), error),
                }
            }),
            Action::Count { job, worker, totals, result } => Box::pin(async move {
                match files.count(&job, worker.as_ref(), totals, &result).await {
                    Ok(totals) => {
                        let failures = match result {
                            BatchResult::Inputs(inputs) => inputs.into_iter().flatten().collect(),
                            BatchResult::Failed(failure) => vec![failure],
                        };
                        Told::Counted(job, worker, totals, failures)
                    }
                    Err(error) => Told::Failed(Some(job), error),
                }
            }),
            Action::SetAside { path, why } => Box::pin(async move {
                match files.set_aside(&path).await {
                    Ok(()) => Told::SetAside(path, why),
                    Err(error) => Told::Failed(None, error),
                }
            }),
        }
    }

    /// Tells the table how an action went; returns what follows at once.
    fn hear(&mut self, told: Told) -> Result<Option<Action>, RunError> {
        if !matches!(told, Told::Failed(..)) {
            self.failing = None;
            self.pacing.hurry();
        }
        Ok(match told {
            Told::Offered(job, files) => {
                self.unwritten.remove(&job);
                self.controller.handle_offered(&job);
                (self.listener)(RunEvent::Offered { job, files });
                None
            }
            Told::Log(job, log) => {
                self.controller.handle_log(&job, log.records, log.holder, &log.splits);
                self.tell_notices();
                None
            }
            Told::Result(job, log, Some(result)) => self.controller.handle_result(&job, &log.splits, result),
            Told::Result(job, _, None) => {
                self.controller.handle_result_gone(&job);
                None
            }
            Told::Revoked(job, worker, log, is_firm) => {
                let is_held = worker.is_some() || log.holder.is_some();
                self.controller.handle_revoked(&job, &log.splits, is_firm, Instant::now().into_std());
                let fenced = if is_firm { Fenced::Firmly } else { Fenced::OnlyByChecks };
                if is_held {
                    (self.listener)(RunEvent::Revoked { job, worker: worker.or(log.holder), fenced });
                }
                None
            }
            Told::Counted(job, worker, totals, failures) => {
                self.controller.handle_counted(&job, &totals);
                (self.listener)(RunEvent::Counted { job, worker, totals, failures });
                None
            }
            Told::SetAside(path, why) => {
                (self.listener)(RunEvent::Warning(format!("{path} was set aside: {why}")));
                None
            }
            Told::Failed(_, FilesError::Superseded) => return Err(RunError::Superseded),
            Told::Failed(Some(job), FilesError::Broken(why)) => {
                self.unwritten.remove(&job);
                self.controller.handle_broken(&job, why)
            }
            Told::Failed(job, error) => {
                let follows = job.and_then(|job| self.controller.handle_failed(&job, &error.to_string(), Instant::now().into_std()));
                if let FilesError::Store(error) = &error {
                    self.store_failed(&error.what)?;
                }
                follows
            }
        })
    }

    /// All is done: the files of the run go away, and the workers are told to stop, if they are to.
    async fn end(&mut self) -> Result<(), RunError> {
        let mut tries = 0;
        loop {
            let ended = async {
                self.files.close().await?;
                if self.options.quits_workers {
                    for worker in self.controller.workers() {
                        let path = crate::queue::worker::quit_path(worker);
                        let note = crate::queue::worker::quit_note(self.eyes.life(worker));
                        self.files.store.replace(&path, note.into()).await?;
                        (self.listener)(RunEvent::ToldToStop(worker.clone()));
                    }
                }
                self.files.end().await
            };
            match ended.await {
                Ok(()) => {
                    self.await_workers().await;
                    return Ok(());
                }
                Err(FilesError::Superseded) => return Err(RunError::Superseded),
                Err(error) if tries >= END_TRIES_MAX => {
                    // What was planned is done; that its records stay is no failure of it.
                    (self.listener)(RunEvent::Warning(format!("the files of the run could not be cleaned: {error}")));
                    return Ok(());
                }
                Err(_) => {
                    tries += 1;
                    tokio::time::sleep(END_WAIT).await;
                }
            }
        }
    }

    /// Waits, for a bounded time, until workers that were told to stop have gone: they remove their status.
    async fn await_workers(&self) {
        if !self.options.quits_workers {
            return;
        }
        let mut told: HashSet<String> = self.controller.workers().map(|worker| format!("{worker}.json")).collect();
        let deadline = Instant::now() + QUIT_TIMEOUT;
        while !told.is_empty() && Instant::now() < deadline {
            if let Ok(listed) = self.files.store.list("queue/status").await {
                let there: HashSet<String> = listed.into_iter().map(|file| file.name).collect();
                told.retain(|worker| there.contains(worker));
            }
            if !told.is_empty() {
                tokio::time::sleep(END_WAIT).await;
            }
        }
        if !told.is_empty() {
            let what = format!("{} workers were told to stop and have not stopped within {QUIT_TIMEOUT:?}", told.len());
            (self.listener)(RunEvent::Warning(what));
        }
    }
}
