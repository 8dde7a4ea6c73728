//! From the name of a cluster to addresses, by DNS (checklist N3.3 to N3.7).
//!
//! A URL such as `nkcluster://example.org` says neither transport nor port; DNS does:
//!
//! ```text
//! nkcluster://example.org                NAPTR example.org           which transports, in which order, and the names of their SRV records
//!   ;transport=wss                        SRV  _nks._ws.example.org   which hosts and ports, by priority and weight (RFC 2782)
//!   :1975;transport=wss                    A, AAAA example.org        which addresses, shuffled
//! ```
//!
//! A search begins at the line of what the URL leaves open, and where a line has no records it goes on with the next one, with tcp and the default port of the
//! transport. Without a NAPTR record two names are asked for SRV, that of the documentation and that of the source of the original (`_nk._tcp.`,
//! `_nkcluster._tcp.`), and what they answer is merged. An address, `localhost` and a name of the hosts file need no DNS.
//!
//! [`Search`] decides what to ask next and in which order the answers are tried; it is pure, randomness comes in. The [`Resolver`] asks, within a limit
//! of time. DNS is not trusted with anything but where to knock: whoever opens still has to prove that he knows the secret. So a lying server can only
//! waste time, and how much is bounded here: so many records of an answer, so many hosts, so many addresses.

mod order;
mod resolver;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use resolver::Resolver;

use self::order::{by_weight, shuffle};
use crate::types::{Host, NodeUri, Transport};

/// Most NAPTR records of a name that are followed.
const NAPTR_MAX: usize = 16;
/// Most SRV records of a service that are followed.
const SRV_MAX: usize = 16;
/// Most hosts whose addresses are asked for.
const SPOTS_MAX: usize = 48;
/// Most addresses of a host that are tried.
const ADDRESSES_MAX: usize = 32;
/// Most addresses altogether.
const FOUND_MAX: usize = 64;

/// A number from 0, smaller than the one given, which is not 0. Comes in so that a test decides it.
type Dice<'a> = &'a mut dyn FnMut(u64) -> u64;

/// What to ask DNS. A name with a dot at its end is complete; to another one the system may add its search domains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Question {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Naptr,
    Srv,
    /// Of both families.
    Addresses,
}

/// What DNS says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Naptr(Vec<Naptr>),
    Srv(Vec<Srv>),
    Addresses(Vec<(IpAddr, Source)>),
    /// It is certain that there is nothing of the kind.
    Nothing,
    /// Nobody knows: no server answered, or with an error. Why.
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Naptr {
    order: u16,
    preference: u16,
    flags: Vec<u8>,
    services: Vec<u8>,
    regexp: Vec<u8>,
    replacement: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Srv {
    priority: u16,
    weight: u16,
    port: u16,
    /// `.` if there is decidedly no such service.
    target: String,
}

/// Where an address was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An A record.
    A,
    /// An AAAA record.
    Aaaa,
    /// The hosts file of this machine.
    Hosts,
    /// Another way of this machine to look up names, such as mDNS.
    System,
}

/// One step on the way from a URL to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A NAPTR record chose the transport.
    Naptr {
        /// Whose record.
        name: String,
        /// Lower ones first.
        order: u16,
        /// Lower ones first within an order.
        preference: u16,
        /// Such as `NKS+D2W`.
        service: &'static str,
    },
    /// An SRV record chose host and port.
    Srv {
        /// Whose record.
        name: String,
        /// Lower ones first.
        priority: u16,
        /// Higher ones first, mostly.
        weight: u16,
        /// The host.
        target: String,
        /// The port.
        port: u16,
    },
    /// An address of a host.
    Address {
        /// Whose address.
        name: String,
        /// Where it was read.
        source: Source,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Naptr { name, order, preference, service } => write!(f, "NAPTR {} {order} {preference} {service}", shown(name)),
            Step::Srv { name, priority, weight, target, port } => {
                write!(f, "SRV {} {priority} {weight} {port} {}", shown(name), shown(target))
            }
            Step::Address { name, source } => {
                let kind = match source {
                    Source::A => "A",
                    Source::Aaaa => "AAAA",
                    Source::Hosts => "hosts file",
                    Source::System => "system",
                };
                write!(f, "{kind} {}", shown(name))
            }
        }
    }
}

/// A name without the dot at its end.
fn shown(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// An address that was found, to be tried by this transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) transport: Transport,
    /// The host that has the address.
    pub(super) host: String,
    pub(super) addr: SocketAddr,
    pub(super) steps: Vec<Step>,
}

