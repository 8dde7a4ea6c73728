//! The host of a URL.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::invalid;
use crate::error::Result;
use crate::types::text::{self, Scanner};

/// Where a URL points to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// `all`: every IPv4 address of this machine, for listeners.
    All,
    /// `all6`: every IPv6 address of this machine, for listeners.
    All6,
    /// `localhost`: the loopback interface.
    Localhost,
    /// `node`: the name of this machine.
    Node,
    /// A name for DNS, in lower case.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

impl Host {
    /// Longest name, in bytes (RFC 1035).
    pub const NAME_BYTES_MAX: usize = 253;

    /// The address to bind, where no name has to be resolved.
    pub fn bind_ip(&self) -> Option<IpAddr> {
        match self {
            Host::All => Some(Ipv4Addr::UNSPECIFIED.into()),
            Host::All6 => Some(Ipv6Addr::UNSPECIFIED.into()),
            Host::Localhost => Some(Ipv4Addr::LOCALHOST.into()),
            Host::Ip(ip) => Some(*ip),
            Host::Node | Host::Name(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::All => f.write_str("all"),
            Host::All6 => f.write_str("all6"),
            Host::Localhost => f.write_str("localhost"),
            Host::Node => f.write_str("node"),
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

pub(super) fn read(scanner: &mut Scanner<'_>) -> Result<Host> {
    if scanner.eat("[") {
        let ip = scanner.take_while(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'));
        let host = match (ip.parse::<Ipv6Addr>(), scanner.eat("]")) {
            (Ok(ip), true) => Host::Ip(ip.into()),
            _ => {
                let ip = text::excerpt(ip, 64);
                return Err(invalid(format_args!("[{ip}] is not an IPv6 address")));
            }
        };
        return Ok(host);
    }
    let host = scanner.take_while(|c| !matches!(c, ':' | '/' | ';' | ',' | '<' | '>' | '"') && !c.is_whitespace());
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(ip.into()));
    }
    match host.to_ascii_lowercase().as_str() {
        "all" => Ok(Host::All),
        "all6" => Ok(Host::All6),
        "localhost" => Ok(Host::Localhost),
        "node" => Ok(Host::Node),
        name if is_name(name) => Ok(Host::Name(name.to_owned())),
        _ => {
            let host = text::excerpt(host, 64);
            Err(invalid(format_args!("{host:?} is not a host")))
        }
    }
}

/// A name for DNS: labels of letters, digits, `-` and `_`, the last one not a number, which would be an address that failed to be one.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(allowed)
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= Host::NAME_BYTES_MAX && name.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}
