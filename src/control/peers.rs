//! Links to other control nodes.
//!
//! One data link per pair carries calls that cross control nodes, relayed channels and, where no other carrier is wanted, the envelopes of membership. Whoever
//! dials is decided by membership; here links are kept by the id of their peer, and what arrives on them is handed on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::backend::Local;
use super::membership::{DialNumber, Turns};
use super::messages::{JoinFacts, PeerReply, PeerRequest};
use super::placed;
use super::proxy::state::LinkKey;
use super::shared::Shared;
use super::view::View;
use crate::cluster::{random_incarnation, write_events};
use crate::connection::establish::Declines;
use crate::connection::{ByteStream, Channel, IncomingCall, Link, LinkHandler, LinkParts, PendingAnswer};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::{CallHead, EventHead, HOPS_MAX, Rank, Verb};
use crate::proto::identity::CallIdentity;
use crate::proto::message::Message;
use crate::types::{Incarnation, NodeId, Payload};

/// The data links of a control node.
#[derive(Default)]
pub(super) struct Peers {
    /// Of each peer the links in the order in which they came. There is one, but for the moment in which both dial and membership ends one of the links.
    links: Mutex<BTreeMap<NodeId, BTreeMap<LinkKey, Link>>>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, BTreeMap<LinkKey, Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data link to a control node, if there is one.
    pub(super) fn find(&self, peer: &NodeId) -> Option<Link> {
        let links = self.lock();
        let mut newest = links.get(peer)?.values().rev();
        // One that ends serves only where there is no other.
        newest.clone().find(|link| !link.is_closing()).or_else(|| newest.next()).cloned()
    }

    /// The data link to a life of a control node that nobody ends.
    pub(super) fn find_life(&self, peer: &NodeId, incarnation: Incarnation) -> Option<Link> {
        self.find(peer).filter(|link| link.peer().incarnation == incarnation && !link.is_closing())
    }

    /// Who is at the other ends.
    pub(super) fn names(&self) -> Vec<NodeId> {
        self.lock().iter().filter(|(_, links)| !links.is_empty()).map(|(peer, _)| peer.clone()).collect()
    }

    /// The link on which something for a control node leaves: its own, or that to whoever is next on the way.
    pub(super) fn towards(&self, view: &View, peer: &NodeId) -> Option<Link> {
        self.find(peer).or_else(|| self.find(view.live.get(peer)?.next_hop.as_ref()?))
    }

    /// Asks a control node.
    ///
    /// # Errors
    /// `not_connected` without a link; what the peer answers.
    pub(super) async fn ask(&self, view: &View, peer: &NodeId, request: &PeerRequest, timeout: Duration) -> Result<PeerReply> {
        let (link, head, payload) = self.prepare(view, peer, request, timeout)?;
        Payload::from_bytes(link.channel_zero().call(&head, &payload, timeout).await?).decode()
    }

    /// The same with a stream: whoever waits for the answer, does it within `timeout`.
    pub(super) fn ask_with_stream(
        &self,
        view: &View,
        peer: &NodeId,
        request: &PeerRequest,
        timeout: Duration,
    ) -> Result<(PendingAnswer, ByteStream)> {
        let (link, head, payload) = self.prepare(view, peer, request, timeout)?;
        link.channel_zero().call_with_stream(&head, &payload)
    }

    fn prepare(&self, view: &View, peer: &NodeId, request: &PeerRequest, timeout: Duration) -> Result<(Link, CallHead, Bytes)> {
        let link = self.towards(view, peer);
        let link = link.ok_or_else(|| Error::new(ErrorCode::NotConnected, format!("there is no link to control node {peer}")))?;
        let head = CallHead { node: (link.peer().id != *peer).then(|| peer.clone()), ..head(timeout) };
        Ok((link, head, Payload::encode(request)?.into_bytes()))
    }
}