/// The services of NAPTR records (checklist N3.4).
const SERVICES: [(&str, Transport); 5] = [
    ("NKS+D2W", Transport::Wss),
    ("NKS+D2T", Transport::Tls),
    ("NK+D2W", Transport::Ws),
    ("NK+D2T", Transport::Tcp),
    ("NK+D2S", Transport::Sctp),
];

/// The names whose SRV records tell hosts and ports of a transport (checklist N3.5).
fn service_names(transport: Transport, domain: &str) -> Vec<String> {
    let service = if transport.is_encrypted() { "_nks" } else { "_nk" };
    let carrier = match transport {
        Transport::Tls => Transport::Tcp,
        Transport::Wss => Transport::Ws,
        other => other,
    };
    vec![format!("{service}._{carrier}.{domain}"), format!("_nkcluster._{transport}.{domain}")]
}

/// A transport whose SRV records are to be asked.
#[derive(Clone, Debug)]
struct Lead {
    transport: Transport,
    names: Vec<String>,
    steps: Vec<Step>,
}

/// A host and port whose addresses are to be asked.
#[derive(Clone, Debug)]
struct Spot {
    transport: Transport,
    host: String,
    port: u16,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Stage {
    Naptr,
    Srv { leads: Vec<Lead>, by_naptr: bool },
    Addresses(Vec<Spot>),
    Done(Vec<Found>),
}

/// The search behind one URL: asks, is answered, asks again, ends.
#[derive(Debug)]
struct Search {
    domain: String,
    stage: Stage,
    /// Whether DNS said that a service is decidedly not offered.
    is_denied: bool,
    /// What could not be found out.
    faults: Vec<String>,
}

impl Search {
    /// For a URL whose host is a name. A name that `is_local` stands in the hosts file, and only its addresses are wanted.
    fn new(uri: &NodeUri, is_local: bool) -> Self {
        let domain = match uri.host() {
            Host::Name(name) => name.clone(),
            host => host.to_string(),
        };
        let transport = uri.effective_transport();
        let stage = if is_local || uri.port().is_some() {
            Stage::Addresses(vec![Spot { transport, host: domain.clone(), port: uri.effective_port(), steps: Vec::new() }])
        } else if uri.transport().is_some() {
            services_of(transport, &domain)
        } else {
            Stage::Naptr
        };
        Self { domain, stage, is_denied: false, faults: Vec::new() }
    }

    /// What to ask now; nothing if the search has ended.
    fn questions(&self) -> Vec<Question> {
        let question = |name: &String, kind| Question { name: name.clone(), kind };
        let mut questions: Vec<Question> = match &self.stage {
            Stage::Naptr => vec![question(&self.domain, Kind::Naptr)],
            Stage::Srv { leads, .. } => leads.iter().flat_map(|lead| &lead.names).map(|name| question(name, Kind::Srv)).collect(),
            Stage::Addresses(spots) => spots.iter().map(|spot| question(&spot.host, Kind::Addresses)).collect(),
            Stage::Done(_) => Vec::new(),
        };
        questions.sort();
        questions.dedup();
        questions
    }

    /// Goes on with the answers to all the questions.
    fn answered(&mut self, answers: &BTreeMap<Question, Answer>, dice: Dice<'_>) {
        for (Question { name, kind }, answer) in answers {
            if let Answer::Failed(reason) = answer {
                let kind = match kind {
                    Kind::Naptr => "NAPTR",
                    Kind::Srv => "SRV",
                    Kind::Addresses => "addresses",
                };
                self.faults.push(format!("{kind} of {}: {reason}", shown(name)));
            }
        }
        let answer = |name: &String, kind| answers.get(&Question { name: name.clone(), kind });
        self.stage = match std::mem::replace(&mut self.stage, Stage::Naptr) {
            Stage::Naptr => match answer(&self.domain, Kind::Naptr) {
                Some(Answer::Naptr(records)) => self.leads(records.clone()),
                _ => services_of(Transport::Tcp, &self.domain),
            },
            Stage::Srv { leads, by_naptr } => {
                let mut spots: Vec<Spot> = Vec::new();
                for lead in &leads {
                    let records = lead.names.iter().filter_map(|name| match answer(name, Kind::Srv) {
                        Some(Answer::Srv(records)) => Some((name, records)),
                        _ => None,
                    });
                    spots.extend(self.spots(lead, records, dice));
                }
                spots.truncate(SPOTS_MAX);
                match leads.first() {
                    _ if !spots.is_empty() => Stage::Addresses(spots),
                    _ if self.is_denied => Stage::Done(Vec::new()),
                    Some(lead) if !by_naptr => {
                        let (transport, port) = (lead.transport, lead.transport.default_port());
                        Stage::Addresses(vec![Spot { transport, host: self.domain.clone(), port, steps: Vec::new() }])
                    }
                    _ => services_of(Transport::Tcp, &self.domain),
                }
            }
            Stage::Addresses(spots) => {
                let mut found: Vec<Found> = Vec::new();
                for spot in spots {
                    if let Some(Answer::Addresses(addresses)) = answer(&spot.host, Kind::Addresses) {
                        for next in spot.found(addresses, dice) {
                            let is_known = found.iter().any(|known| (known.transport, known.addr) == (next.transport, next.addr));
                            if !is_known && found.len() < FOUND_MAX {
                                found.push(next);
                            }
                        }
                    }
                }
                Stage::Done(found)
            }
            Stage::Done(found) => Stage::Done(found),
        };
    }

