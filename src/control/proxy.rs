//! The proxy of one worker: an actor that owns its state, and a handle that lets calls pass beside it.
//!
//! The actor is a task with a mailbox of its own kind. One of ractor has four channels, each with room for 32 messages, which is most of what an idle worker
//! would cost; what it gives beside that, supervision and names, has no use here.

mod improve;
mod mailbox;
mod moving;
pub(super) mod state;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rand::RngExt as _;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::mailbox::Mailbox;
use self::state::{Action, Arrival, LinkKey, PingFor, Setup, State};
use super::events::{Dispatcher, Marks, Took};
use super::exclusive::Exclusives;
use super::latency::Latency;
use super::messages::{Package, Record};
use super::shared::Shared;
use crate::cluster::{LatencyInfo, NodeInfo, ProxyInfo};
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::connection::{Channel, Link, LinkParts, unix_time_ms};
use crate::error::{Error, ErrorCode};
use crate::proto::auth::Role;
use crate::proto::head::EventHead;
use crate::proto::identity::Ticket;
use crate::proto::message::{Adopted, Describe, Fenced, Message, Resync, Update};
use crate::proto::session::Side;
use crate::types::{Incarnation, NodeId, NodeStats, NodeStatus, NodeUri};

/// Restart of the actor's loop after a panic would lose the state: instead its links end with it, and its worker is met anew by another one.
pub(super) enum Msg {
    LinkUp {
        key: LinkKey,
        link: Link,
        dialled: Option<Box<NodeUri>>,
        describe: Box<Describe>,
        /// Of a hand-over.
        package: Option<Box<Package>>,
        is_lent: bool,
        turn: Turn,
    },
    LinkDown {
        key: LinkKey,
    },
    Adopted {
        key: LinkKey,
        channel: u16,
        answer: Adopted,
        turn: Turn,
    },
    Fenced {
        key: LinkKey,
        fenced: Fenced,
        turn: Turn,
    },
    Updated {
        key: LinkKey,
        update: Arc<Latest>,
    },
    Ponged {
        key: LinkKey,
        purpose: PingFor,
        round_trip: Duration,
        peer_time_ms: u64,
    },
    PingLost {
        key: LinkKey,
    },
    DialFailed {
        dial: u64,
        error: Error,
    },
    /// Who owns what has changed, or the worker is not where it belongs.
    View,
    /// It is this worker's turn to move.
    Move {
        permit: OwnedSemaphorePermit,
    },
    Moved {
        key: LinkKey,
        to: NodeId,
        result: Result<(), Error>,
    },
    /// What is known of the worker from elsewhere.
    Known(Box<Record>),
    /// The worker cannot be dialled: it should dial us.
    Redirect,
    Forget,
    Deadline,
}

/// A place in the mailbox of the proxy, given back when the message was looked at. What a peer says takes one: it may speak faster than anybody listens.
pub(super) type Turn = tokio::sync::OwnedSemaphorePermit;

/// The last news of a worker that its proxy has not looked at: newer ones replace older ones, so that they wait in a bounded room.
#[derive(Default)]
pub(super) struct Latest(Mutex<Option<Box<Update>>>);

impl Latest {
    /// Leaves news; true if the proxy must be told that there are any.
    pub(super) fn leave(&self, update: Update) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(Box::new(update)).is_none()
    }

    fn take(&self) -> Option<Box<Update>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Where calls for a worker go now.
pub(super) struct Current {
    pub(super) channel: Channel,
    pub(super) key: LinkKey,
    pub(super) incarnation: Incarnation,
    /// Under which term, and what shows that it is ours.
    pub(super) term: u64,
    pub(super) ticket: Ticket,
    /// Where the worker may be dialled.
    pub(super) addresses: Vec<NodeUri>,
    /// Whether its socket is at another control node.
    pub(super) is_lent: bool,
}

/// The channel on which a worker is asked to obey.
struct Asked {
    key: LinkKey,
    channel: u16,
    /// Whether it has said that it does. What was on its way before that may lack what came before it: the worker sends all of it again.
    is_granted: AtomicBool,
}

