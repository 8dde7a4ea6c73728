//! The job class of the tests: does as it is told, and notes what it sees.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nkcluster::job::{
    Classes, CommandContext, EventContext, JobClass, JobEvent, JobEventKind, RequestContext, Started, TaskClass, TaskContext, TaskRun,
};
use nkcluster::types::{NodeStatus, TaskId};
use nkcluster::{Error, Result};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::harness::{eventually, eventually_eq};

/// Lets nobody pass while it is closed, and counts who came.
#[derive(Clone)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    entered: Arc<AtomicUsize>,
}

impl Gate {
    pub(crate) fn new(open: bool) -> Self {
        Self { open: watch::Sender::new(open), entered: Arc::default() }
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(crate) fn close(&self) {
        self.open.send_replace(false);
    }

    pub(crate) async fn pass(&self) {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// Waits until so many have come, passed or not.
    pub(crate) async fn entered(&self, count: usize) {
        eventually(&format!("{count} at the gate"), async || self.entered.load(Ordering::SeqCst) >= count).await;
    }
}

/// A job class, with what the tests see of it. Clones are the same; workers and control nodes of a test share one.
/// There are two of them, so that one can be slow while the other is not.
#[derive(Clone)]
pub(crate) struct Probe<const OTHER: bool = false> {
    /// Requests `Hold`, commands `Hold` and tasks `Slow` wait here; closed at first.
    pub(crate) work: Gate,
    /// Its events wait here on the control node; open at first.
    pub(crate) taking: Gate,
    executed: Arc<AtomicUsize>,
    events: Arc<Mutex<Vec<JobEvent<String>>>>,
    statuses: Arc<Mutex<Vec<(TaskId, NodeStatus)>>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The same text.
    Echo(String),
    /// How many times it was asked to count.
    Count,
    /// The same, when the gate opens.
    Hold,
    /// An error of this name.
    Fail(String),
    Panic,
    /// Events with these texts.
    Emit(Vec<String>),
    /// As many bytes.
    Bytes(usize),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Spec {
    /// A future that does as it is told.
    Future,
    /// An actor that does.
    Actor,
    /// A future, with a first reply.
    Replying(String),
    /// A future that is started when the gate opens.
    Slow,
    /// It is not started.
    Refused(String),
    /// Starting it panics.
    Panicking,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// Answered by the handler.
    Echo(String),
    /// Answered by the handler after it has asked the task.
    AskTask(String),
    /// Answered by the handler when the gate opens.
    Hold(String),
    /// Answered at once; the task then sends these events.
    Emit(Vec<String>),
    /// Answered by the handler; the task ends because of it.
    End(How),
    /// Answered by the task, which then ends.
    EndAnswering(How),
    Fail(String),
    Panic,
}

/// How a task ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum How {
    Normal,
    Error(String),
    Panic,
}

pub(crate) enum ToTask {
    Echo(String, oneshot::Sender<String>),
    Emit(Vec<String>),
    End(How, Option<oneshot::Sender<String>>),
}

impl ractor::Message for ToTask {}

/// What reaches a running task.
pub(crate) struct Task {
    id: TaskId,
    send: Box<dyn Fn(ToTask) + Send + Sync>,
}

impl<const OTHER: bool> Probe<OTHER> {
    pub(crate) fn new() -> Self {
        Self { work: Gate::new(false), taking: Gate::new(true), executed: Arc::default(), events: Arc::default(), statuses: Arc::default() }
    }

    /// It and `core`.
    pub(crate) fn classes(&self) -> Classes {
        Classes::new().with_tasks(self.clone())
    }

    /// How many requests and tasks that count were carried out.
    pub(crate) fn executed(&self) -> usize {
        self.executed.load(Ordering::SeqCst)
    }

    /// The events of a worker, as words.
    pub(crate) fn told(&self, node: &str) -> Vec<String> {
        self.events(node).into_iter().map(|event| words(event.kind)).collect()
    }

    /// The events of a worker.
    pub(crate) fn events(&self, node: &str) -> Vec<JobEvent<String>> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|event| event.node.as_str() == node).cloned().collect()
    }

    /// Waits until exactly these events of a worker have come.
    pub(crate) async fn wait_told(&self, node: &str, expected: &[&str]) {
        let expected: Vec<String> = expected.iter().map(|text| (*text).to_owned()).collect();
        eventually_eq(|| self.told(node), expected).await;
    }

    /// The calls of `status`.
    pub(crate) fn statuses(&self) -> Vec<(TaskId, NodeStatus)> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self) -> usize {
        self.executed.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn future(&self, ctx: TaskContext<Self>) -> Started<Self> {
        let (sender, mut told) = mpsc::unbounded_channel();
        let task = Task { id: ctx.task_id().clone(), send: Box::new(move |told| drop(sender.send(told))) };
        Started::future(task, async move {
            while let Some(told) = told.recv().await {
                if let Some(how) = obey(&ctx, told) {
                    return end(how);
                }
            }
            Ok(())
        })
    }
}

