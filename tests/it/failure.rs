//! What happens when things break (checklist A9), and defects of the original that must not come back (A13).

use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, EventBody, EventFilter};
use nkcluster::config::Config;
use nkcluster::job::{Classes, TypedCalls};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::proto::auth::Role;
use nkcluster::proto::message::BuiltinEvent;
use nkcluster::proto::session::Side;
use nkcluster::transport::memory::Flow;
use nkcluster::types::{NodeStatus, Payload};
use nkcluster::{Error, ErrorCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::classes::{Ask, How, Probe, Spec, Tell};
use crate::harness::{
    C1, DEADLINE, MemoryCluster, TIMEOUT, control_config, eventually, eventually_eq, kind, node_id, once, soon, task_id, uri, wait_status,
    worker_config,
};
use crate::raw::{RawLink, RawListener, dial, party};
use crate::relay::{Passes, Relay};

const W1: &str = "nkcluster://w1;transport=memory";

/// A cluster with one worker `w1` that only dials.
async fn start(probe: &Probe) -> (MemoryCluster, NodeHandle) {
    let c = MemoryCluster::start(probe.classes()).await;
    let worker = c.worker("w1", probe.classes()).await;
    (c, worker)
}

/// A worker that only listens, and was attached.
async fn listening_worker(c: &MemoryCluster, probe: &Probe) -> NodeHandle {
    let worker = c.start_worker("w1", probe.classes(), only_listens).await;
    c.cluster.attach(&uri(W1), TIMEOUT).await.expect("attached");
    worker
}

fn only_listens(config: &mut Config) {
    config.cluster_addr.clear();
    config.listen = vec![uri(W1)];
}

/// Cuts the links of the worker and lets nobody make another.
fn take_away(c: &MemoryCluster) {
    c.net.set_refused("w1", "c1", true);
    c.net.set_refused("c1", "w1", true);
    c.net.cut("w1", "c1");
}

fn give_back(c: &MemoryCluster) {
    c.net.set_refused("w1", "c1", false);
    c.net.set_refused("c1", "w1", false);
}

async fn ask(cluster: &Cluster, request: Ask) -> nkcluster::Result<String> {
    cluster.ask::<Probe>(&node_id("w1"), &request, once()).await
}

async fn echo(cluster: &Cluster, text: &str) {
    assert_eq!(ask(cluster, Ask::Echo(text.to_owned())).await.expect("answered"), text);
}

fn failed<T: std::fmt::Debug>(result: nkcluster::Result<T>) -> Error {
    result.expect_err("failed")
}

#[tokio::test]
async fn a_lost_connection_fails_its_calls_at_once() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let admin = c.admin().await;
    let cut = async {
        probe.work.entered(2).await;
        c.net.cut("w1", "c1");
    };
    let (own, admins, ()) = tokio::join!(ask(&c.cluster, Ask::Hold), ask(&admin, Ask::Hold), cut);
    assert_eq!(kind(&failed(own)), ("connection_failed", true));
    assert_eq!(kind(&failed(admins)), ("connection_failed", true));
    c.wait_status("w1", NodeStatus::Ready).await;
    echo(&admin, "and the next one passes").await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hangs_fails_its_calls_long_before_their_timeout() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let hang = async {
        probe.work.entered(1).await;
        c.net.set_flow("w1", "c1", Flow::Frozen);
    };
    let patient = CallOptions::timeout(Duration::from_secs(3600));
    let (w1, began) = (node_id("w1"), Instant::now());
    let (lost, ()) = tokio::join!(c.cluster.ask::<Probe>(&w1, &Ask::Hold, patient), hang);
    assert_eq!(kind(&failed(lost)), ("connection_failed", true));
    // A ping every 500 ms, late after 375 ms: this is the machine's clock of the runtime, which stands still otherwise.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn calls_to_a_worker_that_is_away_fail_at_once() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let admin = c.admin().await;
    take_away(&c);
    c.wait_status("w1", NodeStatus::NotConnected).await;
    for cluster in [&c.cluster, &admin] {
        // The calls would wait for an hour: only their kind of end is right.
        let patient = || CallOptions::timeout(Duration::from_secs(3600));
        let asked = soon("a request", cluster.ask::<Probe>(&node_id("w1"), &Ask::Count, patient())).await;
        assert_eq!(kind(&failed(asked)), ("not_connected", false));
        let started = soon("a task", cluster.start::<Probe>(&node_id("w1"), &Spec::Future, patient())).await;
        assert_eq!(kind(&failed(started)), ("not_connected", false));
        let (w1, t1, command) = (node_id("w1"), task_id("t1"), Tell::Echo(String::new()));
        let told = soon("a command", cluster.tell::<Probe>(&w1, &t1, &command, patient())).await;
        assert_eq!(kind(&failed(told)), ("not_connected", false));
    }
    assert_eq!(probe.executed(), 0);
    give_back(&c);
    c.wait_status("w1", NodeStatus::Ready).await;
    echo(&admin, "back").await;
}

