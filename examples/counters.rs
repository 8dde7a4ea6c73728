//! State beside the control nodes: a counter for each key, which survives a rolling restart of all of them.
//!
//! ```sh
//! cargo run --example counters
//! ```
//!
//! Each key has one actor, on the control node that owns the key by the ring. When a control node leaves, its actors are handed over to the next owners; when it
//! is back, some return. Nobody who counts needs to know: a call goes to any control node. The three of them run in this process, on a network in memory.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use nkcluster::Result;
use nkcluster::cluster::random_incarnation;
use nkcluster::config::Config;
use nkcluster::job::{Classes, PlacedActor, PlacedCalls, PlacedContext};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

const NAMES: [&str; 3] = ["c1", "c2", "c3"];
const KEYS: usize = 12;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Counts by life: what two lives counted on two sides of a split is joined by the larger number for each, as often as one likes.
struct Counter {
    ctx: PlacedContext,
    life: Incarnation,
    counts: BTreeMap<Incarnation, u64>,
}

/// A total, and where it is kept.
#[derive(Serialize, Deserialize)]
struct Total {
    count: u64,
    node: NodeId,
}

impl PlacedActor for Counter {
    const NAME: &'static str = "counter";
    type Message = u64;
    type Reply = Total;
    type Record = BTreeMap<Incarnation, u64>;

    async fn start(ctx: PlacedContext, record: Option<Self::Record>) -> Result<Self> {
        Ok(Self { ctx, life: random_incarnation(), counts: record.unwrap_or_default() })
    }

    async fn handle(&mut self, more: u64) -> Result<Total> {
        *self.counts.entry(self.life).or_default() += more;
        Ok(Total { count: self.counts.values().sum(), node: self.ctx.node.clone() })
    }

    async fn hand_over(self) -> Self::Record {
        self.counts
    }

    async fn join(&mut self, other: Self::Record) {
        for (life, count) in other {
            let known = self.counts.entry(life).or_default();
            *known = count.max(*known);
        }
    }

    // Kept by two other control nodes after each message, in case that this one dies.
    fn record(&self) -> Option<Self::Record> {
        Some(self.counts.clone())
    }
}

async fn start(net: &MemoryNet, dir: &Path, name: &str) -> Result<NodeHandle, Box<dyn Error>> {
    let mut config = Config::control();
    config.node_id = Some(NodeId::new(name)?);
    config.listen = vec![format!("nkcluster://{name};transport=memory").parse()?];
    config.cluster_addr = vec!["nkcluster://c1;transport=memory".parse()?, "nkcluster://c2;transport=memory".parse()?];
    config.state_dir = dir.join(name);
    Ok(Node::start_in(net, config, Classes::new().with_placed::<Counter>()).await?)
}

/// Waits until all of them are in the ring of each.
async fn together(nodes: &BTreeMap<&str, NodeHandle>) -> Result<(), Box<dyn Error>> {
    for node in nodes.values() {
        let cluster = node.cluster().ok_or("a control node has the cluster")?;
        loop {
            let owners = cluster.ring(TIMEOUT).await?.owners;
            if NAMES.iter().all(|name| owners.iter().any(|owner| owner.as_str() == *name)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// Counts once for each key, asking one node; returns how many each control node keeps.
async fn count(node: &NodeHandle, expected: u64) -> Result<BTreeMap<String, usize>, Box<dyn Error>> {
    let cluster = node.cluster().ok_or("a control node has the cluster")?;
    let mut kept: BTreeMap<String, usize> = BTreeMap::new();
    for key in 0..KEYS {
        let total = cluster.placed::<Counter>(&format!("visitors of page {key}"), &1, TIMEOUT).await?;
        assert_eq!(total.count, expected, "nothing is lost, and nothing is counted twice");
        *kept.entry(total.node.to_string()).or_default() += 1;
    }
    Ok(kept)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (net, dir) = (MemoryNet::new(), tempfile::tempdir()?);
    let mut nodes = BTreeMap::new();
    for name in NAMES {
        nodes.insert(name, start(&net, dir.path(), name).await?);
    }
    together(&nodes).await?;
    let mut expected = 1;
    println!("counted on {:?}", count(&nodes["c1"], expected).await?);

    for name in NAMES {
        let stopping = nodes.remove(name).ok_or("it runs")?;
        stopping.stop().await;
        let (_, other) = nodes.first_key_value().ok_or("two are left")?;
        expected += 1;
        let kept = count(other, expected).await?;
        assert!(!kept.contains_key(name));
        println!("without {name}: {expected} on each of {KEYS} counters");
        nodes.insert(name, start(&net, dir.path(), name).await?);
        together(&nodes).await?;
    }
    expected += 1;
    count(&nodes["c3"], expected).await?;
    println!("restarted all of them: {expected} on each of {KEYS} counters");

    for node in nodes.into_values() {
        node.stop().await;
    }
    Ok(())
}
