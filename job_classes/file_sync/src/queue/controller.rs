//! What the controller of a run decides.
//!
//! The table knows each batch that is not counted yet, and what is known of it comes from looking: whoever runs this hands in a [`Survey`] of the queue, does what the
//! [`Action`]s say, and tells how it went. A controller that begins in the middle of a run, because the one before died, does the same with a table that it read.
//!
//! ```text
//!   Writing ──► Offered ──► Held ──► Reading ──► Counting ──► (gone)
//!                  │          │         ▲
//!                  │ nowhere  │ silent  │ a result was there after all
//!                  ▼          ▼         │
//!                   Revoking ──► Revoked ──► Writing, as the next attempt
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, RunId};
use crate::queue::batch::{BatchResult, Failure, FormatError, Split};
use crate::queue::fault::{Fault, has};
use crate::queue::lease::Lease;
use crate::queue::name::{ATTEMPT_MAX, JobName, WorkerId};
use crate::queue::store::marker_of;

/// Surveys in a row that must see a batch nowhere before it is offered again: its file may be on its way.
const NOWHERE_SURVEYS: u32 = 3;

/// How patient a controller is.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Silence after which a batch is taken from its worker.
    pub lease: Duration,
    /// Attempts at one batch, of which each lost its worker, before the batch has failed: it may be what kills them.
    pub attempts_max: u32,
    /// Silence of all workers after which the run ends. As long it is tried to take a batch from a silent worker before the batch has failed.
    pub no_worker_timeout: Duration,
    /// The longest that one operation of a worker whose effects cannot be fenced may take.
    pub longest_operation: Duration,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            attempts_max: 5,
            no_worker_timeout: Duration::from_secs(600),
            longest_operation: Duration::from_secs(300),
        }
    }
}

/// What a run has done so far. Each batch counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Batches that came to an end.
    pub batches: u64,
    /// Of them those that failed as a whole.
    pub batches_failed: u64,
    /// Inputs that came to an end.
    pub files: u64,
    /// Of them those that failed; all inputs of a batch that failed as a whole.
    pub files_failed: u64,
    /// Bytes of the inputs that succeeded, as far as the plan knew them.
    pub bytes: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Totals) {
        self.batches += other.batches;
        self.batches_failed += other.batches_failed;
        self.files += other.files;
        self.files_failed += other.files_failed;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What a look at the queue saw of one run. Directories are listed in the order in which a batch passes through them, so one that moves meanwhile is not missed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    pub(crate) pending: BTreeSet<JobName>,
    pub(crate) processing: BTreeMap<JobName, WorkerId>,
    /// Logs and how many records each has.
    pub(crate) logs: BTreeMap<JobName, u32>,
    pub(crate) done: BTreeSet<JobName>,
    pub(crate) statuses: BTreeMap<WorkerId, StatusSeen>,
}

/// What a look saw of a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusSeen {
    pub(crate) marker: u64,
    /// Jobs that it says it has.
    pub(crate) running: BTreeSet<String>,
    /// It is a worker of ours, which fences its effects.
    pub(crate) is_ours: bool,
}

/// What is to be done. Whoever does it tells how it went by the `handle_…` that is named.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Write the batch and offer it; `previous` has its inputs, unless it is new. Then [`Controller::handle_offered`].
    Offer { job: JobName, previous: Option<JobName>, to: Option<WorkerId> },
    /// Read what the holder has split off. Then [`Controller::handle_log`].
    ReadLog { job: JobName },
    /// Read the log and then the result. Then [`Controller::handle_result`].
    ReadResult { job: JobName, named: JobName },
    /// Seal the log and fence the effects. Then [`Controller::handle_revoked`].
    Revoke { job: JobName, worker: Option<WorkerId> },
    /// Count it and archive its files. Then [`Controller::handle_counted`].
    Count { job: JobName, worker: Option<WorkerId>, totals: Totals, result: BatchResult },
    /// A file belongs to nothing that is awaited. Nothing is told back.
    SetAside { path: String, why: &'static str },
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A part of a batch, which its holder has offered.
    Offered(JobName, usize),
    Claimed(JobName, WorkerId),
    WorkerAppeared(WorkerId),
    WorkerLost(WorkerId),
}

#[derive(Debug)]
struct InFlight {
    job: JobName,
    files: usize,
    bytes: u64,
    /// Records of the log that were read.
    log: u32,
    worker: Option<WorkerId>,
    /// The worker is known to be ours.
    is_ours: bool,
    state: State,
    /// An action is on its way.
    is_busy: bool,
    /// Since when its actions fail.
    failing: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Writing { previous: Option<JobName> },
    Offered { nowhere: u32 },
    Held { lease: Lease },
    Revoking,
    Revoked { until: Instant },
    Reading { named: JobName },
    Counting { totals: Totals, result: BatchResult },
}

