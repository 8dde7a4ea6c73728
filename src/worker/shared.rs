//! The state of a worker, behind one lock, and what its parts do with it.
//!
//! The lock guards a few lines at a time. Whoever holds it may put frames into a link (its own, inner lock); nobody who holds a link's lock ever takes this one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;

use super::adoption::{Adoption, ChannelKey};
use super::agent::Connector;
use super::calls::Calls;
use super::exclusive::EXCLUSIVE_MAX;
use super::journal::{Journal, Outgoing};
use super::outcomes::REMEMBER_AFTER_DEADLINE;
use super::running::Running;
use super::tasks::{Action, TaskState, Tasks};
use crate::cluster::core_class;
use crate::config::Config;
use crate::connection::{Channel, IncomingCall, Link, unix_time_ms};
use crate::error::{Error, ErrorCode, Result};
use crate::job::Classes;
use crate::proto::entry::EntryKind;
use crate::proto::head::{Audience, EventHead, EventKind};
use crate::proto::message::{BuiltinEvent, Describe, Message, RESYNC_TASKS_MAX, Resync, Update};
use crate::proto::session::EVENT_BYTES_MAX;
use crate::types::{ClassName, Incarnation, Meta, NodeId, NodeStats, NodeUri, Payload, TaskId, WantedStatus};

/// Events of one class on their way to the holder.
const EVENT_WINDOW: usize = 256;
/// Keys of the key/value store, and bytes of all of it.
pub(super) const DATA_KEYS_MAX: usize = 65_536;
pub(super) const DATA_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(super) struct Shared {
    pub(super) id: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) config: Arc<Config>,
    pub(super) classes: Classes,
    pub(super) calls: Arc<Semaphore>,
    /// Of the class `core`: other classes that hang must not lock their operator out.
    pub(super) core_calls: Arc<Semaphore>,
    pub(super) listen: Vec<NodeUri>,
    pub(super) file_root: std::path::PathBuf,
    state: Mutex<State>,
    /// Changes with every adoption, loss of the holder and its silence.
    pub(super) held: watch::Sender<Held>,
    /// Whether the agent looks for control nodes.
    pub(super) dials: watch::Sender<bool>,
    /// Where the holder would like to be reached.
    pub(super) redirects: watch::Sender<Redirected>,
    /// Something moved: a task ended, an event was acknowledged.
    moved: Notify,
    next_link: AtomicU64,
    refuses_calls: AtomicBool,
    /// What dials for this worker, if anything does.
    pub(super) connector: Option<Arc<dyn Connector>>,
    /// Connections beside the holder's that this worker may have dialled.
    pub(super) exclusive: Arc<Semaphore>,
}

/// The holder would like to be reached in another way.
#[derive(Clone, Debug, Default)]
pub(super) struct Redirected {
    /// In the order asked.
    pub(super) addresses: Vec<NodeUri>,
    /// Number of the link over which it has said so.
    pub(super) over: u64,
}

/// What the agent must know of the holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Nobody holds the worker.
    No,
    /// Somebody does.
    By(NodeId),
}

pub(super) struct State {
    pub(super) tasks: Tasks,
    pub(super) running: HashMap<(ClassName, TaskId), Running>,
    /// Ends tasks that their class has not started yet.
    pub(super) starting: HashMap<(ClassName, TaskId), oneshot::Sender<()>>,
    pub(super) adoption: Adoption,
    pub(super) current: Option<Channel>,
    pub(super) journal: Journal,
    pub(super) calls: Calls<IncomingCall>,
    pub(super) meta: Meta,
    pub(super) data: BTreeMap<String, serde_json::Value>,
    pub(super) data_bytes: usize,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) preferred: Vec<NodeUri>,
    pub(super) reconnect_after: Option<std::time::Duration>,
    /// The link whose control node has said last that it goes.
    pub(super) sent_away: Option<Link>,
    pub(super) stats: Option<NodeStats>,
}

