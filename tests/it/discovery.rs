//! Discovery by DNS, with a real server: checklist N3.3 to N3.8.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_server::proto::rr::RData;
use nkcluster::ErrorCode;
use nkcluster::node::Node;
use nkcluster::transport::{self, DialOptions, Resolver, Target};
use nkcluster::types::{NodeStatus, Transport};
use tokio::net::UdpSocket;

use crate::dns::{Dns, address, alias, naptr, srv};
use crate::harness::{DEADLINE, SocketCluster, eventually, soon, uri, wait_status, worker_config};

/// Keeps answers longer than any test takes.
fn asking(servers: impl IntoIterator<Item = SocketAddr>) -> DialOptions {
    let resolver = Resolver::new(servers.into_iter().collect(), DEADLINE * 10);
    DialOptions { resolver, connect_timeout: DEADLINE, ..DialOptions::default() }
}

async fn resolve(text: &str, options: &DialOptions) -> nkcluster::Result<Vec<Target>> {
    soon("an answer", transport::resolve(&uri(text), options)).await
}

async fn found(text: &str, options: &DialOptions) -> Vec<String> {
    resolve(text, options).await.expect("found").iter().map(ToString::to_string).collect()
}

/// The records of the README of the original.
fn readme() -> Vec<(&'static str, RData)> {
    vec![
        ("example.org", naptr(10, 400, "NK+D2T", "_nk._tcp.example.org")),
        ("example.org", naptr(10, 300, "NK+D2W", "_nk._ws.example.org")),
        ("example.org", naptr(10, 100, "NKS+D2W", "_nks._ws.example.org")),
        ("example.org", naptr(10, 500, "NK+D2S", "_nk._sctp.example.org")),
        ("example.org", naptr(10, 200, "NKS+D2T", "_nks._tcp.example.org")),
        ("_nk._tcp.example.org", srv(100, 100, 1972, "c1.example.org")),
        ("_nks._tcp.example.org", srv(100, 100, 1973, "c1.example.org")),
        ("_nk._sctp.example.org", srv(100, 100, 1972, "c1.example.org")),
        ("_nk._ws.example.org", srv(100, 100, 1974, "c1.example.org")),
        ("_nks._ws.example.org", srv(100, 100, 1975, "c1.example.org")),
        ("c1.example.org", address("127.0.0.1")),
    ]
}

#[tokio::test]
async fn the_example_of_the_original_orders_five_transports() {
    let dns = Dns::start(readme()).await;
    let targets = resolve("nkcluster://example.org", &asking([dns.addr])).await.expect("found");
    let shown: Vec<String> = targets.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["wss:127.0.0.1:1975", "tls:127.0.0.1:1973", "ws:127.0.0.1:1974", "tcp:127.0.0.1:1972", "sctp:127.0.0.1:1972"]);
    assert_eq!(targets.iter().map(Target::is_supported).collect::<Vec<_>>(), [true, true, true, true, false]);
    let steps: Vec<String> = targets[0].steps().iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["NAPTR example.org 10 100 NKS+D2W", "SRV _nks._ws.example.org 100 100 1975 c1.example.org", "A c1.example.org"]);
    // Asked again, DNS may name another host, but never a weaker transport.
    assert_eq!(targets[0].lasting_uri(), &uri("nkcluster://example.org;transport=wss"));
    let error = transport::connect(&targets[4], &DialOptions::default()).await.expect_err("sctp");
    assert_eq!(error.code(), &ErrorCode::UnsupportedTransport);
}

#[tokio::test]
async fn hosts_with_a_preference_come_first_and_addresses_take_turns() {
    let mut records = vec![
        ("_nkcluster._tls.example.org", srv(20, 0, 7, "far.example.org")),
        ("_nks._tcp.example.org", srv(10, 0, 7, "near.example.org")),
        ("far.example.org", address("10.0.0.100")),
    ];
    let near = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    records.extend(near.map(|ip| ("near.example.org", address(ip))));
    let dns = Dns::start(records).await;
    let options = asking([dns.addr]);
    let mut orders = BTreeSet::new();
    for _ in 0..20 {
        let found = found("nkcluster://example.org;transport=tls", &options).await;
        assert_eq!(found[5], "tls:10.0.0.100:7");
        assert_eq!(found[..5].iter().collect::<BTreeSet<_>>().len(), 5);
        orders.insert(found);
    }
    // Twenty times the same of 120 orders would be no accident.
    assert!(orders.len() > 1, "{orders:?}");
    assert_eq!(dns.asked("A near.example.org."), 1, "the other answers were kept");
}

