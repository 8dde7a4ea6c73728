//! Connections of their own for calls that ask for one (checklist N7.7, N7.16, N9.6).

use std::time::Duration;

use bytes::Bytes;
use nkcluster::cluster::{Cluster, random_incarnation};
use nkcluster::config::Config;
use nkcluster::job::{JobClass, TypedCalls};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::proto::auth::Role;
use nkcluster::proto::head::{CallHead, Rank, Verb};
use nkcluster::proto::identity::{CallIdentity, Ticket};
use nkcluster::proto::message::{Adopt, Adopted, EventAck, ExclusiveBind, ExclusiveHere, Message};
use nkcluster::transfer::{FileCalls as _, RelPath, TransferId};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{Incarnation, NodeStatus, Payload};
use nkcluster::{Error, ErrorCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::classes::{Ask, Probe};
use crate::harness::{C1, MemoryCluster, TIMEOUT, connect_options, eventually, kind, node_id, once, soon, uri, worker_config};
use crate::raw::{RawLink, dial, party};

const W1: &str = "nkcluster://w1;transport=memory";

async fn start(probe: &Probe) -> (MemoryCluster, NodeHandle) {
    let c = MemoryCluster::start(probe.classes()).await;
    let worker = c.worker("w1", probe.classes()).await;
    (c, worker)
}

fn only_listens(config: &mut Config) {
    config.cluster_addr.clear();
    config.listen = vec![uri(W1)];
}

fn links(c: &MemoryCluster) -> usize {
    c.net.links("w1", "c1")
}

async fn echo(cluster: &Cluster, text: &str) {
    let reply = cluster.ask::<Probe>(&node_id("w1"), &Ask::Echo(text.to_owned()), once()).await;
    assert_eq!(reply.expect("answered"), text);
}

/// A request that waits at the gate.
fn hold(cluster: &Cluster) -> tokio::task::JoinHandle<Result<String, Error>> {
    let cluster = cluster.clone();
    tokio::spawn(async move { cluster.ask::<Probe>(&node_id("w1"), &Ask::Hold, once()).await })
}

#[tokio::test]
async fn a_worker_that_only_dials_is_asked_to_dial_once_more() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let before = c.info("w1").await;
    echo(&c.cluster, "shared").await;
    assert_eq!(links(&c), 1);
    for cluster in [c.cluster.exclusive(), c.admin().await.exclusive()] {
        for _ in 0..3 {
            echo(&cluster, "its own").await;
            assert_eq!(links(&c), 2, "one after the other they use the same one");
        }
    }
    let after = c.info("w1").await;
    assert_eq!((after.proxies, after.status), (before.proxies, NodeStatus::Ready), "it is no adoption");
}

#[tokio::test]
async fn a_worker_that_listens_is_dialled_once_more() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.start_worker("w1", probe.classes(), only_listens).await;
    c.cluster.attach(&uri(W1), TIMEOUT).await.expect("attached");
    echo(&c.cluster.exclusive(), "its own").await;
    assert_eq!(links(&c), 2);
}

#[tokio::test]
async fn the_worker_of_the_control_node_itself_has_exclusive_connections_too() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let cluster = c.cluster.exclusive();
        calls.spawn(async move { cluster.ask::<Probe>(&node_id("c1"), &Ask::Hold, once()).await });
    }
    probe.work.entered(8).await;
    probe.work.open();
    assert!(calls.join_all().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn an_url_may_ask_for_exclusive_connections() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let mut options = connect_options(vec![uri("nkcluster://c1;transport=memory;exclusive")]);
    options.memory = Some(c.net.node("admin"));
    let client = Cluster::connect(options).await.expect("connects");
    echo(&client, "its own").await;
    assert_eq!(links(&c), 2);
}

#[tokio::test]
async fn a_stream_keeps_its_connection_until_it_is_dropped() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let cluster = c.cluster.exclusive();
    let request = Payload::encode(&Ask::Echo("answered at once".to_owned())).expect("encodes");
    let class = Probe::<false>::NAME.parse().expect("a name");
    let (answer, stream) = cluster.request_with_stream(&node_id("w1"), &class, request, once()).await.expect("open");
    answer.wait().await.expect("answered");
    echo(&cluster, "beside the stream").await;
    assert_eq!(links(&c), 3, "the stream has the first one for itself");
    drop(stream);
    let (first, second) = (hold(&cluster), hold(&cluster));
    probe.work.entered(2).await;
    assert_eq!(links(&c), 3, "both are free again");
    probe.work.open();
    first.await.expect("runs").expect("answered");
    second.await.expect("runs").expect("answered");
}

