//! Which control node owns a key: a pure function of the set of live control nodes.
//!
//! ```text
//! key ── xxh3-64, upper bits ──► partition, one of 2^k ── table ──► owner
//!                                                          ▲
//!                   set of live control nodes ── assignment ┘
//! ```
//!
//! Nobody coordinates and nothing is remembered: two control nodes that see the same set compute the same table, in whatever order they came to know
//! it. The assignment is bounded-load rendezvous hashing. Each pair of partition and node has a [`weight`]; the heaviest pairs come first, and each
//! partition goes to its heaviest node that still has room. Room is the floor of partitions / nodes, and one more for as many nodes as the division leaves
//! partitions over: those that need it first. So the loads of two nodes never differ by more than one partition, and who joins or leaves moves little more
//! than its own share ([`Plan`] counts it).
//!
//! The hashes are frozen: control nodes of two versions must agree while a cluster is upgraded, and the tests hold vectors of them. A change of either, or of
//! the assignment, needs another [`Ring::VERSION`].
//!
//! | item | answers |
//! |---|---|
//! | [`Ring::owner`] | whose a key is |
//! | [`Ring::successors`] | who keeps copies of what the owner knows, nearest first |
//! | [`Ring::without`], [`Ring::with`] | whose it would be after a node left or joined |
//! | [`Ring::epoch`] | whether two nodes have the same ring; compared for equality only |
//! | [`moves`], [`Plan`] | what a change moves, partition by partition or in sums |

mod assign;
mod plan;
#[cfg(test)]
mod tests;

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub use plan::{DifferentSizes, Move, Plan, Transfer, moves};

use crate::error::{Error, ErrorCode, Result};
use crate::types::NodeId;

/// Number of partitions of a ring: a power of two from 8 to 4096, the same on all control nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingSize(u16);

impl RingSize {
    /// Fewest partitions.
    pub const MIN: Self = Self(8);
    /// Most partitions.
    pub const MAX: Self = Self(4096);

    /// Checks the number of partitions; `invalid_config` if it is no power of two from 8 to 4096.
    pub fn new(partitions: usize) -> Result<Self> {
        match u16::try_from(partitions) {
            Ok(size) if size.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&size) => Ok(Self(size)),
            _ => Err(Error::new(ErrorCode::InvalidConfig, format!("ring_size is {partitions}, expected a power of two from 8 to 4096"))),
        }
    }

    /// How many partitions there are.
    pub fn partitions(self) -> usize {
        usize::from(self.0)
    }

    /// The partition of a hash: its upper bits.
    pub fn partition_of(self, hash: KeyHash) -> Partition {
        // The size is 2^k with 3 ≤ k ≤ 12, so k bits are left, which fit.
        Partition((hash.0 >> (u64::BITS - self.0.trailing_zeros())) as u16)
    }
}

impl Default for RingSize {
    /// 256: enough for six control nodes with the recommended 40 partitions for each.
    fn default() -> Self {
        Self(256)
    }
}

impl fmt::Display for RingSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the equal parts into which the hashes of all keys are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(u16);

impl Partition {
    /// Its number, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hash of a key, by which it is placed. Whoever places keys by a hash of its own makes it [`KeyHash::from_bits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// XXH3-64 of the bytes of a key, frozen.
    pub fn of(key: impl AsRef<[u8]>) -> Self {
        Self(xxh3_64(key.as_ref()))
    }

    /// A hash of another origin. The upper bits choose the partition, so these must be spread evenly.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The 64 bits.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// How much a node is drawn to a partition: XXH3-64 of the number of the partition (two bytes, little endian), with the XXH3-64 of the node's name as the
/// seed. Frozen.
pub fn weight(node: &NodeId, partition: Partition) -> u64 {
    weight_of(seed(node), partition)
}

fn seed(node: &NodeId) -> u64 {
    xxh3_64(node.as_str().as_bytes())
}

fn weight_of(seed: u64, partition: Partition) -> u64 {
    xxh3_64_with_seed(&partition.0.to_le_bytes(), seed)
}

/// The partitions and their owners, for one set of control nodes.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring {
    size: RingSize,
    /// Sorted, each once.
    nodes: Vec<NodeId>,
    /// Of each partition, the place of its owner in `nodes`; empty if there are no nodes.
    owners: Vec<u32>,
    epoch: u64,
}

