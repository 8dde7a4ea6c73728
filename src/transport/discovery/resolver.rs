//! Asking DNS: servers, cache, hosts file, limits of time.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use rand::RngExt as _;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{ADDRESSES_MAX, Answer, Found, Kind, Naptr, Question, Search, Source, Srv};
use crate::error::{Error, ErrorCode, Result};
use crate::types::{Host, NodeUri};

/// Time for one server to answer one question; it is asked again as often as `ATTEMPTS` says.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Answers that are kept.
const CACHE_ENTRIES: u64 = 1024;
/// Questions that are under way at once.
const QUESTIONS_MAX: usize = 16;
/// NAPTR and SRV records may each use this part of the time; without them there still may be an address.
const PART: u32 = 4;
/// Longest hosts file and resolver configuration that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// How long answers are kept unless the configuration says otherwise.
const CACHE_TTL: Duration = Duration::from_secs(30);

const HOSTS_FILE: &str = "/etc/hosts";
const SYSTEM_FILE: &str = "/etc/resolv.conf";

/// Finds addresses through DNS. Clones share servers and cache.
///
/// Answers are kept as long as their records say, but not longer than `dns_cache_ttl`; so is the certainty that there are none. Failures are not kept.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    /// Empty: those of the system.
    servers: Vec<SocketAddr>,
    cache_ttl: Duration,
    hosts: PathBuf,
    /// The hosts file as it was read last, and what it says.
    known_hosts: Mutex<(Vec<u8>, Arc<Hosts>)>,
    current: Mutex<Option<Current>>,
}

/// What asks, and the system's configuration that it was made of.
struct Current {
    system: Vec<u8>,
    resolver: TokioResolver,
}

impl Default for Resolver {
    /// With the servers of the system, and a cache of 30 s.
    fn default() -> Self {
        Self::new(Vec::new(), CACHE_TTL)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("servers", &self.shared.servers).field("cache_ttl", &self.shared.cache_ttl).finish_non_exhaustive()
    }
}

impl Resolver {
    /// Asks these servers over UDP and TCP, or without any those of the system. Answers are kept for `cache_ttl` at most; zero keeps none.
    pub fn new(servers: Vec<SocketAddr>, cache_ttl: Duration) -> Self {
        Self::with_hosts(servers, cache_ttl, HOSTS_FILE.into())
    }

    pub(super) fn with_hosts(servers: Vec<SocketAddr>, cache_ttl: Duration, hosts: PathBuf) -> Self {
        Self { shared: Arc::new(Shared { servers, cache_ttl, hosts, known_hosts: Mutex::default(), current: Mutex::default() }) }
    }

    /// Forgets every answer.
    pub async fn clear(&self) {
        if let Some(current) = &*self.shared.current.lock().await {
            current.resolver.clear_cache();
        }
    }

    /// The addresses behind a URL whose host is a name, in the order in which to try them.
    ///
    /// # Errors
    /// `no_connections`: it says whether there are none, or DNS failed, or did not answer within `limit`.
    pub(in crate::transport) async fn find(&self, uri: &NodeUri, limit: Duration) -> Result<Vec<Found>> {
        let deadline = Instant::now() + limit;
        let asker = Asker {
            hosts: self.hosts().await,
            resolver: self.current().await,
            is_system: self.shared.servers.is_empty(),
            is_fresh: self.shared.cache_ttl.is_zero() || uri.options().no_dns_cache == Some(true),
        };
        let is_local = match uri.host() {
            Host::Name(name) => !asker.in_hosts(name).is_empty(),
            _ => false,
        };
        let mut search = Search::new(uri, is_local);
        loop {
            let questions = search.questions();
            let Some(first) = questions.first() else {
                break;
            };
            let until = match first.kind {
                Kind::Naptr | Kind::Srv => deadline.min(Instant::now() + limit / PART),
                Kind::Addresses => deadline,
            };
            let answers = asker.ask_all(questions, until, limit).await;
            search.answered(&answers, &mut |limit| rand::rng().random_range(0..limit));
        }
        search.finish().map_err(|reason| Error::new(ErrorCode::NoConnections, reason))
    }

