//! Options of one URL (checklist N2.17, and ours).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode, Result};
use crate::types::Secret;
use crate::types::text;

/// What a URL says beside its address. What it does not say comes from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UriOptions {
    /// `password`: secret of the cluster for this address.
    pub password: Option<Secret>,
    /// `tls_certfile`: own certificate chain, PEM.
    pub tls_certfile: Option<PathBuf>,
    /// `tls_keyfile`: own private key, PEM.
    pub tls_keyfile: Option<PathBuf>,
    /// `tls_cacertfile`: certificates that we trust, PEM.
    pub tls_cacertfile: Option<PathBuf>,
    /// `tls_password`: of an encrypted private key.
    pub tls_password: Option<Secret>,
    /// `tls_verify`: `true`, `false` or `host`.
    pub tls_verify: Option<TlsVerify>,
    /// `tls_depth`: most intermediate certificates, 0 to 16.
    pub tls_depth: Option<u8>,
    /// `tls_versions`: such as `1.3` or `"1.2 1.3"`.
    pub tls_versions: Option<Vec<TlsVersion>>,
    /// `idle_timeout`, in milliseconds: a link that is silent so long is closed.
    pub idle_timeout: Option<Duration>,
    /// `connect_timeout`, in milliseconds.
    pub connect_timeout: Option<Duration>,
    /// `sctp_out_streams`.
    pub sctp_out_streams: Option<u16>,
    /// `sctp_in_streams`.
    pub sctp_in_streams: Option<u16>,
    /// `no_dns_cache`: resolve this address afresh every time.
    pub no_dns_cache: Option<bool>,
    /// `tcp_listeners`: tasks that accept, 1 to 1024.
    pub tcp_listeners: Option<u16>,
    /// `host`: name to send in the WebSocket upgrade and to check certificates against.
    pub host: Option<String>,
    /// `ws_proto`: sub-protocol of the WebSocket upgrade.
    pub ws_proto: Option<String>,
    /// `proxy`: `off`, or the HTTP proxy to tunnel through.
    pub proxy: Option<Proxy>,
    /// `exclusive`: a connection of its own, that no other call shares.
    pub exclusive: Option<bool>,
    /// `binding`: `off` where TLS ends at a balancer whose certificate we verify.
    pub binding: Option<Binding>,
}

/// How the certificate of the other side is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsVerify {
    /// `false`: any certificate will do; the secret and the channel binding protect the link.
    #[default]
    False,
    /// `true`: it must be signed by one that we trust.
    True,
    /// `host`: it must also name the host.
    Host,
}

impl TlsVerify {
    /// The word in URLs and configuration.
    pub fn name(self) -> &'static str {
        match self {
            TlsVerify::False => "false",
            TlsVerify::True => "true",
            TlsVerify::Host => "host",
        }
    }
}

impl fmt::Display for TlsVerify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for TlsVerify {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "false" => Ok(TlsVerify::False),
            "true" => Ok(TlsVerify::True),
            "host" => Ok(TlsVerify::Host),
            _ => Err(syntax("expected `true`, `false` or `host`")),
        }
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2, with extended master secret.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TlsVersion::V1_2 => "1.2",
            TlsVersion::V1_3 => "1.3",
        })
    }
}

impl FromStr for TlsVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("tlsv").unwrap_or(text) {
            "1.2" => Ok(TlsVersion::V1_2),
            "1.3" => Ok(TlsVersion::V1_3),
            _ => Err(syntax("expected versions of TLS, `1.2` or `1.3`")),
        }
    }
}

/// Whether the proofs of a link are bound to its TLS channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Bound, wherever the transport is encrypted.
    #[default]
    Required,
    /// Not bound; the certificate must be verified then.
    Off,
}

/// How to reach a host that only a proxy can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// Dial directly, whatever the environment says.
    Off,
    /// Tunnel by CONNECT.
    Http(ProxyAddr),
}

/// An HTTP proxy: `[http://][user:password@]host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyAddr {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `user:password`.
    pub credentials: Option<Secret>,
}

