//! A network between two nodes that speak over UDP: it loses datagrams, changes addresses as a NAT does, and can be cut.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nkcluster::types::NodeUri;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Connections of QUIC are named by this part of their datagrams, once they are established (RFC 9000 §17.3).
const ID: std::ops::Range<usize> = 1..9;

/// What is shorter belongs to no connection.
const PACKET_BYTES_MIN: usize = 20;

/// Listens on a port of its own and forwards to another.
pub(crate) struct Datagrams {
    addr: SocketAddr,
    to: SocketAddr,
    state: Arc<Mutex<State>>,
    front: Arc<UdpSocket>,
    forwarding: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    flows: HashMap<SocketAddr, Flow>,
    /// Names of connections that passed, and of those that pass no more.
    seen: HashSet<[u8; 8]>,
    cut: HashSet<[u8; 8]>,
    /// Every so many datagrams one is lost; none if 0.
    lost_one_in: usize,
    count: usize,
}

struct Flow {
    /// As whom the listener knows the dialler.
    outside: Arc<UdpSocket>,
    back: JoinHandle<()>,
    is_open: bool,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.back.abort();
    }
}

impl State {
    /// Whether this datagram arrives.
    fn passes(&mut self, datagram: &[u8]) -> bool {
        self.count += 1;
        if self.lost_one_in > 0 && self.count.is_multiple_of(self.lost_one_in) {
            return false;
        }
        let is_established = datagram.first().is_some_and(|first| first & 0x80 == 0);
        let Some(id) = datagram.get(ID).filter(|_| is_established) else { return true };
        let id = id.try_into().expect("eight bytes");
        self.seen.insert(id);
        !self.cut.contains(&id)
    }
}

impl Datagrams {
    pub(crate) async fn start(to: &NodeUri) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
        let addr = front.local_addr().expect("bound");
        let to = SocketAddr::from(([127, 0, 0, 1], to.effective_port()));
        let state = Arc::new(Mutex::new(State::default()));
        let forwarding = tokio::spawn(forward(Arc::clone(&front), to, Arc::clone(&state)));
        Self { addr, to, state, front, forwarding }
    }

    /// A URL with its port instead.
    pub(crate) fn instead_of(&self, uri: &NodeUri) -> NodeUri {
        uri.clone().with_port(self.addr.port())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on one of so many datagrams is lost.
    pub(crate) fn lose_one_in(&self, count: usize) {
        self.lock().lost_one_in = count;
    }

    /// Nothing passes any more on connections that are established; returns how many diallers that concerns.
    pub(crate) fn cut(&self) -> usize {
        let mut state = self.lock();
        let seen = std::mem::take(&mut state.seen);
        state.cut.extend(seen);
        state.flows.values_mut().filter_map(|flow| std::mem::take(&mut flow.is_open).then_some(())).count()
    }

    /// The listener sees every dialler at another address from now on, as after a NAT has forgotten them.
    pub(crate) async fn move_diallers(&self) {
        let diallers: Vec<SocketAddr> = self.lock().flows.keys().copied().collect();
        for dialler in diallers {
            let flow = Flow::open(&self.front, dialler, self.to, &self.state).await;
            self.lock().flows.insert(dialler, flow);
        }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.forwarding.abort();
        self.lock().flows.clear();
    }
}

impl Flow {
    async fn open(front: &Arc<UdpSocket>, dialler: SocketAddr, to: SocketAddr, state: &Arc<Mutex<State>>) -> Self {
        let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
        outside.connect(to).await.expect("connects");
        let (front, state, socket) = (Arc::clone(front), Arc::clone(state), Arc::clone(&outside));
        let back = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                // That the listener is closed for a moment is no reason to stop.
                let Ok(length) = socket.recv(&mut buffer).await else { continue };
                if state.lock().unwrap_or_else(PoisonError::into_inner).passes(&buffer[..length]) {
                    let _ = front.send_to(&buffer[..length], dialler).await;
                }
            }
        });
        Self { outside, back, is_open: true }
    }
}

async fn forward(front: Arc<UdpSocket>, to: SocketAddr, state: Arc<Mutex<State>>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, dialler)) = front.recv_from(&mut buffer).await else { continue };
        let outside = |state: &mut State| {
            let passes = state.passes(&buffer[..length]);
            let flow = state.flows.get_mut(&dialler)?;
            flow.is_open |= passes && length >= PACKET_BYTES_MIN;
            Some((passes, Arc::clone(&flow.outside)))
        };
        let known = outside(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        let (passes, socket) = match known {
            Some(known) => known,
            None => {
                let mut flow = Flow::open(&front, dialler, to, &state).await;
                flow.is_open = length >= PACKET_BYTES_MIN;
                let socket = Arc::clone(&flow.outside);
                state.lock().unwrap_or_else(PoisonError::into_inner).flows.insert(dialler, flow);
                (true, socket)
            }
        };
        if passes {
            let _ = socket.send(&buffer[..length]).await;
        }
    }
}
