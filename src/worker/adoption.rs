//! Who controls this worker: the term.
//!
//! Two control nodes may both believe that they own a worker: after a split of the network, during
//! a hand-over, or because one of them has not noticed that it was frozen for a minute. Their
//! clocks and views cannot settle it. The worker can, because it is one process: it alone issues
//! terms, and it obeys exactly one channel.
//!
//! ```text
//!   adopt(seen term = 4, …)                         term 4, channel A current
//!        │ refused: other incarnation, other term, or none of (a) to (d)
//!        ▼ granted
//!   term 5, new holder, new ticket, in one step     channel B current, A is fenced
//! ```
//!
//! An adoption names this incarnation and the current term, and is granted if
//!
//! - (a) nobody holds the worker, or the holder's channel is closed or has been silent for
//!   2 × `ping_time`, its own or the worker's, whichever is longer;
//! - (b) it comes from the same incarnation of the same owner;
//! - (c) it carries the ticket that the holder got at its adoption and passed on in a hand-over;
//! - (d) its rank is higher than the holder's.
//!
//! Everything that arrives on a channel which is not current is answered `fenced` and changes
//! nothing. Results of calls that were accepted earlier may still leave on it.
//!
//! The same silence is the watchdog of the agent: when it has lasted for 2 × `ping_time` the agent
//! looks for a control node by itself (checklist N5.4). The old channel stays current until
//! somebody else is granted, so a holder that was only slow goes on as if nothing had been.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use crate::proto::identity::{Rank, Ticket};
use crate::types::{Incarnation, NodeId};

/// The longest time between two pings that a holder may ask for, the same as in the configuration.
const PING_TIME_MAX: Duration = Duration::from_secs(60);
/// Channels that one holder may have bound, some of which may be about to close.
const BOUND_MAX: usize = 32;

/// Handle of a channel, chosen by the caller and never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey(pub u64);

/// What a control node asks for when it wants to control this worker.
#[derive(Clone, Debug)]
pub struct AdoptRequest {
    /// Channel on which the request came; the current one if it is granted.
    pub channel: ChannelKey,
    /// Incarnation of the worker that the control node believes to address.
    pub worker_incarnation: Incarnation,
    /// Last term of this worker that the control node has seen.
    pub seen_term: u64,
    /// Control node that wants to control the worker.
    pub owner: NodeId,
    /// Its incarnation.
    pub owner_incarnation: Incarnation,
    /// Its claim.
    pub rank: Rank,
    /// Ticket of the present holder, if this is a hand-over.
    pub ticket: Option<Ticket>,
}

/// Answer to an [`AdoptRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdoptAnswer {
    /// The channel is current from now on.
    Granted {
        /// The new term.
        term: u64,
        /// To be kept by the holder, and passed on to a successor only.
        ticket: Ticket,
        /// Channel that was current until now, if it is open and another one: whatever still
        /// arrives there is fenced.
        previous: Option<ChannelKey>,
    },
    /// Nothing has changed.
    Refused {
        /// The current term, to be named in the next attempt.
        term: u64,
        /// Who holds the worker, if anybody does.
        holder: Option<NodeId>,
        /// Why.
        reason: RefusedReason,
    },
}

/// Why an adoption was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// The request was meant for an earlier incarnation: the worker has been restarted.
    OtherIncarnation,
    /// The request does not name the current term: somebody has adopted the worker meanwhile.
    OtherTerm,
    /// Another owner holds the worker, pings it, and has at least the same rank.
    Held,
}

impl RefusedReason {
    /// Name on the wire and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::OtherIncarnation => "other_incarnation",
            Self::OtherTerm => "other_term",
            Self::Held => "held",
        }
    }
}

/// Whether a channel may control this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the channel of the holder.
    Current,
    /// It is not; to be answered in these words.
    Fenced {
        /// The current term.
        term: u64,
        /// Who holds the worker, if anybody does.
        holder: Option<NodeId>,
    },
}

/// The control node that holds this worker, over a channel that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The control node.
    pub owner: NodeId,
    /// Its incarnation.
    pub owner_incarnation: Incarnation,
    /// The current channel.
    pub channel: ChannelKey,
    /// Claim of the owner, as of its last ping.
    pub rank: Rank,
    /// When the adoption was granted or the last ping arrived.
    pub heard: Instant,
    ticket: Ticket,
    silence_reported: bool,
}

/// The arbiter: term and holder of one incarnation of a worker.
#[derive(Debug)]
pub struct Adoption {
    incarnation: Incarnation,
    ping_time: Duration,
    /// Twice the time between pings, by our own configuration or the holder's, whichever is longer.
    silence_max: Duration,
    term: u64,
    holder: Option<Holder>,
    /// Channels on other links which the holder of this term has bound for calls.
    bound: BTreeSet<ChannelKey>,
}

impl Adoption {
    /// Term 0, held by nobody.
    pub fn new(incarnation: Incarnation, ping_time: Duration) -> Self {
        Self { incarnation, ping_time, silence_max: ping_time.saturating_mul(2), term: 0, holder: None, bound: BTreeSet::new() }
    }

