//! Small values by which control nodes and workers know each other's doings again.
//!
//! A call keeps its [`CallIdentity`] over every retry, so that a worker which has already carried
//! it out answers the same instead of doing it twice. An adoption carries a [`Rank`], which makes
//! two control nodes that both believe to own a worker agree on the one with the larger view, and
//! may carry a [`Ticket`], which the present holder passes on to its successor.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;

use crate::types::Incarnation;

/// Identity of a call: the control node at which it entered the cluster, and a number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallIdentity {
    /// Incarnation of the control node whose handle made the call.
    pub edge: Incarnation,
    /// Grows by one with each call of that edge, whichever worker it goes to.
    pub number: u64,
}

impl fmt::Display for CallIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.edge, self.number)
    }
}

/// Claim of a control node to a worker. The higher one wins: first the size of the view, then the
/// hash, so that of two nodes with equal views always the same one gives way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rank {
    /// Number of control nodes that the owner sees, itself included.
    pub view: u32,
    /// Hash of owner and partition.
    pub hash: u64,
}

/// 128 random bits that prove to a worker that its holder wants a successor.
///
/// `Debug` never shows the bits, and the comparison takes the same time wherever they differ.
#[derive(Clone, Copy)]
pub struct Ticket([u8; 16]);

impl Ticket {
    /// A ticket of random bytes, or one that arrived.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be passed on in a hand-over only.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Ticket {}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(***)")
    }
}

impl Serialize for Ticket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Ticket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_bytes::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_compares_the_view_before_the_hash() {
        let rank = |view, hash| Rank { view, hash };
        assert!(rank(3, 0) > rank(2, u64::MAX));
        assert!(rank(2, 8) > rank(2, 7));
    }

    #[test]
    fn ticket_travels_as_sixteen_bytes_and_never_shows_itself() {
        let ticket = Ticket::from_bytes([7; 16]);
        let bytes = rmp_serde::to_vec_named(&ticket).expect("encodes");
        assert_eq!(bytes[..2], [0xc4, 16], "MessagePack bin 8 of 16 bytes");
        assert_eq!(rmp_serde::from_slice::<Ticket>(&bytes).expect("decodes"), ticket);
        assert!(rmp_serde::from_slice::<Ticket>(&bytes[..9]).is_err());
        assert_eq!(format!("{ticket:?}"), "Ticket(***)");
        assert_ne!(ticket, Ticket::from_bytes([8; 16]));
    }

    #[test]
    fn identity_reads_edge_and_number() {
        let identity = CallIdentity { edge: Incarnation::from_bytes([0xab; 16]), number: 7 };
        assert_eq!(identity.to_string(), format!("{}/7", "ab".repeat(16)));
        let bytes = rmp_serde::to_vec_named(&identity).expect("encodes");
        assert_eq!(rmp_serde::from_slice::<CallIdentity>(&bytes).expect("decodes"), identity);
    }
}
