//! A node: the only place that knows both roles.
//!
//! A worker is a worker, and listeners if it is told to listen. A control node is a control node, its listeners, and a worker of its own that is connected to it over a
//! memory wire, with the same handshake and the same frames as any other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::seq::SliceRandom as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cluster::{BoxFuture, Cluster, random_incarnation};
use crate::config::{Config, Role};
use crate::connection::admission::{Gate, Limits};
use crate::connection::establish::{self, Established, Expect, Order, Party, dial_and_establish, keyring_input};
use crate::connection::{Link, LinkOptions, LinkParts};
use crate::control::{self, Control};
use crate::error::{Error, ErrorCode};
use crate::job::Classes;
use crate::proto::auth::{self, Identity, VERSIONS};
use crate::proto::session::Side;
use crate::transport::{DialOptions, ListenOptions, Listener, MemoryNet};
use crate::types::{NodeId, NodeUri, Transport, UriOptions};
use crate::worker::{Connector, DialFailure, Dialled, Worker};

/// Name of a control node's own listener in its private memory network.
const OWN: &str = "own";

/// Links of a control node's own worker: one, a new one while the old ends, and exclusive ones.
const OWN_LINKS: usize = 24;

/// How long a control node waits for its own worker before it says that it runs.
const OWN_WORKER: Duration = Duration::from_secs(5);

/// How much longer than `drain_timeout` a stop may take.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A value of the configuration is wrong: the message names key, value and what was expected.
    #[error("{0}")]
    Config(Error),
    /// An address cannot be listened on.
    #[error("{0}")]
    Bind(Error),
    /// A bug, or a machine out of resources.
    #[error("{0}")]
    Internal(Error),
}

impl NodeError {
    /// The error inside, with its code.
    pub fn error(&self) -> &Error {
        match self {
            NodeError::Config(error) | NodeError::Bind(error) | NodeError::Internal(error) => error,
        }
    }
}

/// Starts nodes.
#[derive(Debug)]
pub struct Node {
    config: Config,
    classes: Classes,
    memory: Option<MemoryNet>,
}

impl Node {
    /// Starts a node with these classes, of which its configuration enables some.
    ///
    /// # Errors
    /// See [`NodeError`]. Nothing runs then.
    pub async fn start(config: Config, classes: Classes) -> Result<NodeHandle, NodeError> {
        Self { config, classes, memory: None }.run().await
    }

