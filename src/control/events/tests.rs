//! Workers that send events over real links, and exactly what a class sees of them.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::duplex;
use tokio::sync::{Semaphore, mpsc::UnboundedReceiver};

use super::*;
use crate::config::Config;
use crate::connection::establish::{Established, Party};
use crate::connection::{IncomingCall, Link, LinkHandler, LinkOptions, LinkParts};
use crate::error::{Error, Result};
use crate::job::{
    Classes, CommandContext, EventContext, JobClass, JobEvent, JobEventKind, NoRequests, RequestContext, Started, TaskClass, TaskContext,
};
use crate::proto::auth::{Identity, Keyring, KeyringInput, Peer, Role, VERSIONS};
use crate::proto::head::{Audience, EventKind, Rank};
use crate::proto::session::Side;
use crate::transport::{CertificateCheck, DialOptions, Wire, WireFacts};
use crate::types::{Payload, Secret, TaskId, Transport};

/// Far longer than anything here takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the class `probe` writes down, and what holds it up.
struct Notes {
    told: Mutex<Vec<String>>,
    /// A permit for each event; unlimited unless a test takes them away.
    pass: Semaphore,
    begun: AtomicUsize,
}

#[derive(Clone)]
struct Probe(Arc<Notes>);

impl JobClass for Probe {
    const NAME: &'static str = "probe";
    type Request = NoRequests;
    type Reply = ();

    async fn request(&self, _: RequestContext, request: NoRequests) -> Result<()> {
        match request {}
    }
}

impl TaskClass for Probe {
    type Spec = ();
    type Accepted = ();
    type Command = ();
    type Answer = ();
    type Event = String;
    type Task = ();

    async fn task(&self, _: TaskContext<Self>, (): ()) -> Result<Started<Self>> {
        Ok(Started::future((), pending()))
    }

    async fn command(&self, _: CommandContext<Self>, (): &(), (): ()) -> Result<()> {
        Ok(())
    }

