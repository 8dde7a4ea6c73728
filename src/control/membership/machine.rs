//! Membership as a machine: what a control node makes of what it hears.
//!
//! ```text
//!  linked, unlinked, envelope, dial failed ─┐          ┌─► Send, Close, Dial
//!  operator: leave, forget, commit, join   ─┼► Machine ┼─► Publish(view)
//!  time                                    ─┘          └─► Persist, Alarm
//! ```
//!
//! - A **session** is a way to send envelopes to one life of a peer. Both sides say hello with a number of their own; whatever follows must carry it, so
//!   nothing late counts. Only envelopes count as a sign of life.
//! - A peer is **heard** from its first envelope on, suspected after [`SUSPECT`] of silence and out after [`OUT`], by our own clock. One that was lost is heard
//!   again only after [`REENTER`] of steady hearing. Whom we hear stands in our row, and [`Component`] makes the live set of all rows.
//! - A node whose own clock shows that it was **asleep** freezes: it says hello anew on every session, and acts again when its peers have it back.
//! - **One id, two lives**: while the life that we hear goes on talking, a second one is refused with an alarm; when it has fallen silent, the second one is its
//!   successor.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::dials::{DialNumber, Dials, Target};
use super::envelope::{Body, Envelope, Hello, LISTEN_MAX, NODES_MAX, Order, OrderKind, Row, RowState, Tombstone, packed};
use super::graph::Component;
use super::table::{Life, Table};
use crate::config::Split;
use crate::control::view::{Member, View};
use crate::error::{Error, ErrorCode};
use crate::ring::{Ring, RingSize};
use crate::types::{Incarnation, NodeId, NodeUri};

/// Names a session; given by whoever owns the links.
pub(crate) type SessionKey = u64;

/// Pause between two heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which a peer is suspected.
pub(crate) const SUSPECT: Duration = Duration::from_secs(3);
/// Silence after which a peer is out.
pub(crate) const OUT: Duration = Duration::from_secs(5);
/// Steady hearing after which a peer that was lost is back.
pub(crate) const REENTER: Duration = Duration::from_secs(5);
/// How long a peer whose session has ended may take to make another one, before it is out.
pub(crate) const REDIAL: Duration = Duration::from_millis(1500);
/// How long a node that was asleep waits at most until its peers have it back.
const AWAKE: Duration = Duration::from_secs(15);
/// How long a node stands back that was told that its id is another's.
const STANDS_BACK: Duration = Duration::from_secs(15);
/// Small changes are told, and acted on, together.
const GATHER: Duration = Duration::from_millis(20);
/// How long two lives of one id may be heard by different nodes until it is told: the time after which the last one has noticed that the first has ended, and some.
const DOUBLE: Duration = Duration::from_secs(8);
/// An incumbent that talks so long after a newcomer of its id came is alive.
const INCUMBENT_TALKS: Duration = Duration::from_millis(1500);

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Larger than that of every earlier life of this node.
    pub(crate) generation: u64,
    pub(crate) program: String,
    pub(crate) listen: Vec<NodeUri>,
    pub(crate) ring_size: RingSize,
    pub(crate) staged_joins: bool,
    pub(crate) split: Split,
    pub(crate) seeds: Vec<NodeUri>,
    pub(crate) saved: Saved,
    /// Any number that differs from node to node and from start to start.
    pub(crate) random: u64,
}

/// What outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Saved {
    /// Of the life that wrote it.
    pub(crate) generation: u64,
    /// Whether this node was let in, where joins are staged.
    #[serde(default)]
    pub(crate) joined: bool,
    /// The other members, and where each listens.
    #[serde(default)]
    pub(crate) members: BTreeMap<NodeId, Vec<NodeUri>>,
    #[serde(default)]
    pub(crate) forgotten: Vec<Tombstone>,
}

/// What must be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send an envelope; lost if the session has ended.
    Send { session: SessionKey, envelope: Box<Envelope> },
    /// End a session, after what was sent on it.
    Close { session: SessionKey, reason: Error },
    /// Dial, for [`Machine::linked`] or [`Machine::dial_failed`] with this number. A member by its id, at one of these addresses.
    Dial { number: DialNumber, id: Option<NodeId>, addresses: Vec<NodeUri> },
    /// The live set, a way, or our right to act has changed.
    Publish(Box<View>),
    /// Write this down, in the place of what was written before.
    Persist(Box<Saved>),
    /// Somebody should look at it; told again in `members`.
    Alarm(Error),
}

