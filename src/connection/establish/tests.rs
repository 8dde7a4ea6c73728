use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;
use crate::connection::admission::{Gate, Limits};
use crate::proto::auth::{AuthFrame, ClientFirst, FRAME_BYTES_MAX, KIND_CLIENT_FIRST, KIND_REFUSAL, Kdf, Refusal};
use crate::transport::{self, DialOptions, ListenOptions, MemoryNet, TlsOptions};
use crate::types::{Incarnation, NodeId, TlsVerify};

const TCP: &str = "nkcluster://127.0.0.1:0;transport=tcp";
const TLS: &str = "nkcluster://127.0.0.1:0;transport=tls";
const QUIC: &str = "nkcluster://127.0.0.1:0;transport=quic";
const WS: &str = "nkcluster://127.0.0.1:0;transport=ws";

fn identity(role: Role, name: &str) -> Identity {
    Identity {
        cluster: "c".to_owned(),
        role,
        id: NodeId::new(name).expect("valid"),
        incarnation: Incarnation::from_bytes([5; 16]),
        versions: vec![1],
        features: vec![],
    }
}

async fn party_with(role: Role, name: &str, change: impl FnOnce(&mut KeyringInput)) -> Party {
    let mut input = KeyringInput { cluster: "c".to_owned(), iterations: 2, password: Some("s3cret".into()), ..KeyringInput::default() };
    change(&mut input);
    let identity = Identity { cluster: input.cluster.clone(), ..identity(role, name) };
    Party::prepare(identity, input).await.expect("derives")
}

async fn worker() -> Party {
    party_with(Role::Worker, "w1", |_| ()).await
}

fn control(id: Option<&str>) -> Expect {
    Expect { id: id.map(|id| NodeId::new(id).expect("valid")), ..Expect::any(Role::Control) }
}

fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

/// A control node that lets in whoever proves itself, and remembers how each connection ended.
struct Server {
    uri: NodeUri,
    gate: Gate,
    ends: tokio::sync::mpsc::UnboundedReceiver<Result<Established>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(text: &str, options: ListenOptions) -> Self {
        Self::of(text, options, party_with(Role::Control, "c1", |_| ()).await, Limits::default()).await
    }

    async fn of(text: &str, options: ListenOptions, party: Party, limits: Limits) -> Self {
        let listener = transport::Listener::bind(&uri(text), &options).await.expect("binds");
        let uri = listener.uri().clone();
        let (sender, ends) = tokio::sync::mpsc::unbounded_channel();
        let gate = Gate::new(limits);
        let door = gate.clone();
        let task = tokio::spawn(async move {
            loop {
                let incoming = listener.accept().await;
                let Ok(permit) = door.admit(incoming.peer_addr().map(|addr| addr.ip())).await else { continue };
                let (party, sender) = (party.clone(), sender.clone());
                tokio::spawn(async move { sender.send(accept(incoming, &party, permit).await) });
            }
        });
        Self { uri, gate, ends, task }
    }