    async fn event(&self, _: EventContext, event: JobEvent<String>) {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        self.0.pass.acquire().await.expect("never closed").forget();
        let run = event.incarnation.as_bytes()[0];
        let text = match event.kind {
            JobEventKind::Class(text) if text == "panic" => panic!("as told"),
            JobEventKind::Class(text) => text,
            JobEventKind::TaskStarted(id) => format!("started {id}"),
            JobEventKind::TaskStopped { id, reason } => format!("stopped {id} {reason}"),
            JobEventKind::NodeStatus(status) => format!("status {status}"),
            JobEventKind::Resync { gap, tasks } => {
                let tasks: Vec<&str> = tasks.iter().map(TaskId::as_str).collect();
                format!("resync {gap:?} [{}]", tasks.join(" "))
            }
            JobEventKind::Gap { from, to } => format!("gap {from}-{to}"),
        };
        let line = format!("{run}/{} {text}", event.seq);
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// A control node without anything else, and the dispatcher of one worker.
struct Stage {
    _shared: Arc<Shared>,
    dispatcher: Dispatcher,
    notes: Arc<Notes>,
    live: EventStream,
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid name")
}

fn run(number: u8) -> Incarnation {
    Incarnation::from_bytes([number; 16])
}

impl Stage {
    /// The worker's incarnation 1 is taken.
    fn new() -> Self {
        let notes = Arc::new(Notes { told: Mutex::default(), pass: Semaphore::new(1_000_000), begun: AtomicUsize::new(0) });
        let identity = Identity {
            cluster: "test".into(),
            role: Role::Control,
            id: node("c1"),
            incarnation: run(200),
            versions: VERSIONS.to_vec(),
            features: Vec::new(),
        };
        let input = KeyringInput {
            cluster: "test".into(),
            iterations: 1,
            password: Some(Secret::new("a secret of tests")),
            worker_password: None,
            admin_password: None,
            control_password: None,
            control_key: None,
            node_token: None,
            node_tokens: false,
        };
        let keyring = Keyring::derive(Role::Control, &input).expect("a good keyring");
        let party = Party::new(identity, Arc::new(keyring));
        let classes = Classes::new().with_tasks(Probe(Arc::clone(&notes)));
        let shared = Shared::new(Arc::new(Config::control()), node("c1"), run(200), classes, party, DialOptions::default());
        let dispatcher = Dispatcher::new(&shared, node("w1"));
        dispatcher.new_incarnation(run(1));
        let live = shared.hub.subscribe(EventFilter::default());
        Self { _shared: shared, dispatcher, notes, live }
    }

    fn send(&self, from: &Channel, of: u8, seq: u64, what: Sent) -> Took {
        self.send_to(from, of, seq, what, Audience::Everybody)
    }

    fn send_to(&self, from: &Channel, of: u8, seq: u64, what: Sent, audience: Audience) -> Took {
        let own = |event: &BuiltinEvent| rmp_serde::to_vec_named(event).expect("encodes").into();
        let (kind, payload) = match what {
            Sent::Text(text) => (EventKind::Class, Payload::encode(&text).expect("encodes").into_bytes()),
            Sent::Started(id) => (EventKind::Builtin, own(&BuiltinEvent::TaskStarted(task(id)))),
            Sent::Stopped(id) => (EventKind::Builtin, own(&BuiltinEvent::TaskStopped { id: task(id), reason: "normal".into() })),
            Sent::Gap(first) => (EventKind::Gap, own(&BuiltinEvent::Gap { from: first, to: seq })),
            Sent::Garbage(kind) => (kind, Bytes::from_static(&[0xc1])),
        };
        let head = EventHead { seq, time_ms: 0, kind, class: class(), task: None, audience };
        self.dispatcher.event(from, run(of), head, payload)
    }

    fn resync(&self, from: &Channel, of: u8, next_seq: u64, tasks: &[&str], more: bool) -> Took {
        let tasks = tasks.iter().map(|id| task(id)).collect();
        self.dispatcher.resync(from, run(of), Resync { class: class(), next_seq, tasks, more })
    }

    fn told(&self) -> Vec<String> {
        self.notes.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn wait_told(&self, expected: &[&str]) {
        eventually(|| self.told() == expected, || format!("told {:?}, expected {expected:?}", self.told())).await;
    }

    /// From now on the class takes in nothing until it is let.
    fn hold(&self) {
        let all = self.notes.pass.available_permits();
        self.notes.pass.forget_permits(all);
    }

    fn let_go(&self) {
        self.notes.pass.add_permits(1_000_000);
    }
}

enum Sent {
    Text(&'static str),
    Started(&'static str),
    Stopped(&'static str),
    Gap(u64),
    Garbage(EventKind),
}

fn class() -> ClassName {
    ClassName::new("probe").expect("a valid name")
}

fn task(id: &str) -> TaskId {
    TaskId::new(id).expect("a valid name")
}

async fn eventually(mut holds: impl FnMut() -> bool, what: impl Fn() -> String) {
    let patience = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(DEADLINE, patience).await.is_err() {
        panic!("not in time: {}", what());
    }
}

/// A link to a worker, which tells what was acknowledged there.
struct Wired {
    channel: Channel,
    acked: UnboundedReceiver<u64>,
    _worker: Link,
}

struct Ears(mpsc::UnboundedSender<u64>);

impl LinkHandler for Ears {
    fn call(&self, _: IncomingCall) {}

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, _: &Channel, message: Message) {
        if let Message::EventAck(ack) = message {
            let _ = self.0.send(if ack.followed > 0 { ack.followed } else { ack.seq });
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {}
}

fn wired() -> Wired {
    let (ours, theirs) = duplex(64 * 1024);
    let start = |stream, role, side| {
        let facts = WireFacts {
            transport: Transport::Memory,
            remote: "memory:there".into(),
            local: "memory:here".into(),
            peer_addr: None,
            binding: None,
            certificate: CertificateCheck::Unchecked,
        };
        let peer = Peer { role, id: node("peer"), incarnation: run(1), version: 1, features: Vec::new() };
        let parts = LinkParts { established: Established { wire: Wire::new(stream, facts), peer, uri: None }, side };
        let (sender, acked) = mpsc::unbounded_channel();
        (Link::start(parts, LinkOptions { keepalive: None }, |_| Arc::new(Ears(sender))), acked)
    };
    let (ours, _) = start(ours, Role::Worker, Side::Listener);
    let (worker, acked) = start(theirs, Role::Control, Side::Dialler);
    Wired { channel: ours.open_channel().expect("there is room"), acked, _worker: worker }
}

impl Wired {
    async fn wait_acked(&mut self, expected: &[u64]) {
        for seq in expected {
            let acked = tokio::time::timeout(DEADLINE, self.acked.recv()).await.expect("an acknowledgement comes");
            assert_eq!(acked, Some(*seq));
        }
    }

    async fn assert_nothing_acked(&mut self) {
        // The link keeps the order: what was acknowledged before this ping has arrived when it is answered.
        self.channel.ping(Rank::default(), DEADLINE).await.expect("answered");
        assert!(self.acked.is_empty(), "{:?} was acknowledged", self.acked.recv().await);
    }
}

#[tokio::test]
async fn events_come_in_order_and_are_acknowledged_when_they_were_taken_in() {
    let (stage, mut worker) = (Stage::new(), wired());
    stage.hold();
    for (seq, text) in [(1, "a"), (2, "b")] {
        assert_eq!(stage.send(&worker.channel, 1, seq, Sent::Text(text)), Took::Queued);
    }
    eventually(|| stage.notes.begun.load(Ordering::SeqCst) == 1, || "the class has begun".into()).await;
    worker.assert_nothing_acked().await;
    stage.let_go();
    worker.wait_acked(&[1, 2]).await;
    stage.wait_told(&["1/1 a", "1/2 b"]).await;
}

#[tokio::test]
async fn what_comes_again_is_told_once_and_acknowledged_again() {
    let (stage, mut old) = (Stage::new(), wired());
    stage.send(&old.channel, 1, 1, Sent::Text("a"));
    stage.send(&old.channel, 1, 2, Sent::Text("b"));
    old.wait_acked(&[1, 2]).await;
    // These were lost with the link.
    let mut new = wired();
    assert_eq!(stage.resync(&new.channel, 1, 1, &[], false), Took::Ignored);
    assert_eq!(stage.send(&new.channel, 1, 1, Sent::Text("a")), Took::Ignored);
    assert_eq!(stage.send(&new.channel, 1, 2, Sent::Text("b")), Took::Ignored);
    assert_eq!(stage.send(&new.channel, 1, 3, Sent::Text("c")), Took::Queued);
    new.wait_acked(&[2, 2, 3]).await;
    stage.wait_told(&["1/1 a", "1/2 b", "1/3 c"]).await;
}

#[tokio::test]
async fn what_is_still_queued_is_acknowledged_on_the_channel_of_now() {
    let (stage, mut old) = (Stage::new(), wired());
    stage.hold();
    stage.send(&old.channel, 1, 1, Sent::Text("a"));
    let mut new = wired();
    assert_eq!(stage.send(&new.channel, 1, 1, Sent::Text("a")), Took::Ignored);
    new.assert_nothing_acked().await;
    stage.let_go();
    new.wait_acked(&[1]).await;
    old.assert_nothing_acked().await;
    stage.wait_told(&["1/1 a"]).await;
}

#[tokio::test]
async fn a_class_that_hangs_holds_one_window_however_often_the_worker_comes_back() {
    let stage = Stage::new();
    stage.hold();
    for _ in 0..20 {
        let worker = wired();
        stage.resync(&worker.channel, 1, 1, &[], false);
        for seq in 1..=256 {
            assert_ne!(stage.send(&worker.channel, 1, seq, Sent::Text("x")), Took::Refused);
        }
    }
    for _ in 0..QUEUE_MAX {
        stage.dispatcher.tell(run(1), NodeStatus::NotConnected);
    }
    assert_eq!(stage.send(&wired().channel, 1, 257, Sent::Text("x")), Took::Queued, "its own words leave room for the worker");
}

#[tokio::test]
async fn a_worker_that_sends_more_than_it_may_is_refused() {
    let (stage, worker) = (Stage::new(), wired());
    stage.hold();
    let mut seq = 1;
    while stage.send(&worker.channel, 1, seq, Sent::Text("x")) == Took::Queued {
        seq += 1;
    }
    assert!((QUEUE_MAX as u64..=QUEUE_MAX as u64 + 2).contains(&seq), "{seq}");
    // Refused is not lost: when there is room it comes again, and nothing is missing.
    stage.let_go();
    let last = format!("1/{} x", seq - 1);
    eventually(|| stage.told().last() == Some(&last), || "the queue is empty".into()).await;
    assert_eq!(stage.send(&worker.channel, 1, seq, Sent::Text("y")), Took::Queued);
    let expected = format!("1/{seq} y");
    eventually(|| stage.told().last() == Some(&expected), || "the refused one".into()).await;
}

#[tokio::test]
async fn gaps_are_clipped_to_what_is_missing() {
    let (stage, mut worker) = (Stage::new(), wired());
    stage.send(&worker.channel, 1, 1, Sent::Text("a"));
    stage.send(&worker.channel, 1, 2, Sent::Text("b"));
    // Its front had been sent while it still was events.
    assert_eq!(stage.send(&worker.channel, 1, 6, Sent::Gap(1)), Took::Queued);
    stage.send(&worker.channel, 1, 7, Sent::Text("c"));
    stage.wait_told(&["1/1 a", "1/2 b", "1/6 gap 3-6", "1/7 c"]).await;
    worker.wait_acked(&[1, 2, 6, 7]).await;
}

#[tokio::test]
async fn numbers_that_are_missing_without_a_word_are_told_as_a_gap() {
    let (stage, mut worker) = (Stage::new(), wired());
    stage.send(&worker.channel, 1, 1, Sent::Text("a"));
    stage.send(&worker.channel, 1, 5, Sent::Text("b"));
    stage.wait_told(&["1/1 a", "1/4 gap 2-4", "1/5 b"]).await;
    worker.wait_acked(&[1, 5]).await;
}

#[tokio::test]
async fn a_class_that_knows_nothing_gets_all_pages_of_the_resync_first() {
    let (stage, worker) = (Stage::new(), wired());
    assert_eq!(stage.resync(&worker.channel, 1, 8, &["t1"], true), Took::Ignored);
    assert_eq!(stage.resync(&worker.channel, 1, 8, &["t2"], false), Took::Queued);
    stage.send(&worker.channel, 1, 8, Sent::Text("a"));
    stage.wait_told(&["1/0 resync Some((1, 7)) [t1 t2]", "1/8 a"]).await;
}

#[tokio::test]
async fn tasks_of_a_worker_that_was_restarted_have_ended() {
    let (stage, worker) = (Stage::new(), wired());
    stage.send(&worker.channel, 1, 1, Sent::Started("t1"));
    stage.send(&worker.channel, 1, 2, Sent::Started("t2"));
    stage.send(&worker.channel, 1, 3, Sent::Stopped("t1"));
    stage.dispatcher.tell(run(1), NodeStatus::NotConnected);
    stage.dispatcher.new_incarnation(run(2));
    stage.dispatcher.tell(run(2), NodeStatus::Ready);
    stage.send(&worker.channel, 2, 1, Sent::Text("hello"));
    stage
        .wait_told(&[
            "1/1 started t1",
            "1/2 started t2",
            "1/3 stopped t1 normal",
            "1/0 status not_connected",
            "1/0 stopped t2 node_restarted",
            "2/0 status ready",
            "2/0 resync None []",
            "2/1 hello",
        ])
        .await;
}

#[tokio::test]
async fn a_task_whose_end_was_not_delivered_ends_with_its_worker() {
    let (stage, worker) = (Stage::new(), wired());
    stage.send(&worker.channel, 1, 1, Sent::Started("t1"));
    // It has ended, the worker says so in its resync, but dies before it sends the event.
    stage.resync(&wired().channel, 1, 2, &[], false);
    stage.dispatcher.new_incarnation(run(2));
    stage.resync(&worker.channel, 2, 1, &["t9"], false);
    stage.wait_told(&["1/1 started t1", "1/0 stopped t1 node_restarted", "2/0 resync None [t9]"]).await;
    stage.dispatcher.new_incarnation(run(3));
    stage.wait_told(&["1/1 started t1", "1/0 stopped t1 node_restarted", "2/0 resync None [t9]", "2/0 stopped t9 node_restarted"]).await;
}

#[tokio::test]
async fn an_incarnation_that_was_not_taken_is_not_heard() {
    let (stage, mut worker, mut clone) = (Stage::new(), wired(), wired());
    stage.send(&worker.channel, 1, 1, Sent::Started("t1"));
    // A node with the same id and another incarnation, or what a restarted one left on its way.
    assert_eq!(stage.send(&clone.channel, 2, 1, Sent::Text("me")), Took::Ignored);
    assert_eq!(stage.resync(&clone.channel, 2, 1, &["t5"], false), Took::Ignored);
    stage.send(&worker.channel, 1, 2, Sent::Text("still here"));
    stage.wait_told(&["1/1 started t1", "1/2 still here"]).await;
    worker.wait_acked(&[1, 2]).await;
    clone.assert_nothing_acked().await;
    stage.dispatcher.new_incarnation(run(2));
    assert_eq!(stage.send(&worker.channel, 1, 3, Sent::Text("late")), Took::Ignored);
}

#[tokio::test]
async fn events_of_a_dead_incarnation_are_not_acknowledged_to_its_successor() {
    let (stage, worker) = (Stage::new(), wired());
    stage.hold();
    stage.send(&worker.channel, 1, 7, Sent::Text("old"));
    stage.dispatcher.new_incarnation(run(2));
    let mut restarted = wired();
    stage.send(&restarted.channel, 2, 1, Sent::Text("new"));
    stage.let_go();
    restarted.wait_acked(&[1]).await;
    restarted.assert_nothing_acked().await;
    stage.wait_told(&["1/0 resync Some((1, 6)) []", "1/7 old", "2/0 resync None []", "2/1 new"]).await;
}

#[tokio::test]
async fn a_handler_that_panics_or_cannot_read_counts_as_having_taken_it_in() {
    let (stage, mut worker) = (Stage::new(), wired());
    stage.send(&worker.channel, 1, 1, Sent::Text("panic"));
    stage.send(&worker.channel, 1, 2, Sent::Garbage(EventKind::Class));
    stage.send(&worker.channel, 1, 3, Sent::Garbage(EventKind::Builtin));
    stage.send(&worker.channel, 1, 4, Sent::Garbage(EventKind::Gap));
    stage.send(&worker.channel, 1, 5, Sent::Text("a"));
    worker.wait_acked(&[1, 2, 3, 4, 5]).await;
    stage.wait_told(&["1/4 gap 4-4", "1/5 a"]).await;
}

#[tokio::test]
async fn live_subscribers_see_each_event_once() {
    let (mut stage, worker) = (Stage::new(), wired());
    stage.dispatcher.tell(run(1), NodeStatus::Ready);
    stage.resync(&worker.channel, 1, 3, &[], false);
    for seq in [3, 4, 3, 4] {
        stage.send(&worker.channel, 1, seq, Sent::Text("x"));
    }
    stage.resync(&worker.channel, 1, 8, &[], false);
    stage.send(&worker.channel, 1, 8, Sent::Text("y"));
    stage.wait_told(&["1/0 resync Some((1, 2)) []", "1/3 x", "1/4 x", "1/0 resync Some((5, 7)) []", "1/8 y"]).await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let record = tokio::time::timeout(DEADLINE, stage.live.next()).await.expect("one more comes").expect("open").expect("no error");
        seen.push(match record.event {
            EventBody::Class(_) => format!("{} {}", record.class, record.seq),
            EventBody::Nkcluster(BuiltinEvent::Gap { from, to }) => format!("{} gap {from}-{to}", record.class),
            EventBody::Nkcluster(BuiltinEvent::NodeStatus(status)) => format!("{} {status}", record.class),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(seen, ["core ready", "probe 3", "probe 4", "probe gap 5-7", "probe 8"]);
}

#[tokio::test]
async fn those_who_follow_do_not_wait_for_a_class_that_hangs() {
    let (mut stage, mut worker) = (Stage::new(), wired());
    stage.hold();
    for seq in 1..=256 {
        assert_eq!(stage.send(&worker.channel, 1, seq, Sent::Text("x")), Took::Queued);
    }
    for seq in 257..=1000 {
        assert_eq!(stage.send_to(&worker.channel, 1, seq, Sent::Text("x"), Audience::Followers), Took::Queued);
    }
    for seq in 1..=1000 {
        let record = tokio::time::timeout(DEADLINE, stage.live.next()).await.expect("one more comes").expect("open").expect("no error");
        assert_eq!((record.seq, record.class), (seq, class()));
    }
    // The worker is told how far they are, and goes on.
    worker.wait_acked(&[257, 321, 385]).await;
    stage.let_go();
    let mut acked = 0;
    while acked != 256 {
        acked = tokio::time::timeout(DEADLINE, worker.acked.recv()).await.expect("acknowledged").expect("open");
    }
    assert_eq!(stage.send(&worker.channel, 1, 257, Sent::Text("y")), Took::Queued, "again, for the class");
    worker.wait_acked(&[257]).await;
    assert_eq!(stage.told().last().map(String::as_str), Some("1/257 y"));
    assert_eq!(stage.told().len(), 257);
    // Live it was seen already: what comes next is what nobody has seen.
    stage.send_to(&worker.channel, 1, 1001, Sent::Text("z"), Audience::Followers);
    let record = tokio::time::timeout(DEADLINE, stage.live.next()).await.expect("one more comes").expect("open").expect("no error");
    assert_eq!(record.seq, 1001);
}

#[tokio::test]
async fn the_classes_of_a_worker_are_bounded() {
    let (stage, worker) = (Stage::new(), wired());
    let offer = |number: usize| {
        let class = ClassName::new(format!("c{number}")).expect("a valid name");
        stage.dispatcher.event(
            &worker.channel,
            run(1),
            EventHead { seq: 1, time_ms: 0, kind: EventKind::Class, class, task: None, audience: Default::default() },
            Bytes::new(),
        )
    };
    for number in 0..CLASSES_MAX {
        assert_eq!(offer(number), Took::Queued);
    }
    assert_eq!(offer(CLASSES_MAX), Took::Refused);
}
