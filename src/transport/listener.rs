//! Where connections arrive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::error::{Error, ErrorCode, Result};
use crate::transport::memory::{MemoryListener, memory_name};
use crate::transport::target::{lookup, machine_name};
use crate::transport::{CONNECT_TIMEOUT, ListenOptions, Wire, tcp, tls, unsupported};
use crate::types::{Binding, Host, NodeUri, Secret, Transport};

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
    Tcp { listener: TcpListener, tls: Option<Arc<tls::Acceptor>> },
    Memory(MemoryListener),
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
            Transport::Tcp => Self::bind_tcp(uri, transport, None).await,
            Transport::Tls => {
                let acceptor = tls::Acceptor::new(options.tls.for_uri(uri.options()), options.state_dir.clone()).await?;
                Self::bind_tcp(uri, transport, Some(Arc::new(acceptor))).await
            }
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
            Transport::Sctp | Transport::Ws | Transport::Wss | Transport::Quic => Err(unsupported(transport)),
        }
    }

    async fn bind_tcp(uri: &NodeUri, transport: Transport, tls: Option<Arc<tls::Acceptor>>) -> Result<Self> {
        let port = uri.effective_port();
        let addrs = match (uri.host().bind_ip(), uri.host()) {
            (Some(ip), _) => vec![SocketAddr::new(ip, port)],
            (None, Host::Name(name)) => lookup(name, port, CONNECT_TIMEOUT).await.map_err(|error| cannot_bind(uri, error))?,
            (None, _) => lookup(&machine_name(), port, CONNECT_TIMEOUT).await.map_err(|error| cannot_bind(uri, error))?,
        };
        // A name stands for one listener: the first of its addresses that is ours.
        let mut reason = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for addr in addrs {
            match tcp::listen(addr).and_then(|listener| Ok((listener.local_addr()?, listener))) {
                Ok((local, listener)) => {
                    let real = NodeUri::socket_uri(transport, tcp::reachable(local));
                    let binding = uri.options().binding.unwrap_or_default();
                    let password = uri.options().password.clone();
                    return Ok(Self { transport, uri: real, binding, password, socket: Socket::Tcp { listener, tls } });
                }
                Err(error) => reason = error,
            }
        }
        Err(cannot_bind(uri, reason))
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

    /// The next connection, before anything was read from it. Never fails: what is wrong with one connection concerns that one only, and when the
    /// system runs out of sockets it waits a moment. Dropping the future loses nothing.
    pub async fn accept(&self) -> Incoming {
        let arrived = |remote, kind| Incoming { remote, binding: self.binding, password: self.password.clone(), kind };
        loop {
            match &self.socket {
                Socket::Memory(listener) => return arrived(None, Kind::Memory(listener.accept().await)),
                Socket::Tcp { listener, tls } => match listener.accept().await {
                    Ok((stream, addr)) => {
                        let kind = Kind::Tcp { stream, addr, tls: tls.clone() };
                        return arrived(Some(addr), kind);
                    }
                    Err(error) => self.pause(error).await,
                },
            }
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
    remote: Option<SocketAddr>,
    binding: Binding,
    password: Option<Secret>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp { stream: TcpStream, addr: SocketAddr, tls: Option<Arc<tls::Acceptor>> },
    Memory(Wire),
}

impl Incoming {
    /// Address of the peer, if the transport has any.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// The peer, as shown to people: `tcp:127.0.0.1:15004`.
    pub fn remote(&self) -> String {
        match &self.kind {
            Kind::Tcp { addr, tls, .. } => tcp::shown(if tls.is_some() { Transport::Tls } else { Transport::Tcp }, *addr),
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

    /// Makes it a wire, by the TLS handshake where the listener is one of TLS. The caller bounds the time.
    ///
    /// # Errors
    /// `tls_error`, or `connection_failed` if the peer has gone.
    pub async fn into_wire(self) -> Result<Wire> {
        match self.kind {
            Kind::Memory(wire) => Ok(wire),
            Kind::Tcp { stream, addr, tls } => {
                tcp::prepare(&stream).map_err(|error| Error::new(ErrorCode::ConnectionFailed, error.to_string()))?;
                match tls {
                    Some(acceptor) => acceptor.accept(stream, addr).await,
                    None => {
                        let facts = tcp::facts(Transport::Tcp, &stream, addr);
                        Ok(Wire::tcp(stream, facts))
                    }
                }
            }
        }
    }
}

fn cannot_bind(uri: &NodeUri, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::CannotBind, format!("cannot listen on {uri}: {reason}"))
}
