//! One suite over every transport, and what only some of them meet on their way.

use std::time::Duration;

use nkcluster::cluster::Cluster;
use nkcluster::config::Config;
use nkcluster::job::{Classes, JobClass, RequestContext, TypedCalls};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{ClassName, NodeStatus, NodeUri, Payload, Transport};
use nkcluster::{Error, ErrorCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::between::{Authority, Between, Way};
use crate::classes::{Ask, Probe};
use crate::datagrams::Datagrams;
use crate::harness::{TIMEOUT, connect_options, control_config, eventually, logged, node_id, once, soon, uri, wait_status, worker_config};

/// A stream class: sends back every byte that it gets.
struct Mirror;

impl JobClass for Mirror {
    const NAME: &'static str = "mirror";
    type Request = ();
    type Reply = u64;

    async fn request(&self, mut ctx: RequestContext, (): ()) -> Result<u64, Error> {
        let stream = ctx.open_stream().expect("a call with a stream");
        let (mut reads, mut writes) = tokio::io::split(stream);
        let failed = |error: std::io::Error| Error::class("mirror", error.to_string());
        let count = tokio::io::copy(&mut reads, &mut writes).await.map_err(failed)?;
        writes.shutdown().await.map_err(failed)?;
        Ok(count)
    }
}

const STREAM_BYTES: usize = 8 << 20;

async fn echo(cluster: &Cluster, text: &str) {
    let reply = cluster.ask::<Probe>(&node_id("w1"), &Ask::Echo(text.to_owned()), once()).await;
    assert_eq!(reply.expect("answered"), text);
}

async fn mirrored(cluster: &Cluster) {
    let class: ClassName = "mirror".parse().expect("a name");
    let payload = Payload::encode(&()).expect("encodes");
    let (answer, stream) = cluster.request_with_stream(&node_id("w1"), &class, payload, once()).await.expect("open");
    let content: Vec<u8> = (0..STREAM_BYTES as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut reads, mut writes) = tokio::io::split(stream);
    let send = async {
        writes.write_all(&content).await.expect("writes");
        writes.shutdown().await.expect("ends");
    };
    let receive = async {
        let mut received = Vec::with_capacity(STREAM_BYTES);
        reads.read_to_end(&mut received).await.expect("reads");
        assert!(received == content, "the same bytes");
    };
    soon("the stream", async { tokio::join!(send, receive) }).await;
    let count: u64 = answer.wait().await.expect("answered").decode().expect("a number");
    assert_eq!(count, STREAM_BYTES as u64);
}

/// What a link can be cut by.
enum Cut {
    Relay(Between),
    Datagrams(Datagrams),
    Memory(MemoryNet),
}

/// A control node that listens on one transport, and a worker that reaches it by something that can cut the link.
struct Pair {
    probe: Probe,
    control: NodeHandle,
    cluster: Cluster,
    _worker: NodeHandle,
    between: Cut,
    _dir: tempfile::TempDir,
}

fn classes(probe: &Probe) -> Classes {
    probe.classes().with(Mirror)
}

/// Much is encrypted here at once, by code that is not optimised: a ping may take its time.
const PING_TIME: Duration = Duration::from_secs(60);
/// A cut over UDP is noticed by nothing but a ping that is lost.
const PING_TIME_QUIC: Duration = Duration::from_secs(2);

/// The same node, which gives up no link that is only slow.
fn patient(config: Config) -> Config {
    let has_quic = config.listen.iter().chain(&config.cluster_addr).any(|uri| uri.effective_transport() == Transport::Quic);
    Config { ping_time: if has_quic { PING_TIME_QUIC } else { PING_TIME }, ..config }
}

async fn control(dir: &tempfile::TempDir, listen: &str, classes: Classes) -> NodeHandle {
    Node::start(patient(control_config(dir, "c1", listen)), classes).await.expect("starts")
}

async fn worker(dir: &tempfile::TempDir, cluster_addr: &str, classes: Classes) -> NodeHandle {
    Node::start(patient(worker_config(dir, "w1", cluster_addr)), classes).await.expect("starts")
}

impl Pair {
    async fn start(transport: Transport) -> Self {
        logged();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let probe = Probe::<false>::new();
        let (control, worker, between) = match transport {
            Transport::Memory => {
                let net = MemoryNet::new();
                let at = "nkcluster://c1;transport=memory";
                let control = Node::start_in(&net, patient(control_config(&dir, "c1", at)), classes(&probe)).await.expect("starts");
                let worker = Node::start_in(&net, patient(worker_config(&dir, "w1", at)), classes(&probe)).await.expect("starts");
                (control, worker, Cut::Memory(net))
            }
            Transport::Quic => {
                let control = control(&dir, "nkcluster://127.0.0.1:0;transport=quic", classes(&probe)).await;
                let network = Datagrams::start(&control.listen()[0]).await;
                let worker = worker(&dir, &network.instead_of(&control.listen()[0]).to_string(), classes(&probe)).await;
                (control, worker, Cut::Datagrams(network))
            }
            _ => {
                let control = control(&dir, &format!("nkcluster://127.0.0.1:0;transport={transport}"), classes(&probe)).await;
                let relay = Between::start(&control.listen()[0], Way::default()).await;
                let worker = worker(&dir, &relay.instead_of(&control.listen()[0]).to_string(), classes(&probe)).await;
                (control, worker, Cut::Relay(relay))
            }
        };
        let cluster = control.cluster().expect("a control node has the cluster");
        wait_status(&cluster, "w1", NodeStatus::Ready).await;
        Self { probe, control, cluster, _worker: worker, between, _dir: dir }
    }

    /// A client that reaches the control node over the same transport.
    async fn client(&self) -> Cluster {
        let mut options = connect_options(vec![self.control.listen()[0].clone()]);
        if let Cut::Memory(net) = &self.between {
            options.memory = Some(net.node("admin"));
        }
        Cluster::connect(options).await.expect("connects")
    }

    /// What is between the two over quic.
    fn network(&self) -> &Datagrams {
        match &self.between {
            Cut::Datagrams(network) => network,
            Cut::Relay(_) | Cut::Memory(_) => panic!("there are no datagrams"),
        }
    }

    async fn cut(&self) -> usize {
        match &self.between {
            Cut::Relay(relay) => relay.cut().await,
            Cut::Datagrams(network) => network.cut(),
            Cut::Memory(net) => net.cut("w1", "c1"),
        }
    }
}

/// A worker and a client over one transport: calls, large ones, streams both ways, and a link that is cut under all of them.
async fn carries_everything(transport: Transport) {
    let pair = Pair::start(transport).await;
    let client = pair.client().await;
    let info = client.info(&node_id("w1"), TIMEOUT).await.expect("known");
    assert!(info.remote.is_some_and(|remote| remote.starts_with(&format!("{transport}:"))));
    for cluster in [&pair.cluster, &client] {
        echo(cluster, "hello").await;
        echo(cluster, "").await;
        echo(cluster, &"x".repeat(1 << 20)).await;
        mirrored(cluster).await;
        let many = (0..100).map(|number| {
            let cluster = (*cluster).clone();
            tokio::spawn(async move { echo(&cluster, &number.to_string()).await })
        });
        for call in many.collect::<Vec<_>>() {
            call.await.expect("answered");
        }
    }
    // The link is cut while a call waits; the worker is back soon, and nothing was lost but that call.
    let held = {
        let cluster = pair.cluster.clone();
        tokio::spawn(async move { cluster.ask::<Probe>(&node_id("w1"), &Ask::Hold, once()).await })
    };
    pair.probe.work.entered(1).await;
    assert_eq!(pair.cut().await, 1);
    let error = soon("the answer", held).await.expect("no panic").expect_err("cut off");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::ConnectionFailed, true), "{error}");
    pair.probe.work.open();
    wait_status(&pair.cluster, "w1", NodeStatus::Ready).await;
    echo(&client, "back again").await;
}

