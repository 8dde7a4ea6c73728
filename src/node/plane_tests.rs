//! Several control nodes: calls, streams and events that cross them, workers at the wrong one, workers that move. The views are set by hand.

mod lookup;
mod review;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;
use crate::cluster::{CallOptions, EventBody, EventFilter, Retry};
use crate::job::{
    Classes, CommandContext, EventContext, JobClass, JobEvent, JobEventKind, RequestContext, Started, TaskClass, TaskContext,
};
use crate::transport::MemoryNet;
use crate::types::{ClassName, NodeStatus, Payload, Secret, TaskId};

/// Far longer than anything here takes.
const FOREVER: Duration = Duration::from_secs(20);

/// Counts what is asked, echoes streams, and has tasks that tell numbers.
#[derive(Clone)]
struct Numbers {
    asked: Arc<AtomicU64>,
    started: Arc<AtomicU64>,
    /// Requests `Hold` wait until it is true.
    open: watch::Sender<bool>,
    /// What control nodes were told, in order, by worker.
    told: Arc<Mutex<BTreeMap<NodeId, Vec<u64>>>>,
    telling: Arc<AtomicBool>,
}

impl Numbers {
    fn new() -> Self {
        Self {
            asked: Arc::default(),
            started: Arc::default(),
            open: watch::Sender::new(false),
            told: Arc::default(),
            telling: Arc::new(AtomicBool::new(true)),
        }
    }

    fn told(&self, worker: &NodeId) -> Vec<u64> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).get(worker).cloned().unwrap_or_default()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Ask {
    Add(u64),
    Hold,
    Echo,
}

impl JobClass for Numbers {
    const NAME: &'static str = "numbers";
    type Request = Ask;
    type Reply = u64;

    async fn request(&self, mut ctx: RequestContext, request: Ask) -> Result<u64, Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match request {
            Ask::Add(number) => Ok(number + 1),
            Ask::Hold => {
                let _ = self.open.subscribe().wait_for(|open| *open).await;
                Ok(1)
            }
            Ask::Echo => {
                let mut stream = ctx.open_stream().expect("the caller sends one");
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.map_err(|error| Error::class("read", error.to_string()))?;
                stream.write_all(&bytes).await.map_err(|error| Error::class("write", error.to_string()))?;
                stream.shutdown().await.map_err(|error| Error::class("write", error.to_string()))?;
                Ok(bytes.len() as u64)
            }
        }
    }
}

impl TaskClass for Numbers {
    type Spec = ();
    type Accepted = ();
    type Command = ();
    type Answer = u64;
    type Event = u64;
    type Task = Arc<AtomicU64>;

    async fn task(&self, ctx: TaskContext<Self>, (): ()) -> Result<Started<Self>, Error> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let (sent, telling) = (Arc::new(AtomicU64::new(0)), Arc::clone(&self.telling));
        let task = Arc::clone(&sent);
        let run = async move {
            while telling.load(Ordering::SeqCst) {
                ctx.emit(&(sent.fetch_add(1, Ordering::SeqCst) + 1))?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            std::future::pending().await
        };
        Ok(Started::future(task, run))
    }

    async fn command(&self, _: CommandContext<Self>, task: &Self::Task, (): ()) -> Result<u64, Error> {
        Ok(task.load(Ordering::SeqCst))
    }

    async fn event(&self, _: EventContext, event: JobEvent<u64>) {
        if let JobEventKind::Class(number) = event.kind {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).entry(event.node).or_default().push(number);
        }
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

fn at(name: &str) -> NodeUri {
    format!("nkcluster://{name};transport=memory").parse().expect("valid")
}

fn numbers() -> ClassName {
    ClassName::new("numbers").expect("valid")
}

/// Control nodes `c1`, `c2` and so on, every one linked with every other.
struct Plane {
    net: MemoryNet,
    dir: tempfile::TempDir,
    class: Numbers,
    nodes: Vec<NodeHandle>,
}

impl Plane {
    async fn start(count: usize) -> Self {
        let _ = tracing_subscriber::fmt().with_ansi(false).with_test_writer().with_max_level(tracing::Level::DEBUG).try_init();
        let dir = tempfile::tempdir().expect("a directory");
        let mut plane = Self { net: MemoryNet::new(), dir, class: Numbers::new(), nodes: Vec::new() };
        for number in 1..=count {
            plane.join(&format!("c{number}")).await;
        }
        plane.agree();
        plane
    }

