//! The control node: holds a proxy for each worker and serves whoever uses the cluster.
//!
//! ```text
//!   acceptor ─► worker link ─► proxy (actor: state, adoption, pings, reconnects)
//!            │                   │ publishes the current channel
//!            └► admin link ─► serve ─► Backend ──► channel ──► worker        hot path: not through the actor's mailbox
//!                                └───► operations: nodes, info, connect, forget, events
//!                                └───► exclusive ─► links beside the main one, for calls that ask for them
//!   events of workers ─► dispatcher per worker and class ─► class `event`, live subscribers ─► acknowledgement
//! ```
//!
//! Pure: [`latency`], `proxy::state`, `exclusive::pool`. The rest are shells. Workers and their side of the protocol are unknown here but for the wire.

mod backend;
mod departures;
mod directory;
pub(crate) mod events;
mod exclusive;
mod fan_out;
pub mod latency;
mod lease;
mod membership;
mod messages;
mod peers;
mod placed;
mod placement;
mod proxy;
mod records;
mod route;
mod serve;
mod shared;
mod subscribe;
mod view;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::membership::RowState;
pub(crate) use self::shared::Shared;
use crate::cluster::Cluster;
use crate::connection::{Link, LinkHandler};
use crate::error::{Error, ErrorCode};
use crate::proto::auth::Role;
use crate::proto::message::{GoAway, Message};

/// How long a link may take to send its last words.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a node that stops waits, at most, for workers that others reach over its links, after the last of them was told to find another way. Those which
/// find none come back later.
const LENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last word to the other control nodes may take.
const LAST_ROW: Duration = Duration::from_millis(250);
/// Pause between two looks at the answers that are missing.
const ANSWERS_PAUSE: Duration = Duration::from_millis(10);

