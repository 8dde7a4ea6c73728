//! Job class `file_sync`: a distributed copy, sync and move.
//!
//! Two trees are compared, what differs becomes **operations**, operations travel in **batches** through a **queue**, and workers carry them out. The parts do not know
//! more of each other than this:
//!
//! ```text
//!   storage ◄── listing ◄── comparison ──► operations ──► queue ──► worker ──► engine ──► storage
//! ```
//!
//! The layout of the queue, its files and the meaning of the flags are those of rclone's cluster mode; what is different is that every effect is fenced: a worker
//! that wakes up late changes nothing.

mod attempt;
mod engine;
mod entry;
mod fence;
mod operation;
mod path;
mod remote;
mod stats;
mod storage;

pub use crate::attempt::{Attempt, RunId};
pub use crate::engine::{Bandwidth, Cancel, Done, Effect, Engine, EngineOptions, Failure, Links, OperationError, Verify};
pub use crate::entry::{Entry, EntryKind};
pub use crate::fence::{ClaimError, Fence, FenceStrength, changed_remotes, prepare, retire, revoke, strength};
pub use crate::operation::{Operation, Planned, Seen};
pub use crate::path::{EntryPath, PATH_BYTES_MAX, PathError};
pub use crate::remote::{
    ConfigError, Place, Remote, RemoteConfig, RemoteError, RemoteSpec, Remotes, SPEC_BYTES_MAX, STAGING_PREFIX, SpecError, is_staging_name,
    without_secrets,
};
pub use crate::stats::{Counter, Stats, StatsReport, TransferGuard, Transferring};
pub use crate::storage::{Abilities, Condition, Content, ErrorKind, Hash, Storage, StorageError, WriteOptions, Writer};
