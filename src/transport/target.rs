//! From a URL to an open wire.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::{Error, ErrorCode, Result};
use crate::transport::discovery::Found;
use crate::transport::memory::memory_name;
use crate::transport::proxy::Tunnel;
use crate::transport::{DialOptions, Step, Stream, Wire, WireFacts, quic, tcp, tls, unsupported, ws};
use crate::types::{Host, NodeUri, Transport};

/// Most time for each of TLS and the WebSocket upgrade.
const OPENING_MAX: Duration = Duration::from_secs(5);
/// Most time for a connection and TLS over QUIC, where they are one.
const QUIC_MAX: Duration = Duration::from_secs(10);
/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 32;

/// One address behind a URL.
#[derive(Clone, Debug)]
pub struct Target {
    /// The URL that led here, with the transport and the port that DNS chose.
    pub uri: NodeUri,
    /// Its transport.
    pub transport: Transport,
    address: Address,
    steps: Vec<Step>,
    /// What to ask when it is to be found again.
    lasting: NodeUri,
}

impl Target {
    /// The address, or what the proxy is asked for, or the name in the simulated network.
    pub fn address(&self) -> String {
        match &self.address {
            Address::Socket(addr) => addr.to_string(),
            Address::Tunnel(tunnel) => tunnel.to_string(),
            Address::Memory(name) => name.clone(),
        }
    }

    /// The proxy in between, without its credentials.
    pub fn proxy(&self) -> Option<String> {
        match &self.address {
            Address::Tunnel(tunnel) => Some(tunnel.proxy().to_string()),
            Address::Socket(_) | Address::Memory(_) => None,
        }
    }

    /// How DNS led here; nothing where it was not asked.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The URL by which to look for the same again: DNS may name another host or port then, but not another transport.
    pub fn lasting_uri(&self) -> &NodeUri {
        &self.lasting
    }

    /// Whether this version can dial it. What DNS names but we cannot dial is kept, to be told, and fails with `unsupported_transport`.
    pub fn is_supported(&self) -> bool {
        is_supported(self.transport)
    }
}

fn is_supported(transport: Transport) -> bool {
    match transport {
        Transport::Tcp | Transport::Tls | Transport::Ws | Transport::Wss | Transport::Quic | Transport::Memory => true,
        Transport::Sctp => false,
    }
}

#[derive(Clone, Debug)]
enum Address {
    Socket(SocketAddr),
    /// What is behind it the proxy resolves.
    Tunnel(Arc<Tunnel>),
    Memory(String),
}

impl fmt::Display for Target {
    /// As a link over it would be shown: `tcp:127.0.0.1:15004`, and the proxy if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Socket(addr) => write!(f, "{}:{addr}", self.transport),
            Address::Tunnel(tunnel) => write!(f, "{}:{tunnel} through {}", self.transport, tunnel.proxy()),
            Address::Memory(name) => write!(f, "{}:{name}", self.transport),
        }
    }
}

