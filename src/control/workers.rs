//! What a control node does with the frames of one worker's link.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use tokio::sync::{Notify, Semaphore};

use super::events::Took;
use super::lease::{Inlet, Via};
use super::messages::Package;
use super::proxy::state::LinkKey;
use super::proxy::{Latest, Msg, Proxy, Turn};
use super::shared::Shared;
use crate::connection::{Channel, IncomingCall, Link, LinkHandler, LinkParts};
use crate::error::{Error, ErrorCode};
use crate::proto::frame::Frame;
use crate::proto::head::{EventHead, Rank};
use crate::proto::message::{Adopted, Describe, ExclusiveHere, Message, Update};
use crate::types::NodeUri;

/// Messages of one link that may wait for the proxy. An honest worker answers what it is asked: one or two.
const TURNS_MAX: usize = 64;
/// How long a worker may take to introduce itself, whoever dialled.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How often a worker is offered to its owner before it is adopted here, and the pauses in between.
const PLACE_TRIES: u32 = 3;
const PLACE_PAUSE_MS: std::ops::Range<u64> = 20..200;

/// Starts the link of a worker; `dialled` is the address where we found it.
pub(super) fn start(shared: &Arc<Shared>, parts: LinkParts, dialled: Option<NodeUri>) -> Link {
    begin(shared, parts, Origin { dialled, via: None, package: None }).link.clone()
}

/// Starts a link that another control node lends us.
pub(super) fn start_lent(
    shared: &Arc<Shared>,
    parts: LinkParts,
    via: Via,
    found_at: Option<NodeUri>,
    mut package: Option<Box<Package>>,
) -> Arc<Handler> {
    let record = package.as_mut().and_then(|package| package.record.take());
    if let Some(record) = record.filter(|record| record.worker == parts.established.peer.id) {
        super::records::learn(shared, *record);
    }
    begin(shared, parts, Origin { dialled: found_at, via: Some(via), package })
}

/// How a link came to be.
struct Origin {
    dialled: Option<NodeUri>,
    via: Option<Via>,
    package: Option<Box<Package>>,
}

fn begin(shared: &Arc<Shared>, parts: LinkParts, origin: Origin) -> Arc<Handler> {
    let mut made = None;
    Link::start(parts, shared.link_options(), |link| {
        let key = shared.add_link(link);
        // It hands itself on when its worker moves.
        let handler = Arc::new_cyclic(|me| Handler {
            shared: Arc::clone(shared),
            key,
            link: link.clone(),
            dialled: origin.dialled,
            via: origin.via,
            package: Mutex::new(origin.package),
            proxy: Mutex::default(),
            introduced: Notify::new(),
            is_known: AtomicBool::new(false),
            relays: Mutex::default(),
            draining: AtomicUsize::new(0),
            news: Arc::default(),
            exclusive: AtomicBool::new(false),
            fenced: AtomicU64::new(0),
            turns: Arc::new(Semaphore::new(TURNS_MAX)),
            me: me.clone(),
        });
        shared.add_worker_link(key, &handler);
        made = Some(Arc::clone(&handler));
        handler as Arc<dyn LinkHandler>
    });
    let handler = made.expect("a link makes its handler before it starts");
    tokio::spawn(expect_introduction(Arc::clone(&handler)));
    handler
}

/// A worker that says nothing of itself is not kept: nobody could ever use its link.
async fn expect_introduction(handler: Arc<Handler>) {
    tokio::select! {
        _ = handler.link.ended() => {}
        () = tokio::time::sleep(INTRODUCTION) => {
            if !handler.is_known.load(Ordering::Acquire) && !handler.exclusive.load(Ordering::Acquire) {
                let what = format!("{} did not introduce itself within {INTRODUCTION:?}", handler.link.peer().id);
                handler.link.close(Error::new(ErrorCode::Timeout, what));
            }
        }
    }
}