#[tokio::test]
async fn memory_carries_everything() {
    carries_everything(Transport::Memory).await;
}

#[tokio::test]
async fn tcp_carries_everything() {
    carries_everything(Transport::Tcp).await;
}

#[tokio::test]
async fn tls_carries_everything() {
    carries_everything(Transport::Tls).await;
}

#[tokio::test]
async fn ws_carries_everything() {
    carries_everything(Transport::Ws).await;
}

#[tokio::test]
async fn wss_carries_everything() {
    carries_everything(Transport::Wss).await;
}

#[tokio::test]
async fn quic_carries_everything() {
    carries_everything(Transport::Quic).await;
}

#[tokio::test]
async fn link_over_quic_survives_that_its_worker_gets_another_address() {
    let pair = Pair::start(Transport::Quic).await;
    let before = pair.cluster.info(&node_id("w1"), TIMEOUT).await.expect("known");
    let held = {
        let cluster = pair.cluster.clone();
        tokio::spawn(async move { cluster.ask::<Probe>(&node_id("w1"), &Ask::Hold, once()).await })
    };
    pair.probe.work.entered(1).await;
    for _ in 0..3 {
        pair.network().move_diallers().await;
        echo(&pair.cluster, "from elsewhere").await;
    }
    mirrored(&pair.cluster).await;
    pair.probe.work.open();
    soon("the answer", held).await.expect("no panic").expect("answered over the same link");
    let after = pair.cluster.info(&node_id("w1"), TIMEOUT).await.expect("known");
    assert_eq!((after.remote, after.proxies), (before.remote, before.proxies));
}

