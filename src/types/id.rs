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
