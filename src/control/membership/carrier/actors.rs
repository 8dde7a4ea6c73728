//! Envelopes from actor to actor, over sessions of ractor_cluster.
//!
//! ```text
//!  keeper ─► RemoteRouter ─► NodeSession ══ stream of a call on the data link ══ NodeSession ─► Router ─► keeper
//! ```
//!
//! A session runs inside of the data link, as the stream of one call, so it has the listener, the authentication and the TLS of everything else. What
//! ractor_cluster brings along is kept small on purpose:
//! - Exactly one actor can be addressed from other nodes: the **router**, without a name, in one scoped group. This is looked at when it starts.
//! - A reference to a remote router can only be sent to ([`RemoteRouter`]): to stop one would end the session for both sides.
//! - Names of nodes are those of one life, so a restarted node is never taken for its own stale session; the mesh is ours (`Isolated`).
//! - Its own listener cannot be switched off. It has a port of its own on 127.0.0.1, and lets in who knows 256 bits made of the control secret.
//! - A frame of more than [`FRAME_BYTES_MAX`] ends a session.
//!
//! Registries of ractor belong to the process, so one node of a process has this carrier, and the others use their data links.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::registry::pid_registry;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, pg};
use ractor_cluster::node::{NodeConnectionMode, NodeServerSessionInformation};
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, NodeEventSubscription, NodeServer, NodeServerMessage, NodeSessionMessage};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Carrier;
use crate::control::membership::envelope::ENVELOPE_BYTES_MAX;
use crate::control::membership::keeper::{Event, Membership, Turns};
use crate::control::membership::machine::SessionKey;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::{Keyring, Role};
use crate::types::{Incarnation, NodeId};

/// Scope and group of the routers.
const SCOPE: &str = "nkcluster";
const GROUP: &str = "membership";
/// The byte in front of a routed envelope.
const VERSION: u8 = 1;
/// Bytes in front of the envelope: version and token.
const HEAD_BYTES: usize = 9;
/// Largest frame of a session. Ours have an envelope, and ractor's own name a handful of actors.
const FRAME_BYTES_MAX: u64 = 1024 * 1024;
/// How long a session may take until the router of the other side is known.
const READY: Duration = Duration::from_secs(5);
/// Pause between two looks at the group of the routers.
const PAUSE: Duration = Duration::from_millis(5);
/// What the cookie is made for.
const COOKIE: &[u8] = b"nkcluster ractor_cluster cookie, version 1";

/// Whether a node of this process has the carrier.
static CLAIMED: AtomicBool = AtomicBool::new(false);

/// What a session is recognised by at both ends: drawn by whoever dialled.
pub(crate) type Token = u64;

/// An envelope on its way between two routers.
#[derive(Debug, PartialEq, Eq)]
struct Routed {
    token: Token,
    envelope: Bytes,
}

impl ractor::Message for Routed {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        let mut args = Vec::with_capacity(HEAD_BYTES + self.envelope.len());
        args.push(VERSION);
        args.extend(self.token.to_be_bytes());
        args.extend(&self.envelope);
        Ok(SerializedMessage::Cast { variant: String::new(), args, metadata: None })
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        let SerializedMessage::Cast { args, .. } = message else { return Err(BoxedDowncastErr) };
        let Some((head, envelope)) = args.split_first_chunk::<HEAD_BYTES>() else { return Err(BoxedDowncastErr) };
        let [version, token @ ..] = head;
        if *version != VERSION || envelope.len() > ENVELOPE_BYTES_MAX {
            return Err(BoxedDowncastErr);
        }
        Ok(Self { token: u64::from_be_bytes(*token), envelope: Bytes::copy_from_slice(envelope) })
    }
}

/// A session that is open, or being opened.
struct Open {
    key: SessionKey,
    turns: Turns,
    /// Known once ractor has taken the stream.
    session: Option<ActorRef<NodeSessionMessage>>,
}

type Sessions = Arc<Mutex<BTreeMap<Token, Open>>>;

fn lock(sessions: &Sessions) -> MutexGuard<'_, BTreeMap<Token, Open>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one actor that other nodes can reach.
struct Router {
    sessions: Sessions,
    membership: Membership,
}

impl Actor for Router {
    type Msg = Routed;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Routed>, (): ()) -> Result<(), ActorProcessingErr> {
        pg::join_scoped(SCOPE.to_owned(), GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Routed>, Routed { token, envelope }: Routed, (): &mut ()) -> Result<(), ActorProcessingErr> {
        if let Some(open) = lock(&self.sessions).get(&token)
            && !self.membership.routed(open.key, envelope, &open.turns)
        {
            tracing::warn!("a control node sends more envelopes than can be read; one was dropped");
        }
        Ok(())
    }
}

/// The router of another node. It can be sent to, and nothing else.
struct RemoteRouter(ActorRef<Routed>);

impl RemoteRouter {
    /// The one behind a session, if it was announced already.
    fn of(session: ractor_cluster::NodeId) -> Option<Self> {
        let members = pg::get_scoped_members(&SCOPE.to_owned(), &GROUP.to_owned());
        let behind = |cell: &ActorCell| matches!(cell.get_id(), ActorId::Remote { node_id, .. } if node_id == session);
        members.into_iter().find(behind).map(|cell| Self(cell.into()))
    }

    fn cast(&self, routed: Routed) {
        // A session that has ended tells so by itself.
        let _ = self.0.cast(routed);
    }
}

/// A way to one peer.
struct OverActors {
    token: Token,
    remote: RemoteRouter,
    sessions: Sessions,
}

impl Carrier for OverActors {
    fn send(&self, envelope: Bytes) {
        self.remote.cast(Routed { token: self.token, envelope });
    }

