//! Links that come too late: for a proxy that ends, or because they have ended themselves; and workers that are to move.

use tokio::io::duplex;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::config::Config;
use crate::connection::establish::{Established, Party};
use crate::connection::{IncomingCall, LinkHandler, LinkOptions, LinkParts};
use crate::control::{view, workers};
use crate::job::Classes;
use crate::proto::auth::{Identity, Keyring, KeyringInput, Peer, Role, VERSIONS};
use crate::proto::head::{Audience, EventKind, Rank};
use crate::proto::message::{ExclusiveDial, ExclusiveHere, Message};
use crate::proto::session::Side;
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
    control_with(Config::control())
}

/// The same with a configuration.
pub(in crate::control) fn control_with(config: Config) -> Arc<Shared> {
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
    Shared::new(Arc::new(config), id("c1"), run(200), Classes::new(), party, DialOptions::default())
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

/// A worker that obeys whoever asks, or the side of a control node that does nothing. What else it hears is for the test.
struct Obeys(mpsc::UnboundedSender<Message>);

impl LinkHandler for Obeys {
    fn call(&self, _: IncomingCall) {}

    fn event(&self, _: &Channel, _: EventHead, _: bytes::Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        match message {
            Message::Adopt(adopt) => {
                channel.message(&Message::Adopted(Adopted::Granted { term: adopt.seen_term + 1, ticket: Ticket::from_bytes([7; 16]) }));
            }
            other => _ = self.0.send(other),
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {}
}

/// A worker that is played by the test.
struct Played(mpsc::UnboundedSender<(Channel, Message)>);

impl LinkHandler for Played {
    fn call(&self, _: IncomingCall) {}

    fn event(&self, _: &Channel, _: EventHead, _: bytes::Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        let _ = self.0.send((channel.clone(), message));
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {}
}

/// Both ends of a link: that of a control node, not started, and that of the worker `w1`.
fn wired() -> (LinkParts, Link) {
    let (parts, worker, _) = overheard();
    (parts, worker)
}

/// The same, with what the worker hears.
fn overheard() -> (LinkParts, Link, mpsc::UnboundedReceiver<Message>) {
    let (ear, heard) = mpsc::unbounded_channel();
    let (parts, worker) = wired_to(Obeys(ear));
    (parts, worker, heard)
}

/// The same with a worker that does this.
fn wired_to(worker: impl LinkHandler + 'static) -> (LinkParts, Link) {
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
    let worker = Link::start(parts(theirs, Role::Control, "c1", Side::Dialler), LinkOptions { keepalive: None }, |_| Arc::new(worker));
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
    let link = Link::start(parts, LinkOptions { keepalive: None }, |_| Arc::new(Obeys(mpsc::unbounded_channel().0)));
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

/// What handles the link on which the worker `w1` has said nothing yet, and the worker's end.
fn silent(shared: &Arc<Shared>) -> (Arc<workers::Handler>, Link) {
    let (parts, worker) = wired();
    let before = shared.links_made();
    workers::start(shared, parts, None);
    (shared.worker_link(before).expect("it has just been made"), worker)
}

#[tokio::test]
async fn a_link_for_a_proxy_that_ends_at_this_moment_ends_so_that_the_worker_comes_again() {
    let shared = control();
    let (handler, _worker) = silent(&shared);
    let proxy = shared.directory.find_or_insert(&id("w1"), || Proxy::start(&shared, id("w1"))).expect("there is room");
    // Its actor has not seen it yet: it is still in the directory, and does not count as ended.
    proxy.stop();
    assert!(!proxy.has_ended());
    handler.adopt_here(describe(), None);
    let reason = tokio::time::timeout(DEADLINE, handler.link.ended()).await.expect("nobody would ever look at it");
    assert_eq!(reason.code(), &ErrorCode::ShuttingDown, "{reason}");
}

#[tokio::test]
async fn a_worker_that_comes_while_the_node_stops_is_told_so_and_not_that_there_are_too_many() {
    let shared = control();
    let (handler, _worker) = silent(&shared);
    shared.begin_stop();
    shared.directory.close();
    handler.adopt_here(describe(), None);
    let reason = tokio::time::timeout(DEADLINE, handler.link.ended()).await.expect("it ends");
    assert_eq!(reason.code(), &ErrorCode::ShuttingDown, "{reason}");
}

#[tokio::test]
async fn connections_for_calls_alone_take_no_turn_when_workers_are_sent_away() {
    let shared = control();
    let (parts, worker, mut heard) = overheard();
    workers::start(&shared, parts, None);
    worker.channel_zero().message(&Message::Describe(describe()));
    let current = || shared.directory.find(&id("w1")).and_then(|proxy| proxy.current());
    eventually("the worker is adopted", || current().is_some()).await;
    let (proxy, held) = (shared.directory.find(&id("w1")).expect("known"), current().expect("held"));
    // Two of them, as the worker would make them.
    let mut leases = Vec::new();
    for _ in 0..2 {
        let acquiring = tokio::spawn({
            let (exclusives, shared, held) = (Arc::clone(&proxy.exclusives), Arc::clone(&shared), Arc::clone(&held));
            async move { exclusives.acquire(&shared, &held, DEADLINE).await }
        });
        let request = loop {
            if let Message::ExclusiveDial(ExclusiveDial { request }) = heard.recv().await.expect("the link is open") {
                break request;
            }
        };
        let (parts, extra, ear) = overheard();
        workers::start(&shared, parts, None);
        extra.channel_zero().message(&Message::ExclusiveHere(ExclusiveHere { request, refused: None }));
        leases.push((acquiring.await.expect("no panic").expect("it was brought"), extra, ear));
    }
    assert_eq!(shared.links().len(), 3);
    let control = crate::control::Control::new(Arc::clone(&shared));
    assert_eq!(control.send_away(&shared.worker_links()), Duration::ZERO, "one worker goes, and at once");
    let away = async {
        loop {
            if let Message::GoAway(away) = heard.recv().await.expect("the link is open") {
                return away;
            }
        }
    };
    assert_eq!(tokio::time::timeout(DEADLINE, away).await.expect("it is told").reconnect_after_ms, Some(0));
    for (_, _, ear) in &mut leases {
        assert!(!std::iter::from_fn(|| ear.try_recv().ok()).any(|message| matches!(message, Message::GoAway(_))));
    }
}

/// What the worker hears next that it waits for.
async fn next<T>(heard: &mut mpsc::UnboundedReceiver<(Channel, Message)>, wanted: impl Fn(Channel, Message) -> Option<T>) -> T {
    let waiting = async {
        loop {
            let (channel, message) = heard.recv().await.expect("the link is open");
            if let Some(wanted) = wanted(channel, message) {
                return wanted;
            }
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("it is said")
}

/// From now on all workers belong to a control node that cannot be reached.
fn belongs_elsewhere(shared: &Shared) {
    let other = view::Member { incarnation: run(201), listen: Vec::new(), next_hop: Some(id("c2")) };
    shared.view.send_modify(|view| {
        let view = Arc::make_mut(view);
        view.live.insert(id("c2"), other);
        view.ring = crate::ring::Ring::new(view.ring.size(), [id("c2")]);
    });
    shared.directory.find(&id("w1")).expect("known").cast(Msg::View);
}

#[tokio::test]
async fn a_worker_that_belongs_elsewhere_works_on_here_until_it_is_its_turn_to_move() {
    let shared = control();
    let (ear, mut heard) = mpsc::unbounded_channel();
    let (parts, worker) = wired_to(Played(ear));
    workers::start(&shared, parts, None);
    worker.channel_zero().message(&Message::Describe(describe()));
    let adopted = |channel: Channel, message: Message| matches!(message, Message::Adopt(_)).then_some(channel);
    let channel = next(&mut heard, adopted).await;
    channel.message(&Message::Adopted(Adopted::Granted { term: 1, ticket: Ticket::from_bytes([7; 16]) }));
    let proxy = shared.directory.find(&id("w1")).expect("known");
    eventually("it is adopted", || proxy.current().is_some()).await;
    // As many others move as may at once.
    let all = u32::try_from(shared.moves.available_permits()).expect("few");
    let others = Arc::clone(&shared.moves).acquire_many_owned(all).await.expect("open");
    belongs_elsewhere(&shared);
    // Whatever the actor does about it, it does on this thread, and as soon as it can.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(proxy.current().is_some() && !proxy.is_moving(), "calls reach it as before");
    drop(others);
    // Its turn comes, its new owner does not answer, and it is asked back.
    assert_eq!(next(&mut heard, adopted).await.id(), channel.id());
}

#[tokio::test]
async fn what_was_on_its_way_when_a_move_has_failed_makes_no_gap_of_what_was_not_heard() {
    let shared = control();
    let (ear, mut heard) = mpsc::unbounded_channel();
    let (parts, worker) = wired_to(Played(ear));
    workers::start(&shared, parts, None);
    worker.channel_zero().message(&Message::Describe(describe()));
    let class = crate::types::ClassName::new("numbers").expect("valid");
    let adopted = |channel: Channel, message: Message| matches!(message, Message::Adopt(_)).then_some(channel);
    let acknowledged = |_: Channel, message: Message| match message {
        Message::EventAck(ack) => Some(ack.seq),
        _ => None,
    };
    let grant = |channel: &Channel, term: u64, next_seq: u64| {
        channel.message(&Message::Adopted(Adopted::Granted { term, ticket: Ticket::from_bytes([7; 16]) }));
        channel.message(&Message::Resync(Resync { class: class.clone(), next_seq, tasks: Vec::new(), more: false }));
    };
    let send = |channel: &Channel, seq: u64| {
        let head = EventHead { seq, time_ms: 0, kind: EventKind::Class, class: class.clone(), task: None, audience: Audience::Everybody };
        channel.event(&head, b"x");
    };
    let channel = next(&mut heard, adopted).await;
    grant(&channel, 1, 1);
    send(&channel, 1);
    assert_eq!(next(&mut heard, acknowledged).await, 1);
    // It belongs to a control node that cannot be reached: nothing is heard while that is tried, and then the worker is asked back on the same channel.
    belongs_elsewhere(&shared);
    let again = next(&mut heard, adopted).await;
    assert_eq!(again.id(), channel.id());
    // The second event was sent while nobody heard; the third one before the worker knows that it is asked.
    send(&channel, 3);
    grant(&channel, 2, 2);
    send(&channel, 2);
    send(&channel, 3);
    let acks = [next(&mut heard, acknowledged).await, next(&mut heard, acknowledged).await];
    assert_eq!(acks, [2, 3], "a gap would be acknowledged as a whole, and the event would be lost");
}
