//! The rows that a node knows: what it has heard of everybody, in whatever order and by whatever way.
//!
//! A row is written by one life of one node and only replaced by its later versions, so any two nodes that have seen the same rows hold the same table: it is
//! a join, and a digest tells whether two tables differ. Several lives of one id may stand here, since a life that was cut off may not know yet that it has a
//! successor. Which of them count is decided by [`graph`](super::graph), from who hears whom.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::Xxh3Default;

use super::envelope::{Known, NODES_MAX, Row, RowState, Tombstone};
use super::fault::{Fault, has};
use crate::types::{Incarnation, NodeId};

/// One life of one node.
pub(crate) type Life = (NodeId, Incarnation);

/// Ids, the dead and the departed included.
const IDS_MAX: usize = 2 * NODES_MAX;
/// Lives of one id; the newest are kept.
const LIVES_MAX: usize = 3;
/// Tombstones; the newest are kept.
const TOMBSTONES_MAX: usize = 512;

/// What was learnt of all control nodes.
#[derive(Debug)]
pub(crate) struct Table {
    /// Whose table it is: its own row is never dropped.
    me: Life,
    rows: BTreeMap<Life, Row>,
    forgotten: BTreeMap<NodeId, u64>,
    digest: u64,
}

impl Table {
    pub(crate) fn new(own: Row, forgotten: impl IntoIterator<Item = Tombstone>) -> Self {
        let me = (own.id.clone(), own.incarnation);
        let rows = BTreeMap::from([(me.clone(), own)]);
        let mut table = Self { me, rows, forgotten: BTreeMap::new(), digest: 0 };
        for tombstone in forgotten {
            table.bury(tombstone);
        }
        table.digest = table.compute_digest();
        table
    }

    pub(crate) fn own(&self) -> &Row {
        self.rows.get(&self.me).expect("the own row is never dropped")
    }

    /// Changes the own row, which gets a new version.
    pub(crate) fn change_own(&mut self, change: impl FnOnce(&mut Row)) {
        let own = self.rows.get_mut(&self.me).expect("the own row is never dropped");
        change(own);
        own.version += 1;
        self.clean();
    }

