//! Trusted peers that do what no honest one would (issue "Bad input"): they lose their own link, and nobody else notices.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use nkcluster::cluster::random_incarnation;
use nkcluster::config::Config;
use nkcluster::connection::establish::{Expect, Order, Party, dial_and_establish};
use nkcluster::job::{Classes, JobClass as _};
use nkcluster::proto::auth::{Identity, KeyringInput, Role};
use nkcluster::proto::frame::{self, BODY_BYTES_MAX, Frame, Kind};
use nkcluster::proto::head::{CallHead, Ping, Rank, Verb, put_call, put_ping, take_reply};
use nkcluster::proto::identity::CallIdentity;
use nkcluster::proto::message::FaultNotice;
use nkcluster::proto::session::{STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES_MAX};
use nkcluster::transport::{DialOptions, MemoryNet, Wire};
use nkcluster::types::{Incarnation, NodeUri, Payload, Secret, Transport};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::harness::{C1, CLUSTER, ITERATIONS, MemoryCluster, PASSWORD, SocketCluster, TIMEOUT, eventually, node_id, once, soon, uri};
use crate::raw::{memory, party, prove};
use crate::streams::{Flow, Flows, is_served};

/// A peer by hand, behind the handshake: it speaks in frames, or in worse.
struct Trusted {
    wire: Wire,
    buffer: BytesMut,
}

impl Trusted {
    fn new(wire: Wire) -> Self {
        Self { wire, buffer: BytesMut::new() }
    }

    async fn admin(c: &MemoryCluster) -> Self {
        let party = party(Role::Admin, "admin-by-hand").await;
        let wire = prove(&party, &uri(C1), Role::Control, &memory(&c.net, "by-hand")).await.expect("proved").wire;
        Self::new(wire)
    }

    /// Sends frames; false if the other side has gone.
    async fn send(&mut self, frames: &[Frame]) -> bool {
        let mut bytes = BytesMut::new();
        for Frame { kind, channel, body } in frames {
            frame::put_frame(&mut bytes, *kind, *channel, body);
        }
        self.send_bytes(&bytes).await
    }

    async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_all(bytes).await.is_ok() && self.wire.flush().await.is_ok()
    }

    /// What the node says next; none at the end.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::take_frame(&mut self.buffer, frame::BYTES_MAX).expect("nodes speak well") {
                return Some(frame);
            }
            let read = soon("a word of the node", self.wire.read_buf(&mut self.buffer)).await;
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }

    /// The next frame of a kind; what comes before is skipped.
    async fn next_of(&mut self, kind: Kind) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// The number of the fault by which the node ends the link.
    async fn fault(&mut self) -> Option<u16> {
        let fault = self.next_of(Kind::Fault).await?;
        let notice: FaultNotice = rmp_serde::from_slice(&fault.body).expect("a number");
        assert!(self.next().await.is_none(), "nothing comes behind a fault");
        Some(notice.number)
    }
}

