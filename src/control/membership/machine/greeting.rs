//! The first words of a session, and why one is refused: another size of the ring, a name that is taken, a node that was forgotten.
//!
//! Whoever refuses says why and closes, both sides raise an alarm, and the reason is told by `members` until the node is a member.

use std::time::Instant;

use super::{Action, Machine, STANDS_BACK, SessionKey};
use crate::control::membership::envelope::{Body, Hello, NODES_MAX};
use crate::control::membership::table::Life;
use crate::error::{Error, ErrorCode};
use crate::types::NodeId;

impl Machine {
    pub(super) fn hello_came(&mut self, session: SessionKey, peer: &Life, hello: &Hello, now: Instant) {
        if usize::from(hello.ring_size) != self.ring_size.partitions() {
            let what = format!(
                "{} has a ring of {} partitions, {} one of {}; `ring_size` must be the same on all control nodes",
                peer.0, hello.ring_size, self.me.0, self.ring_size
            );
            return self.refuse(session, Error::new(ErrorCode::DifferentRingSizes, what), now);
        }
        if peer.0 == self.me.0 {
            let what = format!("two live control nodes have the node_id {}; give one of them another", peer.0);
            let reason = Error::new(ErrorCode::NodeIdInUse, what);
            if (hello.generation, peer.1) < (self.generation, self.me.1) {
                self.stand_back(reason.clone(), now);
            }
            return self.refuse(session, reason, now);
        }
        if self.table.is_forgotten(&peer.0, hello.generation) {
            let what = format!("control node {} was forgotten by an operator; restart it and it may join again", peer.0);
            return self.refuse(session, Error::new(ErrorCode::NotAllowed, what), now);
        }
        let Some(known) = self.sessions.get_mut(&session) else { return };
        known.theirs = Some(hello.number);
        known.generation = hello.generation;
        if hello.answer == Some(known.ours) {
            self.heard(session, peer, now);
            self.summarize(session, now);
        } else {
            self.hello(session, Some(hello.number));
        }
    }

    /// The peer wants nothing to do with us.
    pub(super) fn refused(&mut self, session: SessionKey, peer: &Life, reason: Error, now: Instant) {
        let reason = reason.bounded();
        if *reason.code() == ErrorCode::NodeIdInUse && (peer.0 != self.me.0 || self.asks_back(peer)) {
            self.stand_back(reason.clone(), now);
        }
        self.alarm(&peer.0, reason.clone());
        self.drop_session(session, peer, reason, now);
    }

    /// Of two lives of one id, whether the peer is the elder. Its generation came with its hello, or in its row; without either we do not know, and stay.
    pub(super) fn asks_back(&self, peer: &Life) -> bool {
        self.table.row(peer).is_some_and(|row| (row.generation, row.incarnation) < (self.generation, self.me.1))
    }

    pub(super) fn stand_back(&mut self, reason: Error, now: Instant) {
        self.stands_back_until = Some(now + STANDS_BACK);
        let me = self.me.0.clone();
        self.alarm(&me, reason);
    }

    pub(super) fn refuse(&mut self, session: SessionKey, reason: Error, now: Instant) {
        let Some(peer) = self.sessions.get(&session).map(|session| session.peer.clone()) else { return };
        self.alarm(&peer.0, reason.clone());
        self.send_to(session, 0, Body::Refused { reason: reason.clone() });
        self.drop_session(session, &peer, reason, now);
    }

    pub(super) fn drop_session(&mut self, session: SessionKey, peer: &Life, reason: Error, now: Instant) {
        self.sessions.remove(&session);
        self.redial = true;
        self.close(session, reason);
        if peer.0 != self.me.0 {
            self.dials.lost(&peer.0, now);
        }
    }

    pub(super) fn alarm(&mut self, id: &NodeId, reason: Error) {
        if self.problems.get(id) != Some(&reason) && (self.problems.len() < NODES_MAX || self.problems.contains_key(id)) {
            self.problems.insert(id.clone(), reason.clone());
            self.actions.push(Action::Alarm(reason));
        }
    }
}
