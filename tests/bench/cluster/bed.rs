//! A cluster of processes: control nodes, each in its own, and all workers in one more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nkcluster::cluster::{Cluster, ConnectOptions};
use nkcluster::config::{ClassList, Config};
use nkcluster::ring::{Ring, RingSize};
use nkcluster::types::{NodeId, NodeUri, Secret};

use crate::counts;
use crate::parts::PART;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
const SECRET: &str = "a secret of benches";
const ITERATIONS: u32 = 1000;
/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(300);
/// Pause between two looks, none of which may cost much of the machine.
const LOOK: Duration = Duration::from_millis(250);

/// A configuration for benches: a cheap secret, and room for many connections; the rate of accepts is the default.
pub(crate) fn config(mut config: Config, id: &str, dir: &std::path::Path) -> Config {
    config.node_id = Some(NodeId::new(id).expect("valid"));
    config.password = Secret::new(SECRET);
    config.pbkdf2_iters = ITERATIONS;
    config.state_dir = dir.join(id);
    config.classes = ClassList::All;
    config.max_connections = 100_000;
    config.drain_timeout = Duration::from_secs(1);
    config.accept_rate = crate::ACCEPT_RATE;
    if let Some(most) = number("NKCLUSTER_BENCH_UNAUTHENTICATED") {
        config.max_unauthenticated = most;
    }
    config
}

/// A process of the bench, which answers lines by lines. It ends with this value.
pub(crate) struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    fn start(words: &[String]) -> Self {
        let program = std::env::current_exe().expect("a program");
        let command = Command::new(program).arg(PART).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = command.expect("the bench runs itself");
        let out = BufReader::new(child.stdout.take().expect("it is a pipe"));
        Self { child, out }
    }

    /// The next line. Nothing else of the bench may run meanwhile.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("it can be read");
        assert!(line.ends_with('\n'), "a process of the bench has ended");
        line.trim().to_owned()
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.child.stdin.as_mut().expect("it is a pipe"), "{line}").expect("it reads");
        self.line()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: nobody is told.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control node, and an operator's link to it.
pub(crate) struct ControlNode {
    pub(crate) id: NodeId,
    pub(crate) uri: NodeUri,
    pub(crate) cluster: Cluster,
    pub(crate) process: Process,
}

/// Control nodes `c1`, `c2`, … and workers `w0`, `w1`, ….
pub(crate) struct Bed {
    pub(crate) controls: Vec<ControlNode>,
    pub(crate) workers: Process,
    pub(crate) count: usize,
}

impl Bed {
    /// Everybody runs, and every worker is ready where it belongs.
    pub(crate) async fn start(controls: usize, workers: usize) -> Self {
        let mut nodes: Vec<ControlNode> = Vec::new();
        for number in 1..=controls {
            nodes.push(control(number, &nodes).await);
        }
        until("the control nodes find each other", async || agree(&nodes).await).await;
        let words = ["workers".to_owned(), workers.to_string()].into_iter().chain(nodes.iter().map(|node| node.uri.to_string()));
        let mut process = Process::start(&words.collect::<Vec<_>>());
        assert_eq!(tokio::task::block_in_place(|| process.line()), "started");
        let bed = Self { controls: nodes, workers: process, count: workers };
        bed.settled().await;
        bed
    }

    /// One more control node.
    pub(crate) async fn join(&mut self) {
        let number = self.controls.len() + 1;
        let node = control(number, &self.controls).await;
        self.controls.push(node);
    }

    pub(crate) fn first(&self) -> &Cluster {
        &self.controls[0].cluster
    }

    /// Waits until every worker is ready.
    pub(crate) async fn ready(&self) {
        until("every worker is ready", async || self.holders().await.is_some()).await;
    }

    /// Waits until every worker is ready at the control node that owns it, by a link of its own.
    pub(crate) async fn settled(&self) {
        until("every worker is where it belongs", async || self.is_settled().await).await;
    }

    async fn is_settled(&self) -> bool {
        let Some(holders) = self.holders().await else { return false };
        let Some(ring) = ring(self.first()).await else { return false };
        ring.nodes().len() == self.controls.len()
            && holders.iter().all(|(worker, (owner, remote))| {
                let is_direct = !remote.contains(" via ");
                is_direct && ring.owner(worker.as_str()) == Some(owner)
            })
    }

