//! A network within one process, for simulations and tests.
//!
//! Bytes really travel through bounded buffers, and whatever real networks do to them can be asked for by name, between any two nodes and in each
//! direction separately: bytes are delayed, stop and go on ([`Flow::Frozen`]), vanish ([`Flow::Lost`]), links are cut, new ones are refused. A net is a
//! value, not a global: two clusters in one process do not see each other. All time is tokio's, so it can be paused.
//!
//! Addresses are the hosts of URLs, `nkcluster://c1;transport=memory`, with a port where one was written. A dialler has a name too ([`MemoryNode`]),
//! by which its links are found.

mod pipe;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};

use crate::error::{Error, ErrorCode, Result};
use crate::transport::{CertificateCheck, Wire, WireFacts};
use crate::types::{NodeUri, Transport};

pub use pipe::{Flow, MemoryStream};
use pipe::{Pipe, lock};

/// Connections that a listener keeps until they are accepted; more are refused.
const BACKLOG: usize = 1024;
/// Bytes on their way in one direction of a link, unless asked otherwise; a writer waits when they are full.
const BUFFER_BYTES: usize = 64 * 1024;
/// As many links are kept at least before those that have ended are looked for.
const CROWD_MIN: usize = 64;

/// The address of a URL in this network: its host, and its port if it has one.
pub(super) fn memory_name(uri: &NodeUri) -> String {
    match uri.port() {
        Some(port) => format!("{}:{port}", uri.host()),
        None => uri.host().to_string(),
    }
}

/// The network. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNet {
    state: Arc<StdMutex<State>>,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<String, mpsc::Sender<Wire>>,
    links: Vec<Link>,
    /// With so many links, those that have ended are looked for: not with each new one, of which there may be thousands.
    crowd: usize,
    rules: BTreeMap<(String, String), Rule>,
}

/// What holds for bytes from one node to another, on links that exist and on those to come.
#[derive(Clone, Copy, Default)]
struct Rule {
    flow: Flow,
    delay: Duration,
    refused: bool,
    /// Bytes on their way, if not as many as everywhere.
    buffer: Option<usize>,
}

/// A link that was dialled by `from`.
struct Link {
    from: String,
    to: String,
    forth: Weak<Pipe>,
    back: Weak<Pipe>,
}

impl Link {
    fn is_open(&self) -> bool {
        self.forth.strong_count() > 0 || self.back.strong_count() > 0
    }

    fn is_between(&self, a: &str, b: &str) -> bool {
        (self.from == a && self.to == b) || (self.from == b && self.to == a)
    }

    /// The pipes that carry bytes from `from` to `to`, whoever dialled.
    fn pipes(&self, from: &str, to: &str) -> impl Iterator<Item = Arc<Pipe>> {
        let forth = (self.from == from && self.to == to).then_some(&self.forth);
        let back = (self.to == from && self.from == to).then_some(&self.back);
        forth.into_iter().chain(back).filter_map(Weak::upgrade)
    }
}

impl MemoryNet {
    /// A network without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The network as node `name` sees it.
    pub fn node(&self, name: impl Into<String>) -> MemoryNode {
        MemoryNode { net: self.clone(), name: name.into() }
    }

