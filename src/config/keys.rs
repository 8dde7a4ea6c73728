//! Every key: how it is read, what its bounds are, whether it may be shown.

use std::net::{IpAddr, SocketAddr};

use super::Config;
use super::error::Problem;
use super::raw::{Raw, Read};
use super::secret_file;
use super::values::{LogFormat, Role, Split};
use crate::error::{Error, ErrorCode};
use crate::types::{TlsVerify, TlsVersion};

/// A key of the configuration.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What it decides: two keys for the same thing replace each other.
    pub(super) slot: &'static str,
    /// May hold a secret, so its value is not repeated.
    pub(super) is_hidden: bool,
    /// An empty text says nothing.
    pub(super) is_optional: bool,
    pub(super) set: fn(&mut Config, &Raw) -> Read<()>,
}

impl Key {
    pub(super) fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    const fn hidden(mut self) -> Self {
        self.is_hidden = true;
        self
    }

    const fn optional(mut self) -> Self {
        self.is_optional = true;
        self
    }

    const fn of(mut self, slot: &'static str) -> Self {
        self.slot = slot;
        self
    }
}

const fn key(name: &'static str, set: fn(&mut Config, &Raw) -> Read<()>) -> Key {
    Key { name, slot: name, is_hidden: false, is_optional: false, set }
}

/// A key that puts what it reads into a field.
macro_rules! field {
    ($name:ident, $raw:ident => $read:expr) => {
        key(stringify!($name), |config, $raw| {
            config.$name = $read?;
            Ok(())
        })
    };
}

/// A key that may be left out, with nothing as its default.
macro_rules! option {
    ($name:ident, $raw:ident => $read:expr) => {
        key(stringify!($name), |config, $raw| {
            config.$name = Some($read?);
            Ok(())
        })
        .optional()
    };
}

/// A key that names the file which holds a secret.
macro_rules! secret_file {
    ($name:literal, $field:ident) => {
        key($name, |config, raw| {
            config.$field = secret_file::read(&raw.path()?, config)?.into();
            Ok(())
        })
        .of(stringify!($field))
        .optional()
    };
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const BYTES_MIN: usize = 64 * 1024;
const BYTES_MAX: usize = 16 * 1024 * 1024 * 1024;

/// In the order in which they are read.
pub(super) const KEYS: &[Key] = &[
    key("role", |config, raw| {
        config.role = role(raw)?;
        Ok(())
    }),
    key("is_control", |config, raw| {
        config.role = is_control(raw)?;
        Ok(())
    })
    .of("role"),
    key("type", |config, raw| {
        config.role = original_type(raw)?;
        Ok(())
    })
    .of("role"),
    option!(node_id, raw => raw.parsed()),
    field!(cluster_name, raw => cluster_name(raw)),
    field!(cluster_addr, raw => raw.uris()).hidden(),
    field!(listen, raw => raw.uris()).hidden(),
    field!(meta, raw => raw.parsed()),
    // Before the files, which it concerns.
    field!(allow_readable_secrets, raw => raw.flag()),
    field!(password, raw => raw.secret()).hidden(),
    secret_file!("password_file", password),
    option!(worker_password, raw => raw.secret()).hidden(),
    secret_file!("worker_password_file", worker_password),
    option!(admin_password, raw => raw.secret()).hidden(),
    secret_file!("admin_password_file", admin_password),
    option!(control_password, raw => raw.secret()).hidden(),
    secret_file!("control_password_file", control_password),
    option!(control_key, raw => control_key(raw)),
    option!(node_token, raw => raw.secret()).hidden(),
    secret_file!("node_token_file", node_token),
    field!(node_tokens, raw => raw.flag()),
    field!(allow_default_password, raw => raw.flag()),
    field!(pbkdf2_iters, raw => raw.number(1, 100_000_000)),
    option!(tls_certfile, raw => raw.path()),
    option!(tls_keyfile, raw => raw.path()),
    option!(tls_cacertfile, raw => raw.path()),
    option!(tls_password, raw => raw.secret()).hidden(),
    secret_file!("tls_password_file", tls_password),
    field!(tls_verify, raw => tls_verify(raw)),
    field!(tls_depth, raw => raw.number(0, 16)),
    field!(tls_versions, raw => tls_versions(raw)),
    field!(ping_time, raw => raw.millis(1_000, 60_000)),
    field!(proxy_connect_retry, raw => raw.millis(1_000, DAY_MS)),
    field!(stats_time, raw => raw.millis(1_000, DAY_MS)),
    field!(drain_timeout, raw => raw.millis(0, DAY_MS)),
    field!(connect_timeout, raw => raw.millis(1, DAY_MS)),
    key("idle_timeout", |config, raw| {
        config.idle_timeout = Some(raw.millis(0, DAY_MS)?).filter(|time| !time.is_zero());
        Ok(())
    }),
    field!(tcp_timeout, raw => raw.millis(1, DAY_MS)),
    field!(sctp_timeout, raw => raw.millis(1, DAY_MS)),
    field!(ws_timeout, raw => raw.millis(1, DAY_MS)),
    field!(udp_timeout, raw => raw.millis(1, DAY_MS)),
    field!(http_timeout, raw => raw.millis(1, DAY_MS)),
    field!(dns_cache_ttl, raw => raw.millis(0, DAY_MS)),
    field!(dns_servers, raw => dns_servers(raw)),
    field!(max_connections, raw => raw.number(1, 1_000_000)),
    field!(max_unauthenticated, raw => raw.number(1, 100_000)),
    field!(accept_rate, raw => raw.number(1, 1_000_000)),
    field!(max_calls, raw => raw.number(1, 1_000_000)),
    field!(journal_bytes, raw => raw.number(BYTES_MIN, BYTES_MAX)),
    field!(outcome_bytes, raw => raw.number(BYTES_MIN, BYTES_MAX)),
    field!(trusted_proxies, raw => raw.parsed_words()),
    field!(allowed_origins, raw => allowed_origins(raw)),
    field!(tcp_listeners, raw => raw.number(1, 1024)),
    field!(sctp_out_streams, raw => raw.number(1, u16::MAX)),
    field!(sctp_in_streams, raw => raw.number(1, u16::MAX)),
    option!(main_ip, raw => raw.standard("an IPv4 address")),
    option!(main_ip6, raw => raw.standard("an IPv6 address")),
    option!(ext_ip, raw => raw.standard("an IPv4 address")),
    option!(ext_ip6, raw => raw.standard("an IPv6 address")),
    field!(ring_size, raw => ring_size(raw)),
    field!(staged_joins, raw => raw.flag()),
    field!(split, raw => raw.one_of(&[("serve", Split::Serve), ("majority", Split::Majority)])),
    field!(classes, raw => raw.classes()),
    field!(grants, raw => raw.classes()),
    field!(state_dir, raw => raw.path()),
    option!(file_root, raw => raw.path()),
    field!(log, raw => raw.text().map(str::to_owned)),
    field!(log_format, raw => raw.one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)])),
    key("http", |config, raw| {
        config.http = match raw.as_str() {
            Some("off") => None,
            _ => Some(raw.standard("`off` or an address such as `127.0.0.1:8080`")?),
        };
        Ok(())
    }),
];

