//! Three control nodes and two workers as real processes, and what becomes of the workers when a control node dies, freezes, or comes twice.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, ConnectOptions};
use nkcluster::types::{NodeId, NodeUri, Secret};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Cli, Daemon, ROUNDS, wait_for};

const WORKERS: [&str; 2] = ["w1", "w2"];

const NAMES: [&str; 3] = ["c1", "c2", "c3"];

fn index(id: &str) -> usize {
    NAMES.iter().position(|name| *name == id).expect("one of ours")
}

/// All but one.
fn without(id: &str) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| *name != id).collect()
}

struct Plane {
    controls: Vec<Daemon>,
    workers: Vec<Daemon>,
    dir: tempfile::TempDir,
}

/// Starts a control node at an address, which others know already.
fn control(dir: &Path, id: &str, listen: &str, others: &str) -> Daemon {
    let mut arguments = vec!["--control", "--node-id", id, "--listen", listen];
    if !others.is_empty() {
        arguments.extend(["--cluster-addr", others]);
    }
    Daemon::start(dir, &arguments)
}

impl Plane {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut controls: Vec<Daemon> = Vec::new();
        for id in NAMES {
            let others: Vec<String> = controls.iter().map(Daemon::uri).collect();
            controls.push(control(&dir.path().join(id), id, "nkcluster://127.0.0.1:0;transport=tcp", &others.join(",")));
        }
        let mut plane = Self { controls, workers: Vec::new(), dir };
        let everywhere = plane.everywhere();
        for id in WORKERS {
            let worker = Daemon::start(&plane.dir.path().join(id), &["--worker", "--node-id", id, "--cluster-addr", &everywhere]);
            plane.workers.push(worker);
        }
        plane.agree(&NAMES);
        plane.settled(&NAMES);
        plane
    }

    /// The addresses of all control nodes.
    fn everywhere(&self) -> String {
        self.controls.iter().map(Daemon::uri).collect::<Vec<_>>().join(",")
    }

    /// The same control node again, at the same address.
    fn again(&self, id: &str) -> Daemon {
        self.start_as(id, &self.dir.path().join(id), &self.controls[index(id)].uri())
    }

    /// A control node with an id and a directory, at an address.
    fn start_as(&self, id: &str, dir: &Path, listen: &str) -> Daemon {
        let others: Vec<String> = NAMES.iter().filter(|name| **name != id).map(|name| self.controls[index(name)].uri()).collect();
        control(dir, id, listen, &others.join(","))
    }

    /// The command at one control node.
    fn at(&self, id: &str) -> Cli {
        Cli::to(&self.controls[index(id)])
    }

    /// Waits until these and no others have one ring.
    fn agree(&self, names: &[&str]) {
        self.ring(names, names);
    }

    /// Waits until each of `seers` has the same ring of exactly these owners.
    fn ring(&self, seers: &[&str], names: &[&str]) {
        wait_for(&format!("a ring of {names:?}"), || {
            let rings: Vec<Value> = seers.iter().map(|name| self.at(name).json(&["ring"])).collect();
            let mut owners: Vec<_> = rings[0]["owners"].as_array()?.iter().filter_map(Value::as_str).collect();
            owners.sort_unstable();
            owners.dedup();
            (rings.windows(2).all(|pair| pair[0] == pair[1]) && owners == names).then_some(())
        });
    }

    /// Waits until each worker is ready for each of these, by one acting proxy, which is at one of them; returns where.
    fn settled(&self, names: &[&str]) -> Vec<String> {
        self.settled_at(names, names)
    }

    /// The same for these, wherever of `places` it is.
    fn settled_at(&self, names: &[&str], places: &[&str]) -> Vec<String> {
        let settled = |worker: &&str| {
            wait_for(&format!("one acting proxy of {worker}"), || {
                let seen: Vec<_> = names.iter().map(|name| self.at(name).acting(worker)).collect();
                let ready = names.iter().all(|name| self.at(name).node(worker).is_some_and(|node| node["status"] == "ready"));
                let first = seen[0].first()?;
                (ready && places.contains(&first.as_str()) && seen.iter().all(|acting| acting == &seen[0] && acting.len() == 1))
                    .then(|| first.clone())
            })
        };
        WORKERS.iter().map(settled).collect()
    }

    /// Starts a task on each worker that takes longer than any test.
    fn start_tasks(&self) -> Vec<(Value, String)> {
        let start = |worker: &Daemon| {
            let id = worker.ready["node_id"].as_str().expect("a name");
            let root = worker.dir().join("files");
            fs::create_dir_all(&root).expect("made");
            // Without content on the disk; reading it takes minutes.
            File::create(root.join("slow")).and_then(|file| file.set_len(1 << 40)).expect("made");
            let started = self.at("c1").json(&["task", "start", id, "files", "{\"hash\":{\"path\":\"slow\"}}"]);
            (self.at("c1").json(&["info", id])["incarnation"].clone(), started["task_id"].as_str().expect("an id").to_owned())
        };
        self.workers.iter().map(start).collect()
    }

    /// That the workers are the same processes, run their tasks once, and are called through each of these.
    fn unharmed(&self, names: &[&str], tasks: &[(Value, String)]) {
        for name in names {
            for (worker, (incarnation, task)) in WORKERS.iter().zip(tasks) {
                let cli = self.at(name);
                assert_eq!(cli.json(&["info", worker])["incarnation"], *incarnation);
                assert_eq!(cli.runs(worker, task), Some(1), "{task} of {worker} for {name}");
                assert_eq!(cli.json(&["call", worker, "echo", "1"]), serde_json::json!({ "reply": [1] }));
            }
        }
    }
}

