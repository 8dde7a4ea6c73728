//! Rows that need a running cluster or an S3 server: how long one file takes, and what workers with nothing to do ask of a storage.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nkcluster::cluster::{Cluster, ConnectOptions};
use nkcluster::types::{NodeStatus, NodeUri, Secret, Selector};
use nkcluster_file_sync::queue::RunStart;
use nkcluster_file_sync::{Control, Crew, End, Here, Options, Order, Queue, RemoteConfig, Remotes, RunId, Task, Way, Workers, run};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::report::{Report, Row};
use crate::{Worker, has, median};

const PASSWORD: &str = "a password of benches";
const ROUNDS: &str = "1000";
const COPIES: usize = 100;
const READY: Duration = Duration::from_secs(30);
/// How long a worker is watched, once it is idle.
const WATCHED: Duration = Duration::from_secs(20);
/// After so long without work a worker looks as rarely as it ever does.
const SETTLED: Duration = Duration::from_secs(5);

pub(crate) fn rows(report: &mut Report, room: &Path) {
    if !report.wants_any(&["copy_one_cluster", "copy_one_queue", "idle_calls_cluster", "idle_calls_queue"]) {
        return;
    }
    let dir = TempDir::new_in(room).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let nodes = Nodes::start(dir.path());
    let (cluster, selector) = (runtime.block_on(nodes.connect()), "bench".parse().expect("a selector"));
    let mut copies = One { dir: dir.path(), number: 0 };
    // By the way that is measured and in the process itself, in turns.
    let mut one = |name, way: &dyn Way| {
        // Both are warm before anything counts.
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..=COPIES {
            for (way, times) in [way, &Here].into_iter().zip(&mut times) {
                let time = runtime.block_on(copies.next(way));
                if round > 0 {
                    times.push(time);
                }
            }
        }
        let [value, baseline] = times.map(median);
        Row { name, value, unit: "ms", baseline }
    };
    let workers = Workers::new(cluster.clone(), Selector::clone(&selector));
    if report.wants("copy_one_cluster") {
        report.row(one("copy_one_cluster", &workers));
    }
    if report.wants("copy_one_queue") {
        let remote = dir.path().join("work").to_str().expect("text").to_owned();
        let opened = Remotes::new(RemoteConfig::default()).open(&remote).expect("opened");
        let store = runtime.block_on(opened.open_queue()).expect("a queue");
        // Nothing stays of a run that has ended, so each may have the same id.
        let (run, crew) = (RunId::from_random([1; 20]), Some(Crew::new(cluster, selector)));
        report.row(one("copy_one_queue", &Queue { store, remote, run, start: RunStart::New, lease: READY, crew }));
    }
    if report.wants_any(&["idle_calls_cluster", "idle_calls_queue"]) && has("rclone") {
        let server = S3::start(dir.path());
        if report.wants("idle_calls_cluster") {
            // It has used the storage before it is idle.
            std::fs::write(dir.path().join("one"), "a file").expect("written");
            let (source, destination) = (dir.path().join("one"), server.remote("bucket/copied"));
            runtime.block_on(copied(&workers, source.to_str().expect("text"), &destination));
            assert!(server.calls() > 0, "the copy went by another way");
            report.row(Row { name: "idle_calls_cluster", value: server.calls_of_idle(), unit: "1/s", baseline: 1.0 });
        }
        if report.wants("idle_calls_queue") {
            let worker = Worker::start(&server.remote("bucket/work"), "idle");
            report.row(Row { name: "idle_calls_queue", value: server.calls_of_idle(), unit: "1/s", baseline: 1.0 });
            drop(worker);
        }
    }
}

async fn copied(way: &dyn Way, source: &str, destination: &str) {
    let order = Order::new(Task::Copy, source, destination, &Options::default());
    let (told, mut hears) = mpsc::channel(16);
    let hearing = tokio::spawn(async move { while hears.recv().await.is_some() {} });
    let remotes = Arc::new(Remotes::new(RemoteConfig::default()));
    let summary = run(&order, way, &remotes, &Control::default(), told).await;
    hearing.await.expect("it does not panic");
    assert!(summary.end == End::Success && summary.stats.transfers == 1, "{summary:?}");
}

/// Copies of one small file, each a new one.
struct One<'a> {
    dir: &'a Path,
    number: usize,
}

impl One<'_> {
    /// Milliseconds of the next one.
    async fn next(&mut self, way: &dyn Way) -> f64 {
        self.number += 1;
        let source = self.dir.join(format!("one-{}", self.number));
        std::fs::create_dir(&source).expect("made");
        std::fs::write(source.join("file"), vec![7; 4096]).expect("written");
        let destination = self.dir.join(format!("one-{}-copied", self.number));
        let start = Instant::now();
        copied(way, source.to_str().expect("text"), destination.to_str().expect("text")).await;
        start.elapsed().as_secs_f64() * 1e3
    }
}

