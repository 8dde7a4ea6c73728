//! Bounded-load rendezvous: each partition to its heaviest node that still has room.
//!
//! Said plainly, all pairs of partition and node are sorted by weight and taken from the top; a pair is granted if its partition has no owner yet and its
//! node has room. With 128 nodes and 1024 partitions this would sort 131 072 pairs, of which all but a few come after everything is decided. So the pairs are
//! taken in two bands. The upper band holds the few heaviest for each partition; sorting it decides most partitions and fills many nodes. Of the lower band
//! only pairs matter whose partition is still open and whose node still has room, which are few again. Every pair of the upper band is heavier than every pair
//! of the lower one, so the result is that of the plain form, and a test compares the two.

use super::{Partition, RingSize, weight_of};

/// Pairs for each partition in the upper band, on average. Found by trying: fewer leave too much to the lower band, more are sorted in vain.
const UPPER_BAND: u64 = 6;

/// A pair as one number that sorts by weight, then by partition and node. The last two only matter for equal weights.
type Pair = u128;

fn pair(weight: u64, partition: Partition, node: u32) -> Pair {
    u128::from(weight) << 64 | u128::from(partition.0) << 32 | u128::from(node)
}

fn unpair(pair: Pair) -> (usize, u32) {
    // Each part is cut to what `pair` put there.
    ((pair >> 32) as u32 as usize, pair as u32)
}

/// Of each partition, the place of its owner among the nodes, which are given by their seeds in the order of their names. Empty without nodes.
pub(super) fn owners(size: RingSize, seeds: &[u64]) -> Vec<u32> {
    let Some(mut room) = Room::new(size, seeds.len()) else {
        return Vec::new();
    };
    let mut owners = vec![None; size.partitions()];
    // A weight of the upper band is at least this: UPPER_BAND of all nodes reach it, or every node where there are so few.
    let threshold = match u64::MAX / seeds.len() as u64 {
        part if part > u64::MAX / UPPER_BAND => 0,
        part => u64::MAX - part * UPPER_BAND,
    };
    let mut pairs: Vec<Pair> = Vec::new();
    for band in [threshold..=u64::MAX, 0..=threshold.saturating_sub(1)] {
        let open = owners.iter().zip(0..size.0).filter(|(owner, _)| owner.is_none());
        let open = open.map(|(_, partition)| Partition(partition)).collect::<Vec<_>>();
        for (seed, node) in seeds.iter().zip(0..).filter(|(_, node)| room.is_left(*node)) {
            let weighed = open.iter().map(|partition| (weight_of(*seed, *partition), *partition));
            pairs.extend(weighed.filter(|(weight, _)| band.contains(weight)).map(|(weight, partition)| pair(weight, partition, node)));
        }
        pairs.sort_unstable_by(|a, b| b.cmp(a));
        for (partition, node) in pairs.drain(..).map(unpair) {
            if owners[partition].is_none() && room.take(node) {
                owners[partition] = Some(node);
            }
        }
    }
    // A partition is refused by a node only for want of room, and there is room for all.
    owners.into_iter().map(|owner| owner.expect("all nodes together have room for all partitions")).collect()
}

/// How many partitions each node can still take.
struct Room {
    /// What each node may have in any case.
    floor: usize,
    /// How many nodes may still take one more than that.
    extra: usize,
    taken: Vec<usize>,
}

impl Room {
    fn new(size: RingSize, nodes: usize) -> Option<Self> {
        let floor = size.partitions().checked_div(nodes)?;
        Some(Self { floor, extra: size.partitions() % nodes, taken: vec![0; nodes] })
    }

    fn is_left(&self, node: u32) -> bool {
        let taken = self.taken[node as usize];
        taken < self.floor || (taken == self.floor && self.extra > 0)
    }

    fn take(&mut self, node: u32) -> bool {
        if !self.is_left(node) {
            return false;
        }
        let taken = &mut self.taken[node as usize];
        if *taken == self.floor {
            self.extra -= 1;
        }
        *taken += 1;
        true
    }
}
