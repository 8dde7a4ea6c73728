//! A worker that belongs to another control node now: prepare, switch, drain.
//!
//! ```text
//!   old owner                                     new owner                 worker
//!     │ calls wait, nothing more is heard            │                        │
//!     │ classes take in what has come                │                        │
//!     ├─ ticket, term, marks, and the link ─────────►│                        │
//!     │                                              ├─ adopt with the ticket ─►
//!     │                                              │◄─ granted, the journal ┤
//!     │◄──────────────────────────────────── done ───┤                        │
//!     │ calls that waited go there; those that were begun are answered on the old channel, which then closes
//! ```
//!
//! The link goes from whoever has its socket: from here, or from the node that lends it to us. If anything fails the worker is asked back; if it obeys somebody
//! else by then, it says so. What it sent meanwhile it sends again to whoever it obeys, and the marks say what of it is new.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::actor::{Own, ProxyActor};
use super::state::{Action, Claim, LinkKey};
use super::{Msg, Proxy};
use crate::cluster::FullUri;
use crate::connection::{Channel, Link};
use crate::control::lease;
use crate::control::messages::{Package, PeerRequest, Record};
use crate::control::records;
use crate::control::view::View;
use crate::error::{Error, ErrorCode};
use crate::proto::message::{Message, Preferred};
use crate::types::{NodeId, NodeUri};

/// How long the classes may take to take in what has come.
const CLASSES_PATIENCE: Duration = Duration::from_secs(2);
/// How much later than the control node that has the socket we give up.
const GRACE: Duration = Duration::from_secs(1);
/// Pause between two looks at the answers that are missing.
const ANSWERS_PAUSE: Duration = Duration::from_millis(10);

/// Whose worker it is. That of this node itself is always ours, and all of them are if there is nobody else.
pub(super) fn claim(view: &View, worker: &NodeId) -> Claim {
    match view.owner(worker) {
        _ if *worker == view.me => Claim::Owner,
        _ if view.frozen => Claim::Frozen,
        Some(owner) if *owner != view.me => Claim::Other,
        _ => Claim::Owner,
    }
}

/// Closes a channel when the calls on it are answered, or at the latest after `patience`; and the link, if it is nobody's any more.
pub(super) async fn drain(channel: Channel, patience: Duration, link: Option<Link>) {
    let answered = async {
        while channel.is_open() && channel.calls_in_flight() > 0 {
            tokio::time::sleep(ANSWERS_PAUSE).await;
        }
    };
    if tokio::time::timeout(patience, answered).await.is_err() {
        tracing::warn!(worker = %channel.link().peer().id, ?patience, "calls were not answered in time before their channel was closed");
    }
    let reason = Error::new(ErrorCode::ConnectionFailed, "the worker is reached in another way now");
    channel.close(&reason);
    if let Some(link) = link {
        link.close(reason);
    }
}

impl Proxy {
    /// The worker moves no more: calls that wait look again.
    pub(super) fn settle(&self) {
        self.moving.store(false, Ordering::Release);
        self.changed.notify_waiters();
    }
}

impl ProxyActor {
    /// Looks whether the worker is still ours.
    pub(super) fn review(&self, own: &mut Own) {
        let view = self.shared.view();
        let id = &self.proxy.id;
        let claim = claim(&view, id);
        let actions = own.state.set_claim(claim, view.rank(id), Instant::from(tokio::time::Instant::now()));
        self.act(own, actions);
        match claim {
            Claim::Frozen => {}
            Claim::Owner => {
                self.prefer(own);
                if own.copies != records::copies(&self.shared, id) {
                    self.share(own);
                }
            }
            Claim::Other if own.state.is_held() => {
                if own.moving.as_ref().is_none_or(JoinHandle::is_finished) && !self.proxy.is_moving() {
                    own.moving = Some(tokio::spawn(wait_for_turn(Arc::clone(&self.shared.moves), Arc::clone(&self.proxy))));
                }
            }
            Claim::Other if own.state.is_idle() => {
                tracing::debug!(worker = %id, "a worker that is not here belongs to another control node now");
                if let Some(owner) = view.owner(id) {
                    let version = self.shared.records.find(id).map_or(0, |known| known.version) + 1;
                    records::send(&self.shared, owner.clone(), Record { version, ..self.record(own) });
                }
                self.leave();
            }
            Claim::Other => {}
        }
    }

    /// Ends the proxy: its worker is somebody else's.
    fn leave(&self) {
        self.proxy.ended.store(true, Ordering::SeqCst);
        self.shared.directory.remove_this(&self.proxy);
        self.proxy.settle();
        self.proxy.close_mailbox();
    }

