//! What a proxy does, as a machine.
//!
//! ```text
//!            link up                granted
//!   away ──────────────► adopting ──────────► held ──┐ ping, pong
//!     ▲ ▲                   │ refused: again later   │◄─┘
//!     │ └───────────────────┘                        │
//!     └────────────── link down, ping lost ──────────┘
//! ```
//!
//! - Away with known addresses: dials at once, then every `proxy_connect_retry` with jitter (checklist N9.3). Without: waits for the worker (N9.5).
//! - A second link of the same incarnation replaces the first: the worker has given the first one up. One of **another** incarnation is a restart or a clone:
//!   the old link is pinged first, and if it answers the newcomer is refused as `node_id_in_use` (design: an id belongs to its live incarnation).
//! - A ping that is not answered within 75 % of `ping_time` ends the link (N5.6). The drift of clocks is measured and told, nothing more (N4.6).

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorCode};
use crate::proto::identity::{Rank, Ticket};
use crate::proto::message::{Adopt, Adopted, Describe, Update};
use crate::types::{Incarnation, NodeId, NodeStatus, NodeUri};

/// Names a link within this process.
pub(crate) type LinkKey = u64;

/// Pauses between attempts of an adoption that was refused.
const ADOPT_AGAIN: Duration = Duration::from_millis(500);
/// How long a worker may take to answer an adoption.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the shell must do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Open a channel on the link and ask for the worker.
    Adopt {
        /// The link.
        link: LinkKey,
        /// What to ask.
        adopt: Box<Adopt>,
    },
    /// The worker obeys the channel opened last on this link: let calls through, under this status.
    Publish {
        /// The link.
        link: LinkKey,
    },
    /// Let no more calls through.
    Unpublish,
    /// Close a link, with what to tell the peer.
    Close {
        /// The link.
        link: LinkKey,
        /// Why.
        reason: Error,
    },
    /// Ping the worker on its channel.
    Ping {
        /// The link.
        link: LinkKey,
        /// When the answer is too late.
        timeout: Duration,
    },
    /// Dial the worker at one of these addresses.
    Dial(Vec<NodeUri>),
    /// Tell the classes: `not_connected`, or the status with which the worker is back.
    Tell(NodeStatus),
    /// Tasks of other incarnations are gone.
    NewIncarnation(Incarnation),
    /// An operator must look: two live nodes use one id.
    Alarm {
        /// The link of the newcomer.
        newcomer: LinkKey,
    },
}

/// Fixed facts of a proxy.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) owner: NodeId,
    pub(crate) owner_incarnation: Incarnation,
    pub(crate) rank: Rank,
    pub(crate) ping_time: Duration,
    pub(crate) connect_retry: Duration,
}

#[derive(Clone, Debug)]
struct Newcomer {
    link: LinkKey,
    incarnation: Incarnation,
    describe: Describe,
}

#[derive(Debug)]
enum Phase {
    Away { dial_at: Option<Instant>, dialling: bool },
    Adopting { link: LinkKey, until: Instant, again_at: Option<Instant> },
    Held { link: LinkKey, ping_at: Option<Instant> },
}

/// The machine.
#[derive(Debug)]
pub(crate) struct State {
    setup: Setup,
    phase: Phase,
    incarnation: Option<Incarnation>,
    seen_term: u64,
    /// The term under which the worker obeys us.
    pub(crate) term: u64,
    ticket: Option<Ticket>,
    /// What the worker last said of itself.
    pub(crate) describe: Option<Describe>,
    /// Of another incarnation, while the old link is asked whether it lives.
    newcomer: Option<Newcomer>,
    /// Whether classes were told that it is away; they are not told twice.
    told_away: bool,
}

impl State {
    pub(crate) fn new(setup: Setup) -> Self {
        let phase = Phase::Away { dial_at: None, dialling: false };
        Self { setup, phase, incarnation: None, seen_term: 0, term: 0, ticket: None, describe: None, newcomer: None, told_away: true }
    }

    /// Status as the cluster sees it.
    pub(crate) fn status(&self) -> NodeStatus {
        match (&self.phase, &self.describe) {
            (Phase::Held { .. }, Some(describe)) => describe.status,
            _ => NodeStatus::NotConnected,
        }
    }