#[derive(Debug)]
struct WorkerSeen {
    lease: Lease,
    is_alive: bool,
}

/// The table of a run.
#[derive(Debug)]
pub(crate) struct Controller {
    options: ControllerOptions,
    run: RunId,
    /// Claims are not exclusive: each batch is for one worker.
    is_addressed: bool,
    batches: BTreeMap<u64, InFlight>,
    counted: BTreeSet<u64>,
    totals: Totals,
    workers: BTreeMap<WorkerId, WorkerSeen>,
    silence: Lease,
    notices: Vec<Notice>,
    is_deserted: bool,
}

impl Controller {
    pub(crate) fn new(run: RunId, options: ControllerOptions, is_addressed: bool) -> Self {
        let silence = Lease::new(options.no_worker_timeout);
        let (batches, counted, workers, totals) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new(), Totals::default());
        Self { options, run, is_addressed, batches, counted, totals, workers, silence, notices: Vec::new(), is_deserted: false }
    }

    /// A batch is planned; returns what offers it.
    pub(crate) fn add(&mut self, job: JobName, files: usize, bytes: u64) -> Option<Action> {
        let number = job.attempt()?.batch;
        self.batches.insert(number, InFlight::new(job, files, bytes, State::Writing { previous: None }));
        self.offer(number)
    }

    /// Whether a batch is in the table.
    pub(crate) fn knows(&self, job: &JobName) -> bool {
        job.attempt().is_some_and(|attempt| self.batches.contains_key(&attempt.batch) || self.counted.contains(&attempt.batch))
    }

    /// A batch was offered by an earlier controller.
    pub(crate) fn resume(&mut self, job: JobName, files: usize, bytes: u64) {
        if let Some(Attempt { batch, .. }) = job.attempt() {
            self.batches.insert(batch, InFlight::new(job, files, bytes, State::Offered { nowhere: 0 }));
        }
    }

    /// A batch was counted by an earlier controller.
    pub(crate) fn resume_counted(&mut self, batch: u64, totals: &Totals) {
        if self.counted.insert(batch) {
            self.totals.add(totals);
        }
    }

    /// Batches that are not counted yet.
    pub(crate) fn open(&self) -> usize {
        self.batches.len()
    }

    /// Inputs that are not counted yet.
    pub(crate) fn open_files(&self) -> u64 {
        self.batches.values().map(|batch| batch.files as u64).sum()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// All workers have been silent for too long while there was work.
    pub(crate) fn is_deserted(&self) -> bool {
        self.is_deserted && !has(Fault::NoEnd)
    }

    /// Workers that are alive.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &WorkerId> {
        self.workers.iter().filter(|(_, known)| known.is_alive).map(|(worker, _)| worker)
    }

    /// Workers that hold batches of this run.
    pub(crate) fn holders(&self) -> BTreeSet<WorkerId> {
        self.batches.values().filter_map(|batch| batch.worker.clone()).collect()
    }

    /// Whether a worker holds a job of this run. What it tells of any other is of another run, was counted, or was given up.
    pub(crate) fn is_held(&self, job: &JobName, worker: &WorkerId) -> bool {
        let batch = job.attempt().and_then(|attempt| self.batches.get(&attempt.batch));
        batch.is_some_and(|batch| batch.job == *job && batch.worker.as_ref() == Some(worker) && matches!(batch.state, State::Held { .. }))
    }

    pub(crate) fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// A look at the queue succeeded.
    pub(crate) fn handle_survey(&mut self, survey: &Survey, now: Instant) -> Vec<Action> {
        self.see_workers(survey, now);
        let numbers: Vec<_> = self.batches.keys().copied().collect();
        let mut actions: Vec<_> = numbers.into_iter().filter_map(|number| self.see_batch(number, survey, now)).collect();
        self.see_strangers(survey, &mut actions);
        actions
    }

    /// A look at the queue failed: nothing was seen, so no time passes for anybody.
    pub(crate) fn handle_survey_failed(&mut self) {
        self.silence.failed();
        self.workers.values_mut().for_each(|known| known.lease.failed());
        for batch in self.batches.values_mut() {
            if let State::Held { lease } = &mut batch.state {
                lease.failed();
            }
        }
    }

    fn see_workers(&mut self, survey: &Survey, now: Instant) {
        for (worker, seen) in &survey.statuses {
            let known =
                self.workers.entry(worker.clone()).or_insert_with(|| WorkerSeen { lease: Lease::new(self.options.lease), is_alive: false });
            let is_alive = !known.lease.read(seen.marker, now);
            if is_alive != known.is_alive {
                let (worker, is_back) = (worker.clone(), is_alive);
                self.notices.push(if is_back { Notice::WorkerAppeared(worker) } else { Notice::WorkerLost(worker) });
            }
            known.is_alive = is_alive;
        }
        let gone = self.workers.keys().filter(|worker| !survey.statuses.contains_key(*worker)).cloned();
        for worker in gone.collect::<Vec<_>>() {
            if self.workers.remove(&worker).is_some_and(|known| known.is_alive) {
                self.notices.push(Notice::WorkerLost(worker));
            }
        }
        let marks: Vec<_> = survey.statuses.iter().map(|(worker, seen)| (worker, seen.marker)).collect();
        let held: Vec<_> = survey.processing.iter().collect();
        let marker = marker_of(&(marks, held, survey.done.len(), survey.logs.len(), self.counted.len()));
        // What somebody holds, or had, comes back by itself, however long that takes; meanwhile workers without work have nothing to say.
        let waits = |batch: &InFlight| !matches!(batch.state, State::Held { .. } | State::Revoking | State::Revoked { .. });
        if !self.batches.values().any(waits) {
            self.silence = Lease::new(self.options.no_worker_timeout);
        } else if self.silence.read(marker, now) {
            self.is_deserted = true;
        }
    }

    fn see_batch(&mut self, number: u64, survey: &Survey, now: Instant) -> Option<Action> {
        let batch = self.batches.get_mut(&number)?;
        if batch.is_busy {
            return None;
        }
        let job = batch.job.clone();
        let result = match has(Fault::NoNames) {
            true => survey.done.iter().find(|done| done.attempt().is_some_and(|done| done.batch == number)),
            false => survey.done.get(&job),
        };
        // A result is looked at wherever the batch is, but for one that is being taken away: its worker may still be at it.
        if let (Some(named), State::Writing { .. } | State::Offered { .. } | State::Held { .. } | State::Revoked { .. }) =
            (result, &batch.state)
        {
            batch.state = State::Reading { named: named.clone() };
        }
        if let Some(worker) = survey.processing.get(&job) {
            // Where a batch is for one worker, that worker is known before it has the batch.
            if batch.worker.as_ref() != Some(worker) || (self.is_addressed && batch.log == 0) {
                self.notices.push(Notice::Claimed(job.clone(), worker.clone()));
            }
            batch.worker = Some(worker.clone());
            // The first record says what the name says.
            batch.log = batch.log.max(1);
        }
        let records = survey.logs.get(&job).copied().unwrap_or(0);
        batch.is_ours |= records > 0;
        match &mut batch.state {
            State::Offered { nowhere } => {
                let is_held = records > 0 || survey.processing.contains_key(&job);
                // Where a batch is for one worker, that worker holds it from the beginning.
                if is_held || (self.is_addressed && batch.worker.is_some()) {
                    batch.state = State::Held { lease: Lease::new(self.options.lease) };
                } else if survey.pending.contains(&job) {
                    *nowhere = 0;
                } else {
                    *nowhere += 1;
                    if *nowhere >= NOWHERE_SURVEYS {
                        batch.state = State::Revoking;
                    }
                }
            }
            State::Held { lease } => {
                let status = batch.worker.as_ref().and_then(|worker| survey.statuses.get(worker));
                let running =
                    status.filter(|seen| seen.running.contains(job.as_str()) || (self.is_addressed && survey.pending.contains(&job)));
                batch.is_ours |= status.is_some_and(|seen| seen.is_ours);
                if lease.read(running.map_or(0, |seen| seen.marker | 1), now) {
                    batch.state = if has(Fault::NoRevocation) { State::Revoked { until: now } } else { State::Revoking };
                } else if records > batch.log {
                    batch.is_busy = true;
                    return Some(Action::ReadLog { job });
                }
            }
            State::Revoked { until } if now >= *until => {
                let next =
                    job.next().filter(|next| next.attempt().is_some_and(|next| next.attempt < self.options.attempts_max.min(ATTEMPT_MAX)));
                match next {
                    Some(next) => {
                        (batch.job, batch.log, batch.worker, batch.is_ours) = (next, 0, None, false);
                        batch.state = State::Writing { previous: Some(job) };
                    }
                    None => batch.fail(Failure::of_batch(format!("{} workers were lost over it", self.options.attempts_max))),
                }
            }
            _ => {}
        }
        self.act(number)
    }

    /// What the state of a batch asks for.
    fn act(&mut self, number: u64) -> Option<Action> {
        let batch = self.batches.get_mut(&number)?;
        let (job, worker) = (batch.job.clone(), batch.worker.clone());
        let action = match &batch.state {
            State::Writing { .. } => return self.offer(number),
            State::Offered { .. } | State::Held { .. } | State::Revoked { .. } => return None,
            State::Revoking => Action::Revoke { job, worker },
            State::Reading { named } => Action::ReadResult { job, named: named.clone() },
            State::Counting { totals, result } => Action::Count { job, worker, totals: *totals, result: result.clone() },
        };
        batch.is_busy = true;
        Some(action)
    }

    /// Offers a batch, to the worker with the fewest if it must be one; not yet if there is none.
    fn offer(&mut self, number: u64) -> Option<Action> {
        let to = match self.is_addressed {
            true => Some(self.least_busy()?),
            false => None,
        };
        let batch = self.batches.get_mut(&number)?;
        let State::Writing { previous } = &batch.state else { return None };
        batch.is_busy = true;
        batch.worker = to.clone();
        Some(Action::Offer { job: batch.job.clone(), previous: previous.clone(), to })
    }

    fn least_busy(&self) -> Option<WorkerId> {
        let load = |worker: &&WorkerId| self.batches.values().filter(|batch| batch.worker.as_ref() == Some(*worker)).count();
        self.workers().min_by_key(load).cloned()
    }

    /// Files of this run that belong to nothing that is awaited: late results, and what an offer again left behind.
    fn see_strangers(&self, survey: &Survey, actions: &mut Vec<Action>) {
        let is_stale = |job: &JobName| {
            let Some(Attempt { run, batch, attempt }) = job.attempt() else { return false };
            let current = self.batches.get(&batch).and_then(|batch| batch.job.attempt());
            // A batch that is not known yet is a part which its holder published before its record was read.
            run == self.run && (self.counted.contains(&batch) || current.is_some_and(|current| attempt < current.attempt))
        };
        for job in survey.done.iter().filter(|job| is_stale(job) && !has(Fault::NoNames)) {
            actions.push(Action::SetAside {
                path: job.done(),
                why: "a result of an attempt that was given up, or of a batch that is counted",
            });
        }
        for job in survey.pending.iter().filter(|job| is_stale(job)) {
            actions.push(Action::SetAside {
                path: job.pending(),
                why: "an offer of an attempt that was given up, or of a batch that is counted",
            });
        }
        for (job, worker) in survey.processing.iter().filter(|(job, _)| is_stale(job)) {
            actions.push(Action::SetAside {
                path: job.processing(worker),
                why: "a claim of an attempt that was given up, or of a batch that is counted",
            });
        }
    }

    /// The batch stands in `pending`.
    pub(crate) fn handle_offered(&mut self, job: &JobName) {
        if let Some(batch) = self.current(job) {
            batch.state = State::Offered { nowhere: 0 };
        }
    }

    /// The log of an attempt was read; `records` of it.
    pub(crate) fn handle_log(&mut self, job: &JobName, records: u32, holder: Option<WorkerId>, splits: &[Split]) {
        if let Some(batch) = self.current(job) {
            batch.log = records;
            if let (None, Some(holder)) = (&batch.worker, holder) {
                batch.worker = Some(holder.clone());
                self.notices.push(Notice::Claimed(job.clone(), holder));
            }
            self.adopt(job, splits);
        }
    }

    /// The result of an attempt was read, or is none.
    pub(crate) fn handle_result(&mut self, job: &JobName, splits: &[Split], result: Result<BatchResult, FormatError>) -> Option<Action> {
        self.current(job)?;
        self.adopt(job, splits);
        let batch = self.current(job)?;
        match result {
            Ok(result) => batch.finish(result),
            Err(error) => batch.fail(Failure::of_batch(format!("the result cannot be read: {error}"))),
        }
        self.act(job.attempt()?.batch)
    }

    /// A result that was seen is not there any more: somebody else took it away. Whoever holds the batch is looked for again.
    pub(crate) fn handle_result_gone(&mut self, job: &JobName) {
        if let Some(batch) = self.current(job) {
            batch.state = State::Offered { nowhere: 0 };
        }
    }

    /// The log is sealed and the effects are fenced; or, if not `is_firm`, its worker was only asked to check.
    pub(crate) fn handle_revoked(&mut self, job: &JobName, splits: &[Split], is_firm: bool, now: Instant) {
        if self.current(job).is_none() {
            return;
        }
        self.adopt(job, splits);
        let wait = self.options.lease + self.options.longest_operation;
        let Some(batch) = self.current(job) else { return };
        let is_firm = is_firm && (batch.is_ours || batch.worker.is_none());
        batch.state = State::Revoked { until: if is_firm { now } else { now + wait } };
    }

    /// What cannot be repaired: the batch has failed.
    pub(crate) fn handle_broken(&mut self, job: &JobName, why: String) -> Option<Action> {
        self.current(job)?.fail(Failure::of_batch(why));
        self.act(job.attempt()?.batch)
    }

    /// The batch is counted, with these totals: by this controller, or by another before.
    pub(crate) fn handle_counted(&mut self, job: &JobName, totals: &Totals) {
        let Some(Attempt { batch, .. }) = job.attempt() else { return };
        if self.batches.contains_key(&batch) {
            if has(Fault::CountsTwice) && self.counted.insert(batch) {
                self.totals.add(totals);
                self.current(job);
                return;
            }
            self.batches.remove(&batch);
            self.counted.insert(batch);
            self.totals.add(totals);
        }
    }

    /// An action failed and may be tried again, after the next look.
    pub(crate) fn handle_failed(&mut self, job: &JobName, why: &str, now: Instant) -> Option<Action> {
        let number = job.attempt()?.batch;
        let batch = self.batches.get_mut(&number).filter(|batch| batch.job == *job)?;
        batch.is_busy = false;
        let since = *batch.failing.get_or_insert(now);
        if matches!(batch.state, State::Revoking) && now.saturating_duration_since(since) >= self.options.no_worker_timeout {
            batch.fail(Failure::of_batch(format!("it cannot be taken from its worker, which is silent: {why}")));
            return self.act(number);
        }
        None
    }

    /// The batch, if this is its current attempt; its action is over.
    fn current(&mut self, job: &JobName) -> Option<&mut InFlight> {
        let batch = self.batches.get_mut(&job.attempt()?.batch).filter(|batch| batch.job == *job)?;
        (batch.is_busy, batch.failing) = (false, None);
        Some(batch)
    }

    /// Takes up what a holder has split off its batch.
    fn adopt(&mut self, job: &JobName, splits: &[Split]) {
        if has(Fault::NoChildren) {
            return;
        }
        let Some(number) = job.attempt().map(|attempt| attempt.batch) else { return };
        for split in splits {
            let Some(child) = job.sibling(split.child) else { continue };
            let size = |inputs: &[crate::operation::Operation]| inputs.iter().map(crate::Operation::size).fold(0, u64::saturating_add);
            if let Some(batch) = self.batches.get_mut(&number) {
                (batch.files, batch.bytes) = (split.kept.len(), size(&split.kept));
            }
            if !self.batches.contains_key(&split.child) && !self.counted.contains(&split.child) {
                self.notices.push(Notice::Offered(child.clone(), split.inputs.len()));
                self.batches
                    .insert(split.child, InFlight::new(child, split.inputs.len(), size(&split.inputs), State::Offered { nowhere: 0 }));
            }
        }
    }
}

