//! Three control nodes and two workers as real processes, for tests of what becomes of them together.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, ConnectOptions};
use nkcluster::types::{NodeId, NodeUri, Secret};
use rustix::process::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::support::{Cli, Daemon, ROUNDS, wait_for};

pub(crate) const WORKERS: [&str; 2] = ["w1", "w2"];

pub(crate) const NAMES: [&str; 3] = ["c1", "c2", "c3"];

pub(crate) fn index(id: &str) -> usize {
    NAMES.iter().position(|name| *name == id).expect("one of ours")
}

/// All but one.
pub(crate) fn without(id: &str) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| *name != id).collect()
}

/// Changes the command of the node of an id.
type Change = Box<dyn Fn(&str, &mut Command)>;

pub(crate) struct Plane {
    pub(crate) controls: Vec<Daemon>,
    pub(crate) workers: Vec<Daemon>,
    pub(crate) dir: tempfile::TempDir,
    change: Change,
}

const ANYWHERE: &str = "nkcluster://127.0.0.1:0;transport=tcp";

impl Plane {
    pub(crate) fn start() -> Self {
        Self::start_with(|_, _| ())
    }

    /// The same, where the command of each node is changed whenever it is started.
    pub(crate) fn start_with(change: impl Fn(&str, &mut Command) + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut plane = Self { controls: Vec::new(), workers: Vec::new(), dir, change: Box::new(change) };
        for id in NAMES {
            let control = plane.control(id, &plane.dir.path().join(id), ANYWHERE, &plane.everywhere());
            plane.controls.push(control);
        }
        for id in WORKERS {
            let worker = plane.worker(id, &plane.dir.path().join(id));
            plane.workers.push(worker);
        }
        plane.agree(&NAMES);
        plane.settled(&NAMES);
        plane
    }

    /// Starts a control node at an address, which others know already.
    fn control(&self, id: &str, dir: &Path, listen: &str, others: &str) -> Daemon {
        let mut arguments = vec!["--control", "--node-id", id, "--listen", listen];
        if !others.is_empty() {
            arguments.extend(["--cluster-addr", others]);
        }
        Daemon::start_with(dir, &arguments, |command| (self.change)(id, command))
    }

    /// Starts a worker with a directory; it knows all control nodes.
    pub(crate) fn worker(&self, id: &str, dir: &Path) -> Daemon {
        let arguments = ["--worker", "--node-id", id, "--cluster-addr", &self.everywhere()];
        Daemon::start_with(dir, &arguments, |command| (self.change)(id, command))
    }

    /// The addresses of all control nodes.
    pub(crate) fn everywhere(&self) -> String {
        self.controls.iter().map(Daemon::uri).collect::<Vec<_>>().join(",")
    }

    /// Asks a control node to stop, and waits until it has.
    pub(crate) fn stop(&mut self, id: &str) {
        let stopped = &mut self.controls[index(id)];
        stopped.signal(Signal::TERM);
        assert!(stopped.wait().success());
    }

    /// Kills a control node.
    pub(crate) fn kill(&mut self, id: &str) {
        let killed = &mut self.controls[index(id)];
        killed.signal(Signal::KILL);
        killed.wait();
    }

    /// The same control node again, at the same address.
    pub(crate) fn restart(&mut self, id: &str) {
        let again = self.start_as(id, &self.dir.path().join(id), &self.controls[index(id)].uri());
        self.controls[index(id)] = again;
    }

    /// A control node with an id and a directory, at an address.
    pub(crate) fn start_as(&self, id: &str, dir: &Path, listen: &str) -> Daemon {
        let others: Vec<String> = without(id).into_iter().map(|name| self.controls[index(name)].uri()).collect();
        self.control(id, dir, listen, &others.join(","))
    }

    /// Kills a worker, and starts it again in its directory.
    pub(crate) fn restart_worker(&mut self, at: usize) {
        self.workers[at].signal(Signal::KILL);
        self.workers[at].wait();
        self.workers[at] = self.worker(WORKERS[at], &self.dir.path().join(WORKERS[at]));
    }

