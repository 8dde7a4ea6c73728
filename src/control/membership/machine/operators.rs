//! What operators ask of the machine: who is there, and who shall join, leave, or be forgotten.
//!
//! Another node is changed by an **order** in our own row, which it obeys when it sees it; a node that is dead is forgotten by a **tombstone**, which everybody
//! keeps.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Action, Machine, MemberState, SUSPECT};
use crate::control::membership::envelope::{Order, OrderKind, RowState, Tombstone};
use crate::control::membership::graph::Component;
use crate::control::membership::table::Life;
use crate::error::{Error, ErrorCode};
use crate::types::{NodeId, NodeUri};

impl Machine {
    /// This node changes its own state: it leaves, has left, or stops.
    pub(crate) fn become_state(&mut self, state: RowState, now: Instant) -> Vec<Action> {
        self.wake(now);
        // Who has left is not expected back, also when it stops.
        if self.own_state() != RowState::Left {
            self.change_state(state, now);
        }
        // Whoever stops may have no other moment to say so.
        self.tell_at = Some(now);
        self.done(now)
    }

    /// Adds an address of a control node, where one was found.
    pub(crate) fn add_seed(&mut self, uri: NodeUri, found: Option<NodeId>, now: Instant) -> Vec<Action> {
        self.wake(now);
        self.dials.add_seed(uri, found, now);
        self.done(now)
    }

    /// Lets every staged node join; returns who they are.
    pub(crate) fn commit(&mut self, now: Instant) -> (Vec<NodeId>, Vec<Action>) {
        self.wake(now);
        let staged: Vec<Life> = self.staged();
        for (node, incarnation) in &staged {
            self.order(Order { node: node.clone(), incarnation: *incarnation, kind: OrderKind::Join }, now);
        }
        if self.own_state() == RowState::Staged {
            self.change_state(RowState::Joined, now);
        }
        (staged.into_iter().map(|(id, _)| id).collect(), self.done(now))
    }

    /// Nodes that wait for a commit, this one included.
    pub(crate) fn staged(&self) -> Vec<Life> {
        let component = Component::of(&self.table);
        let reached = component.reached.keys().filter(|life| self.table.row(life).is_some_and(|row| row.state == RowState::Staged));
        reached.cloned().collect()
    }

    /// Who would live if everybody who waits were let in.
    pub(crate) fn would_live(&self) -> Vec<NodeId> {
        let component = Component::of(&self.table);
        let rows = component.reached.keys().filter(|life| !component.impostors.contains(life)).filter_map(|life| self.table.row(life));
        rows.filter(|row| matches!(row.state, RowState::Joined | RowState::Staged)).map(|row| row.id.clone()).collect()
    }

    /// Asks a node to leave for good.
    ///
    /// # Errors
    /// `not_found`; `not_connected` for one that cannot hear it.
    pub(crate) fn leave(&mut self, node: &NodeId, now: Instant) -> Result<Vec<Action>, Error> {
        self.wake(now);
        let component = Component::of(&self.table);
        let life = component.reached.keys().find(|life| life.0 == *node && !component.impostors.contains(life)).cloned();
        let Some((node, incarnation)) = life else {
            return Err(if self.is_member(node) {
                let what = format!("control node {node} cannot be reached; use `forget` if it will never return");
                Error::new(ErrorCode::NotConnected, what)
            } else {
                Error::new(ErrorCode::NotFound, format!("no control node {node} is known; see `members`"))
            });
        };
        if node == self.me.0 {
            self.change_state(RowState::Leaving, now);
        } else {
            self.order(Order { node, incarnation, kind: OrderKind::Leave }, now);
        }
        Ok(self.done(now))
    }

    /// Drops a member that will not return. A later life of it may join again.
    ///
    /// # Errors
    /// `not_found`; `not_allowed` for one that is alive.
    pub(crate) fn forget(&mut self, node: &NodeId, now: Instant) -> Result<Vec<Action>, Error> {
        self.wake(now);
        if *node == self.me.0 || Component::of(&self.table).reached.keys().any(|(id, _)| id == node) {
            let what = format!("control node {node} is alive; let it `leave`, or stop it, before it is forgotten");
            return Err(Error::new(ErrorCode::NotAllowed, what));
        }
        if !self.is_member(node) {
            return Err(Error::new(ErrorCode::NotFound, format!("no control node {node} is known; see `members`")));
        }
        let generation = self.table.rows().filter(|row| row.id == *node).map(|row| row.generation).max().unwrap_or(0);
        self.table.forget(Tombstone { node: node.clone(), generation });
        self.buried = true;
        self.tell_soon(now);
        self.remembered.remove(node);
        self.problems.remove(node);
        Ok(self.done(now))
    }

    /// Whether a node is a member, alive or not.
    pub(crate) fn is_member(&self, node: &NodeId) -> bool {
        self.remembered.contains_key(node) || self.table.rows().any(|row| row.id == *node && row.state != RowState::Left)
    }

    /// Every member, this one included, and every node that was refused.
    pub(crate) fn members(&self, now: Instant) -> Vec<MemberState> {
        let component = Component::of(&self.table);
        let problem = |id: &NodeId| self.problems.get(id).cloned();
        let mut members: BTreeMap<NodeId, MemberState> = BTreeMap::new();
        for (id, row) in self.table.newest() {
            let live =
                component.reached.keys().find(|(reached, life)| reached == id && !component.impostors.contains(&(id.clone(), *life)));
            let row = live.and_then(|life| self.table.row(life)).unwrap_or(row);
            let suspected = self.hearing.get(&(id.clone(), row.incarnation)).is_some_and(|hearing| now >= hearing.last + SUSPECT);
            let state = match row.state {
                RowState::Left if live.is_none() => continue,
                RowState::Stopped => "stopped",
                // Its last word may have been lost with its session.
                RowState::Leaving if live.is_none() => "stopped",
                _ if live.is_none() => "unreachable",
                RowState::Joined if suspected => "suspected",
                RowState::Joined => "joined",
                RowState::Staged => "staged",
                RowState::Leaving => "leaving",
                RowState::Left => "left",
                RowState::Unknown => "unknown",
            };
            let member = MemberState {
                id: id.clone(),
                state,
                incarnation: Some(row.incarnation),
                program: row.program.clone(),
                listen: row.listen.clone(),
                problem: problem(id),
            };
            members.insert(id.clone(), member);
        }
        let others = self.remembered.iter().map(|(id, listen)| (id, "unreachable", listen.clone()));
        let refused = self.problems.keys().map(|id| (id, "refused", Vec::new()));
        for (id, state, listen) in others.chain(refused) {
            let other = || MemberState { id: id.clone(), state, incarnation: None, program: String::new(), listen, problem: problem(id) };
            members.entry(id.clone()).or_insert_with(other);
        }
        members.into_values().collect()
    }
}
