//! How a run is asked for, and what it tells.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::attempt::{Attempt, RunId};
use crate::queue::batch::Failure;
use crate::queue::controller::{ControllerOptions, Totals};
use crate::queue::name::{JobName, PLANNED_BATCHES_MAX, WorkerId};

/// Makes the effects of an attempt impossible.
pub trait Fence: Send + Sync + 'static {
    /// Whatever this attempt still tries changes nothing, once this has succeeded. It may be asked for again, also if the attempt never did anything.
    fn revoke(&self, attempt: Attempt) -> BoxFuture<'_, Result<Fenced, String>>;
}

/// How well the effects of an attempt are fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// They are impossible.
    Firmly,
    /// Its worker checks before each, so one may still be on its way. The batch is not offered again before that one must be over.
    OnlyByChecks,
}

/// What is kept of batches that are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cleanup {
    /// Nothing.
    #[default]
    Full,
    /// Those that failed.
    Completed,
    /// All.
    None,
}

/// How a run works.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Files of a batch.
    pub batch_files: usize,
    /// Bytes of a batch.
    pub batch_bytes: u64,
    /// Goes into `_config` of each batch: options of rclone that differ from their defaults.
    pub config: Map<String, Value>,
    /// Goes into `_filter` of each batch.
    pub filter: Map<String, Value>,
    /// What is kept of batches that are counted.
    pub cleanup: Cleanup,
    /// Whether the workers stop when the run is over.
    pub quits_workers: bool,
    /// How patient it is.
    pub patience: ControllerOptions,
    /// Batches that are in flight at most; planning waits.
    pub batches_in_flight: usize,
    /// Longest time between two looks at the queue while nothing happens.
    pub look_interval: Duration,
    /// How long the storage may fail before the run ends.
    pub store_timeout: Duration,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            batch_files: 1_000,
            batch_bytes: 1 << 40,
            config: Map::new(),
            filter: Map::new(),
            cleanup: Cleanup::Full,
            quits_workers: false,
            patience: ControllerOptions::default(),
            batches_in_flight: 20_000,
            look_interval: Duration::from_secs(1),
            store_timeout: Duration::from_secs(120),
        }
    }
}

/// Whether a run begins or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStart {
    /// It begins.
    New,
    /// It goes on where its last controller stopped, or was taken for dead.
    Resume,
}

/// Why a run did not come to its end. Its files stay, and it can be resumed, unless another controller does that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A run that begins has the id of another.
    #[error("there is a run {0} already; resume it, or choose another id")]
    Exists(RunId),
    /// A run that is to go on is not there.
    #[error("there is no run {0} in this queue")]
    Missing(RunId),
    /// Another controller has resumed the run.
    #[error("another controller has resumed this run")]
    Superseded,
    /// Nobody was heard of for too long.
    #[error("no worker was heard of for {silence:?}; {files} files are not done")]
    NoWorkers {
        /// For how long.
        silence: Duration,
        /// Inputs that are in a batch.
        files: u64,
    },
    /// The storage of the queue failed for too long.
    #[error("the storage of the queue fails: {0}")]
    Store(String),
    /// It was cancelled.
    #[error("cancelled, with {batched} files in no batch yet and {in_flight} files in flight")]
    Cancelled {
        /// Inputs in no batch yet.
        batched: u64,
        /// Inputs in a batch.
        in_flight: u64,
    },
    /// More batches than numbers for them.
    #[error("the plan has more than {PLANNED_BATCHES_MAX} batches")]
    TooManyBatches,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct RunEnd {
    /// What was done, also by earlier controllers of the run.
    pub totals: Totals,
    /// Why it did not come to its end, if so.
    pub error: Option<RunError>,
}

impl RunEnd {
    /// Whether all that was planned was done.
    pub fn is_success(&self) -> bool {
        self.error.is_none() && self.totals.files_failed == 0 && self.totals.batches_failed == 0
    }
}

/// What happens in a run. Each is told once, by whoever runs the run; so whoever listens must not wait.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// A batch is offered.
    Offered {
        /// Its name.
        job: JobName,
        /// Its inputs.
        files: usize,
    },
    /// A worker has a batch.
    Claimed {
        /// Its name.
        job: JobName,
        /// The worker.
        worker: WorkerId,
    },
    /// A batch came to its end, and counts as this.
    Counted {
        /// Its name.
        job: JobName,
        /// Who did it, if that is known.
        worker: Option<WorkerId>,
        /// As what it counts.
        totals: Totals,
        /// The failures of its inputs, or of the whole.
        failures: Vec<Failure>,
    },
    /// A batch was taken from its worker.
    Revoked {
        /// Its name.
        job: JobName,
        /// The worker, if one is known.
        worker: Option<WorkerId>,
        /// Whether its effects are impossible now, or only unlikely.
        fenced: Fenced,
    },
    /// A worker is there.
    WorkerAppeared(WorkerId),
    /// A worker is silent, or has stopped.
    WorkerLost(WorkerId),
    /// The run is over, and a worker is told to stop.
    ToldToStop(WorkerId),
    /// Something is odd: for people.
    Warning(String),
    /// What the workers do at the moment: who, which job, and its progress with the keys of rclone's `core/stats`.
    Running(Vec<(WorkerId, String, Value)>),
}

/// Whoever is told what happens.
pub type RunListener = Arc<dyn Fn(RunEvent) + Send + Sync>;
