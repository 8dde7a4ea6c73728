//! The handle: one API for applications, job classes, command line and dashboard.
//!
//! A [`Cluster`] is cheap to clone and does the same wherever it comes from: [`Cluster::connect`] dials control nodes with the role `admin`, and a control
//! node hands out its own (`NodeHandle::cluster`). Everything here is in bytes ([`Payload`]); typed calls are an extension of `job`.
//!
//! Every call gets exactly one answer. Its identity is given here, once, and kept over every retry, so that a worker which has seen it answers again
//! instead of doing it again.

mod attempts;
mod call;
mod core_api;
mod events;
mod ledger;
mod operation;
mod placed;
mod remote;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

pub(crate) use self::attempts::{Attempts, Failed, address};
pub use self::call::{Backend, BoxFuture, CallOptions, NodeCall, Retry, StreamedCall, TIMEOUT_DEFAULT};
pub use self::core_api::{CORE_CLASS, CoreReply, CoreRequest, FileRequest, TaskEntry, TaskState, core_class};
pub(crate) use self::events::read_events_to_end;
pub use self::events::{EVENT_BYTES_QUEUED_MAX, EVENTS_QUEUED_MAX, EventSink, EventStream, event_queue, read_events, write_events};
pub(crate) use self::ledger::{Ledger, Settled};
pub use self::operation::{
    EventBody, EventFilter, EventRecord, FullUri, LatencyInfo, MemberInfo, NodeInfo, NodesReply, Operation, OperationReply, PlanInfo,
    ProxyInfo, RingInfo, TransferInfo,
};
pub use self::placed::{PLACED_KEY_BYTES_MAX, PLACED_KEYS_MAX, PlacedAnswer, PlacedCall, PlacedInfo, PlacedKey, PlacedKeys, PlacedSearch};
pub use self::remote::ConnectOptions;
use crate::connection::ByteStream;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::{CallHead, Verb};
use crate::proto::identity::CallIdentity;
use crate::proto::message::OutcomeAck;
use crate::types::{ClassName, Incarnation, Meta, NodeId, NodeStatus, NodeUri, Payload, Selector, TaskId, WantedStatus};

/// Pause before a retry, at least and at most.
const RETRY_PAUSE_MS: std::ops::Range<u64> = 20..200;

/// How long a worker waits at most to be told that outcomes are needed no more, while there are few.
const ACK_AFTER: Duration = Duration::from_secs(10);

/// Pause between two looks at the status of a node.
const STATUS_PAUSE: Duration = Duration::from_millis(10);

/// The cluster, as seen from anywhere.
#[derive(Clone)]
pub struct Cluster {
    book: Arc<Book>,
    /// Whether its calls ask for connections of their own.
    exclusive: bool,
}

/// What the clones of a handle share.
struct Book {
    backend: Arc<dyn Backend>,
    edge: Incarnation,
    ledger: Mutex<Ledger>,
    /// Whether a task will tell what is owed.
    will_tell: AtomicBool,
}

impl Book {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, node: NodeId, settled: Settled) {
        let Settled { below, ranges } = settled;
        self.backend.acknowledge(OutcomeAck { edge: self.edge, node: Some(node), below, ranges });
    }

    fn tell_all(&self) {
        let (settled, nodes) = self.ledger().take_all();
        for node in nodes {
            self.tell(node, settled.clone());
        }
    }

    /// A call has ended, however it did.
    fn ended(self: &Arc<Self>, number: u64, node: &NodeId, bytes: usize) {
        let mut ledger = self.ledger();
        if ledger.end(number, node, bytes) {
            let settled = ledger.take(node);
            drop(ledger);
            self.tell(node.clone(), settled);
            return;
        }
        drop(ledger);
        if !self.will_tell.load(Ordering::Relaxed)
            && !self.will_tell.swap(true, Ordering::Relaxed)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let book = Arc::downgrade(self);
            runtime.spawn(async move {
                tokio::time::sleep(ACK_AFTER).await;
                if let Some(book) = book.upgrade() {
                    book.will_tell.store(false, Ordering::Relaxed);
                    book.tell_all();
                }
            });
        }
    }
}

impl Drop for Book {
    /// Short-lived clients leave nothing behind.
    fn drop(&mut self) {
        self.tell_all();
    }
}