    /// The command at one control node.
    pub(crate) fn at(&self, id: &str) -> Cli {
        Cli::to(&self.controls[index(id)])
    }

    /// A client that knows all control nodes.
    pub(crate) async fn connect(&self) -> Cluster {
        let uris: Vec<NodeUri> = self.controls.iter().map(|daemon| daemon.uri().parse().expect("an address")).collect();
        let mut options = ConnectOptions::new(uris, "nkcluster", Secret::new("nkcluster"));
        options.pbkdf2_iters = ROUNDS.parse().expect("a number");
        Cluster::connect(options).await.expect("connects")
    }

    /// Waits until these and no others have one ring.
    pub(crate) fn agree(&self, names: &[&str]) {
        self.ring(names, names);
    }

    /// Waits until each of `seers` has the same ring of exactly these owners.
    pub(crate) fn ring(&self, seers: &[&str], names: &[&str]) {
        wait_for(&format!("a ring of {names:?}"), || {
            let rings: Vec<Value> = seers.iter().map(|name| self.at(name).json(&["ring"])).collect();
            let mut owners: Vec<_> = rings[0]["owners"].as_array()?.iter().filter_map(Value::as_str).collect();
            owners.sort_unstable();
            owners.dedup();
            (rings.windows(2).all(|pair| pair[0] == pair[1]) && owners == names).then_some(())
        });
    }

    /// Waits until each worker is ready for each of these, by one acting proxy, which is at one of them; returns where.
    pub(crate) fn settled(&self, names: &[&str]) -> Vec<String> {
        self.settled_at(names, names)
    }

    /// The same for these, wherever of `places` it is.
    pub(crate) fn settled_at(&self, names: &[&str], places: &[&str]) -> Vec<String> {
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

    /// The terms under which the workers obey.
    pub(crate) fn terms(&self) -> Vec<Value> {
        WORKERS.iter().map(|worker| self.at("c1").json(&["info", worker])["proxies"][0]["term"].clone()).collect()
    }

    /// Starts a task on each worker that takes longer than any test.
    pub(crate) fn start_tasks(&self) -> Vec<(Value, String)> {
        self.workers.iter().map(|worker| self.start_task(worker)).collect()
    }

    /// The same on one of them; returns the incarnation of the worker, and the id of the task.
    pub(crate) fn start_task(&self, worker: &Daemon) -> (Value, String) {
        let task = self.at("c1").start_long_task(worker);
        (self.at("c1").json(&["info", worker.id()])["incarnation"].clone(), task)
    }

    /// That the workers are the same processes, run their tasks once, and are called through each of these.
    pub(crate) fn unharmed(&self, names: &[&str], tasks: &[(Value, String)]) {
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

/// Calls the workers all the time, one call after the other. Each call must be answered, at once and without being tried again.
pub(crate) struct Caller {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    calls: JoinHandle<()>,
}

impl Caller {
    /// Begins.
    pub(crate) fn start(plane: &Plane) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let cluster = runtime.block_on(plane.connect());
        let calls = runtime.spawn(keep_calling(cluster, Arc::clone(&stop), Arc::clone(&answered)));
        Self { runtime, stop, answered, calls }
    }

    /// Waits until so many more calls were answered.
    pub(crate) fn wait_for(&self, more: u64) {
        let enough = self.answered.load(Ordering::SeqCst) + more;
        let what = format!("{more} calls to be answered");
        wait_for(&what, || (self.calls.is_finished() || self.answered.load(Ordering::SeqCst) >= enough).then_some(()));
    }

    /// Ends; no call has failed.
    pub(crate) fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.runtime.block_on(self.calls).expect("every call was answered");
    }
}

async fn keep_calling(cluster: Cluster, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) {
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let worker = NodeId::new(WORKERS[usize::from(number % 2 == 0)]).expect("a name");
        let reply = cluster.call_function(&worker, "echo", vec![Value::from(number)], CallOptions::default()).await;
        assert_eq!(reply.expect("answered"), Value::from(vec![number]));
        answered.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
