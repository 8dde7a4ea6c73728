//! Carries out batches with the engine, several at once, on one worker.
//!
//! ```text
//!   batch ─┐                       ┌─ place ─► engine ─┐
//!   batch ─┼─► pieces of neighbours ─ place ─► engine ─┼─► reports
//!   batch ─┘                       └─ place ─► engine ─┘
//! ```
//!
//! `--transfers` is a number of places that all batches of a worker share. What has no place yet stays in its batch, where it can be given away to an idle worker.
//! `--bwlimit` belongs to a run: its batches share one limit here, and runs that use the same worker do not share theirs. What waits for its limit would keep the places
//! from the others, so a run with a limit has as many of its own, also for what it had begun before. What rests has no place.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::attempt::RunId;
use crate::engine::{Bandwidth, Cancel, Engine, EngineOptions, OperationError};
use crate::fence::{ClaimError, Fence};
use crate::operation::Operation;
use crate::options::{Options, OptionsJson, rate_in, without_rate};
use crate::queue::{Execute, Failure, Taken, Work};
use crate::remote::Remotes;
use crate::run::engine_options;
use crate::stats::Stats;

/// Engines that are kept: one for each set of options that batches came with.
const ENGINES_MAX: usize = 8;
/// Runs whose limits of bandwidth are kept, but for those that have batches here.
const LIMITS_MAX: usize = 64;
/// Files of one piece, which has one place.
const PIECE_FILES_MAX: usize = 64;
/// Bytes of a piece; a file that is larger is a piece of its own.
const PIECE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Pieces that a batch is cut into at least for each place, so that its end can be shared.
const PIECES_PER_PLACE: usize = 4;
/// How often the progress of a batch is told.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// Carries out batches. Cheap to clone; clones share places, remotes and the limits of bandwidth.
#[derive(Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    remotes: Arc<Remotes>,
    transfers: usize,
    places: Arc<Semaphore>,
    engines: Mutex<VecDeque<(Map<String, Value>, Engine)>>,
    limits: Mutex<Limits>,
}

/// What the batches of a run share at a worker, and nobody else.
#[derive(Debug)]
pub(crate) struct RunShare {
    bandwidth: Arc<Bandwidth>,
    /// Whether there is a limit: what has begun without one hears of it here.
    is_limited: watch::Sender<bool>,
    /// Used while the run has a limit; none if it is not that of the run.
    places: Option<Arc<Semaphore>>,
}

impl RunShare {
    /// One without a limit.
    fn new(places: Option<Arc<Semaphore>>) -> Arc<Self> {
        Arc::new(Self { bandwidth: Arc::new(Bandwidth::new(None)), is_limited: watch::Sender::new(false), places })
    }

    /// Changes the bytes per second; none is no limit.
    pub(crate) fn set_limit(&self, limit: Option<u64>) {
        // One after the other: what is heard of the limit is true of it.
        self.is_limited.send_if_modified(|is_limited| {
            self.bandwidth.set_limit(limit);
            let before = std::mem::replace(is_limited, self.bandwidth.limit().is_some());
            before != *is_limited
        });
    }

    /// The places of the run, if it needs its own.
    fn places(&self) -> Option<&Arc<Semaphore>> {
        self.places.as_ref().filter(|_| *self.is_limited.borrow())
    }

    /// Resolves while the run needs places of its own.
    async fn own_places(&self) -> &Arc<Semaphore> {
        let Some(places) = &self.places else { return std::future::pending().await };
        // The sender lives as long as `self`.
        let _ = self.is_limited.subscribe().wait_for(|is_limited| *is_limited).await;
        places
    }
}

/// Who limits the bytes per second.
struct Limits {
    transfers: usize,
    /// Of this worker as a whole: batches have no say then.
    own: Option<Arc<RunShare>>,
    /// Of each run, the latest last.
    runs: VecDeque<(RunId, Arc<RunShare>)>,
}

impl Limits {
    fn new(transfers: usize) -> Self {
        Self { transfers, own: None, runs: VecDeque::new() }
    }

    /// What limits a batch of a run. What the batch that came last says holds for all of its run: its controller may have been told otherwise since the ones before.
    fn of_batch(&mut self, run: RunId, limit: Option<u64>) -> Arc<RunShare> {
        let share = self.of_run(run);
        if self.own.is_none() {
            share.set_limit(limit);
        }
        share
    }

