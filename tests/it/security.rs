//! What strangers, stolen workers and broken peers can do: nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nkcluster::cluster::{Cluster, random_incarnation};
use nkcluster::config::{ClassList, Config};
use nkcluster::connection::establish::HANDSHAKE_TIMEOUT;
use nkcluster::job::{Classes, JobClass, RequestContext, TypedCalls};
use nkcluster::node::{Node, NodeError};
use nkcluster::proto::auth::{Keyring, KeyringInput, NodeToken, Role, SaltedPassword};
use nkcluster::proto::frame::{BYTES_MAX, BYTES_MAX_UNTRUSTED, Fault, Kind};
use nkcluster::proto::head::{CallHead, EventHead, EventKind, Verb};
use nkcluster::proto::identity::{CallIdentity, Rank, Ticket};
use nkcluster::proto::message::{Adopt, Adopted, EventAck, Message, Preferred, Resync};
use nkcluster::proto::session::Side;
use nkcluster::transport::memory::Flow;
use nkcluster::transport::{self, DialOptions, Wire};
use nkcluster::types::{ClassName, Incarnation, NodeStatus, NodeUri, Secret, Transport};
use nkcluster::{Error, ErrorCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::classes::{Ask, Probe};
use crate::harness::{
    C1, CLUSTER, ITERATIONS, MemoryCluster, PASSWORD, SocketCluster, TIMEOUT, connect_options, control_config, eventually, kind, node_id,
    once, soon, uri, wait_status, worker_config,
};
use crate::raw::{RawLink, RawListener, dial, memory, party, party_with, prove};
use crate::relay::{Passes, Relay};

const W1: &str = "nkcluster://w1;transport=memory";

fn failed<T: std::fmt::Debug>(result: Result<T, Error>) -> Error {
    result.expect_err("refused")
}

fn core() -> ClassName {
    ClassName::new("core").expect("valid")
}

fn a_call(node: &str) -> CallHead {
    CallHead {
        verb: Verb::Request,
        timeout_ms: 1000,
        identity: CallIdentity { edge: random_incarnation(), number: 1 },
        retry: false,
        hops: 0,
        exclusive: false,
        incarnation: Incarnation::default(),
        node: Some(node_id(node)),
        class: Some(core()),
        task: None,
    }
}

/// The node is whole: it lets people in and answers, and knows only the nodes that it should.
async fn is_unharmed(c: &MemoryCluster, nodes: &[&str]) {
    let admin = c.admin().await;
    let known = admin.nodes(None, TIMEOUT).await.expect("answered").nodes;
    assert_eq!(known.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), nodes);
    admin.ping(&node_id("c1"), TIMEOUT).await.expect("answered");
}

#[tokio::test]
async fn a_worker_that_makes_a_call_is_cut_off() {
    let c = MemoryCluster::start(Classes::new()).await;
    for with_own_channel in [false, true] {
        let mut worker = dial(&c.net, &party(Role::Worker, "stolen").await, C1, Role::Control).await.expect("proved");
        let channel = if with_own_channel { worker.link.open_channel().expect("open") } else { worker.link.channel_zero() };
        let answer = channel.call(&a_call("c1"), &Bytes::new(), TIMEOUT).await;
        assert_eq!(kind(&failed(answer)), ("connection_failed", true));
        let reason = worker.closed().await;
        assert_eq!(reason.code(), &ErrorCode::ProtocolError);
        let number = Fault::NotAllowed(Kind::Call).number();
        assert!(reason.message().ends_with(&format!("fault number {number}")), "{reason}");
    }
    is_unharmed(&c, &["c1"]).await;
}

#[tokio::test]
async fn a_call_in_fragments_is_a_call_too() {
    let c = MemoryCluster::start(Classes::new()).await;
    let mut worker = dial(&c.net, &party(Role::Worker, "stolen").await, C1, Role::Control).await.expect("proved");
    let large = Bytes::from(vec![0; 1 << 20]);
    let answer = worker.link.channel_zero().call(&a_call("c1"), &large, TIMEOUT).await;
    assert_eq!(kind(&failed(answer)), ("connection_failed", true));
    // It was still writing, so it may not have heard why.
    let reason = worker.closed().await;
    assert!([ErrorCode::ProtocolError, ErrorCode::ConnectionFailed].contains(reason.code()), "{reason}");
    is_unharmed(&c, &["c1"]).await;
}

