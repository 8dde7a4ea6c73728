//! What a change of the ring moves.

use std::collections::BTreeMap;
use std::fmt;

use super::{Partition, Ring, RingSize};
use crate::types::NodeId;

/// A partition that gets another owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: Partition,
    /// Who owned it; nobody if there were no nodes.
    pub from: Option<NodeId>,
    /// Who owns it then; nobody if there are no nodes any more.
    pub to: Option<NodeId>,
}

/// Two rings have different numbers of partitions, so no partition of one is a partition of the other. One of the clusters has to be set up anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ring of {old} partitions cannot become one of {new}")]
pub struct DifferentSizes {
    /// Partitions of the old ring.
    pub old: RingSize,
    /// Partitions of the new ring.
    pub new: RingSize,
}

/// The partitions that change their owner from one ring to another, in their order.
///
/// # Errors
/// [`DifferentSizes`].
pub fn moves(old: &Ring, new: &Ring) -> Result<Vec<Move>, DifferentSizes> {
    if old.size() != new.size() {
        return Err(DifferentSizes { old: old.size(), new: new.size() });
    }
    let both = old.partitions().map(|partition| (partition, old.owner_of(partition), new.owner_of(partition)));
    let moved = both.filter(|(_, from, to)| from != to);
    Ok(moved.map(|(partition, from, to)| Move { partition, from: from.cloned(), to: to.cloned() }).collect())
}

/// How many partitions one node gives to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Who gives; nobody if there were no nodes.
    pub from: Option<NodeId>,
    /// Who gets; nobody if there are no nodes any more.
    pub to: Option<NodeId>,
    /// How many partitions.
    pub partitions: usize,
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |node: &Option<NodeId>| node.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        write!(f, "{} → {}: {}", name(&self.from), name(&self.to), self.partitions)
    }
}

/// Who gives how many partitions to whom when the ring changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// From whom to whom, sorted by both; none of them is 0.
    pub transfers: Vec<Transfer>,
    /// Partitions that move, the sum of the transfers.
    pub moved: usize,
    /// Partitions of the ring.
    pub size: RingSize,
    /// The fewest partitions that could move to get an even ring of the new nodes.
    pub least: usize,
}

impl Plan {
    /// From one ring to another.
    ///
    /// # Errors
    /// [`DifferentSizes`].
    pub fn between(old: &Ring, new: &Ring) -> Result<Self, DifferentSizes> {
        let mut counts: BTreeMap<(Option<NodeId>, Option<NodeId>), usize> = BTreeMap::new();
        let moves = moves(old, new)?;
        let moved = moves.len();
        for Move { from, to, .. } in moves {
            *counts.entry((from, to)).or_default() += 1;
        }
        let transfers = counts.into_iter().map(|((from, to), partitions)| Transfer { from, to, partitions }).collect();
        Ok(Self { transfers, moved, size: new.size(), least: least(old, new) })
    }

    /// What the join of a node moves. Nothing, if it is a node of the ring already.
    pub fn join(ring: &Ring, node: NodeId) -> Self {
        Self::of_same_size(ring, &ring.with(node))
    }

    /// What moves when a node leaves. Nothing, if it is no node of the ring.
    pub fn leave(ring: &Ring, node: &NodeId) -> Self {
        Self::of_same_size(ring, &ring.without(node))
    }

    fn of_same_size(old: &Ring, new: &Ring) -> Self {
        Self::between(old, new).expect("a ring with another node has the size of the ring")
    }

    /// How many partitions a node gets.
    pub fn gained(&self, node: &NodeId) -> usize {
        self.transfers.iter().filter(|transfer| transfer.to.as_ref() == Some(node)).map(|transfer| transfer.partitions).sum()
    }

    /// How many partitions a node gives.
    pub fn given(&self, node: &NodeId) -> usize {
        self.transfers.iter().filter(|transfer| transfer.from.as_ref() == Some(node)).map(|transfer| transfer.partitions).sum()
    }
}

/// Fewest moves to any even distribution over the new nodes: what does not stay with a node that keeps as much as it may.
fn least(old: &Ring, new: &Ring) -> usize {
    let partitions = new.size().partitions();
    let Some(floor) = partitions.checked_div(new.nodes().len()) else {
        return if old.nodes().is_empty() { 0 } else { partitions };
    };
    let mut kept = 0;
    let mut above = 0;
    for node in new.nodes() {
        let had = old.partitions_of(node).count();
        kept += had.min(floor);
        above += usize::from(had > floor);
    }
    // So many nodes may keep one more than the floor.
    kept += above.min(partitions % new.nodes().len());
    partitions - kept
}
