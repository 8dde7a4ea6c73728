//! What became of the calls: the memory that lets a retry never do a thing twice.
//!
//! When a link breaks the edge does not know whether its call was carried out. It asks again with
//! the same identity, and the worker looks here:
//!
//! ```text
//!              begin                 finish                ack, or deadline + 60 s
//!   unseen ───────────► running ───────────────► done ───────────────────────────► number only
//!            Execute              └ evicted when the bytes run out ───────────────►
//!                       retry: Running        retry: Done            retry: Unknown
//! ```
//!
//! Of a call whose outcome is gone the bare number is kept for a while: a copy of the request that comes
//! late, over another path, must not be executed. Asked for it, the answer is `outcome_unknown`.
//! The numbers are bounded too. When the oldest go, those of outcomes that nobody had acknowledged leave a floor
//! behind: a *retry* at or below the floor that is not in memory is `Unknown`, because it may have
//! been one of them, while a first attempt is executed, because its edge says that nobody has sent it
//! before.
//!
//! Edges are bounded as well; the one that has been quiet for longest makes room for a new one. Until the
//! last of its calls would have been forgotten anyway, a retry from an unknown edge is `Unknown`.
//!
//! Callers that wait for a running call are kept by the shell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use crate::proto::identity::CallIdentity;
use crate::types::Incarnation;
use crate::{Error, Result};

/// How long an outcome is remembered after the deadline of its call.
pub const REMEMBER_AFTER_DEADLINE: Duration = Duration::from_secs(60);

/// Most edges in memory: control nodes, and clients that did not say goodbye. An edge of which nothing is left takes some hundred bytes.
pub const EDGES_MAX: usize = 4096;

/// Most numbers for each edge of calls whose outcome is gone.
pub const NUMBERS_MAX: usize = 1024;

/// Most ranges that one acknowledgement is read for.
pub const RANGES_MAX: usize = 64;

/// Most numbers for all edges together; beyond it an edge that needs more forgets its own.
const NUMBERS_OF_ALL_MAX: usize = 65_536;

/// What an outcome costs beside its bytes.
const OUTCOME_BYTES: usize = 256;

/// How a call ended.
pub type Outcome = Result<Bytes, Error>;

/// What to do with a call that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It was not seen before: carry it out, then [`finish`](Outcomes::finish) it.
    Execute,
    /// It is being carried out: wait for the same outcome.
    Running,
    /// It was carried out: answer this.
    Done(Outcome),
    /// Nobody knows any more: answer `outcome_unknown`.
    Unknown,
}

/// Memory of the calls of one worker incarnation.
#[derive(Debug)]
pub struct Outcomes {
    bytes_max: usize,
    edges_max: usize,
    numbers_max: usize,
    bytes: usize,
    numbers: usize,
    edges: BTreeMap<Incarnation, Edge>,
    /// Finished calls in the order in which they finished.
    finished: BTreeMap<u64, CallIdentity>,
    /// Finished calls by the time when they are forgotten.
    expiry: BTreeSet<(Instant, CallIdentity)>,
    /// Counts calls begun and finished, to order them.
    tick: u64,
    /// Until then a retry of an unknown edge may be one of an edge that was forgotten.
    edges_forgotten_until: Option<Instant>,
}

#[derive(Debug)]
struct Edge {
    calls: BTreeMap<u64, Call>,
    running: usize,
    /// Everything below was acknowledged: nobody waits for it.
    below: u64,
    /// Calls whose outcome is gone, not below `below`.
    numbers: BTreeMap<u64, Gone>,
    /// A retry at or below that is not in memory may have been forgotten.
    floor: u64,
    /// Until then any retry that is not in memory may have been forgotten together with this edge, when it had to
    /// make room for another one.
    doubtful_until: Option<Instant>,
    last_used: u64,
    /// When the last of its calls is forgotten.
    remembered_until: Instant,
}

#[derive(Debug)]
enum Call {
    Running {
        forget_at: Instant,
        /// Whether it was acknowledged while it ran: then nobody will ask for its outcome.
        settled: bool,
    },
    Done {
        outcome: Outcome,
        order: u64,
        forget_at: Instant,
    },
}

/// Why the outcome of a call is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    /// The caller has it: no honest retry will come.
    Settled,
    /// It made room for others, or its time was over: a retry may come.
    Evicted,
}

