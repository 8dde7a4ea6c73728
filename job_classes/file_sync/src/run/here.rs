//! Carries operations out in this process.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::carrier::{Failed, Outcome, Sent, Sink};
use super::control::Control;
use crate::engine::{Engine, EngineOptions, Links, OperationError, Verify};
use crate::fence::Fence;
use crate::operation::Operation;
use crate::options::Options;

/// Files of one piece, which are carried out one after the other.
const PIECE_FILES_MAX: usize = 64;
/// Bytes of a piece.
const PIECE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How an engine works under the options of a run.
pub(crate) fn engine_options(options: &Options) -> EngineOptions {
    EngineOptions {
        transfers: options.transfers as usize,
        tries: options.low_level_retries,
        verify: if options.no_verify { Verify::Off } else { Verify::Cheap },
        links: if options.links { Links::Keep } else { Links::Refuse },
        bandwidth: options.bwlimit.bytes_per_second(),
        ..EngineOptions::default()
    }
}

/// Carries out what comes, `transfers` pieces at the same time. The engine works off a piece file by file.
pub(super) async fn carry(mut sink: Sink, engine: Engine, transfers: usize, control: Control) -> Result<(), String> {
    let work = Work { engine, fence: Arc::new(Fence::unfenced()), control };
    let places = Arc::new(Semaphore::new(transfers.max(1)));
    let mut running = JoinSet::new();
    let (mut piece, mut bytes) = (Vec::new(), 0_u64);
    loop {
        let sent = sink.next().await;
        let is_end = sent.is_none();
        let mut settling = None;
        match sent {
            Some(Sent::Operation(operation)) => {
                bytes = bytes.saturating_add(operation.size());
                piece.push(operation);
                let is_full = piece.len() >= PIECE_FILES_MAX || bytes >= PIECE_BYTES_MAX;
                // With places to spare a piece need not be full.
                let share = sink.waiting() / transfers.max(1);
                if !is_full && (piece.len() <= share || places.available_permits() == 0) {
                    continue;
                }
            }
            Some(Sent::Settle(waiting)) => settling = Some(waiting),
            Some(Sent::Flush) | None => {}
        }
        if !piece.is_empty() {
            let place = places.clone().acquire_owned().await.expect("the places are never closed");
            tokio::select! {
                () = work.control.gate().passed() => {}
                // The engine begins nothing that is cancelled, and says so of each.
                () = work.control.cancelling().cancelled() => {}
            }
            let (work, operations, teller) = (work.clone(), std::mem::take(&mut piece), sink.teller());
            bytes = 0;
            running.spawn(async move {
                for outcome in work.carry_out(operations, place).await {
                    if teller.send(outcome).await.is_err() {
                        return;
                    }
                }
            });
        }
        let is_to_end = is_end || settling.is_some();
        while let Some(ended) = if is_to_end { running.join_next().await } else { running.try_join_next() } {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        if let Some(waiting) = settling {
            // Whoever does not wait any more need not know.
            let _ = waiting.send(());
        }
        if is_end {
            return Ok(());
        }
    }
}

#[derive(Clone)]
struct Work {
    engine: Engine,
    fence: Arc<Fence>,
    control: Control,
}

impl Work {
    async fn carry_out(&self, operations: Vec<Operation>, place: OwnedSemaphorePermit) -> Vec<Outcome> {
        let operations: Arc<[Operation]> = operations.into();
        let results = self.engine.execute_all(operations.clone(), &self.fence, self.control.stats(), self.control.cancelling()).await;
        drop(place);
        operations.iter().zip(results).map(|(operation, result)| outcome_of(operation, result.map(drop))).collect()
    }
}

pub(super) fn outcome_of(operation: &Operation, result: Result<(), OperationError>) -> Outcome {
    let failure = result.err().map(|error| Failed { is_retryable: error.kind.is_retryable(), error: error.to_string() });
    Outcome { path: operation.file().to_owned(), failure }
}
