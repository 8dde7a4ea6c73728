//! What a class may do while it works.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;

use super::class::TaskClass;
use super::registry::Function;
use crate::cluster::{BoxFuture, NodeInfo, TaskEntry};
use crate::connection::{ByteStream, Cancellation};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::identity::CallIdentity;
use crate::types::{ClassName, Incarnation, Meta, NodeId, NodeStatus, Payload, TaskId, WantedStatus};

/// The worker, as the class `core` sees it. Implemented by the executor's side.
pub(crate) trait LocalNode: Send + Sync + 'static {
    fn id(&self) -> &NodeId;
    fn info(&self) -> NodeInfo;
    fn status(&self) -> NodeStatus;
    fn set_status(&self, wanted: WantedStatus) -> Result<NodeStatus>;
    fn tasks(&self, class: Option<&ClassName>) -> Vec<TaskEntry>;
    fn stop_task(&self, class: &ClassName, id: &TaskId) -> Result<()>;
    fn meta(&self) -> Meta;
    fn update_meta(&self, changes: &Meta) -> Result<Meta>;
    fn remove_meta(&self, names: &[String]) -> Meta;
    fn data(&self, key: &str) -> Option<serde_json::Value>;
    fn put_data(&self, key: String, value: serde_json::Value) -> Result<()>;
    fn delete_data(&self, key: &str);
    fn function(&self, name: &str) -> Option<Function>;
    fn functions(&self) -> Vec<String>;
    fn file_root(&self) -> &Path;
    fn is_granted(&self, class: &ClassName) -> bool;
    fn emit(&self, class: &ClassName, task: Option<&TaskId>, payload: Payload) -> Result<u64>;
    /// Ends when fewer than this many events of the class wait for their acknowledgement.
    fn until_fewer_events(&self, class: &ClassName, than: u64) -> BoxFuture<'_, ()>;
}

/// Lets a class touch the machine if the worker's configuration does, and leaves a line for the audit either way.
fn require_grant(node: &dyn LocalNode, class: &ClassName, who: &dyn fmt::Display, what: &str) -> Result<()> {
    let granted = node.is_granted(class);
    tracing::info!(target: "nkcluster::audit", node = %node.id(), %class, by = %who, what, granted, "grant");
    match granted {
        true => Ok(()),
        false => {
            let id = node.id();
            let message = format!("worker {id} does not let the class {class} {what}; add \"{class}\" to `grants` in its configuration");
            Err(Error::new(ErrorCode::NotAllowed, message))
        }
    }
}

/// Events of one class that [`TaskContext::emit_paced`] lets wait: a window on its way, which is what keeps a link busy.
pub const EVENTS_AHEAD_MAX: u64 = 256;

/// What a request may use.
pub struct RequestContext {
    pub(crate) node: Arc<dyn LocalNode>,
    pub(crate) class: ClassName,
    pub(crate) identity: CallIdentity,
    pub(crate) deadline: Instant,
    pub(crate) stream: Option<ByteStream>,
    pub(crate) cancellation: Cancellation,
}

impl fmt::Debug for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestContext").field("class", &self.class).field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl RequestContext {
    /// The worker that answers.
    pub fn node_id(&self) -> &NodeId {
        self.node.id()
    }

    /// The worker's status.
    pub fn status(&self) -> NodeStatus {
        self.node.status()
    }

    /// Identity of the call: the same for each retry of it.
    pub fn identity(&self) -> CallIdentity {
        self.identity
    }

    /// When the caller stops waiting.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Ends when the caller no longer waits. A request may go on all the same: its outcome is kept for a retry.
    pub async fn cancelled(&self) {
        self.cancellation.cancelled().await;
    }

    /// The stream of bytes that came with the call, once.
    pub fn open_stream(&mut self) -> Option<ByteStream> {
        self.stream.take()
    }

    /// Sends an event of this class to the control side; it is kept until it was taken there. Returns its number.
    ///
    /// # Errors
    /// `payload_too_large`, or `invalid_payload` if it cannot be encoded.
    pub fn emit<E: serde::Serialize>(&self, event: &E) -> Result<u64> {
        self.node.emit(&self.class, None, Payload::encode(event)?)
    }

    /// The directory that files of this worker stay in.
    pub fn file_root(&self) -> &Path {
        self.node.file_root()
    }

    /// Whether this class may touch the machine beyond the file root: each use is written to the log, target `nkcluster::audit`. `what` completes the sentence
    /// "the worker lets the class …", such as `write to /srv/data`.
    ///
    /// # Errors
    /// `not_allowed` unless the worker's configuration names the class in `grants`.
    pub fn require_grant(&self, what: &str) -> Result<()> {
        require_grant(&*self.node, &self.class, &self.identity, what)
    }

    pub(crate) fn node(&self) -> &dyn LocalNode {
        &*self.node
    }
}

