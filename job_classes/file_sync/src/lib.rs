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
mod entry;
mod operation;
mod path;
pub mod queue;
mod storage;

pub use crate::attempt::{Attempt, RunId};
pub use crate::entry::{Entry, EntryKind};
pub use crate::operation::{Operation, Planned, Seen};
pub use crate::path::{EntryPath, PATH_BYTES_MAX, PathError};
pub use crate::storage::{Abilities, Condition, Content, ErrorKind, Hash, Storage, StorageError, WriteOptions, Writer};
