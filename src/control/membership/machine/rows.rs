//! Rows on their way: news are passed on at once to those who do not hear them from their author, and tables that differ for longer are compared.
//!
//! Our own row changes here too: our state, and the orders that we pass on for operators.

use std::time::Instant;

use super::{GATHER, HEARTBEAT, Machine, SessionKey};
use crate::control::membership::envelope::{Body, NODES_MAX, Order, OrderKind, Row, RowState, Tombstone, packed};
use crate::control::membership::fault::{Fault, has};
use crate::control::membership::table::Life;

impl Machine {
    pub(super) fn learn(&mut self, session: SessionKey, rows: Vec<Row>, forgotten: Vec<Tombstone>, now: Instant) {
        for tombstone in forgotten {
            if tombstone.node != self.me.0 {
                self.remembered.remove(&tombstone.node);
            }
            let node = tombstone.node.clone();
            if self.table.forget(tombstone) {
                // Whatever was wrong with it.
                self.problems.remove(&node);
                self.buried = true;
                self.tell_soon(now);
            }
        }
        for row in rows {
            let life = (row.id.clone(), row.incarnation);
            let orders: Vec<OrderKind> = row
                .orders
                .iter()
                .filter(|order| (&order.node, order.incarnation) == (&self.me.0, self.me.1))
                .map(|order| order.kind)
                .collect();
            if !self.table.insert(row) {
                continue;
            }
            self.news.insert(life, Some(session));
            self.tell_soon(now);
            for order in orders {
                match (order, self.own_state()) {
                    (OrderKind::Join, RowState::Staged) => self.change_state(RowState::Joined, now),
                    (OrderKind::Leave, RowState::Joined | RowState::Staged) => self.change_state(RowState::Leaving, now),
                    _ => {}
                }
            }
        }
    }

    /// Two tables that differ for longer than news take are compared.
    pub(super) fn compare(&mut self, session: SessionKey, digest: u64, now: Instant) {
        let differs = digest != self.table.digest() && !has(Fault::NoComparison);
        if let Some(hearing) = self.sessions.get(&session).and_then(|session| self.hearing.get_mut(&session.peer)) {
            hearing.synced |= !differs;
        }
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let again = std::mem::replace(&mut known.differed, differs) && differs;
        if again && self.news.is_empty() {
            self.summarize(session, now);
        }
    }

    pub(super) fn summarize(&mut self, session: SessionKey, now: Instant) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        if known.summarized.is_some_and(|at| now < at + HEARTBEAT / 2) {
            return;
        }
        known.summarized = Some(now);
        let body = Body::Summary { rows: self.table.summary(), forgotten: self.table.tombstones() };
        self.send(session, body);
    }

    pub(super) fn change_state(&mut self, state: RowState, now: Instant) {
        if self.own_state() != state {
            self.table.change_own(|row| row.state = state);
            self.told(now);
        }
    }

    pub(super) fn order(&mut self, order: Order, now: Instant) {
        if self.table.own().orders.len() < NODES_MAX && !self.table.own().orders.contains(&order) {
            self.table.change_own(|row| row.orders.push(order));
            self.told(now);
        }
    }

    /// Our row has changed.
    pub(super) fn told(&mut self, now: Instant) {
        self.news.insert(self.me.clone(), None);
        self.tell_soon(now);
    }

    pub(super) fn tell_soon(&mut self, now: Instant) {
        self.tell_at.get_or_insert(now + GATHER);
    }

    pub(super) fn drop_done_orders(&mut self) {
        let pending = |order: &Order| {
            let row = self.table.row(&(order.node.clone(), order.incarnation));
            row.is_some_and(|row| match order.kind {
                OrderKind::Join => row.state == RowState::Staged,
                OrderKind::Leave => matches!(row.state, RowState::Joined | RowState::Staged),
                OrderKind::Unknown => false,
            })
        };
        let orders: Vec<Order> = self.table.own().orders.iter().filter(|order| pending(order)).cloned().collect();
        if orders.len() < self.table.own().orders.len() {
            self.table.change_own(|row| row.orders = orders);
            self.news.insert(self.me.clone(), None);
        }
    }

    /// Passes news on, to everybody who will not hear them from their author or from whoever told us.
    pub(super) fn tell(&mut self) {
        let news = std::mem::take(&mut self.news);
        let buried = if std::mem::take(&mut self.buried) { self.table.tombstones() } else { Vec::new() };
        let keys: Vec<SessionKey> = self.sessions.keys().copied().collect();
        for key in keys {
            let Some(session) = self.sessions.get(&key) else { continue };
            let peer = session.peer.clone();
            let lacks = |(life, from): (&Life, &Option<SessionKey>)| {
                let row = self.table.row(life)?;
                let is_author = *life == peer || *from == Some(key);
                let author_tells = *life != self.me
                    && row.heard.get(&peer.0) == Some(&peer.1)
                    && self.table.row(&peer).is_some_and(|peer| peer.heard.get(&life.0) == Some(&life.1));
                (!is_author && !author_tells).then(|| row.clone())
            };
            let rows: Vec<Row> = news.iter().filter_map(lacks).collect();
            for body in packed(rows, buried.clone()) {
                self.send(key, body);
            }
        }
    }
}
