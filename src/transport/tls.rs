//! TLS over TCP and within QUIC, with aws-lc-rs whatever the default of the process is.
//!
//! TLS 1.3, and 1.2 only with extended master secret, without which its exporter would not be unique. No resumption and so no early data: a handshake
//! costs a signature, and nothing can be replayed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ConnectionCommon, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorCode, Result};
use crate::transport::ahead::ReadAhead;
use crate::transport::certificate::Certificate;
use crate::transport::target::machine_name;
use crate::transport::verify::{Demand, ServerCheck};
use crate::transport::{CertificateCheck, TlsOptions, WireFacts, certificate};
use crate::types::{Host, NodeUri, TlsVerify, TlsVersion};

/// Label of the exporter (RFC 9266 §2).
pub(super) const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// The protocol within the TLS of QUIC (RFC 7301).
const QUIC_ALPN: &[u8] = b"nkcluster";

/// TLS over a socket.
pub(super) type Stream = TlsStream<ReadAhead<TcpStream>>;

/// TLS of one address that is to be dialled.
pub(super) struct Dialler {
    connector: TlsConnector,
    name: ServerName<'static>,
    check: CertificateCheck,
}

impl Dialler {
    /// `ip` is the address that will be dialled, if it is known here.
    pub(super) async fn new(uri: &NodeUri, ip: Option<IpAddr>, options: TlsOptions) -> Result<Self> {
        let check = check(&options);
        let name = server_name(uri, ip, options.verify)?;
        let config = blocking(move || client_config(&options)).await?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, check })
    }

    /// Adds to the facts what TLS knows.
    pub(super) async fn connect(self, stream: TcpStream, facts: &mut WireFacts) -> Result<Stream> {
        let stream = self.connector.connect(self.name, ReadAhead::new(stream)).await.map_err(|error| tls_error(&error))?;
        facts.binding = Some(exporter(stream.get_ref().1)?);
        facts.certificate = self.check;
        Ok(TlsStream::Client(stream))
    }
}

/// TLS of one listener. Its files can be read again while it works.
pub(super) struct Acceptor {
    current: ArcSwap<ServerConfig>,
    options: TlsOptions,
    state_dir: Option<PathBuf>,
    check: CertificateCheck,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("check", &self.check).finish_non_exhaustive()
    }
}

impl Acceptor {
    pub(super) async fn new(options: TlsOptions, state_dir: Option<PathBuf>) -> Result<Self> {
        let check = check(&options);
        let config = read(&options, &state_dir).await?;
        Ok(Self { current: ArcSwap::from_pointee(config), options, state_dir, check })
    }

    /// Reads all files again, for the connections to come. If one of them cannot be used, everything stays as it was.
    pub(super) async fn reload(&self) -> Result<()> {
        let config = read(&self.options, &self.state_dir).await?;
        self.current.store(Arc::new(config));
        Ok(())
    }

    /// Adds to the facts what TLS knows.
    pub(super) async fn accept(&self, stream: TcpStream, facts: &mut WireFacts) -> Result<Stream> {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        let stream = acceptor.accept(ReadAhead::new(stream)).await.map_err(|error| tls_error(&error))?;
        facts.binding = Some(exporter(stream.get_ref().1)?);
        facts.certificate = self.check;
        Ok(TlsStream::Server(stream))
    }
}

/// What a handshake that went well has shown about the other side.
pub(super) fn check(options: &TlsOptions) -> CertificateCheck {
    match options.verify {
        TlsVerify::False => CertificateCheck::Unchecked,
        TlsVerify::True | TlsVerify::Host => CertificateCheck::Verified,
    }
}

/// TLS within QUIC, on the dialling side; with the name to be verified.
pub(super) async fn quic_client(uri: &NodeUri, ip: IpAddr, options: TlsOptions) -> Result<(ClientConfig, ServerName<'static>)> {
    let name = server_name(uri, Some(ip), options.verify)?;
    let options = only_1_3(options)?;
    let mut config = blocking(move || client_config(&options)).await?;
    config.alpn_protocols = vec![QUIC_ALPN.to_vec()];
    Ok((config, name))
}

/// TLS within QUIC, on the listening side.
pub(super) struct ServerSide {
    pub(super) config: Arc<ServerConfig>,
    /// Made of the private key, and of no use to find it.
    pub(super) secret: Zeroizing<[u8; 32]>,
}

pub(super) async fn quic_server(options: &TlsOptions, state_dir: &Option<PathBuf>) -> Result<ServerSide> {
    let (options, state_dir) = (only_1_3(options.clone())?, state_dir.clone());
    blocking(move || {
        let own = own_certificate(&options, state_dir)?;
        let mut hash = Sha256::new();
        hash.update(b"nkcluster secret of a quic listener");
        hash.update(own.key.secret_der());
        let secret = Zeroizing::new(hash.finalize().into());
        let mut config = server_config(&options, own)?;
        config.alpn_protocols = vec![QUIC_ALPN.to_vec()];
        Ok(ServerSide { config: Arc::new(config), secret })
    })
    .await
}