/// The addresses of a URL, in the order in which to try them. DNS is asked for what the URL leaves open (checklist N3.3 to N3.6); addresses of one host are
/// shuffled within each family. Through a proxy there is one address for each host, which the proxy resolves.
///
/// # Errors
/// `unsupported_transport`; `invalid_uri` for hosts that are for listeners only; `no_connections` if the name cannot be resolved in time;
/// `invalid_config` if the environment names a proxy that is none.
pub async fn resolve(uri: &NodeUri, options: &DialOptions) -> Result<Vec<Target>> {
    let transport = uri.effective_transport();
    let target = |address| Target { uri: uri.clone(), transport, address, steps: Vec::new(), lasting: uri.clone() };
    if transport == Transport::Memory {
        return Ok(vec![target(Address::Memory(memory_name(uri)))]);
    }
    if !is_supported(transport) {
        return Err(unsupported(transport));
    }
    if let Host::All | Host::All6 = uri.host() {
        return Err(Error::new(ErrorCode::InvalidUri, format!("{uri}: host `{}` is for listeners, name a node", uri.host())));
    }
    if let Some(proxy) = options.proxies.choose(uri)? {
        if transport == Transport::Quic {
            let what = format!("{}: HTTP proxies carry no quic, use wss", uri.clone().without_secrets());
            return Err(Error::new(ErrorCode::InvalidConfig, what));
        }
        return Ok(vec![target(Address::Tunnel(Arc::new(Tunnel::new(proxy, uri))))]);
    }
    let port = uri.effective_port();
    let limit = uri.options().connect_timeout.unwrap_or(options.connect_timeout);
    let socket = |ip: IpAddr| target(Address::Socket(SocketAddr::new(ip, port)));
    match uri.host() {
        Host::Ip(ip) => Ok(vec![socket(*ip)]),
        Host::Localhost => Ok(vec![socket(Ipv4Addr::LOCALHOST.into()), socket(Ipv6Addr::LOCALHOST.into())]),
        Host::Node | Host::All | Host::All6 => {
            let addrs = lookup(&machine_name(), port, limit).await?;
            Ok(addrs.into_iter().map(|addr| socket(addr.ip())).collect())
        }
        Host::Name(_) => discover(uri, options, limit).await,
    }
}

/// Asks DNS.
async fn discover(uri: &NodeUri, options: &DialOptions, limit: Duration) -> Result<Vec<Target>> {
    let mut targets: Vec<Target> = Vec::new();
    for Found { transport, host, addr, mut steps } in options.resolver.find(uri, limit).await? {
        let chosen = uri.clone().with_transport(transport).with_port(addr.port());
        // What was left to DNS stays with DNS.
        let lasting = if uri.asks_naptr() { uri.clone().with_transport(transport) } else { uri.clone() };
        let address = match options.proxies.choose(&chosen)? {
            None => Address::Socket(addr),
            Some(proxy) => {
                let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
                let tunnel = Tunnel::new(proxy, &chosen.clone().with_host(Host::Name(host)));
                let is_known = targets.iter().any(|known| known.transport == transport && known.address() == tunnel.to_string());
                if is_known {
                    continue;
                }
                // The proxy looks up the address itself.
                steps.pop();
                Address::Tunnel(Arc::new(tunnel))
            }
        };
        targets.push(Target { uri: chosen, transport, address, steps, lasting });
    }
    Ok(targets)
}

/// Opens a wire to one address: the tunnel of a proxy, TLS and the WebSocket upgrade included.
///
/// # Errors
/// `unsupported_transport`; `no_connections` if nobody answers in time, a proxy or the server refuses, or the address cannot be tried as configured; `tls_error` if TLS fails;
/// `protocol_error` if something else answers the WebSocket upgrade; `invalid_config` if a file of the `tls_*` options cannot be used.
pub async fn connect(target: &Target, options: &DialOptions) -> Result<Wire> {
    if !target.is_supported() {
        return Err(unsupported(target.transport));
    }
    let limit = target.uri.options().connect_timeout.unwrap_or(options.connect_timeout);
    let ip = match &target.address {
        Address::Memory(name) => {
            let node = options.memory.as_ref().ok_or_else(|| Error::new(ErrorCode::NoConnections, "there is no memory network here"))?;
            return node.dial(name);
        }
        Address::Socket(addr) => Some(addr.ip()),
        Address::Tunnel(_) => None,
    };
    if let (Transport::Quic, Address::Socket(addr)) = (target.transport, &target.address) {
        let dialler = quic::Dialler::new(&target.uri, *addr, options.tls.for_uri(target.uri.options())).await?;
        return dialler.connect(&options.quic, limit.min(QUIC_MAX)).await;
    }
    // Configuration first: a missing file must not cost the peer a connection.
    let tls = match target.transport {
        Transport::Tls | Transport::Wss => Some(tls::Dialler::new(&target.uri, ip, options.tls.for_uri(target.uri.options())).await?),
        _ => None,
    };
    let upgrade = match target.transport {
        Transport::Ws | Transport::Wss => Some(ws::Request::new(&target.uri)?),
        _ => None,
    };
    let (stream, mut facts) = open(target, limit).await?;
    let opening = limit.min(OPENING_MAX);
    let Some(tls) = tls else {
        return match upgrade {
            None => Ok(Wire::tcp(stream, facts)),
            Some(request) => upgraded(stream, &request, facts, opening).await,
        };
    };
    let stream = match timeout(opening, tls.connect(stream, &mut facts)).await {
        Ok(connected) => Box::new(connected?),
        Err(_) => return Err(Error::new(ErrorCode::TlsError, "no answer to the TLS handshake")),
    };
    match upgrade {
        None => Ok(Wire::tls(stream, facts)),
        Some(request) => upgraded(stream, &request, facts, opening).await,
    }
}