/// What is done with the frames of one link. It stays with the socket when the worker moves to another control node.
pub(super) struct Handler {
    pub(super) shared: Arc<Shared>,
    pub(super) key: LinkKey,
    pub(super) link: Link,
    /// Where it was found, if it was dialled.
    pub(super) dialled: Option<NodeUri>,
    /// Who has the socket, if it is not here.
    pub(super) via: Option<Via>,
    /// What the old owner gave with the link.
    package: Mutex<Option<Box<Package>>>,
    /// Known from the worker's first frame on; none while another control node uses the link.
    proxy: Mutex<Option<Arc<Proxy>>>,
    /// There is a proxy.
    introduced: Notify,
    /// The worker has introduced itself.
    is_known: AtomicBool,
    /// Channels that other control nodes use.
    relays: Mutex<BTreeMap<u16, Inlet>>,
    /// Old channels of this node whose calls are being answered.
    draining: AtomicUsize,
    news: Arc<Latest>,
    /// Whether the worker was asked for it, for calls alone: then its proxy never knows of it.
    exclusive: AtomicBool,
    /// Highest term that was told to have fenced us. Each call that is refused for it tells it again.
    fenced: AtomicU64,
    turns: Arc<Semaphore>,
    me: Weak<Handler>,
}

impl Handler {
    /// A place in the mailbox of the proxy; none for a peer that says more than the proxy can follow, whose link is closed.
    fn turn(&self) -> Option<Turn> {
        let turn = Arc::clone(&self.turns).try_acquire_owned().ok();
        if turn.is_none() {
            tracing::warn!(worker = %self.link.peer().id, remote = self.link.remote(), "the peer floods its proxy; its link ends");
            self.link.close(Error::new(ErrorCode::ProtocolError, format!("more than {TURNS_MAX} messages wait for the proxy")));
        }
        turn
    }

    /// The worker has dialled once more as it was asked to, or cannot. What nobody has asked for is not kept.
    fn exclusive(&self, channel: &Channel, here: ExclusiveHere) {
        let peer = self.link.peer();
        if let Some(error) = here.refused {
            if let Some(proxy) = self.heard(channel) {
                proxy.exclusives.answered(here.request, Err(error));
            }
            return;
        }
        let proxy = self.shared.directory.find(&peer.id).filter(|_| self.proxy().is_none());
        // First, so that nobody has the link who could take it for one that must introduce itself.
        self.exclusive.store(true, Ordering::Release);
        if !proxy.is_some_and(|proxy| proxy.exclusives.answered(here.request, Ok(self.link.clone()))) {
            self.link.close(Error::new(ErrorCode::NotFound, "nobody has asked for this connection, or nobody waits for it any more"));
        }
    }

    fn introduced(&self, describe: Describe) {
        if self.exclusive.load(Ordering::Acquire) {
            return;
        }
        let id = &self.link.peer().id;
        let is_first = !self.is_known.swap(true, Ordering::AcqRel);
        if !is_first && self.proxy().is_none() {
            // Its owner, which is elsewhere, has asked; whoever asks us hears of it at the next hand-over.
            return;
        }
        // A frozen node believes to own everything, as it sees nobody else: it turns workers away, but for its own.
        let is_frozen = self.shared.view().frozen && *id != self.shared.id;
        if is_first && self.via.is_none() && (is_frozen || !self.shared.owns(id)) {
            let Some(handler) = self.me.upgrade() else { return };
            tokio::spawn(place(handler, describe));
            return;
        }
        let package = self.package.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.adopt_here(describe, package);
    }