    /// Who has each worker, and over which way, once all of them are ready at nodes that live.
    async fn holders(&self) -> Option<BTreeMap<NodeId, (NodeId, String)>> {
        let alive: BTreeSet<&NodeId> = self.controls.iter().map(|node| &node.id).collect();
        // Cheap while many are away.
        let away = "!status=ready".parse().expect("a selector");
        let away = self.first().nodes(Some(&away), TIMEOUT).await.ok()?;
        if !away.silent.is_empty() || away.nodes.iter().any(|node| node.id.as_str().starts_with('w')) {
            return None;
        }
        let members = self.first().members(TIMEOUT).await.ok()?;
        let known: usize =
            members.iter().filter(|member| alive.contains(&member.id)).filter_map(|member| member.proxies).sum::<u32>() as usize;
        if known < self.count + self.controls.len() {
            return None;
        }
        let all = self.first().nodes(Some(&"status=ready".parse().expect("a selector")), TIMEOUT).await.ok()?;
        let held: BTreeMap<_, _> = all
            .nodes
            .into_iter()
            .filter(|node| node.id.as_str().starts_with('w'))
            .filter_map(|node| Some((node.id, (node.owner.filter(|owner| alive.contains(owner))?, node.remote?))))
            .collect();
        (all.silent.is_empty() && held.len() == self.count).then_some(held)
    }

    /// Some workers of a control node.
    pub(crate) async fn workers_of(&self, owner: &NodeId, count: usize) -> Vec<NodeId> {
        let ring = ring(self.first()).await.expect("there is a ring");
        let names = (0..self.count).map(|number| NodeId::new(format!("w{number}")).expect("valid"));
        names.filter(|name| ring.owner(name.as_str()) == Some(owner)).take(count).collect()
    }

    /// Connections that workers made so far, per slot of [`counts::SLOT_MS`].
    pub(crate) fn connections(&mut self) -> BTreeMap<u64, u64> {
        counts::read(&tokio::task::block_in_place(|| self.workers.ask("connections")))
    }
}

/// Starts a control node, which knows those before it.
async fn control(number: usize, others: &[ControlNode]) -> ControlNode {
    let id = format!("c{number}");
    // One address each: one alone has too few ports for thousands that dial, and for those that have just left.
    let listen = format!("nkcluster://127.0.0.{number}:0;transport=tls");
    let words = ["control".to_owned(), id.clone(), listen].into_iter().chain(others.iter().map(|node| node.uri.to_string()));
    let mut process = Process::start(&words.collect::<Vec<_>>());
    let uri: NodeUri = tokio::task::block_in_place(|| process.line()).parse().expect("an address");
    let options = ConnectOptions { pbkdf2_iters: ITERATIONS, ..ConnectOptions::new(vec![uri.clone()], "nkcluster", Secret::new(SECRET)) };
    let cluster = Cluster::connect(options).await.expect("it listens");
    ControlNode { id: NodeId::new(id).expect("valid"), uri, cluster, process }
}

/// The ring as a control node sees it.
async fn ring(cluster: &Cluster) -> Option<Ring> {
    let told = cluster.ring(TIMEOUT).await.ok()?;
    let nodes: BTreeSet<NodeId> = told.owners.into_iter().collect();
    Some(Ring::new(RingSize::new(told.size as usize).expect("a size"), nodes))
}

/// Whether all control nodes have the same ring, with all of them in it.
async fn agree(nodes: &[ControlNode]) -> bool {
    for node in nodes {
        if ring(&node.cluster).await.is_none_or(|ring| ring.nodes().len() != nodes.len()) {
            return false;
        }
    }
    true
}

/// Waits for something that other processes do.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(LOOK).await;
    }
}

/// Workers of the largest rows, at most so many.
pub(crate) fn at_most(workers: usize) -> usize {
    number("NKCLUSTER_BENCH_WORKERS").map_or(workers, |limit| workers.min(limit))
}

/// What a variable of the environment says.
pub(crate) fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}