#[tokio::test]
async fn a_call_that_may_be_tried_again_waits_for_the_worker() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    take_away(&c);
    c.wait_status("w1", NodeStatus::NotConnected).await;
    let back = async {
        tokio::task::yield_now().await;
        give_back(&c);
    };
    let w1 = node_id("w1");
    let (reply, ()) = tokio::join!(c.cluster.ask::<Probe>(&w1, &Ask::Count, CallOptions::timeout(DEADLINE).with_retry()), back);
    assert_eq!(reply.expect("answered when it is back"), "1");
}

#[tokio::test]
async fn a_worker_that_listens_is_dialled_again_until_it_answers() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = listening_worker(&c, &probe).await;
    c.net.cut("w1", "c1");
    eventually("it is dialled at once", async || c.net.links("c1", "w1") == 1).await;
    c.wait_status("w1", NodeStatus::Ready).await;
    take_away(&c);
    c.wait_status("w1", NodeStatus::NotConnected).await;
    give_back(&c);
    c.wait_status("w1", NodeStatus::Ready).await;
    echo(&c.cluster, "back").await;
}

#[tokio::test]
async fn a_worker_whose_new_link_dies_before_its_first_word_is_dialled_again() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let door = RawListener::bind(&c.net, W1, party(Role::Worker, "w1").await).await;
    let address = uri(W1);
    let attached = c.cluster.attach(&address, TIMEOUT);
    let first = async {
        let mut link = RawLink::start(door.accept().await.expect("proved"), Side::Listener);
        link.join(vec![uri(W1)]).await;
        link
    };
    let (attached, first) = tokio::join!(attached, first);
    attached.expect("attached");
    drop(first);
    c.net.cut("c1", "w1");
    // It is dialled at once and is gone before it has said a word, though not before it is trusted: the first ping comes.
    let mut second = door.accept().await.expect("proved");
    soon("a ping", second.wire.read_u8()).await.expect("a byte");
    drop(second);
    let mut third = RawLink::start(door.accept().await.expect("proved"), Side::Listener);
    third.join(vec![uri(W1)]).await;
    c.wait_status("w1", NodeStatus::Ready).await;
}

#[tokio::test]
async fn a_worker_that_only_dials_comes_back_by_itself() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let incarnation = c.info("w1").await.incarnation;
    for round in 0..3 {
        let term = c.info("w1").await.proxies[0].term;
        c.net.cut("w1", "c1");
        eventually("a new term", async || c.info("w1").await.proxies[0].term > term).await;
        c.wait_status("w1", NodeStatus::Ready).await;
        echo(&c.cluster, &format!("round {round}")).await;
    }
    assert_eq!(c.info("w1").await.incarnation, incarnation);
}

