//! Small clusters for tests, on the memory network and on loopback sockets.

use std::path::Path;
use std::time::Duration;

use nkcluster::Error;
use nkcluster::cluster::{CallOptions, Cluster, ConnectOptions, NodeInfo};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{NodeId, NodeStatus, NodeUri, Secret, TaskId, Transport};

/// Far longer than anything here takes: reached only when something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// How long calls wait in tests.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// A secret of tests, and few enough rounds that a debug build derives it at once.
pub(crate) const PASSWORD: &str = "a secret of tests";
pub(crate) const ITERATIONS: u32 = 16;
/// Name of the clusters of tests.
pub(crate) const CLUSTER: &str = "nkcluster";
/// Where the control node of a memory cluster listens.
pub(crate) const C1: &str = "nkcluster://c1;transport=memory";

pub(crate) fn node_id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid id")
}

pub(crate) fn task_id(name: &str) -> TaskId {
    TaskId::new(name).expect("a valid id")
}

pub(crate) fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

/// A call that waits long and is never tried again.
pub(crate) fn once() -> CallOptions {
    CallOptions::timeout(TIMEOUT)
}

/// Shows what the nodes log when a test fails.
pub(crate) fn logged() {
    let _ = tracing_subscriber::fmt().with_ansi(false).with_test_writer().with_max_level(tracing::Level::DEBUG).try_init();
}

fn common(mut config: Config, id: &str, dir: &Path) -> Config {
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
        Self::start_with(classes, |_| ()).await
    }

    /// A control node `c1` whose configuration is changed before it starts.
    pub(crate) async fn start_with(classes: Classes, change: impl FnOnce(&mut Config)) -> Self {
        logged();
        let net = MemoryNet::new();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = control_config(&dir, "c1", C1);
        change(&mut config);
        let control = Node::start_in(&net, config, classes).await.expect("starts");
        let cluster = control.cluster().expect("a control node has the cluster");
        Self { net, dir, control, cluster }
    }

    /// A worker that dials `c1` and listens nowhere.
    pub(crate) async fn worker(&self, id: &str, classes: Classes) -> NodeHandle {
        self.worker_with(id, classes, |_| ()).await
    }

    /// A worker whose configuration is changed before it starts. Returns when the cluster sees it ready.
    pub(crate) async fn worker_with(&self, id: &str, classes: Classes, change: impl FnOnce(&mut Config)) -> NodeHandle {
        let worker = self.start_worker(id, classes, change).await;
        self.wait_status(id, NodeStatus::Ready).await;
        worker
    }

    /// The same, without waiting.
    pub(crate) async fn start_worker(&self, id: &str, classes: Classes, change: impl FnOnce(&mut Config)) -> NodeHandle {
        let mut config = worker_config(&self.dir, id, C1);
        change(&mut config);
        Node::start_in(&self.net, config, classes).await.expect("starts")
    }

    pub(crate) async fn wait_status(&self, id: &str, status: NodeStatus) {
        wait_status(&self.cluster, id, status).await;
    }

    pub(crate) async fn info(&self, id: &str) -> NodeInfo {
        self.cluster.info(&node_id(id), TIMEOUT).await.expect("the node is known")
    }

    /// A client with the role `admin`, which the network knows as `admin`.
    pub(crate) async fn admin(&self) -> Cluster {
        let mut options = connect_options(vec![uri(C1)]);
        options.memory = Some(self.net.node("admin"));
        Cluster::connect(options).await.expect("connects")
    }
}

/// A control node `c1` on loopback sockets.
pub(crate) struct SocketCluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) control: NodeHandle,
    pub(crate) cluster: Cluster,
}

impl SocketCluster {
    /// Listens on tcp, tls and quic.
    pub(crate) async fn start(classes: Classes) -> Self {
        logged();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = control_config(&dir, "c1", "nkcluster://127.0.0.1:0;transport=tcp");
        config.listen.push(uri("nkcluster://127.0.0.1:0;transport=tls"));
        config.listen.push(uri("nkcluster://127.0.0.1:0;transport=quic"));
        let control = Node::start(config, classes).await.expect("starts");
        let cluster = control.cluster().expect("a control node has the cluster");
        Self { dir, control, cluster }
    }

    /// Where it listens for a transport.
    pub(crate) fn at(&self, transport: Transport) -> NodeUri {
        let found = self.control.listen().iter().find(|uri| uri.effective_transport() == transport);
        found.expect("it listens there").clone()
    }

    /// A worker that dials over a transport. Returns when the cluster sees it ready.
    pub(crate) async fn worker(&self, id: &str, transport: Transport, classes: Classes) -> NodeHandle {
        let config = worker_config(&self.dir, id, &self.at(transport).to_string());
        let worker = Node::start(config, classes).await.expect("starts");
        wait_status(&self.cluster, id, NodeStatus::Ready).await;
        worker
    }
}

pub(crate) fn connect_options(uris: Vec<NodeUri>) -> ConnectOptions {
    let mut options = ConnectOptions::new(uris, CLUSTER, Secret::new(PASSWORD));
    options.pbkdf2_iters = ITERATIONS;
    options
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

/// Waits until a value is the expected one; shows the last one when it never is.
pub(crate) async fn eventually_eq<T: PartialEq + std::fmt::Debug>(mut actual: impl FnMut() -> T, expected: T) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let value = actual();
        if value == expected {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time: {expected:?}\nbut at the end: {value:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The result of something that must come to an end.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// The name of an error, and whether the work may have been done.
pub(crate) fn kind(error: &Error) -> (&str, bool) {
    (error.code().name(), error.may_have_run())
}
