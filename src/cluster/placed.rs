//! Calls to actors that the ring places, in bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::Error;
use crate::types::{ClassName, NodeId};

/// Longest key of a placed actor, in bytes.
pub const PLACED_KEY_BYTES_MAX: usize = 256;
/// Keys that one answer to a question for them names.
pub const PLACED_KEYS_MAX: usize = 1_000;

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

/// Which placed actors are asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlacedSearch {
    /// Their kind.
    pub kind: ClassName,
    /// Only keys behind this one, in the order of their bytes.
    #[serde(default)]
    pub after: Option<String>,
}

/// A placed actor of which somebody knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacedInfo {
    /// Its key.
    pub key: String,
    /// The control node that hosts it, or is to.
    pub node: NodeId,
    /// Whether it lives there. Otherwise there is a record of it, from which it is to go on.
    pub is_alive: bool,
    /// Why it could not be started, if that was tried in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Error>,
}

/// Placed actors of one kind, and the control nodes that did not answer in time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlacedKeys {
    /// In the order of their keys, at most [`PLACED_KEYS_MAX`]. Of kinds that are not durable only those that live.
    pub actors: Vec<PlacedInfo>,
    /// Whether there are others behind the last one.
    #[serde(default)]
    pub has_more: bool,
    /// Control nodes that did not answer. What they alone know of is missing.
    #[serde(default)]
    pub silent: Vec<NodeId>,
}

impl PlacedKeys {
    /// Adds what another control node knows: of a key that both know, whoever hosts it is right, or else whoever has tried.
    pub(crate) fn join(&mut self, other: Self) {
        self.has_more |= other.has_more;
        let mut actors: BTreeMap<String, PlacedInfo> = BTreeMap::new();
        for info in std::mem::take(&mut self.actors).into_iter().chain(other.actors) {
            let weight = |info: &PlacedInfo| (info.is_alive, info.problem.is_some());
            match actors.get(&info.key) {
                Some(known) if weight(known) >= weight(&info) => {}
                _ => drop(actors.insert(info.key.clone(), info)),
            }
        }
        self.actors = actors.into_values().collect();
        self.cut();
    }

    /// Keeps no more than one answer may name. Whoever has more than that names at least all those before its last one, so nothing is missing before the cut.
    pub(crate) fn cut(&mut self) {
        self.has_more |= self.actors.len() > PLACED_KEYS_MAX;
        self.actors.truncate(PLACED_KEYS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    fn info(key: usize, node: &str, is_alive: bool) -> PlacedInfo {
        PlacedInfo { key: format!("{key:06}"), node: NodeId::new(node).expect("valid"), is_alive, problem: None }
    }

    #[test]
    fn whoever_hosts_an_actor_is_right_and_then_whoever_has_tried_to() {
        let problem = Some(Error::new(ErrorCode::Busy, "full"));
        let tried = PlacedInfo { problem, ..info(2, "c2", false) };
        let (host, guess) = (info(1, "c1", true), |key| info(key, "c3", false));
        let known = [vec![host.clone(), guess(2)], vec![guess(1), tried.clone()], vec![guess(1), guess(2), guess(3)]];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut all = PlacedKeys::default();
            order.into_iter().for_each(|at| all.join(PlacedKeys { actors: known[at].clone(), ..PlacedKeys::default() }));
            assert_eq!(all, PlacedKeys { actors: vec![host.clone(), tried.clone(), guess(3)], ..PlacedKeys::default() });
        }
    }

    #[test]
    fn page_by_page_every_key_is_named_once() {
        // Each node knows every second or third one, and two know many.
        let nodes = [2, 3, 1].map(|step| (0..5_000).step_by(step).map(|key| info(key, "c1", true)).collect::<Vec<_>>());
        let (mut keys, mut after) = (Vec::new(), None::<String>);
        loop {
            let mut page = PlacedKeys::default();
            for node in &nodes {
                let actors = node.iter().filter(|info| after.as_ref().is_none_or(|after| info.key > *after));
                let mut answer = PlacedKeys { actors: actors.take(PLACED_KEYS_MAX + 1).cloned().collect(), ..PlacedKeys::default() };
                answer.cut();
                page.join(answer);
            }
            assert!(page.actors.len() <= PLACED_KEYS_MAX);
            keys.extend(page.actors.into_iter().map(|info| info.key));
            after = keys.last().cloned();
            if !page.has_more {
                break;
            }
        }
        assert!(keys.into_iter().eq((0..5_000).map(|key| format!("{key:06}"))));
    }
}