#[tokio::test]
async fn quic_makes_up_for_what_the_network_loses() {
    let pair = Pair::start(Transport::Quic).await;
    pair.network().lose_one_in(20);
    let calls = async {
        for number in 0..20 {
            echo(&pair.cluster, &number.to_string()).await;
        }
    };
    tokio::join!(mirrored(&pair.cluster), calls);
    echo(&pair.cluster, &"x".repeat(1 << 20)).await;
}

#[tokio::test]
async fn one_node_listens_on_every_transport_at_once() {
    logged();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let every = [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss, Transport::Quic];
    let mut config = control_config(&dir, "c1", "nkcluster://127.0.0.1:0;transport=tcp");
    config.listen = every.iter().map(|transport| uri(&format!("nkcluster://127.0.0.1:0;transport={transport}"))).collect();
    let control = Node::start(patient(config), classes(&Probe::<false>::new())).await.expect("starts");
    let cluster = control.cluster().expect("a control node has the cluster");
    let mut workers = Vec::new();
    for (transport, at) in every.iter().zip(control.listen()) {
        let id = format!("w-{transport}");
        let config = worker_config(&dir, &id, &at.to_string());
        workers.push(Node::start(patient(config), Probe::<false>::new().classes()).await.expect("starts"));
        wait_status(&cluster, &id, NodeStatus::Ready).await;
        let remote = cluster.info(&node_id(&id), TIMEOUT).await.expect("known").remote.expect("connected");
        assert!(remote.starts_with(&format!("{transport}:127.0.0.1:")), "{remote}");
    }
}

#[tokio::test]
async fn control_node_dials_a_worker_over_quic() {
    logged();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let probe = Probe::<false>::new();
    let control = control(&dir, "nkcluster://127.0.0.1:0;transport=tcp", probe.classes()).await;
    let cluster = control.cluster().expect("a control node has the cluster");
    let mut config = worker_config(&dir, "w1", "");
    config.listen = vec![uri("nkcluster://127.0.0.1:0;transport=quic")];
    let worker = Node::start(patient(config), probe.classes()).await.expect("starts");
    assert_eq!(cluster.attach(&worker.listen()[0], TIMEOUT).await.expect("attached"), node_id("w1"));
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    echo(&cluster, "hello").await;
    worker.stop().await;
}

#[tokio::test]
async fn control_node_dials_a_worker_at_its_path() {
    logged();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let probe = Probe::<false>::new();
    let control = control(&dir, "nkcluster://127.0.0.1:0;transport=tcp", probe.classes()).await;
    let cluster = control.cluster().expect("a control node has the cluster");
    let mut config = worker_config(&dir, "w1", "");
    config.listen = vec![uri("nkcluster://127.0.0.1:0/workers/w1;transport=wss")];
    let worker = Node::start(patient(config), probe.classes()).await.expect("starts");
    assert_eq!(worker.listen()[0].path(), "/workers/w1");
    assert_eq!(cluster.attach(&worker.listen()[0], TIMEOUT).await.expect("attached"), node_id("w1"));
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    echo(&cluster, "hello").await;
}

#[tokio::test]
async fn intermediary_that_delivers_byte_by_byte_only_takes_its_time() {
    logged();
    for transport in [Transport::Ws, Transport::Wss] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let probe = Probe::<false>::new();
        let control = control(&dir, &format!("nkcluster://127.0.0.1:0;transport={transport}"), probe.classes()).await;
        let cluster = control.cluster().expect("a control node has the cluster");
        let slow = Between::start(&control.listen()[0], Way { is_slow: true, ..Way::default() }).await;
        let _worker = worker(&dir, &slow.instead_of(&control.listen()[0]).to_string(), probe.classes()).await;
        wait_status(&cluster, "w1", NodeStatus::Ready).await;
        echo(&cluster, &"hello".repeat(100)).await;
    }
}

