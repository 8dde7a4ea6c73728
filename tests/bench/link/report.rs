//! Rows of a bench, for people and as NDJSON; and bare TLS for baselines.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Collects rows; says at the end which are missing.
pub(crate) struct Report {
    json: Option<PathBuf>,
    names: Vec<String>,
}

impl Report {
    pub(crate) fn new() -> Self {
        println!("{:<14} {:>14} {:<6} {:>14} {:>7}", "row", "value", "unit", "baseline", "ratio");
        let json = std::env::var_os("NKCLUSTER_BENCH_JSON").map(|path| Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
        Self { json, names: Vec::new() }
    }

    /// One row; the ratio is value to baseline.
    pub(crate) fn row(&mut self, name: &str, value: f64, unit: &str, baseline: f64) {
        let ratio = value / baseline;
        println!("{name:<14} {value:>14.1} {unit:<6} {baseline:>14.1} {ratio:>7.2}");
        self.names.push(name.to_owned());
        if let Some(path) = &self.json {
            let row = serde_json::json!({ "name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio });
            let mut file = OpenOptions::new().create(true).append(true).open(path).expect("NKCLUSTER_BENCH_JSON can be written");
            writeln!(file, "{row}").expect("NKCLUSTER_BENCH_JSON can be written");
        }
    }

    /// Fails if a row is missing.
    pub(crate) fn finish(self, expected: &[&str]) {
        for name in expected {
            assert!(self.names.iter().any(|row| row == name), "the row {name} is missing");
        }
    }
}

fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["nkcluster".to_owned()]).expect("a certificate");
    (made.cert.der().clone(), PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into())
}

/// TLS as we use it, without anything of ours: TLS 1.3, a trusted self-signed certificate, no resumption.
fn tls() -> (TlsAcceptor, TlsConnector) {
    let (certificate, key) = certificate();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("key and certificate belong together");
    server.send_tls13_tickets = 0;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled();
    (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)))
}

/// Both ends of a TLS connection over a pair of sockets.
pub(crate) async fn bare_tls(near: TcpStream, far: TcpStream) -> (client::TlsStream<TcpStream>, server::TlsStream<TcpStream>) {
    let (acceptor, connector) = tls();
    let name = "nkcluster".try_into().expect("a valid name");
    let (near, far) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    (near.expect("TLS"), far.expect("TLS"))
}

/// A listener, and what both ends need for TLS.
pub(crate) async fn bare_tls_listener() -> (TcpListener, TlsAcceptor, TlsConnector) {
    let (acceptor, connector) = tls();
    (TcpListener::bind("127.0.0.1:0").await.expect("binds"), acceptor, connector)
}