    /// What limits a run, as it is.
    fn of_run(&mut self, run: RunId) -> Arc<RunShare> {
        if let Some(own) = &self.own {
            return Arc::clone(own);
        }
        if let Some((_, known)) = self.runs.iter().find(|(known, _)| *known == run) {
            return Arc::clone(known);
        }
        while self.runs.len() >= LIMITS_MAX
            && let Some(unused) = self.runs.iter().position(|(_, share)| Arc::strong_count(share) == 1)
        {
            self.runs.remove(unused);
        }
        let share = RunShare::new(Some(Arc::new(Semaphore::new(self.transfers))));
        self.runs.push_back((run, Arc::clone(&share)));
        share
    }

    fn set_own(&mut self, limit: Option<u64>) {
        self.own.get_or_insert_with(|| RunShare::new(None)).set_limit(limit);
        // Batches that are under way keep theirs.
        self.runs.iter().for_each(|(_, known)| known.set_limit(limit));
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("transfers", &self.inner.transfers).finish_non_exhaustive()
    }
}

impl Executor {
    /// One with `transfers` places, which finds its remotes in `remotes`. The limit of bandwidth is that of each run, which its batches say, unless one for all of
    /// them was [set](Executor::set_bandwidth) here.
    pub fn new(remotes: Arc<Remotes>, transfers: usize) -> Self {
        let transfers = transfers.max(1);
        let inner = Inner {
            remotes,
            transfers,
            places: Arc::new(Semaphore::new(transfers)),
            engines: Mutex::default(),
            limits: Mutex::new(Limits::new(transfers)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Limits the bytes per second of all batches together, whatever they say.
    pub fn set_bandwidth(&self, limit: Option<u64>) {
        lock(&self.inner.limits).set_own(limit);
    }

    /// What a batch shares with the others of its run.
    pub(crate) fn share(&self, work: &Work) -> Arc<RunShare> {
        let (run, mut limits) = (work.attempt().run, lock(&self.inner.limits));
        match rate_in(work.config()) {
            Ok(rate) => limits.of_batch(run, rate.bytes_per_second()),
            // The batch is refused, and changes nothing for the others of its run.
            Err(_) => limits.of_run(run),
        }
    }

    /// The engine for the options of a batch. Places bound what happens at the same time, so within a piece one file follows the other.
    fn engine(&self, config: &Map<String, Value>) -> Result<Engine, String> {
        rate_in(config).map_err(|error| error.to_string())?;
        let config = without_rate(config);
        let mut engines = lock(&self.inner.engines);
        if let Some(at) = engines.iter().position(|(known, _)| *known == config) {
            let found = engines.remove(at).expect("it was just found");
            engines.push_front(found);
        } else {
            let json = OptionsJson { config: config.clone(), filter: Map::new() };
            let (options, _unknown) = Options::from_json(&json).map_err(|error| error.to_string())?;
            let engine = Engine::new(EngineOptions { transfers: 1, ..engine_options(&options) }, self.inner.remotes.clone());
            engines.push_front((config, engine));
            engines.truncate(ENGINES_MAX);
        }
        Ok(engines[0].1.clone())
    }

    /// Carries out a batch with what it [shares](Executor::share).
    pub(crate) async fn carry_out(self, work: Arc<Work>, share: Arc<RunShare>) {
        let stats = Arc::new(Stats::new());
        let claimed = async {
            let engine = self.engine(work.config())?.limited_by(Arc::clone(&share.bandwidth));
            let changed = work.changed_remotes();
            let fence = Fence::claim(work.attempt(), &self.inner.remotes, changed.iter().map(String::as_str)).await;
            Ok::<_, String>((engine, fence.map_err(|error: ClaimError| error.to_string())?))
        };
        let (engine, fence) = match claimed.await {
            Ok((engine, fence)) => (engine, Arc::new(fence)),
            Err(why) => return refuse(&work, &why),
        };
        let carrying = Carrying { executor: self, share, engine, fence, stats, cancel: Cancel::new(), work };
        tokio::select! {
            () = carrying.pieces() => {}
            // Nothing of it counts any more. What has begun in the file system is void by its fence.
            () = carrying.work.abandoned() => {
                carrying.fence.void();
                carrying.cancel.cancel();
            }
            () = carrying.tell_progress() => {}
        }
        carrying.work.set_progress(carrying.progress());
        if let Err(error) = carrying.fence.release(&carrying.executor.inner.remotes).await {
            // The end of the run removes it.
            tracing::debug!(attempt = %carrying.work.attempt(), %error, "the directory of the attempt stays for now");
        }
    }
}

impl Execute for Executor {
    fn execute(&self, work: Arc<Work>) -> BoxFuture<'static, ()> {
        let share = self.share(&work);
        Box::pin(self.clone().carry_out(work, share))
    }
}

/// Where a piece is carried out.
struct Place {
    /// Whether it is one of those that all runs share.
    is_shared: bool,
    permit: Option<OwnedSemaphorePermit>,
}

/// One batch under way.
struct Carrying {
    executor: Executor,
    share: Arc<RunShare>,
    engine: Engine,
    fence: Arc<Fence>,
    stats: Arc<Stats>,
    cancel: Cancel,
    work: Arc<Work>,
}

/// Whoever drops it wants no more of it.
impl Drop for Carrying {
    fn drop(&mut self) {
        self.fence.void();
        self.cancel.cancel();
    }
}

impl Carrying {
    async fn pieces(&self) {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = running.next(), if !running.is_empty() => {}
                place = self.place() => {
                    let piece = self.next_piece();
                    if piece.is_empty() {
                        break;
                    }
                    running.push(self.piece(piece, place));
                }
            }
        }
        while running.next().await.is_some() {}
    }

