//! Events of workers, on their way to the classes and to live subscribers.
//!
//! ```text
//!   link ─► Dispatcher: intake of the class (what is new?) ─► queue ─► Deliverer ─► class, live subscribers
//!                                                                          └─► acknowledgement, on the channel of now
//! ```
//!
//! Each worker has one queue per class, so that a slow class delays nobody but itself. An event is acknowledged when the class has taken it in, or its failure was
//! logged: at least once. What a worker sends again after a reconnect is not queued again, so a class that hangs holds no more than one window; a full queue means
//! a worker that breaks the rules. Only the incarnation that the proxy has taken is listened to.

mod deliverer;
mod intake;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::deliverer::{Deliverer, Item, Progress};
use self::intake::{Arrival, Intake, Resynced};
use super::shared::Shared;
use crate::cluster::{EventBody, EventFilter, EventRecord, EventSink, EventStream, core_class, event_queue};
use crate::connection::{Channel, unix_time_ms};
use crate::proto::head::EventHead;
use crate::proto::message::{BuiltinEvent, EventAck, Message, Resync};
use crate::types::{ClassName, Incarnation, NodeId, NodeStatus, TaskId};

/// Entries of one queue: several windows, of the incarnations of a worker that is restarted while its class hangs, and what we say ourselves.
const QUEUE_MAX: usize = 2048;
/// Entries that stay free for the worker: what we say ourselves, such as its coming and going, is dropped first.
const RESERVED: usize = QUEUE_MAX / 2;
/// Pause between two looks whether everything was taken in.
const IDLE_PAUSE: Duration = Duration::from_millis(2);
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
        self.add(sink);
        stream
    }

    /// Another subscriber of the workers whose proxies are here.
    pub(super) fn add(&self, sink: EventSink) {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who come and go while nothing happens must not pile up.
        sinks.retain(EventSink::is_open);
        sinks.push(sink);
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
    /// It was known already, or comes from an incarnation that is not the one of now: nothing was queued.
    Ignored,
    /// There is no room: the worker sends more than it was granted.
    Refused,
}

impl Marks {
    /// The same for a class that has not seen what was told elsewhere: it hears first what runs.
    pub(super) fn unintroduced(self) -> Self {
        Self { introduced: false, ..self }
    }
}

/// The queues of one worker.
pub(super) struct Dispatcher {
    shared: Weak<Shared>,
    node: NodeId,
    queues: Mutex<Queues>,
    /// Whether the worker moves to another control node.
    paused: watch::Sender<bool>,
}

/// How far a class has come with what a worker sends it. Whoever has the worker next goes on from there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Marks {
    class: ClassName,
    incarnation: Incarnation,
    /// Last number that the class has taken in.
    seq: u64,
    /// Whether it knows of this incarnation.
    introduced: bool,
    /// Tasks that it believes to run.
    #[serde(default)]
    tasks: Vec<TaskId>,
}

#[derive(Default)]
struct Queues {
    /// The one that the proxy has taken.
    incarnation: Option<Incarnation>,
    classes: BTreeMap<ClassName, Queue>,
}

struct Queue {
    sender: mpsc::Sender<Item>,
    intake: Intake<Channel>,
    progress: Arc<Mutex<Progress>>,
}

impl Dispatcher {
    pub(super) fn new(shared: &Arc<Shared>, node: NodeId) -> Self {
        Self { shared: Arc::downgrade(shared), node, queues: Mutex::default(), paused: watch::Sender::new(false) }
    }

    /// An event, or a gap, has come.
    pub(super) fn event(&self, channel: &Channel, incarnation: Incarnation, head: EventHead, payload: Bytes) -> Took {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = match self.queue(&mut queues, incarnation, &head.class) {
            Ok(queue) => queue,
            Err(took) => return took,
        };
        let delivered = queue.on(channel, incarnation);
        if !queue.intake.is_new(incarnation, head.seq) {
            drop(queues);
            if head.seq <= delivered {
                // Its acknowledgement was lost with the channel that it was given on. If it is still queued, it will be acknowledged here.
                channel.message(&Message::EventAck(EventAck { class: head.class, seq: delivered }));
            }
            return Took::Ignored;
        }
        let Ok(permit) = queue.sender.try_reserve() else { return Took::Refused };
        let Arrival { first, before } = queue.intake.event(incarnation, head.seq, head.kind);
        permit.send(Item::Event { incarnation, head, payload, first, before });
        Took::Queued
    }

