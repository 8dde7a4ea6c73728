//! Who is alive: the connected component of a node, among those who hear each other.
//!
//! A link counts if the rows of both its ends name it, each with the life of the other. So a wire that carries one way only joins nobody, a life that has ended is
//! no part of anything as soon as its neighbours have noticed, and all nodes of a component compute the same live set from the same rows, however they came to
//! know them and whether or not each has a link to each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::envelope::{Row, RowState};
use super::fault::{Fault, has};
use super::table::{Life, Table};
use crate::types::NodeId;

/// What follows from the rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Component {
    /// Everybody who can be reached, by way of which neighbour; ourselves without one.
    pub(crate) reached: BTreeMap<Life, Option<NodeId>>,
    /// Lives that use the id of an older life which is alive as well: they must not act.
    pub(crate) impostors: BTreeSet<Life>,
}

impl Component {
    /// Of whoever wrote the own row of a table.
    pub(crate) fn of(table: &Table) -> Self {
        let own = table.own();
        let me = (own.id.clone(), own.incarnation);
        let mut reached: BTreeMap<Life, Option<NodeId>> = BTreeMap::from([(me.clone(), None)]);
        let mut queue = VecDeque::from([me.clone()]);
        // Breadth first, neighbours in the order of their ids: shortest ways, and the same ones every time.
        while let Some(life) = queue.pop_front() {
            let Some(row) = table.row(&life) else { continue };
            let hop = reached.get(&life).cloned().flatten();
            for (id, incarnation) in &row.heard {
                let next = (id.clone(), *incarnation);
                let Some(other) = table.row(&next) else { continue };
                let is_mutual = other.heard.get(&row.id) == Some(&row.incarnation) || has(Fault::OneWay);
                if !is_mutual || reached.contains_key(&next) || is_gone(other) {
                    continue;
                }
                let by = hop.clone().or_else(|| (life == me).then(|| id.clone()));
                reached.insert(next.clone(), by);
                queue.push_back(next);
            }
        }
        let mut eldest: BTreeMap<&NodeId, &Row> = BTreeMap::new();
        for row in reached.keys().filter_map(|life| table.row(life)) {
            let best = eldest.entry(&row.id).or_insert(row);
            if (row.generation, row.incarnation) < (best.generation, best.incarnation) {
                *best = row;
            }
        }
        let impostors = reached.keys().filter(|(id, life)| eldest.get(id).is_some_and(|row| row.incarnation != *life)).cloned();
        let impostors = impostors.collect();
        Self { reached, impostors }
    }
}

/// It says itself that it has ended.
fn is_gone(row: &Row) -> bool {
    row.state == RowState::Stopped
}