#[tokio::test]
async fn worker_behind_an_http_proxy_is_a_worker_like_any_other() {
    logged();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let probe = Probe::<false>::new();
    let control = control(&dir, "nkcluster://127.0.0.1:0;transport=wss", classes(&probe)).await;
    let cluster = control.cluster().expect("a control node has the cluster");
    let at = &control.listen()[0];
    let proxy = Between::start(at, Way { is_proxy: true, ..Way::default() }).await;
    let port = at.effective_port();
    let address = format!("nkcluster://c1.example.org:{port};transport=wss;proxy=http://{}", proxy.addr);
    let _worker = worker(&dir, &address, classes(&probe)).await;
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    mirrored(&cluster).await;
    assert_eq!(proxy.cut().await, 1);
    let again = Ask::Echo("again".to_owned());
    eventually("an answer through a new tunnel", async || cluster.ask::<Probe>(&node_id("w1"), &again, once()).await.is_ok()).await;
    assert_eq!(proxy.cut().await, 1);
}

/// A balancer that ends TLS: the dialler speaks tls (or wss) with it, the listener behind it only tcp (or ws).
struct Balanced {
    dir: tempfile::TempDir,
    authority: Authority,
    balancer: Between,
    control: NodeHandle,
    outside: Transport,
}

impl Balanced {
    async fn start(inside: Transport, listen_options: &str) -> Self {
        logged();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority::new(dir.path());
        let listen = format!("nkcluster://127.0.0.1:0;transport={inside}{listen_options}");
        let control = control(&dir, &listen, Probe::<false>::new().classes()).await;
        let way = Way { tls: Some(authority.acceptor.clone()), ..Way::default() };
        let balancer = Between::start(&control.listen()[0], way).await;
        let outside = if inside == Transport::Ws { Transport::Wss } else { Transport::Tls };
        Self { dir, authority, balancer, control, outside }
    }

    fn address(&self, verify: &str, options: &str) -> NodeUri {
        let (port, ca, outside) = (self.balancer.addr.port(), self.authority.ca.display(), self.outside);
        uri(&format!("nkcluster://localhost:{port};transport={outside};tls_cacertfile={ca};tls_verify={verify}{options}"))
    }

    /// What a client is told that connects so.
    async fn refusal(&self, verify: &str, options: &str) -> Error {
        Cluster::connect(connect_options(vec![self.address(verify, options)])).await.expect_err("refused")
    }
}

#[tokio::test]
async fn tls_may_end_at_a_balancer_where_the_dialler_verifies_it_and_both_sides_say_so() {
    for inside in [Transport::Tcp, Transport::Ws] {
        let balanced = Balanced::start(inside, ";binding=off").await;
        let address = balanced.address("host", ";binding=off");
        let mut config = worker_config(&balanced.dir, "w1", "");
        config.cluster_addr = vec![address.clone()];
        let _worker = Node::start(patient(config), Probe::<false>::new().classes()).await.expect("starts");
        let cluster = balanced.control.cluster().expect("a control node has the cluster");
        wait_status(&cluster, "w1", NodeStatus::Ready).await;
        let client = Cluster::connect(connect_options(vec![address])).await.expect("connects");
        echo(&client, "through the balancer").await;
        // The control node tells its worker where it listens, without TLS; the worker comes back as it was told by its own configuration.
        assert_eq!(balanced.balancer.cut().await, 2);
        let again = Ask::Echo("again".to_owned());
        eventually("an answer through the balancer", async || cluster.ask::<Probe>(&node_id("w1"), &again, once()).await.is_ok()).await;
        assert_eq!(balanced.balancer.cut().await, 1);
        // Who comes without a balancer is let in as ever.
        Cluster::connect(connect_options(vec![balanced.control.listen()[0].clone()])).await.expect("connects");
        // Whoever did not verify the balancer, or demands the binding, does not come through.
        let error = balanced.refusal("false", ";binding=off").await;
        assert!(error.message().contains("binding=off needs tls_verify"), "{error}");
        let error = balanced.refusal("host", "").await;
        assert!(error.message().contains("tls_error"), "{error}");
    }
}