impl Outcomes {
    /// An empty memory that keeps at most `bytes_max` bytes of outcomes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            edges_max: EDGES_MAX,
            numbers_max: NUMBERS_MAX,
            bytes: 0,
            numbers: 0,
            edges: BTreeMap::new(),
            finished: BTreeMap::new(),
            expiry: BTreeSet::new(),
            tick: 0,
            edges_forgotten_until: None,
        }
    }

    /// The same with tables that are soon full.
    #[cfg(test)]
    pub(super) fn with_tables(bytes_max: usize, edges_max: usize, numbers_max: usize) -> Self {
        Self { edges_max, numbers_max, ..Self::new(bytes_max) }
    }

    /// A call arrived. `retry` says that its edge has sent it before; a first attempt whose number is known is
    /// treated like a retry.
    ///
    /// Whoever has no room for the call must refuse it before, or [`abandon`](Self::abandon) it. The number of running
    /// calls is bounded by the executor.
    pub fn begin(&mut self, identity: CallIdentity, retry: bool, deadline: Instant, now: Instant) -> Begin {
        let forget_at = deadline.checked_add(REMEMBER_AFTER_DEADLINE).unwrap_or(deadline);
        if !self.edges.contains_key(&identity.edge) {
            let doubtful_until = self.edges_forgotten_until.filter(|until| now < *until);
            if retry && doubtful_until.is_some() {
                return Begin::Unknown;
            }
            self.make_room_for_edge();
            self.edges.insert(identity.edge, Edge::new(doubtful_until, forget_at));
        }
        let Some(edge) = self.edges.get_mut(&identity.edge) else { return Begin::Unknown };
        self.tick += 1;
        edge.last_used = self.tick;
        let begin = edge.look_up(identity.number, retry, now);
        if begin == Begin::Execute {
            edge.calls.insert(identity.number, Call::Running { forget_at, settled: false });
            edge.running += 1;
            edge.remembered_until = edge.remembered_until.max(forget_at);
        }
        begin
    }

    /// A call has ended. Remembers its outcome for retries; of a call that is not running nothing changes.
    pub fn finish(&mut self, identity: CallIdentity, outcome: Outcome, now: Instant) {
        let bytes = outcome_bytes(&outcome);
        let Some(edge) = self.edges.get_mut(&identity.edge) else { return };
        let Some(call) = edge.calls.get_mut(&identity.number) else { return };
        let Call::Running { forget_at, settled } = *call else { return };
        edge.running -= 1;
        if settled || forget_at <= now || bytes > self.bytes_max {
            edge.calls.remove(&identity.number);
            self.remember_number(identity, if settled { Gone::Settled } else { Gone::Evicted });
            return;
        }
        self.tick += 1;
        *call = Call::Done { outcome, order: self.tick, forget_at };
        self.finished.insert(self.tick, identity);
        self.expiry.insert((forget_at, identity));
        self.bytes += bytes;
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.finished.pop_first()
        {
            self.forget(oldest, Gone::Evicted);
        }
    }

    /// A call that was begun will not be carried out, for instance because the executor is full: as if it had
    /// never come.
    pub fn abandon(&mut self, identity: CallIdentity) {
        let Some(edge) = self.edges.get_mut(&identity.edge) else { return };
        if let Some(Call::Running { .. }) = edge.calls.get(&identity.number) {
            edge.calls.remove(&identity.number);
            edge.running -= 1;
        }
    }

    /// The edge needs the outcomes of these calls no more: of all numbers below `below`, and of the `ranges`, which are given by their first and last number.
    ///
    /// Of an edge without any call here nothing is noted; of more than [`RANGES_MAX`] ranges the rest is left for the next time.
    pub fn settle(&mut self, edge: Incarnation, below: u64, ranges: &[(u64, u64)]) {
        let Some(memory) = self.edges.get_mut(&edge) else { return };
        memory.below = memory.below.max(below);
        let kept = memory.numbers.split_off(&memory.below);
        self.numbers -= std::mem::replace(&mut memory.numbers, kept).len();
        let until = memory.below;
        let below = (until > 0).then(|| (0, until - 1));
        for (from, to) in below.into_iter().chain(ranges.iter().take(RANGES_MAX).copied().filter(|(from, to)| from <= to)) {
            self.settle_range(edge, from, to);
        }
    }

    fn settle_range(&mut self, edge: Incarnation, from: u64, to: u64) {
        let Some(memory) = self.edges.get_mut(&edge) else { return };
        let mut done = Vec::new();
        for (number, call) in memory.calls.range_mut(from..=to) {
            match call {
                Call::Running { settled, .. } => *settled = true,
                Call::Done { .. } => done.push(*number),
            }
        }
        for (_, gone) in memory.numbers.range_mut(from..=to) {
            *gone = Gone::Settled;
        }
        for number in done {
            self.forget(CallIdentity { edge, number }, Gone::Settled);
        }
    }

    /// Forgets the outcomes whose time is over.
    pub fn expire(&mut self, now: Instant) {
        while self.expiry.first().is_some_and(|(forget_at, _)| *forget_at <= now)
            && let Some((_, identity)) = self.expiry.pop_first()
        {
            self.forget(identity, Gone::Evicted);
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.expiry.first().map(|(forget_at, _)| *forget_at)
    }

    /// Bytes of all outcomes in memory, overhead included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Edges in memory.
    pub fn edges(&self) -> usize {
        self.edges.len()
    }

    /// Calls that were begun and have not ended.
    pub fn running(&self) -> usize {
        self.edges.values().map(|edge| edge.running).sum()
    }

    /// Replaces a finished call by its bare number.
    fn forget(&mut self, identity: CallIdentity, gone: Gone) {
        let Some(edge) = self.edges.get_mut(&identity.edge) else { return };
        let Some(Call::Done { .. }) = edge.calls.get(&identity.number) else { return };
        let call = edge.calls.remove(&identity.number);
        self.unlist(identity, call.as_ref());
        self.remember_number(identity, gone);
    }

    /// Takes a call that has left its edge out of the books.
    fn unlist(&mut self, identity: CallIdentity, call: Option<&Call>) {
        if let Some(Call::Done { outcome, order, forget_at }) = call {
            self.bytes -= outcome_bytes(outcome);
            self.finished.remove(order);
            self.expiry.remove(&(*forget_at, identity));
        }
    }

    /// Keeps the bare number of a call, for as long as there is room.
    fn remember_number(&mut self, identity: CallIdentity, gone: Gone) {
        let Some(edge) = self.edges.get_mut(&identity.edge) else { return };
        if identity.number < edge.below {
            return;
        }
        self.numbers += usize::from(edge.numbers.insert(identity.number, gone).is_none());
        if edge.numbers.len() > self.numbers_max || self.numbers > NUMBERS_OF_ALL_MAX {
            let lowest = edge.numbers.pop_first();
            self.numbers -= usize::from(lowest.is_some());
            if let Some((lowest, Gone::Evicted)) = lowest {
                edge.floor = edge.floor.max(lowest);
            }
        }
    }

    /// Forgets an edge if there is no room for another one: one that needs nothing any more, else the one that has been quiet for longest; if possible one
    /// without running calls.
    fn make_room_for_edge(&mut self) {
        if self.edges.len() < self.edges_max {
            return;
        }
        let quietest = self.edges.iter().min_by_key(|(_, edge)| (edge.running > 0, !edge.is_settled(), edge.last_used));
        let Some(incarnation) = quietest.map(|(incarnation, _)| *incarnation) else { return };
        let Some(edge) = self.edges.remove(&incarnation) else { return };
        self.numbers -= edge.numbers.len();
        if !edge.is_settled() {
            self.edges_forgotten_until = self.edges_forgotten_until.max(Some(edge.remembered_until));
        }
        for (number, call) in &edge.calls {
            self.unlist(CallIdentity { edge: incarnation, number: *number }, Some(call));
        }
    }
}

