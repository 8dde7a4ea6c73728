//! The original's basic test (checklist A14, 1 to 11): connections, and the proxy of a node.

use std::net::TcpListener;

use nkcluster::ErrorCode;
use nkcluster::cluster::Cluster;
use nkcluster::config::Role;
use nkcluster::job::{Classes, TypedCalls};
use nkcluster::node::{Node, NodeError};
use nkcluster::types::{NodeStatus, NodeUri, Secret, TlsVerify, Transport};

use crate::classes::{Ask, Probe};
use crate::harness::{
    MemoryCluster, SocketCluster, TIMEOUT, connect_options, control_config, eventually, node_id, once, uri, wait_status, worker_config,
};

/// An address where nobody listens.
fn dead(transport: Transport) -> NodeUri {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = listener.local_addr().expect("bound");
    NodeUri::socket_uri(transport, addr)
}

fn with_password(uri: &NodeUri, password: &str) -> NodeUri {
    let mut options = uri.options().clone();
    options.password = Some(Secret::new(password));
    uri.clone().with_options(options)
}

async fn connect(uris: Vec<NodeUri>) -> nkcluster::Result<Cluster> {
    Cluster::connect(connect_options(uris)).await
}

#[tokio::test]
async fn a_fresh_control_node_is_ready_and_manages_nobody_else() {
    let c = SocketCluster::start(Classes::new()).await;
    assert_eq!(c.control.role(), Role::Control);
    assert_eq!(c.control.node_id(), &node_id("c1"));
    assert_eq!(c.control.listen().len(), 3);
    let nodes = c.cluster.nodes(None, TIMEOUT).await.expect("answered");
    assert_eq!(nodes.silent, []);
    let [own] = &nodes.nodes[..] else { panic!("only its own worker: {nodes:?}") };
    assert_eq!((own.id.as_str(), own.status), ("c1", NodeStatus::Ready));
    assert_eq!(own.listen, c.control.listen());
}

#[test]
fn an_unknown_scheme_or_transport_is_refused_before_any_connection() {
    let code = |text: &str| text.parse::<NodeUri>().expect_err("refused").code().clone();
    assert_eq!(code("http://127.0.0.1"), ErrorCode::InvalidScheme);
    assert_eq!(code("nkcluster://127.0.0.1;transport=udp"), ErrorCode::InvalidTransport);
    let lists = NodeUri::parse_list("nkcluster://127.0.0.1, nkcluster://127.0.0.1;transport=udp");
    assert_eq!(lists.expect_err("refused").code(), &ErrorCode::InvalidTransport);
}

#[tokio::test]
async fn nobody_listening_is_no_connections() {
    for transport in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss] {
        let error = connect(vec![dead(transport)]).await.expect_err("nobody is there");
        assert_eq!(error.code(), &ErrorCode::NoConnections, "{error}");
    }
}

#[tokio::test]
async fn the_first_address_that_works_wins() {
    let c = SocketCluster::start(Classes::new()).await;
    let list = vec![dead(Transport::Tcp), dead(Transport::Tls), c.at(Transport::Tls)];
    let cluster = connect(list).await.expect("the third works");
    assert_eq!(cluster.info(&node_id("c1"), TIMEOUT).await.expect("known").status, NodeStatus::Ready);
    let mut config = worker_config(&c.dir, "w1", "");
    config.cluster_addr = vec![dead(Transport::Tcp), c.at(Transport::Tcp), dead(Transport::Tls)];
    let _worker = Node::start(config, Classes::new()).await.expect("starts");
    wait_status(&c.cluster, "w1", NodeStatus::Ready).await;
}

#[tokio::test]
async fn tcp_and_tls_carry_workers_and_clients() {
    let probe = Probe::<false>::new();
    let c = SocketCluster::start(probe.classes()).await;
    for (id, transport) in [("w-tcp", Transport::Tcp), ("w-tls", Transport::Tls)] {
        let _worker = c.worker(id, transport, probe.classes()).await;
        let client = connect(vec![c.at(transport)]).await.expect("connects");
        let reply = client.ask::<Probe>(&node_id(id), &Ask::Echo("hello".to_owned()), once()).await;
        assert_eq!(reply.expect("answered"), "hello");
        let info = client.info(&node_id(id), TIMEOUT).await.expect("known");
        let remote = info.remote.expect("connected");
        assert!(remote.starts_with(&format!("{transport}:127.0.0.1:")), "{remote}");
    }
}

