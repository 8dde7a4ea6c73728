//! What a control node knows of the control plane at a moment: who is alive, and the ring that follows from it.
//!
//! Membership makes a new [`View`] at every change and publishes it; everybody else only reads. Ownership is a pure function of the live set, so two control
//! nodes with the same live set never differ, and those with different ones find out by the [`epoch`](View::epoch).

use std::collections::BTreeMap;

use crate::proto::identity::Rank;
use crate::ring::{Ring, RingSize};
use crate::types::{Incarnation, NodeId, NodeUri};

/// One control node of the live set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// One life of its process.
    pub(crate) incarnation: Incarnation,
    /// Where it listens.
    pub(crate) listen: Vec<NodeUri>,
    /// The peer to which what is for this member is handed; itself where there is a link. None for ourselves.
    pub(crate) next_hop: Option<NodeId>,
}

/// The control plane, as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// This node.
    pub(crate) me: NodeId,
    /// The connected component of this node, itself included.
    pub(crate) live: BTreeMap<NodeId, Member>,
    /// Who owns what.
    pub(crate) ring: Ring,
    /// This node was asleep, or sees too few others (`split = majority`): it changes nothing until it is not.
    pub(crate) frozen: bool,
}

impl View {
    /// A control node that knows of no other.
    pub(crate) fn alone(me: NodeId, incarnation: Incarnation, listen: Vec<NodeUri>, size: RingSize) -> Self {
        let ring = Ring::new(size, [me.clone()]);
        let live = BTreeMap::from([(me.clone(), Member { incarnation, listen, next_hop: None })]);
        Self { me, live, ring, frozen: false }
    }

    /// The control node that hosts the proxy of a worker; none on a node that leaves and is the last.
    ///
    /// A control node is also a worker, and hosts its own proxy: whoever can reach the one reaches the other, and both end together.
    pub(crate) fn owner(&self, worker: &NodeId) -> Option<&NodeId> {
        match self.live.get_key_value(worker) {
            Some((id, _)) => Some(id),
            None => self.ring.owner(worker.as_str()),
        }
    }

    /// Whether this node hosts the proxy of a worker.
    pub(crate) fn owns(&self, worker: &NodeId) -> bool {
        self.owner(worker) == Some(&self.me)
    }

    /// How strong the claim of this node to a worker is: first the size of what it sees, then a hash in which any two owners differ.
    pub(crate) fn rank(&self, worker: &NodeId) -> Rank {
        let view = u32::try_from(self.live.len()).unwrap_or(u32::MAX);
        Rank { view, hash: crate::ring::weight(&self.me, self.ring.partition(worker.as_str())) }
    }

    /// Digest of the live set: compared for equality only.
    pub(crate) fn epoch(&self) -> u64 {
        self.ring.epoch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn view(me: &str, others: &[&str]) -> View {
        let size = RingSize::new(64).expect("a power of two");
        let mut view = View::alone(id(me), Incarnation::NONE, Vec::new(), size);
        for other in others {
            let member = Member { incarnation: Incarnation::NONE, listen: Vec::new(), next_hop: Some(id(other)) };
            view.live.insert(id(other), member);
        }
        view.ring = Ring::new(size, view.live.keys().cloned());
        view
    }

    #[test]
    fn every_node_names_the_same_owner_and_exactly_one_owns() {
        let views = [view("c1", &["c2", "c3"]), view("c2", &["c1", "c3"]), view("c3", &["c1", "c2"])];
        for worker in (0..200).map(|n| id(&format!("w{n}"))) {
            assert_eq!(views.iter().filter(|view| view.owns(&worker)).count(), 1);
            assert!(views.iter().all(|view| view.owner(&worker) == views[0].owner(&worker)));
        }
    }

    #[test]
    fn a_control_node_hosts_its_own_proxy_while_it_lives() {
        let (with, without) = (view("c1", &["c2", "c3"]), view("c1", &["c3"]));
        assert_eq!(with.owner(&id("c2")), Some(&id("c2")));
        assert!(without.owner(&id("c2")).is_some_and(|owner| *owner != id("c2")));
    }

    #[test]
    fn the_larger_view_has_the_higher_rank() {
        assert!(view("c1", &["c2"]).rank(&id("w1")) > view("c3", &[]).rank(&id("w1")));
        assert_ne!(view("c1", &[]).rank(&id("w1")), view("c3", &[]).rank(&id("w1")));
    }
}
