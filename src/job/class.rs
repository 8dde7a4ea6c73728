//! The two traits that a class implements.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::actor::TaskRun;
use super::context::{CommandContext, EventContext, RequestContext, TaskContext};
use crate::error::{Error, ErrorCode, Result};
use crate::types::{ClassName, Incarnation, NodeId, NodeStatus, Payload, TaskId};

/// A kind of job with its requests. Tasks come with [`TaskClass`].
pub trait JobClass: Send + Sync + Sized + 'static {
    /// Its name in the cluster: 1 to 64 bytes of letters, digits and `._:-`.
    const NAME: &'static str;
    /// What can be asked.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// What is answered.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// Answers a request, on the worker. It may take its time: nothing waits for it but its caller.
    ///
    /// # Errors
    /// Whatever the class wants its caller to see; `Error::class` gives it a name of its own.
    fn request(&self, ctx: RequestContext, request: Self::Request) -> impl Future<Output = Result<Self::Reply>> + Send;

    /// Takes in an event of a class **without tasks**, on the control node that holds the worker: in order, at least once. The worker keeps it until this
    /// returns. Requests may [emit](RequestContext::emit) values of any type, so the class reads the payload itself. A class with tasks is told by
    /// [`TaskClass::event`] instead.
    fn event(&self, ctx: EventContext, event: JobEvent<Payload>) -> impl Future<Output = ()> + Send {
        let _ = (ctx, event);
        async {}
    }
}

/// A class whose jobs live longer than a call.
pub trait TaskClass: JobClass {
    /// What a task is started with.
    type Spec: Serialize + DeserializeOwned + Send + 'static;
    /// The first reply of a started task; `()` if there is none.
    type Accepted: Serialize + DeserializeOwned + Send + 'static;
    /// What can be told to a running task.
    type Command: Serialize + DeserializeOwned + Send + 'static;
    /// What it answers.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
    /// What it tells the control node.
    type Event: Serialize + DeserializeOwned + Send + 'static;
    /// What `command` and `status` need to reach a running task: a channel, an actor, shared state.
    type Task: Send + Sync + 'static;

    /// Starts a task, on the worker. What it returns is run and supervised: its end, however it comes, is an event.
    ///
    /// # Errors
    /// The task is not started, its caller gets the error.
    fn task(&self, ctx: TaskContext<Self>, spec: Self::Spec) -> impl Future<Output = Result<Started<Self>>> + Send;

    /// Answers a command, on the worker. Commands of one task come one after the other, in order.
    ///
    /// # Errors
    /// Whatever the class wants its caller to see.
    fn command(
        &self,
        ctx: CommandContext<Self>,
        task: &Self::Task,
        command: Self::Command,
    ) -> impl Future<Output = Result<Self::Answer>> + Send;

    /// Tells a running task that the status of the worker has changed. On `stopping` it should end soon.
    fn status(&self, task: &Self::Task, status: NodeStatus) -> impl Future<Output = ()> + Send {
        let _ = (task, status);
        async {}
    }

    /// Takes in an event, on the control node that holds the worker: in order, at least once. The worker keeps it until this returns.
    fn event(&self, ctx: EventContext, event: JobEvent<Self::Event>) -> impl Future<Output = ()> + Send {
        let _ = (ctx, event);
        async {}
    }
}

/// The request type of a class that only has tasks: there is none.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum NoRequests {}

/// A task that its class has started.
pub struct Started<C: TaskClass> {
    pub(super) task: C::Task,
    pub(super) reply: Option<C::Accepted>,
    pub(super) run: TaskRun,
}

impl<C: TaskClass> Started<C> {
    /// A task with what reaches it and what runs it.
    pub fn new(task: C::Task, run: TaskRun) -> Self {
        Self { task, reply: None, run }
    }

    /// A task that is a future. It ends when the future does; `task stop` drops it.
    pub fn future(task: C::Task, future: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self::new(task, TaskRun::future(future))
    }

    /// Gives its caller a first reply.
    pub fn with_reply(mut self, reply: C::Accepted) -> Self {
        self.reply = Some(reply);
        self
    }
}

/// An event with the key that makes a repetition recognisable: worker, incarnation, class and number.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent<E> {
    /// The worker.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Number within incarnation and class, from 1; 0 for what the control node says itself (`not_connected`, `ready` after a reconnect).
    pub seq: u64,
    /// Wall clock of the worker, milliseconds since 1970.
    pub time_ms: u64,
    /// The task that sent it, or that it is about.
    pub task: Option<TaskId>,
    /// What happened.
    pub kind: JobEventKind<E>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEventKind<E> {
    /// Of the class.
    Class(E),
    /// A task runs.
    TaskStarted(TaskId),
    /// A task has ended.
    TaskStopped {
        /// Which.
        id: TaskId,
        /// `normal`, `killed`, `node_restarted`, `error: …` or `panicked: …`.
        reason: String,
    },
    /// The status of the worker.
    NodeStatus(NodeStatus),
    /// The worker starts to send its journal again, after a reconnect or under a new incarnation.
    Resync {
        /// Events that were lost between what was seen last and what comes next.
        gap: Option<(u64, u64)>,
        /// Tasks of the class that run on it; what has started since follows as [`JobEventKind::TaskStarted`].
        tasks: Vec<TaskId>,
    },
    /// Events that were dropped because the journal was full.
    Gap {
        /// First one that is missing.
        from: u64,
        /// Last one that is missing.
        to: u64,
    },
}

/// The name of a class as a value.
pub(super) fn class_name<C: JobClass>() -> ClassName {
    ClassName::new(C::NAME).unwrap_or_else(|error| panic!("`{}` cannot name a job class: {error}", C::NAME))
}

/// Reads a payload; what the class does not know gets the name of what it is.
pub(super) fn decode<T: DeserializeOwned>(payload: &crate::types::Payload, class: &str, unknown: ErrorCode) -> Result<T> {
    payload.decode().map_err(|error| {
        // The one word by which serde tells an unknown variant from a malformed one.
        let code = if error.message().contains("unknown variant") { unknown } else { ErrorCode::InvalidPayload };
        Error::new(code, format!("class {class} cannot read this: {}", error.message()))
    })
}
