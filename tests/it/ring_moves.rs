//! Workers of a cluster with several control nodes, which find each other by themselves: nodes that leave, die, or are the wrong ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, random_incarnation};
use nkcluster::config::Config;
use nkcluster::job::{Classes, TypedCalls as _};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::proto::auth::Role;
use nkcluster::proto::head::{CallHead, Verb};
use nkcluster::proto::identity::CallIdentity;
use nkcluster::ring::{Ring, RingSize};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{ClassName, Incarnation, NodeId, NodeStatus, Payload};
use nkcluster::{Error, ErrorCode, Result};

use crate::classes::{Ask, Probe, Spec, Tell};
use crate::harness::{
    C1, DEADLINE, TIMEOUT, connect_options, control_config, eventually, logged, node_id, once, task_id, uri, wait_status, worker_config,
};
use crate::raw::{dial, party};

/// Control nodes `c1` to `c3`, each with the addresses of all.
struct Three {
    net: MemoryNet,
    dir: tempfile::TempDir,
    probe: Probe,
    nodes: Vec<NodeHandle>,
}

const NAMES: [&str; 3] = ["c1", "c2", "c3"];

impl Three {
    async fn start() -> Self {
        logged();
        let mut three =
            Self { net: MemoryNet::new(), dir: tempfile::tempdir().expect("a directory"), probe: Probe::new(), nodes: Vec::new() };
        for name in NAMES {
            let node = three.control(name).await;
            three.nodes.push(node);
        }
        three.agree(&NAMES).await;
        three
    }

    async fn control(&self, name: &str) -> NodeHandle {
        let mut config = control_config(&self.dir, name, &format!("nkcluster://{name};transport=memory"));
        config.cluster_addr = NAMES.map(|name| uri(&format!("nkcluster://{name};transport=memory"))).to_vec();
        config.drain_timeout = Duration::from_secs(20);
        Node::start_in(&self.net, config, self.probe.classes()).await.expect("starts")
    }

    async fn worker(&self, name: &str, dials: &[&str], change: impl FnOnce(&mut Config)) -> NodeHandle {
        let addresses: Vec<String> = dials.iter().map(|at| format!("nkcluster://{at};transport=memory")).collect();
        let mut config = worker_config(&self.dir, name, &addresses.join(", "));
        change(&mut config);
        let worker = Node::start_in(&self.net, config, self.probe.classes()).await.expect("starts");
        self.ready(name).await;
        worker
    }

    fn cluster(&self, name: &str) -> Cluster {
        let node = self.nodes.iter().find(|node| node.node_id().as_str() == name);
        node.expect("it runs").cluster().expect("a control node")
    }

    async fn ready(&self, worker: &str) {
        for node in &self.nodes {
            let cluster = node.cluster().expect("a control node");
            eventually(&format!("{worker} is ready for {}", node.node_id()), async || {
                cluster.info(&node_id(worker), TIMEOUT).await.is_ok_and(|info| info.status == NodeStatus::Ready)
            })
            .await;
        }
    }

    async fn owner(&self, worker: &str) -> NodeId {
        let cluster = self.nodes[0].cluster().expect("a control node");
        cluster.info(&node_id(worker), TIMEOUT).await.expect("known").owner.expect("somebody has it")
    }

