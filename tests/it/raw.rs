//! Links made by hand: peers that do what no honest node would.

use std::sync::Arc;

use bytes::Bytes;
use nkcluster::Error;
use nkcluster::cluster::random_incarnation;
use nkcluster::connection::admission::{Gate, Limits};
use nkcluster::connection::establish::{self, Established, Expect, Order, Party, dial_and_establish};
use nkcluster::connection::{Channel, IncomingCall, Link, LinkHandler, LinkOptions, LinkParts};
use nkcluster::proto::auth::{Identity, KeyringInput, Role, VERSIONS};
use nkcluster::proto::head::{EventHead, Rank};
use nkcluster::proto::identity::Ticket;
use nkcluster::proto::message::{Adopted, Describe, Message};
use nkcluster::proto::session::Side;
use nkcluster::transport::{DialOptions, ListenOptions, Listener, MemoryNet};
use nkcluster::types::{Incarnation, NodeStatus, NodeUri, Secret};
use tokio::sync::mpsc;

use crate::harness::{CLUSTER, ITERATIONS, PASSWORD, node_id, soon, uri};

/// What came on a link. Calls are dropped, which answers them, and events are.
#[derive(Debug)]
pub(crate) enum Seen {
    Message(Channel, Message),
    Closed(Error),
}

/// A link, and what comes on it.
pub(crate) struct RawLink {
    pub(crate) link: Link,
    seen: mpsc::UnboundedReceiver<Seen>,
}

struct Handler(mpsc::UnboundedSender<Seen>);

impl LinkHandler for Handler {
    fn call(&self, _: IncomingCall) {}

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        let _ = self.0.send(Seen::Message(channel.clone(), message));
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, reason: &Error) {
        let _ = self.0.send(Seen::Closed(reason.clone()));
    }
}

impl RawLink {
    pub(crate) fn start(established: Established, side: Side) -> Self {
        let (sender, seen) = mpsc::unbounded_channel();
        let parts = LinkParts { established, side };
        let link = Link::start(parts, LinkOptions { keepalive: None }, |_| Arc::new(Handler(sender)));
        Self { link, seen }
    }

    /// What comes next.
    pub(crate) async fn next(&mut self) -> Seen {
        soon("something on the link", self.seen.recv()).await.expect("the link tells its end, as the last")
    }

    /// The next message that is wanted; everything else is skipped.
    pub(crate) async fn message<T>(&mut self, mut wanted: impl FnMut(&Channel, Message) -> Option<T>) -> T {
        loop {
            match self.next().await {
                Seen::Message(channel, message) => {
                    if let Some(found) = wanted(&channel, message) {
                        return found;
                    }
                }
                Seen::Closed(reason) => panic!("the link has ended: {reason:?}"),
            }
        }
    }

    /// Why the link has ended.
    pub(crate) async fn closed(&mut self) -> Error {
        loop {
            if let Seen::Closed(reason) = self.next().await {
                return reason;
            }
        }
    }

    /// Introduces itself as a worker, and obeys whoever asks; returns the channel on which it does.
    pub(crate) async fn join(&mut self, listen: Vec<NodeUri>) -> Channel {
        self.introduce(listen);
        let channel = self
            .message(|channel, message| match message {
                Message::Adopt(_) => Some(channel.clone()),
                _ => None,
            })
            .await;
        channel.message(&Message::Adopted(Adopted::Granted { term: 1, ticket: Ticket::from_bytes([7; 16]) }));
        channel
    }

    pub(crate) fn introduce(&self, listen: Vec<NodeUri>) {
        let describe = Describe {
            listen,
            meta: Default::default(),
            status: NodeStatus::Ready,
            classes: Vec::new(),
            version: String::new(),
            term: 0,
            holder: None,
        };
        self.link.channel_zero().message(&Message::Describe(describe));
    }
}

/// Who a hand-made peer says it is, and what it can prove.
pub(crate) async fn party_with(role: Role, id: &str, incarnation: Incarnation, change: impl FnOnce(&mut KeyringInput)) -> Party {
    let identity =
        Identity { cluster: CLUSTER.to_owned(), role, id: node_id(id), incarnation, versions: VERSIONS.to_vec(), features: Vec::new() };
    let mut input = KeyringInput {
        cluster: CLUSTER.to_owned(),
        iterations: ITERATIONS,
        password: Some(Secret::new(PASSWORD)),
        ..KeyringInput::default()
    };
    change(&mut input);
    Party::prepare(identity, input).await.expect("keys")
}

pub(crate) async fn party(role: Role, id: &str) -> Party {
    party_with(role, id, random_incarnation(), |_| ()).await
}

pub(crate) fn memory(net: &MemoryNet, from: &str) -> DialOptions {
    DialOptions { memory: Some(net.node(from)), ..DialOptions::default() }
}

/// Proves itself at an address.
pub(crate) async fn prove(party: &Party, at: &NodeUri, expected: Role, options: &DialOptions) -> Result<Established, Error> {
    let expect = Expect::any(expected);
    dial_and_establish(std::slice::from_ref(at), party, &expect, Order::AsGiven, options).await.map_err(Error::from)
}

/// A link to an address, on the memory network under the own id.
pub(crate) async fn dial(net: &MemoryNet, party: &Party, at: &str, expected: Role) -> Result<RawLink, Error> {
    let options = memory(net, party.identity().id.as_str());
    Ok(RawLink::start(prove(party, &uri(at), expected, &options).await?, Side::Dialler))
}

/// A listener by hand.
pub(crate) struct RawListener {
    listener: Listener,
    party: Party,
    gate: Gate,
}

impl RawListener {
    pub(crate) async fn bind(net: &MemoryNet, at: &str, party: Party) -> Self {
        let options = ListenOptions { memory: Some(net.clone()), ..ListenOptions::default() };
        let listener = Listener::bind(&uri(at), &options).await.expect("binds");
        Self { listener, party, gate: Gate::new(Limits::default()) }
    }

    /// The next one who comes, whether it can prove itself or not.
    pub(crate) async fn accept(&self) -> Result<Established, Error> {
        let incoming = soon("somebody who dials", self.listener.accept()).await;
        let permit = self.gate.admit(None).await?;
        establish::accept(incoming, &self.party, permit).await
    }
}
