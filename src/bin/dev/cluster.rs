//! The processes of a development cluster together.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nkcluster::types::NodeId;
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinSet;

use super::child::{Running, STOP_TIMEOUT, Start};
use super::public::Public;
use super::{field, plane, ports};
use crate::cli::{DEVELOPMENT_URI, DevArgs};
use crate::failure::{Failure, Outcome};

/// Longest time until every node is ready in the eyes of the cluster.
const ALL_READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks at the cluster.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// What all nodes of a development cluster have in common: every class, and times for impatient people.
const SETTINGS: &str = "\
classes = [\"*\"]
grants = [\"*\"]
ping_time = 1000
proxy_connect_retry = 1000
stats_time = 2000
drain_timeout = 5000
";

/// One node: dev1 and so on.
#[derive(Debug)]
struct DevNode {
    id: NodeId,
    number: u16,
    port: u16,
    start: Start,
    running: Option<Running>,
    is_death_told: bool,
}

/// Control nodes first, then workers.
#[derive(Debug)]
pub(super) struct DevCluster {
    dir: PathBuf,
    controls: u16,
    nodes: Vec<DevNode>,
}

impl DevCluster {
    /// Looks for the ports and writes the configuration; nothing runs yet.
    pub(super) fn new(args: &DevArgs, dir: PathBuf) -> Outcome<Self> {
        let count = args.controls + args.workers;
        let base = ports::base(args.base_port, count)?;
        let mut cluster = Self { dir, controls: args.controls, nodes: Vec::with_capacity(count.into()) };
        let control_uris: Vec<_> = (0..args.controls).map(|i| uri(base + i)).collect();
        for number in 1..=count {
            let node = cluster.prepare(number, base + number - 1, &control_uris)?;
            cluster.nodes.push(node);
        }
        Ok(cluster)
    }

    fn prepare(&self, number: u16, port: u16, controls: &[String]) -> Outcome<DevNode> {
        let id = NodeId::new(format!("dev{number}"))?;
        let dir = self.dir.join(id.as_str());
        let (settings, log) = (dir.join("node.toml"), dir.join("log"));
        let failed = |error: std::io::Error| Failure::io(format_args!("cannot prepare {}", dir.display()), &error);
        std::fs::create_dir_all(&dir).map_err(failed)?;
        std::fs::write(&settings, SETTINGS).map_err(failed)?;
        let is_control = number <= self.controls;
        let role = if is_control { "--control" } else { "--worker" };
        let text = |path: &Path| path.display().to_string();
        let mut arguments = vec![role.to_owned(), "--exit-with-stdin".to_owned()];
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--config", text(&settings));
        flag("--node-id", id.to_string());
        flag("--listen", uri(port));
        flag("--meta", labels(number, is_control));
        flag("--state-dir", text(&dir));
        flag("--http", "off".to_owned());
        if !is_control || controls.len() > 1 {
            flag("--cluster-addr", controls.join(", "));
        }
        Ok(DevNode { id, number, port, start: Start { arguments, log }, running: None, is_death_told: false })
    }

    /// Starts every node and waits for their ready lines. The first that fails ends it; the others are stopped by [`stop`](Self::stop).
    pub(super) async fn start(&mut self) -> Outcome {
        let mut starts = JoinSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let start = node.start.clone();
            starts.spawn(async move { (index, Running::start(&start).await) });
        }
        let mut failure = None;
        while let Some(started) = starts.join_next().await {
            let (index, running) = started.map_err(|error| Failure::new("internal", error.to_string()))?;
            let node = &mut self.nodes[index];
            match running {
                Ok(running) => node.running = Some(running),
                Err(error) => {
                    failure.get_or_insert(node.start_failure(error));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Waits until all control nodes agree on one ring and show every node as ready; returns the nodes.
    pub(super) async fn wait_ready(&self, public: &Public) -> Outcome<Vec<Value>> {
        let controls = self.controls();
        plane::until(ALL_READY_TIMEOUT, async || {
            plane::agreed(public, &controls).await?;
            let nodes = public.nodes().await?;
            match self.are_ready(&nodes) {
                true => Ok(nodes),
                false => {
                    let seen: Vec<_> = nodes.iter().map(|node| format!("{} {}", field(node, "id"), field(node, "status"))).collect();
                    Err(Failure::new("timeout", format!("not all nodes are ready: {}", seen.join(", "))))
                }
            }
        })
        .await
    }

    /// Whether a list of nodes shows all of ours as ready, and nobody else.
    pub(super) fn are_ready(&self, nodes: &[Value]) -> bool {
        let is_ready = |node: &DevNode| nodes.iter().any(|seen| field(seen, "id") == node.id.as_str() && field(seen, "status") == "ready");
        nodes.len() == self.nodes.len() && self.nodes.iter().all(is_ready)
    }

    /// Waits for a node to end by itself that was not told before.
    pub(super) async fn next_death(&mut self) -> (NodeId, ExitStatus) {
        loop {
            for node in &mut self.nodes {
                if let Some(status) = node.running.as_ref().and_then(Running::status)
                    && !node.is_death_told
                {
                    node.is_death_told = true;
                    return (node.id.clone(), status);
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops every node: workers first, so that they can say goodbye.
    pub(super) async fn stop(&mut self) {
        let (controls, workers) = self.nodes.split_at_mut(self.controls.into());
        for group in [workers, controls] {
            let mut stops = JoinSet::new();
            for mut running in group.iter_mut().filter_map(|node| node.running.take()) {
                stops.spawn(async move { running.stop().await });
            }
            stops.join_all().await;
        }
    }

    /// Kills every node and waits for their ends, which come at once.
    pub(super) async fn kill(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut running) = node.running.take() {
                running.kill();
                running.wait().await;
            }
        }
    }

    /// Sends a signal to a node.
    pub(super) fn signal(&self, id: &NodeId, signal: Signal) -> Outcome {
        self.running(id)?.signal(signal)
    }

    /// Asks a node to end as SIGTERM does, and waits until it has drained.
    pub(super) async fn end_node(&mut self, id: &NodeId) -> Outcome<ExitStatus> {
        let node = self.node_mut(id)?;
        let mut running = node.running.take().ok_or_else(|| Failure::new("not_found", format!("{id} does not run")))?;
        running.signal(Signal::TERM)?;
        let ended = tokio::time::timeout(STOP_TIMEOUT, running.wait()).await;
        ended.map_err(|_| Failure::new("timeout", format!("{id} has not ended within {} s", STOP_TIMEOUT.as_secs())))
    }

    /// Kills one node and waits for its end, without a chance to say goodbye.
    pub(super) async fn kill_node(&mut self, id: &NodeId) -> Outcome {
        let node = self.node_mut(id)?;
        if let Some(mut running) = node.running.take() {
            running.signal(Signal::KILL)?;
            running.wait().await;
        }
        Ok(())
    }

    /// Starts a node again under the same name.
    pub(super) async fn start_again(&mut self, id: &NodeId) -> Outcome {
        let node = self.node_mut(id)?;
        let running = Running::start(&node.start).await.map_err(|error| node.start_failure(error))?;
        node.running = Some(running);
        Ok(())
    }

    fn node_mut(&mut self, id: &NodeId) -> Outcome<&mut DevNode> {
        self.nodes.iter_mut().find(|node| node.id == *id).ok_or_else(|| Failure::new("not_found", format!("{id} is no node of ours")))
    }

    fn running(&self, id: &NodeId) -> Outcome<&Running> {
        let running = self.nodes.iter().find(|node| node.id == *id).and_then(|node| node.running.as_ref());
        running.ok_or_else(|| Failure::new("not_found", format!("{id} does not run")))
    }

    /// Where the directories of the nodes are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log of a node.
    pub(super) fn log_of(&self, id: &NodeId) -> PathBuf {
        self.dir.join(id.as_str()).join("log")
    }

    /// The first control node.
    pub(super) fn first(&self) -> &NodeId {
        &self.nodes[0].id
    }

    /// The last node: a worker, if there is one.
    pub(super) fn last(&self) -> &NodeId {
        self.nodes.last().map_or(self.first(), |node| &node.id)
    }

    /// The workers.
    pub(super) fn workers(&self) -> Vec<NodeId> {
        self.nodes[usize::from(self.controls)..].iter().map(|node| node.id.clone()).collect()
    }

    /// Every node.
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id.clone()).collect()
    }

    /// The control nodes, with their addresses.
    pub(super) fn controls(&self) -> Vec<(NodeId, String)> {
        self.nodes[..usize::from(self.controls)].iter().map(|node| (node.id.clone(), uri(node.port))).collect()
    }

    /// Addresses of the control nodes.
    pub(super) fn connect_uri(&self) -> String {
        self.controls().into_iter().map(|(_, uri)| uri).collect::<Vec<_>>().join(", ")
    }

    /// What a person must add to `nkcluster` to reach this cluster.
    pub(super) fn connect_argument(&self) -> String {
        match self.controls().first() {
            Some((_, first)) if first != DEVELOPMENT_URI => format!(" --connect '{}'", self.connect_uri()),
            _ => String::new(),
        }
    }
}

impl DevNode {
    fn start_failure(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Told { code, .. } if code == ports::IN_USE => ports::in_use(self.port, self.number.into()),
            failure => {
                let last = last_line(&self.start.log).map(|line| format!(" ({line})")).unwrap_or_default();
                failure.context(format_args!("{}{last}", self.id))
            }
        }
    }
}

/// What a node said last: the directory with its log may be gone when somebody wants to look.
fn last_line(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}

fn uri(port: u16) -> String {
    format!("nkcluster://127.0.0.1:{port};transport=tcp")
}

/// The labels of the original's quick start: control nodes are `control` and `nodeN`, and the odd ones take orders; workers are `nodeN`.
fn labels(number: u16, is_control: bool) -> String {
    match (is_control, number % 2) {
        (true, 1) => format!("control, node{number}, order;odd=true"),
        (true, _) => format!("control, node{number}"),
        (false, _) => format!("node{number}"),
    }
}

#[cfg(test)]
mod tests {
    use nkcluster::types::Meta;

    use super::*;

    #[test]
    fn labels_are_those_of_the_quick_start() {
        assert_eq!(labels(1, true), "control, node1, order;odd=true");
        assert_eq!(labels(2, true), "control, node2");
        assert_eq!(labels(3, true), "control, node3, order;odd=true");
        assert_eq!(labels(4, false), "node4");
        assert_eq!(labels(5, false), "node5");
        assert!(labels(1, true).parse::<Meta>().is_ok());
    }
}
