//! What only QUIC meets: datagrams from anybody, addresses that change, processes that vanish.

use std::collections::HashSet;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::listen::UNVALIDATED_MAX;
use super::*;
use crate::transport::{DialOptions, ListenOptions, Listener, TlsOptions, Wire, dial};
use crate::types::{NodeUri, TlsVersion};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

async fn bind() -> Listener {
    Listener::bind(&uri("nkcluster://127.0.0.1:0;transport=quic"), &ListenOptions::default()).await.expect("binds")
}

async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Serves every connection: sends back what comes, plus one.
fn serve(listener: Listener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let incoming = listener.accept().await;
            tokio::spawn(async move {
                let mut wire = incoming.into_wire().await?;
                while let Ok(byte) = wire.read_u8().await {
                    let _ = wire.write_u8(byte + 1).await;
                }
                Ok::<_, Error>(())
            });
        }
    })
}

async fn asks(wire: &mut Wire, byte: u8) {
    wire.write_u8(byte).await.expect("writes");
    assert_eq!(in_time("an answer", wire.read_u8()).await.expect("reads"), byte + 1);
}

#[tokio::test]
async fn garbage_changes_nothing() {
    let listener = bind().await;
    let at = listener.uri().clone();
    let _server = serve(listener);
    let mut wire = dial(&at, &DialOptions::default()).await.expect("connects");
    asks(&mut wire, 1).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    stranger.connect(("127.0.0.1", at.effective_port())).await.expect("connects");
    for number in 0..2000_usize {
        let mut garbage = vec![0; number % 1400];
        rand::fill(&mut garbage[..]);
        // Long headers of version 1 too, whose lengths are garbage.
        if number % 3 == 0 && garbage.len() > 5 {
            garbage[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        let _ = stranger.send(&garbage).await;
        if number % 100 == 0 {
            asks(&mut wire, 2).await;
        }
    }
    asks(&mut wire, 3).await;
    let mut other = dial(&at, &DialOptions::default()).await.expect("connects");
    asks(&mut other, 4).await;
}

/// First datagrams of so many connections that nobody will go on with.
async fn first_datagrams(count: usize) -> Vec<Vec<u8>> {
    let trap = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let at = uri(&format!("nkcluster://127.0.0.1:{};transport=quic", trap.local_addr().expect("bound").port()));
    let (mut seen, mut datagrams, mut buffer) = (HashSet::new(), Vec::new(), [0; 2000]);
    while datagrams.len() < count {
        let options = DialOptions::default();
        let dialling = dial(&at, &options);
        let catching = async {
            loop {
                let length = trap.recv(&mut buffer).await.expect("receives");
                // Its destination id makes it a connection of its own.
                if length >= 1200 && seen.insert(buffer[6..14].to_vec()) {
                    return buffer[..length].to_vec();
                }
            }
        };
        tokio::select! {
            datagram = catching => datagrams.push(datagram),
            _ = dialling => panic!("nobody answers"),
        }
    }
    datagrams
}

#[tokio::test]
async fn flood_of_first_datagrams_is_asked_for_its_address_and_keeps_nobody_out() {
    let listener = bind().await;
    let at = listener.uri().clone();
    let _server = serve(listener);
    const MORE: usize = 100;
    let flood = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let (mut buffer, mut retries) = ([0; 2000], HashSet::new());
    for datagram in first_datagrams(UNVALIDATED_MAX + MORE).await {
        flood.send_to(&datagram, ("127.0.0.1", at.effective_port())).await.expect("sends");
        // One answer to each: the beginning of TLS, or a Retry.
        let length = in_time("an answer", flood.recv(&mut buffer)).await.expect("receives");
        assert!(length <= 3 * datagram.len());
        if buffer[0] & 0xf0 == 0xf0 {
            retries.insert(buffer[..length].to_vec());
        }
    }
    // What was sent twice came from those who were let in.
    assert!(retries.len() >= MORE - UNVALIDATED_MAX, "{}", retries.len());
    let mut wire = in_time("a connection", dial(&at, &DialOptions::default())).await.expect("connects, by a token");
    asks(&mut wire, 1).await;
}

#[tokio::test]
async fn other_protocols_are_not_talked_to() {
    let listener = bind().await;
    let at = SocketAddr::from(([127, 0, 0, 1], listener.uri().effective_port()));
    let _server = serve(listener);
    let (mut config, _) =
        tls::quic_client(&uri("nkcluster://127.0.0.1;transport=quic"), at.ip(), TlsOptions::default()).await.expect("TLS");
    config.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("fit for QUIC");
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("binds");
    let connecting = endpoint.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), at, "127.0.0.1").expect("starts");
    let error = in_time("the refusal", connecting).await.expect_err("refused");
    let error = connection_error(&error, ErrorCode::NoConnections);
    assert_eq!(error.code(), &ErrorCode::TlsError);
    assert!(error.message().contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn tls_1_2_alone_is_a_fault_of_the_configuration() {
    let tls = TlsOptions { versions: vec![TlsVersion::V1_2], ..TlsOptions::default() };
    let at = uri("nkcluster://127.0.0.1:0;transport=quic");
    let error = Listener::bind(&at, &ListenOptions { tls: tls.clone(), ..ListenOptions::default() }).await.expect_err("no version");
    assert_eq!(error.code(), &ErrorCode::InvalidConfig);
    assert!(error.message().contains("tls_versions") && error.message().contains("1.3"), "{error}");
    let error = dial(&at.with_port(1), &DialOptions { tls, ..DialOptions::default() }).await.expect_err("no version");
    assert_eq!(error.code(), &ErrorCode::InvalidConfig);
}

#[tokio::test]
async fn http_proxy_is_told_to_be_of_no_use() {
    let at = uri("nkcluster://c1.example.org;transport=quic;proxy=http://me:hunter2@127.0.0.1:1");
    let error = dial(&at, &DialOptions::default()).await.expect_err("no way");
    assert_eq!(error.code(), &ErrorCode::InvalidConfig);
    assert!(error.message().contains("wss") && !error.message().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn all_and_all6_may_share_a_port_and_tell_where_they_are() {
    let first = Listener::bind(&uri("nkcluster://all:0;transport=quic"), &ListenOptions::default()).await.expect("binds");
    let port = first.uri().effective_port();
    assert!(matches!(first.uri().host(), crate::types::Host::Ip(ip) if !ip.is_unspecified()));
    let local = first.uri().clone().with_host(crate::types::Host::Ip([127, 0, 0, 1].into()));
    let _first = serve(first);
    let mut wire = dial(&local, &DialOptions::default()).await.expect("connects");
    asks(&mut wire, 1).await;
    let error = Listener::bind(&local, &ListenOptions::default()).await.expect_err("in use");
    assert_eq!(error.code(), &ErrorCode::CannotBind);
    match Listener::bind(&uri(&format!("nkcluster://all6:{port};transport=quic")), &ListenOptions::default()).await {
        Ok(second) => {
            let _second = serve(second);
            let mut wire =
                dial(&uri(&format!("nkcluster://[::1]:{port};transport=quic")), &DialOptions::default()).await.expect("connects");
            assert_eq!(wire.facts().remote, format!("quic:[::1]:{port}"));
            asks(&mut wire, 1).await;
        }
        // A machine without IPv6 says so; what must not happen is that the port is taken.
        Err(error) => assert!(!error.message().contains("in use"), "{error}"),
    }
}

#[tokio::test]
async fn both_ends_know_each_other_and_share_one_socket_for_many() {
    let listener = bind().await;
    let options = DialOptions::default();
    let mut locals = HashSet::new();
    for _ in 0..3 {
        let dialled = async {
            let mut wire = dial(listener.uri(), &options).await.expect("connects");
            wire.write_u8(1).await.expect("writes");
            wire
        };
        let (ours, theirs) = tokio::join!(dialled, async { listener.accept().await.into_wire().await.expect("a wire") });
        assert_eq!(ours.facts().remote, format!("quic:127.0.0.1:{}", listener.uri().effective_port()));
        assert_eq!((&ours.facts().local, &ours.facts().remote), (&theirs.facts().remote, &theirs.facts().local));
        locals.insert(ours.facts().local.clone());
    }
    assert_eq!(locals.len(), 1);
}

#[tokio::test]
async fn connections_outlive_their_listener_and_nobody_else_is_let_in() {
    let listener = bind().await;
    let at = listener.uri().clone();
    let dialled = async {
        let mut wire = dial(&at, &DialOptions::default()).await.expect("connects");
        wire.write_u8(1).await.expect("writes");
        wire
    };
    let accepted = async { listener.accept().await.into_wire().await.expect("a wire") };
    let (mut ours, mut theirs) = tokio::join!(dialled, accepted);
    drop(listener);
    let error = in_time("the refusal", dial(&at, &DialOptions::default())).await.expect_err("refused");
    assert_eq!(error.code(), &ErrorCode::NoConnections);
    theirs.write_u8(2).await.expect("writes");
    assert_eq!(in_time("a byte", ours.read_u8()).await.expect("reads"), 2);
    // With the last connection the port is free.
    drop((ours, theirs));
    in_time("the port", async {
        while std::net::UdpSocket::bind(("127.0.0.1", at.effective_port())).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn process_that_was_killed_and_runs_again_says_so_at_once() {
    let state = tempfile::tempdir().expect("a directory");
    let options = ListenOptions { state_dir: Some(state.path().to_owned()), ..ListenOptions::default() };
    // A runtime that vanishes takes its sockets along, and says nothing to anybody.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let first = options.clone();
    let (at, _served) = process
        .spawn(async move {
            let listener = Listener::bind(&uri("nkcluster://127.0.0.1:0;transport=quic"), &first).await.expect("binds");
            (listener.uri().clone(), serve(listener))
        })
        .await
        .expect("no panic");
    let mut wire = dial(&at, &DialOptions::default()).await.expect("connects");
    asks(&mut wire, 1).await;
    process.shutdown_background();
    let again = in_time("the port", async {
        loop {
            match Listener::bind(&at, &options).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    let _server = serve(again);
    let ended = async {
        loop {
            if let Err(error) = wire.write_u8(1).await {
                return error;
            }
            tokio::select! {
                read = wire.read_u8() => return read.expect_err("nobody knows the connection"),
                () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
            }
        }
    };
    let error = in_time("the reset", ended).await;
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("does not know"), "{error}");
}