    /// The proxy of the worker is, from now on, the one that this node has or makes.
    pub(super) fn adopt_here(&self, describe: Describe, package: Option<Box<Package>>) {
        let Some(turn) = self.turn() else { return };
        let id = &self.link.peer().id;
        let known = self.proxy().filter(|proxy| !proxy.has_ended());
        let found = || self.shared.directory.find_or_insert(id, || Proxy::start(&self.shared, id.clone()));
        let Some(proxy) = known.or_else(found) else {
            if self.shared.is_stopping() {
                return self.link.close(Error::new(ErrorCode::ShuttingDown, format!("control node {} is stopping", self.shared.id)));
            }
            tracing::error!(worker = %id, "a new worker is turned away: too many are known; forget those that will not return");
            let what = "the control node knows as many workers as it can";
            return self.link.close(Error::new(ErrorCode::Busy, what));
        };
        *self.lock_proxy() = Some(Arc::clone(&proxy));
        self.introduced.notify_waiters();
        let (link, dialled) = (self.link.clone(), self.dialled.clone().map(Box::new));
        let is_lent = self.via.is_some();
        let is_left = proxy.cast(Msg::LinkUp { key: self.key, link, dialled, describe: Box::new(describe), package, is_lent, turn });
        if !is_left || proxy.has_ended() {
            // Forgotten at this very moment: nobody sees this link, so the worker must make another one.
            self.link.close(super::proxy::too_late());
        }
    }

    /// The proxy, as soon as there is one.
    pub(super) async fn introduced_to(&self) -> Arc<Proxy> {
        loop {
            let introduced = self.introduced.notified();
            tokio::pin!(introduced);
            // Registered before the look, so that nobody is missed.
            introduced.as_mut().enable();
            if let Some(proxy) = self.proxy() {
                return proxy;
            }
            introduced.await;
        }
    }

    fn lock_proxy(&self) -> MutexGuard<'_, Option<Arc<Proxy>>> {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proxy(&self) -> Option<Arc<Proxy>> {
        self.lock_proxy().clone()
    }

    /// The worker has moved: what comes on the old channel is nobody's, but for the answers to the calls that were begun. The link stays at least until
    /// [`Handler::is_drained`].
    pub(super) fn leave_proxy(&self, proxy: &Arc<Proxy>) {
        self.draining.fetch_add(1, Ordering::SeqCst);
        self.lock_proxy().take_if(|mine| Arc::ptr_eq(mine, proxy));
    }

    /// The old channel has ended.
    pub(super) fn is_drained(&self) {
        self.draining.fetch_sub(1, Ordering::SeqCst);
        self.close_if_unused(&Error::new(ErrorCode::ConnectionFailed, "nobody uses this link any more"));
    }

    fn relays(&self) -> MutexGuard<'_, BTreeMap<u16, Inlet>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes on this channel is for another control node.
    pub(super) fn relay_to(&self, channel: u16, inlet: Inlet) {
        self.relays().insert(channel, inlet);
    }

    pub(super) fn relay_no_more(&self, channel: u16) {
        self.relays().remove(&channel);
    }

    /// Whether the worker has made it for calls alone.
    pub(super) fn is_exclusive(&self) -> bool {
        self.exclusive.load(Ordering::Acquire)
    }

    /// Whether another control node uses the link.
    pub(super) fn is_lent(&self) -> bool {
        !self.relays().is_empty()
    }

    /// Closes the link if neither this node nor another one uses it.
    pub(super) fn close_if_unused(&self, reason: &Error) {
        if self.proxy().is_none() && self.draining.load(Ordering::SeqCst) == 0 && self.relays().is_empty() {
            self.link.close(reason.clone());
        }
    }

    fn updated(&self, proxy: &Proxy, update: Update) {
        if self.news.leave(update) {
            proxy.cast(Msg::Updated { key: self.key, update: Arc::clone(&self.news) });
        }
    }

    /// The proxy, if it listens to events on this channel. What comes on a link that another one has replaced comes again there; what comes from a peer that was
    /// not adopted, such as a clone of the worker, is nobody's.
    fn heard(&self, channel: &Channel) -> Option<Arc<Proxy>> {
        self.proxy().filter(|proxy| proxy.hears(self.key, channel.id()))
    }

    fn full(&self, channel: &Channel, took: Took) {
        if took == Took::Refused {
            let what = "more events are on their way than were granted";
            channel.link().close(Error::new(ErrorCode::ProtocolError, what));
        }
    }
}