#[test]
fn when_a_control_node_is_killed_its_workers_are_served_elsewhere_with_their_tasks_and_again_when_it_is_back() {
    let mut plane = Plane::start();
    let tasks = plane.start_tasks();
    let victim = plane.settled(&NAMES).remove(0);
    let others = without(&victim);
    let killed = &mut plane.controls[index(&victim)];
    killed.signal(Signal::KILL);
    killed.wait();
    plane.settled(&others);
    plane.agree(&others);
    plane.settled(&others);
    plane.unharmed(&others, &tasks);
    let restarted = plane.again(&victim);
    plane.controls[index(&victim)] = restarted;
    plane.agree(&NAMES);
    plane.settled(&NAMES);
    plane.unharmed(&NAMES, &tasks);
}

#[test]
fn when_a_control_node_is_frozen_its_workers_are_served_elsewhere_and_it_joins_again_without_acting_twice() {
    let plane = Plane::start();
    let tasks = plane.start_tasks();
    let victim = plane.settled(&NAMES).remove(0);
    let others = without(&victim);
    plane.controls[index(&victim)].signal(Signal::STOP);
    plane.agree(&others);
    plane.settled(&others);
    plane.unharmed(&others, &tasks);
    plane.controls[index(&victim)].signal(Signal::CONT);
    plane.agree(&NAMES);
    plane.settled(&NAMES);
    plane.unharmed(&NAMES, &tasks);
}

#[test]
fn of_a_frozen_control_node_and_its_successor_of_the_same_name_only_one_acts() {
    let plane = Plane::start();
    let tasks = plane.start_tasks();
    let victim = plane.settled(&NAMES).remove(0);
    let others = without(&victim);
    let frozen = &plane.controls[index(&victim)];
    frozen.signal(Signal::STOP);
    plane.agree(&others);
    // Its port is taken, and its directory in use.
    let successor = plane.start_as(&victim, &plane.dir.path().join("successor"), "nkcluster://127.0.0.1:0;transport=tcp");
    plane.ring(&others, &NAMES);
    plane.settled_at(&others, &NAMES);
    frozen.signal(Signal::CONT);
    wait_for("somebody to be told of two lives", || {
        let warned = others.iter().any(|name| plane.controls[index(name)].log().contains("has the node_id"));
        warned.then_some(())
    });
    plane.ring(&others, &NAMES);
    plane.settled_at(&others, &NAMES);
    plane.unharmed(&others, &tasks);
    let member = plane.at(others[0]).json(&["members"])[index(&victim)]["incarnation"].clone();
    let lives = [frozen, &successor].map(|daemon| Cli::to(daemon).json(&["members"])[index(&victim)]["incarnation"].clone());
    eprintln!("of {lives:?} (the frozen one, its successor) {member} is a member");
}

/// Calls both workers all the time until it is told to stop; returns how many calls were answered.
async fn keep_calling(cluster: Cluster, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> Result<(), nkcluster::Error> {
    let mut at = 0;
    while !stop.load(Ordering::SeqCst) {
        let worker = NodeId::new(WORKERS[at % WORKERS.len()]).expect("a name");
        let options = CallOptions::timeout(Duration::from_secs(40)).with_retry();
        cluster.call_function(&worker, "echo", vec![Value::from(at)], options).await?;
        answered.fetch_add(1, Ordering::SeqCst);
        at += 1;
        tokio::time::sleep(Duration::from_millis(CALLERS)).await;
    }
    Ok(())
}

/// Callers, each of which calls a thousand times in as many seconds, where the machine is fast enough.
const CALLERS: u64 = 20;

#[test]
fn a_rolling_restart_of_all_control_nodes_loses_no_call_and_no_task() {
    let mut plane = Plane::start();
    let tasks = plane.start_tasks();
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let uris: Vec<NodeUri> = plane.controls.iter().map(|daemon| daemon.uri().parse().expect("an address")).collect();
    let mut options = ConnectOptions::new(uris, "nkcluster", Secret::new("nkcluster"));
    options.pbkdf2_iters = ROUNDS.parse().expect("a number");
    let cluster = runtime.block_on(Cluster::connect(options)).expect("connects");
    let callers: Vec<_> =
        (0..CALLERS).map(|_| runtime.spawn(keep_calling(cluster.clone(), Arc::clone(&stop), Arc::clone(&answered)))).collect();
    for name in NAMES {
        let before = answered.load(Ordering::SeqCst);
        wait_for("calls before", || (answered.load(Ordering::SeqCst) > before + 100).then_some(()));
        let stopped = &mut plane.controls[index(name)];
        stopped.signal(Signal::TERM);
        assert!(stopped.wait().success());
        plane.agree(&without(name));
        plane.settled(&without(name));
        let restarted = plane.again(name);
        plane.controls[index(name)] = restarted;
        plane.agree(&NAMES);
        plane.settled(&NAMES);
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        runtime.block_on(caller).expect("no panic").expect("no call is lost");
    }
    eprintln!("{} calls were answered during a rolling restart", answered.load(Ordering::SeqCst));
    plane.unharmed(&NAMES, &tasks);
}
