//! Ranges of addresses, for rules about who is who.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::text;
use crate::error::{Error, ErrorCode, Result};

/// One address, or all that share a prefix: `10.0.0.5`, `10.0.0.0/8`, `fd00::/8` (CIDR, RFC 4632 and RFC 4291 §2.3).
///
/// An IPv4 address that arrives in IPv6 form (`::ffff:10.0.0.5`) is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    /// The bits behind the prefix are zero.
    first: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// The range of the addresses whose first `prefix` bits are those of `ip`; none if the address has fewer bits.
    pub fn new(ip: IpAddr, prefix: u8) -> Option<Self> {
        if prefix > bits_of(ip) {
            return None;
        }
        let first = match ip {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into(),
        };
        Some(Self { first, prefix })
    }

    /// Whether the address is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = match self.first {
            IpAddr::V4(_) => ip.to_canonical(),
            IpAddr::V6(_) => ip,
        };
        bits_of(ip) == bits_of(self.first) && Self::new(ip, self.prefix).is_some_and(|range| range.first == self.first)
    }

    /// Whether it is every address of its family.
    pub fn is_everybody(&self) -> bool {
        self.prefix == 0
    }
}

fn bits_of(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl FromStr for IpRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let text = text::excerpt(text, 64);
            Error::new(ErrorCode::SyntaxError, format!("{text:?} is neither an address nor a range such as `10.0.0.0/8`"))
        };
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            None => bits_of(ip),
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
        };
        Self::new(ip, prefix).ok_or_else(wrong)
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix == bits_of(self.first) {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}/{}", self.first, self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> IpRange {
        text.parse().expect("a range")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn range_has_its_addresses_and_no_others() {
        for (text, inside, outside) in [
            ("10.0.0.5", "10.0.0.5", "10.0.0.6"),
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.9.9.9/8", "10.0.0.0", "9.255.255.255"),
            ("192.168.1.128/25", "192.168.1.129", "192.168.1.127"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("::/0", "2001:db8::1", "203.0.113.1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
        ] {
            assert!(range(text).contains(ip(inside)), "{text} {inside}");
            assert!(!range(text).contains(ip(outside)), "{text} {outside}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "example.org", "10.0.0.0 /8"] {
            assert_eq!(text.parse::<IpRange>().expect_err(text).code(), &ErrorCode::SyntaxError);
        }
    }

    proptest! {
        #[test]
        fn range_returns_from_its_text_and_has_its_own_address(bits: u128, prefix in 0u8..=128, is_v4: bool) {
            let ip: IpAddr = if is_v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() };
            let Some(range) = IpRange::new(ip, prefix) else {
                prop_assert!(is_v4 && prefix > 32);
                return Ok(());
            };
            prop_assert_eq!(range.to_string().parse(), Ok(range));
            prop_assert!(range.contains(ip));
        }
    }
}
