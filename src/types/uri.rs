//! Where a node listens, or where to find one.
//!
//! ```text
//! list   = uri { "," uri }                                                   spaces are allowed around everything here
//! uri    = "nkcluster://" host [ ":" port ] [ "/" path ] { ";" option }      or the same in "<" ">", where options may follow too
//! host   = all | all6 | localhost | node | name | IPv4 | "[" IPv6 "]"
//! option = key [ "=" value ]                                                 value: bare, or in double quotes with \ before " and \
//! ```
//!
//! A URL may hold passwords. They never leave it as text: [`Display`](fmt::Display) prints `***`, which is refused when read again, and the serialized form, which goes to
//! peers, leaves them out.

mod host;
mod options;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use host::Host;
pub use options::{Binding, Proxy, ProxyAddr, TlsVerify, TlsVersion, UriOptions};

use super::Transport;
use super::text::{self, Scanner};
use crate::error::{Error, ErrorCode, Result};

/// An address of the cluster: `nkcluster://host:port/path;transport=wss;tls_verify=host`.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeUri {
    host: Host,
    port: Option<u16>,
    path: String,
    transport: Option<Transport>,
    options: UriOptions,
}

impl NodeUri {
    /// Longest URL, or list of them, in bytes.
    pub const BYTES_MAX: usize = 16 * 1024;

    /// Most URLs in a list.
    pub const LIST_MAX: usize = 256;

    const SCHEME: &str = "nkcluster";

    /// The URL without port, path or options.
    pub fn new(host: Host, transport: Option<Transport>) -> Self {
        Self { host, port: None, path: String::new(), transport, options: UriOptions::default() }
    }

    /// The URL of a real socket, to tell others: `nkcluster://127.0.0.1:15004;transport=tcp`.
    pub fn socket_uri(transport: Transport, addr: SocketAddr) -> Self {
        Self::new(Host::Ip(addr.ip()), Some(transport)).with_port(addr.port())
    }

    /// The same URL with this port.
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The same URL with this host, where a name was resolved.
    pub fn with_host(mut self, host: Host) -> Self {
        self.host = host;
        self
    }

    /// The same URL with this transport.
    pub fn with_transport(mut self, transport: Transport) -> Self {
        self.transport = Some(transport);
        self
    }

    /// The same URL with the path of another one.
    pub fn with_path_of(mut self, other: &Self) -> Self {
        self.path.clone_from(&other.path);
        self
    }

    /// The same URL with these options.
    pub fn with_options(mut self, options: UriOptions) -> Self {
        self.options = options;
        self
    }

    /// The same URL without its passwords, to tell others.
    pub fn without_secrets(mut self) -> Self {
        self.options.password = None;
        self.options.tls_password = None;
        if let Some(Proxy::Http(proxy)) = &mut self.options.proxy {
            proxy.credentials = None;
        }
        self
    }

    /// Reads a comma list; an empty text is an empty list.
    ///
    /// Errors: `invalid_uri`, `invalid_scheme`, `invalid_transport`, and `syntax_error` which names the option.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        if text.len() > Self::BYTES_MAX {
            let max = Self::BYTES_MAX;
            return Err(invalid(format_args!("longer than {max} bytes")));
        }
        let mut uris = Vec::new();
        let mut scanner = Scanner::new(text);
        scanner.skip_spaces();
        if scanner.is_at_end() {
            return Ok(uris);
        }
        loop {
            uris.push(read_uri(&mut scanner)?);
            if uris.len() > Self::LIST_MAX {
                let max = Self::LIST_MAX;
                return Err(invalid(format_args!("more than {max} in a list")));
            }
            if scanner.is_at_end() {
                return Ok(uris);
            }
            if !scanner.eat(",") {
                return Err(unexpected(&scanner));
            }
        }
    }

    /// The host as written.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, if one was written; 0 asks the system for any.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Path of the WebSocket upgrade, `/` if none was written.
    pub fn path(&self) -> &str {
        match self.path.as_str() {
            "" => "/",
            path => path,
        }
    }

    /// The transport, if one was written.
    pub fn transport(&self) -> Option<Transport> {
        self.transport
    }

    /// Everything else that was written.
    pub fn options(&self) -> &UriOptions {
        &self.options
    }

    /// The transport to use without asking DNS: the one written, else tcp (checklist N3.3).
    pub fn effective_transport(&self) -> Transport {
        self.transport.unwrap_or(Transport::Tcp)
    }

    /// The port to use without asking DNS: the one written, else the default of the transport.
    pub fn effective_port(&self) -> u16 {
        self.port.unwrap_or_else(|| self.effective_transport().default_port())
    }

    /// Whether DNS may name the transport by NAPTR records: a domain name, with neither transport nor port (checklist N3.3).
    pub fn asks_naptr(&self) -> bool {
        self.is_name() && self.transport.is_none() && self.port.is_none()
    }

    /// Whether DNS may name the port by SRV records: a domain name, with a transport but no port (checklist N3.5).
    pub fn asks_srv(&self) -> bool {
        self.is_name() && self.transport.is_some() && self.port.is_none()
    }

    /// Whether only programs on this machine can reach a listener here.
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Localhost => true,
            Host::Ip(IpAddr::V4(ip)) => ip.is_loopback(),
            Host::Ip(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
                Some(ip) => ip.is_loopback(),
                None => ip.is_loopback(),
            },
            Host::All | Host::All6 | Host::Node | Host::Name(_) => self.transport == Some(Transport::Memory),
        }
    }

    fn is_name(&self) -> bool {
        matches!(self.host, Host::Name(_))
    }
}

