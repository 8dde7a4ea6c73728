//! One call on its way to a worker, and what carries it.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use super::events::EventStream;
use super::operation::{EventFilter, Operation, OperationReply};
use crate::connection::ByteStream;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::CallHead;
use crate::proto::identity::CallIdentity;
use crate::proto::message::OutcomeAck;
use crate::types::{Incarnation, NodeId, NodeUri, Payload, TaskId};

/// How long a call waits if nothing else is said.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// The longest wait: what a call can say to others, 49 days.
const TIMEOUT_MAX: Duration = Duration::from_millis(u32::MAX as u64);

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// When a failed call is tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retry {
    /// Every failure is told at once.
    #[default]
    Never,
    /// While the deadline lasts, if the node is away, busy or its link was cut. The identity of the call keeps it from being done twice.
    UntilDeadline,
}

/// How a call is made.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// How long the caller waits.
    pub timeout: Duration,
    /// When it is tried again.
    pub retry: Retry,
    /// Id of a new task.
    pub task_id: Option<TaskId>,
    /// Identity of an earlier attempt whose answer was lost.
    pub identity: Option<CallIdentity>,
    /// The worker incarnation which that attempt addressed.
    pub incarnation: Option<Incarnation>,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self::timeout(TIMEOUT_DEFAULT)
    }
}

impl CallOptions {
    /// Waits this long, never tries again.
    pub fn timeout(timeout: Duration) -> Self {
        Self { timeout, retry: Retry::Never, task_id: None, identity: None, incarnation: None }
    }

    /// Tries again until the deadline, or until nobody is left who knows what became of an attempt that may have been carried out. A client outside of
    /// the control node asks for the worker's incarnation first, which is one more round trip.
    pub fn with_retry(mut self) -> Self {
        self.retry = Retry::UntilDeadline;
        self
    }

    /// Gives a new task this id.
    pub fn with_task_id(mut self, id: TaskId) -> Self {
        self.task_id = Some(id);
        self
    }

    /// Repeats a call whose answer was lost: it is not done twice.
    pub fn repeating(mut self, identity: CallIdentity, incarnation: Option<Incarnation>) -> Self {
        self.identity = Some(identity);
        self.incarnation = incarnation;
        self
    }
}

/// A call for one worker.
#[derive(Clone, Debug)]
pub struct NodeCall {
    /// What it asks for, and of whom.
    pub head: CallHead,
    /// Bytes of the class.
    pub payload: Payload,
    /// How long to wait.
    pub timeout: Duration,
}

/// A call whose stream is open.
pub struct StreamedCall {
    /// The one answer.
    pub answer: BoxFuture<'static, Result<Bytes>>,
    /// Bytes both ways.
    pub stream: ByteStream,
}

/// What a [`super::Cluster`] stands on: the control node itself, or a link to one.
pub trait Backend: Send + Sync + 'static {
    /// Brings a call to its worker and the answer back.
    fn call(&self, call: NodeCall) -> BoxFuture<'_, Result<Bytes>>;
    /// The same, with a stream.
    fn call_with_stream(&self, call: NodeCall) -> BoxFuture<'_, Result<StreamedCall>>;
    /// An operation of the cluster itself.
    fn operate(&self, operation: Operation, timeout: Duration) -> BoxFuture<'_, Result<OperationReply>>;
    /// Which incarnation of a worker a call would reach, if a failed call might not tell. Asked before a call that may be tried again: its retries must reach
    /// the same one.
    fn incarnation<'a>(&'a self, _node: &'a NodeId, _timeout: Duration) -> BoxFuture<'a, Option<Incarnation>> {
        Box::pin(std::future::ready(None))
    }
    /// Passes on that the outcomes of calls are needed no more. Never waits, and may be lost.
    fn acknowledge(&self, _ack: OutcomeAck) {}
    /// Sends what is still to be sent, and ends the connection, if there is one.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Live events.
    fn subscribe(&self, filter: EventFilter) -> BoxFuture<'_, Result<EventStream>>;
}

/// Whether another attempt may succeed. What the worker itself answered is final.
pub(super) fn worth_a_retry(error: &Error) -> bool {
    matches!(
        error.code(),
        ErrorCode::NotConnected | ErrorCode::ConnectionFailed | ErrorCode::Busy | ErrorCode::ShuttingDown | ErrorCode::NoConnections
    )
}

/// A timeout that can be added to any time.
pub(super) fn bounded(timeout: Duration) -> Duration {
    timeout.min(TIMEOUT_MAX)
}

/// A timeout as it travels: milliseconds, rounded up, at most 49 days.
pub(super) fn millis(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// An address as text with its password, for the authenticated link only.
pub(super) fn reveal(uri: &NodeUri) -> super::operation::FullUri {
    super::operation::FullUri::new(uri)
}