fn words(kind: JobEventKind<String>) -> String {
    match kind {
        JobEventKind::Class(text) => text,
        JobEventKind::TaskStarted(id) => format!("started {id}"),
        JobEventKind::TaskStopped { id, reason } => format!("stopped {id} {reason}"),
        JobEventKind::NodeStatus(status) => format!("status {status}"),
        JobEventKind::Resync { gap, tasks } => {
            let tasks: Vec<&str> = tasks.iter().map(TaskId::as_str).collect();
            format!("resync {gap:?} [{}]", tasks.join(" "))
        }
        JobEventKind::Gap { from, to } => format!("gap {from}-{to}"),
    }
}

/// Does as it is told; returns how to end, if so.
fn obey<const OTHER: bool>(ctx: &TaskContext<Probe<OTHER>>, told: ToTask) -> Option<How> {
    match told {
        ToTask::Echo(text, answer) => drop(answer.send(format!("the task says {text}"))),
        ToTask::Emit(texts) => {
            for text in texts {
                ctx.emit(&text).expect("a short event");
            }
        }
        ToTask::End(how, answer) => {
            answer.into_iter().for_each(|answer| drop(answer.send("the task ends".to_owned())));
            return Some(how);
        }
    }
    None
}

fn end(how: How) -> Result<()> {
    match how {
        How::Normal => Ok(()),
        How::Error(name) => Err(Error::class(&name, "as told")),
        How::Panic => panic!("as told"),
    }
}

impl<const OTHER: bool> JobClass for Probe<OTHER> {
    const NAME: &'static str = if OTHER { "other" } else { "probe" };
    type Request = Ask;
    type Reply = String;

    async fn request(&self, ctx: RequestContext, request: Ask) -> Result<String> {
        match request {
            Ask::Echo(text) => Ok(text),
            Ask::Count => Ok(self.count().to_string()),
            Ask::Hold => {
                let count = self.count();
                self.work.pass().await;
                Ok(count.to_string())
            }
            Ask::Fail(name) => Err(Error::class(&name, "as told")),
            Ask::Panic => panic!("as told"),
            Ask::Emit(texts) => {
                for text in texts {
                    ctx.emit(&text)?;
                }
                Ok(String::new())
            }
            Ask::Bytes(count) => Ok("x".repeat(count)),
        }
    }
}

impl<const OTHER: bool> TaskClass for Probe<OTHER> {
    type Spec = Spec;
    type Accepted = String;
    type Command = Tell;
    type Answer = String;
    type Event = String;
    type Task = Task;

    async fn task(&self, ctx: TaskContext<Self>, spec: Spec) -> Result<Started<Self>> {
        self.count();
        match spec {
            Spec::Future => Ok(self.future(ctx)),
            Spec::Actor => {
                let id = ctx.task_id().clone();
                let (actor, run) = TaskRun::actor(Puppet::<OTHER>, ctx).await?;
                Ok(Started::new(Task { id, send: Box::new(move |told| drop(actor.cast(told))) }, run))
            }
            Spec::Replying(text) => Ok(self.future(ctx).with_reply(text)),
            Spec::Slow => {
                self.work.pass().await;
                Ok(self.future(ctx))
            }
            Spec::Refused(name) => Err(Error::class(&name, "as told")),
            Spec::Panicking => panic!("as told"),
        }
    }

    async fn command(&self, _: CommandContext<Self>, task: &Task, command: Tell) -> Result<String> {
        let gone = |_| Error::class("gone", "the task did not answer");
        match command {
            Tell::Echo(text) => Ok(text),
            Tell::AskTask(text) => {
                let (answer, answered) = oneshot::channel();
                (task.send)(ToTask::Echo(text, answer));
                answered.await.map_err(gone)
            }
            Tell::Hold(text) => {
                self.work.pass().await;
                Ok(text)
            }
            Tell::Emit(texts) => {
                (task.send)(ToTask::Emit(texts));
                Ok(String::new())
            }
            Tell::End(how) => {
                (task.send)(ToTask::End(how, None));
                Ok("it will end".to_owned())
            }
            Tell::EndAnswering(how) => {
                let (answer, answered) = oneshot::channel();
                (task.send)(ToTask::End(how, Some(answer)));
                answered.await.map_err(gone)
            }
            Tell::Fail(name) => Err(Error::class(&name, "as told")),
            Tell::Panic => panic!("as told"),
        }
    }

    async fn status(&self, task: &Task, status: NodeStatus) {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).push((task.id.clone(), status));
    }

    async fn event(&self, _: EventContext, event: JobEvent<String>) {
        self.taking.pass().await;
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

/// The same task as an actor.
struct Puppet<const OTHER: bool>;

impl<const OTHER: bool> Actor for Puppet<OTHER> {
    type Msg = ToTask;
    type State = TaskContext<Probe<OTHER>>;
    type Arguments = TaskContext<Probe<OTHER>>;

    async fn pre_start(&self, _: ActorRef<ToTask>, ctx: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        Ok(ctx)
    }

    async fn handle(&self, myself: ActorRef<ToTask>, told: ToTask, ctx: &mut Self::State) -> Result<(), ActorProcessingErr> {
        if let Some(how) = obey(ctx, told) {
            end(how).map_err(|error| error.code().name().to_owned())?;
            myself.stop(None);
        }
        Ok(())
    }
}