/// Brings a worker that has come here to its owner. If that cannot be reached it is better off here than nowhere: it moves as soon as it can.
async fn place(handler: Arc<Handler>, describe: Describe) {
    // Held until somebody has it: an owner that refuses gives it up, which is no reason to end it.
    handler.draining.fetch_add(1, Ordering::SeqCst);
    place_held(&handler, describe).await;
    handler.is_drained();
}

async fn place_held(handler: &Arc<Handler>, describe: Describe) {
    let (shared, id) = (&handler.shared, &handler.link.peer().id);
    for _ in 0..PLACE_TRIES {
        let view = shared.view();
        if view.frozen {
            let what = format!("control node {} has lost touch with the others; try another one", shared.id);
            return handler.link.close(Error::new(ErrorCode::Busy, what));
        }
        let Some(owner) = view.owner(id).filter(|owner| **owner != shared.id) else { break };
        match super::lease::lend(handler, owner, describe.clone(), None).await {
            Ok(()) => {
                tracing::info!(worker = %id, %owner, remote = handler.link.remote(), "the link of a worker was lent to its owner");
                return;
            }
            Err(error) => tracing::debug!(worker = %id, %owner, %error, "the owner did not take a worker"),
        }
        if handler.link.has_ended() {
            return;
        }
        let pause = Duration::from_millis(rand::rng().random_range(PLACE_PAUSE_MS));
        tokio::time::sleep(pause).await;
    }
    handler.adopt_here(describe, None);
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        // The session refuses calls of a worker already; a control node that plays one is told the same.
        call.reply(&Err(Error::new(ErrorCode::NotAllowed, "a worker makes no calls")));
    }

    fn event(&self, channel: &Channel, head: EventHead, payload: Bytes) {
        let Some(proxy) = self.heard(channel) else { return };
        let took = proxy.event(channel, self.link.peer().incarnation, head, payload);
        self.full(channel, took);
    }

    fn message(&self, channel: &Channel, message: Message) {
        match message {
            Message::Describe(describe) => self.introduced(describe),
            Message::ExclusiveHere(here) => self.exclusive(channel, here),
            Message::Resync(resync) => {
                if let Some(proxy) = self.heard(channel) {
                    let took = proxy.resync(channel, self.link.peer().incarnation, resync);
                    self.full(channel, took);
                }
            }
            other => {
                let Some(proxy) = self.proxy() else { return };
                let key = self.key;
                match other {
                    Message::Adopted(answer) => {
                        if matches!(answer, Adopted::Granted { .. }) {
                            proxy.granted(key, channel.id());
                        }
                        if let Some(turn) = self.turn() {
                            proxy.cast(Msg::Adopted { key, channel: channel.id(), answer, turn });
                        }
                    }
                    Message::Fenced(fenced) if self.fenced.fetch_max(fenced.term, Ordering::Relaxed) < fenced.term => {
                        if let Some(turn) = self.turn() {
                            proxy.cast(Msg::Fenced { key, fenced, turn });
                        }
                    }
                    Message::Update(update) => self.updated(&proxy, update),
                    _ => {}
                }
            }
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn relayed(&self, frame: Frame) {
        let inlet = self.relays().get(&frame.channel).cloned();
        if inlet.is_some_and(|inlet| !inlet.frame(frame)) {
            let what = "more than may wait is on its way from the worker to its owner";
            self.link.close(Error::new(ErrorCode::Busy, what));
        }
    }

    fn channel_closed(&self, channel: u16, reason: &Error) {
        let inlet = self.relays().remove(&channel);
        if let Some(inlet) = inlet {
            return inlet.closed(channel, reason.clone());
        }
        let is_current = self.proxy().is_some_and(|proxy| proxy.is_current(self.key, channel));
        if is_current {
            self.link.close(reason.clone());
        }
    }

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, reason: &Error) {
        let worker = &self.link.peer().id;
        tracing::info!(%worker, remote = self.link.remote(), code = %reason.code(), reason = reason.message(), "link ended");
        self.shared.remove_link(self.key);
        if let Some(proxy) = self.proxy() {
            proxy.cast(Msg::LinkDown { key: self.key });
        }
    }
}
