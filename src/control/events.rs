//! Events of workers, on their way to the classes and to live subscribers.
//!
//! ```text
//!   link ─► Dispatcher ─┬─ intake of the class (what is new?) ─► queue ─► Deliverer ─► class
//!                       │                                                    └─► acknowledgement, on the channel of now
//!                       └─ intake of the followers ─► live subscribers, at once
//! ```
//!
//! Live subscribers wait for nobody: while the handler of a class hangs, its worker sends them ahead what the class will get later, and is told how far they are.
//!
//! Each worker has one queue per class, so that a slow class delays nobody but itself. An event is acknowledged when the class has taken it in, or its failure was
//! logged: at least once. What a worker sends again after a reconnect is not queued again, so a class that hangs holds no more than one window; a full queue means
//! a worker that breaks the rules. Only the incarnation that the proxy has taken is listened to.

mod deliverer;
pub(crate) mod intake;
pub(crate) mod story;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::deliverer::{Deliverer, Heard, Progress};
use self::intake::{Arrival, Intake, Resynced};
use self::story::{Item, Story, Told, What};
use super::shared::Shared;
use crate::cluster::{EventBody, EventFilter, EventRecord, EventSink, EventStream, core_class, event_queue};
use crate::connection::{Channel, unix_time_ms};
use crate::proto::head::{Audience, EventHead};
use crate::proto::message::{BuiltinEvent, EventAck, Message, Resync};
use crate::types::{ClassName, Incarnation, NodeId, NodeStatus, TaskId};