    fn config(&self, mut config: Config, name: &str) -> Config {
        config.node_id = Some(id(name));
        config.password = Secret::new("a secret of tests");
        config.pbkdf2_iters = 16;
        config.state_dir = self.dir.path().join(name);
        config.classes = crate::config::ClassList::All;
        config.ping_time = Duration::from_millis(500);
        config.proxy_connect_retry = Duration::from_millis(100);
        config.drain_timeout = Duration::from_secs(5);
        config
    }

    fn classes(&self) -> Classes {
        Classes::new().with_tasks(self.class.clone())
    }

    /// Another control node, which nobody sees yet.
    async fn join(&mut self, name: &str) {
        let config = Config { listen: vec![at(name)], ..self.config(Config::control(), name) };
        let node = Node::start_in(&self.net, config, self.classes()).await.expect("starts");
        for other in &self.nodes {
            control(&node).dial_peer(at(other.node_id().as_str())).await.expect("links");
        }
        self.nodes.push(node);
    }

    /// Who owns a worker in the ring of these.
    fn owner_among(&self, names: &[&str], worker: &str) -> NodeId {
        let size = crate::ring::RingSize::new(self.nodes[0].config.ring_size).expect("valid");
        let ring = crate::ring::Ring::new(size, names.iter().map(|name| id(name)));
        ring.owner(worker).expect("somebody owns it").clone()
    }

    /// All see all.
    fn agree(&self) {
        let all: Vec<&Control> = self.nodes.iter().map(control).collect();
        for control in &all {
            control.see(&all, false);
        }
    }

    /// Cuts what two nodes have, and lets neither find the other.
    fn part(&self, a: &str, b: &str) {
        self.net.set_refused(a, b, true);
        self.net.set_refused(b, a, true);
        self.net.cut(a, b);
    }

    async fn worker(&self, name: &str, dials: &str, change: impl FnOnce(&mut Config)) -> NodeHandle {
        let mut config = Config { cluster_addr: vec![at(dials)], ..self.config(Config::worker(), name) };
        change(&mut config);
        Node::start_in(&self.net, config, self.classes()).await.expect("starts")
    }

    fn node(&self, name: &NodeId) -> &NodeHandle {
        self.nodes.iter().find(|node| node.node_id() == name).expect("it runs")
    }

    fn cluster(&self, name: &str) -> Cluster {
        self.node(&id(name)).cluster().expect("a control node")
    }

    fn owner(&self, worker: &str) -> NodeId {
        control(&self.nodes[0]).owner(&id(worker)).expect("somebody owns it")
    }

    /// A name of a worker that this control node owns.
    fn owned_by(&self, owner: &str) -> String {
        (1..).map(|number| format!("w{number}")).find(|name| self.owner(name) == id(owner)).expect("names do not run out")
    }

    /// Control nodes that the worker obeys, and where its link is.
    fn holders(&self, worker: &str) -> Vec<(NodeId, Option<String>)> {
        let infos = self.nodes.iter().filter_map(|node| control(node).own_info(&id(worker)).map(|info| (node.node_id().clone(), info)));
        infos.filter(|(_, info)| info.status != NodeStatus::NotConnected).map(|(node, info)| (node, info.remote)).collect()
    }

    async fn held_by(&self, worker: &str, owner: &str) {
        eventually(&format!("{worker} is held by {owner} alone"), async || {
            let holders = self.holders(worker);
            holders.len() == 1 && holders[0].0 == id(owner)
        })
        .await;
    }

