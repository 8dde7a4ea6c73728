//! Links to other control nodes.
//!
//! One data link per pair carries calls that cross control nodes, relayed channels and, where no other carrier is wanted, the envelopes of membership. Whoever
//! dials is decided by membership; here links are kept by the id of their peer, and what arrives on them is handed on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::backend::Local;
use super::membership::{DialNumber, Turns};
use super::messages::{JoinFacts, PeerReply, PeerRequest};
use super::proxy::state::LinkKey;
use super::shared::Shared;
use crate::cluster::random_incarnation;
use crate::connection::{ByteStream, Channel, IncomingCall, Link, LinkHandler, LinkParts};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::{CallHead, EventHead, Rank, Verb};
use crate::proto::identity::CallIdentity;
use crate::proto::message::Message;
use crate::types::{Incarnation, NodeId, Payload};

/// The data links of a control node.
#[derive(Default)]
pub(super) struct Peers {
    /// Of each peer the links in the order in which they came. There is one, but for the moment in which two are made and membership ends one of them.
    links: Mutex<BTreeMap<NodeId, BTreeMap<LinkKey, Link>>>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, BTreeMap<LinkKey, Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data link to a control node, if there is one.
    pub(super) fn find(&self, peer: &NodeId) -> Option<Link> {
        self.lock().get(peer).and_then(|links| links.last_key_value()).map(|(_, link)| link.clone())
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Link> {
        self.lock().values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Asks a control node, over the data link to it.
    ///
    /// # Errors
    /// `not_connected` without a link; what the peer answers.
    pub(super) async fn ask(&self, peer: &NodeId, request: &PeerRequest, timeout: Duration) -> Result<PeerReply> {
        let link = self.find(peer);
        let link = link.ok_or_else(|| Error::new(ErrorCode::NotConnected, format!("there is no link to control node {peer}")))?;
        ask_over(&link, request, timeout).await
    }
}

/// Asks whoever is at the other end of a link.
///
/// # Errors
/// What the peer answers, and those of the link.
pub(super) async fn ask_over(link: &Link, request: &PeerRequest, timeout: Duration) -> Result<PeerReply> {
    let payload = Payload::encode(request)?.into_bytes();
    Payload::from_bytes(link.channel_zero().call(&head(timeout), &payload, timeout).await?).decode()
}

/// The same with a stream, which is ours once the peer has said yes.
///
/// # Errors
/// As [`ask_over`].
pub(super) async fn ask_with_stream(link: &Link, request: &PeerRequest, timeout: Duration) -> Result<ByteStream> {
    let payload = Payload::encode(request)?.into_bytes();
    let (answer, stream) = link.channel_zero().call_with_stream(&head(timeout), &payload)?;
    answer.wait(timeout).await?;
    Ok(stream)
}

/// The answer that says yes and nothing else.
pub(super) fn done() -> Result<Bytes> {
    Ok(Payload::encode(&PeerReply::Done)?.into_bytes())
}

fn head(timeout: Duration) -> CallHead {
    CallHead {
        verb: Verb::Peer,
        timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        // Answered by a control node, which remembers no calls: the identity means nothing.
        identity: CallIdentity { edge: random_incarnation(), number: 0 },
        retry: false,
        exclusive: false,
        hops: 0,
        incarnation: Incarnation::NONE,
        node: None,
        class: None,
        task: None,
    }
}

/// Starts a link whose peer is a control node; with the number of the attempt, if membership dialled.
pub(super) fn start(shared: &Arc<Shared>, parts: LinkParts, dial: Option<DialNumber>) -> Link {
    Link::start(parts, shared.link_options(), |link| {
        let key = shared.add_link(link);
        let peer = link.peer().id.clone();
        tracing::info!(%peer, remote = link.remote(), "linked with a control node");
        shared.peers.lock().entry(peer.clone()).or_default().insert(key, link.clone());
        shared.membership.linked(key, link, dial);
        Arc::new(Handler { backend: Arc::new(Local::new(shared)), shared: Arc::clone(shared), key, peer, turns: Turns::default() })
    })
}

struct Handler {
    shared: Arc<Shared>,
    backend: Arc<Local>,
    key: LinkKey,
    peer: NodeId,
    turns: Turns,
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        if call.head.verb == Verb::Peer {
            let (shared, key) = (Arc::clone(&self.shared), self.key);
            tokio::spawn(async move {
                match request_of(&call) {
                    Ok(PeerRequest::Session { token }) => shared.membership.session_wanted(key, token, call),
                    Ok(request) => {
                        let outcome = answer(&shared, request).await;
                        call.reply(&outcome);
                    }
                    Err(error) => call.reply(&Err(error)),
                }
            });
        } else {
            tokio::spawn(super::serve::serve(Arc::clone(&self.backend), call));
        }
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        if let Message::Envelope(bytes) = message
            && !self.shared.membership.envelope(self.key, bytes, &self.turns)
        {
            channel.link().close(Error::new(ErrorCode::ProtocolError, "more envelopes wait than a control node sends"));
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, reason: &Error) {
        tracing::info!(peer = %self.peer, code = %reason.code(), reason = reason.message(), "the link to a control node ended");
        self.shared.remove_link(self.key);
        self.shared.membership.unlinked(self.key);
        let mut peers = self.shared.peers.lock();
        if let Some(links) = peers.get_mut(&self.peer) {
            links.remove(&self.key);
            if links.is_empty() {
                peers.remove(&self.peer);
            }
        }
    }
}

fn request_of(call: &IncomingCall) -> Result<PeerRequest> {
    let request = Payload::from_bytes(call.payload.clone()).decode();
    request.map_err(|_| Error::new(ErrorCode::UnknownRequest, "this control node does not know what the other one asks for"))
}

async fn answer(shared: &Arc<Shared>, request: PeerRequest) -> Result<Bytes> {
    let reply = match request {
        PeerRequest::Nodes { select } => PeerReply::Nodes(super::backend::local_nodes(shared, select.as_deref())?),
        PeerRequest::Proxies => PeerReply::Proxies(u32::try_from(shared.directory.all().len()).unwrap_or(u32::MAX)),
        PeerRequest::Membership => {
            let view = shared.view();
            let ring_size = u32::try_from(shared.config.ring_size).unwrap_or(u32::MAX);
            PeerReply::Membership(JoinFacts { ring_size, live: view.live.keys().cloned().collect() })
        }
        PeerRequest::Session { .. } => return Err(Error::new(ErrorCode::Internal, "a session is answered by membership")),
        PeerRequest::Info { node } => PeerReply::Info(shared.directory.find(&node).map(|proxy| Box::new(proxy.info()))),
    };
    Ok(Payload::encode(&reply)?.into_bytes())
}
