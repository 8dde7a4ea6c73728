//! Tunnels through HTTP proxies (CONNECT, RFC 9110 §9.3.6), where a machine reaches the outside by one only.
//!
//! Which proxy, if any, is decided for each URL: its option `proxy` has the last word; else the environment speaks for ws and wss, as it does for programs
//! that speak HTTP: `HTTPS_PROXY`, else `ALL_PROXY`, except for loopback and what `NO_PROXY` lists. The host of the URL is resolved by the proxy, since
//! those who need one often have no DNS for the outside.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64ct::{Base64, Encoding as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorCode, Result};
use crate::transport::head::{self, Head, HeadFault};
use crate::transport::target::{lookup, machine_name, no_answer};
use crate::transport::tcp;
use crate::types::{Host, IpRange, NodeUri, Proxy, ProxyAddr, Secret, Transport};

/// Port of a proxy in the environment that has none.
const PORT: u16 = 80;
/// Most characters of a proxy's own words that are repeated.
const REASON_CHARS_MAX: usize = 80;

/// The proxies of the environment.
#[derive(Clone, Debug, Default)]
pub struct ProxyEnvironment {
    proxy: Option<FromVariable>,
    except: Vec<Exception>,
}

#[derive(Clone, Debug)]
struct FromVariable {
    name: &'static str,
    /// None if the value is of no use.
    proxy: Option<ProxyAddr>,
}

/// An item of `NO_PROXY`, with its port if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    Everything,
    Range(IpRange, Option<u16>),
    /// The domain and all below it.
    Domain(String, Option<u16>),
}

impl ProxyEnvironment {
    /// What the environment of this process says.
    pub fn of_process() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// What these variables say. Lower case has precedence; an empty variable says nothing.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 4]| {
            names.into_iter().find_map(|name| Some((name, variable(name)?)).filter(|(_, value)| !value.trim().is_empty()))
        };
        let proxy = first(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
            .map(|(name, value)| FromVariable { name, proxy: read_proxy(&Zeroizing::new(value)) });
        let except = first(["no_proxy", "NO_PROXY", "no_proxy", "NO_PROXY"]).map(|(_, value)| read_exceptions(&value)).unwrap_or_default();
        Self { proxy, except }
    }

    /// The proxy by which to reach a URL.
    pub(super) fn choose(&self, uri: &NodeUri) -> Result<Option<ProxyAddr>> {
        match &uri.options().proxy {
            Some(Proxy::Off) => return Ok(None),
            Some(Proxy::Http(proxy)) => return Ok(Some(proxy.clone())),
            None => {}
        }
        let is_web = matches!(uri.effective_transport(), Transport::Ws | Transport::Wss);
        let Some(from) = self.proxy.as_ref().filter(|_| is_web && !uri.is_loopback() && !self.is_excepted(uri)) else {
            return Ok(None);
        };
        // Going around a proxy that somebody wanted would be worse than not going.
        from.proxy.clone().map(Some).ok_or_else(|| {
            let what = format!("{}: expected a proxy such as `http://host:port`; option `proxy=off` of the URL goes without", from.name);
            Error::new(ErrorCode::InvalidConfig, what)
        })
    }

    fn is_excepted(&self, uri: &NodeUri) -> bool {
        let port = uri.effective_port();
        let is_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        let name = match uri.host() {
            Host::Name(name) => Some(name.clone()),
            Host::Node => Some(machine_name().to_ascii_lowercase()),
            Host::Ip(_) | Host::Localhost | Host::All | Host::All6 => None,
        };
        self.except.iter().any(|exception| match (exception, uri.host()) {
            (Exception::Everything, _) => true,
            (Exception::Range(range, port), Host::Ip(ip)) => range.contains(*ip) && is_port(port),
            (Exception::Domain(domain, port), _) => name.as_deref().is_some_and(|name| is_below(name, domain)) && is_port(port),
            (Exception::Range(..), _) => false,
        })
    }
}

fn is_below(name: &str, domain: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// A proxy as the environment writes it: the port may be missing.
fn read_proxy(value: &str) -> Option<ProxyAddr> {
    let value = value.trim();
    let address = value.strip_prefix("http://").unwrap_or(value);
    let address = address.strip_suffix('/').unwrap_or(address);
    let host = address.rsplit('@').next().unwrap_or_default();
    let has_port = host.rsplit(']').next().is_some_and(|behind| behind.contains(':'));
    let whole = match has_port {
        true => Zeroizing::new(address.to_owned()),
        false => Zeroizing::new(format!("{address}:{PORT}")),
    };
    match whole.parse() {
        Ok(Proxy::Http(proxy)) => Some(proxy),
        Ok(Proxy::Off) | Err(_) => None,
    }
}

fn read_exceptions(value: &str) -> Vec<Exception> {
    let items = value.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty());
    items
        .map(|item| {
            if item == "*" {
                return Exception::Everything;
            }
            if let Ok(range) = item.parse() {
                return Exception::Range(range, None);
            }
            let (host, port) = match item.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
                Some((host, Ok(port))) => (host, Some(port)),
                _ => (item, None),
            };
            let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
            match ip.and_then(|ip| IpRange::new(ip, if ip.is_ipv4() { 32 } else { 128 })) {
                Some(range) => Exception::Range(range, port),
                None => {
                    let domain = host.strip_prefix('*').unwrap_or(host);
                    Exception::Domain(domain.trim_matches('.').to_ascii_lowercase(), port)
                }
            }
        })
        .collect()
}

