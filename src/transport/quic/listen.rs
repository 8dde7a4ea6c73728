//! Where QUIC connections arrive.
//!
//! Anybody can write any address on a datagram. A few peers at once may begin the TLS handshake without having shown that they are where they say
//! ([`UNVALIDATED_MAX`]); while there are so many, the others are asked to come again with a token that was sent to their address (Retry, RFC 9000 §8.1.2).
//! That costs them one round trip and us no memory, so a flood of invented addresses crowds out nobody. Answers to an address that is not validated have at
//! most three times the bytes that came from it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use futures_util::FutureExt as _;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};

use super::{Stream, bind, connection_error, facts, transport};
use crate::error::{Error, ErrorCode, Result};
use crate::transport::{CertificateCheck, TlsOptions, Wire, tls};

/// Connections of peers that may have lied about their address.
pub(super) const UNVALIDATED_MAX: usize = 32;
/// Connections that wait to be accepted, as the kernel keeps them for tcp; the next are not answered, and come again.
const BACKLOG: usize = 1024;
/// Bytes that one of them may have sent meanwhile, and all together.
const BACKLOG_BYTES_EACH: u64 = 16 * 1024;
const BACKLOG_BYTES: u64 = 4 * 1024 * 1024;

/// One socket, with the certificate that it shows. Files can be read again while it works.
pub(in crate::transport) struct Acceptor {
    endpoint: Endpoint,
    config: ServerConfig,
    local: SocketAddr,
    options: TlsOptions,
    state_dir: Option<PathBuf>,
    unvalidated: Arc<AtomicUsize>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("local", &self.local).finish_non_exhaustive()
    }
}

/// TLS of listeners, read from files; it does not depend on the address.
pub(in crate::transport) struct Prepared {
    tls: tls::ServerSide,
    options: TlsOptions,
    state_dir: Option<PathBuf>,
}

impl Acceptor {
    /// Reads the files of the `tls_*` options.
    pub(in crate::transport) async fn prepare(options: TlsOptions, state_dir: Option<PathBuf>) -> Result<Prepared> {
        let tls = tls::quic_server(&options, &state_dir).await?;
        Ok(Prepared { tls, options, state_dir })
    }

    /// Opens the socket.
    pub(in crate::transport) fn bind(addr: SocketAddr, prepared: &Prepared) -> io::Result<Self> {
        let Prepared { tls, options, state_dir } = prepared;
        let socket = bind(addr)?;
        let local = socket.local_addr()?;
        let mut config = ServerConfig::with_crypto(Arc::new(server_crypto(tls).map_err(io::Error::other)?));
        config
            .transport_config(transport(1))
            .max_incoming(BACKLOG)
            .incoming_buffer_size(BACKLOG_BYTES_EACH)
            .incoming_buffer_size_total(BACKLOG_BYTES);
        let endpoint = Endpoint::new(endpoint_config(tls, local), Some(config.clone()), socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, config, local, options: options.clone(), state_dir: state_dir.clone(), unvalidated: Arc::default() })
    }

    pub(in crate::transport) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Reads all files again, for the connections to come. If one of them cannot be used, everything stays as it was.
    pub(in crate::transport) async fn reload(&self) -> Result<()> {
        let tls = tls::quic_server(&self.options, &self.state_dir).await?;
        // Tokens that are under way stay good.
        let mut config = self.config.clone();
        config.crypto = Arc::new(server_crypto(&tls)?);
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// The next connection. Dropping the future loses nothing.
    pub(in crate::transport) async fn accept(&self) -> Arrived {
        loop {
            let Some(incoming) = self.endpoint.accept().await else {
                tracing::error!(local = %self.local, "the socket of a listener broke, nobody can connect here; restart the node");
                return std::future::pending().await;
            };
            let unvalidated = match incoming.remote_address_validated() {
                true => None,
                false => match Unvalidated::new(&self.unvalidated) {
                    Some(place) => Some(place),
                    None => {
                        // A peer without a token can always be asked for one.
                        if let Err(error) = incoming.retry() {
                            error.into_incoming().ignore();
                        }
                        continue;
                    }
                },
            };
            let check = tls::check(&self.options);
            return Arrived { incoming, unvalidated, local: self.local, check };
        }
    }
}

impl Drop for Acceptor {
    /// Connections go on, and need the socket; nobody new is let in meanwhile.
    fn drop(&mut self) {
        while let Some(Some(incoming)) = self.endpoint.accept().now_or_never() {
            incoming.refuse();
        }
        if self.endpoint.open_connections() == 0 {
            return;
        }
        // Without a runtime there are no connections either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let endpoint = self.endpoint.clone();
            // It ends with the last connection.
            runtime.spawn(async move {
                loop {
                    tokio::select! {
                        () = endpoint.wait_idle() => return,
                        incoming = endpoint.accept() => match incoming {
                            Some(incoming) => incoming.refuse(),
                            None => return,
                        },
                    }
                }
            });
        }
    }
}

/// The place of a peer that may have lied about its address; dropping it gives it back.
#[derive(Debug)]
struct Unvalidated(Arc<AtomicUsize>);

impl Unvalidated {
    fn new(count: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |count: usize| (count < UNVALIDATED_MAX).then_some(count + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Unvalidated {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that has arrived, before TLS. Dropped, the peer is refused.
pub(in crate::transport) struct Arrived {
    incoming: quinn::Incoming,
    unvalidated: Option<Unvalidated>,
    local: SocketAddr,
    check: CertificateCheck,
}

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrived").field("remote", &self.remote()).finish_non_exhaustive()
    }
}

impl Arrived {
    pub(in crate::transport) fn remote(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// The TLS handshake, and the link stream of the dialler.
    pub(in crate::transport) async fn into_wire(self) -> Result<Wire> {
        let Self { incoming, unvalidated, local, check } = self;
        let failed = |error| connection_error(&error, ErrorCode::ConnectionFailed);
        let connection = incoming.accept().map_err(failed)?.await.map_err(failed)?;
        // Whoever has finished the handshake reads what we send to its address.
        drop(unvalidated);
        let (send, recv) = connection.accept_bi().await.map_err(failed)?;
        let facts = facts(&connection, local, check)?;
        Ok(Wire::quic(Stream::new(connection, send, recv), facts))
    }
}

fn server_crypto(tls: &tls::ServerSide) -> Result<QuicServerConfig> {
    let failed = |error: &dyn fmt::Display| Error::new(ErrorCode::InvalidConfig, format!("quic: {error}"));
    QuicServerConfig::try_from(Arc::clone(&tls.config)).map_err(|error| failed(&error))
}

/// A process that was killed and listens again with the same certificate at the same address tells peers of the old one at once that it does not know them:
/// what such a reset is recognised by is made of the private key. Of the address too, since two sockets must not be able to speak for one another
/// (RFC 9000 §21.11).
fn endpoint_config(tls: &tls::ServerSide, local: SocketAddr) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, tls.secret.as_slice());
    let key = hmac::sign(&secret, format!("nkcluster quic reset {local}").as_bytes());
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())));
    config.cid_generator(|| Box::new(Ids));
    config
}

/// Names of connections that say nothing. Those of quinn carry a mark of the process, by which it ignores the ones of the process before.
struct Ids;

/// As many as quinn's.
const ID_BYTES: usize = 8;

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