    /// The incarnation last seen.
    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.incarnation
    }

    /// Whether the worker obeys this proxy.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held { .. })
    }

    /// When [`State::handle_timeout`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Away { dial_at, dialling: false } => *dial_at,
            Phase::Away { .. } => None,
            Phase::Adopting { until, again_at, .. } => Some(again_at.map_or(*until, |again| again.min(*until))),
            Phase::Held { ping_at, .. } => *ping_at,
        }
    }

    fn link(&self) -> Option<LinkKey> {
        match self.phase {
            Phase::Away { .. } => None,
            Phase::Adopting { link, .. } | Phase::Held { link, .. } => Some(link),
        }
    }

    /// A worker has described itself on a link.
    pub(crate) fn link_up(&mut self, link: LinkKey, incarnation: Incarnation, describe: Describe, now: Instant) -> Vec<Action> {
        if self.link() == Some(link) {
            // It describes itself again; nothing else has changed.
            self.describe = Some(describe);
            return Vec::new();
        }
        let other = self.incarnation.is_some_and(|known| known != incarnation);
        match (self.link(), other) {
            (Some(old), true) => {
                let previous = self.newcomer.replace(Newcomer { link, incarnation, describe });
                let mut actions = vec![Action::Ping { link: old, timeout: self.ping_timeout() }];
                if let Some(previous) = previous {
                    let reason = Error::new(ErrorCode::Busy, "another node with the same id came after you");
                    actions.push(Action::Close { link: previous.link, reason });
                }
                actions
            }
            (old, _) => {
                let mut actions = Vec::new();
                if let Some(old) = old {
                    let reason = Error::new(ErrorCode::ConnectionFailed, "the worker has made a new connection");
                    actions.push(Action::Unpublish);
                    actions.push(Action::Close { link: old, reason });
                }
                self.take(link, incarnation, describe, now, &mut actions);
                actions
            }
        }
    }

    fn take(&mut self, link: LinkKey, incarnation: Incarnation, describe: Describe, now: Instant, actions: &mut Vec<Action>) {
        if self.incarnation != Some(incarnation) {
            self.incarnation = Some(incarnation);
            self.term = 0;
            self.ticket = None;
            actions.push(Action::NewIncarnation(incarnation));
        }
        self.seen_term = describe.term;
        self.describe = Some(describe);
        self.phase = Phase::Adopting { link, until: now + ADOPT_TIMEOUT, again_at: None };
        actions.push(self.adopt(link, incarnation));
    }

    fn adopt(&self, link: LinkKey, incarnation: Incarnation) -> Action {
        let adopt = Adopt {
            worker_incarnation: incarnation,
            seen_term: self.seen_term,
            owner: self.setup.owner.clone(),
            owner_incarnation: self.setup.owner_incarnation,
            rank: self.setup.rank,
            ticket: self.ticket,
        };
        Action::Adopt { link, adopt: Box::new(adopt) }
    }

    /// The worker answered an adoption.
    pub(crate) fn adopted(&mut self, link: LinkKey, answer: Adopted, now: Instant) -> Vec<Action> {
        if self.link() != Some(link) {
            return Vec::new();
        }
        match answer {
            Adopted::Granted { term, ticket } => {
                self.term = term;
                self.seen_term = term;
                self.ticket = Some(ticket);
                self.phase = Phase::Held { link, ping_at: Some(now) };
                let mut actions = vec![Action::Publish { link }];
                if std::mem::take(&mut self.told_away) {
                    actions.push(Action::Tell(self.status()));
                }
                actions
            }
            Adopted::Refused { term, .. } => {
                self.seen_term = term;
                if let Phase::Adopting { again_at, .. } = &mut self.phase {
                    *again_at = Some(now + ADOPT_AGAIN);
                }
                Vec::new()
            }
        }
    }

    /// The worker says that somebody else holds it.
    pub(crate) fn fenced(&mut self, link: LinkKey, term: u64, now: Instant) -> Vec<Action> {
        if self.link() != Some(link) || !self.is_held() || term <= self.term {
            return Vec::new();
        }
        self.seen_term = term;
        self.ticket = None;
        self.phase = Phase::Adopting { link, until: now + Duration::from_secs(3600), again_at: Some(now + ADOPT_AGAIN) };
        let mut actions = vec![Action::Unpublish];
        self.tell_away(&mut actions);
        actions
    }

    /// News of the worker.
    pub(crate) fn updated(&mut self, link: LinkKey, update: Update) {
        if self.link() == Some(link)
            && let Some(describe) = &mut self.describe
        {
            describe.status = update.status;
            describe.meta = update.meta;
            describe.listen = update.listen;
        }
    }

    /// A ping was answered.
    pub(crate) fn ponged(&mut self, link: LinkKey, now: Instant) -> Vec<Action> {
        if self.link() != Some(link) {
            return Vec::new();
        }
        if let Phase::Held { ping_at, .. } = &mut self.phase {
            *ping_at = Some(now + self.setup.ping_time);
        }
        match self.newcomer.take() {
            Some(newcomer) => {
                let what = format!(
                    "the id is in use by another live node ({}); give this one its own node_id",
                    self.incarnation.map(|incarnation| incarnation.to_string()).unwrap_or_default()
                );
                vec![
                    Action::Alarm { newcomer: newcomer.link },
                    Action::Close { link: newcomer.link, reason: Error::new(ErrorCode::NodeIdInUse, what) },
                ]
            }
            None => Vec::new(),
        }
    }

    /// A ping was not answered in time, or its link is gone.
    pub(crate) fn ping_lost(&mut self, link: LinkKey, now: Instant) -> Vec<Action> {
        if self.link() != Some(link) {
            return Vec::new();
        }
        let reason = Error::new(ErrorCode::ConnectionFailed, "a ping was not answered in time");
        let mut actions = self.link_down(link, now);
        actions.push(Action::Close { link, reason });
        actions
    }

    /// A link has ended.
    pub(crate) fn link_down(&mut self, link: LinkKey, now: Instant) -> Vec<Action> {
        if self.newcomer.as_ref().is_some_and(|newcomer| newcomer.link == link) {
            self.newcomer = None;
            return Vec::new();
        }
        if self.link() != Some(link) {
            return Vec::new();
        }
        let mut actions = vec![Action::Unpublish];
        self.phase = Phase::Away { dial_at: None, dialling: false };
        self.tell_away(&mut actions);
        match self.newcomer.take() {
            Some(newcomer) => self.take(newcomer.link, newcomer.incarnation, newcomer.describe, now, &mut actions),
            None => self.dial_now(&mut actions),
        }
        actions
    }

    fn tell_away(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.told_away, true) {
            actions.push(Action::Tell(NodeStatus::NotConnected));
        }
    }

    fn dial_now(&mut self, actions: &mut Vec<Action>) {
        let addresses = self.describe.as_ref().map(|describe| describe.listen.clone()).unwrap_or_default();
        if !addresses.is_empty() {
            self.phase = Phase::Away { dial_at: None, dialling: true };
            actions.push(Action::Dial(addresses));
        }
    }

    /// No address of the worker accepted us. `jitter` is 0 to 1.
    pub(crate) fn dial_failed(&mut self, jitter: f64, now: Instant) {
        if let Phase::Away { dial_at, dialling } = &mut self.phase {
            *dialling = false;
            *dial_at = Some(now + self.setup.connect_retry.mul_f64(0.75 + jitter / 2.0));
        }
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        match &mut self.phase {
            Phase::Away { dial_at: Some(at), dialling: false } if *at <= now => {
                let mut actions = Vec::new();
                self.dial_now(&mut actions);
                actions
            }
            Phase::Adopting { link, until, .. } if *until <= now => {
                let link = *link;
                let mut actions = self.link_down(link, now);
                actions.push(Action::Close { link, reason: Error::new(ErrorCode::Timeout, "the worker did not answer an adoption") });
                actions
            }
            Phase::Adopting { link, again_at, .. } if again_at.is_some_and(|at| at <= now) => {
                *again_at = Some(now + ADOPT_AGAIN);
                let link = *link;
                self.incarnation.map(|incarnation| self.adopt(link, incarnation)).into_iter().collect()
            }
            Phase::Held { link, ping_at: ping_at @ Some(_) } if ping_at.is_some_and(|at| at <= now) => {
                *ping_at = None;
                vec![Action::Ping { link: *link, timeout: self.setup.ping_time * 3 / 4 }]
            }
            _ => Vec::new(),
        }
    }

    fn ping_timeout(&self) -> Duration {
        self.setup.ping_time * 3 / 4
    }
}

#[cfg(test)]
mod tests;