    async fn held_directly(&self, worker: &str, owner: &str) {
        eventually(&format!("{worker} is held by {owner} over a link of its own"), async || {
            let holders = self.holders(worker);
            holders.len() == 1 && holders[0].0 == id(owner) && holders[0].1.as_ref().is_some_and(|remote| !remote.contains("via"))
        })
        .await;
    }
}

fn control(node: &NodeHandle) -> &Control {
    node.control.as_ref().expect("a control node")
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + FOREVER;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ask(cluster: &Cluster, worker: &str, ask: &Ask) -> Result<u64, Error> {
    let payload = Payload::encode(ask).expect("encodes");
    cluster.request(&id(worker), &numbers(), payload, CallOptions::timeout(FOREVER)).await?.decode()
}

#[tokio::test]
async fn any_control_node_takes_calls_for_any_worker() {
    let plane = Plane::start(3).await;
    let worker = plane.owned_by("c2");
    let _worker = plane.worker(&worker, "c2", |_| ()).await;
    plane.held_directly(&worker, "c2").await;
    for entry in ["c1", "c2", "c3"] {
        assert_eq!(ask(&plane.cluster(entry), &worker, &Ask::Add(1)).await, Ok(2), "{entry}");
    }
    // The own worker of another control node, too.
    plane.cluster("c1").ping(&id("c3"), FOREVER).await.expect("answered");
    let error = ask(&plane.cluster("c1"), "nobody", &Ask::Add(1)).await.expect_err("nobody has this name");
    assert_eq!(error.code(), &ErrorCode::NotFound, "{error}");
    assert!(!error.may_have_run());
    assert_eq!(plane.class.asked.load(Ordering::SeqCst), 3, "each call is carried out once");
}

#[tokio::test]
async fn streams_cross_control_nodes() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c2");
    let _worker = plane.worker(&worker, "c2", |_| ()).await;
    plane.held_by(&worker, "c2").await;
    echo(&plane.cluster("c1"), &worker).await;
}

/// Sends two megabytes to a worker and back.
async fn echo(cluster: &Cluster, worker: &str) {
    let payload = Payload::encode(&Ask::Echo).expect("encodes");
    let options = CallOptions::timeout(FOREVER);
    let (answer, stream) = cluster.request_with_stream(&id(worker), &numbers(), payload, options).await.expect("opens");
    let sent: Vec<u8> = (0..2_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    writer.write_all(&sent).await.expect("written");
    writer.shutdown().await.expect("ended");
    let mut back = Vec::new();
    reader.read_to_end(&mut back).await.expect("read");
    assert!(back == sent, "the bytes return as they were: {} of {}", back.len(), sent.len());
    assert_eq!(answer.wait().await.expect("answered").decode::<u64>().expect("a number"), sent.len() as u64);
}

#[tokio::test]
async fn nodes_are_those_of_all_control_nodes_and_who_is_silent_is_named() {
    let plane = Plane::start(3).await;
    let workers: Vec<String> = ["c1", "c2", "c3"].into_iter().map(|owner| plane.owned_by(owner)).collect();
    let mut running = Vec::new();
    for (worker, dials) in workers.iter().zip(["c1", "c2", "c3"]) {
        running.push(plane.worker(worker, dials, |_| ()).await);
        plane.held_by(worker, dials).await;
    }
    let mut expected: Vec<NodeId> = workers.iter().map(|name| id(name)).chain(["c1", "c2", "c3"].map(id)).collect();
    expected.sort();
    for entry in ["c1", "c2", "c3"] {
        let reply = plane.cluster(entry).nodes(None, FOREVER).await.expect("answered");
        assert_eq!(reply.nodes.iter().map(|info| info.id.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(reply.silent, []);
    }
    let select = format!("owner={}", "c2").parse().expect("a selector");
    let reply = plane.cluster("c1").nodes(Some(&select), FOREVER).await.expect("answered");
    assert!(reply.nodes.iter().all(|info| info.owner == Some(id("c2"))) && reply.nodes.len() == 2, "{:?}", reply.nodes);
    plane.part("c1", "c3");
    eventually("c3 is named as silent", async || {
        plane.cluster("c1").nodes(None, FOREVER).await.is_ok_and(|reply| reply.silent == [id("c3")])
    })
    .await;
    plane.cluster("c1").forget(&id(&workers[1]), FOREVER).await.expect("it was known");
}

#[tokio::test]
async fn a_call_whose_control_link_is_cut_says_that_it_may_have_run() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c2");
    let _worker = plane.worker(&worker, "c2", |_| ()).await;
    plane.held_by(&worker, "c2").await;
    let cluster = plane.cluster("c1");
    let held = tokio::spawn({
        let worker = worker.clone();
        async move { ask(&cluster, &worker, &Ask::Hold).await }
    });
    eventually("the worker has it", async || plane.class.asked.load(Ordering::SeqCst) == 1).await;
    plane.part("c1", "c2");
    let error = held.await.expect("no panic").expect_err("the link is gone");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::ConnectionFailed, true), "{error}");
    let error = ask(&plane.cluster("c1"), &worker, &Ask::Add(1)).await.expect_err("no link");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::NotConnected, false), "{error}");
}

