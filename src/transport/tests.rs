use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::types::NodeUri;

mod between;
mod reload;

fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

async fn bind(text: &str, options: &ListenOptions) -> Listener {
    Listener::bind(&uri(text), options).await.expect("binds")
}

/// A certificate authority with certificates for `localhost`, `c1.example.org` and a client, as files.
struct Files {
    dir: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test ca");
        let ca = params.self_signed(&ca_key).expect("signs");
        let issuer = rcgen::Issuer::new(params, ca_key);
        fs::write(dir.path().join("ca.pem"), ca.pem()).expect("writes");
        let files = Self { dir, issuer };
        for name in ["localhost", "client", "c1.example.org"] {
            files.sign(name, |_| ());
        }
        files
    }

    fn sign(&self, name: &str, change: impl FnOnce(&mut rcgen::CertificateParams)) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("writes");
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("writes");
    }

    /// A certificate that was good, long ago.
    fn expire(&self, name: &str) {
        self.sign(name, |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self, name: &str, verify: TlsVerify) -> TlsOptions {
        TlsOptions {
            certfile: Some(self.path(&format!("{name}.pem"))),
            keyfile: Some(self.path(&format!("{name}.key"))),
            cacertfile: Some(self.path("ca.pem")),
            verify,
            ..TlsOptions::default()
        }
    }
}

/// Dials the listener, exchanges a byte in both directions, and returns both ends.
async fn meet(listener: &Listener, uri: &NodeUri, options: &DialOptions) -> Result<(Wire, Wire), Error> {
    let accept = async {
        let mut wire = listener.accept().await.into_wire().await?;
        let failed = |error: std::io::Error| Error::new(ErrorCode::ConnectionFailed, error.to_string());
        let byte = wire.read_u8().await.map_err(failed)?;
        wire.write_u8(byte + 1).await.map_err(failed)?;
        wire.flush().await.map_err(failed)?;
        Ok::<_, Error>(wire)
    };
    let connect = async {
        let mut wire = dial(uri, options).await?;
        let failed = |error: std::io::Error| Error::new(ErrorCode::TlsError, error.to_string());
        wire.write_u8(1).await.map_err(failed)?;
        wire.flush().await.map_err(failed)?;
        assert_eq!(wire.read_u8().await.map_err(failed)?, 2);
        Ok::<_, Error>(wire)
    };
    let (accepted, connected) = tokio::join!(accept, connect);
    Ok((connected?, accepted?))
}

fn tls(tls: TlsOptions) -> DialOptions {
    DialOptions { tls, ..DialOptions::default() }
}

#[tokio::test]
async fn tcp_link_knows_both_ends_and_the_real_port() {
    let listener = bind("nkcluster://127.0.0.1:0;transport=tcp", &ListenOptions::default()).await;
    let real = listener.uri().clone();
    assert_ne!(real.port(), Some(0));
    let (ours, theirs) = meet(&listener, &real, &DialOptions::default()).await.expect("they meet");
    assert_eq!(ours.facts().remote, format!("tcp:127.0.0.1:{}", real.effective_port()));
    assert_eq!(ours.facts().local, theirs.facts().remote);
    assert_eq!((ours.facts().binding, theirs.facts().binding), (None, None));
}

const EVERY: [&str; 6] = [
    "nkcluster://127.0.0.1:0;transport=tcp",
    "nkcluster://127.0.0.1:0;transport=tls",
    "nkcluster://127.0.0.1:0/nk;transport=ws",
    "nkcluster://127.0.0.1:0/nk;transport=wss;ws_proto=mine",
    "nkcluster://127.0.0.1:0;transport=quic",
    "nkcluster://b;transport=memory",
];

