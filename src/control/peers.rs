//! Links to other control nodes.
//!
//! One data link per pair carries calls that cross control nodes, relayed channels and, where no other carrier is wanted, the envelopes of membership. Whoever
//! dials is decided by membership; here links are kept by the id of their peer, and what arrives on them is handed on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::backend::Local;
use super::messages::{PeerReply, PeerRequest};
use super::placed;
use super::proxy::state::LinkKey;
use super::shared::Shared;
use crate::cluster::random_incarnation;
use crate::connection::{Channel, IncomingCall, Link, LinkHandler, LinkParts};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::{CallHead, EventHead, Rank, Verb};
use crate::proto::identity::CallIdentity;
use crate::proto::message::Message;
use crate::types::{Incarnation, NodeId, Payload};

/// The data links of a control node.
#[derive(Default)]
pub(super) struct Peers {
    links: Mutex<BTreeMap<NodeId, (LinkKey, Link)>>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, (LinkKey, Link)>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data link to a control node, if there is one.
    pub(super) fn find(&self, peer: &NodeId) -> Option<Link> {
        self.lock().get(peer).map(|(_, link)| link.clone())
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Link> {
        self.lock().values().map(|(_, link)| link.clone()).collect()
    }

    /// Asks a control node, over the data link to it.
    ///
    /// # Errors
    /// `not_connected` without a link; what the peer answers.
    pub(super) async fn ask(&self, peer: &NodeId, request: &PeerRequest, timeout: Duration) -> Result<PeerReply> {
        let link = self.find(peer);
        let link = link.ok_or_else(|| Error::new(ErrorCode::NotConnected, format!("there is no link to control node {peer}")))?;
        let head = CallHead {
            verb: Verb::Peer,
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            // Answered by a control node, which remembers no calls: the identity means nothing.
            identity: CallIdentity { edge: random_incarnation(), number: 0 },
            retry: false,
            hops: 0,
            incarnation: Incarnation::NONE,
            node: None,
            class: None,
            task: None,
        };
        let payload = Payload::encode(request)?.into_bytes();
        Payload::from_bytes(link.channel_zero().call(&head, &payload, timeout).await?).decode()
    }
}

/// Starts a link whose peer is a control node, whoever dialled.
pub(super) fn start(shared: &Arc<Shared>, parts: LinkParts) -> Link {
    Link::start(parts, shared.link_options(), |link| {
        let key = shared.add_link(link);
        let peer = link.peer().id.clone();
        tracing::info!(%peer, remote = link.remote(), "linked with a control node");
        // The newest one is used: the other end may have lost the one before without our knowing.
        shared.peers.lock().insert(peer.clone(), (key, link.clone()));
        Arc::new(Handler { backend: Arc::new(Local::new(shared)), shared: Arc::clone(shared), key, peer })
    })
}

struct Handler {
    shared: Arc<Shared>,
    backend: Arc<Local>,
    key: LinkKey,
    peer: NodeId,
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        if call.head.verb == Verb::Peer {
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                let outcome = answer(&shared, &call).await;
                call.reply(&outcome);
            });
        } else {
            tokio::spawn(super::serve::serve(Arc::clone(&self.backend), call));
        }
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, _: &Channel, _: Message) {}

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, reason: &Error) {
        tracing::info!(peer = %self.peer, code = %reason.code(), reason = reason.message(), "the link to a control node ended");
        self.shared.remove_link(self.key);
        let mut links = self.shared.peers.lock();
        if links.get(&self.peer).is_some_and(|(key, _)| *key == self.key) {
            links.remove(&self.peer);
        }
    }
}

async fn answer(shared: &Arc<Shared>, call: &IncomingCall) -> Result<Bytes> {
    let request: PeerRequest = Payload::from_bytes(call.payload.clone())
        .decode()
        .map_err(|_| Error::new(ErrorCode::UnknownRequest, "this control node does not know what the other one asks for"))?;
    let reply = match request {
        PeerRequest::Nodes { select } => PeerReply::Nodes(super::backend::local_nodes(shared, select.as_deref())?),
        PeerRequest::Placed(placed) => {
            let timeout = Duration::from_millis(u64::from(call.head.timeout_ms));
            PeerReply::Placed(placed::handle(shared, &placed, timeout).await?.into())
        }
        PeerRequest::Arrive(belongings) => {
            placed::arrive(shared, *belongings).await?;
            PeerReply::Done
        }
        PeerRequest::Keep(belongings) => {
            placed::keep(shared, *belongings);
            PeerReply::Done
        }
        PeerRequest::Surrender { key, hash } => PeerReply::Surrendered { record: placed::surrender(shared, &key, hash).await? },
        PeerRequest::Info { node } => PeerReply::Info(shared.directory.find(&node).map(|proxy| Box::new(proxy.info()))),
    };
    Ok(Payload::encode(&reply)?.into_bytes())
}