/// The handle of a proxy.
pub(super) struct Proxy {
    pub(super) id: NodeId,
    current: ArcSwapOption<Current>,
    /// Where the worker was asked last to obey: what comes on any other channel is not its word.
    asked: ArcSwapOption<Asked>,
    info: Mutex<NodeInfo>,
    mailbox: Mailbox<Msg>,
    ended: AtomicBool,
    /// Whether the worker goes to another control node just now.
    moving: AtomicBool,
    changed: Notify,
    pub(super) dispatcher: Dispatcher,
    /// Its connections beside the one that is adopted.
    pub(super) exclusives: Arc<Exclusives>,
}

impl Proxy {
    /// Starts the proxy of a worker.
    pub(super) fn start(shared: &Arc<Shared>, id: NodeId) -> Arc<Self> {
        let proxy = Arc::new(Self {
            id: id.clone(),
            current: ArcSwapOption::empty(),
            asked: ArcSwapOption::empty(),
            info: Mutex::new(unknown_node(&id)),
            mailbox: Mailbox::new(),
            ended: AtomicBool::new(false),
            moving: AtomicBool::new(false),
            changed: Notify::new(),
            dispatcher: Dispatcher::new(shared, id.clone()),
            exclusives: Exclusives::new(id.clone()),
        });
        // Ends when its mailbox is closed.
        tokio::spawn(ProxyActor { shared: Arc::clone(shared), proxy: Arc::clone(&proxy) }.run());
        proxy
    }

    /// The channel for calls, if the worker obeys us.
    pub(super) fn current(&self) -> Option<Arc<Current>> {
        self.current.load_full()
    }

    /// Whether the worker goes to another control node just now: calls wait until it is there.
    pub(super) fn is_moving(&self) -> bool {
        self.moving.load(Ordering::Acquire)
    }

    /// Ends when [`Proxy::current`] or [`Proxy::is_moving`] may have changed, if it was enabled before.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Waits until the worker has moved, or stays.
    ///
    /// # Errors
    /// `not_connected` if that takes too long.
    pub(super) async fn moved(&self, patience: Duration) -> Result<(), Error> {
        let settled = async {
            loop {
                let changed = self.changed();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !self.is_moving() {
                    return;
                }
                changed.await;
            }
        };
        let what = |_| format!("{} moves to another control node, which takes too long; nothing was done. Try again", self.id);
        tokio::time::timeout(patience, settled).await.map_err(|late| Error::new(ErrorCode::NotConnected, what(late)))
    }

    /// Whether what comes on this channel comes from the worker that obeys us there.
    pub(super) fn is_current(&self, key: LinkKey, channel: u16) -> bool {
        self.current.load().as_ref().is_some_and(|current| current.key == key && current.channel.id() == channel)
    }

    /// Whether events on this channel are those of the worker.
    pub(super) fn hears(&self, key: LinkKey, channel: u16) -> bool {
        self.asked
            .load()
            .as_ref()
            .is_some_and(|asked| (asked.key, asked.channel) == (key, channel) && asked.is_granted.load(Ordering::Acquire))
    }

    /// The worker obeys on this channel. To be said before the next frame is looked at: its events follow at once.
    pub(super) fn granted(&self, key: LinkKey, channel: u16) {
        if let Some(asked) = self.asked.load().as_ref().filter(|asked| (asked.key, asked.channel) == (key, channel)) {
            asked.is_granted.store(true, Ordering::Release);
        }
    }

    /// What is known of the worker.
    pub(super) fn info(&self) -> NodeInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves a message for the actor; false if it has ended, as that of a forgotten worker has.
    pub(super) fn cast(&self, message: Msg) -> bool {
        self.mailbox.leave(message)
    }

    /// An event came on the current channel; false if its queue is full.
    pub(super) fn event(&self, channel: &Channel, incarnation: Incarnation, head: EventHead, payload: bytes::Bytes) -> Took {
        self.dispatcher.event(channel, incarnation, head, payload)
    }

    pub(super) fn resync(&self, channel: &Channel, incarnation: Incarnation, resync: Resync) -> Took {
        self.dispatcher.resync(channel, incarnation, resync)
    }

    /// Whether the actor has ended, or will before it sees another message.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Ends the actor: its worker is not wanted any more. What is cast from now on may never be seen, so whoever casts looks at [`Proxy::has_ended`] afterwards.
    pub(super) fn forget(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.cast(Msg::Forget);
    }