fn of(kind: Kind, channel: u16, body: impl Into<Bytes>) -> Frame {
    Frame { kind, channel, body: body.into() }
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn call_body(node: &str, call: u32, stream: u32, flow: &Flow) -> BytesMut {
    let head = CallHead {
        verb: Verb::Request,
        timeout_ms: 60_000,
        identity: CallIdentity { edge: random_incarnation(), number: u64::from(call) },
        retry: false,
        hops: 0,
        exclusive: false,
        incarnation: Incarnation::default(),
        node: Some(node_id(node)),
        class: Some(Flows::NAME.parse().expect("a name")),
        task: None,
    };
    let mut body = BytesMut::new();
    put_call(&mut body, call, stream, &head);
    body.put_slice(&Payload::encode(flow).expect("encodes").into_bytes());
    body
}

fn call(number: u32, stream: u32, flow: &Flow) -> Frame {
    of(Kind::Call, 0, call_body("w1", number, stream, flow))
}

fn data(stream: u32, flags: u8, bytes: usize) -> Frame {
    let mut body = BytesMut::from(&numbers(&[stream])[..]);
    body.put_u8(flags);
    body.resize(5 + bytes, 7);
    of(Kind::StreamData, 0, body)
}

fn ping(seq: u64) -> Frame {
    let mut body = BytesMut::new();
    put_ping(&mut body, &Ping { seq, time_ms: 0, rank: Rank::default() });
    of(Kind::Ping, 0, body)
}

async fn start(flows: &Flows) -> (MemoryCluster, nkcluster::node::NodeHandle) {
    // Everybody shares one thread here, so that a ping waits for the work of them all.
    let patient = |config: &mut Config| config.ping_time = Duration::from_secs(5);
    let c = MemoryCluster::start_with(flows.classes(), patient).await;
    let worker = c.worker_with("w1", flows.classes(), patient).await;
    (c, worker)
}

#[tokio::test]
async fn breaches_end_the_link_with_the_number_of_their_fault() {
    let flows = Flows::new();
    let (c, _worker) = start(&flows).await;
    let open = call(1, 1, &Flow::Stall);
    let most = u32::try_from(STREAM_WINDOW_BYTES_MAX).expect("small");
    let large = data(1, 0, BODY_BYTES_MAX - 5);
    let mut odd_call = call_body("w1", 2, 0, &Flow::Stall);
    odd_call[9] = 0x80;
    let cases: Vec<(&str, Vec<Frame>, u16)> = vec![
        ("grants more than there is", vec![open.clone(), of(Kind::StreamCredit, 0, numbers(&[1, u32::MAX]))], 6),
        ("grants more than the largest window", vec![open.clone(), of(Kind::StreamCredit, 0, numbers(&[1, most]))], 6),
        ("ignores its credit", [vec![open.clone()], vec![large; 40]].concat(), 6),
        ("uses the id of a call again", vec![open.clone(), call(1, 0, &Flow::Stall)], 7),
        ("uses the id of a stream again", vec![open.clone(), call(2, 1, &Flow::Stall)], 7),
        ("uses ids of the other side", vec![call(1, 2, &Flow::Stall)], 7),
        ("opens a channel twice", vec![of(Kind::ChannelOpen, 1, Bytes::new()), of(Kind::ChannelOpen, 1, Bytes::new())], 7),
        ("a fragment without a beginning", vec![of(Kind::Fragment, 0, [&numbers(&[5])[..], &[0, 1, 2]].concat())], 5),
        ("flags of the future", vec![of(Kind::Call, 0, odd_call)], 5),
        ("data with flags of the future", vec![open, data(1, 0x40, 1)], 5),
        ("plays a control node", vec![of(Kind::ExclusiveDial, 0, vec![0x80])], 4),
    ];
    for (what, frames, number) in cases {
        let mut peer = Trusted::admin(&c).await;
        peer.send(&frames).await;
        assert_eq!(peer.fault().await, Some(number), "{what}");
    }
    let mut peer = Trusted::admin(&c).await;
    peer.send_bytes(&[0, 0, 0, 3, 200, 0, 0]).await;
    assert_eq!(peer.fault().await, Some(3), "a kind of the future");
    is_served(&c.cluster, "w1").await;
}

#[tokio::test]
async fn a_greedy_sender_is_cut_off_and_not_buffered() {
    let flows = Flows::new();
    let (c, _worker) = start(&flows).await;
    let mut peer = Trusted::admin(&c).await;
    assert!(peer.send(&[call(1, 1, &Flow::Stall)]).await);
    let (piece, mut sent) = (data(1, 2, 60_000), 0);
    while peer.send(std::slice::from_ref(&piece)).await {
        sent += 60_000;
        assert!(sent < 8 << 20, "somebody takes it all");
    }
    // What was granted on the two links on the way, and what the network and a reader hold.
    assert!(sent < 4 << 20, "{sent} bytes were taken");
    is_served(&c.cluster, "w1").await;
}

#[tokio::test]
async fn a_peer_that_never_grants_credit_gets_one_window_and_holds_up_nobody() {
    let flows = Flows::new();
    let (c, _worker) = start(&flows).await;
    let mut peer = Trusted::admin(&c).await;
    peer.send(&[call(1, 1, &Flow::Source(4 << 20))]).await;
    let mut received = 0;
    while received < STREAM_WINDOW_BYTES {
        received += peer.next_of(Kind::StreamData).await.expect("data").body.len() - 5;
    }
    assert_eq!(received, STREAM_WINDOW_BYTES);
    is_served(&c.cluster, "w1").await;
    for seq in 1..50 {
        peer.send(&[ping(seq)]).await;
        let answer = peer.next().await.expect("answered");
        let starving = answer.kind == Kind::StreamData && answer.body[4..] == [2];
        assert!(starving || answer.kind == Kind::Pong, "more than was granted: {answer:?}");
    }
}

#[tokio::test]
async fn a_peer_that_never_reads_is_cut_off_and_costs_little() {
    let flows = Flows::new();
    let (c, _worker) = start(&flows).await;
    let mut peer = Trusted::admin(&c).await;
    let pings: Vec<Frame> = (1..1000).map(ping).collect();
    let mut rounds = 0;
    while soon("the end", peer.send(&pings)).await {
        rounds += 1;
        assert!(rounds < 1000, "35 MB of pings, and no answer was read");
    }
    is_served(&c.cluster, "w1").await;
    // One that asks for something large and never reads it is no burden either.
    let mut peer = Trusted::admin(&c).await;
    let calls: Vec<Frame> = (1..20).map(|number| call(number, 2 * number + 1, &Flow::Source(1 << 20))).collect();
    peer.send(&calls).await;
    is_served(&c.cluster, "w1").await;
}

#[tokio::test]
async fn a_peer_that_opens_streams_without_end_is_told_busy() {
    let flows = Flows::new();
    let (c, _worker) = start(&flows).await;
    let mut peer = Trusted::admin(&c).await;
    let mut busy = 0;
    for round in 0..20 {
        let calls: Vec<Frame> = (1..=200).map(|number| round * 200 + number).map(|n| call(n, 2 * n + 1, &Flow::Stall)).collect();
        assert!(peer.send(&calls).await);
        peer.send(&[ping(1)]).await;
        loop {
            let mut frame = peer.next().await.expect("it is not cut off");
            match frame.kind {
                Kind::Pong => break,
                Kind::Reply => {
                    let (_, outcome) = take_reply(&mut frame.body).expect("a reply");
                    assert_eq!(outcome.expect_err("refused").code().name(), "busy");
                    busy += 1;
                }
                _ => {}
            }
        }
    }
    assert!(busy >= 4000 - 1024, "{busy} of 4000 were refused");
    is_served(&c.cluster, "w1").await;
    drop(peer);
    // What it had is free again, when the handlers look at their streams.
    flows.gate.open();
    let class = Flows::NAME.parse().expect("a name");
    eventually("room for streams", async || {
        let sink = Payload::encode(&Flow::Sink).expect("encodes");
        let opened = c.cluster.request_with_stream(&node_id("w1"), &class, sink, once()).await;
        let Ok((answer, mut stream)) = opened else { return false };
        stream.shutdown().await.is_ok() && answer.wait().await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn fragments_without_an_end_are_bounded_and_freed() {
    let flows = Flows::new();
    let (c, _worker) = start(&flows).await;
    let mut peer = Trusted::admin(&c).await;
    let first = |id: u32| {
        let mut body = BytesMut::from(&numbers(&[id])[..]);
        body.put_u8(1);
        body.put_u8(Kind::Call as u8);
        body.put_u32(16 << 20);
        body.put_slice(&call_body("w1", id, 0, &Flow::Sink));
        of(Kind::Fragment, 0, body)
    };
    peer.send(&(1..=40).map(first).collect::<Vec<_>>()).await;
    peer.send(&[ping(1)]).await;
    let mut refused = 0;
    loop {
        let mut frame = peer.next().await.expect("it is not cut off");
        match frame.kind {
            Kind::Reply => {
                assert_eq!(take_reply(&mut frame.body).expect("a reply").1.expect_err("refused").code().name(), "busy");
                refused += 1;
            }
            Kind::Pong => break,
            _ => {}
        }
    }
    assert_eq!(refused, 40 - 4, "64 MiB is room for four of 16 MiB");
    is_served(&c.cluster, "w1").await;
}

#[tokio::test]
async fn a_peer_of_a_later_version_is_understood() {
    #[derive(serde::Serialize)]
    struct Describe {
        status: &'static str,
        term: u64,
        gravity: f64,
        moons: Vec<&'static str>,
    }
    let c = MemoryCluster::start(Classes::new()).await;
    let identity = Identity {
        cluster: CLUSTER.to_owned(),
        role: Role::Worker,
        id: node_id("later"),
        incarnation: random_incarnation(),
        versions: vec![9, 1],
        features: vec!["time-travel".to_owned()],
    };
    let input = KeyringInput {
        cluster: CLUSTER.to_owned(),
        iterations: ITERATIONS,
        password: Some(Secret::new(PASSWORD)),
        ..KeyringInput::default()
    };
    let party = Party::prepare(identity, input).await.expect("keys");
    let expect = Expect::any(Role::Control);
    let dialled = dial_and_establish(&[uri(C1)], &party, &expect, Order::AsGiven, &memory(&c.net, "later")).await;
    let mut peer = Trusted::new(dialled.expect("version 1 is common").wire);
    let describe = Describe { status: "ready", term: 0, gravity: 9.81, moons: vec!["io", "europa"] };
    let body = rmp_serde::to_vec_named(&describe).expect("encodes");
    peer.send(&[of(Kind::Describe, 0, body)]).await;
    peer.next_of(Kind::Adopt).await.expect("it is wanted like any other");
}

#[tokio::test]
async fn half_a_close_is_a_close() {
    let flows = Flows::new();
    let c = SocketCluster::start(flows.classes()).await;
    let _worker = c.worker("w1", Transport::Tls, flows.classes()).await;
    for transport in [Transport::Tcp, Transport::Tls] {
        for role in [Role::Admin, Role::Worker] {
            let party = party(role, "half").await;
            let wire = prove(&party, &c.at(transport), Role::Control, &DialOptions::default()).await.expect("proved").wire;
            let mut peer = Trusted::new(wire);
            if role == Role::Admin {
                peer.send(&[call(1, 1, &Flow::Stall)]).await;
            }
            peer.wire.shutdown().await.expect("half of it");
            while peer.next().await.is_some() {}
        }
    }
    is_served(&c.cluster, "w1").await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dribbles_is_cut_off_and_a_client_only_takes_its_time() {
    let flows = Flows::new();
    let (c, _worker) = start(&flows).await;
    // Its introduction is late, however much of it has come.
    let party = party(Role::Worker, "slow").await;
    let wire = prove(&party, &uri(C1), Role::Control, &memory(&c.net, "slow")).await.expect("proved").wire;
    let mut peer = Trusted::new(wire);
    let began = Instant::now();
    let mut frame = BytesMut::new();
    frame::put_frame(&mut frame, Kind::Describe, 0, &[0; 1000]);
    let mut sent = 0;
    while peer.send_bytes(&frame[sent..=sent]).await {
        sent += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let lasted = began.elapsed();
    assert!(lasted >= Duration::from_secs(5) && lasted < Duration::from_secs(10), "{lasted:?}");
    // A client holds what an idle one holds, and one unfinished frame.
    let mut peer = Trusted::admin(&c).await;
    let mut frame = BytesMut::new();
    frame::put_frame(&mut frame, Kind::Call, 0, &call_body("nobody", 1, 0, &Flow::Sink));
    for byte in &frame {
        assert!(peer.send_bytes(&[*byte]).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut reply = peer.next_of(Kind::Reply).await.expect("answered");
    assert_eq!(take_reply(&mut reply.body).expect("a reply").1.expect_err("nobody").code().name(), "not_found");
    is_served(&c.cluster, "w1").await;
}

/// Forwards links to `c1`, and forgets those on which one side has said nothing for a minute.
fn forgetful(net: &MemoryNet, at: &str) -> tokio::task::JoinHandle<()> {
    const IDLE: Duration = Duration::from_secs(60);
    let listener = net.listen(at).expect("the name is free");
    let (net, at) = (net.clone(), at.to_owned());
    tokio::spawn(async move {
        loop {
            let mut dialler = listener.accept().await;
            let Ok(mut behind) = net.dial(&at, "c1") else { continue };
            tokio::spawn(async move {
                let (mut from, mut to) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
                let (mut up, mut down) = (Instant::now(), Instant::now());
                loop {
                    tokio::select! {
                        read = dialler.read(&mut from) => match read {
                            Ok(count @ 1..) if behind.write_all(&from[..count]).await.is_ok() => up = Instant::now(),
                            _ => return,
                        },
                        read = behind.read(&mut to) => match read {
                            Ok(count @ 1..) if dialler.write_all(&to[..count]).await.is_ok() => down = Instant::now(),
                            _ => return,
                        },
                        () = tokio::time::sleep_until(up.min(down) + IDLE) => return,
                    }
                }
            });
        }
    })
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_outlives_intermediaries_that_forget_after_a_minute() {
    // The largest that the configuration allows.
    let seldom = |config: &mut Config| config.ping_time = Duration::from_secs(60);
    let c = MemoryCluster::start_with(Classes::new(), seldom).await;
    let middle = forgetful(&c.net, "middle");
    let through: NodeUri = uri("nkcluster://middle;transport=memory");
    let worker = c.worker_with("w1", Classes::new(), |config| {
        seldom(config);
        config.stats_time = Duration::from_secs(600);
        config.cluster_addr = vec![through.clone()];
    });
    let _worker = worker.await;
    let mut options = crate::harness::connect_options(vec![through.clone()]);
    options.memory = Some(c.net.node("admin"));
    let client = nkcluster::cluster::Cluster::connect(options).await.expect("connects");
    client.ping(&node_id("w1"), TIMEOUT).await.expect("answered");
    let term = c.info("w1").await.proxies[0].term;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(c.net.links("middle", "c1"), 2, "the worker's and the client's");
    client.ping(&node_id("w1"), TIMEOUT).await.expect("answered");
    assert_eq!(c.info("w1").await.proxies[0].term, term);
    middle.abort();
}