    async fn end(&mut self) -> Result<Established> {
        self.ends.recv().await.expect("the server runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(uris: &[NodeUri], party: &Party, expect: &Expect) -> Result<Established, DialError> {
    dial_and_establish(uris, party, expect, Order::AsGiven, &DialOptions::default()).await
}

async fn raw(server: &Server) -> Wire {
    transport::dial(&server.uri, &DialOptions::default()).await.expect("connects")
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 3).expect("short");
    [&length.to_be_bytes()[..], &[kind, 0, 0], body].concat()
}

/// The refusal that comes back for these bytes.
async fn refusal_of(server: &Server, bytes: &[u8]) -> Refusal {
    let mut wire = raw(server).await;
    wire.write_all(bytes).await.expect("writes");
    wire.flush().await.expect("flushes");
    let AuthFrame { kind, body } = read_frame(&mut wire).await.expect("an answer");
    assert_eq!(kind, KIND_REFUSAL);
    assert_eq!(wire.read(&mut [0; 1]).await.expect("reads"), 0, "and then the end");
    Refusal::from_body(&body).expect("a refusal")
}

#[tokio::test]
async fn both_sides_trust_each_other_on_every_transport() {
    for text in [TCP, TLS, QUIC] {
        let mut server = Server::start(text, ListenOptions::default()).await;
        let mut ours = connect(std::slice::from_ref(&server.uri), &worker().await, &control(Some("c1"))).await.expect("let in");
        let mut theirs = server.end().await.expect("let in");
        assert_eq!((ours.peer.id.as_str(), theirs.peer.id.as_str()), ("c1", "w1"));
        assert_eq!((ours.peer.role, theirs.peer.role), (Role::Control, Role::Worker));
        assert_eq!(ours.uri.as_ref(), Some(&server.uri));
        assert_eq!(server.gate.untrusted(), 0, "the place at the door is free again");
        // The next byte belongs to the link.
        theirs.wire.write_u8(42).await.expect("writes");
        theirs.wire.flush().await.expect("flushes");
        assert_eq!(ours.wire.read_u8().await.expect("reads"), 42);
    }
}

/// Checklist A14-3, A14-6.
#[tokio::test]
async fn first_address_that_lets_us_in_wins() {
    let mut wrong = Server::of(
        TCP,
        ListenOptions::default(),
        party_with(Role::Control, "c9", |input| input.password = Some("x".into())).await,
        Limits::default(),
    )
    .await;
    let server = Server::start(TCP, ListenOptions::default()).await;
    let gone = Server::start(TCP, ListenOptions::default()).await.uri.clone();
    let uris = [gone, uri("nkcluster://127.0.0.1:1;transport=sctp"), wrong.uri.clone(), server.uri.clone()];
    let ours = connect(&uris, &worker().await, &control(None)).await.expect("let in");
    assert_eq!(ours.peer.id.as_str(), "c1");
    assert_eq!(wrong.end().await.expect_err("refused").code(), &ErrorCode::InvalidPassword);
}

#[tokio::test]
async fn whoever_is_not_wanted_a_second_time_sees_no_proof_and_the_next_address_is_tried() {
    let mut first = Server::start(TCP, ListenOptions::default()).await;
    let mut second = Server::of(TCP, ListenOptions::default(), party_with(Role::Control, "c2", |_| ()).await, Limits::default()).await;
    let life = identity(Role::Control, "c1").incarnation;
    let expect = Expect {
        declines: Some(Declines::new(move |peer| peer.id.as_str() == "c1" && peer.incarnation == life)),
        ..Expect::any(Role::Control)
    };
    let party = worker().await;
    let ours = connect(&[first.uri.clone(), second.uri.clone()], &party, &expect).await.expect("let in");
    assert_eq!(ours.peer.id.as_str(), "c2");
    second.end().await.expect("trusted");
    assert_eq!(first.end().await.expect_err("left alone").code(), &ErrorCode::ConnectionFailed);
    let error = connect(std::slice::from_ref(&first.uri), &party, &expect).await.expect_err("nobody is left");
    assert_eq!(error.attempts[0].error.code(), &ErrorCode::NotAllowed);
}

#[tokio::test]
async fn password_of_the_url_has_precedence() {
    let server = Server::of(
        TCP,
        ListenOptions::default(),
        party_with(Role::Control, "c1", |input| input.password = Some("other".into())).await,
        Limits::default(),
    )
    .await;
    let with_password = uri(&format!("{};password=other", server.uri));
    let party = worker().await;
    for _ in 0..2 {
        connect(std::slice::from_ref(&with_password), &party, &control(None)).await.expect("let in");
    }
    assert_eq!(party.uri_keys.lock().await.len(), 1, "computed once");
    let error = connect(std::slice::from_ref(&server.uri), &party, &control(None)).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::InvalidPassword);
}