#[tokio::test]
async fn split_halves_work_on_every_transport() {
    let net = MemoryNet::new();
    let listen = ListenOptions { memory: Some(net.clone()), ..ListenOptions::default() };
    let options = DialOptions { memory: Some(net.node("a")), ..DialOptions::default() };
    for text in EVERY {
        let listener = bind(text, &listen).await;
        let (ours, theirs) = meet(&listener, listener.uri(), &options).await.expect("they meet");
        assert_eq!((ours.facts().transport, theirs.facts().transport), (listener.transport(), listener.transport()));
        let has_half_close = !matches!(listener.transport(), Transport::Ws | Transport::Wss);
        let (mut read, mut write) = ours.into_split();
        let (mut their_read, mut their_write) = theirs.into_split();
        if !has_half_close {
            their_write.write_all(b"back").await.expect("writes");
            their_write.flush().await.expect("flushes");
        }
        write.write_all(b"forth").await.expect("writes");
        write.shutdown().await.expect("shuts down");
        let mut bytes = Vec::new();
        their_read.read_to_end(&mut bytes).await.expect("reads to the end");
        assert_eq!(bytes, b"forth");
        if has_half_close {
            their_write.write_all(b"back").await.expect("writes");
            their_write.flush().await.expect("flushes");
        } else {
            their_write.write_all(b"late").await.expect_err("the other side said goodbye for both");
        }
        let mut bytes = [0; 4];
        read.read_exact(&mut bytes).await.expect("reads");
        assert_eq!(&bytes, b"back");
    }
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once_on_every_transport() {
    let net = MemoryNet::new();
    let listen = ListenOptions { memory: Some(net.clone()), ..ListenOptions::default() };
    let options = DialOptions { memory: Some(net.node("a")), ..DialOptions::default() };
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    for text in EVERY {
        let listener = bind(text, &listen).await;
        let (ours, theirs) = meet(&listener, listener.uri(), &options).await.expect("they meet");
        let exchange = async |wire: Wire| {
            let (mut read, mut write) = wire.into_split();
            let send = async {
                write.write_all(&content).await.expect("writes");
                write.flush().await.expect("flushes");
            };
            let receive = async {
                let mut bytes = vec![0; content.len()];
                read.read_exact(&mut bytes).await.expect("reads");
                assert!(bytes == content, "{text}");
            };
            tokio::join!(send, receive);
            // Who closes before the other has everything takes it away, on some transports.
            (read, write)
        };
        let _halves = tokio::join!(exchange(ours), exchange(theirs));
    }
}

#[tokio::test]
async fn listener_of_web_sockets_tells_its_path_and_sub_protocol() {
    let listener = bind("nkcluster://127.0.0.1:0/nk;transport=ws;ws_proto=mine;password=secret", &ListenOptions::default()).await;
    let port = listener.uri().effective_port();
    assert_eq!(listener.uri().to_string(), format!("nkcluster://127.0.0.1:{port}/nk;transport=ws;ws_proto=mine"));
    let elsewhere = uri(&format!("nkcluster://127.0.0.1:{port};transport=ws;ws_proto=mine"));
    let error = meet(&listener, &elsewhere, &DialOptions::default()).await.expect_err("another path");
    assert!(error.code() == &ErrorCode::NoConnections && error.message().contains("404"), "{error}");
    let other = uri(&format!("nkcluster://127.0.0.1:{port}/nk;transport=ws"));
    let error = meet(&listener, &other, &DialOptions::default()).await.expect_err("another sub-protocol");
    assert!(error.message().contains("400"), "{error}");
}

#[tokio::test]
async fn both_ends_of_a_tls_link_have_the_same_exporter_and_no_other_link_has() {
    for (versions, transport) in [("1.3", "tls"), ("1.2", "tls"), ("1.3", "wss"), ("1.3", "quic")] {
        let listener = bind(&format!("nkcluster://127.0.0.1:0;transport={transport}"), &ListenOptions::default()).await;
        let options = tls(TlsOptions { versions: vec![versions.parse().expect("a version")], ..TlsOptions::default() });
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (ours, theirs) = meet(&listener, listener.uri(), &options).await.expect("they meet");
            assert!(ours.facts().binding.is_some());
            assert_eq!(ours.facts().binding, theirs.facts().binding);
            assert_eq!(ours.facts().certificate, CertificateCheck::Unchecked);
            seen.push(ours.facts().binding);
        }
        assert_ne!(seen[0], seen[1]);
    }
}

