//! The handle: one API for applications, job classes, command line and dashboard.
//!
//! A [`Cluster`] is cheap to clone and does the same wherever it comes from: [`Cluster::connect`] dials control nodes with the role `admin`, and a control
//! node hands out its own (`NodeHandle::cluster`). Everything here is in bytes ([`Payload`]); typed calls are an extension of `job`.
//!
//! Every call gets exactly one answer. Its identity is given here, once, and kept over every retry, so that a worker which has seen it answers again
//! instead of doing it again.

mod call;
mod core_api;
mod events;
mod operation;
mod remote;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

pub use self::call::{Backend, BoxFuture, CallOptions, NodeCall, Retry, StreamedCall, TIMEOUT_DEFAULT};
pub use self::core_api::{CORE_CLASS, CoreReply, CoreRequest, FileRequest, TaskEntry, TaskState, core_class};
pub use self::events::{EVENTS_QUEUED_MAX, EventSink, EventStream, event_queue, read_events, write_events};
pub use self::operation::{
    EventBody, EventFilter, EventRecord, FullUri, LatencyInfo, NodeInfo, NodesReply, Operation, OperationReply, ProxyInfo,
};
pub use self::remote::ConnectOptions;
use crate::connection::ByteStream;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::{CallHead, Verb};
use crate::proto::identity::CallIdentity;
use crate::types::{ClassName, Incarnation, Meta, NodeId, NodeStatus, NodeUri, Payload, Selector, TaskId, WantedStatus};

/// Pause before a retry, at least and at most.
const RETRY_PAUSE_MS: std::ops::Range<u64> = 20..200;

/// Pause between two looks at the status of a node.
const STATUS_PAUSE: Duration = Duration::from_millis(10);

/// The cluster, as seen from anywhere.
#[derive(Clone)]
pub struct Cluster {
    backend: Arc<dyn Backend>,
    edge: Incarnation,
    numbers: Arc<AtomicU64>,
    /// Whether its calls ask for connections of their own.
    exclusive: bool,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("edge", &self.edge).finish_non_exhaustive()
    }
}

/// A task that was started.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskStarted {
    /// Its id, given or made.
    pub id: TaskId,
    /// The first reply of its class; nil if it gave none.
    pub reply: Payload,
}