/// A member, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub(crate) id: NodeId,
    pub(crate) state: &'static str,
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) program: String,
    pub(crate) listen: Vec<NodeUri>,
    pub(crate) problem: Option<Error>,
}

#[derive(Debug)]
struct Session {
    peer: Life,
    we_dialled: bool,
    /// What the peer writes on its envelopes.
    ours: u64,
    /// What we write on ours; none until it said hello.
    theirs: Option<u64>,
    /// Of its hello.
    generation: u64,
    /// It has shown that it knows our number.
    confirmed: bool,
    since: Instant,
    /// When we last told all that we know.
    summarized: Option<Instant>,
    /// Its digest differed at the last heartbeat too.
    differed: bool,
}

#[derive(Debug)]
struct Hearing {
    last: Instant,
    /// Since when it was heard without a gap.
    since: Instant,
    generation: u64,
    /// Its only session has ended then.
    ended: Option<Instant>,
    /// It stands in our row.
    named: bool,
    /// Heard since we were asleep.
    fresh: bool,
    /// It knows what we know, since then.
    synced: bool,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
    me: Life,
    generation: u64,
    ring_size: RingSize,
    split: Split,
    table: Table,
    sessions: BTreeMap<SessionKey, Session>,
    hearing: BTreeMap<Life, Hearing>,
    /// Lives that were named once and lost.
    lost: BTreeSet<Life>,
    /// Members of earlier times whose rows we have not seen since our start.
    remembered: BTreeMap<NodeId, Vec<NodeUri>>,
    dials: Dials,
    problems: BTreeMap<NodeId, Error>,
    next_number: u64,
    ticked: Instant,
    /// Rows to pass on, each with the session that brought it.
    news: BTreeMap<Life, Option<SessionKey>>,
    buried: bool,
    tell_at: Option<Instant>,
    asleep_until: Option<Instant>,
    stands_back_until: Option<Instant>,
    view: View,
    /// Ids with two lives within reach, and when that becomes a fault; none if it is one.
    doubles: BTreeMap<NodeId, Option<Instant>>,
    /// Digest of the table from which the view was made.
    judged: Option<u64>,
    /// When to look again who is heard; at once, if something of it has changed.
    listen_at: Instant,
    /// Sessions or rows have changed, so others may have to be dialled.
    redial: bool,
    saved: Saved,
    actions: Vec<Action>,
}

impl Machine {
    /// A node that has just started; [`Machine::handle_timeout`] is called next.
    pub(crate) fn new(setup: Setup, now: Instant) -> Self {
        let Setup { id, incarnation, generation, program, mut listen, ring_size, staged_joins, split, seeds, saved, random } = setup;
        listen.truncate(LISTEN_MAX);
        // A node without anybody to join has nothing to wait for.
        let waits = staged_joins && !saved.joined && !seeds.is_empty();
        let state = if waits { RowState::Staged } else { RowState::Joined };
        let row = Row {
            id: id.clone(),
            incarnation,
            generation,
            version: 1,
            program,
            listen: listen.clone(),
            state,
            heard: BTreeMap::new(),
            orders: Vec::new(),
        };
        let mut remembered = saved.members.clone();
        remembered.remove(&id);
        let mut dials = Dials::new(id.clone(), seeds, random, now);
        for member in remembered.keys() {
            dials.want(member, now);
        }
        let view = View::alone(id.clone(), incarnation, listen, ring_size);
        Self {
            table: Table::new(row, saved.forgotten.iter().cloned()),
            me: (id, incarnation),
            generation,
            ring_size,
            split,
            sessions: BTreeMap::new(),
            hearing: BTreeMap::new(),
            lost: BTreeSet::new(),
            remembered,
            dials,
            problems: BTreeMap::new(),
            next_number: random | 1,
            ticked: now,
            news: BTreeMap::new(),
            buried: false,
            tell_at: Some(now),
            asleep_until: None,
            stands_back_until: None,
            view,
            doubles: BTreeMap::new(),
            judged: None,
            listen_at: now,
            redial: true,
            saved,
            actions: Vec::new(),
        }
    }