    fn close(&self) {
        end(&self.sessions, self.token);
    }
}

/// Ends a session at once, however the peer is.
fn end(sessions: &Sessions, token: Token) {
    if let Some(session) = lock(sessions).remove(&token).and_then(|open| open.session) {
        session.kill();
    }
}

/// The carrier of a process.
pub(crate) struct Actors {
    server: ActorRef<NodeServerMessage>,
    router: ActorRef<Routed>,
    sessions: Sessions,
    membership: Membership,
}

impl Actors {
    /// Starts the carrier. None if another node of this process has it.
    ///
    /// # Errors
    /// `internal` if ractor does not start; `not_allowed` if the program has actors that ractor would announce to every control node.
    pub(crate) async fn start(id: &NodeId, incarnation: Incarnation, keyring: &Keyring, membership: Membership) -> Result<Option<Self>> {
        if CLAIMED.swap(true, Ordering::SeqCst) {
            return Ok(None);
        }
        let started = Self::claimed(id, incarnation, keyring, membership).await;
        if started.is_err() {
            CLAIMED.store(false, Ordering::SeqCst);
        }
        started.map(Some)
    }

    async fn claimed(id: &NodeId, incarnation: Incarnation, keyring: &Keyring, membership: Membership) -> Result<Self> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Error::new(ErrorCode::Internal, format!("{what} did not start: {error}"));
        let keys = keyring.keys_for(Role::Control, id);
        let keys = keys.ok_or_else(|| Error::new(ErrorCode::Internal, "a control node has the keys of its role"))?;
        let cookie: String = keys.server_proof(COOKIE).iter().map(|byte| format!("{byte:02x}")).collect();
        let sessions = Sessions::default();
        let router = Router { sessions: Arc::clone(&sessions), membership: membership.clone() };
        let (router, _) = Actor::spawn(None, router, ()).await.map_err(|error| failed("the router of membership", &error))?;
        let strangers =
            pid_registry::get_all_pids().into_iter().filter(|cell| cell.supports_remoting() && cell.get_id() != router.get_id());
        if strangers.count() > 0 {
            router.stop(None);
            let what = "the program has actors whose messages can be serialised; ractor would announce each of them to every control node";
            return Err(Error::new(ErrorCode::NotAllowed, what));
        }
        let server = NodeServer::new(0, cookie, id.to_string(), incarnation.to_string(), None, Some(NodeConnectionMode::Isolated))
            .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
            .with_max_inbound_frame_size(FRAME_BYTES_MAX);
        let server = match Actor::spawn(None, server, ()).await {
            Ok((server, _)) => server,
            Err(error) => {
                router.stop(None);
                return Err(failed("ractor_cluster", &error));
            }
        };
        let events = Events { sessions: Arc::clone(&sessions), membership: membership.clone() };
        let subscribe = NodeServerMessage::SubscribeToEvents { id: GROUP.to_owned(), subscription: Box::new(events) };
        server.cast(subscribe).map_err(|error| failed("ractor_cluster", &error))?;
        Ok(Self { server, router, sessions, membership })
    }

    /// Makes a stream the session of a data link, and tells the keeper when the other side's router is known.
    pub(crate) fn open(&self, key: SessionKey, token: Token, stream: impl Duplex, is_server: bool) {
        lock(&self.sessions).insert(token, Open { key, turns: Turns::default(), session: None });
        let stream = Box::new(Labelled { stream, label: token.to_string() });
        if self.server.cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server }).is_err() {
            self.membership.tell(Event::CarrierEnded(key));
        }
    }
}

impl Drop for Actors {
    fn drop(&mut self) {
        for open in std::mem::take(&mut *lock(&self.sessions)).into_values() {
            open.session.inspect(|session| session.kill());
        }
        self.server.stop(None);
        self.router.stop(None);
        CLAIMED.store(false, Ordering::SeqCst);
    }
}

/// The stream of a call, as far as a session needs it.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for S {}

/// A stream with the token of its session, by which ractor's events name it.
struct Labelled<S> {
    stream: S,
    label: String,
}

impl<S: Duplex> ClusterBidiStream for Labelled<S> {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (reader, writer) = tokio::io::split(self.stream);
        (Box::new(reader), Box::new(writer))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

/// What ractor_cluster tells of its sessions.
struct Events {
    sessions: Sessions,
    membership: Membership,
}

impl Events {
    fn token(&self, session: &NodeServerSessionInformation) -> Option<Token> {
        session.peer_addr.parse().ok()
    }
}

impl NodeEventSubscription for Events {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        let token = self.token(&session);
        match token.and_then(|token| lock(&self.sessions).get_mut(&token).map(|open| open.session = Some(session.actor.clone()))) {
            Some(()) => {}
            // Given up before ractor took it; or a connection to its own listener, which proves itself or stays alone.
            None if token.is_some() => session.actor.kill(),
            None => {}
        }
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        let ended = self.token(&session).and_then(|token| lock(&self.sessions).remove(&token));
        if let Some(open) = ended {
            self.membership.tell(Event::CarrierEnded(open.key));
        }
    }

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        let Some(token) = self.token(&session) else { return };
        let (sessions, membership) = (Arc::clone(&self.sessions), self.membership.clone());
        tokio::spawn(async move {
            let deadline = Instant::now() + READY;
            loop {
                let Some(key) = lock(&sessions).get(&token).map(|open| open.key) else { return };
                if let Some(remote) = RemoteRouter::of(session.node_id) {
                    let carrier = OverActors { token, remote, sessions };
                    return membership.tell(Event::Decided { key, carrier: Box::new(carrier) });
                }
                if Instant::now() >= deadline {
                    end(&sessions, token);
                    return membership.tell(Event::CarrierEnded(key));
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
}

#[cfg(test)]
mod tests;