fn read_uri(scanner: &mut Scanner<'_>) -> Result<NodeUri> {
    scanner.skip_spaces();
    let in_brackets = scanner.eat("<");
    scanner.skip_spaces();
    let mut uri = read_address(scanner)?;
    read_options(scanner, &mut uri)?;
    if in_brackets {
        if !scanner.eat(">") {
            return Err(unexpected(scanner));
        }
        read_options(scanner, &mut uri)?;
    }
    Ok(uri)
}

fn read_address(scanner: &mut Scanner<'_>) -> Result<NodeUri> {
    let scheme = scanner.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    if scheme.is_empty() || !scanner.eat("://") {
        // Nothing is repeated from here on: it may be a password, written without the rest.
        let at = scanner.position();
        return Err(invalid(format_args!("`nkcluster://` expected before byte {at}")));
    }
    if !scheme.eq_ignore_ascii_case(NodeUri::SCHEME) {
        let scheme = text::excerpt(scheme, 32);
        return Err(Error::new(ErrorCode::InvalidScheme, format!("scheme {scheme:?} is unknown, expected `nkcluster`")));
    }
    let authority = scanner.rest().split(['/', ';', ',', '<', '>', '"']).next().unwrap_or_default();
    if authority.contains('@') {
        // What stands in front of it looks like a password and is not repeated.
        return Err(invalid("there is no user in a URL of the cluster"));
    }
    let host = host::read(scanner)?;
    let port = match scanner.eat(":") {
        true => Some(read_port(scanner)?),
        false => None,
    };
    let path = match scanner.peek() {
        Some('/') => scanner.take_while(is_path),
        _ => "",
    };
    let mut uri = NodeUri::new(host, None);
    uri.port = port;
    uri.path = path.to_owned();
    Ok(uri)
}

fn read_port(scanner: &mut Scanner<'_>) -> Result<u16> {
    let digits = scanner.take_while(|c| c.is_ascii_alphanumeric());
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse() {
        Ok(port) if is_number => Ok(port),
        _ => Err(invalid("the port is not a number up to 65535")),
    }
}

fn is_path(c: char) -> bool {
    c.is_ascii_graphic() && !matches!(c, ';' | ',' | '<' | '>' | '"' | '\\')
}

/// Reads `;key=value` as often as it comes, and the spaces behind.
fn read_options(scanner: &mut Scanner<'_>, uri: &mut NodeUri) -> Result<()> {
    loop {
        scanner.skip_spaces();
        if !scanner.eat(";") {
            return Ok(());
        }
        scanner.skip_spaces();
        let key = scanner.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_owned();
        if key.is_empty() {
            return Err(unexpected(scanner));
        }
        scanner.skip_spaces();
        let value = match scanner.eat("=") {
            true => {
                scanner.skip_spaces();
                let is_redacted = scanner.rest().starts_with("***");
                let value = scanner.word(options::is_bare);
                let value = value.map_err(|reason| options::invalid(&key, reason))?;
                if is_redacted && value.as_deref() == Some("***") {
                    return Err(options::invalid(&key, "`***` stands for a hidden value"));
                }
                Some(value.ok_or_else(|| options::invalid(&key, "a value is missing"))?)
            }
            false => None,
        };
        match key.as_str() {
            "transport" if uri.transport.is_some() => {
                return Err(options::invalid(&key, "said twice"));
            }
            "transport" => uri.transport = Some(value.as_deref().unwrap_or_default().parse()?),
            "path" if !uri.path.is_empty() => {
                return Err(options::invalid(&key, "said twice"));
            }
            "path" => match value {
                Some(path) if path.starts_with('/') && path.chars().all(is_path) => uri.path = path,
                _ => return Err(options::invalid(&key, "expected a path such as `/nk`")),
            },
            _ => uri.options.set(&key, value)?,
        }
    }
}

fn unexpected(scanner: &Scanner<'_>) -> Error {
    // What follows may be a part of a password, so only its first character is repeated.
    let at = scanner.position();
    match scanner.peek() {
        Some(found) => invalid(format_args!("unexpected {found:?} at byte {at}")),
        None => invalid("it ends too early"),
    }
}

fn invalid(reason: impl fmt::Display) -> Error {
    Error::new(ErrorCode::InvalidUri, format!("URL cannot be read: {reason}"))
}

impl FromStr for NodeUri {
    type Err = Error;

    /// Reads exactly one URL.
    fn from_str(text: &str) -> Result<Self> {
        let mut uris = Self::parse_list(text)?;
        match uris.len() {
            1 => Ok(uris.remove(0)),
            n => Err(invalid(format_args!("one URL expected, found {n}"))),
        }
    }
}

impl fmt::Display for NodeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", Self::SCHEME, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)?;
        if let Some(transport) = self.transport {
            write!(f, ";transport={transport}")?;
        }
        self.options.write(f)
    }
}

impl fmt::Debug for NodeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeUri({self})")
    }
}

impl Serialize for NodeUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.clone().without_secrets())
    }
}

impl<'de> Deserialize<'de> for NodeUri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::parse(deserializer, "a URL of the cluster")
    }
}

#[cfg(test)]
mod tests;