#[tokio::test]
async fn sctp_is_not_available_and_says_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let address = "nkcluster://127.0.0.1:1;transport=sctp";
    let error = connect(vec![uri(address)]).await.expect_err("refused");
    assert!(error.message().contains("unsupported_transport") && error.message().contains("quic"), "{error}");
    match Node::start(control_config(&dir, "c1", address), Classes::new()).await {
        Err(NodeError::Config(error)) => assert_eq!(error.code(), &ErrorCode::UnsupportedTransport),
        other => panic!("it does not start: {other:?}"),
    }
}

#[tokio::test]
async fn a_worker_that_is_attached_tells_who_it_is() {
    let c = SocketCluster::start(Classes::new()).await;
    let mut config = worker_config(&c.dir, "w1", "");
    config.listen = vec![uri("nkcluster://127.0.0.1:0;transport=tcp"), uri("nkcluster://127.0.0.1:0;transport=tls")];
    config.meta = "core;group=group1;master, flag".parse().expect("labels");
    let worker = Node::start(config, Classes::new()).await.expect("starts");
    let at = worker.listen()[0].clone();
    assert_eq!(c.cluster.attach(&at, TIMEOUT).await.expect("attached"), node_id("w1"));
    let info = c.cluster.info(&node_id("w1"), TIMEOUT).await.expect("known");
    assert_eq!(info.listen, worker.listen());
    assert_eq!(info.meta.to_string(), "core;group=group1;master, flag");
    assert_eq!(info.status, NodeStatus::Ready);
    assert_eq!(info.remote, Some(format!("tcp:127.0.0.1:{}", at.port().expect("a real port"))));
}

#[tokio::test]
async fn a_client_is_no_node_even_of_its_own_process() {
    let c = SocketCluster::start(Classes::new()).await;
    // Connecting to oneself is legal.
    let client = connect(vec![c.at(Transport::Tcp)]).await.expect("connects");
    let nodes = client.nodes(None, TIMEOUT).await.expect("answered").nodes;
    assert_eq!(nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["c1"]);
    // A control node is not a worker that can be attached, not even by itself.
    let error = c.cluster.attach(&c.at(Transport::Tcp), TIMEOUT).await.expect_err("not a worker's listener");
    assert_eq!(error.code(), &ErrorCode::NoConnections, "{error}");
    assert!(error.message().contains("not_allowed"), "{error}");
}

#[tokio::test]
async fn the_password_comes_from_options_or_from_each_url() {
    let c = SocketCluster::start(Classes::new()).await;
    let at = c.at(Transport::Tcp);
    let mut wrong = connect_options(vec![at.clone()]);
    wrong.password = Secret::new("wrong");
    let error = Cluster::connect(wrong.clone()).await.expect_err("wrong by option");
    assert_eq!(error.code(), &ErrorCode::InvalidPassword, "{error}");
    let error = connect(vec![with_password(&at, "wrong")]).await.expect_err("wrong by URL");
    assert_eq!(error.code(), &ErrorCode::InvalidPassword, "{error}");
    wrong.uris = vec![with_password(&at, crate::harness::PASSWORD)];
    Cluster::connect(wrong).await.expect("right by URL, whatever the option says");
    let list = vec![with_password(&at, "wrong"), with_password(&c.at(Transport::Tls), "wrong"), at];
    connect(list).await.expect("the list goes on behind a wrong one");
}

#[tokio::test]
async fn tls_is_verified_only_if_asked_and_then_needs_an_authority() {
    let c = SocketCluster::start(Classes::new()).await;
    let mut options = connect_options(vec![c.at(Transport::Tls)]);
    Cluster::connect(options.clone()).await.expect("any certificate will do by default");
    options.tls.verify = TlsVerify::True;
    let error = Cluster::connect(options.clone()).await.expect_err("no CA file");
    assert_eq!(error.code(), &ErrorCode::NoConnections, "{error}");
    assert!(error.message().contains("tls_cacertfile"), "{error}");
    // The certificate that the node has made for itself can be pinned.
    options.tls.cacertfile = Some(c.dir.path().join("c1/tls/cert.pem"));
    Cluster::connect(options).await.expect("the pinned certificate is verified");
    let error = "nkcluster://127.0.0.1;tls_verify=maybe".parse::<NodeUri>().expect_err("no such value");
    assert_eq!(error.code(), &ErrorCode::SyntaxError, "{error}");
    assert!(error.message().contains("tls_verify"), "{error}");
}

