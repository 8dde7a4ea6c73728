//! Events of workers, on their way to the classes and to live subscribers.
//!
//! Each worker has one queue per class, so that a slow class delays nobody but itself. An event is acknowledged when the class has taken it in, or its failure was
//! logged: at least once. The queue is longer than the window that a worker may have under way, so a full one means a worker that breaks the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::shared::Shared;
use crate::cluster::{CORE_CLASS, EventBody, EventFilter, EventRecord, EventSink, EventStream, core_class, event_queue};
use crate::connection::{Channel, unix_time_ms};
use crate::job::{EventContext, RawEvent, RawEventKind};
use crate::proto::head::{EventHead, EventKind};
use crate::proto::message::{BuiltinEvent, EventAck, Message, Resync};
use crate::types::{ClassName, Incarnation, NodeId, NodeStatus, Payload, TaskId};

/// Entries of one queue: the window of a worker, twice, for the moment of a reconnect, and what we say ourselves.
const QUEUE_MAX: usize = 1024;
/// Classes of one worker.
const CLASSES_MAX: usize = 1024;

/// Live subscribers.
#[derive(Default)]
pub(super) struct Hub {
    sinks: Mutex<Vec<EventSink>>,
}

impl Hub {
    pub(super) fn subscribe(&self, filter: EventFilter) -> EventStream {
        let (sink, stream) = event_queue(filter);
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).push(sink);
        stream
    }

    fn publish(&self, record: &EventRecord) {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|sink| sink.offer(record));
    }
}

/// Whether something was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// It will be handled.
    Queued,
    /// There is no room: the worker sends more than it was granted.
    Refused,
}

enum Item {
    Event { channel: Channel, incarnation: Incarnation, head: EventHead, payload: Bytes },
    Resync { incarnation: Incarnation, resync: Resync },
    Status { incarnation: Incarnation, status: NodeStatus },
    NewIncarnation(Incarnation),
}

/// The queues of one worker.
pub(super) struct Dispatcher {
    shared: Weak<Shared>,
    node: NodeId,
    queues: Mutex<BTreeMap<ClassName, mpsc::Sender<Item>>>,
}

impl Dispatcher {
    pub(super) fn new(shared: &Arc<Shared>, node: NodeId) -> Self {
        Self { shared: Arc::downgrade(shared), node, queues: Mutex::default() }
    }

    pub(super) fn event(&self, channel: &Channel, incarnation: Incarnation, head: EventHead, payload: Bytes) -> Took {
        let class = head.class.clone();
        self.queue(class, Item::Event { channel: channel.clone(), incarnation, head, payload })
    }

    pub(super) fn resync(&self, _: &Channel, incarnation: Incarnation, resync: Resync) -> Took {
        self.queue(resync.class.clone(), Item::Resync { incarnation, resync })
    }

    /// Tells every class that was ever heard of, and always live subscribers, how the worker is.
    pub(super) fn tell(&self, incarnation: Incarnation, status: NodeStatus) {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let own_class = core_class();
        if !queues.contains_key(&own_class)
            && let Some(shared) = self.shared.upgrade()
        {
            let event = EventBody::Nkcluster(BuiltinEvent::NodeStatus(status));
            let record = EventRecord { node: self.node.clone(), incarnation, class: own_class, seq: 0, time_ms: unix_time_ms(), event };
            shared.hub.publish(&record);
        }
        for queue in queues.values() {
            // Full queues are those of a class that hangs: it will learn the status when it asks.
            let _ = queue.try_send(Item::Status { incarnation, status });
        }
    }

    /// Tasks of other incarnations have ended.
    pub(super) fn new_incarnation(&self, incarnation: Incarnation) {
        for queue in self.queues.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = queue.try_send(Item::NewIncarnation(incarnation));
        }
    }

    fn queue(&self, class: ClassName, item: Item) -> Took {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if !queues.contains_key(&class) {
            if queues.len() >= CLASSES_MAX {
                return Took::Refused;
            }
            let (sender, receiver) = mpsc::channel(QUEUE_MAX);
            let deliverer = Deliverer {
                shared: Weak::clone(&self.shared),
                node: self.node.clone(),
                class: class.clone(),
                incarnation: None,
                last: 0,
                tasks: BTreeSet::new(),
                resyncing: None,
            };
            // Ends with the dispatcher, that is with its proxy.
            tokio::spawn(deliverer.run(receiver));
            queues.insert(class.clone(), sender);
        }
        let sent = queues.get(&class).map(|queue| queue.try_send(item));
        if matches!(sent, Some(Ok(()))) { Took::Queued } else { Took::Refused }
    }
}