#[tokio::test]
async fn whoever_plays_another_role_is_cut_off() {
    let c = MemoryCluster::start(Classes::new()).await;
    let adopt = Adopt {
        worker_incarnation: c.info("c1").await.incarnation.expect("known"),
        seen_term: 1,
        owner: node_id("evil"),
        owner_incarnation: random_incarnation(),
        rank: Rank { view: u32::MAX, hash: u64::MAX },
        ticket: None,
        ping_ms: 0,
    };
    let of_control = [
        Message::Adopt(adopt),
        Message::EventAck(EventAck { class: core(), seq: 1, followed: 0 }),
        Message::Preferred(Preferred { addresses: vec![uri("nkcluster://evil;transport=memory")] }),
    ];
    let of_workers = [
        Message::Adopted(Adopted::Granted { term: 9, ticket: Ticket::from_bytes([0; 16]) }),
        Message::Resync(Resync { class: core(), next_seq: 1, tasks: Vec::new(), more: false }),
    ];
    let worker = of_control.iter().map(|message| (Role::Worker, message));
    let admin = of_control.iter().chain(&of_workers).map(|message| (Role::Admin, message));
    for (role, message) in worker.chain(admin) {
        let mut peer = dial(&c.net, &party(role, "evil").await, C1, Role::Control).await.expect("proved");
        peer.link.channel_zero().message(message);
        assert_eq!(peer.closed().await.code(), &ErrorCode::ProtocolError, "{role} sends {message:?}");
    }
    let mut admin = dial(&c.net, &party(Role::Admin, "evil").await, C1, Role::Control).await.expect("proved");
    admin.introduce(Vec::new());
    assert_eq!(admin.closed().await.code(), &ErrorCode::ProtocolError, "an admin introduces itself as a worker");
    let mut admin = dial(&c.net, &party(Role::Admin, "evil").await, C1, Role::Control).await.expect("proved");
    let event = EventHead { seq: 1, time_ms: 0, kind: EventKind::Class, class: core(), task: None, audience: Default::default() };
    admin.link.channel_zero().event(&event, b"\xc0");
    assert_eq!(admin.closed().await.code(), &ErrorCode::ProtocolError, "an admin sends an event");
    is_unharmed(&c, &["c1"]).await;
}

#[tokio::test]
async fn a_worker_lets_in_nobody_but_control_nodes() {
    let c = MemoryCluster::start(Classes::new()).await;
    let _worker = c.start_worker("w1", Classes::new(), only_listens).await;
    for role in [Role::Worker, Role::Admin] {
        let error = failed(dial(&c.net, &party(role, "evil").await, W1, Role::Worker).await.map(|_| ()));
        assert!(error.message().contains("not_allowed"), "{role}: {error}");
    }
    c.cluster.attach(&uri(W1), TIMEOUT).await.expect("a control node is let in");
}

fn only_listens(config: &mut Config) {
    config.cluster_addr.clear();
    config.listen = vec![uri(W1)];
}

/// Separate secrets, of which a thief has only that of the workers.
fn separate(config: &mut Config) {
    config.worker_password = Some(Secret::new("of workers"));
    config.admin_password = Some(Secret::new("of admins"));
    config.control_password = Some(Secret::new("of control nodes"));
}

fn control_public() -> [u8; 32] {
    let input = KeyringInput {
        cluster: CLUSTER.to_owned(),
        iterations: ITERATIONS,
        password: Some(Secret::new(PASSWORD)),
        control_password: Some(Secret::new("of control nodes")),
        ..KeyringInput::default()
    };
    Keyring::derive(Role::Control, &input).expect("keys").control_public().expect("a control node signs")
}