#[tokio::test]
async fn a_worker_that_reaches_only_another_control_node_is_used_through_it() {
    let plane = Plane::start(3).await;
    let worker = plane.owned_by("c2");
    for hidden in ["c2", "c3"] {
        plane.net.set_refused(&worker, hidden, true);
    }
    let node = plane.worker(&worker, "c1", |_| ()).await;
    plane.held_by(&worker, "c2").await;
    assert_eq!(plane.holders(&worker)[0].1, Some(format!("memory:{worker} via c1")));
    for entry in ["c1", "c2", "c3"] {
        assert_eq!(ask(&plane.cluster(entry), &worker, &Ask::Add(1)).await, Ok(2), "{entry}");
        echo(&plane.cluster(entry), &worker).await;
        // Larger than a frame.
        let big = CallOptions::timeout(FOREVER);
        plane.cluster(entry).put_data(&id(&worker), "big", "x".repeat(300_000).into(), FOREVER).await.expect("stored");
        assert_eq!(plane.cluster(entry).data(&id(&worker), "big", big.timeout).await.expect("there").as_str().map(str::len), Some(300_000));
    }
    let mut events = plane.cluster("c3").events(EventFilter::default()).await.expect("subscribed");
    let options = CallOptions::timeout(FOREVER).with_task_id(TaskId::new("t1").expect("valid"));
    plane.cluster("c1").start_task(&id(&worker), &numbers(), Payload::encode(&()).expect("encodes"), options).await.expect("started");
    let event = async {
        loop {
            let record = events.next().await.expect("open").expect("no error");
            if record.node == id(&worker) && matches!(record.event, EventBody::Class(_)) {
                return record;
            }
        }
    };
    tokio::time::timeout(FOREVER, event).await.expect("events of a lent link come");
    eventually("the class is told", async || plane.class.told(&id(&worker)).len() > 10).await;
    node.stop().await;
    eventually("its end is seen at once", async || plane.holders(&worker).is_empty()).await;
}

#[tokio::test]
async fn a_worker_at_the_wrong_control_node_is_asked_over_and_loses_nothing() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c2");
    // The way is closed until the worker is at work over the lent link.
    plane.net.set_refused(&worker, "c2", true);
    let _node = plane.worker(&worker, "c1", |_| ()).await;
    plane.held_by(&worker, "c2").await;
    let before = control(plane.node(&id("c2"))).own_info(&id(&worker)).expect("known");
    assert!(before.remote.is_some_and(|remote| remote.contains("via c1")));
    // Another one finds its way at once.
    let second = (1..).map(|number| format!("v{number}")).find(|name| plane.owner(name) == id("c2")).expect("a name");
    let _second = plane.worker(&second, "c1", |_| ()).await;
    plane.held_directly(&second, "c2").await;
    assert_eq!(ask(&plane.cluster("c1"), &second, &Ask::Add(4)).await, Ok(5));
    eventually("the old link is given up", async || plane.net.links(&second, "c1") == 0).await;
}

#[tokio::test]
async fn a_listening_worker_that_dialled_the_wrong_control_node_is_dialled_by_its_owner() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c2");
    plane.net.set_refused(&worker, "c2", true);
    let listens = at(&worker);
    let _node = plane.worker(&worker, "c1", |config| config.listen = vec![listens]).await;
    plane.held_directly(&worker, "c2").await;
    assert_eq!(ask(&plane.cluster("c1"), &worker, &Ask::Add(4)).await, Ok(5));
}

/// Events of a task arrived at control nodes exactly once and in order.
fn assert_in_order(told: &[u64]) {
    let expected: Vec<u64> = (1..=told.len() as u64).collect();
    assert_eq!(told, expected, "each event comes once, in order");
}

