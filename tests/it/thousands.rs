//! Thousands of workers of several control nodes in one process: every node is a real one, and so is every byte between them. The clock is virtual.
//!
//! `cargo bench --bench cluster -- --row storm_10000` has ten thousand of them, over sockets and by the clock of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nkcluster::cluster::Cluster;
use nkcluster::config::Config;
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::ring::{Ring, RingSize};
use nkcluster::transport::MemoryNet;
use nkcluster::types::NodeId;
use tokio::task::JoinSet;

use crate::harness::{TIMEOUT, control_config, node_id, uri, worker_config};

const CONTROLS: [&str; 4] = ["c1", "c2", "c3", "c4"];
const WORKERS: usize = 2000;
/// Fewer, each of which moves under its own power.
const MOVING: usize = 400;
/// Workers with the same label.
const RACK: usize = 20;
/// Workers that start at once.
const AT_ONCE: usize = 100;
/// What hashing may leave more, or less, with one control node than its share.
const SPREAD: f64 = 0.2;
/// Of the virtual clock; far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

struct Fleet {
    net: MemoryNet,
    dir: tempfile::TempDir,
    controls: BTreeMap<&'static str, NodeHandle>,
    /// Control nodes that have ever run: each is a node of the cluster too, also when it has died.
    known: BTreeSet<&'static str>,
    workers: Vec<NodeHandle>,
}

fn at(control: &str) -> String {
    format!("nkcluster://{control};transport=memory")
}

fn worker(number: usize) -> NodeId {
    node_id(&format!("w{number:04}"))
}

