//! Whole clusters of machines under a virtual clock, on wires that delay, lose, and carry one way only.
//!
//! A run is a list of things that happen to a cluster, drawn from a seed or written down, and then quiet. What must hold in the quiet: all nodes of a
//! component have the same live set, exactly that component, with one ring; nobody is frozen; and nothing changes any more.

mod claims;
mod mutants;
mod random;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use self::witness::Witness;
use super::dials::DialNumber;
use super::envelope::{Body, Envelope, RowState};
use super::machine::{Action, Machine, Saved, SessionKey, Setup, TWICE};
use crate::config::Split;
use crate::control::view::View;
use crate::error::Error;
use crate::ring::RingSize;
use crate::types::{Incarnation, NodeId, NodeUri};

/// Timers that may be due in one moment. A machine whose timer changes nothing and is due again at once keeps a processor busy.
const TIMERS_MAX: usize = 10_000;

/// Name of a node in a simulation.
type Name = usize;

pub(super) fn id(name: Name) -> NodeId {
    NodeId::new(format!("n{name:03}")).expect("a valid name")
}

fn uri(name: Name) -> NodeUri {
    format!("nkcluster://n{name:03};transport=memory").parse().expect("a valid URL")
}

/// An address that leads to one node or another.
pub(super) fn shared_uri() -> NodeUri {
    "nkcluster://any;transport=memory".parse().expect("a valid URL")
}

/// One process.
struct Node {
    machine: Machine,
    /// Which of its processes this is.
    life: u64,
    view: View,
    /// Views that it has published, since the last time somebody asked.
    changes: usize,
    asleep: bool,
    alarms: Vec<Error>,
    /// What comes while it sleeps.
    inbox: Vec<Happening>,
    saved: Saved,
    witness: Witness,
}

/// One end of a session: a node, its life, and the key there.
type End = (Name, u64, SessionKey);

#[derive(Clone)]
enum Happening {
    Arrive { at: End, envelope: Envelope },
    Ended { at: End },
    Dialled { from: Name, life: u64, number: DialNumber, wanted: Option<NodeId>, to: Vec<NodeUri> },
}

pub(super) struct Simulation {
    start: Instant,
    now: Instant,
    nodes: BTreeMap<Name, Node>,
    /// The same names started once more, elsewhere.
    twins: BTreeMap<Name, Name>,
    wires: BTreeMap<End, End>,
    queue: BTreeMap<(Instant, u64), Happening>,
    count: u64,
    /// Ways on which nothing arrives.
    pub(super) blocked: BTreeSet<(Name, Name)>,
    /// Who is behind [`shared_uri`].
    pub(super) behind: Option<Name>,
    /// One of so many envelopes is lost.
    pub(super) loss: Option<u64>,
    random: u64,
    pub(super) ring_size: usize,
    pub(super) change: fn(&mut Setup),
    disks: BTreeMap<Name, Saved>,
    lives: u64,
    /// Dials that led to whom there was a session with already.
    pub(super) found_again: usize,
    /// Sessions that a node ended since there was another one.
    pub(super) twice: usize,
    /// Envelopes that were sent, and their bytes.
    sent: (u64, u64),
    /// The first thing that no node may ever do.
    wrong: Option<String>,
}

