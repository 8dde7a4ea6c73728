//! Job classes: what workers can do.
//!
//! A class is one value that implements [`JobClass`], and [`TaskClass`] if it has tasks. The same value is registered ([`Classes`]) on workers and on
//! control nodes: `request`, `task`, `command` and `status` run on the worker, `event` and `resync` on the control node.
//!
//! A class with one request is ten lines:
//!
//! ```
//! use nkcluster::Result;
//! use nkcluster::job::{JobClass, RequestContext};
//!
//! struct Hello;
//! impl JobClass for Hello {
//!     const NAME: &'static str = "hello";
//!     type Request = String;
//!     type Reply = String;
//!     async fn request(&self, _: RequestContext, name: String) -> Result<String> {
//!         Ok(format!("hello, {name}"))
//!     }
//! }
//! # let _ = nkcluster::job::Classes::new().with(Hello);
//! ```
//!
//! Handlers run in tasks of their own: a slow one delays nobody, a panic becomes `handler_panicked` for its caller and the worker goes on.

mod actor;
mod class;
mod context;
pub(crate) mod core;
pub mod election;
mod placed;
mod registry;
mod typed;

pub(crate) use self::actor::TaskEnd;
pub use self::actor::TaskRun;
pub use self::class::{JobClass, JobEvent, JobEventKind, NoRequests, Started, TaskClass};
pub use self::context::{CommandContext, EVENTS_AHEAD_MAX, EventContext, RequestContext, TaskContext};
pub(crate) use self::context::{LocalNode, RawTaskContext};
pub(crate) use self::placed::{ErasedActor, Kept, PlacedKind, Recording};
pub use self::placed::{PlacedActor, PlacedCalls, PlacedContext};
pub use self::registry::Classes;
pub(crate) use self::registry::{ErasedClass, Function, RawEvent, RawEventKind, RawStarted, TaskHandle};
pub use self::typed::{TypedCalls, TypedTask};