    async fn agree(&self, names: &[&str]) {
        eventually(&format!("{names:?} agree"), async || {
            for node in &self.nodes {
                let ring = node.cluster().expect("a control node").ring(TIMEOUT).await.expect("answered");
                let owners: std::collections::BTreeSet<&str> = ring.owners.iter().map(NodeId::as_str).collect();
                if owners != names.iter().copied().collect() {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

async fn echo(cluster: &Cluster, worker: &str, text: &str) -> Result<String> {
    cluster.ask::<Probe>(&node_id(worker), &Ask::Echo(text.to_owned()), once()).await
}

/// Calls from a control node until it is told to stop; every one must be answered.
fn keep_calling(cluster: Cluster, worker: &'static str, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Result<usize, Error>> {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let mut calls = 0;
        while !stop.load(Ordering::SeqCst) {
            let text = calls.to_string();
            assert_eq!(echo(&cluster, worker, &text).await?, text);
            calls += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(calls)
    })
}

#[tokio::test(start_paused = true)]
async fn a_control_node_that_leaves_hands_its_workers_over_and_no_call_is_lost() {
    let mut three = Three::start().await;
    let _worker = three.worker("w1", &NAMES, |_| ()).await;
    let owner = three.owner("w1").await;
    let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != owner.as_str()).collect();
    let first = three.cluster(others[0]);
    let task = CallOptions::timeout(TIMEOUT).with_task_id(task_id("t1"));
    first.start::<Probe>(&node_id("w1"), &Spec::Future, task).await.expect("started");
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = others.iter().map(|name| keep_calling(three.cluster(name), "w1", &stop)).collect();
    let emitting = tokio::spawn({
        let (cluster, stop) = (first.clone(), Arc::clone(&stop));
        async move {
            let mut sent = 0_usize;
            while !stop.load(Ordering::SeqCst) {
                cluster.tell::<Probe>(&node_id("w1"), &task_id("t1"), &Tell::Emit(vec![format!("event {sent}")]), once()).await?;
                sent += 1;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            Ok::<usize, Error>(sent)
        }
    });
    let events = || three.probe.told("w1").into_iter().filter(|told| told.starts_with("event")).collect::<Vec<_>>();
    eventually("events come", async || events().len() > 5).await;
    let at = three.nodes.iter().position(|node| *node.node_id() == owner).expect("it runs");
    let leaving = three.nodes.remove(at);
    let before = three.probe.told("w1").len();
    leaving.stop().await;
    three.agree(&others).await;
    three.ready("w1").await;
    let next = three.owner("w1").await;
    assert!(others.contains(&next.as_str()), "{next}");
    let told = three.probe.told("w1").len();
    let events = || three.probe.told("w1").into_iter().filter(|told| told.starts_with("event")).collect::<Vec<_>>();
    eventually("events come after the move", async || three.probe.told("w1").len() > told + 20).await;
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        assert!(caller.await.expect("no panic").expect("no call was lost") > 20);
    }
    let sent = emitting.await.expect("no panic").expect("no command was lost");
    eventually("the last event is there", async || events().len() >= sent).await;
    let expected: Vec<String> = (0..sent).map(|number| format!("event {number}")).collect();
    assert_eq!(events(), expected, "each event comes once, in order");
    assert_eq!(three.probe.executed(), 1, "no task is started twice");
    let words = three.probe.told("w1");
    assert!(!words[before..].iter().any(|told| told.starts_with("status") || told.starts_with("resync")), "a move is not told: {words:?}");
}

#[tokio::test(start_paused = true)]
async fn neither_an_address_where_nobody_answered_at_first_nor_a_second_join_cuts_a_call() {
    let three = Three::start().await;
    let _worker = three.worker("w1", &NAMES, |_| ()).await;
    let held: Vec<_> = NAMES
        .map(|name| {
            let cluster = three.cluster(name);
            tokio::spawn(async move { cluster.ask::<Probe>(&node_id("w1"), &Ask::Hold, CallOptions::timeout(6 * TIMEOUT)).await })
        })
        .into();
    three.probe.work.entered(3).await;
    for (node, at) in [("c1", "c2"), ("c2", "c1"), ("c3", "c1")] {
        let joined = three.cluster(node).join(&uri(&format!("nkcluster://{at};transport=memory")), TIMEOUT).await;
        assert_eq!(joined.expect("it is a member").0.as_str(), at);
    }
    // Longer than the pause before an address is dialled again.
    tokio::time::sleep(2 * TIMEOUT).await;
    three.probe.work.open();
    for call in held {
        call.await.expect("no panic").expect("answered, as no link was cut");
    }
}

#[tokio::test(start_paused = true)]
async fn when_a_control_node_dies_its_workers_come_back_elsewhere_and_their_tasks_go_on() {
    let mut three = Three::start().await;
    let _worker = three.worker("w1", &NAMES, |_| ()).await;
    let owner = three.owner("w1").await;
    let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != owner.as_str()).collect();
    let cluster = three.cluster(others[0]);
    let task = CallOptions::timeout(TIMEOUT).with_task_id(task_id("t1"));
    cluster.start::<Probe>(&node_id("w1"), &Spec::Future, task).await.expect("started");
    let at = three.nodes.iter().position(|node| *node.node_id() == owner).expect("it runs");
    drop(three.nodes.remove(at));
    // A caller that tries again does not notice more than a pause.
    let patient = CallOptions::timeout(DEADLINE).with_retry();
    let answer = cluster.ask::<Probe>(&node_id("w1"), &Ask::Count, patient).await;
    assert_eq!(answer.expect("answered after a while"), "2", "the task counted first");
    three.agree(&others).await;
    three.ready("w1").await;
    let told = cluster.tell::<Probe>(&node_id("w1"), &task_id("t1"), &Tell::Echo("still here".to_owned()), once()).await;
    assert_eq!(told.expect("the task goes on"), "still here");
    // The dead node itself is known to be away.
    eventually("the dead node is shown", async || {
        cluster.info(&owner, TIMEOUT).await.is_ok_and(|info| info.status == NodeStatus::NotConnected)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn workers_behind_one_address_work_like_any_other() {
    let three = Three::start().await;
    let mut workers = Vec::new();
    for number in 1..=6 {
        let name = format!("w{number}");
        for hidden in ["c2", "c3"] {
            three.net.set_refused(&name, hidden, true);
        }
        workers.push(three.worker(&name, &["c1"], |_| ()).await);
    }
    let mut owners = std::collections::BTreeSet::new();
    for number in 1..=6 {
        let name = format!("w{number}");
        eventually(&format!("{name} is with its owner"), async || {
            let info = three.cluster("c1").info(&node_id(&name), TIMEOUT).await.expect("known");
            let is_direct = info.remote.as_ref().is_some_and(|remote| !remote.contains(" via c1"));
            info.owner.as_ref().is_some_and(|owner| (owner.as_str() == "c1") == is_direct)
        })
        .await;
        owners.insert(three.owner(&name).await);
        for entry in NAMES {
            assert_eq!(echo(&three.cluster(entry), &name, "hello").await.expect("answered"), "hello");
        }
    }
    assert!(owners.len() > 1, "they belong to more than one: {owners:?}");
    let reply = three.cluster("c2").nodes(None, TIMEOUT).await.expect("answered");
    assert_eq!(reply.nodes.len(), 9, "{:?}", reply.nodes.iter().map(|info| info.id.as_str()).collect::<Vec<_>>());
}

/// Through a control node that passes calls on, a question would come out of a control link, as if that node had asked.
#[tokio::test(start_paused = true)]
async fn a_client_cannot_ask_what_only_control_nodes_ask_of_each_other() {
    let three = Three::start().await;
    let admin = dial(&three.net, &party(Role::Admin, "evil").await, C1, Role::Control).await.expect("proved");
    for node in NAMES {
        let head = CallHead {
            verb: Verb::Peer,
            timeout_ms: 5000,
            identity: CallIdentity { edge: random_incarnation(), number: 1 },
            retry: false,
            hops: 0,
            exclusive: false,
            incarnation: Incarnation::default(),
            node: Some(node_id(node)),
            class: None,
            task: None,
        };
        let question = Payload::encode("proxies").expect("encodes").into_bytes();
        let answer = admin.link.channel_zero().call(&head, &question, TIMEOUT).await;
        assert_eq!(answer.expect_err("refused").code(), &ErrorCode::NotAllowed, "of {node}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_could_not_be_redirected_is_asked_again_within_seconds() {
    let three = Three::start().await;
    let ring = three.cluster("c1").ring(TIMEOUT).await.expect("answered");
    let size = nkcluster::ring::RingSize::new(ring.owners.len()).expect("a size");
    let ring = nkcluster::ring::Ring::new(size, NAMES.map(node_id));
    let name = (1..).map(|number| format!("w{number}")).find(|name| ring.owner(name) == Some(&node_id("c2"))).expect("a name");
    three.net.set_refused(&name, "c2", true);
    let _worker = three.worker(&name, &["c1"], |_| ()).await;
    let remote = async || three.cluster("c1").info(&node_id(&name), TIMEOUT).await.expect("known").remote.expect("connected");
    assert!(remote().await.ends_with(" via c1"));
    // The first attempt has met a closed door by now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    three.net.set_refused(&name, "c2", false);
    let opened = tokio::time::Instant::now();
    eventually("it is reached directly", async || !remote().await.contains(" via ")).await;
    assert!(opened.elapsed() < Duration::from_secs(15), "{:?}", opened.elapsed());
}

/// Neither of its two control nodes owns the worker, and it can reach no other: as behind a balancer.
#[tokio::test(start_paused = true)]
async fn a_worker_behind_a_balancer_loses_no_call_when_the_node_with_its_socket_stops() {
    let mut three = Three::start().await;
    let worker = "w1";
    let _worker = three.worker(worker, &NAMES, |_| ()).await;
    let owner = three.owner(worker).await;
    let doors: Vec<&str> = NAMES.into_iter().filter(|name| *name != owner.as_str()).collect();
    // From now on there is no way to its owner, and only one to the others.
    three.net.set_refused(worker, owner.as_str(), true);
    three.net.set_refused(worker, doors[1], true);
    three.net.cut(worker, owner.as_str());
    let via = async |three: &Three, door: &str| {
        let info = three.cluster(owner.as_str()).info(&node_id(worker), TIMEOUT).await;
        let remote = info.ok().filter(|info| info.status == NodeStatus::Ready).and_then(|info| info.remote);
        remote.is_some_and(|remote| remote.ends_with(&format!("via {door}")))
    };
    eventually("it is used through the first", async || via(&three, doors[0]).await).await;
    three.net.set_refused(worker, doors[1], false);
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = [owner.as_str(), doors[1]].iter().map(|name| keep_calling(three.cluster(name), "w1", &stop)).collect();
    let held = tokio::spawn({
        let cluster = three.cluster(doors[1]);
        async move { cluster.ask::<Probe>(&node_id(worker), &Ask::Hold, once()).await }
    });
    three.probe.work.entered(1).await;
    let at = three.nodes.iter().position(|node| node.node_id().as_str() == doors[0]).expect("it runs");
    let leaving = three.nodes.remove(at);
    let stopping = tokio::spawn(leaving.stop());
    eventually("it is used through the second", async || via(&three, doors[1]).await).await;
    assert!(!stopping.is_finished(), "a call on the old way waits for its answer");
    three.probe.work.open();
    held.await.expect("no panic").expect("a call that was begun is answered over the old way");
    stopping.await.expect("no panic");
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        assert!(caller.await.expect("no panic").expect("no call was lost") > 20);
    }
    // Who stops is expected back, however its workers left.
    let members = three.cluster(doors[1]).members(TIMEOUT).await.expect("answered");
    let state = members.iter().find(|member| member.id.as_str() == doors[0]).map(|member| member.state.clone());
    assert_eq!(state.as_deref(), Some("stopped"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_knows_several_control_nodes_does_not_notice_that_one_stops() {
    let mut three = Three::start().await;
    let _worker = three.worker("w1", &NAMES, |_| ()).await;
    let mut options = connect_options(NAMES.iter().map(|name| uri(&format!("nkcluster://{name};transport=memory"))).collect());
    options.memory = Some(three.net.node("admin"));
    // It comes in at the one that stops.
    let owner = three.owner("w1").await;
    let leaves = NAMES.into_iter().find(|name| *name != owner.as_str()).expect("another one");
    let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != leaves).collect();
    others.iter().for_each(|name| three.net.set_refused("admin", name, true));
    let admin = Cluster::connect(options).await.expect("connects");
    echo(&admin, "w1", "hello").await.expect("answered");
    others.iter().for_each(|name| three.net.set_refused("admin", name, false));
    // So far away that calls cross the goodbye.
    for (from, to) in [("admin", leaves), (leaves, "admin")] {
        three.net.set_delay(from, to, Duration::from_millis(5));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers: Vec<_> = (0..20).map(|_| keep_calling(admin.clone(), "w1", &stop)).collect();
    // Operations of the cluster itself, too.
    callers.push(tokio::spawn({
        let (admin, stop) = (admin.clone(), Arc::clone(&stop));
        async move {
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                admin.info(&node_id("w1"), TIMEOUT).await?;
                calls += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(calls)
        }
    }));
    let at = three.nodes.iter().position(|node| node.node_id().as_str() == leaves).expect("it runs");
    three.nodes.remove(at).stop().await;
    eventually("it is a client of another one", async || others.iter().any(|name| three.net.links("admin", name) > 0)).await;
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        assert!(caller.await.expect("no panic").expect("no call was lost") > 20);
    }
}

/// A client is where a call begins, whatever it says of its way.
#[tokio::test(start_paused = true)]
async fn a_client_cannot_use_up_the_hops_of_its_calls() {
    let three = Three::start().await;
    let _worker = three.worker("w1", &NAMES, |_| ()).await;
    let owner = three.owner("w1").await;
    let entry = NAMES.into_iter().find(|name| *name != owner.as_str()).expect("another one");
    let at = format!("nkcluster://{entry};transport=memory");
    let admin = dial(&three.net, &party(Role::Admin, "odd").await, &at, Role::Control).await.expect("proved");
    let head = CallHead {
        verb: Verb::Request,
        timeout_ms: 5000,
        identity: CallIdentity { edge: random_incarnation(), number: 1 },
        retry: false,
        hops: nkcluster::proto::head::HOPS_MAX,
        exclusive: false,
        incarnation: Incarnation::default(),
        node: Some(node_id("w1")),
        class: Some(ClassName::new("probe").expect("valid")),
        task: None,
    };
    let question = Payload::encode(&Ask::Echo("around".to_owned())).expect("encodes").into_bytes();
    let answer = admin.link.channel_zero().call(&head, &question, TIMEOUT).await.expect("answered");
    assert_eq!(Payload::from_bytes(answer).decode::<String>().expect("text"), "around");
}

#[tokio::test(start_paused = true)]
async fn the_last_word_of_a_node_that_stops_arrives_before_its_sessions_end() {
    let mut three = Three::start().await;
    let last = three.nodes.pop().expect("three");
    let stopping = tokio::spawn(last.stop());
    let cluster = three.cluster("c1");
    eventually("c3 has said that it stops", async || {
        let members = cluster.members(TIMEOUT).await.expect("answered");
        members.iter().any(|member| member.id == node_id("c3") && member.state == "stopped")
    })
    .await;
    // A session that ends takes along what has not left: the others would wait for a node that is not coming back.
    assert_eq!(three.net.links("c1", "c3"), 1, "what was said came over a link that is still there");
    stopping.await.expect("no panic");
}

#[tokio::test]
async fn a_worker_that_knows_one_address_goes_to_the_next_owner_which_it_was_told_of() {
    logged();
    let dir = tempfile::tempdir().expect("a directory");
    let mut first = control_config(&dir, "c1", "nkcluster://127.0.0.1:0;transport=tcp");
    first.cluster_addr.clear();
    let first = Node::start(first, Classes::new()).await.expect("starts");
    let mut second = control_config(&dir, "c2", "nkcluster://127.0.0.1:0;transport=tcp");
    second.cluster_addr = first.listen().to_vec();
    let second = Node::start(second, Classes::new()).await.expect("starts");
    for node in [&first, &second] {
        eventually("both are in the ring", async || {
            let ring = node.cluster().expect("a control node").ring(TIMEOUT).await.expect("answered");
            ring.owners.iter().collect::<BTreeSet<_>>().len() == 2
        })
        .await;
    }
    let ring = first.cluster().expect("a control node").ring(TIMEOUT).await.expect("answered");
    let ring = Ring::new(RingSize::new(ring.owners.len()).expect("a power of two"), ring.owners);
    let name = (1..).map(|number| format!("w{number}")).find(|name| ring.owner(name) == Some(first.node_id())).expect("a name");
    let config = worker_config(&dir, &name, &first.listen()[0].to_string());
    let _worker = Node::start(config, Classes::new()).await.expect("starts");
    let cluster = first.cluster().expect("a control node");
    wait_status(&cluster, &name, NodeStatus::Ready).await;
    // What it is told comes on the same channel, before a call.
    cluster.ping(&node_id(&name), TIMEOUT).await.expect("answered");
    drop((cluster, first));
    wait_status(&second.cluster().expect("a control node"), &name, NodeStatus::Ready).await;
}