impl InFlight {
    fn new(job: JobName, files: usize, bytes: u64, state: State) -> Self {
        Self { job, files, bytes, log: 0, worker: None, is_ours: false, state, is_busy: false, failing: None }
    }

    fn finish(&mut self, result: BatchResult) {
        let BatchResult::Inputs(inputs) = &result else {
            let BatchResult::Failed(failure) = result else { return };
            return self.fail(failure);
        };
        let files_failed = inputs.iter().flatten().count() as u64;
        let missed = inputs
            .iter()
            .flatten()
            .filter_map(|failure| failure.input.get("_nkcluster")?.get("size")?.as_u64())
            .fold(0, u64::saturating_add);
        let bytes = self.bytes.saturating_sub(missed);
        let totals = Totals { batches: 1, batches_failed: 0, files: self.files as u64, files_failed, bytes };
        self.state = State::Counting { totals, result };
    }

    fn fail(&mut self, failure: Failure) {
        let is_noticed = !has(Fault::NoBatchFailure);
        let files = self.files as u64;
        let totals =
            Totals { batches: 1, batches_failed: u64::from(is_noticed), files, files_failed: if is_noticed { files } else { 0 }, bytes: 0 };
        self.state = State::Counting { totals, result: BatchResult::Failed(failure) };
    }
}

#[cfg(test)]
mod tests;
