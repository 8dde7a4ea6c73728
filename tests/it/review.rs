//! What a reader of the code asked: links that flap, peers that speak out of turn, stops that must lose nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, EventBody, EventFilter};
use nkcluster::config::Config;
use nkcluster::job::{Classes, TypedCalls};
use nkcluster::node::Node;
use nkcluster::proto::auth::Role;
use nkcluster::proto::head::{EventHead, EventKind};
use nkcluster::proto::identity::Rank;
use nkcluster::proto::message::{Adopt, Adopted, BuiltinEvent, Fenced, Message, Resync, Update};
use nkcluster::proto::session::Side;
use nkcluster::transport::memory::Flow;
use nkcluster::types::{ClassName, NodeStatus, NodeUri, Payload, Secret};

use crate::classes::{Ask, Probe, Spec, Tell};
use crate::harness::{
    C1, MemoryCluster, TIMEOUT, connect_options, eventually, eventually_eq, node_id, once, soon, task_id, uri, wait_status, worker_config,
};
use crate::raw::{RawLink, RawListener, dial, party};

const W1: &str = "nkcluster://w1;transport=memory";

fn probe_class() -> ClassName {
    ClassName::new("probe").expect("a name")
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("event {number}")).collect()
}

async fn ask(cluster: &Cluster, request: Ask) -> nkcluster::Result<String> {
    cluster.ask::<Probe>(&node_id("w1"), &request, once()).await
}

/// A cluster whose links last on a busy machine too: no ping is late.
async fn quiet(classes: Classes) -> MemoryCluster {
    MemoryCluster::start_with(classes, |config| config.ping_time = Duration::from_secs(60)).await
}

/// Cuts the links of the worker; returns when it has been adopted again.
async fn flap(c: &MemoryCluster) {
    let term = c.info("w1").await.proxies[0].term;
    c.net.cut("w1", "c1");
    eventually("a new term", async || c.info("w1").await.proxies[0].term > term).await;
    c.wait_status("w1", NodeStatus::Ready).await;
}

#[tokio::test]
async fn a_slow_class_costs_its_worker_nothing_however_often_the_link_flaps() {
    let (probe, other) = (Probe::<false>::new(), Probe::<true>::new());
    let classes = || Classes::new().with_tasks(probe.clone()).with_tasks(other.clone());
    let c = MemoryCluster::start(classes()).await;
    let _worker = c.worker("w1", classes()).await;
    probe.taking.close();
    ask(&c.cluster, Ask::Emit(texts(1000))).await.expect("emitted");
    probe.taking.entered(1).await;
    for _ in 0..12 {
        flap(&c).await;
    }
    c.cluster.ask::<Probe<true>>(&node_id("w1"), &Ask::Emit(vec!["two".into()]), once()).await.expect("emitted");
    eventually("the other class goes on", async || other.told("w1").contains(&"two".to_owned())).await;
    probe.taking.open();
    let events = || probe.told("w1").into_iter().filter(|text| text.starts_with("event")).collect::<Vec<_>>();
    eventually_eq(|| events().len(), 1000).await;
    assert_eq!(events(), texts(1000));
    assert_eq!(probe.told("w1").last().map(String::as_str), Some("event 999"));
}

#[tokio::test]
async fn events_of_a_peer_that_was_not_adopted_are_nobodys() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let _worker = c.worker("w1", probe.classes()).await;
    c.cluster.start::<Probe>(&node_id("w1"), &Spec::Future, once().with_task_id(task_id("t1"))).await.expect("started");
    probe.wait_told("w1", &["started t1"]).await;
    let mut clone = dial(&c.net, &party(Role::Worker, "w1").await, C1, Role::Control).await.expect("proved");
    clone.introduce(Vec::new());
    let channel = clone.link.channel_zero();
    channel.message(&Message::Resync(Resync { class: probe_class(), next_seq: 9, tasks: vec![task_id("t9")], more: false }));
    let head = EventHead { seq: 9, time_ms: 0, kind: EventKind::Class, class: probe_class(), task: None, audience: Default::default() };
    channel.event(&head, &Payload::encode(&"a lie").expect("encodes").into_bytes());
    assert_eq!(clone.closed().await.code().name(), "connection_failed");
    ask(&c.cluster, Ask::Emit(vec!["the truth".into()])).await.expect("emitted");
    probe.wait_told("w1", &["started t1", "the truth"]).await;
}

