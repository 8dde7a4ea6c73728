//! The classes and functions of a process, with their types erased.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::actor::TaskRun;
use super::class::{JobClass, JobEvent, JobEventKind, TaskClass, class_name, decode};
use super::context::{CommandContext, EventContext, RawTaskContext, RequestContext, TaskContext};
use super::core::Core;
use super::election::Register;
use super::placed::{self, PlacedActor, PlacedContext, PlacedKind};
use crate::cluster::BoxFuture;
use crate::error::{Error, ErrorCode, Result};
use crate::types::{ClassName, Incarnation, NodeId, NodeStatus, Payload, TaskId};

/// A function that [`crate::cluster::Cluster::call_function`] can call.
pub(crate) type Function = Arc<dyn Fn(Vec<serde_json::Value>) -> BoxFuture<'static, Result<serde_json::Value>> + Send + Sync>;

/// What reaches a running task, of whatever class.
pub(crate) type TaskHandle = Arc<dyn Any + Send + Sync>;

/// A started task, of whatever class.
pub(crate) struct RawStarted {
    pub(crate) handle: TaskHandle,
    pub(crate) reply: Bytes,
    pub(crate) run: TaskRun,
}

/// An event, of whatever class.
#[derive(Clone, Debug)]
pub(crate) struct RawEvent {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) seq: u64,
    pub(crate) time_ms: u64,
    pub(crate) task: Option<TaskId>,
    pub(crate) kind: RawEventKind,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum RawEventKind {
    Class(Payload),
    TaskStarted(TaskId),
    TaskStopped { id: TaskId, reason: String },
    NodeStatus(NodeStatus),
    Resync { gap: Option<(u64, u64)>, tasks: Vec<TaskId> },
    Gap { from: u64, to: u64 },
}

impl RawEvent {
    /// The event with the content that `read` finds in its payload.
    fn read<E>(self, read: impl FnOnce(Payload) -> Result<E>) -> Result<JobEvent<E>> {
        let kind = match self.kind {
            RawEventKind::Class(payload) => JobEventKind::Class(read(payload)?),
            RawEventKind::TaskStarted(id) => JobEventKind::TaskStarted(id),
            RawEventKind::TaskStopped { id, reason } => JobEventKind::TaskStopped { id, reason },
            RawEventKind::NodeStatus(status) => JobEventKind::NodeStatus(status),
            RawEventKind::Resync { gap, tasks } => JobEventKind::Resync { gap, tasks },
            RawEventKind::Gap { from, to } => JobEventKind::Gap { from, to },
        };
        let Self { node, incarnation, seq, time_ms, task, .. } = self;
        Ok(JobEvent { node, incarnation, seq, time_ms, task, kind })
    }
}

/// A class without its types.
pub(crate) trait ErasedClass: Send + Sync {
    fn request(self: Arc<Self>, ctx: RequestContext, payload: Payload) -> BoxFuture<'static, Result<Bytes>>;
    fn task(self: Arc<Self>, ctx: RawTaskContext, spec: Payload) -> BoxFuture<'static, Result<RawStarted>>;
    fn command(
        self: Arc<Self>,
        ctx: RawTaskContext,
        deadline: Instant,
        task: TaskHandle,
        command: Payload,
    ) -> BoxFuture<'static, Result<Bytes>>;
    fn status(self: Arc<Self>, task: TaskHandle, status: NodeStatus) -> BoxFuture<'static, ()>;
    fn event(self: Arc<Self>, ctx: EventContext, event: RawEvent) -> BoxFuture<'static, Result<()>>;
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Bytes> {
    Ok(Payload::encode(value)?.into_bytes())
}

async fn request_of<C: JobClass>(class: &C, ctx: RequestContext, payload: Payload) -> Result<Bytes> {
    let request = decode(&payload, C::NAME, ErrorCode::UnknownRequest)?;
    encode(&class.request(ctx, request).await?)
}

struct RequestsOnly<C>(C);

impl<C: JobClass> ErasedClass for RequestsOnly<C> {
    fn request(self: Arc<Self>, ctx: RequestContext, payload: Payload) -> BoxFuture<'static, Result<Bytes>> {
        Box::pin(async move { request_of(&self.0, ctx, payload).await })
    }

    fn task(self: Arc<Self>, _: RawTaskContext, _: Payload) -> BoxFuture<'static, Result<RawStarted>> {
        Box::pin(async { Err(Error::new(ErrorCode::UnknownTask, format!("class {} has requests, but no tasks", C::NAME))) })
    }

    fn command(self: Arc<Self>, _: RawTaskContext, _: Instant, _: TaskHandle, _: Payload) -> BoxFuture<'static, Result<Bytes>> {
        Box::pin(async { Err(Error::new(ErrorCode::UnknownCommand, format!("class {} has requests, but no tasks", C::NAME))) })
    }

    fn status(self: Arc<Self>, _: TaskHandle, _: NodeStatus) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }

    fn event(self: Arc<Self>, ctx: EventContext, event: RawEvent) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            JobClass::event(&self.0, ctx, event.read(Ok)?).await;
            Ok(())
        })
    }
}

struct WithTasks<C>(C);