    /// Ends the actor, without a word to anybody.
    pub(super) fn stop(&self) {
        self.close_mailbox();
    }

    /// Closes the mailbox. A link that nobody has looked at ends, so that its worker makes another one.
    fn close_mailbox(&self) {
        for unread in self.mailbox.close() {
            if let Msg::LinkUp { link, .. } = unread {
                link.close(too_late());
            }
        }
    }
}

/// Why a link of a worker ends that came too late for its proxy.
pub(super) fn too_late() -> Error {
    Error::new(ErrorCode::ShuttingDown, "the proxy of the worker has ended")
}

fn unknown_node(id: &NodeId) -> NodeInfo {
    NodeInfo {
        id: id.clone(),
        status: NodeStatus::NotConnected,
        owner: None,
        remote: None,
        listen: Vec::new(),
        meta: Default::default(),
        latency_ms: None,
        tasks: 0,
        version: String::new(),
        classes: Vec::new(),
        stats: None,
        incarnation: None,
        latency: None,
        clock_skew_ms: None,
        proxies: Vec::new(),
    }
}

struct ProxyActor {
    shared: Arc<Shared>,
    proxy: Arc<Proxy>,
}

/// A link and the channel on which the worker was asked last.
type Used = (Link, Option<Channel>);

struct Own {
    proxy: Arc<Proxy>,
    state: State,
    links: BTreeMap<LinkKey, Used>,
    /// Of these, those whose socket is at another control node.
    lent: BTreeSet<LinkKey>,
    latency: Latency,
    skew_ms: Option<i64>,
    /// Statistics that are not told yet.
    stats: Option<NodeStats>,
    tasks: u32,
    dialling: Option<JoinHandle<()>>,
    /// Looks for a direct way to a worker that is reached over a lent link.
    improving: Option<JoinHandle<()>>,
    moving: Option<JoinHandle<()>>,
    /// The worker obeys another control node: its calls on exclusive connections are answered first.
    has_moved: bool,
    /// Who else keeps its record.
    copies: Vec<NodeId>,
    /// Addresses that the worker was told to prefer.
    preferred: Arc<[NodeUri]>,
    /// Where it was dialled last, with success. It may be the only address that can be reached from here, and the only one with a password.
    found_at: Option<NodeUri>,
    /// Dials so far; the number of the last one tells it from those before.
    dials: u64,
}