impl Simulation {
    pub(super) fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            nodes: BTreeMap::new(),
            twins: BTreeMap::new(),
            wires: BTreeMap::new(),
            queue: BTreeMap::new(),
            count: 0,
            blocked: BTreeSet::new(),
            behind: None,
            loss: None,
            random: seed ^ 0x5851_f42d_4c95_7f2d,
            ring_size: 64,
            change: |_| (),
            disks: BTreeMap::new(),
            lives: 0,
            found_again: 0,
            twice: 0,
            sent: (0, 0),
            wrong: None,
        }
    }

    /// Nodes 1 to `count`, which know the first two.
    pub(super) fn with_nodes(count: usize, seed: u64) -> Self {
        let mut simulation = Self::new(seed);
        for name in 1..=count {
            simulation.start_node(name);
        }
        simulation
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below.max(1)
    }

    pub(super) fn start_node(&mut self, name: Name) {
        self.start_as(name, id(name));
    }

    /// A second process that has the name of another node; it lives at an address of its own.
    pub(super) fn start_twin(&mut self, name: Name, of: Name) {
        self.twins.insert(name, of);
        self.start_as(name, id(of));
    }

    fn start_as(&mut self, name: Name, id: NodeId) {
        self.lives += 1;
        let life = self.lives;
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&self.random(u64::MAX).to_be_bytes());
        incarnation[8..].copy_from_slice(&life.to_be_bytes());
        let saved = self.disks.get(&name).cloned().unwrap_or_default();
        let mut setup = Setup {
            id: id.clone(),
            incarnation: Incarnation::from_bytes(incarnation),
            generation: 1000 + life,
            program: "test".to_owned(),
            listen: vec![uri(name)],
            ring_size: RingSize::new(self.ring_size).expect("a power of two"),
            staged_joins: false,
            split: Split::Serve,
            seeds: vec![uri(1), uri(2)],
            saved: saved.clone(),
            random: self.random(u64::MAX),
        };
        (self.change)(&mut setup);
        let view = View::alone(id, setup.incarnation, Vec::new(), setup.ring_size);
        let machine = Machine::new(setup, self.now);
        let node = Node {
            machine,
            life,
            view,
            changes: 0,
            asleep: false,
            alarms: Vec::new(),
            inbox: Vec::new(),
            saved,
            witness: Witness::default(),
        };
        self.nodes.insert(name, node);
        let now = self.now;
        self.act(name, |machine| machine.handle_timeout(now));
    }

    /// The process ends without a word; its peers see their sessions end, unless the machine has gone with it.
    pub(super) fn kill(&mut self, name: Name, with_machine: bool) {
        let Some(node) = self.nodes.remove(&name) else { return };
        self.disks.insert(name, node.saved);
        let ends: Vec<(End, End)> = self.wires.iter().filter(|(end, _)| end.0 == name).map(|(a, b)| (*a, *b)).collect();
        for (ours, theirs) in ends {
            self.wires.remove(&ours);
            if !with_machine {
                self.wires.remove(&theirs);
                self.later(Duration::from_millis(2), Happening::Ended { at: theirs });
            }
        }
    }

    /// The process does not run; what comes waits for it.
    pub(super) fn sleep(&mut self, name: Name, asleep: bool) {
        let Some(node) = self.nodes.get_mut(&name) else { return };
        node.asleep = asleep;
        if !asleep {
            for happening in std::mem::take(&mut node.inbox) {
                self.later(Duration::ZERO, happening);
            }
        }
    }

    /// Nothing passes between two nodes, in both directions or in one.
    pub(super) fn block(&mut self, from: Name, to: Name, is_blocked: bool) {
        if is_blocked {
            self.blocked.insert((from, to));
        } else {
            self.blocked.remove(&(from, to));
        }
    }

    pub(super) fn split(&mut self, left: &[Name], right: &[Name], is_blocked: bool) {
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            self.block(a, b, is_blocked);
            self.block(b, a, is_blocked);
        }
    }

    /// A session between two nodes ends, as by a reset.
    pub(super) fn cut(&mut self, a: Name, b: Name) {
        let ends: Vec<(End, End)> = self.wires.iter().filter(|(x, y)| x.0 == a && y.0 == b).map(|(x, y)| (*x, *y)).collect();
        for (ours, theirs) in ends {
            self.wires.remove(&ours);
            self.wires.remove(&theirs);
            self.later(Duration::ZERO, Happening::Ended { at: ours });
            self.later(Duration::ZERO, Happening::Ended { at: theirs });
        }
    }

    /// Asks the machine of a node.
    pub(super) fn act(&mut self, name: Name, act: impl FnOnce(&mut Machine) -> Vec<Action>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&name) else { return };
        let (life, actions) = (node.life, act(&mut node.machine));
        if let Err(wrong) = node.witness.named(node.machine.named(), now) {
            self.wrong.get_or_insert_with(|| format!("at {:?}: {name} {wrong}", now - self.start));
        }
        for action in actions {
            match action {
                Action::Send { session, envelope } => {
                    let bytes = envelope.encode();
                    self.sent = (self.sent.0 + 1, self.sent.1 + bytes.len() as u64);
                    let envelope = Envelope::decode(&bytes).expect("what a machine sends can be read");
                    if let Some(at) = self.wires.get(&(name, life, session)).copied() {
                        let lost = self.loss.is_some_and(|one_of| self.random(one_of) == 0);
                        if !lost && !self.blocked.contains(&(name, at.0)) {
                            // In order, as on a stream, but never at the same pace.
                            self.later(Duration::from_millis(2), Happening::Arrive { at, envelope });
                        }
                    }
                }
                Action::Close { session, reason } => {
                    self.twice += usize::from(reason.message() == TWICE);
                    if let Some(at) = self.wires.remove(&(name, life, session)) {
                        self.wires.remove(&at);
                        if !self.blocked.contains(&(name, at.0)) {
                            self.later(Duration::from_millis(2), Happening::Ended { at });
                        }
                    }
                }
                Action::Dial { number, id, addresses } => {
                    let delay = Duration::from_millis(1 + self.random(5));
                    self.later(delay, Happening::Dialled { from: name, life, number, wanted: id, to: addresses });
                }
                Action::Publish(view) => {
                    if let Some(node) = self.nodes.get_mut(&name) {
                        node.view = *view;
                        node.changes += 1;
                    }
                }
                Action::Persist(saved) => {
                    if let Some(node) = self.nodes.get_mut(&name) {
                        node.saved = *saved;
                    }
                }
                Action::Alarm(error) => {
                    if let Some(node) = self.nodes.get_mut(&name) {
                        node.alarms.push(error);
                    }
                }
            }
        }
    }

    fn later(&mut self, delay: Duration, happening: Happening) {
        self.count += 1;
        self.queue.insert((self.now + delay, self.count), happening);
    }

    fn happen(&mut self, happening: Happening) {
        let name = match &happening {
            Happening::Arrive { at, .. } | Happening::Ended { at } => at.0,
            Happening::Dialled { from, .. } => *from,
        };
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&name) else { return };
        if node.asleep {
            return node.inbox.push(happening);
        }
        let current = node.life;
        match happening {
            Happening::Arrive { at: (_, life, key), envelope } if life == current => {
                node.witness.came((envelope.from.clone(), envelope.incarnation), now);
                self.act(name, |machine| machine.envelope(key, envelope, now))
            }
            Happening::Ended { at: (_, life, key) } if life == current => {
                self.wires.remove(&(name, life, key));
                self.act(name, |machine| machine.unlinked(key, now));
            }
            Happening::Dialled { from, life, number, wanted, to } if life == current => self.dialled(from, number, wanted, &to),
            _ => {}
        }
    }

    fn dialled(&mut self, from: Name, number: DialNumber, wanted: Option<NodeId>, to: &[NodeUri]) {
        let now = self.now;
        let leads_to = |name: Name| to.contains(&uri(name)) || (self.behind == Some(name) && to.contains(&shared_uri()));
        let is_there = |name: &Name| leads_to(*name) && !self.blocked.contains(&(from, *name)) && !self.blocked.contains(&(*name, from));
        let found =
            self.nodes.iter().find(|(name, node)| is_there(name) && !node.asleep && wanted.as_ref().is_none_or(|id| *id == node.view.me));
        let Some((&name, _)) = found else {
            return self.act(from, |machine| machine.dial_failed(number, now));
        };
        let life_there = (self.nodes[&name].view.me.clone(), self.nodes[&name].machine.incarnation());
        if self.nodes.get(&from).is_some_and(|node| node.machine.has_session(&life_there)) {
            self.found_again += 1;
            return self.act(from, |machine| machine.found_again(number, &life_there.0, now));
        }
        self.count += 2;
        let life = |simulation: &Self, name| simulation.nodes.get(&name).map_or(0, |node| node.life);
        let (here, there) = ((from, life(self, from), self.count), (name, life(self, name), self.count + 1));
        self.count += 2;
        self.wires.insert(here, there);
        self.wires.insert(there, here);
        let peer = |simulation: &Self, name: Name| {
            let view = &simulation.nodes[&name].view;
            (view.me.clone(), simulation.nodes[&name].machine.incarnation())
        };
        let (of_there, of_here) = (peer(self, name), peer(self, from));
        self.act(name, |machine| machine.linked(there.2, of_here, None, now));
        self.act(from, |machine| machine.linked(here.2, of_there, Some(number), now));
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        // Timers since the clock last moved.
        let mut timers = 0;
        loop {
            let happening = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self.nodes.iter().filter(|(_, node)| !node.asleep).map(|(name, node)| (node.machine.next_deadline(), *name)).min();
            let next_timer = timer.map(|(at, _)| at);
            match (happening, next_timer) {
                (Some(at), timer) if at <= end && timer.is_none_or(|timer| at <= timer) => {
                    self.now = self.now.max(at);
                    if let Some((_, happening)) = self.queue.pop_first() {
                        self.happen(happening);
                    }
                }
                (_, Some(at)) if at <= end => {
                    timers = if at > self.now { 0 } else { timers + 1 };
                    assert!(timers < TIMERS_MAX, "{timer:?} is due at {:?} for ever", self.now - self.start);
                    self.now = self.now.max(at);
                    let (now, name) = (self.now, timer.map_or(0, |(_, name)| name));
                    self.act(name, |machine| machine.handle_timeout(now));
                }
                _ => break,
            }
        }
        self.now = end;
    }

    pub(super) fn seconds(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    pub(super) fn view(&self, name: Name) -> &View {
        &self.nodes[&name].view
    }

    pub(super) fn live(&self, name: Name) -> Vec<String> {
        self.view(name).live.keys().map(ToString::to_string).collect()
    }

    pub(super) fn sees(&self, name: Name, other: Name) -> bool {
        self.view(name).live.contains_key(&id(other))
    }

    /// Views published since the last call.
    pub(super) fn changes(&mut self) -> BTreeMap<Name, usize> {
        self.nodes.iter_mut().map(|(name, node)| (*name, std::mem::take(&mut node.changes))).collect()
    }

    /// Waits until something holds; returns how long it took.
    pub(super) fn until(&mut self, what: &str, limit: Duration, mut holds: impl FnMut(&Self) -> bool) -> Duration {
        let from = self.now;
        while !holds(self) {
            assert!(self.now < from + limit, "not within {limit:?}: {what}; {self}");
            self.run(Duration::from_millis(10));
        }
        self.now - from
    }

    /// Whether all of these, in the lives that they have now, and nobody else are live for each of them, with one ring.
    pub(super) fn agree(&self, names: &[Name]) -> bool {
        let lives: BTreeMap<NodeId, Incarnation> =
            names.iter().filter_map(|name| Some((id(*name), self.nodes.get(name)?.machine.incarnation()))).collect();
        names.iter().all(|name| {
            let view = self.view(*name);
            let seen = view.live.iter().map(|(id, member)| (id, &member.incarnation));
            seen.eq(lives.iter()) && view.ring.nodes().iter().eq(lives.keys()) && !view.frozen
        })
    }

    /// Envelopes that were sent since the last call, and their bytes.
    pub(super) fn sent(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.sent)
    }

    pub(super) fn running(&self) -> Vec<Name> {
        self.nodes.keys().copied().collect()
    }

    pub(super) fn alarms(&self, name: Name) -> Vec<&str> {
        self.nodes[&name].alarms.iter().map(|error| error.code().name()).collect()
    }

    pub(super) fn states(&self, name: Name) -> BTreeMap<String, &'static str> {
        self.nodes[&name].machine.members(self.now).into_iter().map(|member| (member.id.to_string(), member.state)).collect()
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// What was seen at any time that may never be.
    pub(super) fn never_wrong(&self) -> Result<(), String> {
        self.wrong.clone().map_or(Ok(()), Err)
    }
}

/// The time since the start, and for each node whom it hears and whom it takes for alive.
impl std::fmt::Display for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {:?}:", self.now - self.start)?;
        for (name, node) in &self.nodes {
            let heard: Vec<String> = node.machine.named().into_iter().map(|(id, life)| format!("{id}/{life}")).collect();
            write!(f, " {name} hears {heard:?} and sees {:?}{};", self.live(*name), if node.view.frozen { ", frozen" } else { "" })?;
        }
        Ok(())
    }
}

/// Names the states that only whole clusters show.
pub(super) const STOPPED: RowState = RowState::Stopped;