    /// A session with a life of a peer is there; `dial` if it was we who dialled.
    pub(crate) fn linked(&mut self, session: SessionKey, peer: Life, dial: Option<DialNumber>, now: Instant) -> Vec<Action> {
        self.wake(now);
        if let Some(number) = dial {
            self.dials.succeeded(number, &peer.0, now);
        }
        if peer == self.me {
            self.close(session, Error::new(ErrorCode::LoopedRequest, "this node dialled itself"));
            return self.done(now);
        }
        if peer.0 != self.me.0 && self.sessions.len() >= 2 * NODES_MAX {
            self.close(session, Error::new(ErrorCode::Busy, format!("a cluster has at most {NODES_MAX} control nodes")));
            return self.done(now);
        }
        // Both ends see both sessions, and keep the same one: the one that was dialled by the smaller name, else the newer.
        let ours_counts = self.me.0 < peer.0;
        let other = self.sessions.iter().find(|(_, other)| other.peer == peer).map(|(key, other)| (*key, other.we_dialled));
        if let Some((other, we_dialled)) = other {
            let twice = Error::new(ErrorCode::NotAllowed, "the nodes have another session");
            if we_dialled != dial.is_some() && we_dialled == ours_counts {
                self.close(session, twice);
                return self.done(now);
            }
            self.sessions.remove(&other);
            self.close(other, twice);
        }
        let ours = self.number();
        let fresh = Session {
            peer: peer.clone(),
            we_dialled: dial.is_some(),
            ours,
            theirs: None,
            generation: 0,
            confirmed: false,
            since: now,
            summarized: None,
            differed: false,
        };
        self.sessions.insert(session, fresh);
        self.listen_at = now;
        self.redial = true;
        self.hello(session, None);
        self.done(now)
    }

    /// A session has ended.
    pub(crate) fn unlinked(&mut self, session: SessionKey, now: Instant) -> Vec<Action> {
        self.wake(now);
        if let Some(Session { peer, .. }) = self.sessions.remove(&session) {
            if let Some(hearing) = self.hearing.get_mut(&peer) {
                hearing.ended.get_or_insert(now);
            }
            self.listen_at = now;
            self.redial = true;
            self.dials.lost(&peer.0, now);
        }
        self.done(now)
    }

    /// Nobody could be reached.
    pub(crate) fn dial_failed(&mut self, number: DialNumber, now: Instant) -> Vec<Action> {
        self.wake(now);
        self.dials.failed(number, now);
        self.done(now)
    }

    /// A peer said something.
    pub(crate) fn envelope(&mut self, session: SessionKey, envelope: Envelope, now: Instant) -> Vec<Action> {
        self.wake(now);
        let Some(known) = self.sessions.get(&session) else { return self.done(now) };
        let peer = known.peer.clone();
        if peer != (envelope.from.clone(), envelope.incarnation) {
            return self.done(now);
        }
        let is_hello = matches!(envelope.body, Body::Hello(_));
        if !is_hello && envelope.to != known.ours && !matches!(envelope.body, Body::Refused { .. }) {
            // Meant for a session that was given up.
            return self.done(now);
        }
        match envelope.body {
            Body::Hello(hello) => self.hello_came(session, &peer, &hello, now),
            Body::Refused { reason } => self.refused(session, &peer, reason, now),
            Body::Heartbeat { digest } => {
                self.heard(session, &peer, now);
                self.compare(session, digest, now);
            }
            Body::Summary { rows, forgotten } => {
                self.heard(session, &peer, now);
                let theirs: BTreeSet<&Tombstone> = forgotten.iter().collect();
                let buried = self.table.tombstones().into_iter().filter(|tombstone| !theirs.contains(tombstone)).collect();
                for body in packed(self.table.missing_from(&rows), buried) {
                    self.send(session, body);
                }
                self.learn(session, Vec::new(), forgotten, now);
            }
            Body::Rows { rows, forgotten } => {
                self.heard(session, &peer, now);
                self.learn(session, rows, forgotten, now);
            }
        }
        self.done(now)
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        self.wake(now);
        if now >= self.ticked + HEARTBEAT {
            self.ticked = now;
            let digest = self.table.digest();
            let keys: Vec<SessionKey> = self.sessions.keys().copied().collect();
            for key in keys {
                self.send(key, Body::Heartbeat { digest });
            }
        }
        self.done(now)
    }

