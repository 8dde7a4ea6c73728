//! What stands between two nodes on real sockets: relays, balancers that end TLS, HTTP proxies.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nkcluster::types::NodeUri;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What becomes of a connection on its way.
#[derive(Clone, Default)]
pub(crate) struct Way {
    /// TLS ends here.
    pub(crate) tls: Option<TlsAcceptor>,
    /// It is an HTTP proxy: the host, whatever its name, is this machine.
    pub(crate) is_proxy: bool,
    /// What the listener is told first.
    pub(crate) prefix: &'static [u8],
    /// Bytes arrive one by one.
    pub(crate) is_slow: bool,
}

/// Listens on a port of its own and forwards to another.
pub(crate) struct Between {
    pub(crate) addr: SocketAddr,
    accepting: JoinHandle<()>,
    links: Links,
}

type Links = Arc<Mutex<Vec<JoinHandle<std::io::Result<()>>>>>;

impl Between {
    pub(crate) async fn start(to: &NodeUri, way: Way) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let links = Links::default();
        let (kept, port) = (Arc::clone(&links), to.effective_port());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let link = tokio::spawn(forward(stream, port, way.clone()));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(link);
            }
        });
        Self { addr, accepting, links }
    }

    /// A URL with its port instead.
    pub(crate) fn instead_of(&self, uri: &NodeUri) -> NodeUri {
        uri.clone().with_port(self.addr.port())
    }

    fn take(&self) -> Vec<JoinHandle<std::io::Result<()>>> {
        std::mem::take(&mut *self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Cuts every connection that is open; returns how many there were. Afterwards nothing passes on them any more.
    pub(crate) async fn cut(&self) -> usize {
        let mut open = 0;
        for link in self.take() {
            link.abort();
            open += usize::from(link.await.is_err_and(|error| error.is_cancelled()));
        }
        open
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.accepting.abort();
        self.take().iter().for_each(JoinHandle::abort);
    }
}

async fn forward(mut stream: TcpStream, mut port: u16, way: Way) -> std::io::Result<()> {
    if way.is_proxy {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).expect("text");
        let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).expect("a tunnel");
        port = to.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    }
    let mut to = TcpStream::connect(("127.0.0.1", port)).await?;
    to.write_all(way.prefix).await?;
    match way.tls {
        None => both_ways(stream, to, way.is_slow).await,
        Some(tls) => both_ways(tls.accept(stream).await?, to, way.is_slow).await,
    }
}

async fn both_ways(mut a: impl AsyncRead + AsyncWrite + Unpin, mut b: TcpStream, is_slow: bool) -> std::io::Result<()> {
    if !is_slow {
        return tokio::io::copy_bidirectional(&mut a, &mut b).await.map(drop);
    }
    let (a_reads, a_writes) = tokio::io::split(a);
    let (b_reads, b_writes) = tokio::io::split(b);
    tokio::try_join!(drip(a_reads, b_writes), drip(b_reads, a_writes)).map(drop)
}

async fn drip(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    loop {
        let byte = from.read_u8().await?;
        to.write_u8(byte).await?;
        to.flush().await?;
        tokio::task::yield_now().await;
    }
}

/// A certificate for `localhost`, whose issuer is in a file.
pub(crate) struct Authority {
    pub(crate) ca: PathBuf,
    pub(crate) acceptor: TlsAcceptor,
}

impl Authority {
    pub(crate) fn new(dir: &Path) -> Self {
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("signs");
        let issuer = rcgen::Issuer::new(params, ca_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &issuer).expect("signs");
        let path = dir.join("ca.pem");
        std::fs::write(&path, ca.pem()).expect("writes");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a pair");
        Self { ca: path, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }
}