    /// What asks now: made anew where the system's configuration has changed.
    ///
    /// # Errors
    /// Why there is none.
    async fn current(&self) -> Result<TokioResolver, String> {
        let is_system = self.shared.servers.is_empty();
        let system = if is_system { read(Path::new(SYSTEM_FILE)).await } else { Vec::new() };
        let mut current = self.shared.current.lock().await;
        if let Some(current) = &*current
            && current.system == system
        {
            return Ok(current.resolver.clone());
        }
        let (config, options) = if is_system {
            system_conf::parse_resolv_conf(&system).map_err(|error| format!("{SYSTEM_FILE}: {error}"))?
        } else {
            let servers = self.shared.servers.iter().map(|addr| {
                let connection = |mut connection: ConnectionConfig| {
                    connection.port = addr.port();
                    connection
                };
                let connections = vec![connection(ConnectionConfig::udp()), connection(ConnectionConfig::tcp())];
                NameServerConfig::new(addr.ip(), true, connections)
            });
            (ResolverConfig::from_name_servers(servers.collect()), ResolverOpts::default())
        };
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let own = builder.options_mut();
        *own = options;
        own.timeout = SERVER_TIMEOUT;
        own.attempts = ATTEMPTS;
        own.cache_size = CACHE_ENTRIES;
        own.positive_max_ttl = Some(self.shared.cache_ttl);
        own.negative_max_ttl = Some(self.shared.cache_ttl);
        // We read it ourselves, as it may change.
        own.use_hosts_file = ResolveHosts::Never;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        *current = Some(Current { system, resolver: resolver.clone() });
        Ok(resolver)
    }

    /// What the hosts file says now. It is understood once, as each line that cannot be is a warning in the log.
    async fn hosts(&self) -> Arc<Hosts> {
        let bytes = read(&self.shared.hosts).await;
        let mut known = self.shared.known_hosts.lock().await;
        if known.0 != bytes {
            let mut hosts = Hosts::default();
            if let Err(error) = hosts.read_hosts_conf(bytes.as_slice()) {
                tracing::warn!(%error, "the hosts file is no text");
            }
            *known = (bytes, Arc::new(hosts));
        }
        Arc::clone(&known.1)
    }
}

/// A file of the system; one that is missing is empty.
async fn read(path: &Path) -> Vec<u8> {
    use tokio::io::AsyncReadExt as _;
    let mut bytes = Vec::new();
    if let Ok(file) = tokio::fs::File::open(path).await {
        // What was read until an error is as good as a file that ends there.
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).await;
    }
    bytes
}

/// Asks for one search.
#[derive(Clone)]
struct Asker {
    hosts: Arc<Hosts>,
    resolver: Result<TokioResolver, String>,
    /// Whether names are looked up as the system does.
    is_system: bool,
    /// Whether what is kept from before does not count.
    is_fresh: bool,
}