#[tokio::test]
async fn tasks_go_on_while_nobody_is_there_and_their_events_arrive_afterwards() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    for (id, spec) in [("stays", Spec::Future), ("ends", Spec::Actor)] {
        c.cluster.start::<Probe>(&node_id("w1"), &spec, once().with_task_id(task_id(id))).await.expect("started");
    }
    probe.wait_told("w1", &["started stays", "started ends"]).await;
    // The commands arrive, and then the link is gone: what the tasks do about them happens while nobody is there.
    c.net.set_flow("w1", "c1", Flow::Lost);
    for (id, command) in [("stays", Tell::Emit(vec!["one".into(), "two".into()])), ("ends", Tell::End(How::Normal))] {
        let short = CallOptions::timeout(Duration::from_millis(100));
        let lost = c.cluster.tell::<Probe>(&node_id("w1"), &task_id(id), &command, short).await;
        assert!(failed(lost).may_have_run());
    }
    take_away(&c);
    probe.wait_told("w1", &["started stays", "started ends", "status not_connected"]).await;
    c.net.set_flow("w1", "c1", Flow::Open);
    give_back(&c);
    c.wait_status("w1", NodeStatus::Ready).await;
    eventually_eq(|| probe.told("w1").len(), 7).await;
    let mut told = probe.told("w1");
    // That it is back is said by the control node itself, before, between or after what it brings.
    let back = told.iter().position(|text| text == "status ready").expect("it is back");
    told.remove(back);
    let expected = ["started stays", "started ends", "status not_connected", "one", "two", "stopped ends normal"];
    assert_eq!(told, expected);
    let tasks = c.cluster.tasks(&node_id("w1"), None, TIMEOUT).await.expect("listed");
    assert_eq!(tasks.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["stays"]);
}

#[tokio::test]
async fn a_worker_finds_another_control_node_when_its_own_is_silent() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let second = control_config(&c.dir, "c2", "nkcluster://c2;transport=memory");
    let second = Node::start_in(&c.net, second, probe.classes()).await.expect("starts");
    let second = second.cluster().expect("a control node");
    let mut config = worker_config(&c.dir, "w1", C1);
    config.cluster_addr = vec![uri(C1)];
    config.cluster_addr.push(uri("nkcluster://c2;transport=memory"));
    c.net.set_refused("w1", "c2", true);
    let _worker = Node::start_in(&c.net, config, probe.classes()).await.expect("starts");
    c.wait_status("w1", NodeStatus::Ready).await;
    c.cluster.start::<Probe>(&node_id("w1"), &Spec::Future, once().with_task_id(task_id("t1"))).await.expect("started");
    c.net.set_refused("w1", "c2", false);
    c.net.set_refused("w1", "c1", true);
    c.net.set_flow("w1", "c1", Flow::Frozen);
    c.net.set_flow("c1", "w1", Flow::Frozen);
    wait_status(&second, "w1", NodeStatus::Ready).await;
    echo(&second, "under a new master").await;
    let tasks = second.tasks(&node_id("w1"), None, TIMEOUT).await.expect("listed");
    assert_eq!(tasks.len(), 1, "its task has not noticed");
    // The old one wakes up: what it says is of an older term.
    c.net.set_flow("w1", "c1", Flow::Open);
    c.net.set_flow("c1", "w1", Flow::Open);
    c.wait_status("w1", NodeStatus::NotConnected).await;
    assert_eq!(kind(&failed(ask(&c.cluster, Ask::Count).await)), ("not_connected", false));
    echo(&second, "still under the new master").await;
}

#[tokio::test]
async fn a_node_that_is_dropped_cuts_everything() {
    let probe = Probe::<false>::new();
    let MemoryCluster { net, dir, control, cluster } = MemoryCluster::start(probe.classes()).await;
    let config = worker_config(&dir, "w1", C1);
    let worker = Node::start_in(&net, config, probe.classes()).await.expect("starts");
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    drop(worker);
    wait_status(&cluster, "w1", NodeStatus::NotConnected).await;
    let config = worker_config(&dir, "w2", C1);
    let _worker = Node::start_in(&net, config, probe.classes()).await.expect("starts");
    wait_status(&cluster, "w2", NodeStatus::Ready).await;
    let pending = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.ask::<Probe>(&node_id("w2"), &Ask::Hold, once()).await }
    });
    probe.work.entered(1).await;
    drop(control);
    let error = failed(soon("the pending call", pending).await.expect("no panic"));
    assert!(error.may_have_run(), "{error:?}");
    assert!(soon("another call", cluster.info(&node_id("w2"), TIMEOUT)).await.is_err());
    // The address is free, and whoever takes it over gets the worker.
    let again = control_config(&dir, "c1", C1);
    let again = Node::start_in(&net, again, probe.classes()).await.expect("starts");
    wait_status(&again.cluster().expect("a control node"), "w2", NodeStatus::Ready).await;
}