#[tokio::test]
async fn all_and_all6_may_share_a_port() {
    let first = bind("nkcluster://all:0;transport=tcp", &ListenOptions::default()).await;
    let port = first.uri().effective_port();
    let second = Listener::bind(&uri(&format!("nkcluster://all6:{port};transport=tcp")), &ListenOptions::default()).await;
    match second {
        Ok(second) => assert_eq!(second.uri().effective_port(), port),
        // A machine without IPv6 says so; what must not happen is that the port is taken.
        Err(error) => assert!(!error.message().contains("in use"), "{error}"),
    }
    assert!(matches!(first.uri().host(), crate::types::Host::Ip(ip) if !ip.is_unspecified()));
}

#[tokio::test]
async fn address_in_use_cannot_be_bound() {
    let first = bind("nkcluster://127.0.0.1:0;transport=tcp", &ListenOptions::default()).await;
    let error = Listener::bind(first.uri(), &ListenOptions::default()).await.expect_err("in use");
    assert_eq!(error.code(), &ErrorCode::CannotBind);
    assert!(error.message().contains(&first.uri().effective_port().to_string()), "{error}");
}

#[tokio::test]
async fn nobody_listening_is_no_connections() {
    let listener = bind("nkcluster://127.0.0.1:0;transport=tcp", &ListenOptions::default()).await;
    let gone = listener.uri().clone();
    drop(listener);
    for uri in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss, Transport::Quic]
        .map(|transport| gone.clone().with_transport(transport))
    {
        let error = dial(&uri, &DialOptions::default()).await.expect_err("refused");
        assert_eq!(error.code(), &ErrorCode::NoConnections);
    }
}

#[tokio::test]
async fn sctp_is_told_as_unsupported() {
    let uri = uri("nkcluster://127.0.0.1:1;transport=sctp");
    let error = dial(&uri, &DialOptions::default()).await.expect_err("unsupported");
    assert_eq!(error.code(), &ErrorCode::UnsupportedTransport);
    let error = Listener::bind(&uri, &ListenOptions::default()).await.expect_err("unsupported");
    assert_eq!(error.code(), &ErrorCode::UnsupportedTransport);
    assert!(error.message().contains("sctp") && error.message().contains("quic"), "it names what there is: {error}");
}

const WITH_TLS: [&str; 2] = ["nkcluster://127.0.0.1:0;transport=tls", "nkcluster://127.0.0.1:0;transport=quic"];

#[tokio::test]
async fn verification_without_trusted_certificates_fails_with_the_reason() {
    for (text, verify) in [(WITH_TLS[0], "true"), (WITH_TLS[0], "host"), (WITH_TLS[1], "true"), (WITH_TLS[1], "host")] {
        let uri = uri(&format!("{text};tls_verify={verify}"));
        let error = dial(&uri, &DialOptions::default()).await.expect_err("no CA");
        assert_eq!(error.code(), &ErrorCode::NoConnections);
        assert!(error.message().contains("tls_cacertfile"), "{error}");
        let error = Listener::bind(&uri, &ListenOptions::default()).await.expect_err("no CA");
        assert_eq!(error.code(), &ErrorCode::InvalidConfig);
    }
}

