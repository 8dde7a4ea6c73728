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
mod comparison;
mod entry;
mod filter;
mod listing;
mod operation;
mod options;
mod path;
mod plan;
mod storage;
#[cfg(test)]
mod test_tree;

pub use crate::attempt::{Attempt, RunId};
pub use crate::entry::{Entry, EntryKind};
pub use crate::filter::{Filter, FilterError, FilterOptions, GlobError, RuleOptions};
pub use crate::listing::{Scope, Side};
pub use crate::operation::{Operation, Planned, Seen};
pub use crate::options::{
    Age, Audience, Cleanup, DeleteMode, Options, OptionsError, OptionsJson, OptionsJsonError, Rate, RateError, SizeSuffix, Span, UnitError,
    UnknownWord,
};
pub use crate::path::{EntryPath, PATH_BYTES_MAX, PathError};
pub use crate::plan::{
    Checking, Difference, Finding, Location, Notice, NoticeKind, OverlapError, PlanCounts, PlanRequest, Planner, Problem, ProblemKind,
    Relation, Root, Step, Task, check, relation,
};
pub use crate::storage::{Abilities, Condition, Content, ErrorKind, Hash, Storage, StorageError, WriteOptions, Writer};