#[tokio::test]
async fn info_and_list_agree_and_there_is_exactly_one_proxy() {
    let c = MemoryCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Classes::new()).await;
    let nodes = c.cluster.nodes(None, TIMEOUT).await.expect("answered").nodes;
    assert_eq!(nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["c1", "w1"]);
    let info = c.info("w1").await;
    let listed = &nodes[1];
    assert_eq!((&info.id, &info.listen, &info.meta, info.status), (&listed.id, &listed.listen, &listed.meta, listed.status));
    assert_eq!((&info.owner, &info.remote, info.incarnation), (&listed.owner, &listed.remote, listed.incarnation));
    let [proxy] = &info.proxies[..] else { panic!("one proxy: {info:?}") };
    assert!(proxy.active);
    assert_eq!((&proxy.owner, Some(&proxy.owner)), (&node_id("c1"), info.owner.as_ref()));
}

#[tokio::test]
async fn a_worker_that_is_forgotten_comes_back_under_a_new_proxy() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.worker("w1", probe.classes()).await;
    let before = c.info("w1").await;
    c.cluster.forget(&node_id("w1"), TIMEOUT).await.expect("forgotten");
    c.wait_status("w1", NodeStatus::Ready).await;
    let after = c.info("w1").await;
    assert_eq!(after.incarnation, before.incarnation, "it was not restarted");
    assert!(after.proxies[0].term > before.proxies[0].term, "it was adopted anew");
    assert_eq!(after.proxies.len(), 1);
    assert_eq!(c.net.links("w1", "c1"), 1);
    let reply = c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Echo("again".to_owned()), once()).await;
    assert_eq!(reply.expect("answered"), "again");
}

#[tokio::test]
async fn a_cut_connection_is_told_to_every_class_that_ever_sent_an_event() {
    let (probe, other) = (Probe::<false>::new(), Probe::<true>::new());
    let classes = || Classes::new().with_tasks(probe.clone()).with_tasks(other.clone());
    let c = MemoryCluster::start(classes()).await;
    let _worker = c.worker("w1", classes()).await;
    c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Emit(vec!["one".to_owned()]), once()).await.expect("emitted");
    probe.wait_told("w1", &["one"]).await;
    assert_eq!(c.net.cut("w1", "c1"), 1);
    probe.wait_told("w1", &["one", "status not_connected", "status ready"]).await;
    assert_eq!(other.told("w1"), Vec::<String>::new(), "it never sent an event");
    c.cluster.ask::<Probe<true>>(&node_id("w1"), &Ask::Emit(vec!["two".to_owned()]), once()).await.expect("emitted");
    other.wait_told("w1", &["two"]).await;
    c.net.cut("w1", "c1");
    other.wait_told("w1", &["two", "status not_connected", "status ready"]).await;
    probe.wait_told("w1", &["one", "status not_connected", "status ready", "status not_connected", "status ready"]).await;
    assert_eq!(c.info("w1").await.proxies.len(), 1);
}

#[tokio::test]
async fn a_worker_whose_addresses_were_cleared_stays_away_when_it_is_forgotten() {
    let c = MemoryCluster::start(Classes::new()).await;
    let worker = c.worker("w1", Classes::new()).await;
    worker.clear_cluster_addr();
    c.cluster.ping(&node_id("w1"), TIMEOUT).await.expect("it stays connected");
    c.cluster.forget(&node_id("w1"), TIMEOUT).await.expect("forgotten");
    eventually("its link has ended", async || c.net.links("w1", "c1") == 0).await;
    let _other = c.worker("w2", Classes::new()).await;
    let nodes = c.cluster.nodes(None, TIMEOUT).await.expect("answered").nodes;
    assert_eq!(nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["c1", "w2"]);
}

#[tokio::test]
async fn a_worker_without_addresses_stays_away_when_it_is_forgotten() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c
        .start_worker("w1", probe.classes(), |config| {
            config.cluster_addr.clear();
            config.listen = vec![uri("nkcluster://w1;transport=memory")];
        })
        .await;
    c.cluster.attach(&uri("nkcluster://w1;transport=memory"), TIMEOUT).await.expect("attached");
    c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Emit(vec!["one".to_owned()]), once()).await.expect("emitted");
    probe.wait_told("w1", &["one"]).await;
    c.cluster.forget(&node_id("w1"), TIMEOUT).await.expect("forgotten");
    probe.wait_told("w1", &["one", "status not_connected"]).await;
    let error = c.cluster.info(&node_id("w1"), TIMEOUT).await.expect_err("unknown");
    assert_eq!(error.code(), &ErrorCode::NotFound);
    eventually("its link has ended", async || c.net.links("w1", "c1") == 0).await;
    // A second worker comes meanwhile; the first one does not.
    let _other = c.worker("w2", probe.classes()).await;
    let nodes = c.cluster.nodes(None, TIMEOUT).await.expect("answered").nodes;
    assert_eq!(nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["c1", "w2"]);
    assert_eq!(c.net.links("w1", "c1"), 0);
}