#[tokio::test]
async fn a_stolen_worker_cannot_play_a_control_node_where_the_key_is_known() {
    let c = MemoryCluster::start_with(Classes::new(), separate).await;
    let knows_the_key = |config: &mut Config| {
        config.worker_password = Some(Secret::new("of workers"));
        config.control_key = Some(control_public());
    };
    let listening = |config: &mut Config| {
        knows_the_key(config);
        only_listens(config);
    };
    let _worker = c.start_worker("w1", Classes::new(), listening).await;
    let thief =
        party_with(Role::Control, "c1", random_incarnation(), |input| input.worker_password = Some(Secret::new("of workers"))).await;
    // It dials the worker.
    let error = failed(dial(&c.net, &thief, W1, Role::Worker).await.map(|_| ()));
    assert_eq!(error.code(), &ErrorCode::InvalidPassword, "{error}");
    // It waits for a worker to dial.
    let trap = RawListener::bind(&c.net, "nkcluster://trap;transport=memory", thief).await;
    let _other = c
        .start_worker("w2", Classes::new(), |config| {
            knows_the_key(config);
            config.cluster_addr = vec![uri("nkcluster://trap;transport=memory"), uri(C1)];
        })
        .await;
    c.wait_status("w2", NodeStatus::Ready).await;
    // An application that knows the key is not deceived either.
    let mut options = connect_options(vec![uri("nkcluster://trap;transport=memory")]);
    options.password = Secret::new("of workers");
    options.control_key = Some(control_public());
    options.memory = Some(c.net.node("admin"));
    let deceived = tokio::join!(Cluster::connect(options), async {
        // The worker may have come before.
        while trap.accept().await.is_err_and(|error| !error.message().contains("admin")) {}
    });
    deceived.0.map(|_| ()).expect_err("it does not sign");
    // The real one is obeyed.
    assert_eq!(c.cluster.attach(&uri(W1), TIMEOUT).await.expect("it signs"), node_id("w1"));
}

#[tokio::test]
async fn each_secret_opens_only_the_door_of_its_role() {
    let c = MemoryCluster::start_with(Classes::new(), separate).await;
    let secrets = [(Role::Worker, "of workers"), (Role::Admin, "of admins"), (Role::Control, "of control nodes")];
    for role in [Role::Worker, Role::Admin] {
        for (of, secret) in secrets {
            let party = party_with(role, "somebody", random_incarnation(), |input| input.password = Some(Secret::new(secret))).await;
            let proved = dial(&c.net, &party, C1, Role::Control).await;
            assert_eq!(proved.is_ok(), of == role, "{role} with the secret of {of}");
        }
    }
    let _worker = c.worker_with("w1", Classes::new(), |config| config.worker_password = Some(Secret::new("of workers"))).await;
}

#[tokio::test]
async fn a_node_token_is_good_for_one_id() {
    let c = MemoryCluster::start_with(Classes::new(), |config| {
        config.worker_password = Some(Secret::new("master"));
        config.node_tokens = true;
    })
    .await;
    let iterations = ITERATIONS.try_into().expect("not zero");
    let master = SaltedPassword::derive(&Secret::new("master"), CLUSTER, Role::Worker, iterations);
    let token = NodeToken::issue(&master, CLUSTER, &node_id("w1")).to_hex();
    let with_token = |id: &'static str| {
        let token = token.clone();
        async move { party_with(Role::Worker, id, random_incarnation(), |input| input.node_token = Some(token)).await }
    };
    let error = failed(dial(&c.net, &with_token("w2").await, C1, Role::Control).await.map(|_| ()));
    assert_eq!(error.code(), &ErrorCode::InvalidPassword, "{error}");
    let master = party_with(Role::Worker, "w1", random_incarnation(), |input| input.worker_password = Some(Secret::new("master"))).await;
    assert!(dial(&c.net, &master, C1, Role::Control).await.is_err(), "the master secret is not a token");
    let _worker = c.worker_with("w1", Classes::new(), |config| config.node_token = Some(token.clone())).await;
}