#[tokio::test]
async fn password_of_a_listener_stands_in_the_place_of_the_common_one() {
    let separate = party_with(Role::Control, "c1", |input| input.admin_password = Some("admins".into())).await;
    let server = Server::of(&format!("{TCP};password=other"), ListenOptions::default(), separate, Limits::default()).await;
    assert!(server.uri.options().password.is_none(), "what is published has no secret");
    let attempt = async |role: Role, password: &str| {
        let party = party_with(role, "x", |input| input.password = Some(password.into())).await;
        connect(std::slice::from_ref(&server.uri), &party, &control(None)).await.is_ok()
    };
    assert!(attempt(Role::Worker, "other").await && attempt(Role::Control, "other").await && attempt(Role::Admin, "admins").await);
    assert!(!attempt(Role::Worker, "s3cret").await && !attempt(Role::Control, "s3cret").await && !attempt(Role::Admin, "other").await);
}

#[tokio::test]
async fn wrong_password_and_wrong_cluster_look_the_same() {
    for text in [TLS, QUIC] {
        let mut server = Server::start(text, ListenOptions::default()).await;
        let wrong = party_with(Role::Worker, "w1", |input| input.password = Some("wrong".into())).await;
        let other = party_with(Role::Worker, "w1", |input| input.cluster = "other".to_owned()).await;
        let mut told = Vec::new();
        for party in [wrong, other] {
            let error = connect(std::slice::from_ref(&server.uri), &party, &control(None)).await.expect_err("refused");
            told.push((error.code(), error.to_string()));
            assert_eq!(server.end().await.expect_err("refused").code(), &ErrorCode::InvalidPassword);
        }
        assert_eq!(told[0], told[1]);
        assert_eq!(told[0].0, ErrorCode::InvalidPassword);
    }
}

#[tokio::test]
async fn code_of_the_whole_is_that_of_those_who_answered() {
    let server = Server::start(TCP, ListenOptions::default()).await;
    let gone = Server::start(TCP, ListenOptions::default()).await.uri.clone();
    let wrong = party_with(Role::Worker, "w1", |input| input.password = Some("wrong".into())).await;
    let both = [gone.clone(), server.uri.clone()];
    let error = connect(&both, &wrong, &control(None)).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::InvalidPassword, "{error}");
    assert_eq!(error.attempts.iter().map(|attempt| attempt.was_answered).collect::<Vec<_>>(), [false, true]);
    for attempt in &error.attempts {
        assert!(error.to_string().contains(&attempt.address));
    }
    let error = connect(&[gone], &wrong, &control(None)).await.expect_err("nobody there");
    assert_eq!(error.code(), ErrorCode::NoConnections);
    let error = connect(&[], &wrong, &control(None)).await.expect_err("no address");
    assert_eq!(Error::from(error).code(), &ErrorCode::NoConnections);

    let mut other = identity(Role::Worker, "w1");
    other.versions = vec![99];
    let other = Party::new(other, wrong.keyring.clone());
    let error = connect(&both, &other, &control(None)).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::UnsupportedVersion);
}

#[tokio::test]
async fn unexpected_id_fails_its_address_only() {
    let first = Server::start(TCP, ListenOptions::default()).await;
    let second = Server::of(TCP, ListenOptions::default(), party_with(Role::Control, "c2", |_| ()).await, Limits::default()).await;
    let uris = [first.uri.clone(), second.uri.clone()];
    let ours = connect(&uris, &worker().await, &control(Some("c2"))).await.expect("let in");
    assert_eq!(ours.peer.id.as_str(), "c2");
    let error = connect(&uris, &worker().await, &control(Some("c3"))).await.expect_err("neither");
    assert_eq!(error.code(), ErrorCode::NoConnections);
    assert_eq!(error.attempts[0].error.code(), &ErrorCode::NotFound);
}

