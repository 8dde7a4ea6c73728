//! Operations go through a queue, to workers that share its storage; some of them may be those of a cluster, which are told when there is work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::carrier::{Failed, Outcome, Sent, Sink, carrier};
use super::control::Control;
use super::crew::{Crew, Employed, News};
use super::tries::{Carrying, Journey, Told, Way};
use crate::attempt::{Attempt, RunId};
use crate::fence::{self, FenceStrength};
use crate::operation::Operation;
use crate::options::{self, Audience};
use crate::queue::{
    Cleanup, ControllerOptions, Failure, Fence, Fenced, RunEnd, RunError, RunEvent, RunHandle, RunOptions, RunStart, SharedStore, Totals,
    WorkerId, start_run,
};
use crate::remote::Remotes;
use crate::stats::{Counter, StatsReport};

/// Looks at a queue where something happens come this often at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A queue on a storage that controller and workers share.
pub struct Queue {
    /// The storage of the queue.
    pub store: SharedStore,
    /// The same as a remote: it is no content of the trees.
    pub remote: String,
    /// Names the run.
    pub run: RunId,
    /// Whether it begins, or goes on.
    pub start: RunStart,
    /// Silence after which a batch is taken from its worker.
    pub lease: Duration,
    /// Workers of a cluster that work for it while the run lasts, beside those that look into the queue by themselves.
    pub crew: Option<Crew>,
}

impl Way for Queue {
    fn excluded(&self) -> Option<&str> {
        Some(&self.remote)
    }

    fn start<'a>(&'a self, journey: Journey<'a>) -> BoxFuture<'a, Result<Carrying, String>> {
        self.begin(journey).boxed()
    }
}

impl Queue {
    async fn begin(&self, journey: Journey<'_>) -> Result<Carrying, String> {
        let Journey { options, remotes, control, changed, firm, told } = journey;
        let effects = Arc::new(Effects { remotes: remotes.clone(), changed, firm });
        let (events, heard) = mpsc::unbounded_channel();
        // Results of batches, and one list of workers for each look: who hears them has little to do.
        let tell = events.clone();
        let listener = Arc::new(move |event| drop(tell.send(Heard::Event(event))));
        let started = start_run(self.store.clone(), effects.clone(), self.run, self.start, self.run_options(options), listener).await;
        let handle = started.map_err(|error| error.to_string())?;
        // Only now is it known that the run may go on, and nothing is offered yet. A handle that is dropped cancels it.
        for text in &effects.changed {
            let remote = remotes.open(text).map_err(|error| error.to_string())?;
            let strength = fence::prepare(&remote, self.run).await.map_err(|error| error.to_string())?;
            if strength < firm {
                let what = format!(
                    "{remote} cannot refuse what a worker that was given up still does; batches are offered again only after a long wait"
                );
                let _ = told.send(Told::Notice(what)).await;
            }
        }
        let remote = remotes.open(&self.remote).map_err(|error| error.to_string())?.portable();
        let employ = |crew: &Crew| crew.employ(self.run, remote, self.store.clone(), handle.wake(), told.clone());
        let crew = self.crew.as_ref().map(employ);
        let ears = Ears { control: control.clone(), told, deletes: Arc::default(), crew };
        let run = self.run;
        Ok(Carrying(carrier(move |sink| carry(sink, handle, (events, heard), ears, effects, run))))
    }

    fn run_options(&self, options: &options::Options) -> RunOptions {
        let json = options.to_json(Audience::Worker);
        let no_worker_timeout = options.no_worker_timeout.duration().unwrap_or(Duration::MAX);
        RunOptions {
            batch_files: options.cluster_batch_files as usize,
            batch_bytes: options.cluster_batch_size.bytes().unwrap_or(u64::MAX),
            config: json.config,
            filter: json.filter,
            cleanup: match options.cluster_cleanup {
                options::Cleanup::Full => Cleanup::Full,
                options::Cleanup::Completed => Cleanup::Completed,
                options::Cleanup::None => Cleanup::None,
            },
            quits_workers: options.cluster_quit_workers,
            patience: ControllerOptions { lease: self.lease, no_worker_timeout, ..ControllerOptions::default() },
            look_interval: LOOK_INTERVAL,
            ..RunOptions::default()
        }
    }
}