    /// The holder has said how often it pings. Nodes are configured one by one: a holder that pings less often than we expect is not silent.
    pub fn pinged_every(&mut self, ping_time: Duration) {
        self.silence_max = self.ping_time.max(ping_time.min(PING_TIME_MAX)).saturating_mul(2);
    }

    /// Judges a request. `fresh_ticket` becomes the holder's ticket if the request is granted.
    pub fn adopt(&mut self, request: AdoptRequest, fresh_ticket: Ticket, now: Instant) -> AdoptAnswer {
        if let Some(reason) = self.objection(&request, now) {
            let holder = self.holder.as_ref().map(|holder| holder.owner.clone());
            return AdoptAnswer::Refused { term: self.term, holder, reason };
        }
        // Peers can raise the term by one per message: it cannot overflow in a lifetime.
        self.term += 1;
        // What the holder before had bound is fenced with it.
        self.bound.clear();
        let channel = request.channel;
        let previous = self.holder.replace(Holder {
            owner: request.owner,
            owner_incarnation: request.owner_incarnation,
            channel,
            rank: request.rank,
            heard: now,
            ticket: fresh_ticket,
            silence_reported: false,
        });
        AdoptAnswer::Granted {
            term: self.term,
            ticket: fresh_ticket,
            previous: previous.map(|holder| holder.channel).filter(|old| *old != channel),
        }
    }

    fn objection(&self, request: &AdoptRequest, now: Instant) -> Option<RefusedReason> {
        if request.worker_incarnation != self.incarnation {
            return Some(RefusedReason::OtherIncarnation);
        }
        if request.seen_term != self.term {
            return Some(RefusedReason::OtherTerm);
        }
        let holder = self.holder.as_ref()?;
        let same_owner = holder.owner == request.owner && holder.owner_incarnation == request.owner_incarnation;
        let granted = self.silent(now) || same_owner || request.ticket == Some(holder.ticket) || request.rank > holder.rank;
        (!granted).then_some(RefusedReason::Held)
    }

    /// A ping arrived on a channel. From the holder it ends the silence and refreshes the rank;
    /// from anybody else it changes nothing.
    pub fn heard(&mut self, channel: ChannelKey, rank: Rank, now: Instant) -> Standing {
        if let Some(holder) = &mut self.holder
            && holder.channel == channel
        {
            holder.rank = rank;
            holder.heard = holder.heard.max(now);
            holder.silence_reported = false;
        }
        self.check(channel)
    }

    /// The holder wants to call over this channel of another link as well. It shows by its term
    /// and its ticket that it is the holder; `false` if it is not, or has too many of them.
    ///
    /// The channel is good for calls until another term begins, also when the holder's own
    /// channel is lost. It is not that of the holder: nothing else is obeyed there.
    pub fn bind(&mut self, channel: ChannelKey, term: u64, ticket: &Ticket) -> bool {
        let is_holder = self.holder.as_ref().is_some_and(|holder| term == self.term && *ticket == holder.ticket);
        let has_room = self.bound.len() < BOUND_MAX || self.bound.contains(&channel);
        let granted = is_holder && has_room;
        if granted {
            self.bound.insert(channel);
        }
        granted
    }

    /// Whether a call on this channel may be carried out: on that of the holder, and on those
    /// which it has bound.
    pub fn check_call(&self, channel: ChannelKey) -> Standing {
        if self.bound.contains(&channel) { Standing::Current } else { self.check(channel) }
    }

    /// Channels of which this is true are gone.
    pub fn unbind(&mut self, gone: impl Fn(ChannelKey) -> bool) {
        self.bound.retain(|channel| !gone(*channel));
    }

    /// A channel was closed, or its link was lost. If it was the current one nobody holds the
    /// worker any more; the term stays.
    pub fn channel_closed(&mut self, channel: ChannelKey) {
        self.bound.remove(&channel);
        self.holder.take_if(|holder| holder.channel == channel);
    }

    /// Whether what arrived on this channel may change anything here.
    pub fn check(&self, channel: ChannelKey) -> Standing {
        match &self.holder {
            Some(holder) if holder.channel == channel => Standing::Current,
            holder => Standing::Fenced { term: self.term, holder: holder.as_ref().map(|holder| holder.owner.clone()) },
        }
    }

    /// The current term; 0 before the first adoption.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Incarnation of this worker.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Who holds the worker. `None` as soon as the holder's channel is closed.
    pub fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// `true` if no holder has been heard for 2 × `ping_time`, or there is none.
    pub fn silent(&self, now: Instant) -> bool {
        self.holder.as_ref().is_none_or(|holder| now.saturating_duration_since(holder.heard) >= self.silence_max)
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to say: `None` while nobody
    /// holds the worker, and after the silence has been reported.
    pub fn next_deadline(&self) -> Option<Instant> {
        let holder = self.holder.as_ref().filter(|holder| !holder.silence_reported)?;
        holder.heard.checked_add(self.silence_max)
    }

    /// Watchdog. `true` exactly once for each silence of the holder: the agent then looks for a
    /// control node (checklist N5.4). The channel stays current until somebody else is granted.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let silent = self.silent(now);
        match &mut self.holder {
            Some(holder) if silent && !holder.silence_reported => {
                holder.silence_reported = true;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
