//! The cluster over a link to a control node, with the role `admin`.
//!
//! The link is kept while it lives. When it has ended, or its control node is stopping, the next call dials again; calls that were on their way fail and are
//! tried again by whoever asked for retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::call::{Backend, BoxFuture, NodeCall, StreamedCall, millis};
use super::events::{EventStream, read_events};
use super::operation::{EventFilter, Operation, OperationReply};
use super::random_incarnation;
use crate::connection::establish::{Expect, Order, Party, dial_and_establish};
use crate::connection::{Channel, IncomingCall, Link, LinkHandler, LinkOptions, LinkParts};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::{Identity, KeyringInput, Role, VERSIONS};
use crate::proto::head::{CallHead, EventHead, Rank, Verb};
use crate::proto::identity::CallIdentity;
use crate::proto::message::{Message, OutcomeAck};
use crate::proto::session::Side;
use crate::transport::{CONNECT_TIMEOUT, DialOptions, MemoryNode, ProxyEnvironment, QuicSockets, Resolver, TlsOptions};
use crate::types::{Incarnation, NodeId, NodeUri, Payload, Secret};

/// A control node that says nothing for this long is pinged, and given up after three times it.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// How much later than the control node we give up ourselves, so that its better-informed error arrives.
const GRACE: Duration = Duration::from_millis(500);
/// Pause before another control node is asked.
const AGAIN: Duration = Duration::from_millis(20);

/// How to reach a cluster and prove oneself.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Any control nodes; tried in random order.
    pub uris: Vec<NodeUri>,
    /// Name of the cluster.
    pub cluster_name: String,
    /// The secret of admins, or the one secret of the cluster.
    pub password: Secret,
    /// As configured on the control nodes.
    pub pbkdf2_iters: u32,
    /// Public half of the control key: control nodes must sign.
    pub control_key: Option<[u8; 32]>,
    /// Most time for each address.
    pub connect_timeout: Duration,
    /// TLS options; those of a URL have precedence.
    pub tls: TlsOptions,
    /// Finds the addresses of names; by default through the DNS servers of the system.
    pub resolver: Resolver,
    /// The simulated network, in tests.
    pub memory: Option<MemoryNode>,
}

impl ConnectOptions {
    /// Everything else as it is by default.
    pub fn new(uris: Vec<NodeUri>, cluster_name: impl Into<String>, password: Secret) -> Self {
        let defaults = crate::config::Config::control();
        Self {
            uris,
            cluster_name: cluster_name.into(),
            password,
            pbkdf2_iters: defaults.pbkdf2_iters,
            control_key: None,
            connect_timeout: CONNECT_TIMEOUT,
            tls: TlsOptions::default(),
            resolver: Resolver::default(),
            memory: None,
        }
    }
}

struct Remote {
    uris: Vec<NodeUri>,
    party: Party,
    dial: DialOptions,
    link: Mutex<Option<(Channel, Arc<Client>)>>,
    edge: Incarnation,
}

/// A backend, and the edge of its calls: the incarnation under which the control node knows this client, so that both can be found by one name.
pub(super) async fn connect(options: ConnectOptions) -> Result<(Arc<dyn Backend>, Incarnation)> {
    let edge = random_incarnation();
    let identity = Identity {
        cluster: options.cluster_name.clone(),
        role: Role::Admin,
        id: NodeId::new(format!("admin-{}", uuid::Uuid::new_v4().simple()))?,
        incarnation: edge,
        versions: VERSIONS.to_vec(),
        features: Vec::new(),
    };
    let input = KeyringInput {
        cluster: options.cluster_name,
        iterations: options.pbkdf2_iters,
        password: Some(options.password),
        control_key: options.control_key,
        ..KeyringInput::default()
    };
    let party = Party::prepare(identity, input).await?;
    let dial = DialOptions {
        connect_timeout: options.connect_timeout,
        tls: options.tls,
        proxies: ProxyEnvironment::of_process(),
        quic: QuicSockets::default(),
        resolver: options.resolver,
        memory: options.memory,
    };
    let remote = Remote { uris: options.uris, party, dial, link: Mutex::new(None), edge };
    remote.channel().await?;
    Ok((Arc::new(remote), edge))
}

impl Remote {
    /// The channel of a living link, dialled if there is none.
    async fn channel(&self) -> Result<Channel> {
        self.connected().await.map(|(channel, _)| channel)
    }

    /// The same, with what its control node said. One caller dials, the others wait for it.
    async fn connected(&self) -> Result<(Channel, Arc<Client>)> {
        let mut link = self.link.lock().await;
        if let Some((channel, client)) = &*link
            && channel.is_open()
            && !client.leaving.load(Ordering::Acquire)
        {
            return Ok((channel.clone(), Arc::clone(client)));
        }
        let expect = Expect::any(Role::Control);
        let established = dial_and_establish(&self.uris, &self.party, &expect, Order::Shuffled, &self.dial).await.map_err(Error::from)?;
        let client = Arc::new(Client { leaving: AtomicBool::new(false) });
        let handler = Arc::clone(&client) as Arc<dyn LinkHandler>;
        let parts = LinkParts { established, side: Side::Dialler };
        let made = Link::start(parts, LinkOptions { keepalive: Some(KEEPALIVE) }, |_| handler);
        let channel = made.open_channel()?;
        if let Some((old, _)) = link.replace((channel.clone(), Arc::clone(&client))) {
            // It may still bring answers to earlier calls; its control node closes it when they are given.
            tracing::debug!(remote = old.link().remote(), "changed to another control node");
        }
        Ok((channel, client))
    }