#[tokio::test]
async fn files_travel_over_a_connection_of_their_own() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number >> 7) as u8).collect();
    let (from, to) = (c.dir.path().join("from"), c.dir.path().join("to"));
    std::fs::write(&from, &content).expect("written");
    let remote = RelPath::parse("there").expect("valid");
    let cluster = c.cluster.exclusive();
    cluster.send_file(&node_id("w1"), &from, &remote, TransferId::random(), TIMEOUT, |_| ()).await.expect("sent");
    assert_eq!(links(&c), 2);
    cluster.fetch_file(&node_id("w1"), &remote, &to, TransferId::random(), TIMEOUT, |_| ()).await.expect("fetched");
    assert_eq!(links(&c), 2);
    assert!(std::fs::read(&to).expect("there") == content);
}

#[tokio::test]
async fn losing_an_exclusive_connection_fails_its_calls_and_no_others() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let (shared, own) = (hold(&c.cluster), hold(&c.cluster.exclusive()));
    probe.work.entered(2).await;
    assert!(c.net.cut_one("w1", "c1", 1));
    let error = own.await.expect("runs").expect_err("its connection is gone");
    assert_eq!(kind(&error), ("connection_failed", true));
    assert_eq!(c.info("w1").await.status, NodeStatus::Ready);
    probe.work.open();
    assert!(shared.await.expect("runs").is_ok());
    echo(&c.cluster.exclusive(), "another one is made").await;
    assert_eq!(links(&c), 2);
}

#[tokio::test]
async fn losing_the_main_connection_does_not_fail_exclusive_calls() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let (shared, own) = (hold(&c.cluster), hold(&c.cluster.exclusive()));
    probe.work.entered(2).await;
    let term = c.info("w1").await.proxies[0].term;
    assert!(c.net.cut_one("w1", "c1", 0));
    let error = shared.await.expect("runs").expect_err("its connection is gone");
    assert_eq!(kind(&error), ("connection_failed", true));
    eventually("another adoption", async || {
        let info = c.info("w1").await;
        info.status == NodeStatus::Ready && info.proxies[0].term > term
    })
    .await;
    assert!(!own.is_finished());
    probe.work.open();
    own.await.expect("runs").expect("what was begun is answered");
    // The connection belongs to a term that is over: it is not used any more.
    echo(&c.cluster.exclusive(), "under the new term").await;
    assert_eq!(links(&c), 3);
}

#[tokio::test]
async fn without_an_exclusive_connection_the_call_goes_over_the_main_one() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    c.net.set_refused("w1", "c1", true);
    for _ in 0..3 {
        echo(&c.cluster.exclusive(), "shared").await;
    }
    assert_eq!(links(&c), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_brings_one_delays_only_the_first_call() {
    let c = MemoryCluster::start(Probe::<false>::new().classes()).await;
    let mut worker = dial(&c.net, &party(Role::Worker, "w1").await, C1, Role::Control).await.expect("proved");
    worker.join(Vec::new()).await;
    c.wait_status("w1", NodeStatus::Ready).await;
    let mut took = Vec::new();
    for _ in 0..2 {
        let began = tokio::time::Instant::now();
        let answer = c.cluster.exclusive().ask::<Probe>(&node_id("w1"), &Ask::Count, once()).await;
        // This worker drops its calls, which answers them: it came, over the only connection.
        assert_eq!(kind(&answer.expect_err("dropped")), ("process_failed", true));
        took.push(began.elapsed());
    }
    assert!(took[0] < Duration::from_secs(4) && took[1] < Duration::from_millis(10), "{took:?}");
}

#[tokio::test]
async fn the_number_of_exclusive_connections_is_bounded_and_the_rest_share() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let calls: Vec<_> = (0..20).map(|_| hold(&c.cluster.exclusive())).collect();
    probe.work.entered(20).await;
    assert_eq!(links(&c), 1 + 8);
    probe.work.open();
    for call in calls {
        call.await.expect("runs").expect("answered");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_exclusive_connection_is_closed_after_a_while() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let cluster = c.cluster.exclusive();
    echo(&cluster, "its own").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(links(&c), 2);
    echo(&cluster, "again").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(links(&c), 2, "it was used meanwhile");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(links(&c), 1);
    echo(&cluster, "a new one").await;
    assert_eq!(links(&c), 2);
}

#[tokio::test]
async fn a_forgotten_worker_loses_its_exclusive_connections_too() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.start_worker("w1", probe.classes(), only_listens).await;
    c.cluster.attach(&uri(W1), TIMEOUT).await.expect("attached");
    let own = hold(&c.cluster.exclusive());
    probe.work.entered(1).await;
    c.cluster.forget(&node_id("w1"), TIMEOUT).await.expect("forgotten");
    assert_eq!(kind(&own.await.expect("runs").expect_err("cut")), ("connection_failed", true));
    eventually("no links", async || links(&c) == 0).await;
}

