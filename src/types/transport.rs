//! Ways to carry a link.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text;
use crate::error::{Error, ErrorCode, Result};

/// How bytes travel between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// SCTP, where the kernel has it.
    Sctp,
    /// WebSocket over plain TCP.
    Ws,
    /// WebSocket over TLS.
    Wss,
    /// QUIC over UDP.
    Quic,
    /// Within one process, for simulations and tests; names are those of the simulated network.
    Memory,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Transport; 7] =
        [Transport::Tcp, Transport::Tls, Transport::Sctp, Transport::Ws, Transport::Wss, Transport::Quic, Transport::Memory];

    /// Name in URLs, in the identity of a link (`tls:127.0.0.1:15002`) and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Sctp => "sctp",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
            Transport::Quic => "quic",
            Transport::Memory => "memory",
        }
    }

    /// Port of a URL that names none (checklist N3.1); 0 for [`Transport::Memory`], where the network chooses.
    pub fn default_port(self) -> u16 {
        match self {
            Transport::Tcp | Transport::Sctp => 1972,
            Transport::Tls => 1973,
            Transport::Ws => 1974,
            Transport::Wss => 1975,
            Transport::Quic => 1976,
            Transport::Memory => 0,
        }
    }

    /// Whether links are encrypted and can be bound to their channel (RFC 9266).
    pub fn is_encrypted(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss | Transport::Quic)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Transport {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|transport| transport.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let (name, names) = (text::excerpt(name, 64), Self::ALL.map(Self::name).join(", "));
            Error::new(ErrorCode::InvalidTransport, format!("unknown transport {name:?}, expected one of {names}"))
        })
    }
}

impl Serialize for Transport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Transport {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::parse(deserializer, "a transport")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_ports_are_those_of_the_original() {
        let ports = Transport::ALL.map(|transport| (transport.name(), transport.default_port()));
        let expected = [("tcp", 1972), ("tls", 1973), ("sctp", 1972), ("ws", 1974), ("wss", 1975), ("quic", 1976), ("memory", 0)];
        assert_eq!(ports, expected);
    }

    #[test]
    fn transport_returns_from_its_name() {
        for transport in Transport::ALL {
            assert_eq!(transport.name().parse(), Ok(transport));
            assert_eq!(transport.name().to_uppercase().parse(), Ok(transport));
        }
        let error = "udp".parse::<Transport>().expect_err("is unknown");
        assert_eq!(error.code(), &ErrorCode::InvalidTransport);
        assert!(error.message().contains("\"udp\""), "{error}");
    }
}
