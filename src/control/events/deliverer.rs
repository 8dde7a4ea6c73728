//! The events of one class of one worker, one after the other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::intake::{Before, Gap, TASKS_MAX};
use crate::cluster::{CORE_CLASS, EventBody, EventRecord};
use crate::connection::{Channel, unix_time_ms};
use crate::control::shared::Shared;
use crate::job::{EventContext, RawEvent, RawEventKind};
use crate::proto::head::{EventHead, EventKind};
use crate::proto::message::{BuiltinEvent, EventAck, Message};
use crate::types::{ClassName, Incarnation, NodeId, NodeStatus, Payload, TaskId};

/// What waits for a class.
pub(super) enum Item {
    /// An event, or a gap that begins with `first`.
    Event { incarnation: Incarnation, head: EventHead, payload: Bytes, first: u64, before: Option<Before> },
    /// The worker has introduced itself.
    Resync { incarnation: Incarnation, gap: Option<Gap>, mark: u64, tasks: Vec<TaskId> },
    /// Word of our own.
    Status { incarnation: Incarnation, status: NodeStatus },
    /// The worker was restarted.
    NewIncarnation(Incarnation),
}

/// How far the class has come, and where to say so.
pub(super) struct Progress {
    incarnation: Incarnation,
    delivered: u64,
    channel: Option<Channel>,
    /// Incarnation that the class knows, and the tasks that it believes to run there.
    known: Option<Incarnation>,
    tasks: BTreeSet<TaskId>,
}

impl Progress {
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, delivered: 0, channel: None, known: None, tasks: BTreeSet::new() }
    }

    /// What this incarnation sends comes on this channel now; returns the last number that was taken in.
    pub(super) fn on(&mut self, channel: &Channel, incarnation: Incarnation) -> u64 {
        self.enter(incarnation);
        if self.channel.as_ref() != Some(channel) {
            self.channel = Some(channel.clone());
        }
        self.delivered
    }

    fn enter(&mut self, incarnation: Incarnation) {
        if self.incarnation != incarnation {
            *self = Self { known: self.known, tasks: std::mem::take(&mut self.tasks), ..Self::new(incarnation) };
        }
    }

    /// How far the class has come with an incarnation, and the tasks that it believes to run.
    pub(super) fn position(&self, incarnation: Incarnation) -> (u64, Vec<TaskId>) {
        let delivered = if self.incarnation == incarnation { self.delivered } else { 0 };
        (delivered, self.tasks.iter().cloned().collect())
    }

    /// Another control node has delivered what an incarnation sent up to `delivered`.
    pub(super) fn advance(&mut self, incarnation: Incarnation, delivered: u64, tasks: Vec<TaskId>) {
        self.enter(incarnation);
        self.delivered = self.delivered.max(delivered);
        self.known = Some(incarnation);
        self.tasks = tasks.into_iter().collect();
    }

    /// A number was taken in; returns where to say so. What an earlier incarnation sent is acknowledged to nobody: its numbers mean something else now.
    fn delivered(&mut self, incarnation: Incarnation, seq: u64) -> Option<Channel> {
        if self.incarnation != incarnation {
            return None;
        }
        self.delivered = self.delivered.max(seq);
        self.channel.clone()
    }
}

/// Delivers what is queued, in order.
pub(super) struct Deliverer {
    shared: Weak<Shared>,
    node: NodeId,
    class: ClassName,
    progress: Arc<Mutex<Progress>>,
    /// Nothing is delivered while the worker moves to another control node.
    paused: watch::Receiver<bool>,
}

impl Deliverer {
    pub(super) fn new(
        shared: Weak<Shared>,
        node: NodeId,
        class: ClassName,
        progress: Arc<Mutex<Progress>>,
        paused: watch::Receiver<bool>,
    ) -> Self {
        Self { shared, node, class, progress, paused }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Item>) {
        while let Some(item) = queue.recv().await {
            // What waits is delivered by whoever has the worker then: it was not acknowledged.
            if self.paused.wait_for(|paused| !paused).await.is_err() {
                return;
            }
            let Some(shared) = self.shared.upgrade() else { return };
            match item {
                Item::Event { incarnation, head, payload, first, before } => {
                    self.enter(&shared, incarnation).await;
                    match before {
                        None => {}
                        Some(Before::Gap((from, to))) => {
                            self.deliver(&shared, incarnation, to, head.time_ms, Own::Builtin(BuiltinEvent::Gap { from, to })).await
                        }
                        Some(Before::Resync(gap)) => self.resync(&shared, incarnation, gap, Vec::new()).await,
                    }
                    let seq = head.seq;
                    self.event(&shared, incarnation, head, payload, first).await;
                    self.acknowledge(incarnation, seq);
                }
                Item::Resync { incarnation, gap, mark, tasks } => {
                    self.enter(&shared, incarnation).await;
                    self.resync(&shared, incarnation, gap, tasks).await;
                    // The worker knows that these were taken in, or are lost.
                    self.progress().delivered(incarnation, mark);
                }
                Item::Status { incarnation, status } => {
                    self.deliver(&shared, incarnation, 0, unix_time_ms(), Own::Builtin(BuiltinEvent::NodeStatus(status))).await
                }
                Item::NewIncarnation(incarnation) => self.enter(&shared, incarnation).await,
            }
        }
    }

