//! Control nodes that find each other, lose each other, and agree on who lives.

use std::collections::BTreeSet;

use nkcluster::cluster::Cluster;
use nkcluster::config::Config;
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::transport::MemoryNet;

use crate::harness::{TIMEOUT, control_config, eventually, logged, uri};

/// Control nodes on one memory network, each with the addresses of the first two.
pub(crate) struct Controls {
    pub(crate) net: MemoryNet,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) nodes: Vec<NodeHandle>,
}

impl Controls {
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, |_| ()).await
    }

    pub(crate) async fn start_with(count: usize, change: impl Fn(&mut Config)) -> Self {
        logged();
        let mut controls = Self { net: MemoryNet::new(), dir: tempfile::tempdir().expect("a directory"), nodes: Vec::new() };
        for number in 1..=count {
            let node = controls.node(&format!("c{number}"), &change).await;
            controls.nodes.push(node);
        }
        controls
    }

    pub(crate) async fn node(&self, id: &str, change: impl Fn(&mut Config)) -> NodeHandle {
        let mut config = control_config(&self.dir, id, &format!("nkcluster://{id};transport=memory"));
        config.cluster_addr = vec![uri("nkcluster://c1;transport=memory"), uri("nkcluster://c2;transport=memory")];
        change(&mut config);
        Node::start_in(&self.net, config, Classes::new()).await.expect("starts")
    }

    pub(crate) fn cluster(&self, index: usize) -> Cluster {
        self.nodes[index].cluster().expect("a control node")
    }

    /// Waits until these nodes, and nobody else, make up the ring of each of them.
    pub(crate) async fn agree(&self, indices: &[usize], names: &[&str]) {
        let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        eventually(&format!("{indices:?} agree on {names:?}"), async || {
            let mut epochs = BTreeSet::new();
            for index in indices {
                let ring = self.cluster(*index).ring(TIMEOUT).await.expect("answered");
                if ring.owners.iter().map(ToString::to_string).collect::<BTreeSet<_>>() != expected {
                    return false;
                }
                epochs.insert(ring.epoch);
            }
            epochs.len() == 1
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_control_nodes_find_each_other_and_have_one_ring() {
    let controls = Controls::start(3).await;
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
    let members = controls.cluster(2).members(TIMEOUT).await.expect("answered");
    let told: Vec<_> = members.iter().map(|member| (member.id.as_str(), member.state.as_str(), member.partitions > 80)).collect();
    assert_eq!(told, [("c1", "joined", true), ("c2", "joined", true), ("c3", "joined", true)]);
    assert!(members.iter().all(|member| member.proxies.is_some() && member.incarnation.is_some() && member.listen.len() == 1));
}