impl Asker {
    /// Asks everything, some at a time; what is not answered in time has failed.
    async fn ask_all(&self, questions: Vec<Question>, until: Instant, limit: Duration) -> BTreeMap<Question, Answer> {
        let mut waiting = questions.into_iter();
        let mut answers = BTreeMap::new();
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < QUESTIONS_MAX
                && let Some(question) = waiting.next()
            {
                let asker = self.clone();
                asked.spawn(async move {
                    let answer = match timeout_at(until, asker.ask(&question)).await {
                        Ok(answer) => answer,
                        Err(_) => Answer::Failed(format!("no answer in time (connect_timeout {limit:?})")),
                    };
                    (question, answer)
                });
            }
            match asked.join_next().await {
                Some(Ok((question, answer))) => drop(answers.insert(question, answer)),
                Some(Err(error)) => tracing::error!(%error, "a question for DNS was not asked to its end"),
                None => return answers,
            }
        }
    }

    async fn ask(&self, question: &Question) -> Answer {
        let name = &question.name;
        match question.kind {
            Kind::Naptr => self.records(name, RecordType::NAPTR, naptr).await.map_or_else(|nothing| nothing, Answer::Naptr),
            Kind::Srv => self.records(name, RecordType::SRV, srv).await.map_or_else(|nothing| nothing, Answer::Srv),
            Kind::Addresses => self.addresses(name).await,
        }
    }

    async fn addresses(&self, name: &str) -> Answer {
        let local = self.in_hosts(name);
        if !local.is_empty() {
            return Answer::Addresses(local);
        }
        let a = self.records(name, RecordType::A, |data| match data {
            RData::A(a) => Some((IpAddr::V4(a.0), Source::A)),
            _ => None,
        });
        let aaaa = self.records(name, RecordType::AAAA, |data| match data {
            RData::AAAA(aaaa) => Some((IpAddr::V6(aaaa.0), Source::Aaaa)),
            _ => None,
        });
        match tokio::join!(a, aaaa) {
            (Ok(mut a), Ok(aaaa)) => {
                a.extend(aaaa);
                Answer::Addresses(a)
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Answer::Addresses(one),
            (Err(Answer::Nothing), Err(Answer::Nothing)) if self.is_system => self.by_system(name).await,
            (Err(_), Err(_)) if self.is_system && self.resolver.is_err() => self.by_system(name).await,
            (Err(Answer::Nothing), Err(other)) | (Err(other), Err(_)) => other,
        }
    }

    /// The other ways of the system, where DNS has nothing.
    async fn by_system(&self, name: &str) -> Answer {
        match tokio::net::lookup_host((name, 0)).await {
            Ok(found) => {
                let mut addresses: Vec<IpAddr> = found.take(2 * ADDRESSES_MAX).map(|addr| addr.ip()).collect();
                addresses.dedup();
                Answer::Addresses(addresses.into_iter().map(|ip| (ip, Source::System)).collect())
            }
            Err(error) => match &self.resolver {
                Ok(_) => Answer::Nothing,
                Err(reason) => Answer::Failed(format!("{error}; {reason}")),
            },
        }
    }

    /// The addresses of a name in the hosts file.
    fn in_hosts(&self, name: &str) -> Vec<(IpAddr, Source)> {
        let Ok(name) = Name::from_ascii(name) else {
            return Vec::new();
        };
        let kinds = [RecordType::A, RecordType::AAAA].into_iter();
        let lookups = kinds.filter_map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)));
        let addresses = lookups.flat_map(|lookup| lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>());
        addresses.map(|ip| (ip, Source::Hosts)).collect()
    }

    /// The records of a kind that a name has: at least one.
    async fn records<T>(&self, name: &str, kind: RecordType, read: impl Fn(&RData) -> Option<T>) -> Result<Vec<T>, Answer> {
        let resolver = self.resolver.as_ref().map_err(|reason| Answer::Failed(reason.clone()))?;
        // A name that is too long with what was put in front of it is the name of nothing.
        let name = Name::from_ascii(name).map_err(|_| Answer::Nothing)?;
        if self.is_fresh {
            resolver.clear_lookup_cache(name.clone(), kind);
        }
        let found = match resolver.lookup(name, kind).await {
            Ok(lookup) => lookup.answers().iter().filter_map(|record| read(&record.data)).collect::<Vec<_>>(),
            Err(error) if is_certain(&error) => Vec::new(),
            Err(error) => return Err(Answer::Failed(error.to_string())),
        };
        if found.is_empty() { Err(Answer::Nothing) } else { Ok(found) }
    }
}

/// Whether there are no such records, and not only no answer. A server that refuses or fails also has no records for us.
fn is_certain(error: &NetError) -> bool {
    use hickory_resolver::net::DnsError;
    use hickory_resolver::proto::op::ResponseCode;
    match error {
        NetError::Dns(DnsError::NoRecordsFound(nothing)) => matches!(nothing.response_code, ResponseCode::NoError | ResponseCode::NXDomain),
        _ => false,
    }
}

fn naptr(data: &RData) -> Option<Naptr> {
    let RData::NAPTR(record) = data else {
        return None;
    };
    Some(Naptr {
        order: record.order,
        preference: record.preference,
        flags: record.flags.to_vec(),
        services: record.services.to_vec(),
        regexp: record.regexp.to_vec(),
        replacement: text(&record.replacement),
    })
}

fn srv(data: &RData) -> Option<Srv> {
    let RData::SRV(record) = data else {
        return None;
    };
    Some(Srv { priority: record.priority, weight: record.weight, port: record.port, target: text(&record.target) })
}

/// A name in lower case with a dot at its end.
fn text(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}