#[tokio::test]
async fn another_password_cluster_or_number_of_rounds_is_refused_in_the_same_words() {
    let c = MemoryCluster::start(Classes::new()).await;
    let connect = |change: fn(&mut nkcluster::cluster::ConnectOptions)| {
        let mut options = connect_options(vec![uri(C1)]);
        options.memory = Some(c.net.node("admin"));
        change(&mut options);
        Cluster::connect(options)
    };
    connect(|_| ()).await.expect("right");
    for wrong in [
        connect(|options| options.password = Secret::new("wrong")).await,
        connect(|options| options.cluster_name = "another".to_owned()).await,
        connect(|options| options.pbkdf2_iters += 1).await,
    ] {
        assert_eq!(failed(wrong).code(), &ErrorCode::InvalidPassword);
    }
    let _worker = c.start_worker("w1", Classes::new(), |config| config.cluster_name = "another".to_owned()).await;
    let _other = c.worker("w2", Classes::new()).await;
    is_unharmed(&c, &["c1", "w2"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_proof_is_answered_late_and_delays_nobody_else() {
    let c = MemoryCluster::start(Classes::new()).await;
    let wrong = party_with(Role::Admin, "guesser", random_incarnation(), |input| input.password = Some(Secret::new("guess"))).await;
    let right = party(Role::Admin, "honest").await;
    let began = Instant::now();
    let guess = async {
        let error = failed(dial(&c.net, &wrong, C1, Role::Control).await.map(|_| ()));
        assert_eq!(error.code(), &ErrorCode::InvalidPassword);
        began.elapsed()
    };
    let honest = async {
        dial(&c.net, &right, C1, Role::Control).await.map(|_| ()).expect("right");
        began.elapsed()
    };
    let (guess, honest) = tokio::join!(guess, honest);
    assert_eq!(honest, Duration::ZERO);
    assert!(guess >= Duration::from_millis(500), "{guess:?}");
}

#[tokio::test]
async fn the_listener_says_nothing_of_a_secret_before_the_dialler_has_proved_itself() {
    let c = MemoryCluster::start(Classes::new()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watching = Arc::clone(&seen);
    let _relay = Relay::start(&c.net, "between", "c1", move |_, frame| {
        watching.lock().expect("not poisoned").push((frame.from_listener, frame.kind, frame.body.clone()));
        // The proof never arrives.
        if frame.kind == 3 { Passes::Dropped } else { Passes::Yes }
    });
    let party = party(Role::Admin, "admin").await;
    let between = uri("nkcluster://between;transport=memory");
    let options = memory(&c.net, "admin");
    let proving = prove(&party, &between, Role::Control, &options);
    tokio::select! {
        proved = proving => panic!("it ended: {proved:?}"),
        () = eventually("the proof was sent", async || seen.lock().expect("not poisoned").len() == 3) => {}
    }
    let seen = seen.lock().expect("not poisoned");
    assert_eq!(seen.iter().map(|(from, kind, _)| (*from, *kind)).collect::<Vec<_>>(), [(false, 1), (true, 2), (false, 3)]);
    for (_, kind, body) in seen.iter() {
        assert!(!body.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes()), "frame {kind} has the password");
    }
}

/// Reads until the other side closes.
async fn until_closed(wire: &mut Wire) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is an end as well.
    let _ = soon("the end of the connection", wire.read_to_end(&mut said)).await;
    said
}

fn frame(length: u32, kind: u8, channel: u16, body: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], &[kind], &channel.to_be_bytes(), body].concat()
}

/// What a stranger may say.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let untrusted_max = u32::try_from(BYTES_MAX_UNTRUSTED).expect("small");
    vec![
        ("garbage", (0..=255).rev().cycle().take(3000).collect()),
        ("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a frame of 4 GiB", frame(u32::MAX, 1, 0, b"")),
        ("a frame that is one byte too large", frame(untrusted_max + 1, 1, 0, &[0; 100])),
        ("a frame without room for its kind", vec![0, 0, 0, 2, 1, 0]),
        ("a call", frame(3, 18, 1, b"")),
        ("a proof before the hello", frame(4, 3, 0, b"\x80")),
        ("a hello of nested lists", frame(2003, 1, 0, &[0x91; 2000])),
        ("a hello that is a map of 4 G entries", frame(8, 1, 0, b"\xdf\xff\xff\xff\xff")),
    ]
}

