//! What a control node does with the frames of one worker's link.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::events::Took;
use super::proxy::state::LinkKey;
use super::proxy::{Latest, Msg, Proxy, Turn};
use super::shared::Shared;
use crate::connection::{Channel, IncomingCall, Link, LinkHandler, LinkParts};
use crate::error::{Error, ErrorCode};
use crate::proto::head::{EventHead, Rank};
use crate::proto::message::{Describe, ExclusiveHere, Message, Update};
use crate::types::NodeUri;

/// Messages of one link that may wait for the proxy. An honest worker answers what it is asked: one or two.
const TURNS_MAX: usize = 64;
/// How long a worker may take to introduce itself, whoever dialled.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// Starts the link of a worker; `dialled` is the address where we found it.
pub(super) fn start(shared: &Arc<Shared>, parts: LinkParts, dialled: Option<NodeUri>) -> Link {
    let mut made = None;
    let link = Link::start(parts, shared.link_options(), |link| {
        let key = shared.add_link(link);
        let handler = Arc::new(Handler {
            shared: Arc::clone(shared),
            key,
            link: link.clone(),
            dialled,
            proxy: OnceLock::new(),
            news: Arc::default(),
            exclusive: AtomicBool::new(false),
            fenced: AtomicU64::new(0),
            turns: Arc::new(Semaphore::new(TURNS_MAX)),
        });
        made = Some(Arc::clone(&handler));
        handler as Arc<dyn LinkHandler>
    });
    if let Some(handler) = made {
        tokio::spawn(expect_introduction(handler));
    }
    link
}

/// A worker that says nothing of itself is not kept: nobody could ever use its link.
async fn expect_introduction(handler: Arc<Handler>) {
    tokio::select! {
        _ = handler.link.ended() => {}
        () = tokio::time::sleep(INTRODUCTION) => {
            if handler.proxy.get().is_none() && !handler.exclusive.load(Ordering::Acquire) {
                let what = format!("{} did not introduce itself within {INTRODUCTION:?}", handler.link.peer().id);
                handler.link.close(Error::new(ErrorCode::Timeout, what));
            }
        }
    }
}

struct Handler {
    shared: Arc<Shared>,
    key: LinkKey,
    link: Link,
    dialled: Option<NodeUri>,
    /// Known from the worker's first frame on.
    proxy: OnceLock<Arc<Proxy>>,
    news: Arc<Latest>,
    /// Whether the worker was asked for it, for calls alone: then its proxy never knows of it.
    exclusive: AtomicBool,
    /// Highest term that was told to have fenced us. Each call that is refused for it tells it again.
    fenced: AtomicU64,
    turns: Arc<Semaphore>,
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
        let proxy = self.shared.directory.find(&peer.id).filter(|_| self.proxy.get().is_none());
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
        let Some(turn) = self.turn() else { return };
        let id = &self.link.peer().id;
        let found = || self.shared.directory.find_or_insert(id, || Proxy::start(&self.shared, id.clone()));
        let Some(proxy) = self.proxy.get().cloned().or_else(found) else {
            tracing::error!(worker = %id, "a new worker is turned away: too many are known; forget those that will not return");
            let what = "the control node knows as many workers as it can";
            return self.link.close(Error::new(ErrorCode::Busy, what));
        };
        // Set by the first frame of the worker; the frames of one link come one after the other.
        let _ = self.proxy.set(Arc::clone(&proxy));
        let (link, dialled) = (self.link.clone(), self.dialled.clone().map(Box::new));
        proxy.cast(Msg::LinkUp { key: self.key, link, dialled, describe: Box::new(describe), turn });
        if proxy.has_ended() {
            // Forgotten at this very moment: nobody sees this link, so the worker must make another one.
            self.link.close(Error::new(ErrorCode::ShuttingDown, "the proxy of the worker has ended"));
        }
    }

    fn updated(&self, proxy: &Proxy, update: Update) {
        if self.news.leave(update) {
            proxy.cast(Msg::Updated { key: self.key, update: Arc::clone(&self.news) });
        }
    }

    /// The proxy, if it listens to events on this channel. What comes on a link that another one has replaced comes again there; what comes from a peer that was
    /// not adopted, such as a clone of the worker, is nobody's.
    fn heard(&self, channel: &Channel) -> Option<&Arc<Proxy>> {
        self.proxy.get().filter(|proxy| proxy.hears(self.key, channel.id()))
    }

    fn full(&self, channel: &Channel, took: Took) {
        if took == Took::Refused {
            let what = "more events are on their way than were granted";
            channel.link().close(Error::new(ErrorCode::ProtocolError, what));
        }
    }
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
                let Some(proxy) = self.proxy.get() else { return };
                let key = self.key;
                match other {
                    Message::Adopted(answer) => {
                        if let Some(turn) = self.turn() {
                            proxy.cast(Msg::Adopted { key, channel: channel.id(), answer, turn });
                        }
                    }
                    Message::Fenced(fenced) if self.fenced.fetch_max(fenced.term, Ordering::Relaxed) < fenced.term => {
                        if let Some(turn) = self.turn() {
                            proxy.cast(Msg::Fenced { key, fenced, turn });
                        }
                    }
                    Message::Update(update) => self.updated(proxy, update),
                    _ => {}
                }
            }
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, channel: u16, reason: &Error) {
        if let Some(proxy) = self.proxy.get()
            && proxy.is_current(self.key, channel)
        {
            self.link.close(reason.clone());
        }
    }

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, reason: &Error) {
        let worker = &self.link.peer().id;
        tracing::info!(%worker, remote = self.link.remote(), code = %reason.code(), reason = reason.message(), "link ended");
        self.shared.remove_link(self.key);
        if let Some(proxy) = self.proxy.get() {
            proxy.cast(Msg::LinkDown { key: self.key });
        }
    }
}
