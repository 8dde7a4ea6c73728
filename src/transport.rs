//! Byte streams between nodes, whatever carries them.
//!
//! A [`Wire`] is an open stream with the facts that the handshake and the log need: which transport, who is at the other end, the exporter of its TLS
//! connection. [`resolve`] turns a URL into the addresses behind it, through DNS where it names a host (`discovery`), [`connect`] opens one of them, [`Listener`] hands out what arrives. No part of this
//! layer looks into messages or decides about trust.
//!
//! | module | carries links over |
//! |---|---|
//! | `tcp` | plain TCP |
//! | `tls` | TLS 1.3 (or 1.2 with extended master secret) over TCP; [`certificate`] has the files |
//! | `ws` | WebSocket over either of them |
//! | `quic` | QUIC over UDP, with streams beside the link for bulk data |
//! | [`memory`] | a simulated network within the process, whose links can be cut, frozen and delayed |
//!
//! Those over TCP may lead through the tunnel of an HTTP proxy (`proxy`), and arrive from a balancer that tells who the peer is (`proxy_protocol`).
//!
//! A listener never waits for a peer: [`Listener::accept`] returns as soon as there is a connection, and the TLS handshake and the WebSocket upgrade happen
//! in [`Incoming::into_wire`], in the task of that connection and under its limit of time.

mod ahead;
pub mod certificate;
mod discovery;
mod head;
mod listener;
pub mod memory;
mod proxy;
mod proxy_protocol;
mod quic;
mod split;
mod target;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod verify;
mod wire;
mod ws;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, ErrorCode};
use crate::types::{IpRange, Secret, TlsVerify, TlsVersion, Transport, UriOptions};

pub use discovery::{Resolver, Source, Step};
pub use listener::{Incoming, Listener};
pub use memory::{MemoryNet, MemoryNode};
pub use proxy::ProxyEnvironment;
pub use quic::{QuicSockets, SideStreams};
pub use target::{Target, connect, dial, resolve};
pub use wire::{CertificateCheck, ReadHalf, Stream, Wire, WireFacts, WriteHalf};

/// Time to open a connection, unless the configuration says otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a dialler brings along beside the URL.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// Most time for DNS and for each connection; `connect_timeout` of the URL has precedence.
    pub connect_timeout: Duration,
    /// TLS as configured for the node; the options of the URL have precedence.
    pub tls: TlsOptions,
    /// The HTTP proxies of the environment, for ws and wss; option `proxy` of the URL has precedence.
    pub proxies: ProxyEnvironment,
    /// Where QUIC is dialled from.
    pub quic: QuicSockets,
    /// Finds the addresses of names.
    pub resolver: Resolver,
    /// The simulated network and the own name in it, if there is one.
    pub memory: Option<MemoryNode>,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            connect_timeout: CONNECT_TIMEOUT,
            tls: TlsOptions::default(),
            proxies: ProxyEnvironment::default(),
            quic: QuicSockets::default(),
            resolver: Resolver::default(),
            memory: None,
        }
    }
}

/// What a listener brings along beside the URL.
#[derive(Clone, Debug, Default)]
pub struct ListenOptions {
    /// TLS as configured for the node; the options of the URL have precedence.
    pub tls: TlsOptions,
    /// Where the node keeps its own certificate; without it, and without `tls_certfile`, each start makes a new one.
    pub state_dir: Option<PathBuf>,
    /// Whose connections begin with the PROXY protocol, version 2.
    pub trusted_proxies: Vec<IpRange>,
    /// The web pages that may connect by ws and wss.
    pub allowed_origins: Arc<[String]>,
    /// The simulated network, if there is one.
    pub memory: Option<MemoryNet>,
}

impl From<&Config> for DialOptions {
    /// With the proxies of the environment of this process.
    fn from(config: &Config) -> Self {
        Self {
            connect_timeout: config.connect_timeout,
            tls: config.into(),
            proxies: ProxyEnvironment::of_process(),
            quic: QuicSockets::default(),
            resolver: Resolver::new(config.dns_servers.clone(), config.dns_cache_ttl),
            memory: None,
        }
    }
}

impl From<&Config> for ListenOptions {
    fn from(config: &Config) -> Self {
        Self {
            tls: config.into(),
            state_dir: Some(config.state_dir.clone()),
            trusted_proxies: config.trusted_proxies.clone(),
            allowed_origins: config.allowed_origins.as_slice().into(),
            memory: None,
        }
    }
}

/// The `tls_*` options.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// `tls_certfile`: own certificate chain, PEM. A listener without it uses its own self-signed one, a dialler shows none.
    pub certfile: Option<PathBuf>,
    /// `tls_keyfile`: own private key, PEM; if missing, it is looked for in `certfile`.
    pub keyfile: Option<PathBuf>,
    /// `tls_password`: of an encrypted private key (PKCS#8).
    pub password: Option<Secret>,
    /// `tls_cacertfile`: the certificates that we trust, PEM.
    pub cacertfile: Option<PathBuf>,
    /// `tls_verify`: how the certificate of the other side is checked. A listener that verifies asks for client certificates.
    pub verify: TlsVerify,
    /// `tls_depth`: most intermediate certificates; no limit of ours if `None`.
    pub depth: Option<u8>,
    /// `tls_versions`: empty means both 1.3 and 1.2. Within QUIC it is always 1.3.
    pub versions: Vec<TlsVersion>,
}

impl From<&Config> for TlsOptions {
    fn from(config: &Config) -> Self {
        Self {
            certfile: config.tls_certfile.clone(),
            keyfile: config.tls_keyfile.clone(),
            password: config.tls_password.clone(),
            cacertfile: config.tls_cacertfile.clone(),
            verify: config.tls_verify,
            depth: Some(config.tls_depth),
            versions: config.tls_versions.clone(),
        }
    }
}

impl TlsOptions {
    /// These options with those of a URL in front.
    #[must_use]
    pub fn for_uri(&self, uri: &UriOptions) -> Self {
        // Certificate, key and password belong together: a URL that names its own certificate does not get the node's key.
        let own = uri.tls_certfile.is_some();
        let or_node = |own_value: &Option<PathBuf>, value: &Option<PathBuf>| match own_value {
            Some(path) => Some(path.clone()),
            None if own => None,
            None => value.clone(),
        };
        Self {
            certfile: or_node(&uri.tls_certfile, &self.certfile),
            keyfile: or_node(&uri.tls_keyfile, &self.keyfile),
            password: uri.tls_password.clone().or_else(|| self.password.clone()),
            cacertfile: uri.tls_cacertfile.clone().or_else(|| self.cacertfile.clone()),
            verify: uri.tls_verify.unwrap_or(self.verify),
            depth: uri.tls_depth.or(self.depth),
            versions: uri.tls_versions.clone().unwrap_or_else(|| self.versions.clone()),
        }
    }
}

fn unsupported(transport: Transport) -> Error {
    Error::new(
        ErrorCode::UnsupportedTransport,
        format!("transport {transport} is not available in this version; use tcp, tls, ws, wss or quic"),
    )
}
