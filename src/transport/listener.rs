//! Where connections arrive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::error::{Error, ErrorCode, Result};
use crate::transport::memory::{MemoryListener, memory_name};
use crate::transport::proxy_protocol::Behind;
use crate::transport::target::{lookup, machine_name};
use crate::transport::{CONNECT_TIMEOUT, ListenOptions, Wire, quic, tcp, tls, unsupported, ws};
use crate::types::{Binding, Host, NodeUri, Secret, Transport, UriOptions};

/// Pause of the accept loop when the system has no more sockets.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// An open port.
#[derive(Debug)]
pub struct Listener {
    transport: Transport,
    uri: NodeUri,
    binding: Binding,
    password: Option<Secret>,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp { listener: TcpListener, behind: Option<Behind>, upper: Upper },
    Memory(MemoryListener),
    Quic(Box<quic::Acceptor>),
}

/// What lies over TCP.
#[derive(Clone, Debug, Default)]
struct Upper {
    tls: Option<Arc<tls::Acceptor>>,
    ws: Option<Arc<ws::Rules>>,
}

impl Listener {
    /// Opens the port of a URL.
    ///
    /// # Errors
    /// `cannot_bind` with the address and the system's reason, `invalid_config` if a file of the `tls_*` options cannot be used,
    /// `unsupported_transport`.
    pub async fn bind(uri: &NodeUri, options: &ListenOptions) -> Result<Self> {
        let transport = uri.effective_transport();
        match transport {
            Transport::Tcp | Transport::Tls | Transport::Ws | Transport::Wss => Self::bind_tcp(uri, transport, options).await,
            Transport::Memory => {
                let net = options.memory.as_ref().ok_or_else(|| cannot_bind(uri, "there is no memory network here"))?;
                let listener = net.listen(&memory_name(uri)).map_err(|error| cannot_bind(uri, error))?;
                let mut real = NodeUri::new(uri.host().clone(), Some(transport));
                if let Some(port) = uri.port() {
                    real = real.with_port(port);
                }
                Ok(Self {
                    transport,
                    uri: real,
                    binding: uri.options().binding.unwrap_or_default(),
                    password: uri.options().password.clone(),
                    socket: Socket::Memory(listener),
                })
            }
            Transport::Quic => Self::bind_quic(uri, options).await,
            Transport::Sctp => Err(unsupported(transport)),
        }
    }

    async fn bind_quic(uri: &NodeUri, options: &ListenOptions) -> Result<Self> {
        let prepared = quic::Acceptor::prepare(options.tls.for_uri(uri.options()), options.state_dir.clone()).await?;
        let acceptor = first_own(uri, |addr| quic::Acceptor::bind(addr, &prepared)).await?;
        let real = NodeUri::socket_uri(Transport::Quic, tcp::reachable(acceptor.local()));
        let (binding, password) = (uri.options().binding.unwrap_or_default(), uri.options().password.clone());
        Ok(Self { transport: Transport::Quic, uri: real, binding, password, socket: Socket::Quic(Box::new(acceptor)) })
    }

    async fn bind_tcp(uri: &NodeUri, transport: Transport, options: &ListenOptions) -> Result<Self> {
        let mut upper = Upper::default();
        if let Transport::Tls | Transport::Wss = transport {
            let acceptor = tls::Acceptor::new(options.tls.for_uri(uri.options()), options.state_dir.clone()).await?;
            upper.tls = Some(Arc::new(acceptor));
        }
        if let Transport::Ws | Transport::Wss = transport {
            upper.ws = Some(Arc::new(ws::Rules::new(uri, &options.allowed_origins)?));
        }
        let (local, listener) =
            first_own(uri, |addr| tcp::listen(addr).and_then(|listener| Ok((listener.local_addr()?, listener)))).await?;
        let mut real = NodeUri::socket_uri(transport, tcp::reachable(local));
        if upper.ws.is_some() {
            let ws_proto = uri.options().ws_proto.clone();
            real = real.with_path_of(uri).with_options(UriOptions { ws_proto, ..UriOptions::default() });
        }
        let behind = Some(options.trusted_proxies.clone()).filter(|trusted| !trusted.is_empty()).map(Behind::new);
        let binding = uri.options().binding.unwrap_or_default();
        let password = uri.options().password.clone();
        Ok(Self { transport, uri: real, binding, password, socket: Socket::Tcp { listener, behind, upper } })
    }

    /// How connections arrive.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Where others reach it, with the real port: `nkcluster://127.0.0.1:15004;transport=tcp`. A listener on all addresses names the one of the route
    /// to the world.
    pub fn uri(&self) -> &NodeUri {
        &self.uri
    }

    /// The next connection, before anything but the word of a trusted proxy was read from it. Never fails: what is wrong with one connection concerns
    /// that one only, and when the system runs out of sockets it waits a moment. Dropping the future loses nothing.
    pub async fn accept(&self) -> Incoming {
        let arrived =
            |remote, kind| Incoming { transport: self.transport, remote, binding: self.binding, password: self.password.clone(), kind };
        loop {
            let (accepted, upper) = match &self.socket {
                Socket::Memory(listener) => return arrived(None, Kind::Memory(listener.accept().await)),
                Socket::Quic(acceptor) => {
                    let connection = acceptor.accept().await;
                    return arrived(Some(connection.remote()), Kind::Quic(Box::new(connection)));
                }
                Socket::Tcp { listener, behind: None, upper } => (listener.accept().await, upper),
                Socket::Tcp { listener, behind: Some(behind), upper } => (behind.accept(listener).await, upper),
            };
            match accepted {
                Ok((stream, addr)) => return arrived(Some(addr), Kind::Tcp { stream, addr, upper: upper.clone() }),
                Err(error) => self.pause(error).await,
            }
        }
    }