#[tokio::test]
async fn listener_that_knows_of_no_balancer_lets_nobody_leave_the_binding_off() {
    for inside in [Transport::Tcp, Transport::Ws] {
        let balanced = Balanced::start(inside, "").await;
        let error = balanced.refusal("host", ";binding=off").await;
        assert!(error.message().contains("tls_error"), "{error}");
    }
}

/// PROXY version 2: 10.1.2.3:4660 to 192.168.0.1:1973.
const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x03\xc0\xa8\0\x01\x12\x34\x07\xb5";

#[tokio::test]
async fn node_behind_a_trusted_balancer_knows_the_address_of_its_worker() {
    logged();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = control_config(&dir, "c1", "nkcluster://127.0.0.1:0;transport=tls");
    config.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a range")];
    let probe = Probe::<false>::new();
    let control = Node::start(patient(config), probe.classes()).await.expect("starts");
    let cluster = control.cluster().expect("a control node has the cluster");
    let at = &control.listen()[0];
    let balancer = Between::start(at, Way { prefix: HEADER, ..Way::default() }).await;
    let _worker = worker(&dir, &balancer.instead_of(at).to_string(), probe.classes()).await;
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    let info = cluster.info(&node_id("w1"), TIMEOUT).await.expect("known");
    assert_eq!(info.remote.as_deref(), Some("tls:10.1.2.3:4660"));
    // Who comes from such an address without a header is not let in.
    let error = Cluster::connect(connect_options(vec![at.clone()])).await.expect_err("refused");
    assert_eq!(error.code(), &ErrorCode::NoConnections, "{error}");
}

#[tokio::test]
async fn stranger_who_says_another_address_breaks_the_protocol() {
    logged();
    let dir = tempfile::tempdir().expect("a temporary directory");
    for transport in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss] {
        let control = control(&dir, &format!("nkcluster://127.0.0.1:0;transport={transport}"), Classes::new()).await;
        let at = &control.listen()[0];
        let liar = Between::start(at, Way { prefix: HEADER, ..Way::default() }).await;
        let error = Cluster::connect(connect_options(vec![liar.instead_of(at)])).await.expect_err("refused");
        assert_eq!(error.code(), &ErrorCode::NoConnections, "{error}");
        Cluster::connect(connect_options(vec![at.clone()])).await.expect("others are let in");
        control.stop().await;
    }
}

#[tokio::test]
async fn node_reads_its_certificates_again_when_it_is_told_to() {
    logged();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = control_config(&dir, "c1", "nkcluster://127.0.0.1:0;transport=tls");
    config.listen.push(uri("nkcluster://127.0.0.1:0;transport=wss"));
    config.listen.push(uri("nkcluster://127.0.0.1:0;transport=quic"));
    config.listen.push(uri("nkcluster://127.0.0.1:0;transport=ws"));
    let control = Node::start(patient(config), Classes::new()).await.expect("starts");
    let tls = dir.path().join("c1/tls");
    let own = |name: &str| std::fs::copy(tls.join("cert.pem"), dir.path().join(name)).expect("copies");
    own("old.pem");
    let trusting = async |listener: usize, ca: &str| {
        let at = control.listen()[listener].clone();
        let ca = dir.path().join(ca);
        let url = format!("{at};tls_verify=host;tls_cacertfile={}", ca.display());
        Cluster::connect(connect_options(vec![uri(&url)])).await.map(drop)
    };
    trusting(0, "old.pem").await.expect("the old one");
    // Without its files the node makes itself a new pair.
    std::fs::remove_dir_all(&tls).expect("removes");
    control.reload().await.expect("a new pair");
    own("new.pem");
    for listener in [0, 1, 2] {
        trusting(listener, "new.pem").await.expect("the new one");
        trusting(listener, "old.pem").await.expect_err("no longer the old one");
    }
    std::fs::write(tls.join("cert.pem"), "nothing").expect("writes");
    let error = control.reload().await.expect_err("it cannot be read");
    assert_eq!(error.code(), &ErrorCode::InvalidConfig);
    for listener in [0, 1, 2] {
        assert!(error.message().contains(&control.listen()[listener].to_string()), "{error}");
        trusting(listener, "new.pem").await.expect("still the new one");
    }
    let port = control.listen()[0].effective_port();
    control.stop().await;
    eventually("the port is free", async || std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()).await;
}