#[tokio::test]
async fn a_worker_that_is_met_in_the_middle_of_its_life_is_introduced_to_its_classes() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let worker = c.worker("w1", probe.classes()).await;
    ask(&c.cluster, Ask::Emit(vec!["first life".into()])).await.expect("emitted");
    probe.wait_told("w1", &["first life"]).await;
    c.net.set_refused("w1", "c1", true);
    drop(worker);
    c.wait_status("w1", NodeStatus::NotConnected).await;
    // Its second life began under another control node, which has taken in what there was.
    c.net.set_refused("w1", "c1", false);
    let mut second = dial(&c.net, &party(Role::Worker, "w1").await, C1, Role::Control).await.expect("proved");
    let channel = second.join(Vec::new()).await;
    c.wait_status("w1", NodeStatus::Ready).await;
    channel.message(&Message::Resync(Resync { class: probe_class(), next_seq: 1, tasks: vec![task_id("t1")], more: true }));
    channel.message(&Message::Resync(Resync { class: probe_class(), next_seq: 1, tasks: vec![task_id("t2")], more: false }));
    eventually_eq(|| probe.told("w1").last().cloned(), Some("resync None [t1 t2]".to_owned())).await;
}

#[tokio::test]
async fn a_worker_that_stops_answers_the_requests_that_it_has_begun() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let worker = c.worker("w1", probe.classes()).await;
    let held = tokio::spawn({
        let cluster = c.cluster.clone();
        async move { ask(&cluster, Ask::Hold).await }
    });
    probe.work.entered(1).await;
    let stopping = tokio::spawn(worker.stop());
    // It takes nothing new meanwhile, and says so.
    let mut refused = None;
    eventually("new calls are refused", async || {
        refused = ask(&c.cluster, Ask::Count).await.err();
        refused.is_some()
    })
    .await;
    assert_eq!(refused.map(|error| (error.code().name().to_owned(), error.may_have_run())), Some(("shutting_down".to_owned(), false)));
    probe.work.open();
    assert_eq!(soon("the held call", held).await.expect("no panic").expect("answered"), "1");
    soon("the stop", stopping).await.expect("no panic");
}

#[tokio::test]
async fn a_worker_that_stops_does_not_wait_for_ever() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let worker = c.worker_with("w1", probe.classes(), |config| config.drain_timeout = Duration::from_millis(200)).await;
    let held = tokio::spawn({
        let cluster = c.cluster.clone();
        async move { ask(&cluster, Ask::Hold).await }
    });
    probe.work.entered(1).await;
    soon("the stop", worker.stop()).await;
    let cut = soon("the held call", held).await.expect("no panic").expect_err("cut off");
    assert_eq!((cut.code().name(), cut.may_have_run()), ("connection_failed", true));
}