    async fn place(&self) -> Place {
        let (gate, share) = (self.work.gate(), &self.share);
        loop {
            gate.passed().await;
            let own = share.places();
            let places = own.unwrap_or(&self.executor.inner.places).clone();
            let permit = tokio::select! {
                biased;
                _ = share.own_places(), if own.is_none() => continue,
                permit = places.acquire_owned() => permit.expect("the places are never closed"),
            };
            // Otherwise it goes back: what rests would keep it from the others.
            if !gate.is_closed() {
                return Place { is_shared: own.is_none(), permit: Some(permit) };
            }
        }
    }

    /// Neighbours that are carried out one after the other: many while many wait, few at the end.
    fn next_piece(&self) -> Vec<Taken> {
        let waiting = self.work.waiting();
        let files_max = (waiting / (PIECES_PER_PLACE * self.executor.inner.transfers)).clamp(1, PIECE_FILES_MAX);
        let (mut piece, mut bytes) = (Vec::new(), 0_u64);
        while piece.len() < files_max && bytes < PIECE_BYTES_MAX {
            let Some(taken) = self.work.take() else { break };
            bytes = bytes.saturating_add(taken.operation.size());
            piece.push(taken);
        }
        piece
    }

    async fn piece(&self, piece: Vec<Taken>, mut place: Place) {
        let operations: Arc<[Operation]> = piece.iter().map(|taken| taken.operation.clone()).collect();
        let mut executing = pin!(self.engine.execute_all(operations, &self.fence, &self.stats, &self.cancel));
        let results = tokio::select! {
            biased;
            results = &mut executing => results,
            // From now on it waits for its limit. Without a free place of its own it goes on all the same.
            own = self.share.own_places(), if place.is_shared => {
                place.permit = own.clone().try_acquire_owned().ok();
                executing.await
            }
        };
        drop(place);
        for (taken, result) in piece.into_iter().zip(results) {
            let failure = |error: OperationError| {
                let failure = Failure::of(&taken.operation, error.to_string());
                if error.kind.is_retryable() { failure } else { failure.as_final() }
            };
            let result = result.map(drop).map_err(failure);
            self.work.report(taken, result);
        }
    }

    /// Never ends.
    async fn tell_progress(&self) {
        let mut pause = tokio::time::interval(PROGRESS_PAUSE);
        loop {
            pause.tick().await;
            self.work.set_progress(self.progress());
        }
    }

    fn progress(&self) -> Value {
        serde_json::to_value(self.stats.report()).unwrap_or_default()
    }
}

/// Reports every input as failed: the batch could not be begun.
fn refuse(work: &Work, why: &str) {
    while let Some(taken) = work.take() {
        let failure = Failure::of(&taken.operation, why);
        work.report(taken, Err(failure));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