/// QUIC has no other version (RFC 9001 §4.2).
fn only_1_3(mut options: TlsOptions) -> Result<TlsOptions> {
    if !options.versions.is_empty() && !options.versions.contains(&TlsVersion::V1_3) {
        return Err(invalid("tls_versions: quic needs 1.3".to_owned()));
    }
    options.versions = vec![TlsVersion::V1_3];
    Ok(options)
}

async fn read(options: &TlsOptions, state_dir: &Option<PathBuf>) -> Result<ServerConfig> {
    let (options, state_dir) = (options.clone(), state_dir.clone());
    blocking(move || {
        let own = own_certificate(&options, state_dir)?;
        server_config(&options, own)
    })
    .await
}

fn client_config(options: &TlsOptions) -> Result<ClientConfig> {
    let provider = provider();
    let demand = match options.verify {
        TlsVerify::False => Demand::Any,
        TlsVerify::True => Demand::Chain(Arc::new(trusted(options, ErrorCode::NoConnections)?)),
        TlsVerify::Host => {
            let roots = Arc::new(trusted(options, ErrorCode::NoConnections)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
            Demand::Host(verifier.map_err(|error| invalid(format!("tls_cacertfile: {error}")))?)
        }
    };
    let check = ServerCheck::new(provider.clone(), demand, options.depth);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(&options.versions))
        .map_err(|error| invalid(format!("tls_versions: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check));
    let mut config = match certificate::configured(options)? {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let file = own.origin;
            builder.with_client_auth_cert(own.chain, own.key).map_err(|error| invalid(format!("{file}: {error}")))?
        }
    };
    config.require_ems = true;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn own_certificate(options: &TlsOptions, state_dir: Option<PathBuf>) -> Result<Certificate> {
    match certificate::configured(options)? {
        Some(own) => Ok(own),
        None => certificate::own(state_dir.as_deref()),
    }
}

fn server_config(options: &TlsOptions, own: Certificate) -> Result<ServerConfig> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(&options.versions))
        .map_err(|error| invalid(format!("tls_versions: {error}")))?;
    let builder = match options.verify {
        TlsVerify::False => builder.with_no_client_auth(),
        TlsVerify::True | TlsVerify::Host => {
            let roots = Arc::new(trusted(options, ErrorCode::InvalidConfig)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| invalid(format!("tls_cacertfile: {error}")))?)
        }
    };
    let file = own.origin;
    let mut config = builder.with_single_cert(own.chain, own.key).map_err(|error| invalid(format!("{file}: {error}")))?;
    config.require_ems = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificates that we trust; asking for verification without naming any is an error, not a silent default.
fn trusted(options: &TlsOptions, missing: ErrorCode) -> Result<RootCertStore> {
    let Some(path) = &options.cacertfile else {
        let verify = options.verify;
        return Err(Error::new(missing, format!("tls_verify = {verify} needs tls_cacertfile, the certificates to trust")));
    };
    let certificates: Vec<CertificateDer<'static>> = certificate::read_chain("tls_cacertfile", path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| invalid(format!("tls_cacertfile {}: {error}", path.display())))?;
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn versions(wanted: &[TlsVersion]) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(TlsVersion::V1_3, &rustls::version::TLS13), (TlsVersion::V1_2, &rustls::version::TLS12)];
    all.into_iter().filter(|(version, _)| wanted.is_empty() || wanted.contains(version)).map(|(_, version)| version).collect()
}

fn server_name(uri: &NodeUri, ip: Option<IpAddr>, verify: TlsVerify) -> Result<ServerName<'static>> {
    let text = match (&uri.options().host, uri.host()) {
        (Some(host), _) => host.clone(),
        (None, Host::Ip(ip)) => return Ok(ServerName::IpAddress((*ip).into())),
        (None, Host::Node) => machine_name(),
        (None, host) => host.to_string(),
    };
    match ServerName::try_from(text) {
        Ok(name) => Ok(name),
        // A name that no certificate can have (such as one with `_`) is only a problem if it is compared.
        Err(_) if verify != TlsVerify::Host => Ok(ServerName::IpAddress(ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()).into())),
        Err(_) => Err(invalid(format!("{uri}: tls_verify = host needs the name of a host"))),
    }
}

fn exporter<Side>(connection: &ConnectionCommon<Side>) -> Result<[u8; 32]> {
    // RFC 9266 §2 asks for a context of no bytes, which TLS 1.2 distinguishes from no context.
    connection
        .export_keying_material([0; 32], EXPORTER_LABEL, Some(&[]))
        .map_err(|error| Error::new(ErrorCode::TlsError, format!("no channel binding: {error}")))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorCode::Internal, format!("preparing TLS failed: {error}"))),
    }
}

fn tls_error(error: &std::io::Error) -> Error {
    Error::new(ErrorCode::TlsError, error.to_string())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidConfig, message)
}