#[tokio::test]
async fn links_that_nobody_uses_end_with_their_node() {
    for stopped in [true, false] {
        let MemoryCluster { net, control, .. } = MemoryCluster::start(Classes::new()).await;
        // One never introduces itself, the other never lets itself be adopted.
        let mut silent = dial(&net, &party(Role::Worker, "w1").await, C1, Role::Control).await.expect("proved");
        let mut introduced = dial(&net, &party(Role::Worker, "w2").await, C1, Role::Control).await.expect("proved");
        introduced.introduce(Vec::new());
        match stopped {
            true => control.stop().await,
            false => drop(control),
        }
        silent.closed().await;
        introduced.closed().await;
    }
}

#[tokio::test]
async fn a_worker_that_is_gone_for_good_stays_not_connected_until_it_is_forgotten() {
    let probe = Probe::<false>::new();
    let (c, worker) = start(&probe).await;
    c.cluster.start::<Probe>(&node_id("w1"), &Spec::Future, once().with_task_id(task_id("t1"))).await.expect("started");
    worker.stop().await;
    let expected = ["started t1", "status stopping", "stopped t1 killed", "status stopped", "status not_connected"];
    probe.wait_told("w1", &expected).await;
    assert_eq!(c.info("w1").await.status, NodeStatus::NotConnected);
    assert_eq!(c.cluster.nodes(None, TIMEOUT).await.expect("answered").nodes.len(), 2);
    c.cluster.forget(&node_id("w1"), TIMEOUT).await.expect("forgotten");
    assert_eq!(kind(&failed(c.cluster.info(&node_id("w1"), TIMEOUT).await)), ("not_found", false));
    assert_eq!(kind(&failed(c.cluster.forget(&node_id("w1"), TIMEOUT).await)), ("not_found", false));
}

#[tokio::test]
async fn a_restarted_worker_ends_the_tasks_of_its_earlier_life() {
    let probe = Probe::<false>::new();
    let (c, worker) = start(&probe).await;
    c.cluster.start::<Probe>(&node_id("w1"), &Spec::Future, once().with_task_id(task_id("t1"))).await.expect("started");
    probe.wait_told("w1", &["started t1"]).await;
    // Killed, not stopped: nothing of it is told.
    take_away(&c);
    drop(worker);
    give_back(&c);
    let _again = c.worker("w1", probe.classes()).await;
    // Which of the last two comes first is not said.
    let mut expected = ["started t1", "status not_connected", "status ready", "stopped t1 node_restarted"].map(str::to_owned);
    expected.sort();
    let sorted = || {
        let mut told = probe.told("w1");
        told.sort();
        told
    };
    eventually_eq(sorted, expected.to_vec()).await;
    assert_eq!(probe.told("w1")[..2], ["started t1", "status not_connected"]);
}