#[tokio::test]
async fn ipv6_is_found_where_there_is_no_ipv4() {
    let dns = Dns::start([("c1.example.org", address("2001:db8::1")), ("c2.example.org", alias("c1.example.org"))]).await;
    let options = asking([dns.addr]);
    assert_eq!(found("nkcluster://c1.example.org:1", &options).await, ["tcp:[2001:db8::1]:1"]);
    assert_eq!(found("nkcluster://c2.example.org;transport=wss", &options).await, ["wss:[2001:db8::1]:1975"]);
    dns.set([("c3.example.org", address("2001:db8::3")), ("c3.example.org", address("192.0.2.3"))]).await;
    assert_eq!(found("nkcluster://c3.example.org:1", &options).await, ["tcp:192.0.2.3:1", "tcp:[2001:db8::3]:1"]);
}

#[tokio::test]
async fn an_address_asks_nobody() {
    let dns = Dns::start([]).await;
    let options = asking([dns.addr]);
    assert_eq!(found("nkcluster://192.0.2.1", &options).await, ["tcp:192.0.2.1:1972"]);
    assert_eq!(found("nkcluster://[2001:db8::1];transport=wss", &options).await, ["wss:[2001:db8::1]:1975"]);
    assert_eq!(found("nkcluster://localhost", &options).await, ["tcp:127.0.0.1:1972", "tcp:[::1]:1972"]);
}

#[tokio::test]
async fn answers_are_kept_unless_the_url_or_the_configuration_forbids_it() {
    let dns = Dns::start([("c1.example.org", address("192.0.2.1"))]).await;
    let options = asking([dns.addr]);
    assert_eq!(found("nkcluster://c1.example.org:1", &options).await, ["tcp:192.0.2.1:1"]);
    dns.set([("c1.example.org", address("192.0.2.2"))]).await;
    assert_eq!(found("nkcluster://c1.example.org:1", &options).await, ["tcp:192.0.2.1:1"]);
    assert_eq!(found("nkcluster://c1.example.org:1;no_dns_cache", &options).await, ["tcp:192.0.2.2:1"]);
    dns.set([("c1.example.org", address("192.0.2.3"))]).await;
    assert_eq!(found("nkcluster://c1.example.org:1", &options).await, ["tcp:192.0.2.2:1"]);
    options.resolver.clear().await;
    assert_eq!(found("nkcluster://c1.example.org:1", &options).await, ["tcp:192.0.2.3:1"]);
    let forgetful = DialOptions { resolver: Resolver::new(vec![dns.addr], Duration::ZERO), ..DialOptions::default() };
    for last in 4..7 {
        let ip = format!("192.0.2.{last}");
        dns.set([("c1.example.org", address(&ip))]).await;
        assert_eq!(found("nkcluster://c1.example.org:1", &forgetful).await, [format!("tcp:{ip}:1")]);
    }
    // The records say an hour, the configuration half a minute at most.
    let brief = DialOptions { resolver: Resolver::new(vec![dns.addr], Duration::from_secs(1)), ..DialOptions::default() };
    assert_eq!(found("nkcluster://c1.example.org:1", &brief).await, ["tcp:192.0.2.6:1"]);
    dns.set([("c1.example.org", address("192.0.2.7"))]).await;
    eventually("the answer is old", async || found("nkcluster://c1.example.org:1", &brief).await == ["tcp:192.0.2.7:1"]).await;
}

#[tokio::test]
async fn no_such_name_is_told_from_a_server_that_fails() {
    let dns = Dns::start([]).await;
    let error = resolve("nkcluster://nobody.example.org", &asking([dns.addr])).await.expect_err("nobody");
    assert_eq!(error.code(), &ErrorCode::NoConnections);
    assert!(error.message().contains("nobody.example.org: there is no such name"), "{error}");
    // It refuses what it is not responsible for.
    let error = resolve("nkcluster://example.com:1", &asking([dns.addr])).await.expect_err("refused");
    assert!(error.message().contains("DNS failed, it may come back"), "{error}");
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_is_dead() {
    let dns = Dns::start([("c1.example.org", address("192.0.2.1"))]).await;
    let dead = "127.0.0.1:1".parse().expect("an address");
    assert_eq!(found("nkcluster://c1.example.org:1", &asking([dead, dns.addr])).await, ["tcp:192.0.2.1:1"]);
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let options = asking([silent.local_addr().expect("bound")]);
    for text in ["nkcluster://example.org;connect_timeout=50", "nkcluster://example.org:1;transport=tls;connect_timeout=50"] {
        let error = resolve(text, &options).await.expect_err("no answer");
        assert_eq!(error.code(), &ErrorCode::NoConnections);
        assert!(error.message().contains("no answer in time (connect_timeout 50ms)"), "{error}");
    }
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let options = asking([server.local_addr().expect("bound")]);
    let lying = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        let mut turn = 0_usize;
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            turn += 1;
            let answer: Vec<u8> = match turn % 4 {
                0 => vec![0xff; 512],
                // The question again, cut off.
                1 => buffer[..length / 2].to_vec(),
                // An answer that claims 65 535 records and has none.
                2 => {
                    let mut answer = buffer[..length].to_vec();
                    answer[2] |= 0x80;
                    answer[6..12].fill(0xff);
                    answer
                }
                // A name that points to itself.
                _ => {
                    let mut answer = buffer[..12].to_vec();
                    answer[2] |= 0x80;
                    answer[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4]);
                    answer
                }
            };
            let _ = server.send_to(&answer, from).await;
        }
    });
    let error = resolve("nkcluster://example.org;connect_timeout=400", &options).await.expect_err("garbage");
    assert_eq!(error.code(), &ErrorCode::NoConnections);
    lying.abort();
}

