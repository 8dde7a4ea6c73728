//! The events of one class of one worker, one after the other, to the class.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::mpsc;

use super::story::{Item, Story, Told, What};
use crate::cluster::CORE_CLASS;
use crate::connection::{Channel, unix_time_ms};
use crate::control::shared::Shared;
use crate::job::{EventContext, RawEvent, RawEventKind};
use crate::proto::message::{BuiltinEvent, EventAck, Message};
use crate::types::{ClassName, Incarnation, NodeId};

/// How far the class has come, and where to say so.
pub(super) struct Progress {
    incarnation: Incarnation,
    delivered: u64,
    channel: Option<Channel>,
}

impl Progress {
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, delivered: 0, channel: None }
    }

    /// What this incarnation sends comes on this channel now; returns the last number that was taken in.
    pub(super) fn on(&mut self, channel: &Channel, incarnation: Incarnation) -> u64 {
        if self.incarnation != incarnation {
            *self = Self::new(incarnation);
        }
        if self.channel.as_ref() != Some(channel) {
            self.channel = Some(channel.clone());
        }
        self.delivered
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
    story: Story,
}

impl Deliverer {
    pub(super) fn new(shared: Weak<Shared>, node: NodeId, class: ClassName, progress: Arc<Mutex<Progress>>) -> Self {
        Self { shared, node, class, progress, story: Story::default() }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Item>) {
        while let Some(item) = queue.recv().await {
            let Some(shared) = self.shared.upgrade() else { return };
            let (event, resync) = match &item {
                Item::Event { incarnation, head, .. } => (Some((*incarnation, head.seq)), None),
                Item::Resync { incarnation, mark, .. } => (None, Some((*incarnation, *mark))),
                Item::Status { .. } | Item::NewIncarnation(_) => (None, None),
            };
            for told in self.story.tell(item, unix_time_ms()) {
                self.deliver(&shared, told).await;
            }
            if let Some((incarnation, seq)) = event {
                self.acknowledge(incarnation, seq);
            }
            if let Some((incarnation, mark)) = resync {
                // The worker knows that these were taken in, or are lost.
                self.progress.lock().unwrap_or_else(PoisonError::into_inner).delivered(incarnation, mark);
            }
        }
    }

    fn acknowledge(&self, incarnation: Incarnation, seq: u64) {
        let channel = self.progress.lock().unwrap_or_else(PoisonError::into_inner).delivered(incarnation, seq);
        if let Some(channel) = channel {
            channel.message(&Message::EventAck(EventAck { class: self.class.clone(), seq, followed: 0 }));
        }
    }

    async fn deliver(&self, shared: &Arc<Shared>, told: Told) {
        let Some(class) = shared.classes.class(&self.class).filter(|_| self.class.as_str() != CORE_CLASS) else { return };
        let Told { incarnation, seq, time_ms, task, what } = told;
        let kind = match what {
            What::Class(payload) => RawEventKind::Class(payload),
            What::Resync { gap, tasks } => RawEventKind::Resync { gap, tasks },
            What::Builtin(BuiltinEvent::TaskStarted(id)) => RawEventKind::TaskStarted(id),
            What::Builtin(BuiltinEvent::TaskStopped { id, reason }) => RawEventKind::TaskStopped { id, reason },
            What::Builtin(BuiltinEvent::NodeStatus(status)) => RawEventKind::NodeStatus(status),
            What::Builtin(BuiltinEvent::Gap { from, to }) => RawEventKind::Gap { from, to },
        };
        let event = RawEvent { node: self.node.clone(), incarnation, seq, time_ms, task, kind };
        let ctx = EventContext { control: shared.id.clone(), control_incarnation: shared.incarnation, cluster: shared.cluster() };
        // A task of its own, so that its panic is its own.
        match tokio::spawn(class.event(ctx, event)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(worker = %self.node, class = %self.class, seq, %error, "a class could not read an event"),
            Err(error) => tracing::error!(worker = %self.node, class = %self.class, seq, %error, "the event handler of a class failed"),
        }
    }
}