async fn upgraded(stream: impl Stream, request: &ws::Request, facts: WireFacts, limit: Duration) -> Result<Wire> {
    match timeout(limit, ws::connect(stream, request)).await {
        Ok(connected) => Ok(Wire::new(connected?, facts)),
        Err(_) => Err(Error::new(ErrorCode::NoConnections, "no answer to the WebSocket upgrade")),
    }
}

/// A connection to the address, directly or through its proxy.
async fn open(target: &Target, limit: Duration) -> Result<(TcpStream, WireFacts)> {
    let addr = match &target.address {
        Address::Socket(addr) => *addr,
        Address::Tunnel(tunnel) => {
            let stream = tunnel.open(limit).await?;
            let remote = format!("{}:{tunnel}", target.transport);
            let facts = tcp::facts(target.transport, &stream, remote, None);
            return Ok((stream, facts));
        }
        Address::Memory(_) => return Err(Error::new(ErrorCode::Internal, "a memory link has no socket")),
    };
    match timeout(limit, tcp::connect(addr)).await {
        Ok(Ok(stream)) => {
            let facts = tcp::facts(target.transport, &stream, tcp::shown(target.transport, addr), Some(addr));
            Ok((stream, facts))
        }
        Ok(Err(error)) => Err(Error::new(ErrorCode::NoConnections, error.to_string())),
        Err(_) => Err(no_answer(limit)),
    }
}

/// Opens a wire to the first address of a URL that answers.
///
/// # Errors
/// Those of [`resolve`], else `no_connections` with the reason of each address, or the error itself where there is only one address.
pub async fn dial(uri: &NodeUri, options: &DialOptions) -> Result<Wire> {
    let targets = resolve(uri, options).await?;
    let mut reasons = Vec::new();
    for target in &targets {
        match connect(target, options).await {
            Ok(wire) => return Ok(wire),
            Err(error) if targets.len() == 1 => return Err(error.context(target)),
            Err(error) => reasons.push(format!("{target}: {error}")),
        }
    }
    Err(Error::new(ErrorCode::NoConnections, reasons.join("; ")))
}

/// Addresses of a name of this machine or of its surroundings, which the system knows: to listen on, or of a proxy. Bounded in number and time; both
/// families are asked, the system decides which comes first.
pub(super) async fn lookup(name: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>> {
    let failed = |reason: String| Error::new(ErrorCode::NoConnections, format!("cannot resolve {name}: {reason}"));
    let found = match timeout(limit, tokio::net::lookup_host((name, port))).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed(format!("no answer in {limit:?}"))),
    };
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for addr in found.take(ADDRESSES_MAX) {
        if !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    let Some(first) = addrs.first().copied() else {
        return Err(failed("it has no address".to_owned()));
    };
    addrs.shuffle(&mut rand::rng());
    addrs.sort_by_key(|addr| addr.is_ipv4() != first.is_ipv4());
    Ok(addrs)
}

/// The name of this machine, for host `node`.
pub(super) fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub(super) fn no_answer(limit: Duration) -> Error {
    Error::new(ErrorCode::NoConnections, format!("no answer in {limit:?}"))
}
