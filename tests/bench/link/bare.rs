//! Baselines: the same bytes over the same kind of socket with bare tokio, without anything of ours.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::bed::{SMALL_FRAME_BYTES, rate};

/// One write of a copy.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 256 * 1024;

/// A server that returns what it gets.
pub(crate) async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true).expect("a TCP socket");
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count) = stream.read(&mut buffer).await {
                    if count == 0 || stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

/// A connection to it.
pub(crate) struct Echo {
    stream: TcpStream,
}

impl Echo {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("connects");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream }
    }

    /// One message there and back, as large as a small request.
    pub(crate) async fn round_trip(&mut self) {
        let request = [7; SMALL_FRAME_BYTES];
        let mut reply = [0; SMALL_FRAME_BYTES];
        self.stream.write_all(&request).await.expect("writes");
        self.stream.read_exact(&mut reply).await.expect("reads");
    }
}

/// Round trips of one caller, in microseconds.
pub(crate) async fn round_trips(duration: Duration) -> Vec<f64> {
    let addr = echo_server().await;
    // In a task of its own, as the callers of the cluster are.
    tokio::spawn(async move {
        let mut echo = Echo::connect(addr).await;
        let mut samples = Vec::new();
        let end = Instant::now() + duration;
        while Instant::now() < end {
            let sent = Instant::now();
            echo.round_trip().await;
            samples.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        samples
    })
    .await
    .expect("no panic")
}

/// Messages per second of as many connections as callers, each with one message under way: what the sockets do without any protocol.
pub(crate) async fn echo_rate(callers: usize, duration: Duration) -> f64 {
    let addr = echo_server().await;
    let mut connections = Vec::new();
    for _ in 0..callers {
        connections.push(Arc::new(Mutex::new(Echo::connect(addr).await)));
    }
    rate(callers, duration, |number| {
        let echo = Arc::clone(&connections[number]);
        move || {
            let echo = Arc::clone(&echo);
            async move { echo.lock().await.round_trip().await }
        }
    })
    .await
}

/// Messages per second in one direction, each written and read by itself: what telling events costs at least.
pub(crate) async fn one_way_rate(duration: Duration) -> f64 {
    let (mut near, mut far) = socket_pair().await;
    let reading = tokio::spawn(async move {
        let mut message = [0; SMALL_FRAME_BYTES];
        let mut count = 0_u64;
        while far.read_exact(&mut message).await.is_ok() {
            count += 1;
        }
        count
    });
    let started = Instant::now();
    tokio::spawn(async move {
        while started.elapsed() < duration {
            near.write_all(&[7; SMALL_FRAME_BYTES]).await.expect("writes");
        }
    })
    .await
    .expect("no panic");
    let count = reading.await.expect("no panic");
    count as f64 / started.elapsed().as_secs_f64()
}

/// MiB/s of a copy over one connection of this transport.
pub(crate) async fn copy_rate(transport: &str, duration: Duration) -> f64 {
    let (near, far) = socket_pair().await;
    match transport {
        "tcp" => copy(near, far, duration).await,
        "tls" => {
            let (near, far) = tls_pair(near, far).await;
            copy(near, far, duration).await
        }
        "ws" => ws_copy(near, far, duration).await,
        other => unreachable!("no baseline for {other}"),
    }
}

pub(crate) fn mebibytes(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64() / 1_048_576.0
}

async fn copy(
    mut writer: impl AsyncWriteExt + Unpin + Send + 'static,
    mut reader: impl AsyncReadExt + Unpin + Send + 'static,
    duration: Duration,
) -> f64 {
    let started = Instant::now();
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; READ_BYTES];
        let mut total = 0_u64;
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return total,
                Ok(count) => total += count as u64,
            }
        }
    });
    tokio::spawn(async move {
        let chunk = vec![7; CHUNK_BYTES];
        while started.elapsed() < duration {
            writer.write_all(&chunk).await.expect("writes");
        }
        writer.shutdown().await.expect("shuts down");
    })
    .await
    .expect("no panic");
    mebibytes(reading.await.expect("no panic"), started)
}

async fn ws_copy(near: TcpStream, far: TcpStream, duration: Duration) -> f64 {
    // The listener sends, as a control node does: its messages are not masked.
    let mut writer = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
    let mut reader = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    let started = Instant::now();
    let reading = tokio::spawn(async move {
        let mut total = 0_u64;
        while let Some(Ok(message)) = reader.next().await {
            if message.is_close() {
                break;
            }
            total += message.len() as u64;
        }
        total
    });
    tokio::spawn(async move {
        let chunk = bytes::Bytes::from(vec![7; CHUNK_BYTES]);
        while started.elapsed() < duration {
            writer.send(Message::Binary(chunk.clone())).await.expect("writes");
        }
        // Answered by a reader that goes away.
        let _ = writer.close(None).await;
    })
    .await
    .expect("no panic");
    mebibytes(reading.await.expect("no panic"), started)
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (near, far) = (near.expect("connects"), far.expect("accepts").0);
    near.set_nodelay(true).expect("a TCP socket");
    far.set_nodelay(true).expect("a TCP socket");
    (near, far)
}

fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["nkcluster".to_owned()]).expect("a certificate");
    (made.cert.der().clone(), PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into())
}

/// TLS as we use it, without anything of ours: TLS 1.3, a trusted self-signed certificate, no resumption.
pub(crate) fn tls() -> (TlsAcceptor, TlsConnector) {
    let (acceptor, certificate) = tls_acceptor();
    (acceptor, tls_connector(certificate))
}

/// The listening side, and the certificate that the other one has to trust.
pub(crate) fn tls_acceptor() -> (TlsAcceptor, CertificateDer<'static>) {
    let (certificate, key) = certificate();
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("key and certificate belong together");
    server.send_tls13_tickets = 0;
    (TlsAcceptor::from(Arc::new(server)), certificate)
}

/// The dialling side.
pub(crate) fn tls_connector(certificate: CertificateDer<'static>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    let mut client = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled();
    TlsConnector::from(Arc::new(client))
}

async fn tls_pair(
    near: TcpStream,
    far: TcpStream,
) -> (tokio_rustls::client::TlsStream<TcpStream>, tokio_rustls::server::TlsStream<TcpStream>) {
    let (acceptor, connector) = tls();
    let (near, far) = tokio::join!(connector.connect(server_name(), near), acceptor.accept(far));
    (near.expect("TLS"), far.expect("TLS"))
}

/// The name that the certificate of the baselines is for.
pub(crate) fn server_name() -> rustls::pki_types::ServerName<'static> {
    "nkcluster".try_into().expect("a valid name")
}

/// TCP and TLS handshakes per second, both ends in this process.
pub(crate) async fn tls_handshakes(diallers: usize, duration: Duration) -> f64 {
    let (acceptor, connector) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    let accepting = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    // Until the dialler closes.
                    let _ = stream.read_u8().await;
                }
            });
        }
    });
    let handshakes = rate(diallers, duration, |_| {
        let connector = connector.clone();
        move || {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(addr).await.expect("connects");
                drop(connector.connect(server_name(), stream).await.expect("TLS"));
            }
        }
    })
    .await;
    accepting.abort();
    handshakes
}