impl FromStr for Proxy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "off" {
            return Ok(Proxy::Off);
        }
        if text.contains("***@") {
            return Err(syntax("`***` stands for a hidden value"));
        }
        let wrong = || syntax("expected `off` or `http://host:port`");
        let text = text.strip_prefix("http://").unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let (credentials, address) = match text.rsplit_once('@') {
            Some((credentials, address)) => (Some(Secret::from(credentials)), address),
            None => (None, text),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(ip) if ip.parse::<std::net::Ipv6Addr>().is_ok() => ip,
            None if !host.is_empty() && host.bytes().all(is_host) => host,
            _ => return Err(wrong()),
        };
        let port = match port.parse() {
            Ok(number @ 1_u16..) if !port.starts_with('+') => number,
            _ => return Err(wrong()),
        };
        Ok(Proxy::Http(ProxyAddr { host: host.to_owned(), port, credentials }))
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proxy::Http(ProxyAddr { host, port, credentials }) = self else {
            return f.write_str("off");
        };
        let hidden = if credentials.is_some() { "***@" } else { "" };
        match host.contains(':') {
            true => write!(f, "http://{hidden}[{host}]:{port}"),
            false => write!(f, "http://{hidden}{host}:{port}"),
        }
    }
}

impl UriOptions {
    /// Sets the option of this name from its text.
    pub(super) fn set(&mut self, key: &str, value: Option<String>) -> Result<()> {
        let said = Said { key, value };
        match key {
            "password" => said.put(&mut self.password, Said::secret),
            "tls_certfile" => said.put(&mut self.tls_certfile, Said::path),
            "tls_keyfile" => said.put(&mut self.tls_keyfile, Said::path),
            "tls_cacertfile" => said.put(&mut self.tls_cacertfile, Said::path),
            "tls_password" => said.put(&mut self.tls_password, Said::secret),
            "tls_verify" => said.put(&mut self.tls_verify, Said::parsed),
            "tls_depth" => said.put(&mut self.tls_depth, |said| said.number(0, 16)),
            "tls_versions" => said.put(&mut self.tls_versions, Said::versions),
            "idle_timeout" => said.put(&mut self.idle_timeout, Said::millis),
            "connect_timeout" => said.put(&mut self.connect_timeout, Said::millis),
            "sctp_out_streams" => said.put(&mut self.sctp_out_streams, Said::streams),
            "sctp_in_streams" => said.put(&mut self.sctp_in_streams, Said::streams),
            "no_dns_cache" => said.put(&mut self.no_dns_cache, Said::flag),
            "tcp_listeners" => said.put(&mut self.tcp_listeners, |said| said.number(1, 1024)),
            "host" => said.put(&mut self.host, Said::text),
            "ws_proto" => said.put(&mut self.ws_proto, Said::text),
            "proxy" => said.put(&mut self.proxy, Said::parsed),
            "exclusive" => said.put(&mut self.exclusive, Said::flag),
            "binding" => said.put(&mut self.binding, Said::binding),
            // What looks like an option may be the end of a password.
            _ if self.password.is_some() || self.tls_password.is_some() => {
                Err(syntax("an option of a URL behind its password is unknown; a password with `;` stands in quotes"))
            }
            _ => Err(invalid(text::excerpt(key, 32), "there is no such option")),
        }
    }

    /// Writes `;key=value` for everything said.
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<Secret>| secret.as_ref().map(|_| "***");
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let millis = |time: &Option<Duration>| time.map(|time| time.as_millis());
        let versions = |versions: &Vec<TlsVersion>| {
            let versions: Vec<_> = versions.iter().map(TlsVersion::to_string).collect();
            versions.join(" ")
        };
        // Hidden values stand bare, so that reading recognises and refuses them.
        write_hidden(f, "password", hidden(&self.password))?;
        write_option(f, "tls_certfile", path(&self.tls_certfile))?;
        write_option(f, "tls_keyfile", path(&self.tls_keyfile))?;
        write_option(f, "tls_cacertfile", path(&self.tls_cacertfile))?;
        write_hidden(f, "tls_password", hidden(&self.tls_password))?;
        write_option(f, "tls_verify", self.tls_verify)?;
        write_option(f, "tls_depth", self.tls_depth)?;
        write_option(f, "tls_versions", self.tls_versions.as_ref().map(versions))?;
        write_option(f, "idle_timeout", millis(&self.idle_timeout))?;
        write_option(f, "connect_timeout", millis(&self.connect_timeout))?;
        write_option(f, "sctp_out_streams", self.sctp_out_streams)?;
        write_option(f, "sctp_in_streams", self.sctp_in_streams)?;
        write_option(f, "no_dns_cache", self.no_dns_cache)?;
        write_option(f, "tcp_listeners", self.tcp_listeners)?;
        write_option(f, "host", self.host.as_ref())?;
        write_option(f, "ws_proto", self.ws_proto.as_ref())?;
        write_option(f, "proxy", self.proxy.as_ref())?;
        write_option(f, "exclusive", self.exclusive)?;
        let binding = |binding| match binding {
            Binding::Required => "required",
            Binding::Off => "off",
        };
        write_option(f, "binding", self.binding.map(binding))
    }
}