/// A control node and a worker, as daemons.
struct Nodes {
    at: NodeUri,
    _daemons: Vec<Ended>,
}

/// A process that ends with the bench.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Nodes {
    fn start(dir: &Path) -> Self {
        let (control, listen) = daemon(dir, &["--control", "--node-id", "c1", "--listen", "nkcluster://127.0.0.1:0;transport=tcp"]);
        let at = listen.expect("it listens");
        let (worker, _) = daemon(dir, &["--worker", "--node-id", "w1", "--meta", "bench", "--cluster-addr", &at]);
        Self { at: at.parse().expect("a URL"), _daemons: vec![control, worker] }
    }

    async fn connect(&self) -> Cluster {
        let mut options = ConnectOptions::new(vec![self.at.clone()], "nkcluster", Secret::new(PASSWORD));
        options.pbkdf2_iters = ROUNDS.parse().expect("a number");
        let cluster = Cluster::connect(options).await.expect("connects");
        cluster.wait_status(&"w1".parse().expect("an id"), NodeStatus::Ready, READY).await.expect("ready");
        cluster
    }
}

/// A daemon that is ready, and where it listens.
fn daemon(dir: &Path, arguments: &[&str]) -> (Ended, Option<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nkcluster-node"));
    command.args(arguments).arg("--state-dir").arg(dir.join(arguments[2]));
    let settings = [("PASSWORD", PASSWORD), ("PBKDF2_ITERS", ROUNDS), ("CLASSES", "*"), ("GRANTS", "file_sync")];
    command.envs(settings.map(|(name, value)| (format!("NKCLUSTER_{name}"), value)));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("text");
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a ready line: {line:?}"));
    (Ended(child), ready["listen"][0].as_str().map(str::to_owned))
}

/// `rclone serve s3`, behind a proxy that counts requests.
struct S3 {
    port: u16,
    calls: Arc<AtomicU64>,
    _server: Ended,
}

impl S3 {
    fn start(dir: &Path) -> Self {
        let served = dir.join("served");
        std::fs::create_dir_all(served.join("bucket")).expect("made");
        let behind = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let mut command = Command::new("rclone");
        command.args(["serve", "s3", "--config", "/dev/null", "--auth-key", "user,secret", "--addr", &behind.to_string()]).arg(served);
        let server = Ended(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
        let deadline = Instant::now() + READY;
        while TcpStream::connect(behind).is_err() {
            assert!(Instant::now() < deadline, "rclone does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (front, calls) = (TcpListener::bind("127.0.0.1:0").expect("a free port"), Arc::<AtomicU64>::default());
        let (port, counted) = (front.local_addr().expect("bound").port(), Arc::clone(&calls));
        std::thread::spawn(move || {
            for client in front.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(behind).expect("it serves");
                let (back, to) = (server.try_clone().expect("cloned"), client.try_clone().expect("cloned"));
                std::thread::spawn(move || passed(back, to, None));
                let counted = Arc::clone(&counted);
                std::thread::spawn(move || passed(client, server, Some(&counted)));
            }
        });
        Self { port, calls, _server: server }
    }

    fn remote(&self, path: &str) -> String {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        format!(":s3,provider=Rclone,endpoint=\"{endpoint}\",access_key_id=user,secret_access_key=secret,region=us-east-1:{path}")
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Requests in a second, once whoever is there has nothing to do.
    fn calls_of_idle(&self) -> f64 {
        std::thread::sleep(SETTLED);
        let before = self.calls();
        std::thread::sleep(WATCHED);
        (self.calls() - before) as f64 / WATCHED.as_secs_f64()
    }
}

/// Passes bytes on until one side ends, and counts the heads of requests among them.
fn passed(mut from: TcpStream, mut to: TcpStream, heads: Option<&AtomicU64>) {
    const HEAD: &[u8] = b" HTTP/1.1\r\n";
    // The end of what came before, in which a head may have begun.
    let (mut buffer, mut kept) = (vec![0; 64 * 1024], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer[kept..]) {
        if to.write_all(&buffer[kept..kept + count]).is_err() {
            break;
        }
        let Some(heads) = heads else { continue };
        let seen = kept + count;
        heads.fetch_add(buffer[..seen].windows(HEAD.len()).filter(|window| *window == HEAD).count() as u64, Ordering::Relaxed);
        kept = seen.min(HEAD.len() - 1);
        buffer.copy_within(seen - kept..seen, 0);
    }
    // The other direction ends as well.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