async fn moves_under_load(hidden: bool) {
    let mut plane = Plane::start(2).await;
    let (worker, dials) = (plane.owned_by("c2"), if hidden { "c1" } else { "c2" });
    if hidden {
        for other in ["c2", "c3"] {
            plane.net.set_refused(&worker, other, true);
        }
    }
    // It will belong to c3.
    plane.join("c3").await;
    let ring = {
        let names = ["c1", "c2", "c3"].map(id);
        crate::ring::Ring::new(crate::ring::RingSize::new(plane.nodes[0].config.ring_size).expect("valid"), names)
    };
    let worker = (1..)
        .map(|number| format!("{worker}-{number}"))
        .find(|name| plane.owner(name) == id("c2") && ring.owner(name) == Some(&id("c3")))
        .expect("a name");
    if hidden {
        for other in ["c2", "c3"] {
            plane.net.set_refused(&worker, other, true);
        }
    }
    let _node = plane.worker(&worker, dials, |_| ()).await;
    plane.held_by(&worker, "c2").await;
    let options = CallOptions::timeout(FOREVER).with_task_id(TaskId::new("t1").expect("valid"));
    plane.cluster("c1").start_task(&id(&worker), &numbers(), Payload::encode(&()).expect("encodes"), options).await.expect("started");
    let held = tokio::spawn({
        let (cluster, worker) = (plane.cluster("c2"), worker.clone());
        async move { ask(&cluster, &worker, &Ask::Hold).await }
    });
    eventually("one call is being carried out", async || plane.class.asked.load(Ordering::SeqCst) == 1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let call = |entry: &'static str| {
        let (cluster, worker, stop) = (plane.cluster(entry), worker.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(ask(&cluster, &worker, &Ask::Add(calls)).await, Ok(calls + 1), "at {entry}");
                calls += 1;
            }
            calls
        })
    };
    let mut callers = vec![call("c1"), call("c2"), call("c2")];
    eventually("events come", async || plane.class.told(&id(&worker)).len() > 20).await;
    plane.agree();
    callers.push(call("c3"));
    plane.held_by(&worker, "c3").await;
    let told = plane.class.told(&id(&worker)).len();
    eventually("events come after the move", async || plane.class.told(&id(&worker)).len() > told + 50).await;
    plane.class.open.send_replace(true);
    assert_eq!(held.await.expect("no panic"), Ok(1), "a call that was begun is answered over the old channel");
    stop.store(true, Ordering::SeqCst);
    let mut calls = 1;
    for caller in callers {
        calls += caller.await.expect("no call was lost");
    }
    assert_eq!(plane.class.asked.load(Ordering::SeqCst), calls, "each call is carried out once");
    assert_eq!(plane.class.started.load(Ordering::SeqCst), 1, "no task is started twice");
    plane.class.telling.store(false, Ordering::SeqCst);
    let (cluster, task, nothing) = (plane.cluster("c1"), TaskId::new("t1").expect("valid"), Payload::encode(&()).expect("encodes"));
    let sent = cluster.command(&id(&worker), &numbers(), &task, nothing, CallOptions::timeout(FOREVER)).await;
    let sent: u64 = sent.expect("the task runs").decode().expect("a number");
    eventually("the last event is there", async || plane.class.told(&id(&worker)).len() as u64 >= sent).await;
    assert_in_order(&plane.class.told(&id(&worker)));
}

#[tokio::test]
async fn a_worker_moves_to_a_new_control_node_under_load() {
    moves_under_load(false).await;
}

#[tokio::test]
async fn a_worker_on_a_lent_link_moves_under_load() {
    moves_under_load(true).await;
}

#[tokio::test]
async fn the_next_owner_adopts_when_a_control_node_dies() {
    let mut plane = Plane::start(3).await;
    let worker = plane.owned_by("c2");
    let _node = plane.worker(&worker, "c2", |config| config.cluster_addr.extend([at("c1"), at("c3")])).await;
    plane.held_by(&worker, "c2").await;
    let dead = plane.nodes.remove(1);
    drop(dead);
    plane.agree();
    let next = plane.owner(&worker);
    plane.held_by(&worker, next.as_str()).await;
    let options = CallOptions { retry: Retry::UntilDeadline, ..CallOptions::timeout(FOREVER) };
    for entry in ["c1", "c3"] {
        plane.cluster(entry).core(&id(&worker), &crate::cluster::CoreRequest::Ping, options.clone()).await.expect("answered");
    }
}

