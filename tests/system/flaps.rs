//! A worker whose connections are cut again and again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, ConnectOptions};
use nkcluster::types::{NodeId, Payload, Secret};
use serde_json::{Value, json};

use crate::machines::{CONTROLS, Plane};
use crate::namespace::{self, Namespace};
use crate::sockets::connected;
use crate::support::{DEADLINE, Daemon, ROUNDS, Ran, wait_for};

const FLAPS: usize = 50;
/// After so many a task is started while the connections are cut.
const FLAPS_PER_TASK: usize = 5;

/// Ends the connections of a machine towards control nodes, at both ends and at once.
fn cut(place: &Namespace) {
    let mut command = Command::new("ss");
    command.args(["--kill", "--tcp", "--no-header", "state", "established", "dport", "=", ":1973"]);
    let ran = place.inside(|| Ran::of(command, ""));
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// Waits until a worker obeys under a term that is later than one; returns the new one.
async fn later_term(cluster: &Cluster, worker: &NodeId, than: u64) -> u64 {
    let look = async {
        loop {
            let info = cluster.info(worker, DEADLINE).await.ok();
            let acting = info.and_then(|info| info.proxies.into_iter().find(|proxy| proxy.active));
            match acting {
                Some(proxy) if proxy.term > than => return proxy.term,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, look).await.expect("it comes back")
}

/// Cuts the connections of the worker `w1` many times, and starts tasks meanwhile; returns their ids.
async fn flap(plane: &Plane, uri: &str) -> Vec<String> {
    let mut options = ConnectOptions::new(vec![uri.parse().expect("an address")], "nkcluster", Secret::new("nkcluster"));
    options.pbkdf2_iters = ROUNDS.parse().expect("a number");
    let cluster = Cluster::connect(options).await.expect("connects");
    let (worker, class) = (NodeId::new("w1").expect("a name"), "files".parse().expect("a name"));
    let spec = Payload::encode(&json!({ "hash": { "path": "short" } })).expect("encodes");
    let place = &plane.machine("w1").place;
    let (mut term, mut tasks) = (0, Vec::new());
    for flap in 0..FLAPS {
        term = later_term(&cluster, &worker, term).await;
        if flap % FLAPS_PER_TASK != 0 {
            cut(place);
            continue;
        }
        // The call, its answer, or neither is cut off.
        let start = cluster.start_task(&worker, &class, spec.clone(), CallOptions::timeout(DEADLINE).with_retry());
        let (started, ()) = tokio::join!(start, async { cut(place) });
        tasks.push(started.expect("it is tried again until it is started").id.to_string());
    }
    later_term(&cluster, &worker, term).await;
    cluster.close().await;
    tasks
}

/// How often each task is said to have been started.
fn starts(events: &str) -> BTreeMap<String, usize> {
    let mut starts = BTreeMap::new();
    for event in events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if let Some(task) = event["event"]["nkcluster"]["task_started"].as_str() {
            *starts.entry(task.to_owned()).or_default() += 1;
        }
    }
    starts
}

#[test]
fn after_fifty_flaps_a_worker_has_one_proxy_one_link_and_its_tasks_and_started_none_twice() {
    if !namespace::is_possible() {
        return;
    }
    let plane = Plane::start(&CONTROLS);
    let task = plane.start_task("w1");
    fs::write(plane.machine("w1").daemon.dir().join("files/short"), "short").expect("written");
    let links = |daemon: &Daemon| connected(daemon).len();
    let of_controls = || CONTROLS.map(|name| links(&plane.machine(name).daemon));
    let before = of_controls();

    let events = plane.dir.path().join("events");
    let file = File::create(&events).expect("made");
    let mut follower = plane.ask("c1", |cli| {
        let mut command = cli.command(&["events", "--json"]);
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().expect("starts")
    });
    let machine = plane.machine("c1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let started = machine.place.inside(|| runtime.block_on(flap(&plane, &machine.daemon.uri())));

    plane.settled(&CONTROLS);
    plane.serves(&CONTROLS, "w1", &task);
    wait_for("the start of each task to be told", || {
        let told = starts(&fs::read_to_string(&events).expect("it is written there"));
        started.iter().all(|task| told.contains_key(task)).then_some(())
    });
    // It ends with its control node too.
    let _ = follower.kill();
    let _ = follower.wait();
    let told = starts(&fs::read_to_string(&events).expect("it is written there"));
    assert_eq!(told.len(), started.len(), "{told:?}");
    assert!(told.values().all(|times| *times == 1), "{told:?}");

    wait_for("the links that were cut to be gone", || (of_controls() == before && links(&plane.machine("w1").daemon) == 1).then_some(()));
    let members = plane.ask("c1", |cli| cli.json(&["members"]));
    let proxies: u64 = members.as_array().expect("an array").iter().filter_map(|member| member["proxies"].as_u64()).sum();
    assert_eq!(proxies, 5, "one of each node: {members}");
}