#[tokio::test]
async fn a_connection_that_nobody_asked_for_is_closed() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let incarnation = c.info("w1").await.incarnation.expect("known");
    for incarnation in [incarnation, random_incarnation()] {
        let clone = crate::raw::party_with(Role::Worker, "w1", incarnation, |_| ()).await;
        let mut link = dial(&c.net, &clone, C1, Role::Control).await.expect("proved");
        link.link.channel_zero().message(&Message::ExclusiveHere(ExclusiveHere { request: 7, refused: None }));
        link.closed().await;
    }
    echo(&c.cluster, "unharmed").await;
}

/// A worker that only listens, and a control node by hand that holds it.
struct Held {
    worker: NodeHandle,
    net: MemoryNet,
    incarnation: Incarnation,
    main: RawLink,
    _dir: tempfile::TempDir,
}

fn call() -> CallHead {
    CallHead {
        verb: Verb::Request,
        timeout_ms: 10_000,
        identity: CallIdentity { edge: random_incarnation(), number: 1 },
        retry: false,
        exclusive: false,
        hops: 0,
        incarnation: Incarnation::default(),
        node: None,
        class: Some(Probe::<false>::NAME.parse().expect("a name")),
        task: None,
    }
}

fn asked() -> Bytes {
    Payload::encode(&Ask::Count).expect("encodes").into_bytes()
}

impl Held {
    async fn start(probe: &Probe) -> Self {
        let (net, dir) = (MemoryNet::new(), tempfile::tempdir().expect("a directory"));
        let mut config = worker_config(&dir, "w1", C1);
        only_listens(&mut config);
        let worker = Node::start_in(&net, config, probe.classes()).await.expect("starts");
        let main = dial(&net, &party(Role::Control, "c9").await, W1, Role::Worker).await.expect("proved");
        let incarnation = main.link.peer().incarnation;
        Self { worker, net, incarnation, main, _dir: dir }
    }

    /// Adopts the worker on a new channel of the main link.
    async fn adopt(&mut self, seen_term: u64) -> (u64, Ticket) {
        let channel = self.main.link.open_channel().expect("open");
        channel.message(&Message::Adopt(Adopt {
            worker_incarnation: self.incarnation,
            seen_term,
            owner: node_id("c9"),
            owner_incarnation: random_incarnation(),
            rank: Rank { view: u32::try_from(seen_term).expect("small") + 1, hash: 0 },
            ticket: None,
            ping_ms: 60_000,
        }));
        self.main
            .message(|_, message| match message {
                Message::Adopted(Adopted::Granted { term, ticket }) => Some((term, ticket)),
                _ => None,
            })
            .await
    }

    async fn side_link(&self) -> RawLink {
        dial(&self.net, &party(Role::Control, "c9").await, W1, Role::Worker).await.expect("proved")
    }
}

