//! Who does a batch, and for which time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Digits of a run id.
const RUN_ID_CHARS: usize = 20;

/// Names one run of a copy, sync or move: twenty lower-case letters and digits, so that it can stand in any file name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId([u8; RUN_ID_CHARS]);

impl RunId {
    /// A new one from random bytes.
    pub fn from_random(bytes: [u8; RUN_ID_CHARS]) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self(bytes.map(|byte| ALPHABET[usize::from(byte % 32)]))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("letters and digits, by construction")
    }
}

/// Why a text is no run id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no run id: twenty lower-case letters or digits")]
pub struct RunIdError(String);

impl FromStr for RunId {
    type Err = RunIdError;

    fn from_str(text: &str) -> Result<Self, RunIdError> {
        let bytes: Option<[u8; RUN_ID_CHARS]> = text.as_bytes().try_into().ok();
        let is_valid = |bytes: &[u8; RUN_ID_CHARS]| bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        bytes.filter(is_valid).map(Self).ok_or_else(|| RunIdError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One attempt at one batch of a run. A batch that was taken from its worker is offered again as the next attempt; whatever the earlier one still does is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// The run.
    pub run: RunId,
    /// Number of the batch in the run, from 0.
    pub batch: u64,
    /// From 0; one more each time the batch is offered again.
    pub attempt: u32,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.run, self.batch, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_returns_from_its_text_and_nothing_else_is_one() {
        let id = RunId::from_random(std::array::from_fn(|at| (at * 37) as u8));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(serde_json::from_str::<RunId>(&serde_json::to_string(&id).expect("text")).expect("the same"), id);
        for text in ["", "short", "ABCDEFGHIJKLMNOPQRST", "../../../etc/passwd0", "aaaaaaaaaaaaaaaaaaaaa"] {
            assert!(text.parse::<RunId>().is_err(), "{text:?}");
        }
    }
}