impl State {
    /// Whether the control node at the other end of the link over which the worker is held is about to stop.
    pub(super) fn is_sent_away(&self) -> bool {
        let held_over = self.current.as_ref().map(Channel::link);
        held_over.is_some() && held_over == self.sent_away.as_ref()
    }

    /// Whether this is the link over which the worker is held.
    pub(super) fn is_held_over(&self, link: u64) -> bool {
        let held_over = self.current.as_ref().map(Channel::link);
        held_over.is_some() && held_over == self.links.get(&link)
    }
}

impl Shared {
    pub(super) fn new(
        config: Arc<Config>,
        id: NodeId,
        incarnation: Incarnation,
        classes: Classes,
        listen: Vec<NodeUri>,
        connector: Option<Arc<dyn Connector>>,
    ) -> Arc<Self> {
        let state = State {
            tasks: Tasks::new(),
            running: HashMap::new(),
            starting: HashMap::new(),
            adoption: Adoption::new(incarnation, config.ping_time),
            current: None,
            journal: Journal::new(config.journal_bytes),
            calls: Calls::new(incarnation, config.outcome_bytes),
            meta: config.meta.clone(),
            data: BTreeMap::new(),
            data_bytes: 0,
            links: BTreeMap::new(),
            preferred: Vec::new(),
            reconnect_after: None,
            sent_away: None,
            stats: None,
        };
        Arc::new(Self {
            id,
            incarnation,
            classes,
            calls: Arc::new(Semaphore::new(config.max_calls)),
            core_calls: Arc::new(Semaphore::new(config.max_calls)),
            listen,
            file_root: config.file_root(),
            state: Mutex::new(state),
            held: watch::Sender::new(Held::No),
            dials: watch::Sender::new(true),
            redirects: watch::Sender::new(Redirected::default()),
            moved: Notify::new(),
            next_link: AtomicU64::new(1),
            refuses_calls: AtomicBool::new(false),
            connector,
            exclusive: Arc::new(Semaphore::new(EXCLUSIVE_MAX)),
            config,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No handler of a class runs under the lock; a panic under it would be a bug of ours, and the state is still a value.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this worker enables a class.
    pub(super) fn enables(&self, class: &ClassName) -> bool {
        class.as_str() == crate::cluster::CORE_CLASS || self.config.classes.contains(class.as_str())
    }

    /// Classes that it enables and has.
    pub(super) fn enabled_classes(&self) -> Vec<ClassName> {
        self.classes.names().into_iter().filter(|class| self.enables(class)).collect()
    }

    pub(super) fn add_link(&self, link: &Link) -> u64 {
        let number = self.next_link.fetch_add(1, Ordering::Relaxed);
        self.lock().links.insert(number, link.clone());
        number
    }

    pub(super) fn links(&self) -> Vec<Link> {
        self.lock().links.values().cloned().collect()
    }

    /// First trusted frame on every link.
    pub(super) fn introduce(&self, link: &Link) {
        let state = self.lock();
        let describe = Describe {
            listen: self.listen.clone(),
            meta: state.meta.clone(),
            status: state.tasks.status(),
            classes: self.enabled_classes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            term: state.adoption.term(),
            holder: state.adoption.holder().map(|holder| holder.owner.clone()),
        };
        drop(state);
        link.channel_zero().message(&Message::Describe(describe));
    }

    /// Sends the holder what is new of this node.
    pub(super) fn publish(&self) {
        self.publish_locked(&self.lock());
    }

    fn publish_locked(&self, state: &State) {
        if let Some(channel) = &state.current {
            channel.message(&Message::Update(Update {
                status: state.tasks.status(),
                meta: state.meta.clone(),
                listen: self.listen.clone(),
                stats: state.stats.clone(),
                tasks: u32::try_from(state.tasks.len()).unwrap_or(u32::MAX),
            }));
        }
    }

    /// Appends an event of a class and sends what may be sent.
    pub(super) fn emit(&self, class: &ClassName, task: Option<&TaskId>, payload: Payload) -> Result<u64> {
        if payload.len() > EVENT_BYTES_MAX {
            let what = format!("an event of {} bytes is larger than {EVENT_BYTES_MAX}; put it into a file or a reply", payload.len());
            return Err(Error::new(ErrorCode::PayloadTooLarge, what));
        }
        let mut state = self.lock();
        let kind = task.map_or(EntryKind::Class, |task| EntryKind::OfTask(task.clone()));
        let seq = state.journal.append(class, kind, payload, unix_time_ms())?;
        state.pump();
        Ok(seq)
    }

    /// Does what the task table says, in order.
    pub(super) fn perform(&self, state: &mut State, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::NotifyTasks(status) => {
                    for running in state.running.values() {
                        running.notify(status);
                    }
                }
                Action::NotifyTask { class, id, status } => {
                    if let Some(running) = state.running.get(&(class, id)) {
                        running.notify(status);
                    }
                }
                Action::EmitStarted { class, id } => state.append_own(&class, EntryKind::TaskStarted(id)),
                Action::EmitStopped { class, id, reason } => state.append_own(&class, EntryKind::TaskStopped { id, reason }),
                Action::EmitStatus(status) => {
                    tracing::info!(node = %self.id, %status, "status changed");
                    // Every class that ever had an event, and `core` for whoever follows the worker itself.
                    let mut classes: BTreeSet<ClassName> = state.journal.classes().map(|(class, _)| class.clone()).collect();
                    classes.insert(core_class());
                    for class in classes {
                        state.append_own(&class, EntryKind::NodeStatus(status));
                    }
                }
                Action::PublishUpdate => self.publish_locked(state),
            }
        }
        state.pump();
        self.moved.notify_waiters();
    }

    /// Changes the status.
    pub(super) fn set_status(&self, wanted: WantedStatus) -> Result<()> {
        let mut state = self.lock();
        let actions = state.tasks.set_status(wanted)?;
        self.perform(&mut state, actions);
        Ok(())
    }

    /// From now on no call is begun.
    pub(super) fn refuse_calls(&self) {
        self.refuses_calls.store(true, Ordering::Release);
    }

    pub(super) fn refuses_calls(&self) -> bool {
        self.refuses_calls.load(Ordering::Acquire)
    }

    /// Kills every task; returns how many.
    pub(super) fn kill_all_tasks(&self) -> usize {
        let mut state = self.lock();
        let mut killed = state.starting.drain().filter_map(|(_, kill)| kill.send(()).ok()).count();
        for running in state.running.values_mut() {
            killed += usize::from(running.kill());
        }
        killed
    }

    /// Ends when no task is left.
    pub(super) async fn no_tasks(&self) {
        self.until(|state| state.tasks.is_empty()).await;
    }

    /// Ends when every event was acknowledged, or nobody is there to do it.
    pub(super) async fn settled(&self) {
        self.until(|state| state.journal.is_settled() || state.current.is_none()).await;
    }

    /// Ends when this holds; looked at after everything that calls [`Shared::has_moved`].
    pub(super) async fn until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the look, so that no change is missed.
            moved.as_mut().enable();
            if done(&self.lock()) {
                return;
            }
            moved.await;
        }
    }

    pub(super) fn has_moved(&self) {
        self.moved.notify_waiters();
    }

    /// The holder changed: everything unacknowledged is sent again on its channel, introduced for each class.
    pub(super) fn resync(&self, state: &mut State) {
        let Some(channel) = state.current.clone() else { return };
        state.journal.rewind();
        let classes: Vec<(ClassName, u64)> =
            state.journal.classes().map(|(class, marks)| (class.clone(), marks.acknowledged + 1)).collect();
        for (class, next_seq) in classes {
            // Those whose start does not follow.
            let known = state
                .tasks
                .of_class(&class)
                .filter(|(id, row)| row.state == TaskState::Running && !state.journal.will_tell_start(&class, id));
            let tasks: Vec<TaskId> = known.map(|(id, _)| id.clone()).collect();
            let mut pages = tasks.chunks(RESYNC_TASKS_MAX).peekable();
            let first = pages.next().unwrap_or_default();
            let mut page = Resync { class: class.clone(), next_seq, tasks: first.to_vec(), more: pages.peek().is_some() };
            channel.message(&Message::Resync(page.clone()));
            while let Some(tasks) = pages.next() {
                page = Resync { tasks: tasks.to_vec(), more: pages.peek().is_some(), ..page };
                channel.message(&Message::Resync(page.clone()));
            }
        }
        state.pump();
    }
}