    fn acknowledge(&self, incarnation: Incarnation, seq: u64) {
        let channel = self.progress().delivered(incarnation, seq);
        if let Some(channel) = channel {
            channel.message(&Message::EventAck(EventAck { class: self.class.clone(), seq }));
        }
    }

    /// The worker was restarted: its old tasks are gone.
    async fn enter(&mut self, shared: &Arc<Shared>, incarnation: Incarnation) {
        let (old, tasks) = {
            let mut progress = self.progress();
            if progress.known == Some(incarnation) {
                return;
            }
            (progress.known.replace(incarnation), std::mem::take(&mut progress.tasks))
        };
        for id in tasks {
            let ended = BuiltinEvent::TaskStopped { id, reason: "node_restarted".to_owned() };
            self.deliver(shared, old.unwrap_or_default(), 0, unix_time_ms(), Own::Builtin(ended)).await;
        }
    }

    async fn resync(&mut self, shared: &Arc<Shared>, incarnation: Incarnation, gap: Option<Gap>, tasks: Vec<TaskId>) {
        self.progress().tasks = tasks.iter().cloned().collect();
        self.deliver(shared, incarnation, 0, unix_time_ms(), Own::Resync { gap, tasks }).await;
    }

    async fn event(&mut self, shared: &Arc<Shared>, incarnation: Incarnation, head: EventHead, payload: Bytes, first: u64) {
        let what = match head.kind {
            EventKind::Class => Own::Class(Payload::from_bytes(payload)),
            // What it says of its beginning may have been seen in part; its end is its number.
            EventKind::Gap => Own::Builtin(BuiltinEvent::Gap { from: first, to: head.seq }),
            EventKind::Builtin => match rmp_serde::from_slice::<BuiltinEvent>(&payload) {
                Ok(event) => Own::Builtin(event),
                Err(error) => {
                    tracing::warn!(worker = %self.node, class = %self.class, seq = head.seq, %error, "an event of ours cannot be read");
                    return;
                }
            },
        };
        match &what {
            Own::Builtin(BuiltinEvent::TaskStarted(id)) => {
                let mut progress = self.progress();
                if progress.tasks.len() < TASKS_MAX {
                    progress.tasks.insert(id.clone());
                }
            }
            Own::Builtin(BuiltinEvent::TaskStopped { id, .. }) => {
                self.progress().tasks.remove(id);
            }
            _ => {}
        }
        self.deliver(shared, incarnation, head.seq, head.time_ms, what).await;
    }

    async fn deliver(&self, shared: &Arc<Shared>, incarnation: Incarnation, seq: u64, time_ms: u64, what: Own) {
        let body = match &what {
            Own::Class(payload) => Some((seq, EventBody::Class(payload.clone()))),
            Own::Builtin(event) => Some((seq, EventBody::Nkcluster(event.clone()))),
            // Those who only follow are told what they miss of what they have followed.
            Own::Resync { gap: Some((from, to)), .. } if *from > 1 => {
                Some((*to, EventBody::Nkcluster(BuiltinEvent::Gap { from: *from, to: *to })))
            }
            Own::Resync { .. } => None,
        };
        if let Some((seq, event)) = body {
            let record = EventRecord { node: self.node.clone(), incarnation, class: self.class.clone(), seq, time_ms, event };
            shared.hub.publish(&record);
        }
        let Some(class) = shared.classes.class(&self.class) else { return };
        if self.class.as_str() == CORE_CLASS {
            return;
        }
        let kind = match what {
            Own::Class(payload) => RawEventKind::Class(payload),
            Own::Resync { gap, tasks } => RawEventKind::Resync { gap, tasks },
            Own::Builtin(BuiltinEvent::TaskStarted(id)) => RawEventKind::TaskStarted(id),
            Own::Builtin(BuiltinEvent::TaskStopped { id, reason }) => RawEventKind::TaskStopped { id, reason },
            Own::Builtin(BuiltinEvent::NodeStatus(status)) => RawEventKind::NodeStatus(status),
            Own::Builtin(BuiltinEvent::Gap { from, to }) => RawEventKind::Gap { from, to },
        };
        let event = RawEvent { node: self.node.clone(), incarnation, seq, time_ms, kind };
        let ctx = EventContext { control: shared.id.clone(), control_incarnation: shared.incarnation, cluster: shared.cluster() };
        // A task of its own, so that its panic is its own.
        match tokio::spawn(class.event(ctx, event)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(worker = %self.node, class = %self.class, seq, %error, "a class could not read an event"),
            Err(error) => tracing::error!(worker = %self.node, class = %self.class, seq, %error, "the event handler of a class failed"),
        }
    }
}

/// What a class is told.
enum Own {
    Class(Payload),
    Builtin(BuiltinEvent),
    Resync { gap: Option<Gap>, tasks: Vec<TaskId> },
}