impl Fleet {
    /// All control nodes agree before the first worker comes.
    async fn start(controls: &[&'static str]) -> Self {
        let (net, dir) = (MemoryNet::new(), tempfile::tempdir().expect("a directory"));
        let mut fleet = Self { net, dir, controls: BTreeMap::new(), known: BTreeSet::new(), workers: Vec::new() };
        for control in controls {
            fleet.control(control).await;
        }
        fleet
    }

    /// Another control node. Returns when all agree.
    async fn control(&mut self, name: &'static str) {
        let mut config = control_config(&self.dir, name, &at(name));
        config.cluster_addr = self.controls.keys().map(|other| uri(&at(other))).collect();
        config.ping_time = Duration::from_secs(20);
        let node = Node::start_in(&self.net, config, Classes::new()).await.expect("starts");
        self.controls.insert(name, node);
        self.known.insert(name);
        self.agree().await;
    }

    /// Workers that know every control node and dial one of them, whoever owns them.
    async fn workers(&mut self, count: usize) {
        let all = CONTROLS.map(at).join(", ");
        let mut starting = JoinSet::new();
        for number in 0..count {
            let mut config = worker_config(&self.dir, worker(number).as_str(), &all);
            config.ping_time = Duration::from_secs(20);
            config.stats_time = Duration::from_secs(3600);
            config.meta = format!("site;rack={}", number / RACK).parse().expect("labels");
            let net = self.net.clone();
            starting.spawn(async move { Node::start_in(&net, config, Classes::new()).await.expect("starts") });
            while starting.len() >= AT_ONCE {
                self.workers.push(starting.join_next().await.expect("one starts").expect("no panic"));
            }
        }
        self.workers.append(&mut starting.join_all().await);
    }

    fn clusters(&self) -> impl Iterator<Item = (&'static str, Cluster)> {
        self.controls.iter().map(|(name, node)| (*name, node.cluster().expect("a control node")))
    }

    fn names(&self) -> BTreeSet<NodeId> {
        self.controls.keys().map(|name| node_id(name)).collect()
    }

    /// Every control node has the same ring, of all of them.
    async fn agree(&self) {
        looked_for("one ring", async || {
            for (_, cluster) in self.clusters() {
                let ring = cluster.ring(TIMEOUT).await.map_err(|error| error.to_string())?;
                let owners: BTreeSet<NodeId> = ring.owners.into_iter().collect();
                if owners != self.names() {
                    return Err(format!("{owners:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Each worker is ready at the one control node that owns it, over one link, and nobody else has a proxy of it. Every control node says so.
    async fn settled(&self) {
        let ring = Ring::new(RingSize::new(Config::control().ring_size).expect("a power of two"), self.names());
        let mut owned: BTreeMap<&NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        let count = self.workers.len();
        for worker in (0..count).map(worker) {
            owned.entry(ring.owner(worker.as_str()).expect("somebody owns it")).or_default().insert(worker);
        }
        for (control, workers) in &owned {
            let share = count as f64 / self.controls.len() as f64;
            assert!((workers.len() as f64 - share).abs() <= share * SPREAD, "{control} has {} workers of {count}", workers.len());
        }
        let total = count + self.known.len();
        looked_for("every worker is ready and has one proxy", async || {
            for (entry, cluster) in self.clusters() {
                let away = selected(&cluster, "status!=ready").await?;
                // Each node has one at least. That of a control node that has died is kept by another one.
                let members = cluster.members(TIMEOUT).await.map_err(|error| error.to_string())?;
                let proxies: u32 = members.iter().filter_map(|member| member.proxies).sum();
                if !away.is_empty() || proxies as usize != total {
                    return Err(format!("{entry} sees {} workers that are not ready, and {proxies} proxies of {total} nodes", away.len()));
                }
            }
            Ok(())
        })
        .await;
        looked_for("every worker is at its owner", async || {
            for (entry, cluster) in self.clusters() {
                for (owner, workers) in &owned {
                    let found = selected(&cluster, &format!("owner={owner}")).await?;
                    if found != *workers {
                        return Err(format!("{entry} finds {} workers at {owner}, which owns {}", found.len(), workers.len()));
                    }
                }
            }
            Ok(())
        })
        .await;
        looked_for("every worker has one link", async || {
            let links = |name: &str| CONTROLS.iter().map(|control| self.net.links(name, control)).sum::<usize>();
            // Of some: each look goes through all the links of the network.
            match self.workers.iter().step_by(RACK).filter(|worker| links(worker.node_id().as_str()) != 1).count() {
                0 => Ok(()),
                others => Err(format!("{others} have none, or several")),
            }
        })
        .await;
    }

    /// Every control node finds workers by their labels, and reaches them.
    async fn used(&self) {
        for (entry, cluster) in self.clusters() {
            for rack in [0, 7, self.workers.len() / RACK - 1] {
                let found = selected(&cluster, &format!("rack={rack}")).await.expect("answered");
                let expected: BTreeSet<NodeId> = (rack * RACK..(rack + 1) * RACK).map(worker).collect();
                assert_eq!(found, expected, "rack {rack} from {entry}");
                for worker in &found {
                    cluster.ping(worker, TIMEOUT).await.expect("answered");
                }
            }
        }
    }
}

/// The workers that a selector finds at all control nodes.
async fn selected(cluster: &Cluster, selector: &str) -> Result<BTreeSet<NodeId>, String> {
    let reply = cluster.nodes(Some(&selector.parse().expect("a selector")), TIMEOUT).await.map_err(|error| error.to_string())?;
    match reply.silent.as_slice() {
        [] => Ok(reply.nodes.into_iter().map(|info| info.id).filter(|id| !CONTROLS.contains(&id.as_str())).collect()),
        silent => Err(format!("{silent:?} did not answer")),
    }
}

/// Looks until it is so; shows what was last in the way.
async fn looked_for(what: &str, mut look: impl AsyncFnMut() -> Result<(), String>) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(wrong) = look().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}; at the end: {wrong}");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn thousands_of_workers_are_spread_found_and_used_from_everywhere_and_again_after_a_control_node_has_died() {
    let mut fleet = Fleet::start(&CONTROLS).await;
    fleet.workers(WORKERS).await;
    fleet.settled().await;
    fleet.used().await;
    drop(fleet.controls.remove("c4"));
    fleet.agree().await;
    fleet.settled().await;
    fleet.used().await;
}

#[tokio::test(start_paused = true)]
async fn workers_are_spread_evenly_again_after_a_control_node_has_joined() {
    let mut fleet = Fleet::start(&CONTROLS[..3]).await;
    fleet.workers(MOVING).await;
    fleet.settled().await;
    fleet.control(CONTROLS[3]).await;
    fleet.settled().await;
    fleet.used().await;
}
