//! What an idle worker costs its control node in memory.
//!
//! ```text
//!   bench ──► process `holder`: a control node, and nothing else ◄── connections ── process `workers`: 10 000 nodes
//!         ──► process `bare-holder`: bare tokio, a task for each ◄── connections ── process `bare-workers`
//! ```
//!
//! The bench runs itself again for each of them, so that no row before and no worker counts. The holder waits for the first few workers before it looks at its memory, for
//! what is made once, and then until every worker was pinged. The baseline keeps as many bare connections, with one read under way on each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nkcluster::config::Config;
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::types::{NodeStatus, NodeUri};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::bare;
use crate::bed::{TIMEOUT, config, number};
use crate::report::{Report, Row};

/// The argument by which the bench runs itself again; a part, a transport and more follow.
pub(crate) const PART: &str = "--part";
/// Addresses of the listener: one alone has too few ports for many diallers and those that have just left.
const ADDRESSES: usize = 4;
/// Workers that are there before memory is looked at.
const FIRST: usize = 200;
/// Workers that start at the same time.
const STARTING: usize = 32;
/// Room for everything else that a process has open.
const OTHER_FILES: u64 = 200;
const PING_TIME: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(250);

fn workers_wanted() -> usize {
    number("NKCLUSTER_BENCH_WORKERS").map_or(10_000, |count| count as usize)
}

/// The rows of both transports.
pub(crate) fn run(report: &mut Report) {
    for (name, transport) in [("memory_idle_tcp", "tcp"), ("memory_idle_tls", "tls")] {
        if report.wants(name) {
            let value = measured_by(&["holder", transport]);
            let baseline = measured_by(&["bare-holder", transport]);
            report.row(Row { name, value, unit: "KiB", baseline });
        }
    }
}

/// Runs a part, which prints one number.
fn measured_by(part: &[&str]) -> f64 {
    let mut child = spawn(part);
    let line = next_line(&mut child);
    assert!(child.wait().expect("a child").success(), "the process `{part:?}` fails");
    line.parse().expect("it prints a number")
}

fn spawn(part: &[&str]) -> Child {
    let program = std::env::current_exe().expect("a program");
    let command = Command::new(program).arg(PART).args(part).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    command.expect("the bench runs itself")
}

fn next_line(child: &mut Child) -> String {
    let mut line = String::new();
    let out = child.stdout.as_mut().expect("it is a pipe");
    BufReader::with_capacity(1, out).read_line(&mut line).expect("a line");
    line.trim().to_owned()
}

/// What one of the processes does.
pub(crate) fn part(arguments: &[String]) {
    let count = workers_wanted();
    raise_file_limit(count);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["holder", transport] => runtime.block_on(hold(transport, count)),
        ["workers", ref uris @ ..] => runtime.block_on(be_workers(uris, count)),
        ["bare-holder", transport] => runtime.block_on(bare_hold(transport, count)),
        ["bare-workers", transport, addr, certificate] => {
            runtime.block_on(be_bare_workers(transport, addr.parse().expect("an address"), certificate, count));
        }
        _ => panic!("unknown part {words:?}"),
    }
}

fn raise_file_limit(workers: usize) {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).expect("the hard limit may be used");
    let needed = workers as u64 + OTHER_FILES;
    assert!(
        hard.is_none_or(|hard| hard >= needed),
        "{workers} workers need {needed} open files, the hard limit is {hard:?}: raise it, or set NKCLUSTER_BENCH_WORKERS"
    );
}

/// Memory of this process, in KiB.
fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is there");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

/// Whoever waits for something that the other process does.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(LOOK).await;
    }
}