    /// When [`Machine::handle_timeout`] is to be called.
    pub(crate) fn next_deadline(&self) -> Instant {
        let own = [self.ticked + HEARTBEAT, self.listen_at];
        let double = self.doubles.values().flatten().min().copied();
        let others = [double, self.tell_at, self.asleep_until, self.stands_back_until, self.dials.next_deadline(self.sessions.is_empty())];
        own.into_iter().chain(others.into_iter().flatten()).fold(own[0], Instant::min)
    }

    /// One life of this node.
    #[cfg(test)]
    pub(super) fn incarnation(&self) -> Incarnation {
        self.me.1
    }

    /// The state of this node itself.
    pub(crate) fn own_state(&self) -> RowState {
        self.table.own().state
    }

    // ---- what operators ask ----

    /// This node changes its own state: it leaves, has left, or stops.
    pub(crate) fn become_state(&mut self, state: RowState, now: Instant) -> Vec<Action> {
        self.wake(now);
        self.change_state(state, now);
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

    // ---- what happened ----

    fn hello_came(&mut self, session: SessionKey, peer: &Life, hello: &Hello, now: Instant) {
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
    fn refused(&mut self, session: SessionKey, peer: &Life, reason: Error, now: Instant) {
        let reason = reason.bounded();
        if *reason.code() == ErrorCode::NodeIdInUse && (peer.0 != self.me.0 || self.asks_back(peer)) {
            self.stand_back(reason.clone(), now);
        }
        self.alarm(&peer.0, reason.clone());
        self.drop_session(session, peer, reason, now);
    }

    /// Of two lives of one id, whether the peer is the elder. Its generation came with its hello, or in its row; without either we do not know, and stay.
    fn asks_back(&self, peer: &Life) -> bool {
        self.table.row(peer).is_some_and(|row| (row.generation, row.incarnation) < (self.generation, self.me.1))
    }

    fn stand_back(&mut self, reason: Error, now: Instant) {
        self.stands_back_until = Some(now + STANDS_BACK);
        let me = self.me.0.clone();
        self.alarm(&me, reason);
    }

    fn refuse(&mut self, session: SessionKey, reason: Error, now: Instant) {
        let Some(peer) = self.sessions.get(&session).map(|session| session.peer.clone()) else { return };
        self.alarm(&peer.0, reason.clone());
        self.send_to(session, 0, Body::Refused { reason: reason.clone() });
        self.drop_session(session, &peer, reason, now);
    }

    fn drop_session(&mut self, session: SessionKey, peer: &Life, reason: Error, now: Instant) {
        self.sessions.remove(&session);
        self.redial = true;
        self.close(session, reason);
        if peer.0 != self.me.0 {
            self.dials.lost(&peer.0, now);
        }
    }

    fn alarm(&mut self, id: &NodeId, reason: Error) {
        if self.problems.get(id) != Some(&reason) && (self.problems.len() < NODES_MAX || self.problems.contains_key(id)) {
            self.problems.insert(id.clone(), reason.clone());
            self.actions.push(Action::Alarm(reason));
        }
    }

    fn heard(&mut self, session: SessionKey, peer: &Life, now: Instant) {
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

    fn learn(&mut self, session: SessionKey, rows: Vec<Row>, forgotten: Vec<Tombstone>, now: Instant) {
        for tombstone in forgotten {
            if tombstone.node != self.me.0 {
                self.remembered.remove(&tombstone.node);
            }
            if self.table.forget(tombstone) {
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
    fn compare(&mut self, session: SessionKey, digest: u64, now: Instant) {
        let differs = digest != self.table.digest();
        if let Some(hearing) = self.sessions.get(&session).and_then(|session| self.hearing.get_mut(&session.peer)) {
            hearing.synced |= !differs;
        }
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let again = std::mem::replace(&mut known.differed, differs) && differs;
        if again && self.news.is_empty() {
            self.summarize(session, now);
        }
    }

    fn summarize(&mut self, session: SessionKey, now: Instant) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        if known.summarized.is_some_and(|at| now < at + HEARTBEAT / 2) {
            return;
        }
        known.summarized = Some(now);
        let body = Body::Summary { rows: self.table.summary(), forgotten: self.table.tombstones() };
        self.send(session, body);
    }

    // ---- what follows ----

    /// A node that did not run for half of [`OUT`] may be out for others already: it begins anew with everybody.
    fn wake(&mut self, now: Instant) {
        if now <= self.ticked + OUT / 2 {
            return;
        }
        (self.ticked, self.listen_at, self.redial) = (now, now, true);
        self.asleep_until = Some(now + AWAKE);
        for hearing in self.hearing.values_mut() {
            // What they said meanwhile may lie unread: they get the time to say it again.
            (hearing.last, hearing.since, hearing.ended) = (now, now, hearing.ended.map(|_| now));
            (hearing.fresh, hearing.synced) = (false, false);
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
    fn is_back(&self, component: &Component) -> bool {
        // Whoever has lost everybody may be the one who was lost: it waits for them a while.
        let is_alone = self.saved.members.is_empty();
        (is_alone || !self.hearing.is_empty())
            && self.hearing.iter().all(|(life, hearing)| hearing.synced && component.reached.contains_key(life))
    }

    fn change_state(&mut self, state: RowState, now: Instant) {
        if self.own_state() != state {
            self.table.change_own(|row| row.state = state);
            self.told(now);
        }
    }

    fn order(&mut self, order: Order, now: Instant) {
        if self.table.own().orders.len() < NODES_MAX && !self.table.own().orders.contains(&order) {
            self.table.change_own(|row| row.orders.push(order));
            self.told(now);
        }
    }

    /// Our row has changed.
    fn told(&mut self, now: Instant) {
        self.news.insert(self.me.clone(), None);
        self.tell_soon(now);
    }

    fn tell_soon(&mut self, now: Instant) {
        self.tell_at.get_or_insert(now + GATHER);
    }

    /// The end of every step: whom we hear, what we tell, what we publish, whom we dial.
    fn done(&mut self, now: Instant) -> Vec<Action> {
        if self.listen_at <= now {
            self.listen(now);
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            self.drop_done_orders();
            self.tell();
        }
        let unjudged = self.judged != Some(self.table.digest());
        let again = self.doubles.values().flatten().any(|at| now >= *at);
        if self.tell_at.is_none() && (unjudged || again || self.asleep_until.is_some() || self.stands_back_until.is_some()) {
            self.publish(now);
        }
        let is_due = self.dials.next_deadline(self.sessions.is_empty()).is_some_and(|at| at <= now);
        if is_due || std::mem::take(&mut self.redial) {
            self.dial(now);
        }
        std::mem::take(&mut self.actions)
    }

    /// Decides who is heard, and changes our row accordingly.
    fn listen(&mut self, now: Instant) {
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
                self.lost.insert(life.clone());
            }
            let keys: Vec<SessionKey> = self.sessions.iter().filter(|(_, session)| session.peer == life).map(|(key, _)| *key).collect();
            for key in keys {
                let what = format!("control node {} has been silent for {OUT:?}", life.0);
                self.drop_session(key, &life, Error::new(ErrorCode::ConnectionFailed, what), now);
            }
        }
        let contested = self.contested();
        for (life, hearing) in &mut self.hearing {
            let steady = !self.lost.contains(life) || now >= hearing.since + REENTER;
            hearing.named |= steady && hearing.fresh && !contested.contains(life);
        }
        let heard: BTreeMap<NodeId, Incarnation> =
            self.hearing.iter().filter(|(_, hearing)| hearing.named).map(|((id, life), _)| (id.clone(), *life)).take(NODES_MAX).collect();
        if heard != self.table.own().heard {
            self.lost.retain(|life| heard.get(&life.0).is_none_or(|now_heard| *now_heard == life.1));
            self.table.change_own(|row| row.heard = heard);
            self.told(now);
        }
        self.listen_at = self.next_look(now);
    }

    /// When the next of those that we hear may change what it is for us.
    fn next_look(&self, now: Instant) -> Instant {
        let waiting = self.sessions.values().filter(|session| !session.confirmed).map(|session| session.since + OUT);
        let several = self.hearing.keys().zip(self.hearing.keys().skip(1)).any(|(a, b)| a.0 == b.0);
        let hearing = self.hearing.iter().flat_map(|(life, hearing)| {
            let again = (!hearing.named && self.lost.contains(life)).then_some(hearing.since + REENTER);
            [Some(hearing.last + OUT), hearing.ended.map(|ended| ended + REDIAL), again].into_iter().flatten()
        });
        let soon = several.then_some(now + HEARTBEAT / 4);
        waiting.chain(hearing).chain(soon).min().unwrap_or(now + OUT)
    }

    /// Lives that must wait until it is clear what became of an earlier one of their id.
    fn contested(&self) -> BTreeSet<Life> {
        let waits = |(life, hearing): (&Life, &Hearing)| {
            let earlier = self.hearing.iter().any(|(other, first)| other.0 == life.0 && (first.since, other.1) < (hearing.since, life.1));
            (earlier && !hearing.named).then(|| life.clone())
        };
        self.hearing.iter().filter_map(waits).collect()
    }

    fn drop_done_orders(&mut self) {
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
    fn tell(&mut self) {
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

    fn publish(&mut self, now: Instant) {
        let component = self.judge(now);
        self.judged = Some(self.table.digest());
        self.redial = true;
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
    fn judge(&mut self, now: Instant) -> Component {
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

    fn is_minority(&self, live: &BTreeMap<NodeId, Member>) -> bool {
        let members = self.saved.members.len() + 1;
        let joined = self.own_state() == RowState::Joined;
        self.split == Split::Majority && joined && live.len() * 2 <= members
    }

    /// Keeps the list of members, and what is written down of it.
    fn note_members(&mut self, component: &Component) {
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

    fn dial(&mut self, now: Instant) {
        if self.own_state() == RowState::Stopped {
            return;
        }
        let linked: BTreeSet<NodeId> = self.sessions.values().map(|session| session.peer.0.clone()).collect();
        let mut wanted: BTreeMap<NodeId, Vec<NodeUri>> = self.remembered.clone();
        for row in self.table.newest().into_values() {
            if row.id != self.me.0 && row.state != RowState::Left && !row.listen.is_empty() {
                wanted.insert(row.id.clone(), row.listen.clone());
            }
        }
        wanted.retain(|id, _| !linked.contains(id));
        for id in self.sessions.values().filter(|session| session.confirmed).map(|session| &session.peer.0) {
            self.dials.established(id);
        }
        self.dials.retain(|id| wanted.contains_key(id) || linked.contains(id));
        for id in wanted.keys() {
            self.dials.want(id, now);
        }
        for (number, target) in self.dials.due(self.sessions.is_empty(), now) {
            match target {
                Target::Seed(index) => {
                    let addresses = self.dials.seed(index).cloned().into_iter().collect();
                    self.actions.push(Action::Dial { number, id: None, addresses });
                }
                Target::Member(id) => match wanted.get(&id) {
                    Some(addresses) => self.actions.push(Action::Dial { number, id: Some(id), addresses: addresses.clone() }),
                    None => self.dials.failed(number, now),
                },
            }
        }
    }

    // ---- small things ----

    fn number(&mut self) -> u64 {
        self.next_number = self.next_number.wrapping_add(1).max(1);
        self.next_number
    }

    fn hello(&mut self, session: SessionKey, answer: Option<u64>) {
        let Some(number) = self.sessions.get(&session).map(|session| session.ours) else { return };
        let ring_size = u16::try_from(self.ring_size.partitions()).unwrap_or(u16::MAX);
        self.send_to(session, 0, Body::Hello(Hello { number, answer, generation: self.generation, ring_size }));
    }

    /// To a peer that has said hello; to others there is nothing to say yet.
    fn send(&mut self, session: SessionKey, body: Body) {
        if let Some(to) = self.sessions.get(&session).and_then(|session| session.theirs) {
            self.send_to(session, to, body);
        }
    }

    fn send_to(&mut self, session: SessionKey, to: u64, body: Body) {
        let envelope = Envelope { from: self.me.0.clone(), incarnation: self.me.1, to, body };
        self.actions.push(Action::Send { session, envelope: Box::new(envelope) });
    }

    fn close(&mut self, session: SessionKey, reason: Error) {
        self.actions.push(Action::Close { session, reason });
    }
}