    /// Starts a node in a simulated network: addresses are `nkcluster://NAME;transport=memory`.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_in(net: &MemoryNet, config: Config, classes: Classes) -> Result<NodeHandle, NodeError> {
        Self { config, classes, memory: Some(net.clone()) }.run().await
    }

    async fn run(self) -> Result<NodeHandle, NodeError> {
        let Self { config, classes, memory } = self;
        config.check().map_err(|error| NodeError::Config(error.into()))?;
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        let id = match &config.node_id {
            Some(id) => id.clone(),
            None => NodeId::new(uuid::Uuid::new_v4().to_string()).map_err(NodeError::Internal)?,
        };
        let config = Arc::new(config);
        prepare_state_dir(&config)?;
        let incarnation = random_incarnation();
        let own_role = match config.role {
            Role::Control => auth::Role::Control,
            Role::Worker => auth::Role::Worker,
        };
        let identity = Identity {
            cluster: config.cluster_name.clone(),
            role: own_role,
            id: id.clone(),
            incarnation,
            versions: VERSIONS.to_vec(),
            features: Vec::new(),
        };
        let party = Party::prepare(identity.clone(), keyring_input(&config)).await.map_err(NodeError::Config)?;
        let dial = DialOptions { memory: memory.as_ref().map(|net| net.node(id.as_str())), ..DialOptions::from(&*config) };
        let listen_options = ListenOptions { memory, ..ListenOptions::from(&*config) };
        let mut listeners = Vec::new();
        for uri in &config.listen {
            let listener = Listener::bind(uri, &listen_options).await.map_err(|error| match error.code() {
                ErrorCode::InvalidConfig | ErrorCode::UnsupportedTransport => NodeError::Config(error),
                _ => NodeError::Bind(error),
            })?;
            listeners.push(Arc::new(listener));
        }
        let public = listeners.clone();
        let listen: Vec<NodeUri> = listeners.iter().map(|listener| listener.uri().clone()).collect();
        let door = Door {
            gate: Gate::new(Limits::from(&*config)),
            links: Arc::new(Semaphore::new(config.max_connections)),
            party: party.clone(),
            options: LinkOptions::of_ping_time(config.ping_time),
        };
        let mut tasks = JoinSet::new();
        let (control, worker) = match config.role {
            Role::Worker => {
                let connector: Option<Arc<dyn Connector>> = if config.cluster_addr.is_empty() {
                    None
                } else {
                    Some(Arc::new(ToCluster::new(config.cluster_addr.clone(), party, dial, door.options)))
                };
                let worker = Worker::start(Arc::clone(&config), id.clone(), incarnation, classes, listen.clone(), connector);
                for listener in listeners {
                    let inside = worker.door();
                    let options = door.options;
                    tasks.spawn(accept_loop(listener, door.clone(), move |parts| {
                        let link = Link::start(parts, options, |link| inside.handler(link));
                        inside.introduce(&link);
                        Ok(link)
                    }));
                }
                (None, worker)
            }
            Role::Control => {
                let shared = control::Shared::new(Arc::clone(&config), id.clone(), incarnation, classes.clone(), party.clone(), dial);
                shared.set_listen(listen.clone());
                let control = Control::new(shared);
                let own_net = MemoryNet::new();
                let own_uri: NodeUri = format!("nkcluster://{OWN};transport=memory").parse().map_err(NodeError::Internal)?;
                let own_options = ListenOptions { memory: Some(own_net.clone()), ..ListenOptions::default() };
                let own_listener = Arc::new(Listener::bind(&own_uri, &own_options).await.map_err(NodeError::Internal)?);
                // A door of its own: whoever crowds the others, the node's own worker gets in.
                let own_door = Door { gate: Gate::new(Limits::from(&*config)), links: Arc::new(Semaphore::new(OWN_LINKS)), ..door.clone() };
                let inside = listeners.into_iter().map(|listener| (listener, door.clone())).chain([(own_listener, own_door)]);
                for (listener, door) in inside {
                    let control = control.clone();
                    tasks.spawn(accept_loop(listener, door, move |parts| control.welcome(parts)));
                }
                let own_party = party.with_identity(Identity { role: auth::Role::Worker, ..identity });
                let own_dial = DialOptions { memory: Some(own_net.node(id.as_str())), ..DialOptions::default() };
                let own = ToCluster::new(vec![own_uri], own_party, own_dial, door.options);
                let worker = Worker::start(Arc::clone(&config), id.clone(), incarnation, classes, listen.clone(), Some(Arc::new(own)));
                control.join().await;
                control.own_worker(OWN_WORKER).await;
                (Some(control), worker)
            }
        };
        tracing::info!(node = %id, role = %config.role, listen = ?listen.iter().map(ToString::to_string).collect::<Vec<_>>(), "started");
        Ok(NodeHandle { id, config, listen, listeners: public, control, worker: Some(worker), tasks })
    }
}

/// A running node. Dropping it cuts everything; [`NodeHandle::stop`] drains first.
pub struct NodeHandle {
    id: NodeId,
    config: Arc<Config>,
    listen: Vec<NodeUri>,
    /// Those that others reach; the accept loops have them too.
    listeners: Vec<Arc<Listener>>,
    control: Option<Control>,
    /// There until it is stopped.
    worker: Option<Worker>,
    tasks: JoinSet<()>,
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.cut();
        }
        if let Some(worker) = self.worker.take() {
            worker.cut();
        }
    }
}

impl std::fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeHandle").field("id", &self.id).field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl NodeHandle {
    /// Its id, configured or made.
    pub fn node_id(&self) -> &NodeId {
        &self.id
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.config.role
    }

    /// Where it listens, with real ports.
    pub fn listen(&self) -> &[NodeUri] {
        &self.listen
    }

    /// The cluster, on a control node.
    pub fn cluster(&self) -> Option<Cluster> {
        self.control.as_ref().map(Control::cluster)
    }

    /// Makes a worker forget the addresses of control nodes: it stays connected, but looks for nobody when that ends (checklist N5.5).
    pub fn clear_cluster_addr(&self) {
        if let Some(worker) = &self.worker {
            worker.clear_cluster_addr();
        }
    }

    /// Reads the files of the `tls_*` options again, for connections to come; open ones stay as they are. Diallers read theirs at every connection anyway.
    ///
    /// # Errors
    /// `invalid_config`, naming each listener whose files cannot be used, with option and file: it goes on with its old certificate. The others have their
    /// new ones.
    pub async fn reload(&self) -> Result<(), Error> {
        let mut failures = Vec::new();
        for listener in self.listeners.iter().filter(|listener| listener.transport().is_encrypted()) {
            match listener.reload().await {
                Ok(()) => tracing::info!(listener = %listener.uri(), "the certificate was read again"),
                Err(error) => failures.push(format!("{} keeps its old certificate: {error}", listener.uri())),
            }
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::InvalidConfig, failures.join("; "))),
        }
    }

    /// Stops: accepts nobody any more, drains for at most `drain_timeout`, then cuts.
    pub async fn stop(mut self) {
        let grace = self.config.drain_timeout;
        self.listeners.clear();
        self.tasks.shutdown().await;
        let control = self.control.clone();
        let Some(worker) = self.worker.take() else { return };
        let drained = tokio::time::timeout(grace + LAST_WORDS, async {
            match control {
                Some(control) => {
                    // The own worker keeps its link until its last events were taken in.
                    tokio::join!(control.drain(grace), worker.stop(grace));
                    control.stop().await;
                }
                None => worker.stop(grace).await,
            }
        });
        if drained.await.is_err() {
            tracing::warn!(node = %self.id, "did not drain in time");
        }
        tracing::info!(node = %self.id, "stopped");
    }
}