async fn hold(transport: &str, count: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut control = config(Config::control(), "c1", dir.path());
    control.ping_time = PING_TIME;
    let listen = |n: usize| format!("nkcluster://127.0.0.{n}:0;transport={transport}").parse().expect("valid");
    control.listen = (1..=ADDRESSES).map(listen).collect();
    let control = Node::start(control, Classes::new()).await.expect("the control node starts");
    let cluster = control.cluster().expect("a control node");
    let pinged = async || {
        let reply = cluster.nodes(None, TIMEOUT).await.expect("told");
        reply.nodes.iter().filter(|node| node.status == NodeStatus::Ready && node.latency_ms.is_some() && node.stats.is_some()).count()
    };

    let uris: Vec<String> = control.listen().iter().map(ToString::to_string).collect();
    let mut words = vec!["workers"];
    words.extend(uris.iter().map(String::as_str));
    let mut workers = spawn(&words);
    // The control node is a worker too.
    until("the first workers", async || pinged().await > FIRST).await;
    let (known, before) = (pinged().await, resident_kib());
    tell(&mut workers, "go on");
    until("all workers", async || pinged().await > count).await;
    let grown = resident_kib() - before;
    println!("{}", grown / (count + 1 - known) as f64);
    workers.kill().expect("it runs");
    workers.wait().expect("a child");
}

fn tell(child: &mut Child, word: &str) {
    writeln!(child.stdin.as_mut().expect("it is a pipe"), "{word}").expect("it reads");
}

/// Waits for a word of the process that started this one.
async fn told() {
    let read = tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new()));
    read.await.expect("no panic").expect("a line");
}

async fn be_workers(uris: &[&str], count: usize) {
    let uris: Vec<NodeUri> = uris.iter().map(|uri| uri.parse().expect("valid")).collect();
    let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let mut nodes = start_workers(0..FIRST.min(count), &uris, &dir).await;
    told().await;
    nodes.extend(start_workers(FIRST..count, &uris, &dir).await);
    // The holder ends this process.
    std::future::pending::<()>().await;
    drop(nodes);
}

async fn start_workers(numbers: std::ops::Range<usize>, uris: &[NodeUri], dir: &Arc<tempfile::TempDir>) -> Vec<NodeHandle> {
    let (mut starting, mut nodes) = (JoinSet::new(), Vec::new());
    for number in numbers {
        if starting.len() >= STARTING {
            nodes.extend(starting.join_next().await.transpose().expect("no panic"));
        }
        let (uri, dir) = (uris[number % uris.len()].clone(), Arc::clone(dir));
        starting.spawn(async move {
            let mut worker = config(Config::worker(), &format!("w{number}"), dir.path());
            worker.cluster_addr = vec![uri];
            worker.ping_time = PING_TIME;
            Node::start(worker, Classes::new()).await.expect("the worker starts")
        });
    }
    nodes.extend(starting.join_all().await);
    nodes
}

async fn bare_hold(transport: &str, count: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound").to_string();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("certificate.der");
    let (acceptor, certificate) = bare::tls_acceptor();
    std::fs::write(&path, &certificate).expect("a file");
    let held = Arc::new(AtomicUsize::new(0));
    let (is_tls, counter) = (transport == "tls", Arc::clone(&held));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, counter) = (acceptor.clone(), Arc::clone(&counter));
            tokio::spawn(async move {
                if is_tls {
                    let stream = Box::pin(acceptor.accept(stream)).await.expect("TLS");
                    read_on(stream, &counter).await;
                } else {
                    read_on(stream, &counter).await;
                }
            });
        }
    });
    let mut workers = spawn(&["bare-workers", transport, &addr, path.to_str().expect("it is text")]);
    until("the first connections", async || held.load(Ordering::Relaxed) >= FIRST).await;
    let before = resident_kib();
    tell(&mut workers, "go on");
    until("all connections", async || held.load(Ordering::Relaxed) >= count).await;
    println!("{}", (resident_kib() - before) / (count - FIRST.min(count - 1)) as f64);
    workers.kill().expect("it runs");
    workers.wait().expect("a child");
}

async fn read_on(mut stream: impl AsyncRead + Unpin, counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
    let mut buffer = Vec::with_capacity(2048);
    while stream.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
        buffer.clear();
    }
}

async fn be_bare_workers(transport: &str, addr: SocketAddr, certificate: &str, count: usize) {
    let connector = bare::tls_connector(std::fs::read(certificate).expect("a file").into());
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for number in 0..count {
        if number == FIRST {
            told().await;
        }
        let stream = TcpStream::connect(addr).await.expect("connects");
        if transport == "tls" {
            held.push(Box::new(connector.connect(bare::server_name(), stream).await.expect("TLS")));
        } else {
            held.push(Box::new(stream));
        }
    }
    std::future::pending::<()>().await;
    drop(held);
}
