//! Calls to actors that the ring places, in bytes.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use crate::types::ClassName;

/// Longest key of a placed actor, in bytes.
pub const PLACED_KEY_BYTES_MAX: usize = 256;

/// Names one placed actor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PlacedKey {
    /// Its kind.
    pub kind: ClassName,
    /// Its key within the kind.
    #[serde(deserialize_with = "bounded_key")]
    pub key: String,
}

impl std::fmt::Display for PlacedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.key)
    }
}

fn bounded_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let key = String::deserialize(deserializer)?;
    match key.len() <= PLACED_KEY_BYTES_MAX {
        true => Ok(key),
        false => Err(serde::de::Error::custom(format_args!("a key has at most {PLACED_KEY_BYTES_MAX} bytes"))),
    }
}

/// A message for one placed actor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlacedCall {
    /// Whom it is for.
    pub key: PlacedKey,
    /// Where that lives: the hash of its placement, which its kind may choose.
    pub hash: u64,
    /// MessagePack of the kind.
    #[serde(with = "serde_bytes")]
    pub message: Vec<u8>,
}

/// The answer, in bytes of the kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlacedAnswer(#[serde(with = "serde_bytes")] Vec<u8>);

impl From<Bytes> for PlacedAnswer {
    fn from(bytes: Bytes) -> Self {
        Self(bytes.into())
    }
}

impl From<PlacedAnswer> for Bytes {
    fn from(answer: PlacedAnswer) -> Self {
        answer.0.into()
    }
}
