//! What members say to each other: envelopes of a version, as named MessagePack behind one byte with the version.
//!
//! Every envelope names who sent it, in which life, and the number that the receiver gave to the session: so nothing that comes late, from a session that was given
//! up or to a life that has ended, is ever taken for news. Unknown fields are tolerated, and unknown states of a row are kept apart, so that nodes of different
//! releases work together.
//!
//! Version 1: the first.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::types::{Incarnation, NodeId, NodeUri};

/// The byte in front.
const VERSION: u8 = 1;
/// Nesting of an envelope.
const DEPTH_MAX: usize = 32;
/// Control nodes of a cluster.
pub(crate) const NODES_MAX: usize = 128;
/// Addresses of one node.
pub(crate) const LISTEN_MAX: usize = 16;
/// Bytes of one envelope, which fits into a frame.
pub(crate) const ENVELOPE_BYTES_MAX: usize = 60 * 1024;
/// Rows are packed into envelopes of about this size.
const ROWS_BYTES: usize = 32 * 1024;
/// Entries of a summary: rows or tombstones.
const ENTRIES_MAX: usize = 1024;
/// Bytes of the name of a version of the program.
const PROGRAM_BYTES_MAX: usize = 64;

/// What a node is in the cluster, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RowState {
    /// It owns its part of the ring.
    Joined,
    /// It waits for an operator.
    Staged,
    /// It owns nothing any more, and finishes what it has.
    Leaving,
    /// It has stopped as asked, and is expected back.
    Stopped,
    /// It is no member any more, whether it runs or not.
    Left,
    /// A state of a newer release.
    #[serde(other)]
    Unknown,
}

/// What an operator asks of another node, by way of the row of the node that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OrderKind {
    /// A staged node shall join.
    Join,
    /// A node shall leave for good.
    Leave,
    /// An order of a newer release.
    #[serde(other)]
    Unknown,
}

/// An order to one life of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) kind: OrderKind,
}

/// What a node says of itself; only it writes it, and everybody passes it on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Grows from one life of a node to the next; told, never measured.
    pub(crate) generation: u64,
    /// Grows with every change of the row.
    pub(crate) version: u64,
    /// Version of the program.
    #[serde(default)]
    pub(crate) program: String,
    #[serde(default)]
    pub(crate) listen: Vec<NodeUri>,
    pub(crate) state: RowState,
    /// The nodes that it hears directly, each with the life that it hears.
    #[serde(default)]
    pub(crate) heard: BTreeMap<NodeId, Incarnation>,
    #[serde(default)]
    pub(crate) orders: Vec<Order>,
}

impl Row {
    /// Bytes of the row in an envelope, about.
    fn bytes(&self) -> usize {
        let listen: usize = self.listen.iter().map(|uri| uri.to_string().len() + 4).sum();
        let heard: usize = self.heard.keys().map(|id| id.as_str().len() + 40).sum();
        let orders: usize = self.orders.iter().map(|order| order.node.as_str().len() + 80).sum();
        256 + listen + heard + orders
    }

    fn is_bounded(&self) -> bool {
        self.listen.len() <= LISTEN_MAX
            && self.heard.len() <= NODES_MAX
            && self.orders.len() <= NODES_MAX
            && self.program.len() <= PROGRAM_BYTES_MAX
            && self.bytes() <= ROWS_BYTES
    }
}

/// Every life of this node up to a generation is forgotten.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
}

/// Which version of which row somebody has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known(pub(crate) NodeId, pub(crate) Incarnation, pub(crate) u64);

/// The first words on a session, and again whenever one side begins anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// What the other side shall write on whatever it sends from now on.
    pub(crate) number: u64,
    /// The number of the other side's hello, if there was one.
    #[serde(default)]
    pub(crate) answer: Option<u64>,
    pub(crate) generation: u64,
    pub(crate) ring_size: u16,
}

/// What an envelope holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Body {
    Hello(Hello),
    /// I live, and this is the digest of all that I know.
    Heartbeat {
        digest: u64,
    },
    /// What I know, because our digests differ: send me what I lack.
    Summary {
        rows: Vec<Known>,
        #[serde(default)]
        forgotten: Vec<Tombstone>,
    },
    /// News.
    Rows {
        rows: Vec<Row>,
        #[serde(default)]
        forgotten: Vec<Tombstone>,
    },
    /// We cannot be members of one cluster; the session ends.
    Refused {
        reason: Error,
    },
}

/// One message between two members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) from: NodeId,
    pub(crate) incarnation: Incarnation,
    /// The number that the receiver gave to the session; of no meaning in a hello.
    pub(crate) to: u64,
    pub(crate) body: Body,
}

impl Envelope {
    /// As it travels.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = vec![VERSION];
        rmp_serde::encode::write_named(&mut bytes, self).expect("plain structs of strings and numbers always encode into memory");
        bytes.into()
    }

    /// From its bytes.
    ///
    /// # Errors
    /// `unsupported_version`, or `protocol_error` for what is too large or cannot be read.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let wrong = |what: &str| Error::new(ErrorCode::ProtocolError, format!("an envelope of membership {what}"));
        let body = match bytes.split_first() {
            _ if bytes.len() > ENVELOPE_BYTES_MAX => return Err(wrong("is too large")),
            Some((&VERSION, body)) => body,
            Some((version, _)) => {
                let what = format!("an envelope of membership has version {version}, this node knows {VERSION}; upgrade it");
                return Err(Error::new(ErrorCode::UnsupportedVersion, what));
            }
            None => return Err(wrong("is empty")),
        };
        let mut decoder = rmp_serde::Deserializer::from_read_ref(body);
        decoder.set_max_depth(DEPTH_MAX);
        let envelope = Self::deserialize(&mut decoder).map_err(|_| wrong("cannot be read"))?;
        let is_bounded = match &envelope.body {
            Body::Rows { rows, forgotten } => rows.iter().all(Row::is_bounded) && forgotten.len() <= ENTRIES_MAX,
            Body::Summary { rows, forgotten } => rows.len() <= ENTRIES_MAX && forgotten.len() <= ENTRIES_MAX,
            Body::Hello(_) | Body::Heartbeat { .. } | Body::Refused { .. } => true,
        };
        if is_bounded { Ok(envelope) } else { Err(wrong("has more than it may")) }
    }
}

/// Rows in as few bodies as fit.
pub(crate) fn packed(rows: impl IntoIterator<Item = Row>, forgotten: Vec<Tombstone>) -> Vec<Body> {
    let mut bodies = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let more = row.bytes();
        if bytes + more > ROWS_BYTES && !batch.is_empty() {
            bodies.push(Body::Rows { rows: std::mem::take(&mut batch), forgotten: Vec::new() });
            bytes = 0;
        }
        bytes += more;
        batch.push(row);
    }
    if !batch.is_empty() {
        bodies.push(Body::Rows { rows: batch, forgotten: Vec::new() });
    }
    for part in forgotten.chunks(256) {
        bodies.push(Body::Rows { rows: Vec::new(), forgotten: part.to_vec() });
    }
    bodies
}

#[cfg(test)]
mod tests;