    /// Listens at an address.
    ///
    /// # Errors
    /// `cannot_bind` if somebody else does.
    pub fn listen(&self, name: &str) -> Result<MemoryListener> {
        let mut state = lock(&self.state);
        if state.listeners.get(name).is_some_and(|listener| !listener.is_closed()) {
            return Err(Error::new(ErrorCode::CannotBind, format!("memory:{name} is in use")));
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        state.listeners.insert(name.to_owned(), sender);
        Ok(MemoryListener { name: name.to_owned(), arrived: Mutex::new(receiver) })
    }

    /// Opens a link from node `from` to the listener at `to`.
    ///
    /// # Errors
    /// `no_connections` if nobody listens there, or the way is blocked.
    pub fn dial(&self, from: &str, to: &str) -> Result<Wire> {
        let refused = |reason: &str| Error::new(ErrorCode::NoConnections, format!("connection refused: {reason}"));
        let mut state = lock(&self.state);
        let to_node = host(to);
        let (forth_rule, back_rule) = (state.rule(from, to_node), state.rule(to_node, from));
        if forth_rule.refused {
            return Err(refused("the way is blocked"));
        }
        let pipe = |rule: Rule| Pipe::new(rule.buffer.unwrap_or(BUFFER_BYTES), rule.flow, rule.delay);
        let (forth, back) = (pipe(forth_rule), pipe(back_rule));
        let ours = Wire::memory(MemoryStream::new(back.clone(), forth.clone()), facts(from, to));
        let theirs = Wire::memory(MemoryStream::new(forth.clone(), back.clone()), facts(to, from));
        let listener = state.listeners.get(to).ok_or_else(|| refused("nobody listens there"))?;
        listener.try_send(theirs).map_err(|_| refused("nobody accepts there"))?;
        let link = Link { from: from.to_owned(), to: to_node.to_owned(), forth: Arc::downgrade(&forth), back: Arc::downgrade(&back) };
        if state.links.len() >= state.crowd {
            state.links.retain(Link::is_open);
            state.crowd = 2 * state.links.len().max(CROWD_MIN);
        }
        state.links.push(link);
        Ok(ours)
    }

    /// Cuts all links between two nodes: both ends see a reset, what was on its way is gone. Says how many there were.
    pub fn cut(&self, a: &str, b: &str) -> usize {
        let mut state = lock(&self.state);
        let mut cut = 0;
        state.links.retain(|link| {
            if !link.is_open() || !link.is_between(a, b) {
                return link.is_open();
            }
            link.forth.upgrade().into_iter().chain(link.back.upgrade()).for_each(|pipe| pipe.reset());
            cut += 1;
            false
        });
        cut
    }

    /// Cuts one link between two nodes, counted from 0 in the order in which they were dialled. False if there are not so many.
    pub fn cut_one(&self, a: &str, b: &str, index: usize) -> bool {
        let mut state = lock(&self.state);
        state.links.retain(Link::is_open);
        let found = state.links.iter().enumerate().filter(|(_, link)| link.is_between(a, b)).nth(index).map(|(at, _)| at);
        let Some(at) = found else { return false };
        let link = state.links.remove(at);
        link.forth.upgrade().into_iter().chain(link.back.upgrade()).for_each(|pipe| pipe.reset());
        true
    }

    /// Lets so many bytes be on their way from one node to another at a time, on links to come: the windows of a real network that is far.
    pub fn set_buffer(&self, from: &str, to: &str, bytes: usize) {
        self.change(from, to, |rule| rule.buffer = Some(bytes.max(1)));
    }

    /// Says what happens to bytes from one node to another, from now on.
    pub fn set_flow(&self, from: &str, to: &str, flow: Flow) {
        self.change(from, to, |rule| rule.flow = flow);
    }

    /// Lets every byte from one node to another take this long.
    pub fn set_delay(&self, from: &str, to: &str, delay: Duration) {
        self.change(from, to, |rule| rule.delay = delay);
    }

    /// Refuses new links that `from` dials to `to`, or allows them again. Existing ones stay.
    pub fn set_refused(&self, from: &str, to: &str, refused: bool) {
        self.change(from, to, |rule| rule.refused = refused);
    }

    /// Number of open links between two nodes.
    pub fn links(&self, a: &str, b: &str) -> usize {
        lock(&self.state).links.iter().filter(|link| link.is_open() && link.is_between(a, b)).count()
    }

    /// Bytes that were written from one node to another on the links that are open now.
    pub fn bytes(&self, from: &str, to: &str) -> u64 {
        lock(&self.state).links.iter().flat_map(|link| link.pipes(from, to)).map(|pipe| pipe.written()).sum()
    }

    fn change(&self, from: &str, to: &str, change: impl FnOnce(&mut Rule)) {
        let mut state = lock(&self.state);
        let rule = state.rules.entry((from.to_owned(), to.to_owned())).or_default();
        change(rule);
        let Rule { flow, delay, .. } = *rule;
        state.links.iter().flat_map(|link| link.pipes(from, to)).for_each(|pipe| pipe.set(flow, delay));
    }
}

impl State {
    fn rule(&self, from: &str, to: &str) -> Rule {
        self.rules.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or_default()
    }
}

impl fmt::Debug for MemoryNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryNet")
    }
}

/// A node's place in the network.
#[derive(Clone, Debug)]
pub struct MemoryNode {
    net: MemoryNet,
    name: String,
}

impl MemoryNode {
    /// Opens a link to the listener at `to`.
    ///
    /// # Errors
    /// Those of [`MemoryNet::dial`].
    pub fn dial(&self, to: &str) -> Result<Wire> {
        self.net.dial(&self.name, to)
    }

    /// The network.
    pub fn net(&self) -> &MemoryNet {
        &self.net
    }
}

/// A listener in the network; dropping it closes it.
#[derive(Debug)]
pub struct MemoryListener {
    name: String,
    arrived: Mutex<mpsc::Receiver<Wire>>,
}

impl MemoryListener {
    /// The next link.
    pub async fn accept(&self) -> Wire {
        match self.arrived.lock().await.recv().await {
            Some(wire) => wire,
            // The network is gone, so nobody will ever come.
            None => std::future::pending().await,
        }
    }

    /// Its address.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn facts(local: &str, remote: &str) -> WireFacts {
    WireFacts {
        transport: Transport::Memory,
        remote: format!("memory:{remote}"),
        local: format!("memory:{local}"),
        peer_addr: None,
        binding: None,
        certificate: CertificateCheck::Unchecked,
    }
}

/// The node of an address.
fn host(name: &str) -> &str {
    name.split_once(':').map_or(name, |(host, _)| host)
}

#[cfg(test)]
mod tests;