#[tokio::test]
async fn another_node_at_the_address_of_a_worker_is_not_taken_for_it() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let worker = listening_worker(&c, &probe).await;
    worker.stop().await;
    let squatter = RawListener::bind(&c.net, W1, party(Role::Worker, "w2").await).await;
    for _ in 0..3 {
        // Whoever dials sees the wrong id before it has proved anything, and goes.
        squatter.accept().await.expect_err("no proof");
    }
    assert_eq!(c.info("w1").await.status, NodeStatus::NotConnected);
    assert_eq!(kind(&failed(c.cluster.info(&node_id("w2"), TIMEOUT).await)), ("not_found", false));
    drop(squatter);
    let _again = c.start_worker("w1", probe.classes(), only_listens).await;
    c.wait_status("w1", NodeStatus::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn latency_is_kept_for_a_bounded_number_of_pings() {
    let c = MemoryCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Classes::new()).await;
    c.net.set_delay("w1", "c1", Duration::from_millis(20));
    // A ping every 500 ms of a clock that runs by itself.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let info = c.info("w1").await;
    let latency = info.latency.expect("measured");
    assert_eq!(latency.count, 64);
    assert!(latency.min >= 20.0 && latency.p50 >= latency.min && latency.max >= latency.p99, "{latency:?}");
    assert_eq!(info.latency_ms, Some(latency.p50));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_wrong_is_told_and_kills_nothing() {
    const WRONG_MS: i64 = 3_600_000;
    let c = MemoryCluster::start(Classes::new()).await;
    // Every pong of the worker says that it is an hour later.
    let _relay = Relay::start(&c.net, "between", "c1", |_, frame| {
        if frame.kind == 17 {
            let time = frame.body[8..16].try_into().map(u64::from_be_bytes).expect("a time");
            frame.body[8..16].copy_from_slice(&(time + WRONG_MS.unsigned_abs()).to_be_bytes());
        }
        Passes::Yes
    });
    let _worker =
        c.worker_with("w1", Classes::new(), |config| config.cluster_addr = vec![uri("nkcluster://between;transport=memory")]).await;
    let term = c.info("w1").await.proxies[0].term;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let info = c.info("w1").await;
    let skew = info.clock_skew_ms.expect("measured");
    assert!((skew - WRONG_MS).abs() < 60_000, "{skew}");
    assert_eq!((info.status, info.proxies[0].term), (NodeStatus::Ready, term), "nothing has happened");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_finds_nobody_asks_less_and_less_often() {
    let c = MemoryCluster::start(Classes::new()).await;
    let door = c.net.listen("nobody").expect("free");
    let config = worker_config(&c.dir, "w1", "nkcluster://nobody;transport=memory");
    let _worker = Node::start_in(&c.net, config, Classes::new()).await.expect("starts");
    let mut at = Vec::new();
    for _ in 0..40 {
        drop(soon("an attempt", door.accept()).await);
        at.push(Instant::now());
    }
    let pauses: Vec<Duration> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let late = &pauses[20..];
    let (least, most) = (late.iter().min().expect("some"), late.iter().max().expect("some"));
    assert!(*least > pauses[0] && *most <= Duration::from_secs(30), "{pauses:?}");
    assert!(least != most, "a crowd of workers must not come at the same moment: {pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_dials_a_worker_that_is_away_in_pauses_that_differ() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let worker = listening_worker(&c, &probe).await;
    drop(worker);
    eventually("the address is free", async || c.net.listen("w1").is_ok()).await;
    let door = c.net.listen("w1").expect("free");
    let mut at = Vec::new();
    for _ in 0..30 {
        drop(soon("an attempt", door.accept()).await);
        at.push(Instant::now());
    }
    // proxy_connect_retry is 200 ms here.
    let pauses: Vec<Duration> = at.windows(2).map(|pair| pair[1] - pair[0]).skip(1).collect();
    assert!(pauses.iter().all(|pause| (150..=260).contains(&pause.as_millis())), "{pauses:?}");
    assert!(pauses.iter().min() != pauses.iter().max(), "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_that_start_at_once_are_all_answered() {
    const TASKS: usize = 600;
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let admin = c.admin().await;
    let mut starting = JoinSet::new();
    for number in 0..TASKS {
        let cluster = if number % 2 == 0 { c.cluster.clone() } else { admin.clone() };
        let spec = if number % 3 == 0 { Spec::Actor } else { Spec::Future };
        starting.spawn(async move { cluster.start::<Probe>(&node_id("w1"), &spec, once()).await });
    }
    let results = soon("every start", starting.join_all()).await;
    for result in results {
        result.expect("started");
    }
    assert_eq!(probe.executed(), TASKS);
    eventually_eq(|| probe.told("w1").len(), TASKS).await;
    assert_eq!(c.cluster.tasks(&node_id("w1"), None, TIMEOUT).await.expect("listed").len(), TASKS);
}

#[tokio::test(start_paused = true)]
async fn slow_handlers_delay_neither_pings_nor_other_calls() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let term = c.info("w1").await.proxies[0].term;
    let mut slow = JoinSet::new();
    for _ in 0..200 {
        let cluster = c.cluster.clone();
        slow.spawn(async move { cluster.ask::<Probe>(&node_id("w1"), &Ask::Hold, CallOptions::timeout(Duration::from_secs(3600))).await });
    }
    probe.work.entered(200).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let began = Instant::now();
    echo(&c.cluster, "beside them").await;
    c.cluster.ping(&node_id("w1"), TIMEOUT).await.expect("a round trip");
    assert_eq!(began.elapsed(), Duration::ZERO, "nothing waited for a timer");
    let info = c.info("w1").await;
    assert_eq!((info.status, info.proxies[0].term), (NodeStatus::Ready, term), "no ping was late");
    probe.work.open();
    assert!(slow.join_all().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_worker_that_is_full_says_so_and_answers_again_later() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.worker_with("w1", probe.classes(), |config| config.max_calls = 3).await;
    let mut slow = JoinSet::new();
    for _ in 0..3 {
        let cluster = c.cluster.clone();
        slow.spawn(async move { ask(&cluster, Ask::Hold).await });
    }
    probe.work.entered(3).await;
    assert_eq!(kind(&failed(ask(&c.cluster, Ask::Count).await)), ("busy", false));
    let (w1, request) = (node_id("w1"), Ask::Echo("patient".into()));
    let retried = c.cluster.ask::<Probe>(&w1, &request, CallOptions::timeout(DEADLINE).with_retry());
    let open = async {
        tokio::task::yield_now().await;
        probe.work.open();
    };
    let retried = tokio::join!(retried, open).0;
    assert_eq!(retried.expect("there is room again"), "patient");
    assert!(slow.join_all().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn requests_go_on_beside_a_stream_that_is_stalled() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let admin = c.admin().await;
    let class = "probe".parse().expect("a name");
    for cluster in [&c.cluster, &admin] {
        let hold = Payload::encode(&Ask::Hold).expect("encodes");
        let (answer, mut stream) = cluster.request_with_stream(&node_id("w1"), &class, hold, once()).await.expect("open");
        // Nobody reads at the other end: the credit runs out, and with it the buffers on the way.
        let chunk = vec![7; 64 * 1024];
        let mut written = 0_usize;
        while let Ok(wrote) = tokio::time::timeout(Duration::from_millis(300), stream.write(&chunk)).await {
            written += wrote.expect("the stream is open");
            assert!(written < 64 << 20, "somebody takes it all");
        }
        assert!(written > 0);
        for number in 0..50 {
            echo(cluster, &format!("{number} beside it")).await;
        }
        assert_eq!(ask(cluster, Ask::Bytes(1 << 20)).await.expect("answered").len(), 1 << 20);
        probe.work.open();
        answer.wait().await.expect("answered");
        // The handler has gone and never read it.
        let rest = soon("the end of the stream", async {
            loop {
                if let Err(error) = stream.write_all(&chunk).await {
                    return error;
                }
            }
        });
        rest.await;
        probe.work.close();
    }
}

#[tokio::test]
async fn events_that_nobody_could_take_arrive_later_in_order() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let texts = |range: std::ops::Range<u32>| range.map(|number| format!("event {number}")).collect::<Vec<_>>();
    ask(&c.cluster, Ask::Emit(texts(0..10))).await.expect("emitted");
    eventually_eq(|| probe.told("w1").len(), 10).await;
    // What the worker says from now on is lost, the acknowledgements of what it sends too.
    c.net.set_flow("w1", "c1", Flow::Lost);
    let short = CallOptions::timeout(Duration::from_millis(100));
    let emitted = c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Emit(texts(10..2000)), short).await;
    assert!(failed(emitted).may_have_run());
    c.net.set_flow("w1", "c1", Flow::Open);
    c.net.cut("w1", "c1");
    let events = || probe.told("w1").into_iter().filter(|text| text.starts_with("event")).collect::<Vec<_>>();
    eventually_eq(|| events().len(), 2000).await;
    assert_eq!(events(), texts(0..2000));
}

#[tokio::test]
async fn a_class_that_is_slow_with_its_events_stalls_only_itself() {
    let (probe, other) = (Probe::<false>::new(), Probe::<true>::new());
    let classes = || Classes::new().with_tasks(probe.clone()).with_tasks(other.clone());
    let c = MemoryCluster::start(classes()).await;
    let _worker = c.worker("w1", classes()).await;
    probe.taking.close();
    let texts: Vec<String> = (0..3000).map(|number| format!("event {number}")).collect();
    ask(&c.cluster, Ask::Emit(texts.clone())).await.expect("emitted");
    probe.taking.entered(1).await;
    echo(&c.cluster, "calls pass").await;
    c.cluster.ask::<Probe<true>>(&node_id("w1"), &Ask::Emit(vec!["two".into()]), once()).await.expect("emitted");
    other.wait_told("w1", &["two"]).await;
    // Not even a new connection changes that: nothing is lost, nothing comes twice.
    c.net.cut("w1", "c1");
    other.wait_told("w1", &["two", "status not_connected", "status ready"]).await;
    assert_eq!(probe.told("w1"), Vec::<String>::new());
    echo(&c.cluster, "calls still pass").await;
    probe.taking.open();
    let events = || probe.told("w1").into_iter().filter(|text| text.starts_with("event")).collect::<Vec<_>>();
    eventually_eq(|| events().len(), texts.len()).await;
    assert_eq!(events(), texts);
    assert_eq!(c.info("w1").await.status, NodeStatus::Ready);
}

#[tokio::test]
async fn a_subscriber_sees_what_it_asked_for_until_its_link_ends() {
    let (probe, other) = (Probe::<false>::new(), Probe::<true>::new());
    let classes = || Classes::new().with_tasks(probe.clone()).with_tasks(other.clone());
    let c = MemoryCluster::start(classes()).await;
    let _workers = [c.worker("w1", classes()).await, c.worker("w2", classes()).await];
    let admin = c.admin().await;
    let filter = EventFilter { class: Some("probe".parse().expect("a name")), node: Some(node_id("w1")) };
    let mut events = admin.events(filter).await.expect("subscribed");
    for (node, text) in [("w2", "not this"), ("w1", "one"), ("w1", "two")] {
        c.cluster.ask::<Probe>(&node_id(node), &Ask::Emit(vec![text.into()]), once()).await.expect("emitted");
    }
    c.cluster.ask::<Probe<true>>(&node_id("w1"), &Ask::Emit(vec!["nor this".into()]), once()).await.expect("emitted");
    for (seq, text) in [(1, "one"), (2, "two")] {
        let record = soon("an event", events.next()).await.expect("it goes on").expect("an event");
        assert_eq!((record.node.as_str(), record.class.as_str(), record.seq), ("w1", "probe", seq));
        assert_eq!(record.event, EventBody::Class(Payload::encode(&text).expect("encodes")));
    }
    c.net.cut("w1", "c1");
    for expected in [NodeStatus::NotConnected, NodeStatus::Ready] {
        let record = soon("an event", events.next()).await.expect("it goes on").expect("an event");
        assert_eq!(record.event, EventBody::Nkcluster(BuiltinEvent::NodeStatus(expected)));
    }
    c.net.cut("admin", "c1");
    let last = soon("the end", events.next()).await.expect("the reason");
    assert_eq!(failed(last).code(), &ErrorCode::ConnectionFailed);
    assert_eq!(soon("the end", events.next()).await, None);
}

#[tokio::test]
async fn a_control_node_that_stops_lets_calls_finish_and_refuses_new_ones() {
    let probe = Probe::<false>::new();
    let MemoryCluster { net, dir, control, cluster } = MemoryCluster::start(probe.classes()).await;
    let worker = Node::start_in(&net, worker_config(&dir, "w1", C1), probe.classes()).await.expect("starts");
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    let mut options = crate::harness::connect_options(vec![uri(C1)]);
    options.memory = Some(net.node("admin"));
    let admin = Cluster::connect(options).await.expect("connects");
    let held = tokio::spawn({
        let admin = admin.clone();
        async move { ask(&admin, Ask::Hold).await }
    });
    probe.work.entered(1).await;
    let stopping = tokio::spawn(control.stop());
    let mut refused = None;
    eventually("new calls are refused", async || {
        refused = ask(&admin, Ask::Count).await.err();
        refused.is_some()
    })
    .await;
    let refused = refused.expect("just seen");
    assert!([ErrorCode::ShuttingDown, ErrorCode::NoConnections].contains(refused.code()), "{refused}");
    probe.work.open();
    assert_eq!(soon("the held call", held).await.expect("no panic").expect("answered"), "1");
    soon("the stop", stopping).await.expect("no panic");
    worker.stop().await;
}
