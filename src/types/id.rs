//! Names and incarnations.
//!
//! A name is text that people type, scripts split and logs show, so it is short, visible ASCII without any character that URLs, selectors, label lists or shells would
//! read as their own. A name never changes its meaning; what changes at every start of a node is its [`Incarnation`].

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text;
use crate::error::{Error, ErrorCode, Result};

macro_rules! names {
    ($($(#[doc = $doc:literal])+ $name:ident, $what:literal, $max:literal;)+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Longest name, in bytes.
            pub const MAX_BYTES: usize = $max;

            /// Checks the name; `invalid_name` if it is empty, too long, or has a character outside `[A-Za-z0-9._:-]`.
            pub fn new(name: impl AsRef<str>) -> Result<Self> {
                let name = name.as_ref();
                check_name($what, name, Self::MAX_BYTES)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text::parse(deserializer, concat!("a ", $what))
            }
        }
    )+};
}

names! {
    /// Name of a node, unique in its cluster among the nodes that are alive.
    NodeId, "node id", 64;
    /// Name of a task, unique within its class on its worker.
    TaskId, "task id", 128;
    /// Name of a job class.
    ClassName, "class name", 64;
}

fn check_name(what: &str, name: &str, max: usize) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    let problem = if name.is_empty() {
        format!("a {what} must not be empty")
    } else if name.len() > max {
        format!("a {what} has at most {max} bytes, this one {}", name.len())
    } else if let Some(bad) = name.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        format!("{what} {name:?} has {bad:?}; allowed are letters, digits and . _ : -")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorCode::InvalidName, problem))
}

/// One run of one node: 128 random bits drawn at its start.
///
/// Ordered and compared as bytes. All zero means "none": the value of a peer that has not said its own.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation([u8; 16]);

impl Incarnation {
    /// No incarnation.
    pub const NONE: Self = Self([0; 16]);

    /// The incarnation of these bits; whoever starts a node draws them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bits.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// `true` if no incarnation was said.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", u128::from_be_bytes(self.0) >> 96)
    }
}

impl FromStr for Incarnation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bits = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        bits.map(|bits| Self(bits.to_be_bytes())).ok_or_else(|| {
            let text = text::excerpt(text, 40);
            Error::new(ErrorCode::InvalidName, format!("incarnation {text:?} is not 32 hexadecimal digits"))
        })
    }
}

impl Serialize for Incarnation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Text is read in binary formats too: a payload that was born as JSON has it.
        struct Bits;

        impl Visitor<'_> for Bits {
            type Value = Incarnation;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("16 bytes or 32 hexadecimal digits")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Incarnation, E> {
                match bytes.try_into() {
                    Ok(bits) => Ok(Incarnation(bits)),
                    Err(_) => match str::from_utf8(bytes) {
                        Ok(text) => self.visit_str(text),
                        Err(_) => Err(E::invalid_length(bytes.len(), &self)),
                    },
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Incarnation, E> {
                text.parse().map_err(E::custom)
            }
        }

        if deserializer.is_human_readable() { deserializer.deserialize_str(Bits) } else { deserializer.deserialize_bytes(Bits) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_within_the_limits_are_taken() {
        for name in ["a", "dev1", "A.b_c:d-9", "0", &"x".repeat(64)] {
            assert_eq!(NodeId::new(name).expect("is valid").as_str(), name);
        }
        assert!(TaskId::new("x".repeat(128)).is_ok());
    }

    #[test]
    fn other_names_are_invalid() {
        for name in ["", " ", "a b", "a/b", "a,b", "ä", "a\n", "*", &"x".repeat(65)] {
            let error = NodeId::new(name).expect_err("is invalid");
            assert_eq!(error.code(), &ErrorCode::InvalidName, "{name:?}");
            assert!(rmp_serde::from_slice::<ClassName>(&rmp_serde::to_vec(name).expect("encodes")).is_err());
        }
        assert!(TaskId::new("x".repeat(129)).is_err());
    }

    #[test]
    fn name_is_found_in_a_map_by_its_text() {
        let map = std::collections::BTreeMap::from([(NodeId::new("a").expect("is valid"), 1)]);
        assert_eq!(map.get("a"), Some(&1));
    }

    #[test]
    fn incarnation_is_bytes_in_binary_and_hex_for_people() {
        let incarnation = Incarnation::from_bytes(*b"\x00\x01abcdefghijklmn");
        let binary = rmp_serde::to_vec(&incarnation).expect("encodes");
        assert_eq!(binary.len(), 2 + 16);
        assert_eq!(rmp_serde::from_slice::<Incarnation>(&binary).expect("decodes"), incarnation);
        let json = serde_json::to_string(&incarnation).expect("encodes");
        assert_eq!(json, format!("\"{incarnation}\""));
        assert_eq!(serde_json::from_str::<Incarnation>(&json).expect("decodes"), incarnation);
        let as_text = rmp_serde::to_vec(&incarnation.to_string()).expect("encodes");
        assert_eq!(rmp_serde::from_slice::<Incarnation>(&as_text).expect("decodes"), incarnation);
    }

    #[test]
    fn incarnation_of_another_length_is_refused() {
        for text in ["", "00", &"0".repeat(33), &"x".repeat(32), &format!("+{}", "0".repeat(31))] {
            assert!(text.parse::<Incarnation>().is_err(), "{text}");
        }
        let bytes = rmp_serde::to_vec(serde_bytes::Bytes::new(&[0xff; 17])).expect("encodes");
        assert!(rmp_serde::from_slice::<Incarnation>(&bytes).is_err());
        assert!(Incarnation::default().is_none());
    }

    proptest! {
        #[test]
        fn incarnation_returns_from_its_text(bytes: [u8; 16]) {
            let incarnation = Incarnation::from_bytes(bytes);
            prop_assert_eq!(incarnation.to_string().parse::<Incarnation>(), Ok(incarnation));
            prop_assert_eq!(incarnation.to_string().len(), 32);
        }

        #[test]
        fn name_returns_from_the_wire(name in "[A-Za-z0-9._:-]{1,64}") {
            let id = NodeId::new(&name).expect("is valid");
            let bytes = rmp_serde::to_vec(&id).expect("encodes");
            prop_assert_eq!(rmp_serde::from_slice::<NodeId>(&bytes).expect("decodes"), id);
        }
    }
}
