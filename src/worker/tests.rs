//! The agent and its links, over real ones whose other end is played by the test. The clock is virtual.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::duplex;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::cluster::{BoxFuture, random_incarnation};
use crate::connection::establish::Established;
use crate::connection::{Channel, IncomingCall, LinkOptions, LinkParts};
use crate::proto::auth::{Peer, Role};
use crate::proto::head::{EventHead, Rank};
use crate::proto::identity::Ticket;
use crate::proto::message::{Adopt, Adopted, Preferred, Redirect};
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
    /// On which the worker obeys, or did.
    channel: Option<Channel>,
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
    (Control { name: control, link, said, channel: None }, Dialled { parts, options: options() })
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
                Message::Adopted(Adopted::Granted { ticket, .. }) => {
                    self.channel = Some(channel);
                    return ticket;
                }
                Message::Adopted(refused) => panic!("{refused:?}"),
                _ => {}
            }
        }
    }

    /// Says something as the holder.
    fn say(&self, message: &Message) {
        self.channel.as_ref().expect("the worker has obeyed").message(message);
    }

    /// Whether the worker introduces itself here, as it does at once on a link that it wants.
    async fn is_introduced(&mut self) -> bool {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::iter::from_fn(|| self.said.try_recv().ok()).any(|message| matches!(message, Message::Describe(_)))
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
    /// What was preferred, by dial.
    preferred: mpsc::UnboundedSender<Vec<NodeUri>>,
    reached: mpsc::UnboundedSender<Control>,
    /// A dial takes as long as this is closed.
    open: watch::Sender<bool>,
}

impl Way {
    async fn dial(&self) -> Result<Dialled, DialFailure> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        let (control, dialled) = wired("c1", self.incarnation);
        let _ = self.reached.send(control);
        Ok(dialled)
    }
}

