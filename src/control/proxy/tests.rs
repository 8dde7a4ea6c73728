//! Links that come too late: for a proxy that ends, or because they have ended themselves.

use tokio::io::duplex;
use tokio::sync::Semaphore;

use super::*;
use crate::config::Config;
use crate::connection::establish::{Established, Party};
use crate::connection::{IncomingCall, LinkHandler, LinkOptions};
use crate::control::workers;
use crate::job::Classes;
use crate::proto::auth::{Identity, Keyring, KeyringInput, Peer, VERSIONS};
use crate::proto::head::Rank;
use crate::transport::{CertificateCheck, DialOptions, Wire, WireFacts};
use crate::types::{Secret, Transport};

/// Far longer than anything here takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

fn run(number: u8) -> Incarnation {
    Incarnation::from_bytes([number; 16])
}

/// A control node without anything else.
fn control() -> Arc<Shared> {
    let identity = Identity {
        cluster: "test".into(),
        role: Role::Control,
        id: id("c1"),
        incarnation: run(200),
        versions: VERSIONS.to_vec(),
        features: Vec::new(),
    };
    let input = KeyringInput { cluster: "test".into(), iterations: 1, password: Some(Secret::new("a secret")), ..KeyringInput::default() };
    let keyring = Keyring::derive(Role::Control, &input).expect("a good keyring");
    let party = Party::new(identity, Arc::new(keyring));
    Shared::new(Arc::new(Config::control()), id("c1"), run(200), Classes::new(), party, DialOptions::default())
}

fn describe() -> Describe {
    Describe {
        listen: Vec::new(),
        meta: Default::default(),
        status: NodeStatus::Ready,
        classes: Vec::new(),
        version: String::new(),
        term: 0,
        holder: None,
    }
}

/// A worker that obeys whoever asks, or the side of a control node that does nothing.
struct Obeys;

impl LinkHandler for Obeys {
    fn call(&self, _: IncomingCall) {}

    fn event(&self, _: &Channel, _: EventHead, _: bytes::Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        if let Message::Adopt(adopt) = message {
            channel.message(&Message::Adopted(Adopted::Granted { term: adopt.seen_term + 1, ticket: Ticket::from_bytes([7; 16]) }));
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {}
}

/// Both ends of a link: that of a control node, not started, and that of the worker `w1`.
fn wired() -> (LinkParts, Link) {
    let (ours, theirs) = duplex(64 * 1024);
    let parts = |stream, role, name, side| {
        let facts = WireFacts {
            transport: Transport::Memory,
            remote: "memory:there".into(),
            local: "memory:here".into(),
            peer_addr: None,
            binding: None,
            certificate: CertificateCheck::Unchecked,
        };
        let peer = Peer { role, id: id(name), incarnation: run(1), version: 1, features: Vec::new() };
        LinkParts { established: Established { wire: Wire::new(stream, facts), peer, uri: None }, side }
    };
    let worker = Link::start(parts(theirs, Role::Control, "c1", Side::Dialler), LinkOptions { keepalive: None }, |_| Arc::new(Obeys));
    (parts(ours, Role::Worker, "w1", Side::Listener), worker)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, patience).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// A link that no handler tells of, and its announcement; the turn is back when the proxy is done with it.
fn announced(turns: &Arc<Semaphore>) -> (Msg, Link, Link) {
    let (parts, worker) = wired();
    let link = Link::start(parts, LinkOptions { keepalive: None }, |_| Arc::new(Obeys));
    let turn = Arc::clone(turns).try_acquire_owned().expect("a turn");
    let (describe, key) = (Box::new(describe()), 1_000_000);
    (Msg::LinkUp { key, link: link.clone(), dialled: None, describe, package: None, is_lent: false, turn }, link, worker)
}

#[tokio::test]
async fn a_link_that_nobody_has_looked_at_ends_with_the_proxy() {
    let shared = control();
    let proxy = shared.directory.find_or_insert(&id("w1"), || Proxy::start(&shared, id("w1"))).expect("there is room");
    let (message, link, _worker) = announced(&Arc::new(Semaphore::new(1)));
    // The actor runs on this thread: it looks at nothing in between.
    assert!(proxy.cast(message));
    proxy.stop();
    let reason = tokio::time::timeout(DEADLINE, link.ended()).await.expect("it ends");
    assert_eq!(reason.code(), &ErrorCode::ShuttingDown, "{reason}");
}

#[tokio::test]
async fn a_link_that_has_ended_takes_nobodys_place() {
    let shared = control();
    let (parts, worker) = wired();
    let link = workers::start(&shared, parts, None);
    worker.channel_zero().message(&Message::Describe(describe()));
    let current = || shared.directory.find(&id("w1")).and_then(|proxy| proxy.current());
    eventually("the worker is adopted", || current().is_some()).await;
    let turns = Arc::new(Semaphore::new(1));
    let (message, late, _worker) = announced(&turns);
    late.close(Error::new(ErrorCode::ConnectionFailed, "cut"));
    tokio::time::timeout(DEADLINE, late.ended()).await.expect("it ends");
    assert!(shared.directory.find(&id("w1")).expect("known").cast(message));
    eventually("the proxy has looked at it", || turns.available_permits() == 1).await;
    assert!(current().is_some_and(|current| *current.channel.link() == link), "the good link is used as before");
}

#[tokio::test]
async fn a_control_node_that_has_ended_makes_no_proxy() {
    let shared = control();
    let (parts, worker) = wired();
    let control = crate::control::Control::new(Arc::clone(&shared));
    control.cut();
    let link = workers::start(&shared, parts, None);
    worker.channel_zero().message(&Message::Describe(describe()));
    tokio::time::timeout(DEADLINE, link.ended()).await.expect("it ends");
    assert!(shared.directory.find_or_insert(&id("w1"), || Proxy::start(&shared, id("w1"))).is_none());
    assert!(shared.directory.all().is_empty());
}