    pub(crate) fn row(&self, life: &Life) -> Option<&Row> {
        self.rows.get(life)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// The newest life of each id.
    pub(crate) fn newest(&self) -> BTreeMap<&NodeId, &Row> {
        let mut newest: BTreeMap<&NodeId, &Row> = BTreeMap::new();
        for row in self.rows.values() {
            let best = newest.entry(&row.id).or_insert(row);
            if (row.generation, row.incarnation) > (best.generation, best.incarnation) {
                *best = row;
            }
        }
        newest
    }

    pub(crate) fn tombstones(&self) -> Vec<Tombstone> {
        self.forgotten.iter().map(|(node, generation)| Tombstone { node: node.clone(), generation: *generation }).collect()
    }

    /// Equal if and only if two tables are, as far as a hash of 64 bits can tell.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// Takes in a row; whether it was news.
    pub(crate) fn insert(&mut self, row: Row) -> bool {
        let life = (row.id.clone(), row.incarnation);
        if life == self.me {
            // Nobody else writes it. One of our own that came back is older, or the same.
            return false;
        }
        if self.is_forgotten(&row.id, row.generation) || self.rows.get(&life).is_some_and(|known| known.version >= row.version) {
            return false;
        }
        self.rows.insert(life.clone(), row);
        self.clean();
        self.rows.contains_key(&life)
    }

    /// Takes in a tombstone; whether it was news. A node never forgets itself: it outlives the tombstone by a later generation, or stops.
    pub(crate) fn forget(&mut self, tombstone: Tombstone) -> bool {
        let news = self.bury(tombstone);
        if news {
            self.clean();
        }
        news
    }

    fn bury(&mut self, Tombstone { node, generation }: Tombstone) -> bool {
        if self.forgotten.get(&node).is_some_and(|known| *known >= generation) {
            return false;
        }
        self.forgotten.insert(node, generation);
        while self.forgotten.len() > TOMBSTONES_MAX {
            let oldest = self.forgotten.iter().min_by_key(|(_, generation)| **generation).map(|(node, _)| node.clone());
            oldest.and_then(|node| self.forgotten.remove(&node));
        }
        true
    }

    pub(crate) fn is_forgotten(&self, node: &NodeId, generation: u64) -> bool {
        self.forgotten.get(node).is_some_and(|until| *until >= generation) && !has(Fault::NoTombstones)
    }

    /// What is here, for somebody whose digest differs.
    pub(crate) fn summary(&self) -> Vec<Known> {
        self.rows.values().map(|row| Known(row.id.clone(), row.incarnation, row.version)).collect()
    }

    /// The rows that somebody lacks, or has in an older version.
    pub(crate) fn missing_from(&self, summary: &[Known]) -> Vec<Row> {
        let theirs: BTreeMap<(&NodeId, Incarnation), u64> =
            summary.iter().map(|Known(id, life, version)| ((id, *life), *version)).collect();
        let newer = |row: &&Row| theirs.get(&(&row.id, row.incarnation)).is_none_or(|version| *version < row.version);
        self.rows.values().filter(newer).cloned().collect()
    }

    /// Drops what is forgotten, lives that have a successor and that nobody hears any more, and the oldest where there are too many.
    fn clean(&mut self) {
        let me = self.me.clone();
        let forgotten = &self.forgotten;
        let is_forgotten = |row: &Row| forgotten.get(&row.id).is_some_and(|until| *until >= row.generation) && !has(Fault::NoTombstones);
        self.rows.retain(|life, row| *life == me || !is_forgotten(row));
        let mut lives: BTreeMap<NodeId, Vec<(u64, Incarnation)>> = BTreeMap::new();
        for row in self.rows.values() {
            lives.entry(row.id.clone()).or_default().push((row.generation, row.incarnation));
        }
        if lives.values().any(|lives| lives.len() > 1) {
            let heard: BTreeSet<Life> = self.rows.values().flat_map(|row| row.heard.iter().map(|(id, life)| (id.clone(), *life))).collect();
            for (id, mut lives) in lives.clone() {
                lives.sort_unstable_by(|a, b| b.cmp(a));
                for (place, (_, incarnation)) in lives.into_iter().enumerate().skip(1) {
                    let life = (id.clone(), incarnation);
                    if life != me && (place >= LIVES_MAX || !heard.contains(&life)) {
                        self.rows.remove(&life);
                    }
                }
            }
        }
        while lives.len() > IDS_MAX {
            // Of those that are gone, the one that went first; else whoever came last, so that those who are here stay.
            let order = |(id, lives): &(&NodeId, &Vec<(u64, Incarnation)>)| {
                let gone = lives.iter().all(|(_, life)| {
                    let row = self.rows.get(&((*id).clone(), *life));
                    row.is_none_or(|row| matches!(row.state, RowState::Left | RowState::Stopped))
                });
                let generation = lives.iter().map(|(generation, _)| *generation).max().unwrap_or(0);
                (gone, if gone { u64::MAX - generation } else { generation })
            };
            let last = lives.iter().filter(|(id, _)| **id != me.0).max_by_key(order).map(|(id, _)| id.clone());
            let Some(last) = last else { break };
            lives.remove(&last);
            self.rows.retain(|(id, _), _| *id != last);
        }
        self.digest = self.compute_digest();
    }

    fn compute_digest(&self) -> u64 {
        let mut hash = Xxh3Default::new();
        for row in self.rows.values() {
            hash.update(row.id.as_str().as_bytes());
            hash.update(&[0]);
            hash.update(row.incarnation.as_bytes());
            hash.update(&row.version.to_le_bytes());
        }
        for (node, generation) in &self.forgotten {
            hash.update(&[1]);
            hash.update(node.as_str().as_bytes());
            hash.update(&[0]);
            hash.update(&generation.to_le_bytes());
        }
        hash.digest()
    }
}