impl Cluster {
    /// A handle over a backend; applications use [`Cluster::connect`] or a node's handle.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, edge: random_incarnation(), numbers: Arc::new(AtomicU64::new(1)), exclusive: false }
    }

    /// Connects to the first of the control nodes that lets us in, as `admin`. The link is kept, and made anew when it ends.
    ///
    /// If a URL has the option `exclusive`, the handle is one of [`Cluster::exclusive`].
    ///
    /// # Errors
    /// `no_connections` with every address and its reason, or `invalid_password`.
    pub async fn connect(options: ConnectOptions) -> Result<Self> {
        let exclusive = options.uris.iter().any(|uri| uri.options().exclusive == Some(true));
        let (backend, edge) = remote::connect(options).await?;
        Ok(Self { edge, exclusive, ..Self::new(backend) })
    }

    /// The same cluster, where each request, command and start of a task has a connection between control node and worker for itself, with its stream.
    ///
    /// For what moves much and long, or must outlive the worker's main connection: when that is lost, calls on their own go on, and when theirs is lost, only
    /// they fail. The first call waits until the connection is made; it is kept for a few seconds for the next one. A worker has a bounded number of them: without
    /// one, or when it fails before the call has left, the call goes over the main connection.
    ///
    /// Ordinary calls and streams share a connection without delaying each other; they need none of this.
    #[must_use]
    pub fn exclusive(&self) -> Self {
        Self { exclusive: true, ..self.clone() }
    }

    /// Every node that matches, control nodes included, and who did not answer.
    pub async fn nodes(&self, select: Option<&Selector>, timeout: Duration) -> Result<NodesReply> {
        match self.operate(Operation::Nodes { select: select.map(ToString::to_string) }, timeout).await? {
            OperationReply::Nodes(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Everything known of one node.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn info(&self, node: &NodeId, timeout: Duration) -> Result<NodeInfo> {
        match self.operate(Operation::Info { node: node.clone() }, timeout).await? {
            OperationReply::Info(info) => Ok(*info),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until a node has a status, also one that is not known yet; returns what is known of it then.
    ///
    /// A worker says that it runs when it can take work, and becomes `ready` here a moment later, when its control node has adopted it.
    ///
    /// # Errors
    /// `timeout`, with what was known last.
    pub async fn wait_status(&self, node: &NodeId, status: NodeStatus, timeout: Duration) -> Result<NodeInfo> {
        let deadline = Instant::now() + call::bounded(timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let last = match self.info(node, left).await {
                Ok(info) if info.status == status => return Ok(info),
                Ok(info) => format!("it is {}", info.status),
                Err(error) => error.message().to_owned(),
            };
            if Instant::now() + STATUS_PAUSE >= deadline {
                return Err(Error::new(ErrorCode::Timeout, format!("node {node} was not {status} within {timeout:?}: {last}")));
            }
            tokio::time::sleep(STATUS_PAUSE).await;
        }
    }

    /// Attaches a worker by its address; returns its id.
    pub async fn attach(&self, uri: &NodeUri, timeout: Duration) -> Result<NodeId> {
        match self.operate(Operation::Connect { uri: call::reveal(uri) }, timeout).await? {
            OperationReply::Connected { node } => Ok(node),
            other => Err(unexpected(&other)),
        }
    }

    /// Drops the proxy of a node for good. A worker that knows our addresses announces itself again.
    pub async fn forget(&self, node: &NodeId, timeout: Duration) -> Result<()> {
        match self.operate(Operation::Forget { node: node.clone() }, timeout).await? {
            OperationReply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn operate(&self, operation: Operation, timeout: Duration) -> Result<OperationReply> {
        self.backend.operate(operation, call::bounded(timeout)).await
    }

    /// One request to a class of a worker.
    pub async fn request(&self, node: &NodeId, class: &ClassName, payload: Payload, options: CallOptions) -> Result<Payload> {
        let head = self.head(Verb::Request, node, class, None, &options);
        self.call(head, payload, options).await
    }

    /// Starts a task, with the id of `options` or one of its own.
    pub async fn start_task(&self, node: &NodeId, class: &ClassName, spec: Payload, options: CallOptions) -> Result<TaskStarted> {
        let id = match &options.task_id {
            Some(id) => id.clone(),
            None => TaskId::new(uuid::Uuid::now_v7().to_string())?,
        };
        let head = self.head(Verb::Task, node, class, Some(id.clone()), &options);
        let reply = self.call(head, spec, options).await?;
        Ok(TaskStarted { id, reply })
    }

    /// Sends a command to a task.
    pub async fn command(
        &self,
        node: &NodeId,
        class: &ClassName,
        task: &TaskId,
        command: Payload,
        options: CallOptions,
    ) -> Result<Payload> {
        let head = self.head(Verb::Command, node, class, Some(task.clone()), &options);
        self.call(head, command, options).await
    }

    /// A call that carries a stream of bytes beside its payload.
    pub async fn request_with_stream(
        &self,
        node: &NodeId,
        class: &ClassName,
        payload: Payload,
        options: CallOptions,
    ) -> Result<(PendingCall, ByteStream)> {
        let head = self.head(Verb::Request, node, class, None, &options);
        let streamed = self.backend.call_with_stream(NodeCall { head, payload, timeout: call::bounded(options.timeout) }).await?;
        Ok((PendingCall { answer: streamed.answer }, streamed.stream))
    }

    /// Live events of the cluster; never blocks a worker: what a slow reader misses is told as a gap.
    pub async fn events(&self, filter: EventFilter) -> Result<EventStream> {
        self.backend.subscribe(filter).await
    }

    /// A request of the built-in class `core`.
    pub async fn core(&self, node: &NodeId, request: &CoreRequest, options: CallOptions) -> Result<CoreReply> {
        self.request(node, &core_class(), Payload::encode(request)?, options).await?.decode()
    }

    /// Round trip from here to a worker and back.
    pub async fn ping(&self, node: &NodeId, timeout: Duration) -> Result<Duration> {
        let sent = Instant::now();
        self.core(node, &CoreRequest::Ping, CallOptions::timeout(timeout)).await?;
        Ok(sent.elapsed())
    }

    /// Changes the status of a worker.
    pub async fn set_status(&self, node: &NodeId, status: WantedStatus, timeout: Duration) -> Result<NodeStatus> {
        match self.core(node, &CoreRequest::SetStatus(status), CallOptions::timeout(timeout)).await? {
            CoreReply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Labels of a worker.
    pub async fn meta(&self, node: &NodeId, timeout: Duration) -> Result<Meta> {
        self.meta_request(node, CoreRequest::Meta, timeout).await
    }

    /// Sets labels: the value of each name is replaced, new names are added; returns all.
    pub async fn update_meta(&self, node: &NodeId, changes: Meta, timeout: Duration) -> Result<Meta> {
        self.meta_request(node, CoreRequest::UpdateMeta(changes), timeout).await
    }

    /// Removes labels by name; returns the rest.
    pub async fn remove_meta(&self, node: &NodeId, names: Vec<String>, timeout: Duration) -> Result<Meta> {
        self.meta_request(node, CoreRequest::RemoveMeta(names), timeout).await
    }

    async fn meta_request(&self, node: &NodeId, request: CoreRequest, timeout: Duration) -> Result<Meta> {
        match self.core(node, &request, CallOptions::timeout(timeout)).await? {
            CoreReply::Meta(meta) => Ok(meta),
            other => Err(unexpected(&other)),
        }
    }

    /// A value of the worker's key/value store; null when missing.
    pub async fn data(&self, node: &NodeId, key: &str, timeout: Duration) -> Result<serde_json::Value> {
        match self.core(node, &CoreRequest::GetData(key.to_owned()), CallOptions::timeout(timeout)).await? {
            CoreReply::Value(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// Stores a value.
    pub async fn put_data(&self, node: &NodeId, key: &str, value: serde_json::Value, timeout: Duration) -> Result<()> {
        let request = CoreRequest::PutData { key: key.to_owned(), value };
        self.core(node, &request, CallOptions::timeout(timeout)).await.map(|_| ())
    }

    /// Deletes a value.
    pub async fn delete_data(&self, node: &NodeId, key: &str, timeout: Duration) -> Result<()> {
        self.core(node, &CoreRequest::DelData(key.to_owned()), CallOptions::timeout(timeout)).await.map(|_| ())
    }

    /// Calls a function that the worker registered by name.
    pub async fn call_function(
        &self,
        node: &NodeId,
        function: &str,
        args: Vec<serde_json::Value>,
        options: CallOptions,
    ) -> Result<serde_json::Value> {
        let request = CoreRequest::Call { function: function.to_owned(), args };
        match self.core(node, &request, options).await? {
            CoreReply::Value(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// Tasks of a worker, of one class or all.
    pub async fn tasks(&self, node: &NodeId, class: Option<ClassName>, timeout: Duration) -> Result<Vec<TaskEntry>> {
        match self.core(node, &CoreRequest::Tasks { class }, CallOptions::timeout(timeout)).await? {
            CoreReply::Tasks(tasks) => Ok(tasks),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a task; its last event has the reason `killed`.
    pub async fn stop_task(&self, node: &NodeId, class: &ClassName, id: &TaskId, timeout: Duration) -> Result<()> {
        let request = CoreRequest::StopTask { class: class.clone(), id: id.clone() };
        self.core(node, &request, CallOptions::timeout(timeout)).await.map(|_| ())
    }

    fn head(&self, verb: Verb, node: &NodeId, class: &ClassName, task: Option<TaskId>, options: &CallOptions) -> CallHead {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        CallHead {
            verb,
            timeout_ms: call::millis(options.timeout),
            identity: options.identity.unwrap_or(CallIdentity { edge: self.edge, number }),
            retry: options.identity.is_some(),
            exclusive: self.exclusive,
            incarnation: options.incarnation.unwrap_or_default(),
            node: Some(node.clone()),
            class: Some(class.clone()),
            task,
        }
    }

    async fn call(&self, mut head: CallHead, payload: Payload, options: CallOptions) -> Result<Payload> {
        let mut timeout = call::bounded(options.timeout);
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        loop {
            if options.retry == Retry::UntilDeadline
                && !head.retry
                && let Some(node) = &head.node
            {
                head.incarnation = self.backend.incarnation(node, left()).await.unwrap_or_default();
                timeout = left();
            }
            head.timeout_ms = call::millis(timeout);
            let error = match self.backend.call(NodeCall { head: head.clone(), payload: payload.clone(), timeout }).await {
                Ok(reply) => return Ok(Payload::from_bytes(reply)),
                Err(error) => error,
            };
            let pause = Duration::from_millis(rand::rng().random_range(RETRY_PAUSE_MS));
            // What was refused without effect may be done by any incarnation; what may have been done, only by the one that has it.
            head.retry |= error.may_have_run();
            let first = match error.addressed() {
                Some(addressed) if head.incarnation.is_none() => addressed,
                _ => head.incarnation,
            };
            // Another incarnation answers, which will never know what the first one did; or nobody can say which one that was.
            let elsewhere = head.retry && error.addressed().is_some_and(|addressed| addressed != first);
            let lost = elsewhere || (error.may_have_run() && first.is_none());
            if options.retry == Retry::Never || lost || !call::worth_a_retry(&error) || Instant::now() + pause >= deadline {
                return Err(error);
            }
            if head.retry {
                head.incarnation = first;
            }
            tracing::debug!(node = ?head.node, %error, "the call is tried again");
            tokio::time::sleep(pause).await;
            timeout = left();
        }
    }
}

/// The answer of a call whose stream is in use.
pub struct PendingCall {
    answer: BoxFuture<'static, Result<bytes::Bytes>>,
}

impl std::fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingCall").finish_non_exhaustive()
    }
}

impl PendingCall {
    /// Waits for the answer.
    pub async fn wait(self) -> Result<Payload> {
        self.answer.await.map(Payload::from_bytes)
    }
}

/// 128 random bits for one life of a process.
pub fn random_incarnation() -> Incarnation {
    Incarnation::from_bytes(rand::rng().random())
}

fn unexpected(reply: &impl std::fmt::Debug) -> Error {
    Error::new(ErrorCode::ProtocolError, format!("the node answered something else than was asked: {reply:?}"))
}