impl State {
    fn append_own(&mut self, class: &ClassName, kind: EntryKind) {
        // Only a class beyond the bound of the journal is refused; its task is still in the list.
        if let Err(error) = self.journal.append(class, kind, Payload::nil(), unix_time_ms()) {
            tracing::warn!(%class, %error, "an event was not recorded");
        }
    }

    /// Sends what the window of the journal allows.
    pub(super) fn pump(&mut self) {
        let Some(channel) = &self.current else { return };
        while let Some(outgoing) = self.journal.next_to_send(EVENT_WINDOW) {
            let (head, payload) = event_frame(outgoing, Audience::Everybody);
            channel.event(&head, &payload);
        }
        while let Some(outgoing) = self.journal.next_for_followers(EVENT_WINDOW) {
            let (head, payload) = event_frame(outgoing, Audience::Followers);
            channel.event(&head, &payload);
        }
    }
}

/// An entry of the journal, or a gap, as it travels.
pub(crate) fn event_frame(outgoing: Outgoing<'_>, audience: Audience) -> (EventHead, Bytes) {
    let encode = |event: &BuiltinEvent| Bytes::from(rmp_serde::to_vec_named(event).unwrap_or_default());
    match outgoing {
        Outgoing::Gap { class, from, to } => {
            let head = EventHead { seq: to, time_ms: unix_time_ms(), kind: EventKind::Gap, class: class.clone(), task: None, audience };
            (head, encode(&BuiltinEvent::Gap { from, to }))
        }
        Outgoing::Entry(entry) => {
            let (kind, task, payload) = match &entry.kind {
                EntryKind::Class => (EventKind::Class, None, entry.payload.clone().into_bytes()),
                EntryKind::OfTask(id) => (EventKind::Class, Some(id.clone()), entry.payload.clone().into_bytes()),
                EntryKind::TaskStarted(id) => (EventKind::Builtin, None, encode(&BuiltinEvent::TaskStarted(id.clone()))),
                EntryKind::TaskStopped { id, reason } => {
                    let stopped = BuiltinEvent::TaskStopped { id: id.clone(), reason: reason.to_string() };
                    (EventKind::Builtin, None, encode(&stopped))
                }
                EntryKind::NodeStatus(status) => (EventKind::Builtin, None, encode(&BuiltinEvent::NodeStatus(*status))),
            };
            (EventHead { seq: entry.seq, time_ms: entry.time_ms, kind, class: entry.class.clone(), task, audience }, payload)
        }
    }
}

/// The key of a channel: never used twice in a process.
pub(super) fn channel_key(link: u64, channel: u16) -> ChannelKey {
    ChannelKey(link << 16 | u64::from(channel))
}

pub(super) fn is_of_link(key: ChannelKey, link: u64) -> bool {
    key.0 >> 16 == link
}

/// Forgets outcomes when their time is over.
pub(super) async fn expire_outcomes(shared: Arc<Shared>) {
    loop {
        let next = shared.lock().calls.next_deadline();
        let pause = next.map_or(REMEMBER_AFTER_DEADLINE, |at| at.saturating_duration_since(Instant::now().into_std()));
        // Not longer: a call that ends meanwhile may have to be forgotten earlier than all that are known now.
        tokio::time::sleep(pause.clamp(std::time::Duration::from_secs(1), REMEMBER_AFTER_DEADLINE)).await;
        shared.lock().calls.expire(Instant::now().into_std());
    }
}
