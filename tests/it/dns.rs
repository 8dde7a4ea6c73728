//! A real DNS server on this machine, over UDP and TCP, whose records a test may change while it runs.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_server::Server;
use hickory_server::net::runtime::{Time, TokioRuntimeProvider};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, NAPTR, SOA, SRV};
use hickory_server::proto::rr::{Name, RData, Record};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use tokio::net::{TcpListener, UdpSocket};

const ZONE: &str = "example.org.";
/// Longer than any test: what is asked twice was not kept.
const TTL: u32 = 3600;

type Zone = InMemoryZoneHandler<TokioRuntimeProvider>;

/// The zone `example.org`. It ends with this value.
pub(crate) struct Dns {
    pub(crate) addr: SocketAddr,
    zone: Arc<Zone>,
    asked: Arc<Mutex<Vec<String>>>,
    _server: Server<Listening>,
}

/// Answers from the zone, and remembers what was asked.
struct Listening {
    catalog: Catalog,
    asked: Arc<Mutex<Vec<String>>>,
}

#[async_trait::async_trait]
impl RequestHandler for Listening {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, response: R) -> ResponseInfo {
        if let Ok(info) = request.request_info() {
            let question = format!("{} {}", info.query.query_type(), info.query.name().to_string().to_lowercase());
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        }
        self.catalog.handle_request::<R, T>(request, response).await
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }).expect("a name")
}

/// What stands behind a name.
pub(crate) fn address(ip: &str) -> RData {
    match ip.parse().expect("an address") {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

pub(crate) fn alias(target: &str) -> RData {
    RData::CNAME(CNAME(name(target)))
}

pub(crate) fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, name(target)))
}

pub(crate) fn naptr(order: u16, preference: u16, service: &str, replacement: &str) -> RData {
    let service = service.as_bytes().into();
    RData::NAPTR(NAPTR::new(order, preference, b"S".as_slice().into(), service, Box::default(), name(replacement)))
}

impl Dns {
    pub(crate) async fn start(records: impl IntoIterator<Item = (&str, RData)>) -> Self {
        let zone: Arc<Zone> = Arc::new(Zone::empty(name(ZONE), ZoneType::Primary, AxfrPolicy::Deny));
        let mut catalog = Catalog::new();
        catalog.upsert(name(ZONE).into(), vec![Arc::clone(&zone) as _]);
        let asked = Arc::default();
        let mut server = Server::new(Listening { catalog, asked: Arc::clone(&asked) });
        // The same port for both, which another process may have taken for one of them.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let addr = udp.local_addr().expect("bound");
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 32);
        let dns = Self { addr, zone, asked, _server: server };
        dns.set(records).await;
        dns
    }

    /// Replaces all records.
    pub(crate) async fn set(&self, records: impl IntoIterator<Item = (&str, RData)>) {
        self.zone.records_mut().await.clear();
        let soa = SOA::new(name("ns.example.org"), name("admin.example.org"), 1, 3600, 600, 86_400, TTL);
        self.zone.upsert(Record::from_rdata(name(ZONE), TTL, RData::SOA(soa)), 1).await;
        for (owner, data) in records {
            assert!(self.zone.upsert(Record::from_rdata(name(owner), TTL, data), 1).await, "{owner} is no record");
        }
    }

    /// How often it was asked such a question: `SRV _nk._tcp.example.org.`.
    pub(crate) fn asked(&self, question: &str) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|asked| *asked == question).count()
    }
}
