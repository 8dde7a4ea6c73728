//! Who may wait at the door: bounds on connections whose peer has not proved itself.
//!
//! Anybody can open connections, and many workers may sit behind one address, so an address alone is never a reason to turn somebody away. Instead:
//!
//! - New connections are taken at a bounded rate ([`Limits::rate`], a token bucket), before TLS costs anything; the others wait in the kernel's queue.
//! - At most [`Limits::untrusted`] connections are in the handshake at once. A newcomer who finds it full takes the place of the oldest that is *idle*: its
//!   proof was wrong, or it has said nothing at all, or nothing for [`STEP_MAX`].
//! - One address has at most half of the permits that the others leave free; beyond that, a newcomer takes the place of an idle one of its own address.
//! - If none of them is idle the newcomer is refused. When thousands come back at once, behind the address of one NAT, the oldest is the one nearest to its
//!   end: to close it for somebody who has not begun would waste what both sides have done, and again for the next one, so that in the end nobody comes in.
//! - Whoever has sent a proof keeps its place until the proof is judged, which takes microseconds. So a correct proof always gets its answer.
//!
//! [`Admission`] is the machine, [`Gate`] the shell that closes connections and waits.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};

/// How long whoever has said something may take to say the next thing, when its place is wanted: time for a slow network, or a machine that many keep busy.
/// Strangers who speak and then stop hold a place for twice as long.
pub const STEP_MAX: Duration = Duration::from_secs(1);

/// Bounds on connections that are not trusted yet.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in the handshake at once, at least 2.
    pub untrusted: usize,
    /// New connections per second; as many may come at once after a quiet second.
    pub rate: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { untrusted: 1024, rate: 4000 }
    }
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Self {
        Self { untrusted: config.max_unauthenticated, rate: config.accept_rate }
    }
}

/// Name of one untrusted connection. They are given in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What a newcomer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is in, and this other connection must be closed for it.
    Admitted(Ticket, Option<Ticket>),
    /// Not before this moment: the bucket is empty.
    Wait(Instant),
    /// All places that it could have are taken by connections that make progress.
    Full,
}

/// The machine: no clock, no sockets.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    next: u64,
    waiting: BTreeMap<Ticket, Waiting>,
    per_source: BTreeMap<Source, usize>,
    /// When the bucket would be full if nobody came (the generic cell rate algorithm).
    full_at: Instant,
}

#[derive(Debug)]
struct Waiting {
    source: Source,
    step: Step,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It has said nothing.
    Silent,
    /// It has said something, the last time then.
    Heard(Instant),
    /// Its proof is being judged.
    Proving,
    /// Its proof was wrong: it only waits for its answer.
    Failed,
}

impl Step {
    fn is_idle(self, now: Instant) -> bool {
        match self {
            Step::Silent | Step::Failed => true,
            Step::Heard(at) => now.saturating_duration_since(at) >= STEP_MAX,
            Step::Proving => false,
        }
    }
}

/// What counts as one address: an IPv4 address, or the /64 that one IPv6 host can choose from. Memory links share `None`.
type Source = Option<IpAddr>;

impl Admission {
    /// An empty machine with a full bucket.
    pub fn new(limits: Limits, now: Instant) -> Self {
        let limits = Limits { untrusted: limits.untrusted.max(2), rate: limits.rate.max(1) };
        Self { limits, next: 0, waiting: BTreeMap::new(), per_source: BTreeMap::new(), full_at: now }
    }

    /// A connection has come.
    pub fn arrive(&mut self, addr: Option<IpAddr>, now: Instant) -> Decision {
        // One token comes back every `interval`; the bucket holds those of a second.
        let interval = Duration::from_secs(1) / self.limits.rate;
        let debt = self.full_at.saturating_duration_since(now);
        let room = Duration::from_secs(1).saturating_sub(interval);
        if debt > room {
            return Decision::Wait(now + (debt - room));
        }
        // Also for whoever is refused below: to refuse a flood costs something as well.
        self.full_at = self.full_at.max(now) + interval;
        let source = addr.map(source);
        let own = self.per_source.get(&source).copied().unwrap_or(0);
        let left_by_others = self.limits.untrusted - (self.waiting.len() - own);
        // Links without an address are those of a simulation: they only share the whole.
        let has_its_share = source.is_some() && own >= (left_by_others / 2).max(1);
        let mut evicted = None;
        if has_its_share || self.waiting.len() >= self.limits.untrusted {
            // Whoever has enough takes no place of others.
            evicted = self.oldest_idle(now, |waiting| !has_its_share || waiting.source == source);
            let Some(idle) = evicted else { return Decision::Full };
            self.release(idle);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, Waiting { source, step: Step::Silent });
        *self.per_source.entry(source).or_default() += 1;
        Decision::Admitted(ticket, evicted)
    }