/// For a dial: declines whoever there is a link to already, which would give way to another one; and the first such link that was met, as a name may have several
/// addresses.
pub(super) fn decline_linked(shared: &Arc<Shared>) -> (Declines, Arc<OnceLock<Link>>) {
    let linked = Arc::new(OnceLock::new());
    let (shared, met) = (Arc::clone(shared), Arc::clone(&linked));
    let declines = Declines::new(move |peer| {
        shared.peers.find_life(&peer.id, peer.incarnation).is_some_and(|link| {
            let _ = met.set(link);
            true
        })
    });
    (declines, linked)
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
        hops: 0,
        exclusive: false,
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
    fn call(&self, mut call: IncomingCall) {
        if call.head.verb == Verb::Peer {
            let (shared, key) = (Arc::clone(&self.shared), self.key);
            tokio::spawn(async move {
                let stream = call.stream.take();
                let outcome = match &call.head.node {
                    Some(node) if *node != shared.id => pass_on(&shared, &call, node, stream).await,
                    _ => match request_of(&call) {
                        Ok(PeerRequest::Session { token }) => {
                            call.stream = stream;
                            return shared.membership.session_wanted(key, token, call);
                        }
                        Ok(request) => answer(&shared, request, stream, Duration::from_millis(u64::from(call.head.timeout_ms))).await,
                        Err(error) => Err(error),
                    },
                };
                call.reply(&outcome);
            });
        } else {
            tokio::spawn(super::serve::serve(Arc::clone(&self.backend), call));
        }
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        match message {
            Message::Envelope(bytes) => {
                let is_taken = self.shared.membership.envelope(self.key, bytes, &self.turns);
                if !is_taken {
                    channel.link().close(Error::new(ErrorCode::ProtocolError, "more envelopes wait than a control node sends"));
                }
            }
            // Not passed on: two nodes may not agree who has the worker.
            Message::OutcomeAck(ack) => {
                if let Some(node) = ack.node.clone() {
                    super::backend::acknowledge_here(&self.shared, &node, &ack);
                }
            }
            _ => {}
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

/// Hands what is for another control node to whoever is next on the way.
async fn pass_on(shared: &Shared, call: &IncomingCall, node: &NodeId, stream: Option<ByteStream>) -> Result<Bytes> {
    if call.head.hops >= HOPS_MAX {
        return Err(Error::new(ErrorCode::LoopedRequest, format!("a request for control node {node} went in a circle")));
    }
    let link = shared.peers.towards(&shared.view(), node);
    let link = link.ok_or_else(|| Error::new(ErrorCode::NotConnected, format!("there is no link towards control node {node}")))?;
    let mut head = call.head.clone();
    head.hops += 1;
    let timeout = Duration::from_millis(u64::from(head.timeout_ms));
    match stream {
        None => link.channel_zero().call(&head, &call.payload, timeout).await,
        Some(stream) => {
            let (answer, onwards) = link.channel_zero().call_with_stream(&head, &call.payload)?;
            super::serve::join(stream, onwards);
            answer.wait(timeout).await
        }
    }
}

fn request_of(call: &IncomingCall) -> Result<PeerRequest> {
    let request = Payload::from_bytes(call.payload.clone()).decode();
    request.map_err(|_| Error::new(ErrorCode::UnknownRequest, "this control node does not know what the other one asks for"))
}

async fn answer(shared: &Arc<Shared>, request: PeerRequest, stream: Option<ByteStream>, timeout: Duration) -> Result<Bytes> {
    let stream = || stream.ok_or_else(|| Error::new(ErrorCode::NotAllowed, "the request needs a stream"));
    let reply = match request {
        PeerRequest::Nodes { select } => PeerReply::Nodes(super::backend::local_nodes(shared, select.as_deref())?),
        PeerRequest::Placed(placed) => PeerReply::Placed(placed::handle(shared, &placed, timeout).await?.into()),
        PeerRequest::PlacedKeys(search) => PeerReply::PlacedKeys(placed::local_keys(shared, search)),
        PeerRequest::Arrive(belongings) => {
            placed::arrive(shared, *belongings).await?;
            PeerReply::Done
        }
        PeerRequest::Keep(belongings) => match placed::keep(shared, *belongings).await {
            Ok(()) => PeerReply::Done,
            Err(stamp) => PeerReply::Over { stamp },
        },
        PeerRequest::Discard { key, stamp, hand_overs } => {
            placed::discard(shared, &key, placed::Over { stamp, hand_overs }).await;
            PeerReply::Done
        }
        PeerRequest::Surrender { key, hash } => {
            let (record, over) = placed::surrender(shared, &key, hash).await?;
            PeerReply::Surrendered { record, over }
        }
        PeerRequest::Proxies => PeerReply::Proxies(u32::try_from(shared.directory.all().len()).unwrap_or(u32::MAX)),
        PeerRequest::Membership => {
            let view = shared.view();
            let ring_size = u32::try_from(shared.config.ring_size).unwrap_or(u32::MAX);
            PeerReply::Membership(JoinFacts { ring_size, live: view.live.keys().cloned().collect() })
        }
        PeerRequest::Session { .. } => return Err(Error::new(ErrorCode::Internal, "a session is answered by membership")),
        PeerRequest::Info { node } => PeerReply::Info(shared.directory.find(&node).map(|proxy| Box::new(proxy.info()))),
        PeerRequest::Forget { node } if super::fan_out::forget_here(shared, &node) => PeerReply::Done,
        PeerRequest::Forget { node } => return Err(super::route::unknown(&node)),
        PeerRequest::Subscribe(filter) => {
            let (events, stream) = (shared.hub.subscribe(filter), stream()?);
            tokio::spawn(async move {
                if let Err(error) = write_events(events, stream).await {
                    tracing::debug!(%error, "a control node follows our workers no more");
                }
            });
            PeerReply::Done
        }
        PeerRequest::Lend(lent) => {
            super::lease::borrow(shared, *lent, stream()?).await?;
            PeerReply::Done
        }
        PeerRequest::Pass { lease, to, package } => {
            super::lease::pass(shared, lease, &to, *package).await?;
            PeerReply::Done
        }
        PeerRequest::Record(record) => {
            super::records::learn(shared, *record);
            PeerReply::Done
        }
    };
    Ok(Payload::encode(&reply)?.into_bytes())
}
