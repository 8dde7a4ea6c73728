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
//!   the old link is pinged first, and if it answers the newcomer is refused as `node_id_in_use` (design: an id belongs to its live incarnation). Only a ping
//!   that was sent for this newcomer judges it: an answer that was under way before may be the last word of a process that is gone.
//! - Refused or fenced, the proxy is passive: it keeps the link and asks again with the term it was told, less and less often.
//! - A ping that is not answered within 75 % of `ping_time` ends the link (N5.6). The drift of clocks is measured and told, nothing more (N4.6).

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorCode};
use crate::proto::identity::{Rank, Ticket};
use crate::proto::message::{Adopt, Adopted, Describe, Update};
use crate::types::{Incarnation, NodeId, NodeStatus, NodeUri};

/// Names a link within this process.
pub(crate) type LinkKey = u64;

/// Pause after the first refusal of an adoption; it doubles with each further one.
const ADOPT_AGAIN: Duration = Duration::from_millis(500);
/// Longest pause between attempts of an adoption.
const ADOPT_AGAIN_MAX: Duration = Duration::from_secs(8);
/// How long a worker may take to answer an adoption.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a ping is sent for; comes back with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PingFor {
    /// To see whether the worker is there. The next one follows its answer.
    Pulse,
    /// To see whether the worker is there although this newcomer has its id.
    Challenge {
        /// Link of the newcomer.
        newcomer: LinkKey,
    },
}

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
        /// What for.
        purpose: PingFor,
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
    Adopting { link: LinkKey, step: Step },
    Held { link: LinkKey, ping_at: Option<Instant> },
}

/// Where an adoption stands.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Asked; without an answer by then the link is given up.
    Asked { answer_by: Instant },
    /// Refused or fenced; asked again then.
    Waiting { again_at: Instant },
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
    /// Pause after the next refusal.
    pause: Duration,
}