/// Delivers the events of one class of one worker, in order.
struct Deliverer {
    shared: Weak<Shared>,
    node: NodeId,
    class: ClassName,
    incarnation: Option<Incarnation>,
    /// Last number that was delivered.
    last: u64,
    tasks: BTreeSet<TaskId>,
    /// Tasks of a resync that has further pages.
    resyncing: Option<Vec<TaskId>>,
}

impl Deliverer {
    async fn run(mut self, mut queue: mpsc::Receiver<Item>) {
        while let Some(item) = queue.recv().await {
            let Some(shared) = self.shared.upgrade() else { return };
            match item {
                Item::Event { channel, incarnation, head, payload } => {
                    self.enter(&shared, incarnation).await;
                    let seq = head.seq;
                    // Delivered before a cut, and sent again because its acknowledgement was lost.
                    if seq > self.last {
                        self.event(&shared, incarnation, head, payload).await;
                        self.last = seq;
                    }
                    channel.message(&Message::EventAck(EventAck { class: self.class.clone(), seq: self.last }));
                }
                Item::Resync { incarnation, resync } => self.resync(&shared, incarnation, resync).await,
                Item::Status { incarnation, status } => {
                    self.deliver(&shared, incarnation, 0, unix_time_ms(), Own::Builtin(BuiltinEvent::NodeStatus(status))).await
                }
                Item::NewIncarnation(incarnation) => self.enter(&shared, incarnation).await,
            }
        }
    }

    /// The worker was restarted: its old tasks are gone.
    async fn enter(&mut self, shared: &Arc<Shared>, incarnation: Incarnation) {
        if self.incarnation == Some(incarnation) {
            return;
        }
        let old = self.incarnation.replace(incarnation);
        self.last = 0;
        for id in std::mem::take(&mut self.tasks) {
            let ended = BuiltinEvent::TaskStopped { id, reason: "node_restarted".to_owned() };
            self.deliver(shared, old.unwrap_or_default(), 0, unix_time_ms(), Own::Builtin(ended)).await;
        }
    }

    async fn resync(&mut self, shared: &Arc<Shared>, incarnation: Incarnation, resync: Resync) {
        let unknown = self.incarnation != Some(incarnation);
        self.enter(shared, incarnation).await;
        let mut tasks = self.resyncing.take().unwrap_or_default();
        tasks.extend(resync.tasks);
        if resync.more {
            self.resyncing = Some(tasks);
            return;
        }
        let gap = (resync.next_seq > self.last + 1).then(|| (self.last + 1, resync.next_seq - 1));
        if unknown || gap.is_some() {
            self.last = self.last.max(resync.next_seq.saturating_sub(1));
            self.deliver(shared, incarnation, 0, unix_time_ms(), Own::Resync { gap, tasks: tasks.clone() }).await;
        }
        self.tasks = tasks.into_iter().collect();
    }

    async fn event(&mut self, shared: &Arc<Shared>, incarnation: Incarnation, head: EventHead, payload: Bytes) {
        let what = match head.kind {
            EventKind::Class => Own::Class(Payload::from_bytes(payload)),
            EventKind::Builtin | EventKind::Gap => match rmp_serde::from_slice::<BuiltinEvent>(&payload) {
                Ok(event) => Own::Builtin(event),
                Err(error) => {
                    tracing::warn!(worker = %self.node, class = %self.class, seq = head.seq, %error, "an event of ours cannot be read");
                    return;
                }
            },
        };
        match &what {
            Own::Builtin(BuiltinEvent::TaskStarted(id)) => {
                self.tasks.insert(id.clone());
            }
            Own::Builtin(BuiltinEvent::TaskStopped { id, .. }) => {
                self.tasks.remove(id);
            }
            _ => {}
        }
        self.deliver(shared, incarnation, head.seq, head.time_ms, what).await;
    }

    async fn deliver(&self, shared: &Arc<Shared>, incarnation: Incarnation, seq: u64, time_ms: u64, what: Own) {
        let body = match &what {
            Own::Class(payload) => Some(EventBody::Class(payload.clone())),
            Own::Builtin(event) => Some(EventBody::Nkcluster(event.clone())),
            Own::Resync { .. } => None,
        };
        if let Some(event) = body {
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

enum Own {
    Class(Payload),
    Builtin(BuiltinEvent),
    Resync { gap: Option<(u64, u64)>, tasks: Vec<TaskId> },
}