impl Ring {
    /// Version of hashes and assignment, a part of the [`epoch`](Ring::epoch).
    pub const VERSION: u8 = 1;

    /// The ring of these nodes, in whatever order and however often each is named. With more nodes than partitions, some own nothing.
    pub fn new(size: RingSize, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup();
        let seeds: Vec<u64> = nodes.iter().map(seed).collect();
        let owners = assign::owners(size, &seeds);
        let epoch = epoch(size, &nodes);
        Self { size, nodes, owners, epoch }
    }

    /// How many partitions there are.
    pub fn size(&self) -> RingSize {
        self.size
    }

    /// The nodes, sorted by name.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Whether the node is one of the ring's.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.nodes.binary_search(node).is_ok()
    }

    /// Digest of version, size and nodes: equal if and only if two rings are. It has no order; a later ring may have any other.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The partition of a key.
    pub fn partition(&self, key: impl AsRef<[u8]>) -> Partition {
        self.size.partition_of(KeyHash::of(key))
    }

    /// The owner of a key; nobody if there are no nodes.
    pub fn owner(&self, key: impl AsRef<[u8]>) -> Option<&NodeId> {
        self.owner_of(self.partition(key))
    }

    /// The owner of a partition; nobody if there are no nodes, or if the partition is of a larger ring.
    pub fn owner_of(&self, partition: Partition) -> Option<&NodeId> {
        let owner = self.owners.get(partition.index())?;
        self.nodes.get(*owner as usize)
    }

    /// The owner of each partition, in their order; nothing if there are no nodes.
    pub fn owners(&self) -> impl ExactSizeIterator<Item = &NodeId> + Clone {
        self.owners.iter().map(|owner| &self.nodes[*owner as usize])
    }

    /// Every partition, in order.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + Clone + use<> {
        (0..self.size.0).map(Partition)
    }

    /// The partitions that a node owns, in order.
    pub fn partitions_of<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = Partition> + 'a {
        let index = self.nodes.binary_search(node).ok();
        let own = move |(partition, owner): (Partition, &u32)| (Some(*owner as usize) == index).then_some(partition);
        self.partitions().zip(&self.owners).filter_map(own)
    }

    /// Up to `count` other nodes than the owner, the most drawn to the partition first: those that keep copies of what the owner knows.
    pub fn successors(&self, partition: Partition, count: usize) -> Vec<&NodeId> {
        let owner = self.owner_of(partition);
        let others = self.nodes.iter().filter(|node| Some(*node) != owner);
        let mut weighed: Vec<(u64, &NodeId)> = others.map(|node| (weight(node, partition), node)).collect();
        weighed.sort_unstable_by(|a, b| b.cmp(a));
        weighed.into_iter().take(count).map(|(_, node)| node).collect()
    }

    /// The ring after this node joined.
    #[must_use]
    pub fn with(&self, node: NodeId) -> Self {
        Self::new(self.size, self.nodes.iter().cloned().chain([node]))
    }

    /// The ring after this node left.
    #[must_use]
    pub fn without(&self, node: &NodeId) -> Self {
        Self::new(self.size, self.nodes.iter().filter(|other| *other != node).cloned())
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epoch = format_args!("{:016x}", self.epoch);
        f.debug_struct("Ring").field("size", &self.size.0).field("nodes", &self.nodes).field("epoch", &epoch).finish_non_exhaustive()
    }
}

fn epoch(size: RingSize, nodes: &[NodeId]) -> u64 {
    let mut bytes = vec![Ring::VERSION];
    bytes.extend(size.0.to_le_bytes());
    for node in nodes {
        // A byte that no name has stands in between, so that no two lists read the same.
        bytes.push(0);
        bytes.extend(node.as_str().as_bytes());
    }
    xxh3_64(&bytes)
}