    /// The worker starts to send its journal again.
    pub(super) fn resync(&self, channel: &Channel, incarnation: Incarnation, resync: Resync) -> Took {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = match self.queue(&mut queues, incarnation, &resync.class) {
            Ok(queue) => queue,
            Err(took) => return took,
        };
        queue.on(channel, incarnation);
        if !queue.intake.resync_is_news(incarnation, resync.next_seq) {
            return Took::Ignored;
        }
        let Ok(permit) = queue.sender.try_reserve() else { return Took::Refused };
        match queue.intake.resync(channel.clone(), incarnation, resync) {
            Resynced::More => Took::Ignored,
            Resynced::TooMany => Took::Refused,
            Resynced::Done { gap, mark, tasks } => {
                permit.send(Item::Resync { incarnation, gap, mark, tasks });
                Took::Queued
            }
        }
    }

    /// Tells every class that was ever heard of, and always live subscribers, how the worker is.
    pub(super) fn tell(&self, incarnation: Incarnation, status: NodeStatus) {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let own_class = core_class();
        if !queues.classes.contains_key(&own_class)
            && let Some(shared) = self.shared.upgrade()
        {
            let event = EventBody::Nkcluster(BuiltinEvent::NodeStatus(status));
            let record = EventRecord { node: self.node.clone(), incarnation, class: own_class, seq: 0, time_ms: unix_time_ms(), event };
            shared.hub.publish(&record);
        }
        for queue in queues.classes.values() {
            queue.say(Item::Status { incarnation, status });
        }
    }

    /// The proxy has taken this incarnation: tasks of other ones have ended, and nothing more is heard of them.
    pub(super) fn new_incarnation(&self, incarnation: Incarnation) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.incarnation = Some(incarnation);
        for queue in queues.classes.values() {
            queue.say(Item::NewIncarnation(incarnation));
        }
    }

    /// Waits, for at most `patience`, until everything that has come was taken in; from then on nothing is delivered until [`Dispatcher::go_on`]. Returns how
    /// far each class has come.
    pub(super) async fn pause(&self, patience: Duration) -> Vec<Marks> {
        let late = Instant::now() + patience;
        while !self.is_idle() && Instant::now() < late {
            tokio::time::sleep(IDLE_PAUSE).await;
        }
        self.paused.send_replace(true);
        self.marks()
    }

    /// The move has failed.
    pub(super) fn go_on(&self) {
        self.paused.send_replace(false);
    }

    fn is_idle(&self) -> bool {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.classes.values().all(|queue| {
            let (incarnation, mark, _) = queue.intake.position();
            queue.sender.capacity() == QUEUE_MAX && queue.progress().position(incarnation).0 >= mark
        })
    }

    /// How far each class has come.
    pub(super) fn marks(&self) -> Vec<Marks> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = queues.classes.iter().map(|(class, queue)| {
            let (incarnation, mark, introduced) = queue.intake.position();
            let (seq, tasks) = queue.progress().position(incarnation);
            Marks { class: class.clone(), incarnation, seq, introduced: introduced && (seq > 0 || mark == 0), tasks }
        });
        marks.collect()
    }

    /// Another control node has had the worker: its classes go on where they were there.
    pub(super) fn restore(&self, marks: Vec<Marks>) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for Marks { class, incarnation, seq, introduced, tasks } in marks {
            let asked = queues.incarnation.replace(incarnation);
            if let Ok(queue) = self.queue(&mut queues, incarnation, &class) {
                queue.intake.advance(incarnation, seq, introduced);
                queue.progress().advance(incarnation, seq, tasks);
            }
            queues.incarnation = asked;
        }
    }

    /// The queue for what an incarnation has sent; else what became of it.
    fn queue<'a>(&self, queues: &'a mut Queues, incarnation: Incarnation, class: &ClassName) -> Result<&'a mut Queue, Took> {
        if queues.incarnation != Some(incarnation) {
            return Err(Took::Ignored);
        }
        if !queues.classes.contains_key(class) {
            if queues.classes.len() >= CLASSES_MAX {
                return Err(Took::Refused);
            }
            let (sender, receiver) = mpsc::channel(QUEUE_MAX);
            let progress = Arc::new(Mutex::new(Progress::new(incarnation)));
            let deliverer = Deliverer::new(Weak::clone(&self.shared), self.node.clone(), class.clone(), Arc::clone(&progress), self.paused.subscribe());
            // Ends with the dispatcher, that is with its proxy.
            tokio::spawn(deliverer.run(receiver));
            queues.classes.insert(class.clone(), Queue { sender, intake: Intake::new(incarnation), progress });
        }
        queues.classes.get_mut(class).ok_or(Took::Refused)
    }
}

impl Queue {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this incarnation sends comes on this channel now; returns the last number that its class has taken in.
    fn on(&self, channel: &Channel, incarnation: Incarnation) -> u64 {
        self.progress().on(channel, incarnation)
    }

    /// Queues a word of our own. It is dropped where a class hangs and much waits for it already: later it will learn how things are then.
    fn say(&self, item: Item) {
        if self.sender.capacity() > RESERVED {
            let _ = self.sender.try_send(item);
        }
    }
}
