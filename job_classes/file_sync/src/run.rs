//! One run of a copy, sync or move, or of a delete, from the first listing to its true end.
//!
//! ```text
//!   planner ──steps──► run ──operations──► carrier ──► engine here, a queue, or the workers of a cluster
//!      ▲                │ ◄────outcomes─────── │
//!      └── failures ────┤
//!                       ├──► directories and times, which it does itself
//!                       └──► what people are told
//! ```
//!
//! A run that failed in part is tried again, `--retries` times: what was copied compares as the same then. It always ends by itself, and its [`Summary`] says success
//! only if everything is done.

mod carrier;
pub(crate) mod closing;
mod control;
mod crew;
mod here;
pub(crate) mod ledger;
mod narrow;
mod order;
mod places;
mod through_queue;
mod tries;
mod workers;

pub use self::control::{Control, Snapshot};
pub use self::crew::Crew;
pub(crate) use self::here::engine_options;
pub use self::order::{Order, OrderError};
pub use self::through_queue::Queue;
pub use self::tries::{End, Here, Summary, Told, Way, run};
pub use self::workers::Workers;
pub(crate) use self::workers::{Keep, Persistent};

#[cfg(test)]
mod tests;
