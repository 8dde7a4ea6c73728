//! The proxy of one worker: an actor that owns its state, and a handle that lets calls pass beside it.

mod actor;
mod dial;
mod improve;
mod mailbox;
mod moving;
mod perform;
pub(super) mod state;
#[cfg(test)]
pub(super) mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use self::actor::ProxyActor;
use self::mailbox::Mailbox;
use self::state::{LinkKey, PingFor};
use super::events::{Dispatcher, Took};
use super::exclusive::Exclusives;
use super::messages::{Package, Record};
use super::shared::Shared;
use crate::cluster::NodeInfo;
use crate::connection::{Channel, Link};
use crate::error::{Error, ErrorCode};
use crate::proto::head::EventHead;
use crate::proto::identity::Ticket;
use crate::proto::message::{Adopted, Describe, Fenced, Resync, Update};
use crate::types::{Incarnation, NodeId, NodeStatus, NodeUri};

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
