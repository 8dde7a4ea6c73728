//! What the state machine of a proxy asks for, done.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::actor::{Own, ProxyActor};
use super::dial::Dial;
use super::state::Action;
use super::{Asked, Current, Msg, moving, unknown_node};
use crate::cluster::{LatencyInfo, ProxyInfo};
use crate::connection::Channel;
use crate::control::latency::LatencySummary;
use crate::error::{Error, ErrorCode};
use crate::proto::message::{GoAway, Message};
use crate::types::NodeStatus;

impl ProxyActor {
    /// Whether the node whose link is used is about to stop: then any other way is better.
    pub(super) fn lender_leaves(&self, own: &Own) -> bool {
        let used = own.lent.iter().find(|key| own.state.uses(**key)).and_then(|key| self.shared.worker_link(*key));
        let via = used.and_then(|worker| worker.via.as_ref().map(|via| via.node.clone()));
        via.is_some_and(|via| !self.shared.view().live.contains_key(&via))
    }

    pub(super) fn act(&self, own: &mut Own, actions: Vec<Action>) {
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
                    link.channel_zero().message(&Message::GoAway(GoAway { reason: reason.clone(), reconnect_after_ms: None }));
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

    pub(super) fn forget(&self, own: &mut Own) {
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

fn latency_info(summary: LatencySummary) -> LatencyInfo {
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