impl Edge {
    fn new(doubtful_until: Option<Instant>, remembered_until: Instant) -> Self {
        Self {
            calls: BTreeMap::new(),
            running: 0,
            below: 0,
            numbers: BTreeMap::new(),
            floor: 0,
            doubtful_until,
            last_used: 0,
            remembered_until,
        }
    }

    /// Whether nobody will ask for anything that it has sent so far.
    fn is_settled(&self) -> bool {
        let needs_nothing = |call: &Call| matches!(call, Call::Running { settled: true, .. });
        self.calls.values().all(needs_nothing)
            && (self.floor == 0 || self.floor < self.below)
            && self.numbers.values().all(|gone| *gone == Gone::Settled)
    }

    fn look_up(&self, number: u64, retry: bool, now: Instant) -> Begin {
        let maybe_forgotten = || number <= self.floor || self.doubtful_until.is_some_and(|until| now < until);
        match self.calls.get(&number) {
            Some(Call::Running { .. }) => Begin::Running,
            Some(Call::Done { outcome, .. }) => Begin::Done(outcome.clone()),
            None if number < self.below || self.numbers.contains_key(&number) => Begin::Unknown,
            None if retry && maybe_forgotten() => Begin::Unknown,
            None => Begin::Execute,
        }
    }
}

/// Bytes that an outcome counts for.
fn outcome_bytes(outcome: &Outcome) -> usize {
    OUTCOME_BYTES
        + match outcome {
            Ok(reply) => reply.len(),
            Err(error) => error.message().len() + error.code().name().len(),
        }
}

#[cfg(test)]
mod tests;
