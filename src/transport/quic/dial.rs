//! From an address to a connection. All connections that a process dials share one socket for each family of addresses.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectError, Connecting, Endpoint, EndpointConfig, TokioRuntime};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{Stream, bind, connection_error, facts, transport};
use crate::error::{Error, ErrorCode, Result};
use crate::transport::target::no_answer;
use crate::transport::{CertificateCheck, TlsOptions, Wire, tls};
use crate::types::NodeUri;

/// The sockets from which QUIC is dialled, opened when they are needed. Clones are the same sockets.
#[derive(Clone, Default)]
pub struct QuicSockets {
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

impl fmt::Debug for QuicSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSockets").finish_non_exhaustive()
    }
}

impl QuicSockets {
    fn connect(&self, config: ClientConfig, addr: SocketAddr, name: &str) -> Result<(Endpoint, Connecting)> {
        let failed = |error: &dyn fmt::Display| Error::new(ErrorCode::NoConnections, error.to_string());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, any) = match addr {
            SocketAddr::V4(_) => (&mut open.v4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (&mut open.v6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        if let Some(endpoint) = kept {
            match endpoint.connect_with(config.clone(), addr, name) {
                // Its runtime is gone, or the system took the socket away.
                Err(ConnectError::EndpointStopping) => {}
                Ok(connecting) => return Ok((endpoint.clone(), connecting)),
                Err(error) => return Err(failed(&error)),
            }
        }
        let endpoint = bind(SocketAddr::new(any, 0))
            .and_then(|socket| Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)))
            .map_err(|error| failed(&error))?;
        let endpoint = kept.insert(endpoint);
        let connecting = endpoint.connect_with(config, addr, name).map_err(|error| failed(&error))?;
        Ok((endpoint.clone(), connecting))
    }
}

/// QUIC to one address that is to be dialled.
pub(in crate::transport) struct Dialler {
    config: ClientConfig,
    name: String,
    addr: SocketAddr,
    check: CertificateCheck,
}

impl Dialler {
    pub(in crate::transport) async fn new(uri: &NodeUri, addr: SocketAddr, options: TlsOptions) -> Result<Self> {
        let check = tls::check(&options);
        let (config, name) = tls::quic_client(uri, addr.ip(), options).await?;
        let crypto = QuicClientConfig::try_from(config)
            .map_err(|error| Error::new(ErrorCode::Internal, format!("TLS is not fit for QUIC: {error}")))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport(0));
        Ok(Self { config, name: name.to_str().into_owned(), addr, check })
    }

    /// # Errors
    /// `no_connections`, `tls_error`.
    pub(in crate::transport) async fn connect(self, sockets: &QuicSockets, limit: Duration) -> Result<Wire> {
        let Self { config, name, addr, check } = self;
        let failed = |error| connection_error(&error, ErrorCode::NoConnections);
        let open = async {
            let (endpoint, connecting) = sockets.connect(config, addr, &name)?;
            let connection = tokio::select! {
                biased;
                connected = connecting => connected.map_err(failed)?,
                error = refused(addr) => return Err(Error::new(ErrorCode::NoConnections, error.to_string())),
            };
            let (send, recv) = connection.open_bi().await.map_err(failed)?;
            let local = endpoint.local_addr().map_err(|error| Error::new(ErrorCode::NoConnections, error.to_string()))?;
            let facts = facts(&connection, local, check)?;
            Ok(Wire::quic(Stream::new(connection, send, recv), facts))
        };
        timeout(limit, open).await.unwrap_or_else(|_| Err(no_answer(limit)))
    }
}

/// Ends when the system at the address says that nobody listens there, so that nobody waits for an answer in vain. Only a socket with one peer is told that,
/// and QUIC has one for all: this one asks with a datagram that means nothing to QUIC.
async fn refused(addr: SocketAddr) -> io::Error {
    let ask = async {
        let any: IpAddr = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(addr).await?;
        socket.send(&[0]).await?;
        loop {
            // Whoever answers has not refused.
            socket.recv(&mut [0]).await?;
        }
    };
    let result: io::Result<()> = ask.await;
    match result {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
        _ => std::future::pending().await,
    }
}