    /// The peer has said something that brings the handshake on.
    pub fn heard(&mut self, ticket: Ticket, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.step = Step::Heard(now);
        }
    }

    /// The peer has sent a proof: it keeps its place until that is judged.
    pub fn proof_arrived(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.step = Step::Proving;
        }
    }

    /// The proof was wrong: the connection only waits for its answer and may be closed for a newcomer.
    pub fn proof_failed(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.step = Step::Failed;
        }
    }

    /// The connection is trusted, or closed.
    pub fn release(&mut self, ticket: Ticket) {
        let Some(waiting) = self.waiting.remove(&ticket) else { return };
        if let Some(count) = self.per_source.get_mut(&waiting.source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&waiting.source);
            }
        }
    }

    /// Connections that are not trusted yet.
    pub fn untrusted(&self) -> usize {
        self.waiting.len()
    }

    fn oldest_idle(&self, now: Instant, of: impl Fn(&Waiting) -> bool) -> Option<Ticket> {
        self.waiting.iter().find(|(_, waiting)| waiting.step.is_idle(now) && of(waiting)).map(|(ticket, _)| *ticket)
    }
}

fn source(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
    }
}

/// The door of one process: all its listeners share one. Clones are the same door.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    admission: Admission,
    /// Tells a connection to close.
    open: BTreeMap<Ticket, Arc<Notify>>,
}

impl Gate {
    /// A door with these bounds.
    pub fn new(limits: Limits) -> Self {
        let admission = Admission::new(limits, tokio::time::Instant::now().into_std());
        Self { inner: Arc::new(Mutex::new(Inner { admission, open: BTreeMap::new() })) }
    }

    /// Waits for a token, and then for nothing else. The accept loop calls this for each connection before it spawns its task, so that a flood waits in
    /// the kernel.
    ///
    /// # Errors
    /// `busy` if every place that it could have is taken by a connection that makes progress.
    pub async fn admit(&self, addr: Option<IpAddr>) -> Result<Permit> {
        loop {
            let wait = {
                let mut inner = self.lock();
                match inner.admission.arrive(addr, tokio::time::Instant::now().into_std()) {
                    Decision::Admitted(ticket, evicted) => {
                        if let Some(evicted) = evicted.and_then(|evicted| inner.open.remove(&evicted)) {
                            // Remembered, if the connection is not waiting for it at this moment.
                            evicted.notify_one();
                        }
                        let evicted = Arc::new(Notify::new());
                        inner.open.insert(ticket, evicted.clone());
                        return Ok(Permit { gate: self.clone(), ticket, evicted });
                    }
                    Decision::Full => return Err(Error::new(ErrorCode::Busy, "too many connections in the handshake")),
                    Decision::Wait(until) => until,
                }
            };
            tokio::time::sleep_until(wait.into()).await;
        }
    }

    /// Connections that are not trusted yet.
    pub fn untrusted(&self) -> usize {
        self.lock().admission.untrusted()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No change of the machine can panic half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one untrusted connection; dropping it gives it back.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    ticket: Ticket,
    evicted: Arc<Notify>,
}

impl Permit {
    /// See [`Admission::heard`].
    pub fn heard(&self) {
        self.gate.lock().admission.heard(self.ticket, tokio::time::Instant::now().into_std());
    }

    /// See [`Admission::proof_arrived`].
    pub fn proof_arrived(&self) {
        self.gate.lock().admission.proof_arrived(self.ticket);
    }

    /// See [`Admission::proof_failed`].
    pub fn proof_failed(&self) {
        self.gate.lock().admission.proof_failed(self.ticket);
    }

    /// Ends, once, when a newcomer takes the place: the connection is to be closed.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        inner.admission.release(self.ticket);
        inner.open.remove(&self.ticket);
    }
}