fn prepare_state_dir(config: &Config) -> Result<(), NodeError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir).map_err(|error| {
        let what =
            format!("state_dir = {}: cannot be made: {error}; expected a directory that this user can write", config.state_dir.display());
        NodeError::Config(Error::new(ErrorCode::InvalidConfig, what))
    })
}

/// What every listener of a node shares.
#[derive(Clone)]
struct Door {
    gate: Gate,
    links: Arc<Semaphore>,
    party: Party,
    options: LinkOptions,
}

/// Accepts for ever; each connection proves itself in a task of its own.
async fn accept_loop(listener: Arc<Listener>, door: Door, welcome: impl Fn(LinkParts) -> Result<Link, Error> + Clone + Send + 'static) {
    let mut connections = JoinSet::new();
    loop {
        let incoming = listener.accept().await;
        while connections.try_join_next().is_some() {}
        let addr = incoming.peer_addr().map(|addr| addr.ip());
        let permit = match door.gate.admit(addr).await {
            Ok(permit) => permit,
            Err(error) => {
                tracing::debug!(%error, ?addr, "a connection was refused");
                continue;
            }
        };
        let Ok(place) = Arc::clone(&door.links).try_acquire_owned() else {
            tracing::warn!(?addr, "max_connections is reached; a connection was refused");
            continue;
        };
        let (party, welcome) = (door.party.clone(), welcome.clone());
        connections.spawn(async move {
            let established = match establish::accept(incoming, &party, permit).await {
                Ok(established) => established,
                Err(error) => {
                    tracing::info!(code = %error.code(), %error, "a connection was not let in");
                    return;
                }
            };
            match welcome(LinkParts { established, side: Side::Listener }) {
                // The link does not end with this task.
                Ok(link) => link.occupy(place),
                Err(error) => tracing::warn!(%error, "a peer was turned away"),
            }
        });
    }
}

/// Dials control nodes for a worker.
struct ToCluster {
    addresses: Vec<NodeUri>,
    party: Party,
    dial: DialOptions,
    options: LinkOptions,
    /// The address of our configuration by which we last came in.
    way: Mutex<Option<NodeUri>>,
}

impl ToCluster {
    fn new(addresses: Vec<NodeUri>, party: Party, dial: DialOptions, options: LinkOptions) -> Self {
        Self { addresses, party, dial, options, way: Mutex::default() }
    }

    /// An address that a control node told us, to be reached as we came in: through the same proxy, with the same password and certificates, and never
    /// without encryption if we had it. Nothing that a peer says decides about these.
    fn on_our_way(&self, told: NodeUri) -> Option<NodeUri> {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        if way.effective_transport().is_encrypted() && !told.effective_transport().is_encrypted() {
            return None;
        }
        let ws_proto = told.options().ws_proto.clone();
        Some(told.with_options(UriOptions { ws_proto, ..way.options().clone() }))
    }

    async fn dial(&self, addresses: &[NodeUri], order: Order) -> Result<Established, DialFailure> {
        let expect = Expect::any(auth::Role::Control);
        let dialled = dial_and_establish(addresses, &self.party, &expect, order, &self.dial).await;
        dialled.map_err(|error| DialFailure { retry_after: error.retry_after(), error: error.into() })
    }
}