impl ProxyActor {
    async fn run(self) {
        let mut own = self.begin();
        loop {
            let deadline = own.state.next_deadline();
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(Instant::from_std(deadline)).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = self.proxy.mailbox.next() => message,
                () = due => Some(Msg::Deadline),
            };
            let Some(message) = message else { return };
            self.handle(message, &mut own);
            tokio::task::consume_budget().await;
        }
    }

    fn begin(&self) -> Own {
        let config = &self.shared.config;
        let setup = Setup {
            owner: self.shared.id.clone(),
            owner_incarnation: self.shared.incarnation,
            rank: self.shared.rank(&self.proxy.id),
            ping_time: config.ping_time,
            connect_retry: config.proxy_connect_retry,
        };
        let mut state = State::new(setup);
        let view = self.shared.view();
        state.set_claim(moving::claim(&view, &self.proxy.id), view.rank(&self.proxy.id), Instant::now().into_std());
        Own {
            proxy: Arc::clone(&self.proxy),
            state,
            links: BTreeMap::new(),
            lent: BTreeSet::new(),
            latency: Latency::new(),
            skew_ms: None,
            stats: None,
            tasks: 0,
            dialling: None,
            improving: None,
            moving: None,
            has_moved: false,
            copies: Vec::new(),
            preferred: Arc::default(),
            found_at: None,
            dials: 0,
        }
    }

    fn handle(&self, message: Msg, own: &mut Own) {
        let now = Instant::now().into_std();
        let actions = match message {
            // It would take the place of a good one, and nobody would tell its end.
            Msg::LinkUp { link, .. } if link.has_ended() => Vec::new(),
            Msg::LinkUp { key, link, dialled, describe, package, is_lent, turn } => {
                drop(turn);
                // Whoever was being dialled is here, or no longer needed.
                own.dialling.take().inspect(JoinHandle::abort);
                own.found_at = dialled.map(|uri| *uri).or(own.found_at.take());
                let incarnation = link.peer().incarnation;
                own.links.entry(key).or_insert((link, None));
                if is_lent {
                    own.lent.insert(key);
                }
                let arrival = match package {
                    Some(package) => {
                        own.tasks = package.tasks;
                        self.proxy.dispatcher.restore(package.marks);
                        Arrival::Given(package.ticket)
                    }
                    None if own.is_over_lent_link() && (!is_lent || self.lender_leaves(own)) => Arrival::Better,
                    None => Arrival::Plain,
                };
                own.state.link_up(key, incarnation, *describe, arrival, now)
            }
            Msg::LinkDown { key } => {
                own.links.remove(&key);
                own.lent.remove(&key);
                own.state.link_down(key, now)
            }
            Msg::Adopted { key, channel, answer, turn } => {
                drop(turn);
                let asked = own.links.get(&key).and_then(|(_, channel)| channel.as_ref()).map(Channel::id);
                if asked == Some(channel) { own.state.adopted(key, answer, now) } else { Vec::new() }
            }
            Msg::Fenced { key, fenced, turn } => {
                drop(turn);
                own.state.fenced(key, fenced.term, now)
            }
            Msg::Updated { key, update } => {
                if let Some(mut update) = update.take()
                    && own.state.uses(key)
                {
                    own.tasks = update.tasks;
                    own.stats = update.stats.take().or(own.stats.take());
                    own.state.updated(key, *update);
                }
                Vec::new()
            }
            Msg::Ponged { key, purpose, round_trip, peer_time_ms } => {
                if own.state.uses(key) {
                    own.latency.record(round_trip);
                    let here = unix_time_ms().saturating_sub(u64::try_from(round_trip.as_millis()).unwrap_or(0) / 2);
                    own.skew_ms = Some(peer_time_ms.cast_signed().wrapping_sub(here.cast_signed()));
                }
                own.state.ponged(key, purpose, now)
            }
            Msg::PingLost { key } => own.state.ping_lost(key, now),
            // Of one that was given up, while another is under way.
            Msg::DialFailed { dial, .. } if dial != own.dials => Vec::new(),
            Msg::DialFailed { error, .. } => {
                tracing::debug!(worker = %self.proxy.id, %error, "the worker cannot be reached");
                own.dialling = None;
                own.state.dial_failed(rand::rng().random(), now);
                Vec::new()
            }
            Msg::Deadline => own.state.handle_timeout(now),
            Msg::View => return self.review(own),
            Msg::Move { permit } => {
                self.begin_move(own, permit);
                Vec::new()
            }
            Msg::Moved { key, to, result: Ok(()) } => {
                self.has_moved(own, key, &to);
                return;
            }
            Msg::Moved { to, result: Err(error), .. } => {
                tracing::info!(worker = %self.proxy.id, %to, %error, "the worker could not be handed over; it stays for now");
                self.stays(own, now)
            }
            Msg::Known(record) => {
                own.found_at = own.found_at.take().or_else(|| record.found_at.as_ref().and_then(|uri| uri.parse().ok()));
                self.proxy.dispatcher.restore(record.marks.into_iter().map(Marks::unintroduced).collect());
                own.state.known(record.incarnation, record.describe)
            }
            Msg::Redirect => {
                self.redirect(own);
                Vec::new()
            }
            Msg::Forget => {
                self.forget(own);
                self.proxy.close_mailbox();
                return;
            }
        };
        self.act(own, actions);
    }
}

impl Drop for Own {
    /// However the actor ends: nobody takes it for alive, and its worker, whose link is closed, is met anew.
    fn drop(&mut self) {
        self.proxy.ended.store(true, Ordering::SeqCst);
        self.proxy.close_mailbox();
        self.proxy.current.store(None);
        self.proxy.info.lock().unwrap_or_else(PoisonError::into_inner).status = NodeStatus::NotConnected;
        self.dialling.take().inspect(JoinHandle::abort);
        self.improving.take().inspect(JoinHandle::abort);
        self.moving.take().inspect(JoinHandle::abort);
        self.proxy.settle();
        let reason = Error::new(ErrorCode::ProcessFailed, "the proxy of the worker has ended");
        for (link, _) in self.links.values() {
            link.close(reason.clone());
        }
        if !self.has_moved {
            self.proxy.exclusives.close(&reason);
        }
    }
}

