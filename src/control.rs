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
mod directory;
pub(crate) mod events;
mod exclusive;
pub mod latency;
mod membership;
mod messages;
mod peers;
mod proxy;
mod serve;
mod shared;
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
/// Pause between two looks at the answers that are missing.
const ANSWERS_PAUSE: Duration = Duration::from_millis(10);

/// A running control node.
#[derive(Clone)]
pub(crate) struct Control {
    shared: Arc<Shared>,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
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

    /// Cuts: nobody is told.
    pub(crate) fn cut(&self) {
        self.end(&Error::new(ErrorCode::ConnectionFailed, "the node was dropped"));
    }

    /// The first half of a stop: sends clients elsewhere and waits until they have the answers that they wait for, at most `grace`.
    pub(crate) async fn drain(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.shared.begin_stop();
        // Out of the ring first, so that nobody looks for anything here any more.
        self.shared.membership.become_state(RowState::Leaving).await;
        let (_, away) = self.farewell();
        let clients: Vec<Link> = self.shared.links().into_iter().filter(|link| link.peer().role == Role::Admin).collect();
        for link in &clients {
            link.channel_zero().message(&away);
        }
        while clients.iter().any(Link::is_awaited) && Instant::now() < deadline {
            tokio::time::sleep(ANSWERS_PAUSE).await;
        }
    }

    /// The second half: sends the workers elsewhere, and cuts.
    pub(crate) async fn stop(self) {
        let (reason, away) = self.farewell();
        let links = self.shared.links();
        for link in links.iter().filter(|link| link.peer().role == Role::Worker) {
            link.channel_zero().message(&away);
        }
        self.shared.membership.become_state(RowState::Stopped).await;
        self.end(&reason);
        for link in &links {
            let _ = tokio::time::timeout(FAREWELL, link.ended()).await;
        }
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
        for proxy in self.shared.directory.all() {
            proxy.stop();
        }
    }
}