/// A running control node.
#[derive(Clone)]
pub(crate) struct Control {
    shared: Arc<Shared>,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        // All end with the last handle of the control node.
        tokio::spawn(placed::follow(Arc::downgrade(&shared)));
        tokio::spawn(placed::resume(Arc::downgrade(&shared)));
        tokio::spawn(placement::run(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// The handle of the cluster within this process.
    pub(crate) fn cluster(&self) -> Cluster {
        self.shared.cluster()
    }

    /// Looks for the other control nodes from now on.
    pub(crate) async fn join(&self) {
        self.shared.start_membership().await;
    }

    /// Waits until this node's own worker is known, for a while.
    pub(crate) async fn own_worker(&self, patience: Duration) {
        let known = async {
            while self.shared.directory.find(&self.shared.id).is_none_or(|own| own.current().is_none()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(patience, known).await.is_err() {
            tracing::warn!("the node's own worker is not there yet");
        }
    }

    /// Starts a link whose peer has proved itself, whoever dialled.
    ///
    /// # Errors
    /// `not_allowed` for a peer that has no business here.
    pub(crate) fn welcome(&self, parts: crate::connection::LinkParts) -> Result<Link, Error> {
        let options = self.shared.link_options();
        match parts.established.peer.role {
            Role::Worker => Ok(workers::start(&self.shared, parts, None)),
            Role::Admin => Ok(Link::start(parts, options, |link| serve::handler(Arc::clone(&self.shared), link) as Arc<dyn LinkHandler>)),
            Role::Control => Ok(peers::start(&self.shared, parts, None)),
        }
    }

    /// Ends the proxy of a worker as a bug in it would.
    #[cfg(test)]
    pub(crate) fn kill_proxy(&self, worker: &crate::types::NodeId) {
        self.shared.directory.find(worker).expect("it is known").stop();
    }

    /// Links this node with another control node, as membership does.
    #[cfg(test)]
    pub(crate) async fn dial_peer(&self, uri: crate::types::NodeUri) -> Result<Link, Error> {
        use crate::connection::LinkParts;
        use crate::connection::establish::{Expect, Order, dial_and_establish};
        let (shared, expect) = (&self.shared, Expect::any(Role::Control));
        let identity = shared.party.identity().clone();
        let party = shared.party.with_identity(crate::proto::auth::Identity { role: Role::Control, ..identity });
        let established = dial_and_establish(&[uri], &party, &expect, Order::AsGiven, &shared.dial).await.map_err(Error::from)?;
        Ok(peers::start(shared, LinkParts { established, side: crate::proto::session::Side::Dialler }, None))
    }

    /// Makes this node see these control nodes, as membership does.
    #[cfg(test)]
    pub(crate) fn see(&self, others: &[&Control], frozen: bool) {
        let shared = &self.shared;
        let ring = crate::ring::RingSize::new(shared.config.ring_size).expect("the configuration was checked");
        let listen = shared.listen.get().cloned().unwrap_or_default();
        let mut view = view::View::alone(shared.id.clone(), shared.incarnation, listen, ring);
        for other in others.iter().filter(|other| other.shared.id != shared.id) {
            let (id, listen) = (other.shared.id.clone(), other.shared.listen.get().cloned().unwrap_or_default());
            view.live.insert(id.clone(), view::Member { incarnation: other.shared.incarnation, listen, next_hop: Some(id) });
        }
        let in_ring = view.live.keys().filter(|id| others.iter().any(|other| other.shared.id == **id)).cloned().collect::<Vec<_>>();
        view.ring = crate::ring::Ring::new(ring, in_ring);
        view.frozen = frozen;
        shared.is_pinned.store(true, std::sync::atomic::Ordering::SeqCst);
        shared.view.send_replace(Arc::new(view));
    }

    /// What is for `peer` goes to `next` from now on, if there is no link.
    #[cfg(test)]
    pub(crate) fn reach(&self, peer: &crate::types::NodeId, next: &crate::types::NodeId) {
        self.shared.view.send_modify(|view| {
            let member = Arc::make_mut(view).live.get_mut(peer).expect("it is seen");
            member.next_hop = Some(next.clone());
        });
    }

    /// Whether there is a link to another control node.
    #[cfg(test)]
    pub(crate) fn is_linked(&self, peer: &crate::types::NodeId) -> bool {
        self.shared.peers.find(peer).is_some()
    }

    /// Time passes until the view is not new any more; false if it has not been looked at yet.
    #[cfg(test)]
    pub(crate) fn let_settle(&self) -> bool {
        self.shared.let_settle()
    }

    /// Who owns a worker, as this node sees it.
    #[cfg(test)]
    pub(crate) fn owner(&self, worker: &crate::types::NodeId) -> Option<crate::types::NodeId> {
        self.shared.view().owner(worker).cloned()
    }

    /// What this node itself knows of a worker.
    #[cfg(test)]
    pub(crate) fn own_info(&self, worker: &crate::types::NodeId) -> Option<crate::cluster::NodeInfo> {
        self.shared.directory.find(worker).map(|proxy| proxy.info())
    }

    /// Links that this node has ever had.
    #[cfg(test)]
    pub(crate) fn links_made(&self) -> u64 {
        self.shared.links_made()
    }

    /// How often the record of a worker has changed, as this node knows it.
    #[cfg(test)]
    pub(crate) fn record_version(&self, worker: &crate::types::NodeId) -> Option<u64> {
        self.shared.records.find(worker).map(|record| record.version)
    }

    /// Cuts: nobody is told.
    pub(crate) fn cut(&self) {
        self.end(&Error::new(ErrorCode::ConnectionFailed, "the node was dropped"));
    }

    /// The first half of a stop: sends clients elsewhere and waits until they have the answers that they wait for, at most `grace`.
    pub(crate) async fn drain(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.shared.begin_drain();
        // Out of the ring first, so that nobody looks for anything here any more: then its workers move, and those that it only lends find better ways, if there
        // are any.
        self.shared.membership.become_state(RowState::Leaving).await;
        if tokio::time::timeout_at(deadline, placement::all_moved(&self.shared)).await.is_err() {
            tracing::warn!(node = %self.shared.id, ?grace, "not every worker has moved in time");
        }
        if tokio::time::timeout_at(deadline, placed::all_moved(&self.shared)).await.is_err() {
            tracing::warn!(node = %self.shared.id, ?grace, "not every placed actor has moved in time");
        }
        // Their owners look for direct ways, and they themselves for another control node: the link stays until its calls are answered.
        let spread = self.send_away(&self.shared.lent_links());
        let patience = deadline.min(Instant::now() + spread + LENT_PATIENCE);
        if tokio::time::timeout_at(patience, placement::none_lent(&self.shared)).await.is_err() {
            tracing::warn!(node = %self.shared.id, "not every worker that others reach through this node has found another way");
        }
        self.shared.begin_stop();
        let (_, away) = self.farewell();
        let clients: Vec<Link> = self.shared.links().into_iter().filter(|link| link.peer().role == Role::Admin).collect();
        // All at once: each asks another control node when it has something to ask.
        for link in &clients {
            link.channel_zero().message(&away);
        }
        while clients.iter().any(Link::is_awaited) && Instant::now() < deadline {
            tokio::time::sleep(ANSWERS_PAUSE).await;
        }
    }

    /// The second half: sends the workers elsewhere, and cuts.
    pub(crate) async fn stop(self) {
        records::save(&self.shared).await;
        let (reason, _) = self.farewell();
        let links = self.shared.links();
        self.send_away(&self.shared.worker_links());
        self.shared.hub.close();
        self.shared.membership.become_state(RowState::Stopped).await;
        if !self.shared.peers.names().is_empty() {
            // A session of ractor_cluster tells nobody when what was said has left, and takes what has not along when it ends.
            tokio::time::sleep(LAST_ROW).await;
        }
        self.end(&reason);
        for link in &links {
            let _ = tokio::time::timeout(FAREWELL, link.ended()).await;
        }
    }

    /// Tells these workers to find another control node, each at a time of its own; returns when the last of them will.
    fn send_away(&self, workers: &[Link]) -> Duration {
        let (reason, _) = self.farewell();
        let view = self.shared.view();
        let others = view.live.keys().filter(|node| **node != view.me).count();
        let mut last = Duration::ZERO;
        for (link, pause) in workers.iter().zip(departures::pauses(workers.len(), self.shared.config.accept_rate, others)) {
            let away = GoAway { reason: reason.clone(), reconnect_after_ms: Some(departures::millis(pause)) };
            link.channel_zero().message(&Message::GoAway(away));
            last = pause;
        }
        last
    }

    fn farewell(&self) -> (Error, Message) {
        let reason = Error::new(ErrorCode::ShuttingDown, format!("control node {} is stopping", self.shared.id));
        (reason.clone(), Message::GoAway(GoAway { reason, reconnect_after_ms: None }))
    }

    /// Ends every link, also of those that no proxy knows yet, and every proxy.
    fn end(&self, reason: &Error) {
        self.shared.begin_stop();
        self.shared.membership.stop();
        for link in self.shared.links() {
            link.close(reason.clone());
        }
        for proxy in self.shared.directory.close() {
            proxy.stop();
        }
        self.shared.placed.cut();
    }
}