#[tokio::test]
async fn a_worker_that_only_listens_outlives_its_control_node() {
    let mut plane = Plane::start(3).await;
    let worker = plane.owned_by("c2");
    let listens = at(&worker);
    let node = plane
        .worker(&worker, "c1", |config| {
            config.cluster_addr.clear();
            config.listen = vec![listens.clone()];
        })
        .await;
    plane.cluster("c1").attach(&listens, FOREVER).await.expect("it answers");
    plane.held_directly(&worker, "c2").await;
    node.stop().await;
    eventually("its end is seen", async || plane.holders(&worker).is_empty()).await;
    drop(plane.nodes.remove(1));
    plane.agree();
    let cluster = plane.cluster("c1");
    eventually("it is known as away", async || {
        cluster.info(&id(&worker), FOREVER).await.is_ok_and(|info| info.status == NodeStatus::NotConnected)
    })
    .await;
    let again = plane.worker(&worker, "c1", |config| {
        config.cluster_addr.clear();
        config.listen = vec![listens.clone()];
    });
    let _again = again.await;
    plane.held_by(&worker, plane.owner(&worker).as_str()).await;
    plane.cluster("c3").forget(&id(&worker), FOREVER).await.expect("it was known");
}

#[tokio::test]
async fn a_frozen_owner_is_fenced_and_nobody_is_locked_out() {
    let plane = Plane::start(3).await;
    let worker = plane.owned_by("c2");
    let _node = plane.worker(&worker, "c2", |config| config.cluster_addr.extend([at("c1"), at("c3")])).await;
    plane.held_by(&worker, "c2").await;
    // c2 sleeps; the others go on without it.
    let all: Vec<&Control> = plane.nodes.iter().map(control).collect();
    all[1].see(&all, true);
    let rest = [all[0], all[2]];
    rest[0].see(&rest, false);
    rest[1].see(&rest, false);
    let next = all[0].owner(&id(&worker)).expect("somebody");
    assert_ne!(next, id("c2"));
    eventually("the next owner has it", async || plane.holders(&worker).iter().any(|(holder, _)| *holder == next)).await;
    assert_eq!(ask(&plane.cluster("c1"), &worker, &Ask::Add(1)).await, Ok(2));
    // It wakes up, and everybody agrees again: one proxy acts.
    plane.agree();
    plane.held_by(&worker, "c2").await;
    assert_eq!(ask(&plane.cluster("c3"), &worker, &Ask::Add(1)).await, Ok(2));
}

#[tokio::test]
async fn after_a_split_each_worker_has_one_acting_proxy() {
    let plane = Plane::start(3).await;
    let names: Vec<String> = (1..=12).map(|number| format!("w{number}")).collect();
    let mut running = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let dials = ["c1", "c2", "c3"][number % 3];
        running.push(plane.worker(name, dials, |config| config.cluster_addr.extend([at("c1"), at("c2"), at("c3")])).await);
    }
    for name in &names {
        plane.held_by(name, plane.owner(name).as_str()).await;
    }
    let all: Vec<&Control> = plane.nodes.iter().map(control).collect();
    // c3 is alone, with the workers whose number is even.
    for other in ["c1", "c2"] {
        plane.part("c3", other);
    }
    for (number, name) in names.iter().enumerate() {
        let far: &[&str] = if number % 2 == 0 { &["c1", "c2"] } else { &["c3"] };
        for other in far {
            plane.net.set_refused(name, other, true);
            plane.net.cut(name, other);
        }
    }
    all[2].see(&all[2..], false);
    all[0].see(&all[..2], false);
    all[1].see(&all[..2], false);
    for (number, name) in names.iter().enumerate() {
        let entry = if number % 2 == 0 { "c3" } else { "c1" };
        let cluster = plane.cluster(entry);
        eventually(&format!("{name} works on its side"), async || ask(&cluster, name, &Ask::Add(1)).await == Ok(2)).await;
    }
    for other in ["c1", "c2"] {
        plane.net.set_refused("c3", other, false);
        plane.net.set_refused(other, "c3", false);
        all[2].dial_peer(at(other)).await.expect("links");
    }
    for (number, name) in names.iter().enumerate() {
        for other in if number % 2 == 0 { &["c1", "c2"][..] } else { &["c3"][..] } {
            plane.net.set_refused(name, other, false);
        }
    }
    plane.agree();
    for name in &names {
        plane.held_by(name, plane.owner(name).as_str()).await;
        for entry in ["c1", "c2", "c3"] {
            assert_eq!(ask(&plane.cluster(entry), name, &Ask::Add(1)).await, Ok(2), "{name} from {entry}");
        }
    }
}