/// Checklist A13-6, N4.7.
#[tokio::test]
async fn what_is_no_handshake_is_refused_and_told_why() {
    for text in [TCP, TLS, QUIC] {
        let mut server = Server::start(text, ListenOptions::default()).await;
        let too_long = u32::try_from(FRAME_BYTES_MAX + 1).expect("short");
        let cases = [
            (frame(KIND_CLIENT_FIRST, b"garbage"), ErrorCode::ProtocolError),
            (frame(18, b"a call"), ErrorCode::NotAuthenticated),
            (frame(255, b""), ErrorCode::NotAuthenticated),
            (vec![0, 0, 0, 3, KIND_CLIENT_FIRST, 0, 7], ErrorCode::NotAuthenticated),
            (vec![0, 0, 0, 2, KIND_CLIENT_FIRST, 0], ErrorCode::ProtocolError),
            (vec![0xff, 0xff, 0xff, 0xff, 1, 0, 0], ErrorCode::ProtocolError),
            ([&too_long.to_be_bytes()[..], &[1; 8192]].concat(), ErrorCode::ProtocolError),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), ErrorCode::ProtocolError),
        ];
        for (bytes, code) in cases {
            assert_eq!(refusal_of(&server, &bytes).await.code, code, "{bytes:?}");
            assert_eq!(server.end().await.expect_err("refused").code(), &code);
        }
    }
}

#[tokio::test]
async fn peer_that_goes_away_half_way_is_a_failed_connection() {
    let mut server = Server::start(TCP, ListenOptions::default()).await;
    for bytes in [&b""[..], &[0, 0], &[0, 0, 1, 0, 1, 0, 0, 1, 2, 3]] {
        let mut wire = raw(&server).await;
        wire.write_all(bytes).await.expect("writes");
        drop(wire);
        let error = server.end().await.expect_err("gone");
        assert_eq!(error.code(), &ErrorCode::ConnectionFailed);
        assert!(error.message().starts_with("tcp:127.0.0.1:"), "{error}");
    }
}

#[tokio::test]
async fn listener_with_other_iterations_is_not_followed() {
    let server =
        Server::of(TCP, ListenOptions::default(), party_with(Role::Control, "c1", |input| input.iterations = 3).await, Limits::default())
            .await;
    let error = connect(std::slice::from_ref(&server.uri), &worker().await, &control(None)).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::InvalidPassword);
    assert!(error.to_string().contains("pbkdf2_iters"), "{error}");
}

#[tokio::test]
async fn refusal_with_another_iteration_count_names_nothing_of_ours() {
    let server = Server::start(TCP, ListenOptions::default()).await;
    let first = ClientFirst {
        versions: vec![1],
        features: vec![],
        cluster: "c".to_owned(),
        role: Role::Worker,
        id: NodeId::new("w1").expect("valid"),
        incarnation: Incarnation::from_bytes([1; 16]),
        expect_role: Role::Control,
        expect_id: None,
        nonce: serde_bytes::ByteArray::new([1; 32]),
        binding: crate::proto::auth::Binding::None,
        kdf: Kdf { iterations: 1 },
    };
    let body = rmp_serde::to_vec_named(&first).expect("encodes");
    let refusal = refusal_of(&server, &frame(KIND_CLIENT_FIRST, &body)).await;
    assert_eq!(refusal.code, ErrorCode::InvalidPassword);
    assert!(!refusal.message.contains(char::is_numeric) || refusal.message.contains("pbkdf2_iters") && !refusal.message.contains(" 2 "));
}

/// The man in the middle has a certificate of his own, and both sides accept any certificate.
#[tokio::test]
async fn relay_with_another_certificate_fails_by_channel_binding() {
    for text in [TLS, QUIC] {
        let mut server = Server::start(text, ListenOptions::default()).await;
        let relay = transport::Listener::bind(&uri(text), &ListenOptions::default()).await.expect("binds");
        let (middle, target) = (relay.uri().clone(), server.uri.clone());
        let relay = tokio::spawn(async move {
            let mut victim = relay.accept().await.into_wire().await.expect("TLS with the victim");
            let mut listener = transport::dial(&target, &DialOptions::default()).await.expect("TLS with the listener");
            tokio::io::copy_bidirectional(&mut victim, &mut listener).await
        });
        let error = connect(&[middle], &worker().await, &control(Some("c1"))).await.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::InvalidPassword);
        assert_eq!(server.end().await.expect_err("refused").code(), &ErrorCode::InvalidPassword);
        relay.abort();
    }
}

