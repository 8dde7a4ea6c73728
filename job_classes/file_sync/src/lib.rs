//! Job class `file_sync`: a distributed copy, sync and move.
//!
//! Two trees are compared, what differs becomes **operations**, operations travel in **batches** through a **queue**, and workers carry them out. The parts do not know
//! more of each other than this:
//!
//! ```text
//!   storage ◄── listing ◄── comparison ──► plan ──► run ──operations──► here, a queue, or a cluster ──► engine ──► storage
//! ```
//!
//! The layout of the queue, its files and the meaning of the flags are those of rclone's cluster mode; what is different is that every effect is fenced: a worker
//! that wakes up late changes nothing.

mod attempt;
mod class;
mod comparison;
mod engine;
mod entry;
mod executor;
mod fence;
mod filter;
mod gate;
mod listing;
mod operation;
mod options;
mod path;
mod placed;
mod plan;
pub mod queue;
mod remote;
mod run;
mod stats;
mod storage;
#[cfg(test)]
mod test_tree;

pub use crate::attempt::{Attempt, RunId, RunIdError};
pub use crate::class::{BatchEnd, Command, Event, FileSync, Reply, Request, Spec, SyncTask, WorkReport, WorkTask};
pub use crate::engine::{Bandwidth, Cancel, Done, Effect, Engine, EngineOptions, Failure, Links, OperationError, Verify};
pub use crate::entry::{Entry, EntryKind};
pub use crate::executor::Executor;
pub use crate::fence::{ClaimError, Fence, FenceStrength, changed_remotes, prepare, retire, revoke, strength};
pub use crate::filter::{Filter, FilterError, FilterOptions, GlobError, RuleOptions, read_list};
pub use crate::gate::Gate;
pub use crate::listing::{Scope, Side};
pub use crate::operation::{Operation, Planned, Seen};
pub use crate::options::{
    Age, Audience, Cleanup, DeleteMode, Options, OptionsError, OptionsJson, OptionsJsonError, Rate, RateError, SizeSuffix, Span, UnitError,
    UnknownWord,
};
pub use crate::path::{EntryPath, PATH_BYTES_MAX, PathError};
pub use crate::placed::{
    FailedFile, Heard, ORDER_BYTES_MAX, RunFacts, RunMessage, RunRecord, RunReply, RunStart, RunState, RunStatus, RunView, SyncRun,
};
pub use crate::plan::{
    Checking, Difference, Finding, Location, Notice, NoticeKind, OverlapError, PlanCounts, PlanRequest, Planner, Problem, ProblemKind,
    Relation, Root, Step, Task, check, relation,
};
pub use crate::remote::{
    ConfigError, Place, Remote, RemoteConfig, RemoteError, RemoteSpec, Remotes, SPEC_BYTES_MAX, STAGING_PREFIX, SpecError, is_staging_name,
    without_secrets,
};
pub use crate::run::{Control, Crew, End, Here, Order, OrderError, Queue, Snapshot, Summary, Told, Way, Workers, run};
pub use crate::stats::{Counter, Stats, StatsReport, TransferGuard, Transferring};
pub use crate::storage::{Abilities, Condition, Content, ErrorKind, Hash, Storage, StorageError, WriteOptions, Writer};
