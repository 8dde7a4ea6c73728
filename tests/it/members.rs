//! Control nodes that find each other, lose each other, and agree on who lives.

use std::collections::BTreeSet;

use nkcluster::cluster::Cluster;
use nkcluster::config::{Config, Split};
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::proto::auth::Role;
use nkcluster::proto::session::Side;
use nkcluster::transport::MemoryNet;
use nkcluster::transport::memory::Flow;

use crate::harness::{TIMEOUT, control_config, eventually, logged, node_id, uri};
use crate::raw::{RawLink, RawListener, party};

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

impl Controls {
    /// State and problem of a member, as one node sees it; none if it does not know it.
    async fn member(&self, index: usize, id: &str) -> Option<(String, Option<String>, bool)> {
        let members = self.cluster(index).members(TIMEOUT).await.expect("answered");
        let found = members.into_iter().find(|member| member.id.as_str() == id)?;
        Some((found.state, found.problem.map(|problem| problem.code().name().to_owned()), found.frozen))
    }

    async fn has_state(&self, index: usize, id: &str, state: Option<&str>) {
        eventually(&format!("{id} is {state:?}"), async || self.member(index, id).await.map(|(state, ..)| state).as_deref() == state).await;
    }

    async fn join_fails(&self, index: usize, at: &str) -> String {
        let error = self.cluster(index).join(&uri(at), TIMEOUT).await.expect_err("refused");
        assert!(!error.may_have_run(), "{error}");
        error.code().name().to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn a_join_that_cannot_be_says_why() {
    let controls = Controls::start_with(2, |_| ()).await;
    controls.agree(&[0, 1], &["c1", "c2"]).await;
    assert_eq!(controls.join_fails(0, "nkcluster://nowhere;transport=memory").await, "not_reachable");
    assert_eq!(controls.join_fails(0, "nkcluster://c1;transport=memory").await, "self_join");

    let small = controls.node("d1", |config| (config.ring_size, config.cluster_addr) = (64, Vec::new())).await;
    assert_eq!(controls.join_fails(0, "nkcluster://d1;transport=memory").await, "different_ring_sizes");
    small.stop().await;

    // Another cluster of two.
    let _first = controls.node("e1", |config| config.cluster_addr.clear()).await;
    let second = controls.node("e2", |config| config.cluster_addr = vec![uri("nkcluster://e1;transport=memory")]).await;
    let others = second.cluster().expect("a control node");
    eventually("the others are two", async || {
        others.ring(TIMEOUT).await.expect("answered").owners.iter().any(|owner| owner.as_str() == "e1")
    })
    .await;
    assert_eq!(controls.join_fails(0, "nkcluster://e1;transport=memory").await, "not_single_node");
    controls.agree(&[0, 1], &["c1", "c2"]).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_proves_itself_and_tells_no_ring_is_not_joined() {
    let controls = Controls::start(1).await;
    let listener = RawListener::bind(&controls.net, "nkcluster://mute;transport=memory", party(Role::Control, "mute").await).await;
    let cluster = controls.cluster(0);
    let at = uri("nkcluster://mute;transport=memory");
    let (joined, ()) = tokio::join!(cluster.join(&at, TIMEOUT), async {
        let mut mute = RawLink::start(listener.accept().await.expect("proves itself"), Side::Listener);
        mute.closed().await;
    });
    assert_eq!(joined.expect_err("refused").code().name(), "unable_to_get_join_ring");
}

#[tokio::test(start_paused = true)]
async fn an_operator_joins_two_nodes_that_know_nothing_of_each_other() {
    let controls = Controls::start_with(2, |config| config.cluster_addr.clear()).await;
    controls.agree(&[0], &["c1"]).await;
    let (node, state) = controls.cluster(0).join(&uri("nkcluster://c2;transport=memory"), TIMEOUT).await.expect("joins");
    assert_eq!((node.as_str(), state.as_str()), ("c2", "joined"));
    controls.agree(&[0, 1], &["c1", "c2"]).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_staged_own_nothing_until_the_plan_is_committed() {
    let mut controls = Controls::start_with(1, |config| config.cluster_addr.clear()).await;
    for id in ["c2", "c3"] {
        let node = controls.node(id, |config| config.staged_joins = true).await;
        controls.nodes.push(node);
    }
    for id in ["c2", "c3"] {
        controls.has_state(0, id, Some("staged")).await;
    }
    controls.agree(&[0], &["c1"]).await;
    let plan = controls.cluster(0).plan(TIMEOUT).await.expect("answered");
    let staged: Vec<_> = plan.staged.iter().map(|id| id.as_str()).collect();
    assert_eq!(staged, ["c2", "c3"]);
    assert!(plan.moved > plan.size / 2 && plan.moved < plan.size, "{plan:?}");
    assert_eq!(plan.transfers.iter().map(|transfer| transfer.partitions).sum::<u32>(), plan.moved);
    // Asking changed nothing.
    controls.agree(&[0], &["c1"]).await;
    let joined = controls.cluster(0).commit(TIMEOUT).await.expect("answered");
    assert_eq!(joined.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["c2", "c3"]);
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_no_member_any_more_and_may_return() {
    let mut controls = Controls::start(3).await;
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
    controls.cluster(0).leave(&node_id("c3"), TIMEOUT).await.expect("leaves");
    controls.agree(&[0, 1], &["c1", "c2"]).await;
    controls.has_state(1, "c3", Some("left")).await;
    controls.nodes.pop().expect("it runs").stop().await;
    controls.has_state(0, "c3", None).await;
    let error = controls.cluster(0).leave(&node_id("c3"), TIMEOUT).await.expect_err("it has left");
    assert_eq!(error.code().name(), "not_found");
    let node = controls.node("c3", |_| ()).await;
    controls.nodes.push(node);
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_control_node_is_forgotten_and_may_return() {
    let mut controls = Controls::start(3).await;
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
    let error = controls.cluster(0).forget(&node_id("c3"), TIMEOUT).await.expect_err("it lives");
    assert_eq!(error.code().name(), "not_allowed");
    drop(controls.nodes.pop());
    controls.agree(&[0, 1], &["c1", "c2"]).await;
    controls.has_state(1, "c3", Some("unreachable")).await;
    controls.cluster(0).forget(&node_id("c3"), TIMEOUT).await.expect("forgotten");
    for index in [0, 1] {
        controls.has_state(index, "c3", None).await;
    }
    let node = controls.node("c3", |_| ()).await;
    controls.nodes.push(node);
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
}

#[tokio::test(start_paused = true)]
async fn the_smaller_part_of_a_split_freezes_where_the_majority_decides() {
    let controls = Controls::start_with(3, |config| config.split = Split::Majority).await;
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
    let flow = |flow: Flow| {
        for other in ["c1", "c2"] {
            controls.net.set_flow("c3", other, flow);
            controls.net.set_flow(other, "c3", flow);
        }
    };
    flow(Flow::Frozen);
    controls.agree(&[0, 1], &["c1", "c2"]).await;
    let is_frozen = async |index: usize, id: &str| controls.member(index, id).await.is_some_and(|(.., frozen)| frozen);
    eventually("c3 freezes", async || is_frozen(2, "c3").await).await;
    assert!(!is_frozen(0, "c1").await && !is_frozen(1, "c2").await);
    flow(Flow::Open);
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
    eventually("c3 acts again", async || !is_frozen(2, "c3").await).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_node_of_one_name_is_told_to_operators_and_does_nothing() {
    let mut controls = Controls::start(3).await;
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
    let before = controls.cluster(0).members(TIMEOUT).await.expect("answered")[2].incarnation;
    let elsewhere = controls.dir.path().join("elsewhere");
    let twin = controls
        .node("c3", |config| {
            config.state_dir = elsewhere.clone();
            config.listen = vec![uri("nkcluster://twin;transport=memory")];
        })
        .await;
    controls.nodes.push(twin);
    for index in [0, 1, 3] {
        eventually("an operator can see it", async || {
            controls.member(index, "c3").await.is_some_and(|(_, problem, _)| problem.as_deref() == Some("node_id_in_use"))
        })
        .await;
    }
    assert!(controls.member(3, "c3").await.is_some_and(|(.., frozen)| frozen));
    controls.agree(&[0, 1, 2], &["c1", "c2", "c3"]).await;
    assert_eq!(controls.cluster(0).members(TIMEOUT).await.expect("answered")[2].incarnation, before);
}