#[tokio::test]
async fn binding_is_left_off_only_where_the_certificate_was_verified_and_both_agree() {
    for text in [TLS, QUIC] {
        let files = tempfile::tempdir().expect("a directory");
        let state = ListenOptions { state_dir: Some(files.path().to_owned()), ..ListenOptions::default() };
        let strict = Server::start(text, state.clone()).await;
        let lenient = Server::start(&format!("{text};binding=off"), state).await;
        // The node's own certificate, trusted by name.
        let trusting = DialOptions {
            tls: TlsOptions { cacertfile: Some(files.path().join("tls/cert.pem")), verify: TlsVerify::Host, ..TlsOptions::default() },
            ..DialOptions::default()
        };
        let party = worker().await;
        let attempt = async |server: &Server, options: &DialOptions| {
            let uri = uri(&format!("{};binding=off", server.uri));
            dial_and_establish(&[uri], &party, &control(None), Order::AsGiven, options).await
        };
        attempt(&lenient, &trusting).await.expect("verified, and both say so");
        let error = attempt(&lenient, &DialOptions::default()).await.expect_err("not verified");
        assert!(error.to_string().contains("tls_verify"), "{error}");
        let error = attempt(&strict, &trusting).await.expect_err("the listener does not agree");
        assert_eq!(error.attempts[0].error.code(), &ErrorCode::TlsError, "{error}");
    }
}

#[tokio::test]
async fn missing_client_certificate_is_an_error_of_tls() {
    for text in [TLS, QUIC] {
        let files = tempfile::tempdir().expect("a directory");
        transport::certificate::own(Some(files.path())).expect("made");
        let tls = TlsOptions { cacertfile: Some(files.path().join("tls/cert.pem")), verify: TlsVerify::True, ..TlsOptions::default() };
        let mut server = Server::start(text, ListenOptions { tls, ..ListenOptions::default() }).await;
        let error = connect(std::slice::from_ref(&server.uri), &worker().await, &control(None)).await.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::NoConnections, "{error}");
        assert_eq!(server.end().await.expect_err("refused").code(), &ErrorCode::TlsError);
    }
}

/// A memory network with a control node at `c1`.
async fn simulated(limits: Limits) -> (MemoryNet, Server) {
    let net = MemoryNet::new();
    let options = ListenOptions { memory: Some(net.clone()), ..ListenOptions::default() };
    let server = Server::of("nkcluster://c1;transport=memory", options, party_with(Role::Control, "c1", |_| ()).await, limits).await;
    (net, server)
}

#[tokio::test(start_paused = true)]
async fn slow_drip_ends_after_the_limit() {
    let (net, mut server) = simulated(Limits::default()).await;
    let start = tokio::time::Instant::now();
    let mut wire = net.dial("slow", "c1").expect("dials");
    let drip = tokio::spawn(async move {
        for byte in frame(KIND_CLIENT_FIRST, &[0; 100]) {
            sleep(Duration::from_secs(1)).await;
            if wire.write_u8(byte).await.is_err() {
                break;
            }
        }
    });
    assert_eq!(server.end().await.expect_err("too slow").code(), &ErrorCode::Timeout);
    assert_eq!(start.elapsed().as_secs(), HANDSHAKE_TIMEOUT.as_secs(), "of the virtual clock");
    drip.await.expect("no panic");
}