/// A way to one host, through a proxy.
#[derive(Clone, Debug)]
pub(super) struct Tunnel {
    proxy: ProxyAddr,
    /// The host with its port.
    to: String,
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to)
    }
}

impl Tunnel {
    pub(super) fn new(proxy: ProxyAddr, uri: &NodeUri) -> Self {
        let port = uri.effective_port();
        let to = match uri.host() {
            Host::Node => format!("{}:{port}", machine_name()),
            host => format!("{host}:{port}"),
        };
        Self { proxy, to }
    }

    /// The proxy, without its credentials.
    pub(super) fn proxy(&self) -> impl fmt::Display {
        Proxy::Http(ProxyAddr { credentials: None, ..self.proxy.clone() })
    }

    /// Opens it. All of it together takes at most `limit`.
    ///
    /// # Errors
    /// `no_connections`, naming the proxy.
    pub(super) async fn open(&self, limit: Duration) -> Result<TcpStream> {
        let open = async {
            let addrs = lookup(&self.proxy.host, self.proxy.port, limit).await?;
            let mut failure = no_answer(limit);
            for addr in addrs {
                match tcp::connect(addr).await {
                    Ok(mut stream) => {
                        self.ask(&mut stream).await?;
                        return Ok(stream);
                    }
                    Err(error) => failure = Error::new(ErrorCode::NoConnections, error.to_string()),
                }
            }
            Err(failure)
        };
        let opened = timeout(limit, open).await.unwrap_or_else(|_| Err(no_answer(limit)));
        opened.map_err(|error| error.context(format_args!("proxy {}", self.proxy())))
    }

    /// Asks the proxy at the other end of a connection; afterwards that is the tunnel.
    async fn ask(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
        let failed = |reason: String| Error::new(ErrorCode::NoConnections, reason);
        let request = self.request();
        let write = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await
        };
        // A proxy that refuses early says so, though it has not read everything.
        let written = write.await;
        let Head { bytes, rest } = match (head::read(stream, b"HTTP/1.").await, written) {
            (Ok(head), _) => head,
            (Err(HeadFault::Closed), _) => return Err(failed("it closed the connection instead of an answer".to_owned())),
            (Err(HeadFault::NotHttp), _) => return Err(failed("it does not speak HTTP".to_owned())),
            (Err(_), Err(error)) => return Err(failed(error.to_string())),
            (Err(fault), Ok(())) => return Err(failed(fault.to_string())),
        };
        let Some((status, reason)) = status(&bytes) else {
            return Err(failed("its answer cannot be read".to_owned()));
        };
        let to = &self.to;
        match (status, &self.proxy.credentials) {
            // Nobody behind the tunnel speaks before we do.
            (200..=299, _) if !rest.is_empty() => Err(failed("it sent bytes behind its answer".to_owned())),
            (200..=299, _) => Ok(()),
            (407, None) => Err(failed(format!("it wants a user: proxy=http://user:password@host:port ({status} {reason})"))),
            (407, Some(_)) => Err(failed(format!("it does not accept the user or the password ({status} {reason})"))),
            _ => Err(failed(format!("it opens no tunnel to {to}: {status} {reason}"))),
        }
    }

    fn request(&self) -> Zeroizing<String> {
        let (to, version) = (&self.to, env!("CARGO_PKG_VERSION"));
        let mut request = Zeroizing::new(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: nkcluster/{version}\r\n"));
        if let Some(credentials) = &self.proxy.credentials {
            let encoded = Zeroizing::new(Base64::encode_string(&plain(credentials)));
            request.push_str("Proxy-Authorization: Basic ");
            request.push_str(&encoded);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request
    }
}

/// Credentials of a URL without its percent signs (RFC 3986 §2.1).
fn plain(credentials: &Secret) -> Zeroizing<Vec<u8>> {
    let text = credentials.expose().as_bytes();
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut at = 0;
    while at < text.len() {
        let digit = |offset: usize| text.get(at + offset).and_then(|b| char::from(*b).to_digit(16));
        match (text[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.extend(u8::try_from(high << 4 | low));
                at += 3;
            }
            (byte, _, _) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    bytes
}

/// Status and reason of an answer; the reason is made fit to be shown.
fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|b| *b == b'\r').next()?;
    let line = String::from_utf8_lossy(line);
    let (version, rest) = line.split_once(' ')?;
    let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let is_status = status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit());
    if !is_status || !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return None;
    }
    let reason = reason.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(REASON_CHARS_MAX).collect();
    Some((status.parse().ok()?, reason))
}

#[cfg(test)]
mod tests;