fn role(raw: &Raw) -> Read<Role> {
    raw.one_of(&[("control", Role::Control), ("worker", Role::Worker)])
}

fn is_control(raw: &Raw) -> Read<Role> {
    Ok(if raw.flag()? { Role::Control } else { Role::Worker })
}

fn original_type(raw: &Raw) -> Read<Role> {
    raw.one_of(&[("primary", Role::Control), ("secondary", Role::Worker)])
}

fn cluster_name(raw: &Raw) -> Read<String> {
    const BYTES_MAX: usize = 64;
    match raw.text()? {
        name if name.len() <= BYTES_MAX => Ok(name.to_owned()),
        _ => Err(Problem::new(format!("expected at most {BYTES_MAX} bytes"))),
    }
}

fn control_key(raw: &Raw) -> Read<[u8; 32]> {
    let wrong = || Problem::new("expected the public key of the control nodes, 64 hexadecimal digits");
    let digits = raw.text()?.as_bytes();
    if digits.len() != 64 {
        return Err(wrong());
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16).ok_or_else(wrong);
        let value = digit(pair[0])? << 4 | digit(pair[1])?;
        *byte = u8::try_from(value).map_err(|_| wrong())?;
    }
    Ok(key)
}

fn tls_verify(raw: &Raw) -> Read<TlsVerify> {
    let text = match raw {
        Raw::Toml(toml::Value::Boolean(flag)) => flag.to_string(),
        _ => raw.as_str().unwrap_or_default().to_owned(),
    };
    let wrong = |error: Error| Problem { code: ErrorCode::SyntaxError, ..error.into() };
    text.parse().map_err(wrong)
}

fn tls_versions(raw: &Raw) -> Read<Vec<TlsVersion>> {
    let words = raw.words()?;
    let versions = words.into_iter().map(|word| word.parse().map_err(Problem::from));
    let mut versions = versions.collect::<Read<Vec<_>>>()?;
    versions.sort_unstable();
    versions.dedup();
    match versions.is_empty() {
        true => Err(Problem::new("expected at least one of `1.2`, `1.3`")),
        false => Ok(versions),
    }
}

/// As browsers write them (RFC 6454 §7), in lower case.
fn allowed_origins(raw: &Raw) -> Read<Vec<String>> {
    let words = raw.words()?.into_iter().map(|word| {
        let origin = word.to_ascii_lowercase();
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        match origin.split_once("://") {
            Some(("http" | "https", host)) if !host.is_empty() && host.bytes().all(is_host) => Ok(origin),
            _ => Err(Problem::new("expected origins such as `https://console.example.org`, without a path")),
        }
    });
    words.collect()
}

fn ring_size(raw: &Raw) -> Read<usize> {
    match raw.number(8, 4096) {
        Ok(size) if usize::is_power_of_two(size) => Ok(size),
        _ => Err(Problem::new("expected a power of two from 8 to 4096")),
    }
}

fn dns_servers(raw: &Raw) -> Read<Vec<SocketAddr>> {
    const PORT: u16 = 53;
    const SERVERS_MAX: usize = 8;
    let words = raw.words()?;
    if words.len() > SERVERS_MAX {
        return Err(Problem::new(format!("expected at most {SERVERS_MAX} servers")));
    }
    let read = |word: &str| word.parse().or_else(|_| word.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)));
    let servers = words.into_iter().map(|word| match read(word) {
        Ok(addr) if addr.port() != 0 && !addr.ip().is_unspecified() => Ok(addr),
        _ => Err(Problem::new("expected addresses such as `192.0.2.53`, `192.0.2.53:5353` or `[2001:db8::53]:53`")),
    });
    servers.collect()
}