#[tokio::test]
async fn chain_and_host_are_verified_as_asked() {
    for text in WITH_TLS {
        let files = Files::new();
        let listen = ListenOptions { tls: files.options("localhost", TlsVerify::False), ..ListenOptions::default() };
        let listener = bind(text, &listen).await;
        let by_ip = listener.uri().clone();
        let by_name = by_ip.clone().with_host(crate::types::Host::Localhost);
        let trusting = |verify| tls(TlsOptions { cacertfile: Some(files.path("ca.pem")), verify, ..TlsOptions::default() });

        let (ours, _) = meet(&listener, &by_ip, &trusting(TlsVerify::True)).await.expect("the chain is good");
        assert_eq!(ours.facts().certificate, CertificateCheck::Verified);
        meet(&listener, &by_name, &trusting(TlsVerify::Host)).await.expect("chain and name are good");
        let error = meet(&listener, &by_ip, &trusting(TlsVerify::Host)).await.expect_err("the name is wrong");
        assert_eq!(error.code(), &ErrorCode::TlsError, "{error}");

        let stranger = bind(text, &ListenOptions::default()).await;
        for verify in [TlsVerify::True, TlsVerify::Host] {
            let error = meet(&stranger, stranger.uri(), &trusting(verify)).await.expect_err("self-signed");
            assert_eq!(error.code(), &ErrorCode::TlsError, "{error}");
        }
    }
}

#[tokio::test]
async fn certificate_of_yesterday_is_not_trusted() {
    for text in WITH_TLS {
        let files = Files::new();
        files.expire("localhost");
        let listen = ListenOptions { tls: files.options("localhost", TlsVerify::False), ..ListenOptions::default() };
        let listener = bind(text, &listen).await;
        let by_name = listener.uri().clone().with_host(crate::types::Host::Localhost);
        for verify in [TlsVerify::True, TlsVerify::Host] {
            let trusting = tls(TlsOptions { cacertfile: Some(files.path("ca.pem")), verify, ..TlsOptions::default() });
            let error = meet(&listener, &by_name, &trusting).await.expect_err("expired");
            assert!(error.message().contains("xpired"), "{error}");
        }
        // Who does not ask is served; the binding of the handshake above makes that safe.
        meet(&listener, &by_name, &DialOptions::default()).await.expect("they meet");
    }
}

#[tokio::test]
async fn listener_that_verifies_wants_a_client_certificate() {
    for text in WITH_TLS {
        let files = Files::new();
        let listen = ListenOptions { tls: files.options("localhost", TlsVerify::True), ..ListenOptions::default() };
        let listener = bind(text, &listen).await;
        let (_, theirs) = meet(&listener, listener.uri(), &tls(files.options("client", TlsVerify::True))).await.expect("both verified");
        assert_eq!(theirs.facts().certificate, CertificateCheck::Verified);
        let error = meet(&listener, listener.uri(), &DialOptions::default()).await.expect_err("no client certificate");
        assert!(error.message().contains("CertificateRequired") || error.message().contains("alert"), "{error}");
    }
}

#[tokio::test]
async fn own_certificate_is_made_once_and_kept_private() {
    let state = tempfile::tempdir().expect("a directory");
    let options = ListenOptions { state_dir: Some(state.path().join("state")), ..ListenOptions::default() };
    drop(bind("nkcluster://127.0.0.1:0;transport=tls", &options).await);
    let dir = state.path().join("state/tls");
    let pair = || (fs::read(dir.join("cert.pem")).expect("reads"), fs::read(dir.join("key.pem")).expect("reads"));
    let first = pair();
    let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
    assert_eq!((mode(&dir.join("key.pem")), mode(&dir)), (0o600, 0o700));
    drop(bind("nkcluster://127.0.0.1:0;transport=tls", &options).await);
    assert_eq!(pair(), first);
}

#[test]
fn processes_that_start_at_once_agree_on_one_certificate() {
    let state = tempfile::tempdir().expect("a directory");
    let chains: Vec<_> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8).map(|_| scope.spawn(|| certificate::own(Some(state.path())).expect("a certificate"))).collect();
        racers.into_iter().map(|racer| racer.join().expect("no panic").chain).collect()
    });
    assert!(chains.iter().all(|chain| *chain == chains[0]));
    let left: Vec<_> = fs::read_dir(state.path()).expect("reads").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, ["tls"]);
}