impl State {
    pub(crate) fn new(setup: Setup) -> Self {
        let phase = Phase::Away { dial_at: None, dialling: false };
        Self {
            setup,
            phase,
            incarnation: None,
            seen_term: 0,
            term: 0,
            ticket: None,
            describe: None,
            newcomer: None,
            told_away: true,
            pause: ADOPT_AGAIN,
        }
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

    /// What the worker gave at its adoption.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        self.ticket
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
            Phase::Adopting { step: Step::Asked { answer_by: at } | Step::Waiting { again_at: at }, .. } => Some(*at),
            Phase::Held { ping_at, .. } => *ping_at,
        }
    }

    fn link(&self) -> Option<LinkKey> {
        match self.phase {
            Phase::Away { .. } => None,
            Phase::Adopting { link, .. } | Phase::Held { link, .. } => Some(link),
        }
    }

    /// Whether this is the link over which the worker is asked, or obeys.
    pub(crate) fn uses(&self, link: LinkKey) -> bool {
        self.link() == Some(link)
    }

    /// A worker has described itself on a link.
    pub(crate) fn link_up(&mut self, link: LinkKey, incarnation: Incarnation, describe: Describe, now: Instant) -> Vec<Action> {
        let describe = reported(describe);
        let mut actions = Vec::new();
        if self.uses(link) {
            // It describes itself again; nothing else has changed.
            self.describe = Some(describe);
            return actions;
        }
        if let Some(newcomer) = self.newcomer.as_mut().filter(|newcomer| newcomer.link == link) {
            newcomer.describe = describe;
            return actions;
        }
        let other = self.incarnation.is_some_and(|known| known != incarnation);
        match self.link() {
            None => self.take(Newcomer { link, incarnation, describe }, now, &mut actions),
            Some(old) if other => {
                if let Some(previous) = self.newcomer.replace(Newcomer { link, incarnation, describe }) {
                    let reason = Error::new(ErrorCode::Busy, "another node with the same id came after you");
                    actions.push(Action::Close { link: previous.link, reason });
                }
                let purpose = PingFor::Challenge { newcomer: link };
                actions.push(Action::Ping { link: old, purpose, timeout: self.ping_timeout() });
            }
            Some(old) => {
                let reason = Error::new(ErrorCode::ConnectionFailed, "the worker has made a new connection");
                self.unpublish(&mut actions);
                actions.push(Action::Close { link: old, reason });
                // That it could make one shows that it lives.
                self.refuse_newcomer(&mut actions);
                self.take(Newcomer { link, incarnation, describe }, now, &mut actions);
            }
        }
        actions
    }

    fn take(&mut self, newcomer: Newcomer, now: Instant, actions: &mut Vec<Action>) {
        let Newcomer { link, incarnation, describe } = newcomer;
        if self.incarnation != Some(incarnation) {
            self.incarnation = Some(incarnation);
            self.term = 0;
            self.ticket = None;
            actions.push(Action::NewIncarnation(incarnation));
        }
        self.seen_term = describe.term;
        self.describe = Some(describe);
        self.pause = ADOPT_AGAIN;
        self.phase = Phase::Adopting { link, step: Step::Asked { answer_by: now + ADOPT_TIMEOUT } };
        actions.push(self.adopt(link, incarnation));
    }

    fn unpublish(&self, actions: &mut Vec<Action>) {
        if self.is_held() {
            actions.push(Action::Unpublish);
        }
    }

    fn refuse_newcomer(&mut self, actions: &mut Vec<Action>) {
        let Some(newcomer) = self.newcomer.take() else { return };
        let what = format!(
            "the id is in use by another live node ({}); give this one its own node_id",
            self.incarnation.map(|incarnation| incarnation.to_string()).unwrap_or_default()
        );
        actions.push(Action::Alarm { newcomer: newcomer.link });
        actions.push(Action::Close { link: newcomer.link, reason: Error::new(ErrorCode::NodeIdInUse, what) });
    }

    fn adopt(&self, link: LinkKey, incarnation: Incarnation) -> Action {
        let adopt = Adopt {
            worker_incarnation: incarnation,
            seen_term: self.seen_term,
            owner: self.setup.owner.clone(),
            owner_incarnation: self.setup.owner_incarnation,
            rank: self.setup.rank,
            ticket: self.ticket,
            ping_ms: u32::try_from(self.setup.ping_time.as_millis()).unwrap_or(u32::MAX),
        };
        Action::Adopt { link, adopt: Box::new(adopt) }
    }

    /// The worker answered an adoption.
    pub(crate) fn adopted(&mut self, link: LinkKey, answer: Adopted, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.uses(link) || self.is_held() {
            return actions;
        }
        match answer {
            Adopted::Granted { term, ticket } => {
                self.term = term;
                self.seen_term = term;
                self.ticket = Some(ticket);
                self.phase = Phase::Held { link, ping_at: Some(now) };
                actions.push(Action::Publish { link });
                if std::mem::take(&mut self.told_away) {
                    actions.push(Action::Tell(self.status()));
                }
            }
            Adopted::Refused { term, .. } => {
                self.seen_term = term;
                self.phase = Phase::Adopting { link, step: Step::Waiting { again_at: now + self.pause } };
                self.pause = (self.pause * 2).min(ADOPT_AGAIN_MAX);
            }
        }
        actions
    }

    /// The worker says that somebody else holds it.
    pub(crate) fn fenced(&mut self, link: LinkKey, term: u64, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.uses(link) || !self.is_held() || term <= self.term {
            return actions;
        }
        self.unpublish(&mut actions);
        self.seen_term = term;
        self.ticket = None;
        self.pause = ADOPT_AGAIN;
        self.phase = Phase::Adopting { link, step: Step::Waiting { again_at: now + ADOPT_AGAIN } };
        self.tell_away(&mut actions);
        actions
    }

    /// News of the worker.
    pub(crate) fn updated(&mut self, link: LinkKey, update: Update) {
        if self.uses(link)
            && let Some(describe) = &mut self.describe
        {
            describe.status = present(update.status);
            describe.meta = update.meta;
            describe.listen = update.listen;
        }
    }

    /// A ping was answered.
    pub(crate) fn ponged(&mut self, link: LinkKey, purpose: PingFor, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.uses(link) {
            return actions;
        }
        match purpose {
            PingFor::Pulse => {
                if let Phase::Held { ping_at, .. } = &mut self.phase {
                    *ping_at = Some(now + self.setup.ping_time);
                }
            }
            PingFor::Challenge { newcomer } if self.is_newcomer(newcomer) => self.refuse_newcomer(&mut actions),
            // That newcomer has gone by itself, or a later one has taken its place and is judged by its own ping.
            PingFor::Challenge { .. } => {}
        }
        actions
    }

    fn is_newcomer(&self, link: LinkKey) -> bool {
        self.newcomer.as_ref().is_some_and(|newcomer| newcomer.link == link)
    }

    /// A ping was not answered in time, or its link is gone.
    pub(crate) fn ping_lost(&mut self, link: LinkKey, now: Instant) -> Vec<Action> {
        self.give_up(link, Error::new(ErrorCode::ConnectionFailed, "a ping was not answered in time"), now)
    }

    /// Closes a link that still may be open, and does what its end asks for.
    fn give_up(&mut self, link: LinkKey, reason: Error, now: Instant) -> Vec<Action> {
        if !self.uses(link) {
            return Vec::new();
        }
        let mut actions = self.link_down(link, now);
        actions.push(Action::Close { link, reason });
        actions
    }

    /// A link has ended.
    pub(crate) fn link_down(&mut self, link: LinkKey, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.is_newcomer(link) {
            self.newcomer = None;
        } else if self.uses(link) {
            self.unpublish(&mut actions);
            self.phase = Phase::Away { dial_at: None, dialling: false };
            self.tell_away(&mut actions);
            match self.newcomer.take() {
                Some(newcomer) => self.take(newcomer, now, &mut actions),
                None => self.dial_now(&mut actions),
            }
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
        self.phase = Phase::Away { dial_at: None, dialling: !addresses.is_empty() };
        if !addresses.is_empty() {
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
        let mut actions = Vec::new();
        match self.phase {
            Phase::Away { dial_at: Some(at), dialling: false } if at <= now => self.dial_now(&mut actions),
            Phase::Adopting { link, step: Step::Asked { answer_by } } if answer_by <= now => {
                return self.give_up(link, Error::new(ErrorCode::Timeout, "the worker did not answer an adoption"), now);
            }
            Phase::Adopting { link, step: Step::Waiting { again_at } } if again_at <= now => {
                self.phase = Phase::Adopting { link, step: Step::Asked { answer_by: now + ADOPT_TIMEOUT } };
                actions.extend(self.incarnation.map(|incarnation| self.adopt(link, incarnation)));
            }
            Phase::Held { link, ping_at: Some(at) } if at <= now => {
                self.phase = Phase::Held { link, ping_at: None };
                actions.push(Action::Ping { link, purpose: PingFor::Pulse, timeout: self.ping_timeout() });
            }
            _ => {}
        }
        actions
    }

    fn ping_timeout(&self) -> Duration {
        self.setup.ping_time * 3 / 4
    }
}

/// What a worker says of itself, made sense of.
fn reported(describe: Describe) -> Describe {
    Describe { status: present(describe.status), ..describe }
}

/// `not_connected` is a word of ours, for a worker that says nothing.
fn present(status: NodeStatus) -> NodeStatus {
    match status {
        NodeStatus::NotConnected => NodeStatus::Connecting,
        said => said,
    }
}

#[cfg(test)]
mod tests;