impl Own {
    /// Where to dial, if the worker says that it listens there.
    fn addresses(&self, told: impl IntoIterator<Item = NodeUri>) -> Vec<NodeUri> {
        let others = told.into_iter().filter(|address| self.found_at.as_ref() != Some(address));
        self.found_at.iter().cloned().chain(others).collect()
    }
}

impl Own {
    /// Whether the worker obeys over a link whose socket is at another control node.
    fn is_over_lent_link(&self) -> bool {
        self.state.is_held() && self.lent.iter().any(|key| self.state.uses(*key))
    }
}

impl ProxyActor {
    /// Whether the node whose link is used is about to stop: then any other way is better.
    fn lender_leaves(&self, own: &Own) -> bool {
        let used = own.lent.iter().find(|key| own.state.uses(**key)).and_then(|key| self.shared.worker_link(*key));
        let via = used.and_then(|worker| worker.via.as_ref().map(|via| via.node.clone()));
        via.is_some_and(|via| !self.shared.view().live.contains_key(&via))
    }

    fn act(&self, own: &mut Own, actions: Vec<Action>) {
        for action in actions {
            self.perform(own, action);
        }
        self.publish_info(own);
    }

    fn perform(&self, own: &mut Own, action: Action) {
        let id = &self.proxy.id;
        match action {
            Action::Adopt { link: key, adopt } => {
                let Some((link, channel)) = own.links.get_mut(&key) else { return };
                // A link that has ended says so itself, in a message that is on its way.
                let opened = match channel.take().filter(Channel::is_open) {
                    Some(channel) => Ok(channel),
                    None => link.open_channel(),
                };
                if let Ok(opened) = opened {
                    let asked = Asked { key, channel: opened.id(), is_granted: AtomicBool::new(false) };
                    self.proxy.asked.store(Some(Arc::new(asked)));
                    opened.message(&Message::Adopt(*adopt));
                    *channel = Some(opened);
                }
            }
            Action::Publish { link: key } => {
                let (Some((link, Some(channel))), Some(ticket)) = (own.links.get(&key), own.state.ticket()) else { return };
                let current = Current {
                    channel: channel.clone(),
                    key,
                    incarnation: link.peer().incarnation,
                    term: own.state.term,
                    ticket,
                    addresses: own.addresses(own.state.describe.iter().flat_map(|describe| &describe.listen).cloned()),
                    is_lent: own.lent.contains(&key),
                };
                self.proxy.current.store(Some(Arc::new(current)));
                tracing::info!(worker = %id, remote = link.remote(), term = own.state.term, "worker ready");
                own.preferred = Arc::default();
                self.prefer(own);
                self.proxy.settle();
                self.improve(own, key);
                self.share(own);
            }
            Action::Unpublish => {
                self.proxy.current.store(None);
                self.proxy.changed.notify_waiters();
                own.improving.take().inspect(JoinHandle::abort);
                own.latency.clear();
                self.share(own);
            }
            Action::Close { link: key, reason } => {
                own.lent.remove(&key);
                if let Some((link, _)) = own.links.remove(&key) {
                    link.channel_zero()
                        .message(&Message::GoAway(crate::proto::message::GoAway { reason: reason.clone(), reconnect_after_ms: None }));
                    link.close(reason);
                }
            }
            Action::Drain { link: key } => {
                own.lent.remove(&key);
                if let Some((link, Some(channel))) = own.links.remove(&key) {
                    tokio::spawn(moving::drain(channel, self.shared.config.drain_timeout, Some(link)));
                }
            }
            Action::Ping { link: key, purpose, timeout } => {
                let Some((link, channel)) = own.links.get(&key) else { return };
                let channel = channel.clone().unwrap_or_else(|| link.channel_zero());
                let (rank, proxy) = (self.shared.rank(&self.proxy.id), Arc::clone(&self.proxy));
                tokio::spawn(async move {
                    let message = match channel.ping(rank, timeout).await {
                        Ok((round_trip, peer_time_ms)) => Msg::Ponged { key, purpose, round_trip, peer_time_ms },
                        Err(_) => Msg::PingLost { key },
                    };
                    proxy.cast(message);
                });
            }
            Action::Dial(addresses) => {
                own.dials += 1;
                let addresses = own.addresses(addresses);
                let dial = Dial { number: own.dials, addresses, proxy: Arc::clone(&self.proxy) };
                if let Some(old) = own.dialling.replace(tokio::spawn(dial.run(Arc::clone(&self.shared)))) {
                    old.abort();
                }
            }
            Action::Tell(status) => {
                if status == NodeStatus::NotConnected {
                    tracing::warn!(worker = %id, "worker not connected");
                }
                self.proxy.dispatcher.tell(own.state.incarnation().unwrap_or_default(), status);
            }
            Action::NewIncarnation(incarnation) => self.proxy.dispatcher.new_incarnation(incarnation),
            Action::Alarm { newcomer } => {
                let remote = own.links.get(&newcomer).map(|(link, _)| link.remote().to_owned());
                tracing::error!(worker = %id, ?remote, "two live nodes use one node_id; the newcomer was refused");
            }
        }
    }