/// Fences the effects of attempts on every remote that the run changes.
struct Effects {
    remotes: Arc<Remotes>,
    changed: Vec<String>,
    firm: FenceStrength,
}

impl Fence for Effects {
    fn revoke(&self, attempt: Attempt) -> BoxFuture<'_, Result<Fenced, String>> {
        async move {
            let mut weakest = Fenced::Firmly;
            for text in &self.changed {
                let remote = self.remotes.open(text).map_err(|error| error.to_string())?;
                if fence::revoke(&remote, attempt).await.map_err(|error| error.to_string())? < self.firm {
                    weakest = Fenced::OnlyByChecks;
                }
            }
            Ok(weakest)
        }
        .boxed()
    }
}

/// What comes from the run, in its order.
enum Heard {
    Event(RunEvent),
    /// Everything before is done, and every event of it stands before this.
    Settled(oneshot::Sender<()>),
}

async fn carry(
    mut sink: Sink,
    handle: RunHandle,
    (behind, mut events): (mpsc::UnboundedSender<Heard>, mpsc::UnboundedReceiver<Heard>),
    mut ears: Ears,
    effects: Arc<Effects>,
    run: RunId,
) -> Result<(), String> {
    let teller = sink.teller();
    let cancel = handle.canceller();
    let deletes = ears.deletes.clone();
    let cancelling = ears.control.cancelling().clone();
    let planning = async {
        while let Some(sent) = sink.next().await {
            let goes_on = match sent {
                Sent::Operation(operation) => {
                    deletes.fetch_add(u64::from(matches!(operation, Operation::DeleteFile { .. })), Ordering::Relaxed);
                    handle.add(operation).await
                }
                Sent::Flush => true,
                Sent::Settle(waiting) => {
                    let settled = handle.settle().await;
                    if settled {
                        // Behind every result that came before: whoever waits must have heard them.
                        let _ = behind.send(Heard::Settled(waiting));
                    }
                    settled
                }
            };
            if !goes_on {
                break;
            }
        }
        handle.finish().await
    };
    tokio::pin!(planning);
    let mut is_cancelled = false;
    let end: RunEnd = loop {
        tokio::select! {
            // What happened before is heard before.
            biased;
            Some(heard) = events.recv() => ears.take(heard, &teller).await,
            () = cancelling.cancelled(), if !is_cancelled => {
                is_cancelled = true;
                cancel.send_replace(true);
            }
            end = &mut planning => break end,
        }
    };
    while let Ok(heard) = events.try_recv() {
        ears.take(heard, &teller).await;
    }
    let is_elsewhere = end.error == Some(RunError::Superseded);
    let unused = match ears.crew.take() {
        Some(crew) => crew.end(is_elsewhere).await,
        None => Vec::new(),
    };
    match end.error {
        None => {}
        Some(error @ RunError::NoWorkers { .. }) if !unused.is_empty() => return Err(format!("{error}; {}", unused.join("; "))),
        Some(error) => return Err(error.to_string()),
    }
    for text in &effects.changed {
        let Ok(remote) = effects.remotes.open(text) else { continue };
        match fence::retire(&remote, run).await {
            Ok(kept) => {
                for path in kept {
                    let _ = ears
                        .told
                        .send(Told::Notice(format!("{remote}: {path} was kept, as it is not what an attempt was to remove")))
                        .await;
                }
            }
            Err(error) => {
                let _ = ears.told.send(Told::Notice(format!("{remote}: what attempts have left was not removed: {error}"))).await;
            }
        }
    }
    Ok(())
}