/// A call that has begun: its outcome may be asked for until this is dropped.
struct OpenCall {
    book: Arc<Book>,
    number: u64,
    node: NodeId,
    bytes: usize,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.book.ended(self.number, &self.node, self.bytes);
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("edge", &self.book.edge).finish_non_exhaustive()
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
        Self::with_edge(backend, random_incarnation())
    }

    fn with_edge(backend: Arc<dyn Backend>, edge: Incarnation) -> Self {
        let book = Book { backend, edge, ledger: Mutex::new(Ledger::new()), will_tell: AtomicBool::new(false) };
        Self { book: Arc::new(book), exclusive: false }
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
        Ok(Self { exclusive, ..Self::with_edge(backend, edge) })
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

    /// Says goodbye: workers may forget the calls of this handle and its clones, and a connection of its own ends when that has left. A program that ends right
    /// afterwards should call it; everything else is as if the handle were dropped.
    pub async fn close(self) {
        self.book.tell_all();
        self.book.backend.close().await;
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

    /// Drops the proxy of a node for good, and a control node that is dead from the list of members. A worker that knows our addresses announces itself again.
    pub async fn forget(&self, node: &NodeId, timeout: Duration) -> Result<()> {
        match self.operate(Operation::Forget { node: node.clone() }, timeout).await? {
            OperationReply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a message to a placed actor, in bytes; typed calls are `PlacedCalls` of `job`.
    ///
    /// # Errors
    /// `invalid_name` for a key that is too long; those of the actor; `timeout`, `not_connected`.
    pub async fn call_placed(&self, call: PlacedCall, timeout: Duration) -> Result<Payload> {
        if call.key.key.len() > PLACED_KEY_BYTES_MAX {
            return Err(Error::new(ErrorCode::InvalidName, format!("a key has at most {PLACED_KEY_BYTES_MAX} bytes")));
        }
        match self.operate(Operation::Placed(Box::new(call)), timeout).await? {
            OperationReply::Placed(answer) => Ok(Payload::from_bytes(bytes::Bytes::from(answer))),
            other => Err(unexpected(&other)),
        }
    }

    /// The placed actors of a kind, wherever they live, and who did not answer; typed questions are `PlacedCalls` of `job`. All control nodes are asked at once, and none
    /// is waited for longer than two seconds.
    ///
    /// # Errors
    /// `invalid_name` for a key that is too long; those of the way to the control node.
    pub async fn search_placed(&self, search: PlacedSearch, timeout: Duration) -> Result<PlacedKeys> {
        if search.after.as_ref().is_some_and(|key| key.len() > PLACED_KEY_BYTES_MAX) {
            return Err(Error::new(ErrorCode::InvalidName, format!("a key has at most {PLACED_KEY_BYTES_MAX} bytes")));
        }
        match self.operate(Operation::PlacedKeys(search), timeout).await? {
            OperationReply::PlacedKeys(keys) => Ok(keys),
            other => Err(unexpected(&other)),
        }
    }

    /// Every control node, alive or not.
    pub async fn members(&self, timeout: Duration) -> Result<Vec<MemberInfo>> {
        match self.operate(Operation::Members, timeout).await? {
            OperationReply::Members(members) => Ok(members),
            other => Err(unexpected(&other)),
        }
    }

    /// Who owns which partition.
    pub async fn ring(&self, timeout: Duration) -> Result<RingInfo> {
        match self.operate(Operation::Ring, timeout).await? {
            OperationReply::Ring(ring) => Ok(ring),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes the control node behind this handle and the one at an address members of one cluster; returns the id of the other, and its state as in
    /// [`Cluster::members`].
    ///
    /// # Errors
    /// `not_reachable`, `self_join`, `different_ring_sizes`, `not_single_node` if both are members of clusters of several nodes, `unable_to_get_join_ring` if it
    /// answers but does not tell what it knows.
    pub async fn join(&self, uri: &NodeUri, timeout: Duration) -> Result<(NodeId, String)> {
        match self.operate(Operation::Join { uri: call::reveal(uri) }, timeout).await? {
            OperationReply::Joined { node, state } => Ok((node, state)),
            other => Err(unexpected(&other)),
        }
    }

    /// The control node that owns the name of a class now: a leader for work that one of them should do. It may change at any time, and while the
    /// control nodes are split each side has one.
    pub async fn leader(&self, class: &ClassName, timeout: Duration) -> Result<NodeId> {
        match self.operate(Operation::Leader { class: class.clone() }, timeout).await? {
            OperationReply::Leader { node } => Ok(node),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks a control node to leave for good: it owns nothing from now on, and is no member any more when its proxies have gone.
    ///
    /// # Errors
    /// `not_found`; `not_connected` for one that cannot be reached, which can be forgotten.
    pub async fn leave(&self, node: &NodeId, timeout: Duration) -> Result<()> {
        match self.operate(Operation::Leave { node: node.clone() }, timeout).await? {
            OperationReply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// What a commit would do.
    pub async fn plan(&self, timeout: Duration) -> Result<PlanInfo> {
        match self.operate(Operation::Plan, timeout).await? {
            OperationReply::Plan(plan) => Ok(plan),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets every staged control node join (`staged_joins`); returns who they were.
    pub async fn commit(&self, timeout: Duration) -> Result<Vec<NodeId>> {
        match self.operate(Operation::Commit, timeout).await? {
            OperationReply::Committed { nodes } => Ok(nodes),
            other => Err(unexpected(&other)),
        }
    }

    async fn operate(&self, operation: Operation, timeout: Duration) -> Result<OperationReply> {
        self.book.backend.operate(operation, call::bounded(timeout)).await
    }

    /// One request to a class of a worker.
    pub async fn request(&self, node: &NodeId, class: &ClassName, payload: Payload, options: CallOptions) -> Result<Payload> {
        let (head, open) = self.head(Verb::Request, node, class, None, &options);
        self.call(head, open, payload, options).await
    }

    /// Starts a task, with the id of `options` or one of its own.
    pub async fn start_task(&self, node: &NodeId, class: &ClassName, spec: Payload, options: CallOptions) -> Result<TaskStarted> {
        let id = match &options.task_id {
            Some(id) => id.clone(),
            None => TaskId::new(uuid::Uuid::now_v7().to_string())?,
        };
        let (head, open) = self.head(Verb::Task, node, class, Some(id.clone()), &options);
        let reply = self.call(head, open, spec, options).await?;
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
        let (head, open) = self.head(Verb::Command, node, class, Some(task.clone()), &options);
        self.call(head, open, command, options).await
    }

    /// A call that carries a stream of bytes beside its payload.
    pub async fn request_with_stream(
        &self,
        node: &NodeId,
        class: &ClassName,
        payload: Payload,
        options: CallOptions,
    ) -> Result<(PendingCall, ByteStream)> {
        let (head, open) = self.head(Verb::Request, node, class, None, &options);
        let call = NodeCall { head, payload, timeout: call::bounded(options.timeout) };
        let streamed = self.book.backend.call_with_stream(call).await?;
        Ok((PendingCall { answer: streamed.answer, open }, streamed.stream))
    }

    /// Live events of the cluster; never blocks a worker: what a slow reader misses is told as a gap.
    pub async fn events(&self, filter: EventFilter) -> Result<EventStream> {
        self.book.backend.subscribe(filter).await
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

    /// The header of a call; also what keeps its identity open, if it is ours to close.
    fn head(
        &self,
        verb: Verb,
        node: &NodeId,
        class: &ClassName,
        task: Option<TaskId>,
        options: &CallOptions,
    ) -> (CallHead, Option<OpenCall>) {
        // Of an identity that the application has given only the application knows when it is needed no more.
        let (identity, open) = match options.identity {
            Some(identity) => (identity, None),
            None => {
                let number = self.book.ledger().begin();
                let open = OpenCall { book: Arc::clone(&self.book), number, node: node.clone(), bytes: 0 };
                (CallIdentity { edge: self.book.edge, number }, Some(open))
            }
        };
        let head = CallHead {
            verb,
            timeout_ms: call::millis(options.timeout),
            identity,
            retry: options.identity.is_some(),
            hops: 0,
            exclusive: self.exclusive,
            incarnation: options.incarnation.unwrap_or_default(),
            node: Some(node.clone()),
            class: Some(class.clone()),
            task,
        };
        (head, open)
    }

    async fn call(&self, head: CallHead, mut open: Option<OpenCall>, payload: Payload, options: CallOptions) -> Result<Payload> {
        let mut timeout = call::bounded(options.timeout);
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut attempts = Attempts::new(head);
        loop {
            if options.retry == Retry::UntilDeadline
                && !attempts.head.retry
                && let Some(node) = &attempts.head.node
            {
                attempts.head.incarnation = self.book.backend.incarnation(node, left()).await.unwrap_or_default();
                timeout = left();
            }
            attempts.head.timeout_ms = call::millis(timeout);
            let call = NodeCall { head: attempts.head.clone(), payload: payload.clone(), timeout };
            let error = match self.book.backend.call(call).await {
                Ok(reply) => {
                    if let Some(open) = &mut open {
                        open.bytes = reply.len();
                    }
                    return Ok(Payload::from_bytes(reply));
                }
                Err(error) => error,
            };
            let pause = Duration::from_millis(rand::rng().random_range(RETRY_PAUSE_MS));
            match attempts.failed(error) {
                Failed::MayTryAgain(error) if options.retry == Retry::UntilDeadline && Instant::now() + pause < deadline => {
                    tracing::debug!(node = ?attempts.head.node, %error, "the call is tried again");
                }
                Failed::MayTryAgain(error) | Failed::Final(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            timeout = left();
        }
    }
}

/// The answer of a call whose stream is in use.
pub struct PendingCall {
    answer: BoxFuture<'static, Result<bytes::Bytes>>,
    /// Until its answer was taken, or it is dropped.
    open: Option<OpenCall>,
}

impl std::fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingCall").finish_non_exhaustive()
    }
}

impl PendingCall {
    /// Waits for the answer.
    pub async fn wait(self) -> Result<Payload> {
        let reply = self.answer.await;
        drop(self.open);
        reply.map(Payload::from_bytes)
    }
}

/// 128 random bits for one life of a process.
pub fn random_incarnation() -> Incarnation {
    Incarnation::from_bytes(rand::rng().random())
}

fn unexpected(reply: &impl std::fmt::Debug) -> Error {
    Error::new(ErrorCode::ProtocolError, format!("the node answered something else than was asked: {reply:?}"))
}