    fn forget(&self, own: &mut Own) {
        self.proxy.current.store(None);
        let what = format!("worker {} was forgotten by an operator", self.proxy.id);
        let reason = Error::new(ErrorCode::NotFound, what);
        if own.state.is_held() {
            self.proxy.dispatcher.tell(own.state.incarnation().unwrap_or_default(), NodeStatus::NotConnected);
        }
        for (link, _) in std::mem::take(&mut own.links).into_values() {
            link.close(reason.clone());
        }
        self.proxy.exclusives.close(&reason);
    }

    fn publish_info(&self, own: &mut Own) {
        let mut info = unknown_node(&self.proxy.id);
        info.status = own.state.status();
        info.owner = Some(self.shared.id.clone());
        info.incarnation = own.state.incarnation();
        if let Some(describe) = &own.state.describe {
            info.listen = describe.listen.clone();
            info.meta = describe.meta.clone();
            info.version = describe.version.clone();
            info.classes = describe.classes.clone();
        }
        let current = self.proxy.current();
        info.remote = current.as_ref().map(|current| current.channel.link().remote().to_owned());
        info.tasks = own.tasks;
        info.clock_skew_ms = own.skew_ms;
        info.latency = own.latency.summary().map(latency_info);
        info.latency_ms = info.latency.map(|latency| latency.p50);
        info.proxies = vec![ProxyInfo {
            owner: self.shared.id.clone(),
            incarnation: self.shared.incarnation,
            term: own.state.term,
            rank: self.shared.rank(&self.proxy.id),
            active: own.state.is_held(),
        }];
        let mut told = self.proxy.info.lock().unwrap_or_else(PoisonError::into_inner);
        info.stats = own.stats.take().or(told.stats.take());
        *told = info;
    }
}

fn latency_info(summary: super::latency::LatencySummary) -> LatencyInfo {
    let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    LatencyInfo {
        count: u32::try_from(summary.samples).unwrap_or(u32::MAX),
        min: ms(summary.min),
        mean: ms(summary.mean),
        p50: ms(summary.p50),
        p99: ms(summary.p99),
        max: ms(summary.max),
    }
}

/// One attempt to dial a worker that has gone away.
struct Dial {
    number: u64,
    addresses: Vec<NodeUri>,
    proxy: Arc<Proxy>,
}

impl Dial {
    /// The worker introduces itself on the new link, which ends this task.
    async fn run(self, shared: Arc<Shared>) {
        let Self { number, addresses, proxy } = self;
        let expect = Expect::node(Role::Worker, proxy.id.clone());
        let error = match dial_and_establish(&addresses, &shared.party, &expect, Order::AsGiven, &shared.dial).await {
            Ok(established) => {
                let dialled = established.uri.clone();
                let link = super::workers::start(&shared, LinkParts { established, side: Side::Dialler }, dialled);
                link.ended().await
            }
            Err(error) => error.into(),
        };
        proxy.cast(Msg::DialFailed { dial: number, error });
    }
}
