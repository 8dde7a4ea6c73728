//! Who may wait at the door: bounds on connections whose peer has not proved itself.
//!
//! Anybody can open connections, and many workers may sit behind one address, so an address alone is never a reason to turn somebody away. Instead:
//!
//! - New connections are taken at a bounded rate ([`Limits::rate`], a token bucket), before TLS costs anything; the others wait in the kernel's queue.
//! - At most [`Limits::untrusted`] connections are in the handshake at once. A newcomer who finds it full takes the place of the oldest that has not
//!   sent a proof.
//! - One address has at most half of the permits that the others leave free; beyond that, a newcomer takes the place of the oldest of its own address.
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
    /// All places are taken by connections whose proofs are being judged.
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
    is_proving: bool,
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
        let source = addr.map(source);
        let own = self.per_source.get(&source).copied().unwrap_or(0);
        let left_by_others = self.limits.untrusted - (self.waiting.len() - own);
        let is_full = self.waiting.len() >= self.limits.untrusted;
        let mut evicted = None;
        // Links without an address are those of a simulation: they only share the whole.
        if source.is_some() && own >= (left_by_others / 2).max(1) {
            evicted = self.oldest_silent(|waiting| waiting.source == source);
        }
        if evicted.is_none() && is_full {
            evicted = self.oldest_silent(|_| true);
            if evicted.is_none() {
                return Decision::Full;
            }
        }
        if let Some(ticket) = evicted {
            self.release(ticket);
        }
        self.full_at = self.full_at.max(now) + interval;
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, Waiting { source, is_proving: false });
        *self.per_source.entry(source).or_default() += 1;
        Decision::Admitted(ticket, evicted)
    }

    /// The peer has sent a proof: it keeps its place until that is judged.
    pub fn proof_arrived(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.is_proving = true;
        }
    }

    /// The proof was wrong: the connection only waits for its answer and may be closed for a newcomer.
    pub fn proof_failed(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.is_proving = false;
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

    fn oldest_silent(&self, of: impl Fn(&Waiting) -> bool) -> Option<Ticket> {
        self.waiting.iter().find(|(_, waiting)| !waiting.is_proving && of(waiting)).map(|(ticket, _)| *ticket)
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
    /// `busy` if every place is taken by a connection whose proof is being judged.
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