    /// Switch: from here on calls wait, and nothing of the worker is heard.
    pub(super) fn begin_move(&self, own: &mut Own, permit: OwnedSemaphorePermit) {
        let view = self.shared.view();
        if claim(&view, &self.proxy.id) != Claim::Other {
            return;
        }
        let Some(to) = view.owner(&self.proxy.id).cloned() else { return };
        let Some(given) = own.state.begin_move() else { return };
        self.proxy.asked.store(None);
        self.proxy.moving.store(true, Ordering::Release);
        self.proxy.current.store(None);
        let (shared, proxy, tasks) = (Arc::clone(&self.shared), Arc::clone(&self.proxy), own.tasks);
        own.moving = Some(tokio::spawn(async move {
            let marks = proxy.dispatcher.pause(CLASSES_PATIENCE).await;
            let record = shared.records.find(&proxy.id).map(Box::new);
            let package = Package { ticket: given.ticket, term: given.term, describe: given.describe, tasks, marks, record };
            let result = match shared.worker_link(given.link) {
                None => Err(Error::new(ErrorCode::ConnectionFailed, "the link has ended")),
                Some(worker) => match &worker.via {
                    None => lease::hand_over(&worker, &to, package).await,
                    Some(via) => {
                        let request = PeerRequest::Pass { lease: via.lease, to: to.clone(), package: Box::new(package) };
                        shared.peers.ask(&view, &via.node, &request, lease::PATIENCE + GRACE).await.map(drop)
                    }
                },
            };
            drop(permit);
            proxy.cast(Msg::Moved { key: given.link, to, result });
        }));
    }

    /// The worker obeys its new owner: drain.
    pub(super) fn has_moved(&self, own: &mut Own, key: LinkKey, to: &NodeId) {
        tracing::info!(worker = %self.proxy.id, %to, "the worker was handed over");
        own.has_moved = true;
        tokio::spawn({
            let (exclusives, patience) = (Arc::clone(&self.proxy.exclusives), self.shared.config.drain_timeout);
            async move {
                tokio::time::sleep(patience).await;
                exclusives.close(&Error::new(ErrorCode::ConnectionFailed, "the worker has moved to another control node"));
            }
        });
        if let Some((link, Some(channel))) = own.links.remove(&key) {
            let worker = self.shared.worker_link(key);
            let patience = self.shared.config.drain_timeout;
            // If the socket is ours, the new owner uses it.
            let worker = worker.filter(|worker| worker.via.is_none()).inspect(|worker| worker.leave_proxy(&self.proxy));
            let leaving = self.shared.leaving();
            tokio::spawn(async move {
                match worker {
                    Some(worker) => {
                        drain(channel, patience, None).await;
                        worker.is_drained();
                    }
                    None => drain(channel, patience, Some(link)).await,
                }
                drop(leaving);
            });
        }
        self.leave();
    }

    /// It did not move.
    pub(super) fn stays(&self, own: &mut Own, now: Instant) -> Vec<Action> {
        own.moving = None;
        self.proxy.dispatcher.go_on();
        let actions = own.state.move_failed(now);
        if actions.is_empty() {
            self.proxy.settle();
        }
        actions
    }

    /// Tells the worker where to go first when its link ends: here, and to whoever would own it without us.
    pub(super) fn prefer(&self, own: &mut Own) {
        let view = self.shared.view();
        let own_addresses = self.shared.listen.get().cloned().unwrap_or_default();
        let without_us = self.shared.earlier_ring(&view, None);
        let next = without_us.owner(self.proxy.id.as_str()).and_then(|next| view.live.get(next));
        let addresses: Vec<NodeUri> = own_addresses.into_iter().chain(next.into_iter().flat_map(|next| next.listen.clone())).collect();
        if let Some(current) = self.proxy.current()
            && *own.preferred != *addresses
        {
            current.channel.message(&Message::Preferred(Preferred { addresses: addresses.clone() }));
            own.preferred = self.shared.kept_once(addresses);
        }
    }

    /// What is known of the worker, for whoever has it next.
    pub(super) fn record(&self, own: &Own) -> Record {
        let mut describe = own.state.describe.clone();
        if let Some(describe) = describe.as_mut().filter(|_| self.proxy.id == self.shared.id) {
            // There listens the control node; its worker is reached from within only.
            describe.listen.clear();
        }
        Record {
            worker: self.proxy.id.clone(),
            incarnation: own.state.incarnation(),
            describe,
            found_at: own.found_at.as_ref().map(FullUri::new),
            marks: self.proxy.dispatcher.marks(),
            forgotten: false,
            version: 0,
        }
    }

    /// Keeps the record where it outlives this node.
    pub(super) fn share(&self, own: &mut Own) {
        if self.shared.owns(&self.proxy.id) && !self.proxy.has_ended() {
            own.copies = records::copies(&self.shared, &self.proxy.id);
            records::share(&self.shared, &own.copies, self.record(own));
        }
    }
}

async fn wait_for_turn(turns: Arc<tokio::sync::Semaphore>, proxy: Arc<Proxy>) {
    if let Ok(permit) = turns.acquire_owned().await {
        proxy.cast(Msg::Move { permit });
    }
}