/// A task's context before its class is known.
#[derive(Clone)]
pub(crate) struct RawTaskContext {
    pub(crate) node: Arc<dyn LocalNode>,
    pub(crate) class: ClassName,
    pub(crate) id: TaskId,
}

/// What a task may use, for as long as it runs. Cheap to clone.
pub struct TaskContext<C> {
    raw: RawTaskContext,
    class: PhantomData<fn() -> C>,
}

impl<C> Clone for TaskContext<C> {
    fn clone(&self) -> Self {
        Self { raw: self.raw.clone(), class: PhantomData }
    }
}

impl<C> fmt::Debug for TaskContext<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext").field("class", &self.raw.class).field("id", &self.raw.id).finish()
    }
}

impl<C: TaskClass> TaskContext<C> {
    pub(super) fn new(raw: RawTaskContext) -> Self {
        Self { raw, class: PhantomData }
    }

    /// Its id.
    pub fn task_id(&self) -> &TaskId {
        &self.raw.id
    }

    /// The worker that it runs on.
    pub fn node_id(&self) -> &NodeId {
        self.raw.node.id()
    }

    /// The worker's status.
    pub fn status(&self) -> NodeStatus {
        self.raw.node.status()
    }

    /// Sends an event to the control side; it is kept until it was taken there. Returns its number.
    ///
    /// # Errors
    /// `payload_too_large`, or `invalid_payload` if it cannot be encoded.
    pub fn emit(&self, event: &C::Event) -> Result<u64> {
        self.raw.node.emit(&self.raw.class, Some(&self.raw.id), Payload::encode(event)?)
    }

    /// Sends an event as soon as fewer than [`EVENTS_AHEAD_MAX`] of the class wait to be taken in.
    ///
    /// [`emit`](Self::emit) never waits, so a task that produces events faster than they are taken in, or while the worker is out of reach, fills the journal until
    /// its oldest events are dropped. A task that can wait uses this one.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    ///
    /// # Cancellation
    /// Dropping the future before its end sends nothing.
    pub async fn emit_paced(&self, event: &C::Event) -> Result<u64>
    where
        C::Event: Sync,
    {
        let payload = Payload::encode(event)?;
        self.raw.node.until_fewer_events(&self.raw.class, EVENTS_AHEAD_MAX).await;
        self.raw.node.emit(&self.raw.class, Some(&self.raw.id), payload)
    }

    /// The directory that files of this worker stay in.
    pub fn file_root(&self) -> &Path {
        self.raw.node.file_root()
    }

    /// Whether this class may touch the machine beyond the file root: each use is written to the log, target `nkcluster::audit`. `what` completes the sentence
    /// "the worker lets the class …", such as `write to /srv/data`.
    ///
    /// # Errors
    /// `not_allowed` unless the worker's configuration names the class in `grants`.
    pub fn require_grant(&self, what: &str) -> Result<()> {
        require_grant(&*self.raw.node, &self.raw.class, &format_args!("task {}", self.raw.id), what)
    }
}

/// What a command may use.
pub struct CommandContext<C> {
    task: TaskContext<C>,
    deadline: Instant,
}

impl<C> fmt::Debug for CommandContext<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandContext").field("task", &self.task).finish_non_exhaustive()
    }
}

impl<C: TaskClass> CommandContext<C> {
    pub(super) fn new(raw: RawTaskContext, deadline: Instant) -> Self {
        Self { task: TaskContext::new(raw), deadline }
    }

    /// The task that it is for.
    pub fn task(&self) -> &TaskContext<C> {
        &self.task
    }

    /// When the caller stops waiting.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// Where an event is taken in.
#[derive(Clone, Debug)]
pub struct EventContext {
    /// The control node.
    pub control: NodeId,
    /// Its incarnation.
    pub control_incarnation: Incarnation,
    /// The cluster, for what the class wants to do about the event.
    pub cluster: crate::cluster::Cluster,
}