/// Entries of one queue: several windows, of the incarnations of a worker that is restarted while its class hangs, and what we say ourselves.
const QUEUE_MAX: usize = 2048;
/// Entries that stay free for the worker: what we say ourselves, such as its coming and going, is dropped first.
const RESERVED: usize = QUEUE_MAX / 2;
/// Events sent ahead after which the worker is told how far those who follow are: well before its window is used up.
const FOLLOWED_EVERY: u64 = 64;
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

    /// Ends every subscription in peace, behind what is queued: nothing more happens here.
    pub(super) fn close(&self) {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn has_followers(&self) -> bool {
        !self.sinks.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
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

/// The queues of one worker.
pub(super) struct Dispatcher {
    shared: Weak<Shared>,
    node: NodeId,
    queues: Mutex<Queues>,
    /// Whether the worker moves to another control node; made for the first who asks.
    paused: OnceLock<watch::Sender<bool>>,
}

/// How far a class has come with what a worker sends it. Whoever has the worker next goes on from there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Marks {
    class: ClassName,
    incarnation: Incarnation,
    /// Last number that the class has taken in.
    seq: u64,
    /// Last number that was told to those who follow.
    #[serde(default)]
    live: u64,
    /// Whether it knows of this incarnation.
    introduced: bool,
    /// Tasks that it believes to run.
    #[serde(default)]
    tasks: Vec<TaskId>,
}

impl Marks {
    /// The same for a class that has not seen what was told elsewhere: it hears first what runs.
    pub(super) fn unintroduced(self) -> Self {
        Self { introduced: false, ..self }
    }
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
    live: Live,
    heard: Heard,
}

impl Dispatcher {
    pub(super) fn new(shared: &Arc<Shared>, node: NodeId) -> Self {
        Self { shared: Arc::downgrade(shared), node, queues: Mutex::default(), paused: OnceLock::new() }
    }

    /// An event, or a gap, has come.
    pub(super) fn event(&self, channel: &Channel, incarnation: Incarnation, head: EventHead, payload: Bytes) -> Took {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = match self.queue(&mut queues, incarnation, &head.class) {
            Ok(queue) => queue,
            Err(took) => return took,
        };
        let delivered = queue.on(channel, incarnation);
        let followed = queue.live.event(incarnation, &head, &payload, |told| self.publish(&head.class, told));
        if head.audience == Audience::Followers {
            // Also of what is sent again after a reconnect: it takes up the window all the same.
            if queue.live.is_due(head.seq) {
                channel.message(&Message::EventAck(EventAck { class: head.class, seq: delivered, followed: head.seq }));
            }
            return if followed { Took::Queued } else { Took::Ignored };
        }
        if !queue.intake.is_new(incarnation, head.seq) {
            drop(queues);
            if head.seq <= delivered {
                // Its acknowledgement was lost with the channel that it was given on. If it is still queued, it will be acknowledged here.
                channel.message(&Message::EventAck(EventAck { class: head.class, seq: delivered, followed: 0 }));
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
        queue.live.resync(channel, incarnation, &resync, |told| self.publish(&resync.class, told));
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
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let own_class = core_class();
        if !queues.classes.contains_key(&own_class)
            && let Some(shared) = self.shared.upgrade()
        {
            let event = EventBody::Nkcluster(BuiltinEvent::NodeStatus(status));
            let record =
                EventRecord { node: self.node.clone(), incarnation, class: own_class, seq: 0, time_ms: unix_time_ms(), task: None, event };
            shared.hub.publish(&record);
        }
        self.say(&mut queues, Item::Status { incarnation, status });
    }

    /// The proxy has taken this incarnation: tasks of other ones have ended, and nothing more is heard of them.
    pub(super) fn new_incarnation(&self, incarnation: Incarnation) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.incarnation = Some(incarnation);
        self.say(&mut queues, Item::NewIncarnation(incarnation));
    }

    fn say(&self, queues: &mut Queues, item: Item) {
        for (class, queue) in &mut queues.classes {
            queue.live.tell(item.clone(), |told| self.publish(class, told));
            queue.say(item.clone());
        }
    }

    /// Tells live subscribers.
    fn publish(&self, class: &ClassName, told: Told) {
        let Some(shared) = self.shared.upgrade().filter(|shared| shared.hub.has_followers()) else { return };
        let Told { incarnation, seq, time_ms, task, what } = told;
        let (seq, event) = match what {
            What::Class(payload) => (seq, EventBody::Class(payload)),
            What::Builtin(event) => (seq, EventBody::Nkcluster(event)),
            // Those who only follow are told what they miss of what they have followed.
            What::Resync { gap: Some((from, to)), .. } if from > 1 => (to, EventBody::Nkcluster(BuiltinEvent::Gap { from, to })),
            What::Resync { .. } => return,
        };
        let record = EventRecord { node: self.node.clone(), incarnation, class: class.clone(), seq, time_ms, task, event };
        shared.hub.publish(&record);
    }

    /// Waits, for at most `patience`, until everything that has come was taken in; from then on nothing is delivered until [`Dispatcher::go_on`]. Returns how
    /// far each class has come.
    pub(super) async fn pause(&self, patience: Duration) -> Vec<Marks> {
        let late = Instant::now() + patience;
        while !self.is_idle() && Instant::now() < late {
            tokio::time::sleep(IDLE_PAUSE).await;
        }
        self.paused().send_replace(true);
        self.marks()
    }

    /// The move has failed.
    pub(super) fn go_on(&self) {
        self.paused().send_replace(false);
    }

    fn paused(&self) -> &watch::Sender<bool> {
        self.paused.get_or_init(|| watch::Sender::new(false))
    }

    fn is_idle(&self) -> bool {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.classes.values().all(|queue| {
            let (incarnation, mark, _) = queue.intake.position();
            queue.sender.capacity() == QUEUE_MAX && queue.progress().position(incarnation) >= mark
        })
    }

    /// How far each class has come.
    pub(super) fn marks(&self) -> Vec<Marks> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = queues.classes.iter().map(|(class, queue)| {
            let (incarnation, mark, introduced) = queue.intake.position();
            let seq = queue.progress().position(incarnation);
            let live = match queue.live.intake.position() {
                (of, live, _) if of == incarnation => live,
                _ => 0,
            };
            let introduced = introduced && (seq > 0 || mark == 0);
            Marks { class: class.clone(), incarnation, seq, live, introduced, tasks: queue.story().tasks() }
        });
        marks.collect()
    }

    /// Another control node has had the worker: its classes, and those who follow, go on where they were there.
    pub(super) fn restore(&self, marks: Vec<Marks>) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for Marks { class, incarnation, seq, live, introduced, tasks } in marks {
            let asked = queues.incarnation.replace(incarnation);
            if let Ok(queue) = self.queue(&mut queues, incarnation, &class) {
                queue.intake.advance(incarnation, seq, introduced);
                queue.progress().advance(incarnation, seq);
                queue.live.intake.advance(incarnation, live, true);
                queue.live.story.advance(incarnation, tasks.iter().cloned());
                queue.story().advance(incarnation, tasks);
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
            let heard = Heard { progress: Arc::new(Mutex::new(Progress::new(incarnation))), story: Arc::default() };
            let (shared, paused) = (Weak::clone(&self.shared), self.paused().subscribe());
            let deliverer = Deliverer::new(shared, self.node.clone(), class.clone(), heard.clone(), paused);
            // Ends with the dispatcher, that is with its proxy.
            tokio::spawn(deliverer.run(receiver));
            let live = Live { intake: Intake::new(incarnation), story: Story::default(), told_followed: 0 };
            queues.classes.insert(class.clone(), Queue { sender, intake: Intake::new(incarnation), live, heard });
        }
        queues.classes.get_mut(class).ok_or(Took::Refused)
    }
}

/// How far live subscribers are.
struct Live {
    intake: Intake<Channel>,
    story: Story,
    /// What the worker was told last of what was sent ahead.
    told_followed: u64,
}

impl Live {
    /// An event has come; whether it is new to those who follow, who are told then.
    fn event(&mut self, incarnation: Incarnation, head: &EventHead, payload: &Bytes, publish: impl FnMut(Told)) -> bool {
        if !self.intake.is_new(incarnation, head.seq) {
            return false;
        }
        let Arrival { first, before } = self.intake.event(incarnation, head.seq, head.kind);
        self.tell(Item::Event { incarnation, head: head.clone(), payload: payload.clone(), first, before }, publish);
        true
    }

    fn resync(&mut self, channel: &Channel, incarnation: Incarnation, resync: &Resync, publish: impl FnMut(Told)) {
        if self.intake.resync_is_news(incarnation, resync.next_seq)
            && let Resynced::Done { gap, mark, tasks } = self.intake.resync(channel.clone(), incarnation, resync.clone())
        {
            self.tell(Item::Resync { incarnation, gap, mark, tasks }, publish);
        }
    }

    fn tell(&mut self, item: Item, publish: impl FnMut(Told)) {
        self.story.tell(item, unix_time_ms()).into_iter().for_each(publish);
    }

    /// Whether the worker should be told that those who follow are this far.
    fn is_due(&mut self, seq: u64) -> bool {
        let is_due = seq < self.told_followed || seq - self.told_followed >= FOLLOWED_EVERY;
        if is_due {
            self.told_followed = seq;
        }
        is_due
    }
}

impl Queue {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.heard.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn story(&self) -> MutexGuard<'_, Story> {
        self.heard.story.lock().unwrap_or_else(PoisonError::into_inner)
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