/// Hears what happens in the run, and counts.
struct Ears {
    control: Control,
    told: mpsc::Sender<Told>,
    /// Deletes that were sent and not counted yet. Results tell only how many inputs were done, and deletes mostly come alone, behind a barrier.
    deletes: Arc<AtomicU64>,
    crew: Option<Employed>,
}

impl Ears {
    async fn take(&mut self, heard: Heard, teller: &mpsc::Sender<Outcome>) {
        match heard {
            Heard::Event(event) => self.hear(event, teller).await,
            // Whoever does not wait any more need not know.
            Heard::Settled(waiting) => drop(waiting.send(())),
        }
    }

    async fn hear(&mut self, event: RunEvent, teller: &mpsc::Sender<Outcome>) {
        if let Some(crew) = &self.crew {
            match &event {
                RunEvent::Offered { job, .. } => crew.tell(News::Offered(job.clone())).await,
                RunEvent::Claimed { job, .. } | RunEvent::Counted { job, .. } | RunEvent::Revoked { job, .. } => {
                    crew.tell(News::Taken(job.clone())).await;
                }
                RunEvent::ToldToStop(worker) => crew.tell(News::ToldToStop(worker.clone())).await,
                // It tells by itself who takes part, and its workers are silent while they have no work.
                RunEvent::WorkerAppeared(worker) | RunEvent::WorkerLost(worker) if crew.node_of(worker).is_some() => return,
                _ => {}
            }
        }
        let notice = match event {
            RunEvent::Counted { job, worker, totals, failures } => {
                self.count(worker.map(|worker| self.shown(&worker)), &totals, &failures);
                for failure in failures {
                    let path = if failure.file().is_empty() { job.to_string() } else { failure.file().to_owned() };
                    let failure = Some(Failed { is_retryable: failure.is_retryable(), error: failure.error });
                    // The run hears until it is over.
                    let _ = teller.send(Outcome { path, failure }).await;
                }
                return;
            }
            RunEvent::Running(running) => {
                let mut numbers: BTreeMap<String, StatsReport> = BTreeMap::new();
                for (worker, _, stats) in running {
                    *numbers.entry(self.shown(&worker)).or_default() += &serde_json::from_value(stats).unwrap_or_default();
                }
                return self.control.doing(numbers);
            }
            RunEvent::Offered { .. } | RunEvent::Claimed { .. } | RunEvent::ToldToStop(_) => return,
            RunEvent::WorkerAppeared(worker) => format!("worker {worker} takes part"),
            RunEvent::WorkerLost(worker) => format!("worker {worker} is silent or has stopped"),
            RunEvent::Revoked { job, worker, .. } => {
                let worker = worker.map_or_else(|| "nobody known".to_owned(), |worker| self.shown(&worker));
                format!("batch {job} was taken from {worker} and is offered again")
            }
            RunEvent::Warning(what) => what,
        };
        let _ = self.told.send(Told::Notice(notice)).await;
    }

    /// A worker of the cluster has the name of its node.
    fn shown(&self, worker: &WorkerId) -> String {
        self.crew.as_ref().and_then(|crew| crew.node_of(worker)).unwrap_or_else(|| worker.to_string())
    }

    fn count(&mut self, worker: Option<String>, totals: &Totals, failures: &[Failure]) {
        let stats = self.control.stats();
        for failure in failures {
            stats.error(&failure.error, failure.is_retryable());
        }
        let done = totals.files.saturating_sub(totals.files_failed);
        let deleted = if totals.bytes == 0 { done.min(self.deletes.load(Ordering::Relaxed)) } else { 0 };
        self.deletes.fetch_sub(deleted, Ordering::Relaxed);
        stats.add(Counter::Deletes, deleted);
        let done = done - deleted;
        stats.add(Counter::Transfers, done);
        stats.add(Counter::Bytes, totals.bytes);
        if let Some(worker) = worker {
            self.control.done(&worker, None, &StatsReport { transfers: done, bytes: totals.bytes, ..StatsReport::default() });
        }
    }
}
