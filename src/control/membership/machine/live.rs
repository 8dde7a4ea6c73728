//! From the rows to the view: who lives, whether we may act, and what is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Action, DOUBLE, Machine, Saved};
use crate::config::Split;
use crate::control::membership::envelope::{NODES_MAX, Row, RowState};
use crate::control::membership::fault::{Fault, has};
use crate::control::membership::graph::Component;
use crate::control::membership::table::Life;
use crate::control::view::{Member, View};
use crate::error::{Error, ErrorCode};
use crate::ring::Ring;
use crate::types::{NodeId, NodeUri};

impl Machine {
    pub(super) fn publish(&mut self, now: Instant) {
        let component = self.judge(now);
        self.judged = Some(self.table.digest());
        self.redial = true;
        // Whoever is out is back only after it was heard steadily, also by those who never heard it: else a new link would let it flap.
        let reached: BTreeSet<Life> = component.reached.keys().cloned().collect();
        let before = std::mem::replace(&mut self.reached, reached);
        let out: Vec<Life> = before.difference(&self.reached).cloned().collect();
        self.lose(out);
        let impostor = component.impostors.contains(&self.me);
        if impostor {
            let what = format!("two live control nodes have the node_id {}; this one is the younger and stands back", self.me.0);
            let me = self.me.0.clone();
            self.alarm(&me, Error::new(ErrorCode::NodeIdInUse, what));
        }
        for (id, _) in component.impostors.iter().filter(|life| **life != self.me).cloned().collect::<Vec<_>>() {
            let what = format!("two live control nodes have the node_id {id}; the younger one does nothing. Give it another");
            self.alarm(&id, Error::new(ErrorCode::NodeIdInUse, what));
        }
        self.stands_back_until = self.stands_back_until.filter(|until| now < *until);
        if self.asleep_until.is_some_and(|until| now >= until) || self.asleep_until.is_some() && self.is_back(&component) {
            self.asleep_until = None;
        }
        let mut live: BTreeMap<NodeId, Member> = BTreeMap::new();
        let own = self.table.own();
        let alone = Member { incarnation: self.me.1, listen: own.listen.clone(), next_hop: None };
        if own.state == RowState::Staged {
            live.insert(self.me.0.clone(), alone);
        } else {
            let mut newest_last: Vec<(&Row, &Option<NodeId>)> =
                component.reached.iter().filter_map(|(life, next_hop)| Some((self.table.row(life)?, next_hop))).collect();
            // Of two lives of one id the newer is meant, until it is known that both live; our own is always ourselves.
            newest_last.sort_by_key(|(row, _)| (row.incarnation == self.me.1, row.generation, row.incarnation));
            for (row, next_hop) in newest_last {
                let life = (row.id.clone(), row.incarnation);
                if row.state == RowState::Joined && !component.impostors.contains(&life) && live.len() < NODES_MAX {
                    let member = Member { incarnation: row.incarnation, listen: row.listen.clone(), next_hop: next_hop.clone() };
                    live.insert(life.0.clone(), member);
                }
            }
        }
        self.note_members(&component);
        let frozen = self.asleep_until.is_some() || self.stands_back_until.is_some() || impostor || self.is_minority(&live);
        if live == self.view.live && frozen == self.view.frozen {
            return;
        }
        let same_set = live.keys().eq(self.view.ring.nodes());
        let ring = if same_set { self.view.ring.clone() } else { Ring::new(self.ring_size, live.keys().cloned()) };
        self.view = View { me: self.me.0.clone(), live, ring, frozen };
        self.actions.push(Action::Publish(Box::new(self.view.clone())));
    }

    /// The component, in which two lives of one id count as a fault only if neither ends for a while: after a restart some hear the old one longer than others.
    pub(super) fn judge(&mut self, now: Instant) -> Component {
        let mut component = Component::of(&self.table);
        let doubles: BTreeSet<NodeId> = component.impostors.iter().map(|(id, _)| id.clone()).collect();
        self.doubles.retain(|id, _| doubles.contains(id));
        for id in doubles {
            let at = self.doubles.entry(id).or_insert(Some(now + DOUBLE));
            *at = at.filter(|at| now < *at);
        }
        component.impostors.retain(|(id, _)| self.doubles.get(id) == Some(&None));
        component
    }

    pub(super) fn is_minority(&self, live: &BTreeMap<NodeId, Member>) -> bool {
        let members = self.saved.members.len() + 1;
        let joined = self.own_state() == RowState::Joined;
        self.split == Split::Majority && !has(Fault::NoMinority) && joined && live.len() * 2 <= members
    }

    /// Keeps the list of members, and what is written down of it.
    pub(super) fn note_members(&mut self, component: &Component) {
        for (id, row) in self.table.newest() {
            let is_impostor = component.impostors.iter().any(|(impostor, _)| impostor == id);
            let stands_back = *id == self.me.0 && self.stands_back_until.is_some();
            if component.reached.contains_key(&(id.clone(), row.incarnation)) && !is_impostor && !stands_back {
                self.problems.remove(id);
            }
        }
        let known: BTreeSet<NodeId> = self.table.rows().map(|row| row.id.clone()).collect();
        self.remembered.retain(|id, _| !known.contains(id));
        let newest = self.table.newest().into_values().filter(|row| row.id != self.me.0);
        let members = newest.filter(|row| !matches!(row.state, RowState::Left | RowState::Staged));
        let mut members: BTreeMap<NodeId, Vec<NodeUri>> = members.map(|row| (row.id.clone(), row.listen.clone())).collect();
        members.extend(self.remembered.iter().map(|(id, listen)| (id.clone(), listen.clone())));
        let joined = matches!(self.own_state(), RowState::Joined | RowState::Stopped);
        if self.own_state() == RowState::Staged {
            // Not one of them yet.
            members.clear();
        }
        let saved = Saved { generation: self.generation, joined, members, forgotten: self.table.tombstones() };
        if saved != self.saved {
            self.saved = saved;
            self.actions.push(Action::Persist(Box::new(self.saved.clone())));
        }
    }
}
