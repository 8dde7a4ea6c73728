//! The queue between a controller, which plans what is to be done, and workers, which do it.
//!
//! They share nothing but files: rclone's layout, and JSON that rclone's `job/batch` accepts as it is.
//!
//! ```text
//!   <work>/queue/pending/<job>.json              a batch that waits
//!          queue/processing/<job>-<worker>.json  a batch that a worker has
//!          queue/done/<job>.json                 its result
//!          queue/finished/<kind>/…               what is kept when it is counted
//!          queue/status/<worker>.json            what a worker does at the moment
//!          queue/claims/<job>.<n>                ours: the log of an attempt (claim, splits, seal)
//!          queue/wanted/<worker>                 ours: a worker has nothing to do, and asks for a part of another's batch
//!          run/<run>/controller.<n>              ours: the controllers of a run; the highest number is the living one
//!          run/<run>/batch/<job>.json            ours: each batch as it was offered, never changed
//!          run/<run>/counted/<batch>             ours: what became of a batch; whoever creates it has counted it
//! ```
//!
//! Four rules keep it safe, whoever dies or sleeps:
//!
//! - **Created first decides.** Who has a batch, whether it was split before it was taken away, and what became of it is decided by creating a file that must not
//!   exist. No lock is held and no clock is compared.
//! - **A dead name stays dead.** A batch that is taken from a worker is offered under the name of the next attempt. A result under the old name is set aside.
//! - **Taken away, then offered.** First the log is sealed, then the effects of the attempt are [fenced](Fence), then its result is looked for once more; only then the batch is
//!   offered again.
//! - **The inputs over all files of a run partition its plan.** Whoever splits a batch records the split before it publishes the part; whoever recovers the batch finds
//!   the record.

mod batch;
mod controller;
mod fault;
mod lease;
mod name;
mod pacing;
mod plan;
mod run;
#[cfg(test)]
mod simulation;
mod status;
mod store;
mod work;
mod worker;

pub use batch::{Batch, BatchNote, BatchResult, FILE_BYTES_MAX, Failure, FormatError, INPUTS_MAX, STATUS_FAILED};
pub use controller::{ControllerOptions, Totals};
pub use lease::Lease;
pub use name::{ATTEMPT_MAX, FAMILY, JobName, PLANNED_BATCHES_MAX, WorkerId, WorkerIdError};
pub use run::{Cleanup, Fence, Fenced, RunEnd, RunError, RunEvent, RunHandle, RunListener, RunOptions, RunStart, is_under_way, start_run};
pub use status::{STATUS_BYTES_MAX, StatusNote, WorkerStatus};
#[cfg(test)]
pub(crate) use store::memory;
pub use store::{Content as StoredContent, Honours, LISTED_MAX, Listed, LocalStore, ObjectStore, QueueStore, SharedStore, StoreError};
pub use work::{Execute, Taken, Work};
pub(crate) use worker::quit_path;
pub use worker::{Waits, WorkerEnd, WorkerEvent, WorkerHandle, WorkerListener, WorkerOptions, run_worker};