#[tokio::test]
async fn calls_on_a_connection_are_fenced_unless_the_holder_has_bound_it() {
    let probe = Probe::<false>::new();
    let mut held = Held::start(&probe).await;
    let (term, ticket) = held.adopt(0).await;
    let wrong = [(term, Ticket::from_bytes([9; 16])), (term + 1, ticket), (term - 1, ticket)];
    for (term, ticket) in wrong {
        let side = held.side_link().await;
        let channel = side.link.open_channel().expect("open");
        channel.message(&Message::ExclusiveBind(ExclusiveBind { term, ticket }));
        let answer = channel.call(&call(), &asked(), TIMEOUT).await;
        assert_eq!(kind(&answer.expect_err("not bound")), ("fenced", false));
    }
    assert_eq!(probe.executed(), 0);
    let side = held.side_link().await;
    let (bound, other) = (side.link.open_channel().expect("open"), side.link.open_channel().expect("open"));
    bound.message(&Message::ExclusiveBind(ExclusiveBind { term, ticket }));
    bound.call(&call(), &asked(), TIMEOUT).await.expect("carried out");
    let answer = other.call(&call(), &asked(), TIMEOUT).await;
    assert_eq!(kind(&answer.expect_err("another channel of the same link")), ("fenced", false));
    assert_eq!(probe.executed(), 1);
    drop(held.worker);
}

#[tokio::test]
async fn a_new_term_fences_what_was_bound_under_the_one_before() {
    let probe = Probe::<false>::new();
    let mut held = Held::start(&probe).await;
    let (term, ticket) = held.adopt(0).await;
    let side = held.side_link().await;
    let channel = side.link.open_channel().expect("open");
    channel.message(&Message::ExclusiveBind(ExclusiveBind { term, ticket }));
    channel.call(&call(), &asked(), TIMEOUT).await.expect("carried out");
    held.adopt(term).await;
    let answer = channel.call(&call(), &asked(), TIMEOUT).await;
    assert_eq!(kind(&answer.expect_err("of an older term")), ("fenced", false));
    channel.message(&Message::ExclusiveBind(ExclusiveBind { term, ticket }));
    let answer = channel.call(&call(), &asked(), TIMEOUT).await;
    assert_eq!(kind(&answer.expect_err("and not to be bound again")), ("fenced", false));
    assert_eq!(probe.executed(), 1);
}

#[tokio::test]
async fn a_bound_channel_is_good_for_calls_alone() {
    let probe = Probe::<false>::new();
    let mut held = Held::start(&probe).await;
    let (term, ticket) = held.adopt(0).await;
    let mut side = held.side_link().await;
    let channel = side.link.open_channel().expect("open");
    channel.message(&Message::ExclusiveBind(ExclusiveBind { term, ticket }));
    channel.message(&Message::EventAck(EventAck { class: "core".parse().expect("a name"), seq: 1, followed: 0 }));
    let fenced = side
        .message(|_, message| match message {
            Message::Fenced(fenced) => Some(fenced),
            _ => None,
        })
        .await;
    assert_eq!((fenced.term, fenced.holder), (term, Some(node_id("c9"))));
}

#[tokio::test]
async fn a_worker_that_was_dialled_says_that_it_knows_no_way() {
    let probe = Probe::<false>::new();
    let mut held = Held::start(&probe).await;
    held.adopt(0).await;
    let channel = held.main.link.channel(1);
    channel.message(&Message::ExclusiveDial(nkcluster::proto::message::ExclusiveDial { request: 5 }));
    let refused = held
        .main
        .message(|_, message| match message {
            Message::ExclusiveHere(here) => Some(here),
            _ => None,
        })
        .await;
    assert_eq!((refused.request, refused.refused.expect("refused").code()), (5, &ErrorCode::NoConnections));
}

#[tokio::test]
async fn a_stream_on_its_own_connection_passes_bytes_both_ways() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let class = Probe::<false>::NAME.parse().expect("a name");
    let request = Payload::encode(&Ask::Hold).expect("encodes");
    let admin = c.admin().await.exclusive();
    let (answer, mut stream) = admin.request_with_stream(&node_id("w1"), &class, request, once()).await.expect("open");
    stream.write_all(b"nobody reads this").await.expect("written");
    probe.work.entered(1).await;
    // Its own connection goes: the call fails, and its stream ends by an error.
    assert!(c.net.cut_one("w1", "c1", 1));
    assert_eq!(kind(&soon("the answer", answer.wait()).await.expect_err("cut")), ("connection_failed", true));
    let mut rest = Vec::new();
    assert!(soon("the end", stream.read_to_end(&mut rest)).await.is_err());
    probe.work.open();
}
