//! Carries out batches with the engine, several at once, on one worker.
//!
//! ```text
//!   batch ─┐                       ┌─ place ─► engine ─┐
//!   batch ─┼─► pieces of neighbours ─ place ─► engine ─┼─► reports
//!   batch ─┘                       └─ place ─► engine ─┘
//! ```
//!
//! `--transfers` is a number of places that all batches of a worker share. What has no place yet stays in its batch, where it can be given away to an idle worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::{Cancel, Engine, EngineOptions, OperationError};
use crate::fence::{ClaimError, Fence};
use crate::operation::Operation;
use crate::options::{Options, OptionsJson};
use crate::queue::{Execute, Failure, Taken, Work};
use crate::remote::Remotes;
use crate::run::engine_options;
use crate::stats::Stats;

/// Engines that are kept: one for each set of options that batches came with.
const ENGINES_MAX: usize = 8;
/// Files of one piece, which has one place.
const PIECE_FILES_MAX: usize = 64;
/// Bytes of a piece; a file that is larger is a piece of its own.
const PIECE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Pieces that a batch is cut into at least for each place, so that its end can be shared.
const PIECES_PER_PLACE: usize = 4;
/// How often the progress of a batch is told.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// Carries out batches. Cheap to clone; clones share places, remotes and the limit of bandwidth.
#[derive(Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    remotes: Arc<Remotes>,
    transfers: usize,
    places: Arc<Semaphore>,
    engines: Mutex<VecDeque<(Map<String, Value>, Engine)>>,
    /// Set here, so that batches have no say; the inner none is no limit.
    bandwidth: Mutex<Option<Option<u64>>>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("transfers", &self.inner.transfers).finish_non_exhaustive()
    }
}

impl Executor {
    /// One with `transfers` places, which finds its remotes in `remotes`. A limit of bandwidth holds for each set of options that batches come with; that of the
    /// batch applies unless one was [set](Executor::set_bandwidth) here.
    pub fn new(remotes: Arc<Remotes>, transfers: usize) -> Self {
        let transfers = transfers.max(1);
        let inner = Inner {
            remotes,
            transfers,
            places: Arc::new(Semaphore::new(transfers)),
            engines: Mutex::default(),
            bandwidth: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Limits the bytes per second, whatever batches say.
    pub fn set_bandwidth(&self, limit: Option<u64>) {
        *lock(&self.inner.bandwidth) = Some(limit);
        for (_, engine) in lock(&self.inner.engines).iter() {
            engine.bandwidth().set_limit(limit);
        }
    }

    /// The engine for the options of a batch. Places bound what happens at the same time, so within a piece one file follows the other.
    fn engine(&self, config: &Map<String, Value>) -> Result<Engine, String> {
        let mut engines = lock(&self.inner.engines);
        if let Some(at) = engines.iter().position(|(known, _)| known == config) {
            let found = engines.remove(at).expect("it was just found");
            engines.push_front(found);
        } else {
            let json = OptionsJson { config: config.clone(), filter: Map::new() };
            let (options, _unknown) = Options::from_json(&json).map_err(|error| error.to_string())?;
            let engine = Engine::new(EngineOptions { transfers: 1, ..engine_options(&options) }, self.inner.remotes.clone());
            if let Some(limit) = *lock(&self.inner.bandwidth) {
                engine.bandwidth().set_limit(limit);
            }
            engines.push_front((config.clone(), engine));
            engines.truncate(ENGINES_MAX);
        }
        Ok(engines[0].1.clone())
    }

    async fn carry_out(self, work: Arc<Work>) {
        let stats = Arc::new(Stats::new());
        let claimed = async {
            let engine = self.engine(work.config())?;
            let changed = work.changed_remotes();
            let fence = Fence::claim(work.attempt(), &self.inner.remotes, changed.iter().map(String::as_str)).await;
            Ok::<_, String>((engine, fence.map_err(|error: ClaimError| error.to_string())?))
        };
        let (engine, fence) = match claimed.await {
            Ok((engine, fence)) => (engine, Arc::new(fence)),
            Err(why) => return refuse(&work, &why),
        };
        let carrying = Carrying { executor: self, engine, fence, stats, cancel: Cancel::new(), work };
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
        Box::pin(self.clone().carry_out(work))
    }
}

/// One batch under way.
struct Carrying {
    executor: Executor,
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

    async fn place(&self) -> OwnedSemaphorePermit {
        let inner = &self.executor.inner;
        let place = inner.places.clone().acquire_owned().await.expect("the places are never closed");
        self.work.gate().passed().await;
        place
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

    async fn piece(&self, piece: Vec<Taken>, place: OwnedSemaphorePermit) {
        let operations: Arc<[Operation]> = piece.iter().map(|taken| taken.operation.clone()).collect();
        let results = self.engine.execute_all(operations, &self.fence, &self.stats, &self.cancel).await;
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
