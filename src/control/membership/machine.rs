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
//!   again only after [`REENTER`] of steady hearing. Whom we hear stands in our row, and [`graph`](super::graph) makes the live set of all rows.
//! - A node whose own clock shows that it was **asleep** freezes: it says hello anew on every session, and acts again when its peers have it back.
//! - **One id, two lives**: while the life that we hear goes on talking, a second one is refused with an alarm; when it has fallen silent, the second one is its
//!   successor.

mod greeting;
mod hearing;
mod live;
mod operators;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::dials::{DialNumber, Dials, Target};
use super::envelope::{Body, Envelope, Hello, LISTEN_MAX, NODES_MAX, Row, RowState, Tombstone, packed};
use super::fault::{Fault, has};
use super::table::{Life, Table};
use crate::config::Split;
use crate::control::view::View;
use crate::error::{Error, ErrorCode};
use crate::ring::RingSize;
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
/// Lives that are out and remembered as such, whether or not anything else is known of them.
pub(crate) const LOST_MAX: usize = 1024;
/// How long a peer whose session has ended may take to make another one, before it is out.
pub(crate) const REDIAL: Duration = Duration::from_millis(1500);
/// How long a node that was asleep waits at most until its peers have it back.
const AWAKE: Duration = Duration::from_secs(15);
/// How long a node stands back that was told that its id is another's.
const STANDS_BACK: Duration = Duration::from_secs(15);
/// Small changes are told, and acted on, together.
const GATHER: Duration = Duration::from_millis(20);
/// How long two lives of one id may be heard by different nodes until it is told. The first may have ended: whoever heard it last notices that within [`OUT`], and if that one
/// falls silent before it says so, the others notice that within another; and some.
const DOUBLE: Duration = Duration::from_secs(13);
/// An incumbent that talks so long after a newcomer of its id came is alive.
const INCUMBENT_TALKS: Duration = Duration::from_millis(1500);

/// Why one of two sessions of a pair ends.
pub(super) const TWICE: &str = "the nodes have another session";

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
    /// Lives that were named once, or reached by way of others, and lost.
    lost: BTreeSet<Life>,
    /// The component at the last look.
    reached: BTreeSet<Life>,
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
            reached: BTreeSet::new(),
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
            let twice = Error::new(ErrorCode::NotAllowed, TWICE);
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

    /// A dial led to a node that has a session already; nothing was made of it.
    pub(crate) fn found_again(&mut self, number: DialNumber, id: &NodeId, now: Instant) -> Vec<Action> {
        self.wake(now);
        // It may have ended in this moment.
        match self.sessions.values().any(|session| session.peer.0 == *id) {
            true => self.dials.succeeded(number, id, now),
            false => self.dials.failed(number, now),
        }
        self.redial = true;
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
        let is_late = envelope.to != known.ours && !has(Fault::NoFencing);
        if !is_hello && is_late && !matches!(envelope.body, Body::Refused { .. }) {
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
        // What is gathered is told first, and then judged.
        let judged = [double, self.asleep_until, self.stands_back_until].into_iter().flatten().min().max(self.tell_at);
        let others = [judged, self.tell_at, self.next_dial()];
        own.into_iter().chain(others.into_iter().flatten()).fold(own[0], Instant::min)
    }

    /// Whether there is a session with a life of a node.
    #[cfg(test)]
    pub(super) fn has_session(&self, peer: &Life) -> bool {
        self.sessions.values().any(|session| session.peer == *peer)
    }

    /// One life of this node.
    #[cfg(test)]
    pub(super) fn incarnation(&self) -> Incarnation {
        self.me.1
    }

    /// Whom our row names.
    #[cfg(test)]
    pub(super) fn named(&self) -> BTreeSet<Life> {
        self.table.own().heard.iter().map(|(id, life)| (id.clone(), *life)).collect()
    }

    /// The state of this node itself.
    pub(crate) fn own_state(&self) -> RowState {
        self.table.own().state
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
        let is_due = self.next_dial().is_some_and(|at| at <= now);
        if is_due || std::mem::take(&mut self.redial) {
            self.dial(now);
        }
        std::mem::take(&mut self.actions)
    }

    /// None for a node that stops: it looks for nobody any more.
    fn next_dial(&self) -> Option<Instant> {
        if self.own_state() == RowState::Stopped { None } else { self.dials.next_deadline(self.sessions.is_empty()) }
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
