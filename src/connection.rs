//! One authenticated link: its handle and its driver.
//!
//! ```text
//!   Channel::call ─┐                       ┌─► Output ─► socket        by the caller, if it is alone; else by the writer task
//!   Channel::event ├─► Session (machine) ──┤
//!   ByteStream     ┘     ▲                 └─► tokens of calls, wakers of streams, LinkHandler
//!                        └──── reader task ◄── socket
//! ```
//!
//! The session machine lives behind a lock that guards a few lines at a time and is never held across an await. A caller puts its frame into the lanes, and writes
//! it or wakes the writer; the reader hands what arrives to the [`LinkHandler`], which must not block. Roles, jobs and actors are unknown here.

pub mod admission;
pub mod establish;
mod link;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use link::unix_time_ms;
pub use link::{CallAnswer, Cancellation, Channel, IncomingCall, Link, LinkHandler, LinkOptions, LinkParts, PendingAnswer};
pub use stream::ByteStream;