impl Connector for Way {
    fn connect(&self, preferred: Vec<NodeUri>, _: Option<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>> {
        let _ = self.preferred.send(preferred);
        Box::pin(self.dial())
    }

    fn redirected(&self, _: Vec<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>> {
        Box::pin(self.dial())
    }

    fn connect_again(&self, _: NodeUri, _: NodeId) -> BoxFuture<'_, Result<Dialled, Error>> {
        unreachable!("nobody asks for it")
    }
}

/// The worker `w1`, and what its agent does.
struct Bench {
    worker: Worker,
    incarnation: Incarnation,
    dials: Arc<AtomicUsize>,
    preferred: mpsc::UnboundedReceiver<Vec<NodeUri>>,
    controls: mpsc::UnboundedReceiver<Control>,
    open: watch::Sender<bool>,
}

impl Bench {
    fn start() -> Self {
        let (incarnation, dials, open) = (random_incarnation(), Arc::new(AtomicUsize::new(0)), watch::Sender::new(true));
        let (reached, controls) = mpsc::unbounded_channel();
        let (told, preferred) = mpsc::unbounded_channel();
        let way = Way { incarnation, dials: Arc::clone(&dials), preferred: told, reached, open: open.clone() };
        let config = Config { ping_time: Duration::from_secs(60), ..Config::worker() };
        let worker = Worker::start(Arc::new(config), id("w1"), incarnation, Classes::new(), Vec::new(), Some(Arc::new(way)));
        Self { worker, incarnation, dials, preferred, controls, open }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    async fn reached(&mut self) -> Control {
        tokio::time::timeout(FOREVER, self.controls.recv()).await.expect("in time").expect("it dials")
    }

    /// Another control node dials the worker.
    fn dialled_by(&self, control: &'static str) -> Control {
        let (control, dialled) = wired(control, self.incarnation);
        let link = Link::start(dialled.parts, dialled.options, |link| self.worker.door().handler(link));
        self.worker.door().introduce(&link);
        control
    }

    async fn until_dials(&self, count: usize) {
        let dialled = async {
            while self.dials() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(FOREVER, dialled).await.expect("it dials");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_sent_away_and_is_reached_directly_meanwhile_stays_there() {
    let mut bench = Bench::start();
    let mut first = bench.reached().await;
    let ticket = first.adopt(0, None).await;
    first.send_away(Duration::from_secs(20));
    // It waits by now; this word comes in addition, and nobody has heeded it yet.
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.send_away(Duration::from_secs(3000));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut owner = bench.dialled_by("c2");
    owner.adopt(1, Some(ticket)).await;
    first.end().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((bench.dials(), owner.link.has_ended()), (1, false), "a second link would have cut this one");
    // What the first has asked for does not hold when the other is lost.
    owner.end().await;
    let lost = Instant::now();
    bench.reached().await;
    assert!(lost.elapsed() <= 2 * backoff::AFTER_LOSS_MAX, "{:?} of the virtual clock", lost.elapsed());
    bench.worker.cut();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_reached_directly_while_it_dials_makes_no_second_link() {
    let mut bench = Bench::start();
    let mut first = bench.reached().await;
    first.adopt(0, None).await;
    bench.open.send_replace(false);
    first.end().await;
    bench.until_dials(2).await;
    let mut owner = bench.dialled_by("c2");
    owner.adopt(1, None).await;
    bench.open.send_replace(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    if let Ok(mut second) = bench.controls.try_recv() {
        assert!(!second.is_introduced().await, "a second link would have cut the good one");
    }
    // It is not held back when that one is lost.
    owner.end().await;
    bench.reached().await.adopt(2, None).await;
    bench.worker.cut();
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_was_only_slow_keeps_its_worker_though_another_one_was_dialled() {
    let mut bench = Bench::start();
    let mut slow = bench.reached().await;
    slow.adopt(0, None).await;
    bench.open.send_replace(false);
    // Silent for two minutes.
    bench.until_dials(2).await;
    slow.channel.as_ref().expect("adopted").ping(Rank::default(), FOREVER).await.expect("answered");
    bench.open.send_replace(true);
    assert!(!bench.reached().await.is_introduced().await, "it stays where it is");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!((bench.dials(), slow.link.has_ended()), (2, false));
    bench.worker.cut();
}

#[tokio::test(start_paused = true)]
async fn a_redirect_of_a_holder_that_has_found_its_own_way_meanwhile_makes_no_link() {
    let mut bench = Bench::start();
    let mut lent = bench.reached().await;
    let ticket = lent.adopt(0, None).await;
    bench.open.send_replace(false);
    lent.say(&Message::Redirect(Redirect { addresses: Vec::new() }));
    bench.until_dials(2).await;
    let mut direct = bench.dialled_by("c1");
    direct.adopt(1, Some(ticket)).await;
    bench.open.send_replace(true);
    assert!(!bench.reached().await.is_introduced().await, "a link to the same node would take the place of the one that is used");
    // Without a better way the next one is followed.
    direct.say(&Message::Redirect(Redirect { addresses: Vec::new() }));
    let mut wanted = bench.reached().await;
    wanted.adopt(2, None).await;
    bench.worker.cut();
}

#[tokio::test(start_paused = true)]
async fn addresses_of_a_holder_are_forgotten_when_nobody_adopts_there() {
    let mut bench = Bench::start();
    let mut first = bench.reached().await;
    first.adopt(0, None).await;
    let addresses: Vec<NodeUri> = vec!["nkcluster://c9".parse().expect("valid")];
    first.say(&Message::Preferred(Preferred { addresses: addresses.clone() }));
    // On the same channel: what was said before has arrived.
    first.channel.as_ref().expect("adopted").ping(Rank::default(), FOREVER).await.expect("answered");
    first.end().await;
    let silent = bench.reached().await;
    // Nobody adopts: after a while it looks elsewhere.
    bench.reached().await;
    let dials: Vec<Vec<NodeUri>> = std::iter::from_fn(|| bench.preferred.try_recv().ok()).collect();
    assert_eq!(dials, [Vec::new(), addresses, Vec::new()]);
    drop(silent);
    bench.worker.cut();
}
