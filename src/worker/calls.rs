//! Calls that arrive at a worker: which are carried out, which are answered from memory, which wait.
//!
//! ```text
//!   arrive ─┬─ of another incarnation, or forgotten ──► Answer
//!           ├─ done already ──────────────────────────► Answer, the same as before
//!           ├─ being carried out ─────────────────────► Waits ──┐
//!           └─ unseen ────────────────────────────────► Execute ┴─► finish, or abandon: everybody who waits is answered
//! ```
//!
//! The machine gives back each call that it took exactly once, so each is answered exactly once. `W` is whatever the shell answers.

use std::collections::HashMap;
use std::time::Instant;

use super::outcomes::{Begin, Outcome, Outcomes};
use crate::proto::head::CallHead;
use crate::proto::identity::CallIdentity;
use crate::types::Incarnation;
use crate::{Error, ErrorCode};

/// What decides about a call that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Kept over retries.
    pub identity: CallIdentity,
    /// Whether an earlier attempt may have arrived.
    pub retry: bool,
    /// The worker incarnation that is meant; zero if any.
    pub incarnation: Incarnation,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

impl Asked {
    /// Out of the header of a call.
    pub fn new(head: &CallHead, deadline: Instant) -> Self {
        Self { identity: head.identity, retry: head.retry, incarnation: head.incarnation, deadline }
    }
}

/// What becomes of a call that has arrived.
#[derive(Debug, PartialEq)]
pub enum Arrived<W> {
    /// Carry it out, then [`finish`](Calls::finish) or [`abandon`](Calls::abandon) it.
    Execute(W),
    /// It is being carried out already; it will be given back with the outcome.
    Waits,
    /// Answer it so.
    Answer(W, Outcome),
}

/// The calls of one worker incarnation.
#[derive(Debug)]
pub struct Calls<W> {
    incarnation: Incarnation,
    outcomes: Outcomes,
    /// Retries that wait for a call which is being carried out. Bounded by the calls that a channel may have.
    waiters: HashMap<CallIdentity, Vec<W>>,
}

impl<W> Calls<W> {
    /// No calls yet, and a memory of so many bytes.
    pub fn new(incarnation: Incarnation, outcome_bytes: usize) -> Self {
        Self { incarnation, outcomes: Outcomes::new(outcome_bytes), waiters: HashMap::new() }
    }

    /// The same with tables that are soon full.
    #[cfg(test)]
    pub(crate) fn with_tables(incarnation: Incarnation, outcome_bytes: usize, edges_max: usize, numbers_max: usize) -> Self {
        let outcomes = Outcomes::with_tables(outcome_bytes, edges_max, numbers_max);
        Self { outcomes, ..Self::new(incarnation, outcome_bytes) }
    }

    /// A call has come.
    pub fn arrive(&mut self, asked: Asked, call: W, now: Instant) -> Arrived<W> {
        if !asked.incarnation.is_none() && asked.incarnation != self.incarnation {
            let what = "the worker was restarted since the call was first sent; nobody knows whether it was done";
            let error = Error::new(ErrorCode::ConnectionFailed, what).after_sending().addressed_to(self.incarnation);
            return Arrived::Answer(call, Err(error));
        }
        match self.outcomes.begin(asked.identity, asked.retry, asked.deadline, now) {
            Begin::Execute => Arrived::Execute(call),
            Begin::Done(outcome) => Arrived::Answer(call, outcome),
            Begin::Running => {
                self.waiters.entry(asked.identity).or_default().push(call);
                Arrived::Waits
            }
            Begin::Unknown => {
                let what = "the outcome of this call is not known any more; look whether it was done before trying again";
                Arrived::Answer(call, Err(Error::new(ErrorCode::OutcomeUnknown, what).after_sending()))
            }
        }
    }

    /// A call was carried out. Remembers the outcome; returns those who wait for it beside the first.
    pub fn finish(&mut self, identity: CallIdentity, outcome: &Outcome, now: Instant) -> Vec<W> {
        self.outcomes.finish(identity, outcome.clone(), now);
        self.waiters.remove(&identity).unwrap_or_default()
    }

    /// A call was refused before anything was done: as if it had never come, so that a retry may find room. Returns those who wait, to be refused as well.
    pub fn abandon(&mut self, identity: CallIdentity) -> Vec<W> {
        self.outcomes.abandon(identity);
        self.waiters.remove(&identity).unwrap_or_default()
    }

    /// See [`Outcomes::settle`].
    pub fn settle(&mut self, edge: Incarnation, below: u64, ranges: &[(u64, u64)]) {
        self.outcomes.settle(edge, below, ranges);
    }

    /// Forgets the outcomes whose time is over.
    pub fn expire(&mut self, now: Instant) {
        self.outcomes.expire(now);
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.outcomes.next_deadline()
    }

    /// Bytes of all outcomes in memory.
    pub fn bytes(&self) -> usize {
        self.outcomes.bytes()
    }
}
