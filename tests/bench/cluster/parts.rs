//! What the processes of the bench do: each does as the lines say that it reads, and ends when there are no more.

use std::io::BufRead as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nkcluster::cluster::Cluster;
use nkcluster::config::Config;
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::types::{NodeId, NodeUri};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;

use crate::bed::{TIMEOUT, config, number};
use crate::counts;

/// The argument by which the bench runs itself again; a part and more follow.
pub(crate) const PART: &str = "--part";
/// Workers that start at the same time.
const STARTING: usize = 32;
/// Room for everything else that a process has open.
const OTHER_FILES: u64 = 200;
/// Round trips that are measured for each line that asks for them.
const ROUND_TRIPS: Duration = Duration::from_millis(500);

pub(crate) fn run(words: &[String]) {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build().expect("a runtime");
    match words {
        [part, id, listen, others @ ..] if part == "control" => runtime.block_on(control(id, listen, others)),
        [part, count, uris @ ..] if part == "workers" => runtime.block_on(workers(count.parse().expect("a number"), uris)),
        _ => panic!("unknown part {words:?}"),
    }
}

/// Threads of each process.
fn threads() -> usize {
    number("NKCLUSTER_BENCH_THREADS").unwrap_or(2)
}

fn raise_file_limit() {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).expect("the hard limit may be used");
}

fn uris(words: &[String]) -> Vec<NodeUri> {
    words.iter().map(|uri| uri.parse().expect("an address")).collect()
}

/// The next line of the bench; none if it has ended.
async fn told() -> Option<String> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|bytes| (bytes > 0).then(|| line.trim().to_owned()))
    });
    read.await.expect("no panic").expect("it can be read")
}

async fn control(id: &str, listen: &str, others: &[String]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(Config::control(), id, dir.path());
    config.listen = vec![listen.parse().expect("an address")];
    config.cluster_addr = uris(others);
    let node = Node::start(config, Classes::new()).await.expect("the control node starts");
    println!("{}", node.listen()[0]);
    let cluster = node.cluster().expect("a control node");
    while let Some(worker) = told().await {
        println!("{}", round_trip_us(cluster.clone(), NodeId::new(worker).expect("a name")).await);
    }
}

/// Median round trip of a call of this process to a worker, in microseconds.
async fn round_trip_us(cluster: Cluster, worker: NodeId) -> f64 {
    let measured = tokio::spawn(async move {
        let (mut samples, from) = (Vec::new(), Instant::now());
        while from.elapsed() < ROUND_TRIPS {
            let sent = Instant::now();
            cluster.ping(&worker, TIMEOUT).await.expect("answered");
            samples.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        samples.sort_unstable_by(f64::total_cmp);
        samples[samples.len() / 2]
    });
    measured.await.expect("no panic")
}

async fn workers(count: usize, addresses: &[String]) {
    let hard = getrlimit(Resource::Nofile).maximum;
    let needed = count as u64 + OTHER_FILES;
    assert!(
        hard.is_none_or(|hard| hard >= needed),
        "{count} workers need {needed} open files, the hard limit is {hard:?}: raise it, or set NKCLUSTER_BENCH_WORKERS"
    );
    counts::listen();
    let (dir, uris) = (Arc::new(tempfile::tempdir().expect("a temporary directory")), uris(addresses));
    let (mut starting, mut nodes): (JoinSet<NodeHandle>, Vec<NodeHandle>) = (JoinSet::new(), Vec::new());
    for number in 0..count {
        if starting.len() >= STARTING {
            nodes.extend(starting.join_next().await.transpose().expect("no panic"));
        }
        let (uris, dir) = (uris.clone(), Arc::clone(&dir));
        starting.spawn(async move {
            let mut worker = config(Config::worker(), &format!("w{number}"), dir.path());
            worker.cluster_addr = uris;
            Node::start(worker, Classes::new()).await.expect("the worker starts")
        });
    }
    nodes.extend(starting.join_all().await);
    println!("started");
    while told().await.is_some() {
        println!("{}", counts::told());
    }
}