    /// Reads the files of the `tls_*` options again, for the connections to come; those that are open stay as they are. Without TLS nothing happens.
    ///
    /// # Errors
    /// `invalid_config`, naming option and file: then the old certificate stays in use.
    pub async fn reload(&self) -> Result<()> {
        match &self.socket {
            Socket::Tcp { upper: Upper { tls: Some(tls), .. }, .. } => tls.reload().await,
            Socket::Quic(acceptor) => acceptor.reload().await,
            Socket::Tcp { .. } | Socket::Memory(_) => Ok(()),
        }
    }

    async fn pause(&self, error: io::Error) {
        // The peer was gone before it was accepted: nothing to wait for.
        let its_own = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
        if !its_own.contains(&error.kind()) {
            tracing::warn!(listener = %self.uri, %error, "cannot accept connections, trying again");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
    }
}

/// A connection that has arrived, before TLS.
#[derive(Debug)]
pub struct Incoming {
    transport: Transport,
    remote: Option<SocketAddr>,
    binding: Binding,
    password: Option<Secret>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp { stream: TcpStream, addr: SocketAddr, upper: Upper },
    Memory(Wire),
    Quic(Box<quic::Arrived>),
}

impl Incoming {
    /// Address of the peer, if the transport has any; behind a trusted proxy that of the real peer.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// The peer, as shown to people: `tcp:127.0.0.1:15004`.
    pub fn remote(&self) -> String {
        match &self.kind {
            Kind::Tcp { addr, .. } => tcp::shown(self.transport, *addr),
            Kind::Quic(connection) => tcp::shown(self.transport, connection.remote()),
            Kind::Memory(wire) => wire.facts().remote.clone(),
        }
    }

    /// What the URL of the listener says about channel binding: `binding=off` where TLS ends at a balancer in front of it.
    pub fn binding(&self) -> Binding {
        self.binding
    }

    /// The password in the URL of the listener, instead of the common one.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// Waits for the first byte of the peer, where that can be seen before it is read; whether it could. The caller bounds the time.
    pub async fn has_spoken(&mut self) -> bool {
        match &self.kind {
            // One that has gone is found out by whoever reads.
            Kind::Tcp { stream, .. } => stream.readable().await.is_ok(),
            // Its first packet has brought it here.
            Kind::Quic(_) => true,
            Kind::Memory(_) => false,
        }
    }

    /// Makes it a wire, by the TLS handshake and the WebSocket upgrade where the listener wants them. The caller bounds the time.
    ///
    /// # Errors
    /// `tls_error`; `protocol_error` if the upgrade was refused; `connection_failed` if the peer has gone.
    pub async fn into_wire(self) -> Result<Wire> {
        let (stream, addr, Upper { tls, ws }) = match self.kind {
            Kind::Memory(wire) => return Ok(wire),
            Kind::Quic(connection) => return connection.into_wire().await,
            Kind::Tcp { stream, addr, upper } => (stream, addr, upper),
        };
        tcp::prepare(&stream).map_err(|error| Error::new(ErrorCode::ConnectionFailed, error.to_string()))?;
        let mut facts = tcp::facts(self.transport, &stream, tcp::shown(self.transport, addr), Some(addr));
        match (tls, ws) {
            (None, None) => Ok(Wire::tcp(stream, facts)),
            (None, Some(rules)) => Ok(Wire::new(ws::accept(stream, &rules).await?, facts)),
            (Some(tls), None) => {
                let stream = tls.accept(stream, &mut facts).await?;
                Ok(Wire::tls(Box::new(stream), facts))
            }
            (Some(tls), Some(rules)) => {
                let stream = Box::new(tls.accept(stream, &mut facts).await?);
                Ok(Wire::new(ws::accept(stream, &rules).await?, facts))
            }
        }
    }
}

/// A name stands for one listener: the first of its addresses that is ours.
async fn first_own<T>(uri: &NodeUri, open: impl Fn(SocketAddr) -> io::Result<T>) -> Result<T> {
    let port = uri.effective_port();
    let addrs = match (uri.host().bind_ip(), uri.host()) {
        (Some(ip), _) => vec![SocketAddr::new(ip, port)],
        (None, Host::Name(name)) => lookup(name, port, CONNECT_TIMEOUT).await.map_err(|error| cannot_bind(uri, error))?,
        (None, _) => lookup(&machine_name(), port, CONNECT_TIMEOUT).await.map_err(|error| cannot_bind(uri, error))?,
    };
    let mut reason = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for addr in addrs {
        match open(addr) {
            Ok(socket) => return Ok(socket),
            Err(error) => reason = error,
        }
    }
    Err(cannot_bind(uri, reason))
}

fn cannot_bind(uri: &NodeUri, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::CannotBind, format!("cannot listen on {uri}: {reason}"))
}
