//! Small clusters for tests.

use std::time::Duration;

use nkcluster::cluster::{Cluster, ConnectOptions};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{NodeId, NodeStatus, NodeUri, Secret};

/// Far longer than anything here takes: reached only when something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// How long calls wait in tests.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// A secret of tests, and few enough rounds that a debug build derives it at once.
const PASSWORD: &str = "a secret of tests";
const ITERATIONS: u32 = 16;

pub(crate) fn node_id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid id")
}

pub(crate) fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

fn common(mut config: Config, id: &str, dir: &std::path::Path) -> Config {
    config.node_id = Some(node_id(id));
    config.password = Secret::new(PASSWORD);
    config.pbkdf2_iters = ITERATIONS;
    config.state_dir = dir.join(id);
    config.classes = ClassList::All;
    config.ping_time = Duration::from_millis(500);
    config.proxy_connect_retry = Duration::from_millis(200);
    config.stats_time = Duration::from_secs(1);
    config.drain_timeout = Duration::from_secs(2);
    config
}

/// A cluster on the memory network.
pub(crate) struct MemoryCluster {
    pub(crate) net: MemoryNet,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) control: NodeHandle,
    pub(crate) cluster: Cluster,
}

impl MemoryCluster {
    /// A control node `c1`.
    pub(crate) async fn start(classes: Classes) -> Self {
        let net = MemoryNet::new();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let control = Node::start_in(&net, control_config(&dir, "c1", "nkcluster://c1;transport=memory"), classes).await.expect("starts");
        let cluster = control.cluster().expect("a control node has the cluster");
        Self { net, dir, control, cluster }
    }

    /// A worker that dials `c1` and listens nowhere.
    pub(crate) async fn worker(&self, id: &str, classes: Classes) -> NodeHandle {
        self.worker_with(id, classes, |_| ()).await
    }

    /// A worker whose configuration is changed before it starts. Returns when the cluster sees it ready.
    pub(crate) async fn worker_with(&self, id: &str, classes: Classes, change: impl FnOnce(&mut Config)) -> NodeHandle {
        let mut config = worker_config(&self.dir, id, "nkcluster://c1;transport=memory");
        change(&mut config);
        let worker = Node::start_in(&self.net, config, classes).await.expect("starts");
        self.wait_status(id, NodeStatus::Ready).await;
        worker
    }

    pub(crate) async fn wait_status(&self, id: &str, status: NodeStatus) {
        wait_status(&self.cluster, id, status).await;
    }

    /// A client with the role `admin`.
    pub(crate) async fn admin(&self) -> Cluster {
        let mut options = ConnectOptions::new(vec![uri("nkcluster://c1;transport=memory")], "nkcluster", Secret::new(PASSWORD));
        options.pbkdf2_iters = ITERATIONS;
        options.memory = Some(self.net.node("admin"));
        Cluster::connect(options).await.expect("connects")
    }
}

pub(crate) fn control_config(dir: &tempfile::TempDir, id: &str, listen: &str) -> Config {
    let mut config = common(Config::control(), id, dir.path());
    config.listen = vec![uri(listen)];
    config
}

pub(crate) fn worker_config(dir: &tempfile::TempDir, id: &str, cluster_addr: &str) -> Config {
    let mut config = common(Config::worker(), id, dir.path());
    config.cluster_addr = NodeUri::parse_list(cluster_addr).expect("valid URLs");
    config
}

/// Waits until the cluster sees a node in a status.
pub(crate) async fn wait_status(cluster: &Cluster, id: &str, status: NodeStatus) {
    let id = node_id(id);
    eventually(&format!("{id} is {status}"), async || cluster.info(&id, TIMEOUT).await.is_ok_and(|info| info.status == status)).await;
}

/// Waits for a condition, with a deadline.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