    /// The transports that NAPTR records name, best first.
    fn leads(&self, mut records: Vec<Naptr>) -> Stage {
        records.sort_by_key(|record| (record.order, record.preference));
        let leads = records.into_iter().filter_map(|record| {
            let service = SERVICES.iter().find(|(service, _)| record.services.eq_ignore_ascii_case(service.as_bytes()));
            let (service, transport) = *service.filter(|_| record.flags.eq_ignore_ascii_case(b"S") && record.regexp.is_empty())?;
            if record.replacement == "." {
                return None;
            }
            let (order, preference) = (record.order, record.preference);
            let step = Step::Naptr { name: self.domain.clone(), order, preference, service };
            Some(Lead { transport, names: vec![record.replacement], steps: vec![step] })
        });
        let leads: Vec<Lead> = leads.take(NAPTR_MAX).collect();
        match leads.is_empty() {
            true => services_of(Transport::Tcp, &self.domain),
            false => Stage::Srv { leads, by_naptr: true },
        }
    }

    /// The hosts that SRV records name for a transport, best first.
    fn spots<'a>(&mut self, lead: &Lead, answers: impl Iterator<Item = (&'a String, &'a Vec<Srv>)>, dice: Dice<'_>) -> Vec<Spot> {
        let mut merged: Vec<(&String, &Srv)> = Vec::new();
        for (name, records) in answers {
            self.is_denied |= records.len() == 1 && records[0].target == ".";
            for record in records.iter().filter(|record| record.target != "." && record.port != 0) {
                if !merged.iter().any(|(_, known)| (&known.target, known.port) == (&record.target, record.port)) {
                    merged.push((name, record));
                }
            }
            // Of thousands the most preferred ones.
            merged.sort_by_key(|(_, record)| record.priority);
            merged.truncate(SRV_MAX);
        }
        let ordered = by_weight(merged, |(_, record)| (record.priority, record.weight), dice);
        let spots = ordered.into_iter().map(|(name, record)| {
            let Srv { priority, weight, port, ref target } = *record;
            let step = Step::Srv { name: name.clone(), priority, weight, target: target.clone(), port };
            Spot { transport: lead.transport, host: target.clone(), port, steps: [&lead.steps[..], &[step]].concat() }
        });
        spots.collect()
    }

    /// The addresses, best first.
    ///
    /// # Errors
    /// Why there are none.
    fn finish(self) -> Result<Vec<Found>, String> {
        let domain = shown(&self.domain);
        match self.stage {
            Stage::Done(found) if !found.is_empty() => Ok(found),
            _ if self.is_denied => Err(format!("cannot resolve {domain}: DNS says that the service is not offered there")),
            _ if self.faults.is_empty() => Err(format!("cannot resolve {domain}: there is no such name, or it has no address")),
            _ => Err(format!("cannot resolve {domain}: DNS failed, it may come back ({})", self.faults.join("; "))),
        }
    }
}

fn services_of(transport: Transport, domain: &str) -> Stage {
    let lead = Lead { transport, names: service_names(transport, domain), steps: Vec::new() };
    Stage::Srv { leads: vec![lead], by_naptr: false }
}

impl Spot {
    /// Its addresses: IPv4 before IPv6, shuffled within each (checklist N3.6).
    fn found(self, addresses: &[(IpAddr, Source)], dice: Dice<'_>) -> Vec<Found> {
        let mut chosen = Vec::new();
        for is_ipv4 in [true, false] {
            let mut family: Vec<_> = addresses.iter().filter(|(ip, _)| ip.is_ipv4() == is_ipv4).collect();
            // Before the rest is left out: where there are more, each shall have its turn.
            shuffle(&mut family, dice);
            family.truncate(ADDRESSES_MAX);
            chosen.extend(family);
        }
        let found = chosen.into_iter().map(|(ip, source)| {
            let step = Step::Address { name: self.host.clone(), source };
            let addr = SocketAddr::new(ip, self.port);
            Found { transport: self.transport, host: self.host.clone(), addr, steps: [&self.steps[..], &[step]].concat() }
        });
        found.collect()
    }
}