impl<C: TaskClass> ErasedClass for WithTasks<C> {
    fn request(self: Arc<Self>, ctx: RequestContext, payload: Payload) -> BoxFuture<'static, Result<Bytes>> {
        Box::pin(async move { request_of(&self.0, ctx, payload).await })
    }

    fn task(self: Arc<Self>, ctx: RawTaskContext, spec: Payload) -> BoxFuture<'static, Result<RawStarted>> {
        Box::pin(async move {
            let spec = decode(&spec, C::NAME, ErrorCode::UnknownTask)?;
            let started = self.0.task(TaskContext::new(ctx), spec).await?;
            let reply = match &started.reply {
                Some(reply) => encode(reply)?,
                None => Payload::nil().into_bytes(),
            };
            Ok(RawStarted { handle: Arc::new(started.task), reply, run: started.run })
        })
    }

    fn command(
        self: Arc<Self>,
        ctx: RawTaskContext,
        deadline: Instant,
        task: TaskHandle,
        command: Payload,
    ) -> BoxFuture<'static, Result<Bytes>> {
        Box::pin(async move {
            let command = decode(&command, C::NAME, ErrorCode::UnknownCommand)?;
            let task = task.downcast::<C::Task>().map_err(|_| Error::new(ErrorCode::Internal, "the task is of another class"))?;
            encode(&self.0.command(CommandContext::new(ctx, deadline), &task, command).await?)
        })
    }

    fn status(self: Arc<Self>, task: TaskHandle, status: NodeStatus) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Ok(task) = task.downcast::<C::Task>() {
                self.0.status(&task, status).await;
            }
        })
    }

    fn event(self: Arc<Self>, ctx: EventContext, event: RawEvent) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            TaskClass::event(&self.0, ctx, event.read(|payload| payload.decode::<C::Event>())?).await;
            Ok(())
        })
    }
}

/// The classes and functions of a process. The class `core` is always there.
#[derive(Clone)]
pub struct Classes {
    classes: BTreeMap<ClassName, Arc<dyn ErasedClass>>,
    functions: BTreeMap<String, Function>,
    placed: BTreeMap<ClassName, PlacedKind>,
}

impl std::fmt::Debug for Classes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("Classes");
        fields.field("classes", &self.names()).field("functions", &self.functions.keys()).field("placed", &self.placed.keys()).finish()
    }
}

impl Default for Classes {
    fn default() -> Self {
        Self::new()
    }
}

impl Classes {
    /// Only `core`.
    pub fn new() -> Self {
        Self { classes: BTreeMap::new(), functions: BTreeMap::new(), placed: BTreeMap::new() }.with(Core).with_placed::<Register>()
    }

    /// Adds a class with requests.
    ///
    /// # Panics
    /// If its name is taken or not allowed: a mistake of the program.
    pub fn with<C: JobClass>(self, class: C) -> Self {
        self.insert(class_name::<C>(), Arc::new(RequestsOnly(class)))
    }

    /// Adds a class with tasks.
    ///
    /// # Panics
    /// If its name is taken or not allowed: a mistake of the program.
    pub fn with_tasks<C: TaskClass>(self, class: C) -> Self {
        self.insert(class_name::<C>(), Arc::new(WithTasks(class)))
    }

    /// Adds a function that `call` can reach.
    pub fn with_function<F, R>(mut self, name: &str, function: F) -> Self
    where
        F: Fn(Vec<serde_json::Value>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<serde_json::Value>> + Send + 'static,
    {
        self.functions.insert(name.to_owned(), Arc::new(move |args| Box::pin(function(args))));
        self
    }

    /// Adds a kind of actor that the ring places, on control nodes.
    ///
    /// # Panics
    /// If its name is taken or not allowed: a mistake of the program.
    pub fn with_placed<A: PlacedActor>(self) -> Self {
        self.with_placed_from::<A, _, _>(A::start)
    }

    /// The same for a kind whose actors need something of this process: `start` makes them, in the place of [`PlacedActor::start`].
    ///
    /// # Panics
    /// If its name is taken or not allowed: a mistake of the program.
    pub fn with_placed_from<A, S, R>(mut self, start: S) -> Self
    where
        A: PlacedActor,
        S: Fn(PlacedContext, Option<A::Record>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<A>> + Send + 'static,
    {
        let taken = self.placed.insert(name_of(A::NAME), placed::kind::<A, S, R>(start)).is_some();
        assert!(!taken, "two kinds of placed actors have the name {}", A::NAME);
        self
    }

    fn insert(mut self, name: ClassName, class: Arc<dyn ErasedClass>) -> Self {
        let taken = self.classes.insert(name.clone(), class).is_some();
        assert!(!taken, "two job classes have the name {name}");
        self
    }

    /// Names of all classes.
    pub fn names(&self) -> Vec<ClassName> {
        self.classes.keys().cloned().collect()
    }

    pub(crate) fn class(&self, name: &ClassName) -> Option<Arc<dyn ErasedClass>> {
        self.classes.get(name).cloned()
    }

    pub(crate) fn placed(&self, kind: &ClassName) -> Option<PlacedKind> {
        self.placed.get(kind).cloned()
    }

    pub(crate) fn function(&self, name: &str) -> Option<Function> {
        self.functions.get(name).cloned()
    }

    pub(crate) fn function_names(&self) -> Vec<String> {
        self.functions.keys().cloned().collect()
    }
}

/// The name of a kind as a value.
pub(super) fn name_of(name: &str) -> ClassName {
    ClassName::new(name).unwrap_or_else(|error| panic!("`{name}` cannot name anything here: {error}"))
}