#[tokio::test]
async fn strangers_who_talk_nonsense_are_sent_away() {
    let c = SocketCluster::start(Classes::new()).await;
    let memory_cluster = MemoryCluster::start(Classes::new()).await;
    let on_memory = memory(&memory_cluster.net, "stranger");
    let doors = [(c.at(Transport::Tcp), DialOptions::default()), (c.at(Transport::Tls), DialOptions::default()), (uri(C1), on_memory)];
    for (at, options) in &doors {
        for (what, bytes) in nonsense() {
            let mut wire = transport::dial(at, options).await.expect("a connection");
            // It may be closed before everything is written.
            let _ = wire.write_all(&bytes).await;
            let _ = wire.flush().await;
            let said = until_closed(&mut wire).await;
            assert!(said.len() < 256, "{what} over {at} was answered by {} bytes", said.len());
            // Truncated, and gone.
            let mut wire = transport::dial(at, options).await.expect("a connection");
            let _ = wire.write_all(&bytes[..bytes.len() / 2]).await;
            drop(wire);
        }
        // The TLS port hears no TLS, or half of it.
        if at.transport() == Some(Transport::Tls) {
            let plain = at.clone().with_transport(Transport::Tcp);
            for (_, bytes) in nonsense() {
                let mut wire = transport::dial(&plain, options).await.expect("a connection");
                let _ = wire.write_all(&bytes).await;
                let _ = wire.shutdown().await;
                until_closed(&mut wire).await;
            }
        }
    }
    is_unharmed(&memory_cluster, &["c1"]).await;
    for transport in [Transport::Tcp, Transport::Tls] {
        let client = Cluster::connect(connect_options(vec![c.at(transport)])).await.expect("connects");
        client.ping(&node_id("c1"), TIMEOUT).await.expect("answered");
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_have_five_seconds_however_slowly_they_speak() {
    let c = MemoryCluster::start(Classes::new()).await;
    for pause in [None, Some(Duration::from_millis(900)), Some(Duration::from_millis(10))] {
        let mut wire = transport::dial(&uri(C1), &memory(&c.net, "stranger")).await.expect("a connection");
        let began = Instant::now();
        let hello = frame(4000, 1, 0, &[0; 4000]);
        let drip = async {
            let Some(pause) = pause else { return until_closed(&mut wire).await };
            for byte in hello {
                if wire.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            Vec::new()
        };
        soon("the end of the connection", drip).await;
        let lasted = began.elapsed();
        assert!(lasted >= HANDSHAKE_TIMEOUT && lasted < 2 * HANDSHAKE_TIMEOUT, "{pause:?}: {lasted:?}");
    }
    is_unharmed(&c, &["c1"]).await;
}

#[tokio::test]
async fn silent_strangers_keep_nobody_out() {
    let c = MemoryCluster::start_with(Classes::new(), |config| config.max_unauthenticated = 4).await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(transport::dial(&uri(C1), &memory(&c.net, "stranger")).await.expect("a connection"));
    }
    is_unharmed(&c, &["c1"]).await;
    let _worker = c.worker("w1", Classes::new()).await;
}

#[tokio::test]
async fn peers_who_break_the_protocol_after_they_were_trusted_are_cut_off() {
    let c = SocketCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Transport::Tls, Classes::new()).await;
    let too_large = u32::try_from(BYTES_MAX).expect("small") + 1;
    let faults = [
        ("a frame of 4 GiB", frame(u32::MAX, 16, 0, b"")),
        ("a frame that is one byte too large", frame(too_large, 16, 0, b"")),
        ("a frame without room for its kind", vec![0, 0, 0, 0, 16, 0, 0]),
        ("an unknown kind", frame(3, 250, 0, b"")),
        ("a second handshake", frame(4, 1, 0, b"\x80")),
        ("a ping that is too short", frame(5, 16, 0, b"xx")),
        ("a channel without an end", frame(6, 35, 9, b"\xdf\xff\xff")),
        ("data for no stream, too short", frame(4, 22, 1, b"x")),
        ("a fragment of nothing", frame(4, 25, 1, b"x")),
        ("garbage", (0..=255).cycle().take(100_000).collect()),
    ];
    for transport in [Transport::Tcp, Transport::Tls] {
        for role in [Role::Admin, Role::Worker] {
            let party = party(role, "broken").await;
            for (what, bytes) in &faults {
                let at = c.at(transport);
                let mut trusted = prove(&party, &at, Role::Control, &DialOptions::default()).await.expect("proved").wire;
                let _ = trusted.write_all(bytes).await;
                let _ = trusted.flush().await;
                let said = until_closed(&mut trusted).await;
                assert!(said.len() < 1024, "{what} of {role} over {transport} was answered by {} bytes", said.len());
                let mut trusted = prove(&party, &at, Role::Control, &DialOptions::default()).await.expect("proved").wire;
                let _ = trusted.write_all(&bytes[..bytes.len() / 2]).await;
                drop(trusted);
            }
        }
    }
    let client = Cluster::connect(connect_options(vec![c.at(Transport::Tls)])).await.expect("connects");
    client.ping(&node_id("w1"), TIMEOUT).await.expect("answered");
    let nodes = client.nodes(None, TIMEOUT).await.expect("answered").nodes;
    assert_eq!(nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["c1", "w1"]);
}

#[tokio::test]
async fn a_worker_survives_a_control_node_that_breaks_the_protocol() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c
        .start_worker("w1", probe.classes(), |config| {
            config.listen = vec![uri(W1)];
        })
        .await;
    c.wait_status("w1", NodeStatus::Ready).await;
    let evil = party(Role::Control, "c9").await;
    for bytes in [frame(u32::MAX, 18, 1, b""), frame(4, 36, 1, b"\xc1"), frame(3, 200, 1, b""), frame(6, 18, 1, b"\x01\x02\x03")] {
        let mut trusted = prove(&evil, &uri(W1), Role::Worker, &memory(&c.net, "c9")).await.expect("proved").wire;
        trusted.write_all(&bytes).await.expect("written");
        until_closed(&mut trusted).await;
    }
    // One that keeps to the protocol, but holds nothing, is fenced.
    let mut other = dial(&c.net, &evil, W1, Role::Worker).await.expect("proved");
    let channel = other.link.open_channel().expect("open");
    let answer = channel.call(&CallHead { node: None, ..a_call("w1") }, &Bytes::new(), TIMEOUT).await;
    assert_eq!(kind(&failed(answer)), ("fenced", false));
    let fenced = other
        .message(|_, message| match message {
            Message::Fenced(fenced) => Some(fenced),
            _ => None,
        })
        .await;
    assert_eq!(fenced.holder, Some(node_id("c1")));
    channel.message(&Message::Adopt(Adopt {
        worker_incarnation: c.info("w1").await.incarnation.expect("known"),
        seen_term: fenced.term,
        owner: node_id("c9"),
        owner_incarnation: random_incarnation(),
        rank: Rank { view: 1, hash: 0 },
        ticket: Some(Ticket::from_bytes([1; 16])),
        ping_ms: 0,
    }));
    let refused = other
        .message(|_, message| match message {
            Message::Adopted(answer) => Some(answer),
            _ => None,
        })
        .await;
    assert!(matches!(refused, Adopted::Refused { .. }), "neither rank nor ticket: {refused:?}");
    let reply = c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Echo("unharmed".into()), once()).await;
    assert_eq!(reply.expect("answered"), "unharmed");
}