    /// Asks a control node; if that one is going and has done nothing, another one: whoever knows several must not notice that one of them stops.
    async fn ask(&self, mut head: CallHead, payload: &Bytes, timeout: Duration) -> Result<Bytes> {
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut refused = None;
        loop {
            let (channel, client) = match Self::within(left(), self.connected()).await {
                Ok(connected) => connected,
                // Nobody else is there.
                Err(error) => return Err(refused.unwrap_or(error)),
            };
            head.timeout_ms = millis(left());
            let answer = channel.call(&head, payload, left() + GRACE).await;
            let is_going = client.leaving.load(Ordering::Acquire) || !channel.is_open();
            match answer {
                Err(error) if is_going && *error.code() == ErrorCode::ShuttingDown && !error.may_have_run() && left() > AGAIN => {
                    tracing::debug!(remote = channel.link().remote(), "refused by a control node that is going, asking another one");
                    refused = Some(error);
                    // It may still have let us in again.
                    tokio::time::sleep(AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        let late = |_| Error::new(ErrorCode::Timeout, format!("no control node answered within {timeout:?}"));
        tokio::time::timeout(timeout, work).await.map_err(late)?
    }

    fn operation_head(&self, timeout: Duration) -> CallHead {
        CallHead {
            verb: Verb::Cluster,
            timeout_ms: millis(timeout),
            // Operations are not remembered by anybody: they can be repeated.
            identity: CallIdentity { edge: self.edge, number: 0 },
            retry: false,
            hops: 0,
            exclusive: false,
            incarnation: Default::default(),
            node: None,
            class: None,
            task: None,
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some((channel, _)) = self.link.get_mut().take() {
            channel.link().close(Error::new(ErrorCode::ShuttingDown, "the client has gone"));
        }
    }
}

impl Backend for Remote {
    fn call(&self, call: NodeCall) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move { self.ask(call.head, &call.payload.into_bytes(), call.timeout).await })
    }

    fn call_with_stream(&self, call: NodeCall) -> BoxFuture<'_, Result<StreamedCall>> {
        Box::pin(async move {
            let channel = Self::within(call.timeout, self.channel()).await?;
            let (answer, stream) = channel.call_with_stream(&call.head, &call.payload.into_bytes())?;
            Ok(StreamedCall { answer: Box::pin(answer.wait(call.timeout + GRACE)), stream })
        })
    }

    fn operate(&self, operation: Operation, timeout: Duration) -> BoxFuture<'_, Result<OperationReply>> {
        Box::pin(async move {
            let payload = Payload::encode(&operation)?.into_bytes();
            let reply = self.ask(self.operation_head(timeout), &payload, timeout).await?;
            Payload::from_bytes(reply).decode()
        })
    }

    fn incarnation<'a>(&'a self, node: &'a NodeId, timeout: Duration) -> BoxFuture<'a, Option<Incarnation>> {
        // When the link to the control node ends, nobody tells which incarnation has the call.
        Box::pin(async move {
            match self.operate(Operation::Info { node: node.clone() }, timeout).await {
                Ok(OperationReply::Info(info)) => info.incarnation,
                _ => None,
            }
        })
    }

    fn acknowledge(&self, ack: OutcomeAck) {
        // Nobody dials for it, and nobody waits while somebody else does.
        if let Ok(link) = self.link.try_lock()
            && let Some((channel, _)) = &*link
        {
            channel.message(&Message::OutcomeAck(ack));
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some((channel, _)) = self.link.lock().await.take() {
                channel.link().close(Error::new(ErrorCode::ShuttingDown, "the client has gone"));
                channel.link().flushed().await;
            }
        })
    }

    fn subscribe(&self, filter: EventFilter) -> BoxFuture<'_, Result<EventStream>> {
        Box::pin(async move {
            let timeout = self.dial.connect_timeout;
            let channel = Self::within(timeout, self.channel()).await?;
            let payload = Payload::encode(&Operation::Subscribe(filter))?.into_bytes();
            let (answer, stream) = channel.call_with_stream(&self.operation_head(timeout), &payload)?;
            answer.wait(timeout).await?;
            Ok(read_events(stream))
        })
    }
}

/// A client answers nothing; it only notes when it is sent away.
struct Client {
    leaving: AtomicBool,
}

impl LinkHandler for Client {
    fn call(&self, call: IncomingCall) {
        call.reply(&Err(Error::new(ErrorCode::NotAllowed, "a client answers no calls")));
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, _: &Channel, message: Message) {
        if let Message::GoAway(away) = message {
            tracing::debug!(reason = away.reason.message(), "the control node sends us away");
            self.leaving.store(true, Ordering::Release);
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {}
}