/// The upgrade is a part of the handshake: one limit for both.
#[tokio::test(start_paused = true)]
async fn web_socket_that_is_never_asked_for_ends_after_the_limit() {
    let mut server = Server::start(WS, ListenOptions::default()).await;
    let start = tokio::time::Instant::now();
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.uri.effective_port())).await.expect("connects");
    let drip = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nHost: somewhere\r\n" {
            sleep(Duration::from_secs(1)).await;
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    });
    assert_eq!(server.end().await.expect_err("too slow").code(), &ErrorCode::Timeout);
    assert!(start.elapsed() >= HANDSHAKE_TIMEOUT, "of the virtual clock");
    drip.abort();
}

#[tokio::test]
async fn what_is_no_handshake_inside_a_web_socket_is_refused_like_anywhere() {
    let mut server = Server::start(WS, ListenOptions::default()).await;
    let refusal = refusal_of(&server, &frame(16, b"ping")).await;
    assert_eq!(refusal.code, ErrorCode::NotAuthenticated);
    assert_eq!(server.end().await.expect_err("refused").code(), &ErrorCode::NotAuthenticated);
    let wrong = party_with(Role::Worker, "w1", |input| input.password = Some("wrong".into())).await;
    let error = connect(std::slice::from_ref(&server.uri), &wrong, &control(None)).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::InvalidPassword);
}

#[tokio::test]
async fn header_of_a_balancer_that_is_none_is_a_protocol_error() {
    let mut server = Server::start(TCP, ListenOptions::default()).await;
    let mut wire = raw(&server).await;
    wire.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x03\xc0\xa8\0\x01\x12\x34\x07\xb5").await.expect("writes");
    assert_eq!(server.end().await.expect_err("refused").code(), &ErrorCode::ProtocolError);
}

#[tokio::test(start_paused = true)]
async fn silent_listener_is_left_after_the_limit() {
    let net = MemoryNet::new();
    let _listener = net.listen("c1").expect("listens");
    let options = DialOptions { memory: Some(net.node("w1")), ..DialOptions::default() };
    let uris = [uri("nkcluster://c1;transport=memory")];
    let error = dial_and_establish(&uris, &worker().await, &control(None), Order::Shuffled, &options).await.expect_err("silent");
    assert_eq!(error.attempts[0].error.code(), &ErrorCode::Timeout);
    assert_eq!(error.code(), ErrorCode::NoConnections);
}

#[tokio::test(start_paused = true)]
async fn wrong_proof_delays_its_own_answer_and_nobody_else() {
    let (net, mut server) = simulated(Limits::default()).await;
    let wrong = party_with(Role::Worker, "w2", |input| input.password = Some("wrong".into())).await;
    let right = worker().await;
    let start = tokio::time::Instant::now();
    let guess = {
        let wire = net.dial("w2", "c1").expect("dials");
        tokio::spawn(async move { dial(wire, &wrong, &control(None)).await })
    };
    dial(net.dial("w1", "c1").expect("dials"), &right, &control(None)).await.expect("let in");
    assert!(server.end().await.is_ok());
    assert_eq!(start.elapsed(), Duration::ZERO, "of the virtual clock");
    let error = guess.await.expect("no panic").expect_err("refused");
    assert_eq!(error.code(), &ErrorCode::InvalidPassword);
    assert!(start.elapsed() >= WRONG_PROOF_DELAY);
}

#[tokio::test(start_paused = true)]
async fn flood_of_silent_connections_keeps_nobody_out() {
    let (net, mut server) = simulated(Limits { untrusted: 4, rate: 1000 }).await;
    let silent: Vec<Wire> = (0..100).map(|_| net.dial("flood", "c1").expect("dials")).collect();
    dial(net.dial("w1", "c1").expect("dials"), &worker().await, &control(None)).await.expect("let in");
    let mut closed = 0;
    while let Err(error) = server.end().await {
        assert_eq!(error.code(), &ErrorCode::Busy);
        closed += 1;
    }
    assert!(closed >= 96, "{closed}");
    assert!(server.gate.untrusted() <= 4);
    drop(silent);
}