#[tokio::test]
async fn a_clone_of_a_live_worker_is_refused_and_told_why() {
    let c = MemoryCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Classes::new()).await;
    let first = c.info("w1").await;
    for _ in 0..3 {
        let mut clone = dial(&c.net, &party(Role::Worker, "w1").await, C1, Role::Control).await.expect("proved");
        clone.introduce(Vec::new());
        let reason = clone
            .message(|_, message| match message {
                Message::GoAway(away) => Some(away.reason),
                _ => None,
            })
            .await;
        assert_eq!(reason.code(), &ErrorCode::NodeIdInUse, "{reason}");
        clone.closed().await;
    }
    let after = c.info("w1").await;
    assert_eq!((after.incarnation, after.status), (first.incarnation, NodeStatus::Ready));
    assert_eq!(after.proxies[0].term, first.proxies[0].term, "the first one has not noticed");
    c.cluster.ping(&node_id("w1"), TIMEOUT).await.expect("answered");
}

#[tokio::test]
async fn a_newcomer_takes_over_the_id_of_a_worker_that_is_dead() {
    let c = MemoryCluster::start(Classes::new()).await;
    let worker = c.worker("w1", Classes::new()).await;
    let first = c.info("w1").await.incarnation;
    // Frozen: its link is open, but nobody is there.
    c.net.set_flow("w1", "c1", Flow::Frozen);
    let mut newcomer = {
        let party = party(Role::Worker, "w1").await;
        let established = prove(&party, &uri(C1), Role::Control, &memory(&c.net, "elsewhere")).await.expect("proved");
        RawLink::start(established, Side::Dialler)
    };
    newcomer.join(Vec::new()).await;
    eventually("it took over", async || {
        let info = c.info("w1").await;
        info.status == NodeStatus::Ready && info.incarnation != first
    })
    .await;
    // A real one follows when that is gone too.
    let second = c.info("w1").await.incarnation;
    drop(newcomer);
    c.net.cut("elsewhere", "c1");
    drop(worker);
    c.net.set_flow("w1", "c1", Flow::Open);
    let _third = c.start_worker("w1", Classes::new(), |_| ()).await;
    eventually("it took over", async || {
        let info = c.info("w1").await;
        info.status == NodeStatus::Ready && info.incarnation != second
    })
    .await;
}

