//! The agent and its links, over real ones whose other end is played by the test. The clock is virtual.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::duplex;
use tokio::sync::mpsc;

use super::*;
use crate::cluster::{BoxFuture, random_incarnation};
use crate::connection::establish::Established;
use crate::connection::{Channel, IncomingCall, LinkOptions, LinkParts};
use crate::proto::auth::{Peer, Role};
use crate::proto::head::{EventHead, Rank};
use crate::proto::identity::Ticket;
use crate::proto::message::{Adopt, Adopted};
use crate::proto::session::Side;
use crate::transport::{CertificateCheck, Wire, WireFacts};
use crate::types::Transport;

/// Far longer than anything here takes.
const FOREVER: Duration = Duration::from_secs(7200);

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

/// The end of a link at a control node.
struct Control {
    name: &'static str,
    link: Link,
    said: mpsc::UnboundedReceiver<Message>,
}

struct Ears(mpsc::UnboundedSender<Message>);

impl LinkHandler for Ears {
    fn call(&self, _: IncomingCall) {}

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, _: &Channel, message: Message) {
        let _ = self.0.send(message);
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {}
}

/// The two ends of a connection between `control` and the worker `w1`, where it is not started.
fn wired(control: &'static str, worker_incarnation: Incarnation) -> (Control, Dialled) {
    let (ours, theirs) = duplex(64 * 1024);
    let parts = |stream, role, name, incarnation, side| {
        let facts = WireFacts {
            transport: Transport::Memory,
            remote: format!("memory:{name}"),
            local: String::new(),
            peer_addr: None,
            binding: None,
            certificate: CertificateCheck::Unchecked,
        };
        let peer = Peer { role, id: id(name), incarnation, version: 1, features: Vec::new() };
        LinkParts { established: Established { wire: Wire::new(stream, facts), peer, uri: None }, side }
    };
    let options = || LinkOptions { keepalive: None };
    let (sender, said) = mpsc::unbounded_channel();
    let ours = parts(ours, Role::Worker, "w1", worker_incarnation, Side::Listener);
    let link = Link::start(ours, options(), |_| Arc::new(Ears(sender)));
    let parts = parts(theirs, Role::Control, control, random_incarnation(), Side::Dialler);
    (Control { name: control, link, said }, Dialled { parts, options: options() })
}

impl Control {
    /// Adopts the worker of this term, whoever has it.
    async fn adopt(&mut self, seen_term: u64, ticket: Option<Ticket>) -> Ticket {
        let channel = self.link.open_channel().expect("open");
        channel.message(&Message::Adopt(Adopt {
            worker_incarnation: self.link.peer().incarnation,
            seen_term,
            owner: id(self.name),
            owner_incarnation: Incarnation::NONE,
            rank: Rank::default(),
            ticket,
            ping_ms: 60_000,
        }));
        loop {
            match self.said.recv().await.expect("the link is open") {
                Message::Adopted(Adopted::Granted { ticket, .. }) => return ticket,
                Message::Adopted(refused) => panic!("{refused:?}"),
                _ => {}
            }
        }
    }

    fn send_away(&self, pause: Duration) {
        let reason = Error::new(ErrorCode::ShuttingDown, "stopping");
        let reconnect_after_ms = Some(u64::try_from(pause.as_millis()).expect("short"));
        self.link.channel_zero().message(&Message::GoAway(GoAway { reason, reconnect_after_ms }));
    }

    async fn end(self) {
        self.link.close(Error::new(ErrorCode::ShuttingDown, "stopping"));
        self.link.ended().await;
    }
}

/// Whoever the worker dials is `c1`.
struct Way {
    incarnation: Incarnation,
    dials: Arc<AtomicUsize>,
    reached: mpsc::UnboundedSender<Control>,
}

impl Connector for Way {
    fn connect(&self, _: Vec<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let (control, dialled) = wired("c1", self.incarnation);
        let _ = self.reached.send(control);
        Box::pin(async move { Ok(dialled) })
    }

    fn redirected(&self, _: Vec<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>> {
        unreachable!("nobody asks for it")
    }

    fn connect_again(&self, _: NodeUri, _: NodeId) -> BoxFuture<'_, Result<Dialled, Error>> {
        unreachable!("nobody asks for it")
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_sent_away_and_is_reached_directly_meanwhile_stays_there() {
    let (incarnation, dials) = (random_incarnation(), Arc::new(AtomicUsize::new(0)));
    let (reached, mut controls) = mpsc::unbounded_channel();
    let way = Way { incarnation, dials: Arc::clone(&dials), reached };
    let config = Config { ping_time: Duration::from_secs(60), ..Config::worker() };
    let worker = Worker::start(Arc::new(config), id("w1"), incarnation, Classes::new(), Vec::new(), Some(Arc::new(way)));
    let mut first = controls.recv().await.expect("it dials");
    let ticket = first.adopt(0, None).await;
    first.send_away(Duration::from_secs(20));
    // It waits by now; this word comes in addition, and nobody has heeded it yet.
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.send_away(Duration::from_secs(3000));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut owner, dialled) = wired("c2", incarnation);
    let direct = Link::start(dialled.parts, dialled.options, |link| worker.door().handler(link));
    worker.door().introduce(&direct);
    owner.adopt(1, Some(ticket)).await;
    first.end().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((dials.load(Ordering::SeqCst), owner.link.has_ended()), (1, false), "a second link would have cut this one");
    // What the first has asked for does not hold when the other is lost.
    owner.end().await;
    let lost = Instant::now();
    tokio::time::timeout(FOREVER, controls.recv()).await.expect("in time").expect("it dials");
    assert!(lost.elapsed() <= 2 * backoff::AFTER_LOSS_MAX, "{:?} of the virtual clock", lost.elapsed());
    worker.cut();
}