fn write_hidden(f: &mut fmt::Formatter<'_>, key: &str, value: Option<&str>) -> fmt::Result {
    match value {
        Some(value) => write!(f, ";{key}={value}"),
        None => Ok(()),
    }
}

fn write_option(f: &mut fmt::Formatter<'_>, key: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    let Some(value) = value else {
        return Ok(());
    };
    let value = value.to_string();
    // `***` is a value like any other if it stands in quotes.
    let is_plain = value != "***";
    write!(f, ";{key}=")?;
    text::write_word(f, &value, |c| is_plain && is_bare(c))
}

/// What may stand in a value without quotes.
pub(super) fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, ',' | ';' | '<' | '>' | '"' | '\\')
}

/// An option as it was written.
struct Said<'a> {
    key: &'a str,
    value: Option<String>,
}

impl Said<'_> {
    const TEXT_BYTES_MAX: usize = 1024;

    fn put<T>(self, slot: &mut Option<T>, read: impl FnOnce(Self) -> Result<T>) -> Result<()> {
        let key = self.key;
        if slot.is_some() {
            return Err(invalid(key, "said twice"));
        }
        *slot = Some(read(self).map_err(|error| invalid(key, error))?);
        Ok(())
    }

    fn text(self) -> Result<String> {
        match self.value {
            Some(value) if (1..=Self::TEXT_BYTES_MAX).contains(&value.len()) => Ok(value),
            Some(value) if !value.is_empty() => Err(syntax("the value is too long")),
            _ => Err(syntax("a value is missing")),
        }
    }

    fn secret(self) -> Result<Secret> {
        self.text().map(Secret::new)
    }

    fn path(self) -> Result<PathBuf> {
        self.text().map(PathBuf::from)
    }

    fn parsed<T: FromStr<Err = Error>>(self) -> Result<T> {
        self.text()?.parse()
    }

    fn flag(self) -> Result<bool> {
        match self.value.as_deref() {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(syntax("expected `true` or `false`")),
        }
    }

    fn number<T>(self, min: T, max: T) -> Result<T>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        match self.text()?.parse() {
            Ok(number) if number >= min && number <= max => Ok(number),
            _ => Err(syntax(format!("expected a number from {min} to {max}"))),
        }
    }

    fn streams(self) -> Result<u16> {
        self.number(1, u16::MAX)
    }

    fn millis(self) -> Result<Duration> {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        self.number(1, DAY_MS).map(Duration::from_millis)
    }

    fn versions(self) -> Result<Vec<TlsVersion>> {
        let text = self.text()?;
        let words = text.split([',', ' ']).filter(|word| !word.is_empty());
        let mut versions = words.map(str::parse).collect::<Result<Vec<_>>>()?;
        versions.sort_unstable();
        versions.dedup();
        match versions.is_empty() {
            true => Err(syntax("a value is missing")),
            false => Ok(versions),
        }
    }

    fn binding(self) -> Result<Binding> {
        match self.text()?.as_str() {
            "required" => Ok(Binding::Required),
            "off" => Ok(Binding::Off),
            _ => Err(syntax("expected `required` or `off`")),
        }
    }
}

fn syntax(reason: impl Into<String>) -> Error {
    Error::new(ErrorCode::SyntaxError, reason)
}

/// An option that cannot be read. Its value is not repeated: it may be, or hold, a password.
pub(super) fn invalid(key: &str, reason: impl fmt::Display) -> Error {
    syntax(format!("option `{key}` of a URL: {reason}"))
}