#[tokio::test]
async fn circles_and_thousands_of_records_come_to_an_end() {
    let ips: Vec<String> = (0..1500).map(|i| format!("10.1.{}.{}", i / 250, i % 250 + 1)).collect();
    let mut records = vec![
        ("a.example.org", alias("b.example.org")),
        ("b.example.org", alias("a.example.org")),
        ("_nk._tcp.loop.example.org", srv(1, 1, 5, "_nk._tcp.loop.example.org")),
        ("loop.example.org", naptr(1, 1, "NK+D2T", "loop.example.org")),
    ];
    records.extend(ips.iter().map(|ip| ("many.example.org", address(ip))));
    records.extend(ips.iter().take(4).map(|ip| ("four.example.org", address(ip))));
    records.extend((0..400).map(|port| ("_nkcluster._tcp.many.example.org", srv(1, 1, port + 1, "four.example.org"))));
    let dns = Dns::start(records).await;
    let options = asking([dns.addr]);
    let mut tried = BTreeSet::new();
    for _ in 0..10 {
        tried.extend(found("nkcluster://many.example.org:1", &options).await);
    }
    assert!(tried.len() > 100, "each address has its turn: {tried:?}");
    resolve("nkcluster://a.example.org:1", &options).await.expect_err("a circle of aliases");
    resolve("nkcluster://loop.example.org;transport=tcp", &options).await.expect_err("a service that is its own host");
    resolve("nkcluster://loop.example.org", &options).await.expect_err("a NAPTR record that names itself");
    // They fit only into an answer over TCP.
    assert_eq!(found("nkcluster://many.example.org:1", &options).await.len(), 32);
    let found = found("nkcluster://many.example.org;transport=tcp", &options).await;
    assert_eq!(found.len(), 64, "{found:?}");
}

#[tokio::test]
async fn a_name_that_grows_too_long_is_the_name_of_nothing() {
    let dns = Dns::start([]).await;
    let label = "a".repeat(60);
    let long = format!("{label}.{label}.{label}.{label}.example");
    let error = resolve(&format!("nkcluster://{long}"), &asking([dns.addr])).await.expect_err("nothing");
    assert_eq!(error.code(), &ErrorCode::NoConnections);
}

#[tokio::test]
async fn a_worker_finds_a_control_plane_that_has_moved_without_a_restart() {
    let first = SocketCluster::start(nkcluster::job::Classes::new()).await;
    let records = |cluster: &SocketCluster| {
        let port = cluster.at(Transport::Tls).effective_port();
        [
            ("example.org", naptr(1, 1, "NKS+D2T", "_nks._tcp.example.org")),
            ("_nks._tcp.example.org", srv(1, 1, port, "c1.example.org")),
            ("c1.example.org", address("127.0.0.1")),
        ]
    };
    let dns = Dns::start(records(&first)).await;
    let mut config = worker_config(&first.dir, "w1", "nkcluster://example.org");
    config.dns_servers = vec![dns.addr];
    config.dns_cache_ttl = Duration::from_secs(1);
    let worker = Node::start(config, nkcluster::job::Classes::new()).await.expect("starts");
    wait_status(&first.cluster, "w1", NodeStatus::Ready).await;
    let second = SocketCluster::start(nkcluster::job::Classes::new()).await;
    dns.set(records(&second)).await;
    first.control.stop().await;
    wait_status(&second.cluster, "w1", NodeStatus::Ready).await;
    worker.stop().await;
}