#[test]
fn encrypted_key_needs_its_password() {
    let files = Files::new();
    let plain = fs::read_to_string(files.path("client.key")).expect("reads");
    let (_, document) = pkcs8::SecretDocument::from_pem(&plain).expect("PEM");
    let salt = [7; 16];
    let scheme = pkcs8::pkcs5::pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(1000, &salt, [9; 16]);
    let encrypted = pkcs8::PrivateKeyInfoRef::try_from(document.as_bytes())
        .expect("a key")
        .encrypt_with_params(scheme.expect("parameters"), "opensesame")
        .expect("encrypts");
    let pem = encrypted.to_pem("ENCRYPTED PRIVATE KEY", Default::default()).expect("PEM");
    fs::write(files.path("client.key"), pem.as_bytes()).expect("writes");

    let with = |password: Option<&str>| {
        let options = TlsOptions { password: password.map(Secret::from), ..files.options("client", TlsVerify::False) };
        certificate::configured(&options)
    };
    let read = with(Some("opensesame")).expect("decrypts").expect("configured");
    let PrivateKeyDer::Pkcs8(key) = read.key else { panic!("another kind of key") };
    assert_eq!(key.secret_pkcs8_der(), document.as_bytes());
    for password in [None, Some("wrong")] {
        let error = with(password).expect_err("no key");
        assert_eq!(error.code(), &ErrorCode::InvalidConfig);
        for word in ["tls_keyfile", "client.key", "tls_password"] {
            assert!(error.message().contains(word), "{error}");
        }
        assert!(!error.message().contains("wrong ") || password.is_some());
    }
}

#[tokio::test]
async fn unusable_files_are_named_with_their_option() {
    let files = Files::new();
    fs::write(files.path("empty"), "").expect("writes");
    let good = files.options("localhost", TlsVerify::True);
    let (missing, empty, other) = (files.path("missing"), files.path("empty"), files.path("client.key"));
    let cases = [
        ("tls_certfile", "missing", TlsOptions { certfile: Some(missing.clone()), ..good.clone() }),
        ("tls_certfile", "empty", TlsOptions { certfile: Some(empty.clone()), ..good.clone() }),
        ("tls_keyfile", "missing", TlsOptions { keyfile: Some(missing.clone()), ..good.clone() }),
        ("tls_keyfile", "empty", TlsOptions { keyfile: Some(empty.clone()), ..good.clone() }),
        ("tls_keyfile", "client.key", TlsOptions { keyfile: Some(other), ..good.clone() }),
        ("tls_cacertfile", "missing", TlsOptions { cacertfile: Some(missing), ..good.clone() }),
        ("tls_cacertfile", "empty", TlsOptions { cacertfile: Some(empty), ..good.clone() }),
    ];
    for (option, file, tls) in cases {
        let options = ListenOptions { tls, ..ListenOptions::default() };
        let error = Listener::bind(&uri("nkcluster://127.0.0.1:0;transport=tls"), &options).await.expect_err("unusable");
        assert_eq!(error.code(), &ErrorCode::InvalidConfig, "{error}");
        assert!(error.message().contains(option) && error.message().contains(file), "{option} {file}: {error}");
    }
}

#[test]
fn url_with_its_own_certificate_does_not_get_the_key_of_the_node() {
    let node = TlsOptions { certfile: Some("node.pem".into()), keyfile: Some("node.key".into()), ..TlsOptions::default() };
    let own = uri("nkcluster://h;transport=tls;tls_certfile=own.pem");
    let merged = node.for_uri(own.options());
    assert_eq!((merged.certfile, merged.keyfile), (Some("own.pem".into()), None));
    let merged = node.for_uri(uri("nkcluster://h;transport=tls").options());
    assert_eq!((merged.certfile, merged.keyfile), (Some("node.pem".into()), Some("node.key".into())));
}
