//! The actor of a proxy: what it knows of its worker, and what it makes of each message.
//!
//! It is a task with a mailbox of its own kind. One of ractor has four channels, each with room for 32 messages, which is most of what an idle worker
//! would cost; what it gives beside that, supervision and names, has no use here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rand::RngExt as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::state::{Arrival, LinkKey, Setup, State};
use super::{Msg, Proxy, moving};
use crate::connection::{Channel, Link, unix_time_ms};
use crate::control::events::Marks;
use crate::control::latency::Latency;
use crate::control::shared::Shared;
use crate::error::{Error, ErrorCode};
use crate::types::{NodeId, NodeStats, NodeStatus, NodeUri};

/// The actor.
pub(super) struct ProxyActor {
    pub(super) shared: Arc<Shared>,
    pub(super) proxy: Arc<Proxy>,
}

/// A link and the channel on which the worker was asked last.
pub(super) type Used = (Link, Option<Channel>);

pub(super) struct Own {
    pub(super) proxy: Arc<Proxy>,
    pub(super) state: State,
    pub(super) links: BTreeMap<LinkKey, Used>,
    /// Of these, those whose socket is at another control node.
    pub(super) lent: BTreeSet<LinkKey>,
    pub(super) latency: Latency,
    pub(super) skew_ms: Option<i64>,
    /// Statistics that are not told yet.
    pub(super) stats: Option<NodeStats>,
    pub(super) tasks: u32,
    pub(super) dialling: Option<JoinHandle<()>>,
    /// Looks for a direct way to a worker that is reached over a lent link.
    pub(super) improving: Option<JoinHandle<()>>,
    pub(super) moving: Option<JoinHandle<()>>,
    /// The worker obeys another control node: its calls on exclusive connections are answered first.
    pub(super) has_moved: bool,
    /// Who else keeps its record.
    pub(super) copies: Vec<NodeId>,
    /// Addresses that the worker was told to prefer.
    pub(super) preferred: Arc<[NodeUri]>,
    /// Where it was dialled last, with success. It may be the only address that can be reached from here, and the only one with a password.
    pub(super) found_at: Option<NodeUri>,
    /// Dials so far; the number of the last one tells it from those before.
    pub(super) dials: u64,
}

impl ProxyActor {
    pub(super) async fn run(self) {
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
    pub(super) fn addresses(&self, told: impl IntoIterator<Item = NodeUri>) -> Vec<NodeUri> {
        let others = told.into_iter().filter(|address| self.found_at.as_ref() != Some(address));
        self.found_at.iter().cloned().chain(others).collect()
    }

    /// Whether the worker obeys over a link whose socket is at another control node.
    pub(super) fn is_over_lent_link(&self) -> bool {
        self.state.is_held() && self.lent.iter().any(|key| self.state.uses(*key))
    }
}
