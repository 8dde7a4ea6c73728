//! The failure detector: who is heard, by our own clock alone.
//!
//! ```text
//!  first envelope ─► heard ── silence of SUSPECT ─► suspected ── of OUT ─► lost ── heard steadily for REENTER ─► heard
//!                      └──── session ended, none for REDIAL ───────────────┘
//! ```
//!
//! What is decided here is written into our row; what follows from the rows of all is decided in [`live`](super::live).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{AWAKE, DOUBLE, HEARTBEAT, Hearing, INCUMBENT_TALKS, LOST_MAX, Machine, OUT, REDIAL, REENTER, SUSPECT, SessionKey};
use crate::control::membership::envelope::{NODES_MAX, RowState};
use crate::control::membership::fault::{Fault, has};
use crate::control::membership::graph::Component;
use crate::control::membership::table::Life;
use crate::error::{Error, ErrorCode};
use crate::types::{Incarnation, NodeId};

impl Machine {
    pub(super) fn heard(&mut self, session: SessionKey, peer: &Life, now: Instant) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        if !std::mem::replace(&mut known.confirmed, true) {
            (self.listen_at, self.redial) = (now, true);
        }
        let first = Hearing { last: now, since: now, generation: known.generation, ended: None, named: false, fresh: true, synced: false };
        let hearing = self.hearing.entry(peer.clone()).or_insert(first);
        if now >= hearing.last + SUSPECT {
            hearing.since = now;
        }
        if !hearing.named || hearing.ended.is_some() || !hearing.fresh {
            self.listen_at = now;
        }
        (hearing.last, hearing.ended, hearing.fresh) = (now, None, true);
    }

    /// A node that did not run for half of [`OUT`] may be out for others already: it begins anew with everybody.
    pub(super) fn wake(&mut self, now: Instant) {
        if now <= self.ticked + OUT / 2 {
            return;
        }
        (self.ticked, self.listen_at, self.redial) = (now, now, true);
        self.asleep_until = (!has(Fault::NoFreeze)).then_some(now + AWAKE);
        for hearing in self.hearing.values_mut() {
            // What they said meanwhile may lie unread: they get the time to say it again.
            (hearing.last, hearing.since, hearing.ended) = (now, now, hearing.ended.map(|_| now));
            (hearing.fresh, hearing.synced) = (false, false);
        }
        // Of two lives of one id one may have ended meanwhile, which we could not hear.
        for at in self.doubles.values_mut().flatten() {
            *at = now + DOUBLE;
        }
        let keys: Vec<SessionKey> = self.sessions.keys().copied().collect();
        for key in keys {
            let number = self.number();
            if let Some(session) = self.sessions.get_mut(&key) {
                (session.ours, session.theirs, session.confirmed, session.since) = (number, None, false, now);
            }
            self.hello(key, None);
        }
    }

    /// Whether the peers of a node that was asleep have it back, or nobody is left.
    pub(super) fn is_back(&self, component: &Component) -> bool {
        // Whoever has lost everybody may be the one who was lost: it waits for them a while.
        let is_alone = self.saved.members.is_empty();
        (is_alone || !self.hearing.is_empty())
            && self.hearing.iter().all(|(life, hearing)| hearing.synced && component.reached.contains_key(life))
    }

    /// Decides who is heard, and changes our row accordingly.
    pub(super) fn listen(&mut self, now: Instant) {
        let silent: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, session)| !session.confirmed && now >= session.since + OUT).map(|(key, _)| *key).collect();
        for key in silent {
            let peer = self.sessions[&key].peer.clone();
            self.drop_session(key, &peer, Error::new(ErrorCode::Timeout, "the peer did not answer the hello"), now);
        }
        let mut gone: Vec<Life> = Vec::new();
        let mut refused: Vec<Life> = Vec::new();
        for (life, hearing) in &self.hearing {
            let stopped =
                self.table.row(life).is_some_and(|row| matches!(row.state, RowState::Stopped | RowState::Leaving | RowState::Left));
            let ended = hearing.ended.is_some_and(|ended| stopped || now >= ended + REDIAL);
            let is_gone = ended || now >= hearing.last + OUT;
            // Another life of the id that came later.
            let successor =
                self.hearing.iter().find(|(other, later)| other.0 == life.0 && (later.since, other.1) > (hearing.since, life.1));
            let replaced =
                successor.is_some_and(|(_, later)| hearing.ended.is_some() || (now >= hearing.last + SUSPECT && later.last > hearing.last));
            if is_gone || replaced {
                gone.push(life.clone());
            } else if let Some((other, later)) = successor
                && !has(Fault::NoElder)
                && hearing.last >= later.since + INCUMBENT_TALKS
            {
                // Both live. The elder keeps the name, whoever came first.
                let is_elder = (hearing.generation, life.1) < (later.generation, other.1);
                refused.push(if is_elder { other.clone() } else { life.clone() });
            }
        }
        for life in &refused {
            let what = format!("another live control node has the node_id {}; give one of them another", life.0);
            let keys: Vec<SessionKey> = self.sessions.iter().filter(|(_, session)| session.peer == *life).map(|(key, _)| *key).collect();
            for key in keys {
                self.refuse(key, Error::new(ErrorCode::NodeIdInUse, what.clone()), now);
            }
            self.hearing.remove(life);
        }
        for life in gone {
            if self.hearing.remove(&life).is_some_and(|hearing| hearing.named) {
                self.lose([life.clone()]);
            }
            let keys: Vec<SessionKey> = self.sessions.iter().filter(|(_, session)| session.peer == life).map(|(key, _)| *key).collect();
            for key in keys {
                let what = format!("control node {} has been silent for {OUT:?}", life.0);
                self.drop_session(key, &life, Error::new(ErrorCode::ConnectionFailed, what), now);
            }
        }
        let contested = self.contested();
        for (life, hearing) in &mut self.hearing {
            // Whoever has just fallen silent is not steady: its next word begins anew.
            let is_steady = now >= hearing.since + REENTER && now < hearing.last + SUSPECT;
            let steady = !self.lost.contains(life) || is_steady || has(Fault::NoReentry);
            hearing.named |= steady && hearing.fresh && !contested.contains(life);
        }
        let heard: BTreeMap<NodeId, Incarnation> =
            self.hearing.iter().filter(|(_, hearing)| hearing.named).map(|((id, life), _)| (id.clone(), *life)).take(NODES_MAX).collect();
        if heard != self.table.own().heard {
            self.table.change_own(|row| row.heard = heard);
            self.told(now);
        }
        self.listen_at = self.next_look(now);
    }

    /// These lives are out: each is back only after it was heard steadily.
    pub(super) fn lose(&mut self, lives: impl IntoIterator<Item = Life>) {
        self.lost.extend(lives);
        if self.lost.len() > LOST_MAX {
            // A life that has a successor and that nobody hears has no row any more: most likely it will not return.
            self.lost.retain(|life| self.table.row(life).is_some());
        }
    }

    /// When the next of those that we hear may change what it is for us.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        let waiting = self.sessions.values().filter(|session| !session.confirmed).map(|session| session.since + OUT);
        let several = self.hearing.keys().zip(self.hearing.keys().skip(1)).any(|(a, b)| a.0 == b.0);
        let hearing = self.hearing.iter().flat_map(|(life, hearing)| {
            // One that is due and still not named waits for a word of its own, or for another life of its id: time alone changes nothing.
            let again = (!hearing.named && self.lost.contains(life)).then_some(hearing.since + REENTER).filter(|at| *at > now);
            [Some(hearing.last + OUT), hearing.ended.map(|ended| ended + REDIAL), again].into_iter().flatten()
        });
        let soon = several.then_some(now + HEARTBEAT / 4);
        waiting.chain(hearing).chain(soon).min().unwrap_or(now + OUT)
    }

    /// Lives that must wait until it is clear what became of an earlier one of their id.
    pub(super) fn contested(&self) -> BTreeSet<Life> {
        let waits = |(life, hearing): (&Life, &Hearing)| {
            let earlier = self.hearing.iter().any(|(other, first)| other.0 == life.0 && (first.since, other.1) < (hearing.since, life.1));
            (earlier && !hearing.named).then(|| life.clone())
        };
        self.hearing.iter().filter_map(waits).collect()
    }
}