impl Connector for ToCluster {
    fn redirected(&self, addresses: Vec<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>> {
        Box::pin(async move {
            let known: Vec<NodeUri> = addresses.into_iter().filter_map(|uri| self.on_our_way(uri)).collect();
            let established = self.dial(&known, Order::AsGiven).await?;
            Ok(Dialled { parts: LinkParts { established, side: Side::Dialler }, options: self.options })
        })
    }

    fn connect(&self, preferred: Vec<NodeUri>, turned_away: Option<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>> {
        Box::pin(async move {
            let known = preferred.into_iter().filter(|uri| !self.addresses.contains(uri));
            let known: Vec<NodeUri> = known.filter_map(|uri| self.on_our_way(uri)).collect();
            let first = if known.is_empty() || self.addresses.iter().all(|uri| uri.transport() == Some(Transport::Memory)) {
                None
            } else {
                self.dial(&known, Order::AsGiven).await.ok()
            };
            let established = match first {
                Some(established) => established,
                None => {
                    let addresses = shuffled(&self.addresses, turned_away.as_ref());
                    let established = self.dial(&addresses, Order::AsGiven).await?;
                    self.way.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&established.uri);
                    established
                }
            };
            Ok(Dialled { parts: LinkParts { established, side: Side::Dialler }, options: self.options })
        })
    }

    fn connect_again(&self, at: NodeUri, control: NodeId) -> BoxFuture<'_, Result<Dialled, Error>> {
        Box::pin(async move {
            let expect = Expect::node(auth::Role::Control, control);
            let established = dial_and_establish(&[at], &self.party, &expect, Order::AsGiven, &self.dial).await?;
            Ok(Dialled { parts: LinkParts { established, side: Side::Dialler }, options: self.options })
        })
    }
}

/// Addresses at random, so that many workers with one list spread over it; one of them comes last.
fn shuffled(addresses: &[NodeUri], last: Option<&NodeUri>) -> Vec<NodeUri> {
    let mut addresses = addresses.to_vec();
    addresses.shuffle(&mut rand::rng());
    addresses.sort_by_key(|address| Some(address) == last);
    addresses
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod plane_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeStatus, Secret};

    const FOREVER: Duration = Duration::from_secs(20);

    #[test]
    fn addresses_are_tried_at_random_and_that_of_who_turned_us_away_last() {
        let addresses: Vec<NodeUri> = (1..=4).map(|number| format!("nkcluster://c{number}").parse().expect("valid")).collect();
        let mut first = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let order = shuffled(&addresses, Some(&addresses[1]));
            assert_eq!(order.last(), Some(&addresses[1]));
            assert!(addresses.iter().all(|address| order.contains(address)) && order.len() == addresses.len());
            first.insert(order[0].to_string());
        }
        assert_eq!(first.len(), 3, "each of the others comes first now and then: {first:?}");
    }

    fn config(dir: &tempfile::TempDir, mut config: Config, id: &str) -> Config {
        config.node_id = Some(NodeId::new(id).expect("valid"));
        config.password = Secret::new("a secret of tests");
        config.pbkdf2_iters = 16;
        config.state_dir = dir.path().join(id);
        // Nothing here may wait for a ping.
        config.ping_time = Duration::from_secs(3600);
        config
    }

    #[tokio::test]
    async fn a_proxy_that_dies_is_replaced_at_once() {
        let (net, dir) = (MemoryNet::new(), tempfile::tempdir().expect("a directory"));
        let door: NodeUri = "nkcluster://c1;transport=memory".parse().expect("valid");
        let control = Config { listen: vec![door.clone()], ..config(&dir, Config::control(), "c1") };
        let control = Node::start_in(&net, control, Classes::new()).await.expect("starts");
        let worker = Config { cluster_addr: vec![door], ..config(&dir, Config::worker(), "w1") };
        let _worker = Node::start_in(&net, worker, Classes::new()).await.expect("starts");
        let (cluster, w1) = (control.cluster().expect("a control node"), NodeId::new("w1").expect("valid"));
        let before = cluster.wait_status(&w1, NodeStatus::Ready, FOREVER).await.expect("ready");
        control.control.as_ref().expect("a control node").kill_proxy(&w1);
        let deadline = tokio::time::Instant::now() + FOREVER;
        while cluster.info(&w1, FOREVER).await.is_ok_and(|info| info.status != NodeStatus::Ready || info.proxies == before.proxies) {
            assert!(tokio::time::Instant::now() < deadline, "no other proxy in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(cluster.info(&w1, FOREVER).await.expect("known").incarnation, before.incarnation);
        cluster.ping(&w1, FOREVER).await.expect("answered");
    }
}