#[tokio::test]
async fn the_password_that_everybody_knows_guards_only_loopback() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let start = |listen: &str, allowed: bool| {
        let mut config = control_config(&dir, "c1", listen);
        config.password = Secret::new(Config::DEFAULT_PASSWORD);
        config.allow_default_password = allowed;
        Node::start(config, Classes::new())
    };
    match start("nkcluster://0.0.0.0:0;transport=tcp", false).await {
        Err(NodeError::Config(error)) => assert!(error.message().contains("password"), "{error}"),
        other => panic!("it does not start: {other:?}"),
    }
    start("nkcluster://127.0.0.1:0;transport=tcp", false).await.expect("only this machine").stop().await;
    start("nkcluster://0.0.0.0:0;transport=tcp", true).await.expect("as wished").stop().await;
}

#[tokio::test]
async fn a_class_that_is_not_enabled_does_not_exist() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.worker_with("w1", probe.classes(), |config| config.classes = ClassList::Only(vec![core()])).await;
    assert_eq!(c.info("w1").await.classes, [core()]);
    let asked = c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Count, once()).await;
    assert_eq!(kind(&failed(asked)), ("unknown_class", false));
    let started = c.cluster.start::<Probe>(&node_id("w1"), &crate::classes::Spec::Future, once()).await;
    assert_eq!(kind(&failed(started)), ("unknown_class", false));
    assert_eq!(probe.executed(), 0);
    c.cluster.ping(&node_id("w1"), TIMEOUT).await.expect("core is always there");
}

/// A class that touches the machine, if it may.
struct Toucher;

impl JobClass for Toucher {
    const NAME: &'static str = "toucher";
    type Request = String;
    type Reply = ();

    async fn request(&self, ctx: RequestContext, what: String) -> nkcluster::Result<()> {
        ctx.require_grant(&what)
    }
}

#[tokio::test]
async fn a_class_touches_the_machine_only_where_it_was_granted() {
    let classes = || Classes::new().with(Toucher);
    let c = MemoryCluster::start(classes()).await;
    let toucher: ClassName = ClassName::new("toucher").expect("valid");
    let _denied = c.worker_with("w1", classes(), |config| config.grants = ClassList::Only(vec![core()])).await;
    let _granted = c.worker_with("w2", classes(), |config| config.grants = ClassList::Only(vec![toucher])).await;
    let ask = async |node: &str| c.cluster.ask::<Toucher>(&node_id(node), &"write to /srv".to_owned(), once()).await;
    let error = failed(ask("w1").await);
    assert_eq!(kind(&error), ("not_allowed", false));
    assert!(error.message().contains("w1") && error.message().contains("write to /srv") && error.message().contains("grants"), "{error}");
    ask("w2").await.expect("it is granted");
}

#[tokio::test]
async fn over_tls_a_man_in_the_middle_gets_no_link() {
    // He ends TLS with a certificate of his own towards the client, and dials the node himself.
    for transport in [Transport::Tls, Transport::Quic] {
        let c = SocketCluster::start(Classes::new()).await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listen = transport::ListenOptions { state_dir: Some(dir.path().to_owned()), ..Default::default() };
        let trap =
            transport::Listener::bind(&uri(&format!("nkcluster://127.0.0.1:0;transport={transport}")), &listen).await.expect("binds");
        let (trap_uri, node): (NodeUri, NodeUri) = (trap.uri().clone(), c.at(transport));
        let relay = tokio::spawn(async move {
            loop {
                let mut client = trap.accept().await.into_wire().await.expect("TLS with the client");
                let mut server = transport::dial(&node, &DialOptions::default()).await.expect("TLS with the node");
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
        let error = failed(Cluster::connect(connect_options(vec![trap_uri.clone()])).await);
        assert_eq!(error.code(), &ErrorCode::InvalidPassword, "{error}");
        let config = worker_config(&c.dir, "w1", &trap_uri.to_string());
        let _worker = Node::start(config, Classes::new()).await.expect("starts");
        let _other = c.worker("w2", transport, Classes::new()).await;
        wait_status(&c.cluster, "w2", NodeStatus::Ready).await;
        assert!(c.cluster.info(&node_id("w1"), TIMEOUT).await.is_err());
        relay.abort();
    }
}