#[tokio::test]
async fn a_control_node_that_stops_takes_in_the_last_events_of_its_own_tasks() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    c.cluster.start::<Probe>(&node_id("c1"), &Spec::Future, once().with_task_id(task_id("t1"))).await.expect("started");
    probe.wait_told("c1", &["started t1"]).await;
    soon("the stop", c.control.stop()).await;
    let told = probe.told("c1");
    assert!(told.contains(&"stopped t1 killed".to_owned()), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_control_node_that_stops_waits_until_its_answers_have_left() {
    let probe = Probe::<false>::new();
    let MemoryCluster { net, dir, control, cluster } = MemoryCluster::start(probe.classes()).await;
    let worker = Node::start_in(&net, worker_config(&dir, "w1", C1), probe.classes()).await.expect("starts");
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    let mut options = connect_options(vec![uri(C1)]);
    options.memory = Some(net.node("admin"));
    let admin = Cluster::connect(options).await.expect("connects");
    // The way to the client is congested for a while, though not for as long as a stop may take.
    net.set_flow("c1", "admin", Flow::Frozen);
    let large = tokio::spawn(async move { ask(&admin, Ask::Bytes(1 << 20)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopping = tokio::spawn(control.stop());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    net.set_flow("c1", "admin", Flow::Open);
    assert_eq!(soon("the answer", large).await.expect("no panic").expect("answered").len(), 1 << 20);
    soon("the stop", stopping).await.expect("no panic");
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_whose_holder_is_silent_looks_for_another_until_it_has_one() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    // A control node whose proxy hangs: its link lives and answers pings, but nobody pings the worker.
    let door = RawListener::bind(&c.net, "nkcluster://c2;transport=memory", party(Role::Control, "c2").await).await;
    let config = worker_config(&c.dir, "w1", "nkcluster://c2;transport=memory");
    let incarnation = |link: &RawLink| link.link.peer().incarnation;
    let _worker = Node::start_in(&c.net, config, probe.classes()).await.expect("starts");
    let mut first = RawLink::start(door.accept().await.expect("proved"), Side::Listener);
    let term = first.message(|_, message| if let Message::Describe(describe) = message { Some(describe.term) } else { None }).await;
    let adopt = Adopt {
        worker_incarnation: incarnation(&first),
        seen_term: term,
        owner: node_id("c2"),
        owner_incarnation: Default::default(),
        rank: Rank::default(),
        ticket: None,
        ping_ms: 0,
    };
    let channel = first.link.open_channel().expect("open");
    channel.message(&Message::Adopt(adopt));
    first.message(|_, message| matches!(message, Message::Adopted(Adopted::Granted { .. })).then_some(())).await;
    for _ in 0..3 {
        // Each attempt of the worker finds a door and nobody behind it.
        drop(door.accept().await.expect("proved"));
    }
}

#[tokio::test]
async fn a_worker_that_was_attached_is_found_again_at_that_address() {
    let c = MemoryCluster::start(Classes::new()).await;
    let door = RawListener::bind(&c.net, W1, party(Role::Worker, "w1").await).await;
    // Behind its balancer the worker knows only an address that nobody else can reach.
    let inside: Vec<NodeUri> = vec![uri("nkcluster://inside;transport=memory")];
    let address = uri(W1);
    let attached = c.cluster.attach(&address, TIMEOUT);
    let first = async {
        let mut link = RawLink::start(door.accept().await.expect("proved"), Side::Listener);
        link.join(inside.clone()).await;
        link
    };
    let (attached, first) = tokio::join!(attached, first);
    attached.expect("attached");
    c.net.cut("c1", "w1");
    let mut second = RawLink::start(door.accept().await.expect("proved"), Side::Listener);
    second.join(inside).await;
    c.wait_status("w1", NodeStatus::Ready).await;
    drop(first);
}

#[tokio::test]
async fn a_worker_that_does_not_introduce_itself_is_not_kept() {
    let c = MemoryCluster::start(Classes::new()).await;
    let door = RawListener::bind(&c.net, W1, party(Role::Worker, "w1").await).await;
    let address = uri(W1);
    let attached = c.cluster.attach(&address, Duration::from_millis(500));
    let (attached, link) = tokio::join!(attached, door.accept());
    attached.expect_err("it said nothing");
    let mut silent = RawLink::start(link.expect("proved"), Side::Listener);
    silent.closed().await;
}

#[tokio::test]
async fn the_own_worker_of_a_control_node_takes_nobodys_place() {
    let c = MemoryCluster::start_with(Classes::new(), |config: &mut Config| {
        config.max_connections = 1;
        config.accept_rate = 1;
    })
    .await;
    let admin = c.admin().await;
    assert_eq!(admin.info(&node_id("c1"), TIMEOUT).await.expect("answered").status, NodeStatus::Ready);
}

#[tokio::test]
async fn a_class_that_hangs_does_not_lock_its_operator_out() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let _worker = c.worker_with("w1", probe.classes(), |config| config.max_calls = 2).await;
    c.cluster.start::<Probe>(&node_id("w1"), &Spec::Future, once().with_task_id(task_id("t1"))).await.expect("started");
    let short = CallOptions::timeout(Duration::from_millis(50));
    for _ in 0..2 {
        c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Hold, short.clone()).await.expect_err("it hangs");
    }
    probe.work.entered(2).await;
    assert_eq!(ask(&c.cluster, Ask::Count).await.expect_err("full").code().name(), "busy");
    let class = probe_class();
    assert_eq!(c.cluster.tasks(&node_id("w1"), None, TIMEOUT).await.expect("listed").len(), 1);
    c.cluster.stop_task(&node_id("w1"), &class, &task_id("t1"), TIMEOUT).await.expect("stopped");
}

#[tokio::test]
async fn a_subscriber_that_was_slow_is_told_at_once_what_it_missed() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let _worker = c.worker("w1", probe.classes()).await;
    let filter = EventFilter { class: Some(probe_class()), node: None };
    let mut events = c.cluster.events(filter).await.expect("subscribed");
    ask(&c.cluster, Ask::Emit(texts(5000))).await.expect("emitted");
    eventually_eq(|| probe.told("w1").len(), 5000).await;
    // Nothing more happens in the cluster.
    let mut next = 1;
    while next <= 5000 {
        let record = soon("an event or a gap", events.next()).await.expect("it goes on").expect("an event");
        match record.event {
            EventBody::Nkcluster(BuiltinEvent::Gap { from, to }) => {
                assert_eq!(from, next);
                next = to + 1;
            }
            _ => {
                assert_eq!(record.seq, next);
                next += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_worker_that_is_forgotten_while_it_introduces_itself_comes_back() {
    let c = MemoryCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Classes::new()).await;
    for _ in 0..50 {
        // Wherever its new link is when it is forgotten again.
        eventually("it is known", async || c.cluster.forget(&node_id("w1"), TIMEOUT).await.is_ok()).await;
    }
    c.wait_status("w1", NodeStatus::Ready).await;
}

#[tokio::test]
async fn commands_that_wait_behind_one_that_hangs_are_answered_when_their_task_ends() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let _worker = c.worker("w1", probe.classes()).await;
    c.cluster.start::<Probe>(&node_id("w1"), &Spec::Future, once().with_task_id(task_id("t1"))).await.expect("started");
    let tell = |command: Tell| {
        let cluster = c.cluster.clone();
        tokio::spawn(async move {
            cluster.tell::<Probe>(&node_id("w1"), &task_id("t1"), &command, CallOptions::timeout(Duration::from_secs(3600))).await
        })
    };
    let hangs = tell(Tell::Hold("at last".into()));
    probe.work.entered(1).await;
    let waits = tell(Tell::Echo("too late".into()));
    ask(&c.cluster, Ask::Count).await.expect("the command is queued before");
    c.cluster.stop_task(&node_id("w1"), &probe_class(), &task_id("t1"), TIMEOUT).await.expect("stopped");
    let refused = soon("the waiting command", waits).await.expect("no panic").expect_err("its task has ended");
    assert_eq!((refused.code().name(), refused.may_have_run()), ("task_not_found", false));
    probe.work.open();
    assert_eq!(soon("the other", hangs).await.expect("no panic").expect("answered"), "at last");
}

#[tokio::test]
async fn a_peer_that_floods_its_proxy_is_cut_off_and_news_are_not_a_flood() {
    let c = quiet(Classes::new()).await;
    let mut honest = dial(&c.net, &party(Role::Worker, "w1").await, C1, Role::Control).await.expect("proved");
    honest.join(Vec::new()).await;
    let update =
        |tasks| Message::Update(Update { status: NodeStatus::Ready, meta: Default::default(), listen: Vec::new(), stats: None, tasks });
    for tasks in 1..=10_000 {
        honest.link.channel_zero().message(&update(tasks));
    }
    eventually("the last news", async || c.info("w1").await.tasks == 10_000).await;
    assert_eq!(c.info("w1").await.status, NodeStatus::Ready);
    let mut flood = dial(&c.net, &party(Role::Worker, "w2").await, C1, Role::Control).await.expect("proved");
    flood.join(Vec::new()).await;
    for term in 10..10_000 {
        flood.link.channel_zero().message(&Message::Fenced(Fenced { term, holder: None }));
    }
    assert_eq!(flood.closed().await.code().name(), "connection_failed");
}

#[tokio::test]
async fn a_task_that_its_class_does_not_get_started_can_be_stopped() {
    let probe = Probe::<false>::new();
    let c = quiet(probe.classes()).await;
    let worker = c.worker("w1", probe.classes()).await;
    let start = |id: &str| {
        let (cluster, options) = (c.cluster.clone(), CallOptions::timeout(Duration::from_secs(3600)).with_task_id(task_id(id)));
        tokio::spawn(async move { cluster.start::<Probe>(&node_id("w1"), &Spec::Slow, options).await })
    };
    let (first, second) = (start("t1"), start("t2"));
    probe.work.entered(2).await;
    c.cluster.stop_task(&node_id("w1"), &probe_class(), &task_id("t1"), TIMEOUT).await.expect("stopped");
    let stopped = soon("the start", first).await.expect("no panic").expect_err("stopped");
    assert_eq!((stopped.code().name(), stopped.may_have_run()), ("killed", true));
    assert_eq!(c.cluster.tasks(&node_id("w1"), None, TIMEOUT).await.expect("listed").len(), 1);
    // A process that stops does the same when its patience has ended.
    soon("the stop", worker.stop()).await;
    assert_eq!(soon("the start", second).await.expect("no panic").expect_err("stopped").code().name(), "killed");
    assert!(!probe.told("w1").iter().any(|text| text.contains("started")), "{:?}", probe.told("w1"));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_pings_rarely_is_not_taken_for_silent() {
    let c = MemoryCluster::start_with(Classes::new(), |config| config.ping_time = Duration::from_secs(60)).await;
    let _worker = c.worker_with("w1", Classes::new(), |config| config.ping_time = Duration::from_secs(1)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(c.info("w1").await.proxies[0].term, 1, "it has looked for nobody else");
    // Silence is still noticed, later.
    c.net.set_refused("w1", "c1", true);
    c.net.set_flow("c1", "w1", Flow::Frozen);
    c.net.set_flow("w1", "c1", Flow::Frozen);
    tokio::time::sleep(Duration::from_secs(180)).await;
    c.wait_status("w1", NodeStatus::NotConnected).await;
}

#[tokio::test]
async fn a_caller_may_wait_for_ever() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.worker("w1", probe.classes()).await;
    let admin = c.admin().await;
    for cluster in [&c.cluster, &admin] {
        let patient = CallOptions::timeout(Duration::MAX).with_retry();
        assert_eq!(cluster.ask::<Probe>(&node_id("w1"), &Ask::Echo("x".into()), patient).await.expect("answered"), "x");
        cluster.nodes(None, Duration::MAX).await.expect("answered");
        cluster.wait_status(&node_id("w1"), NodeStatus::Ready, Duration::MAX).await.expect("ready");
    }
}

#[tokio::test]
async fn what_an_operator_does_is_written_down_and_no_secret_with_it() {
    const SECRET: &str = r#"own; "words", \ and=more"#;
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let c = MemoryCluster::start(Classes::new()).await;
    let admin = c.admin().await;
    let _worker = c
        .start_worker("w1", Classes::new(), |config| {
            config.password = Secret::new(SECRET);
            config.cluster_addr.clear();
            config.listen = vec![uri(W1)];
        })
        .await;
    let quoted = SECRET.replace('\\', r"\\").replace('"', r#"\""#);
    let address = uri(&format!(r#"nkcluster://w1;transport=memory;password="{quoted}""#));
    for cluster in [&c.cluster, &admin] {
        assert_eq!(cluster.attach(&address, TIMEOUT).await.expect("attached"), node_id("w1"));
    }
    let label = "core".parse().expect("a label");
    admin.update_meta(&node_id("w1"), label, TIMEOUT).await.expect("updated");
    admin.forget(&node_id("w1"), TIMEOUT).await.expect("forgotten");
    let text = log.text();
    let audited: Vec<&str> = text.lines().filter(|line| line.contains("nkcluster::audit")).collect();
    // Who it was is found by the identity of its calls.
    let connected = audited.iter().find(|line| line.contains("client connected")).expect("who came");
    let client = connected.split("incarnation=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an incarnation");
    for what in ["connect nkcluster://w1", "update_meta core", "forget w1"] {
        assert!(audited.iter().any(|line| line.contains(what) && line.contains(client)), "{what} by {client}: {audited:#?}");
    }
    for secret in [SECRET, &quoted, crate::harness::PASSWORD] {
        assert!(!text.contains(secret), "a secret in the log");
    }
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
