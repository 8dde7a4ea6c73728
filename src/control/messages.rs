//! What control nodes say to each other: everything that crosses from one to another stands here.
//!
//! It travels as the payload of a call with the verb `peer` on channel 0 of a control link, as named MessagePack, whose unknown fields are tolerated: nodes of
//! different releases work together during a rolling upgrade. A request that a node does not know is answered `unknown_request`.
//!
//! Version 1: the first.

use serde::{Deserialize, Serialize};

use super::placed::{Belongings, Record};
use crate::cluster::{NodeInfo, NodesReply, PlacedAnswer, PlacedCall, PlacedKey};
use crate::types::NodeId;

/// A question of another control node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PeerRequest {
    /// The workers whose proxies are there, if they match a selector.
    Nodes {
        #[serde(default)]
        select: Option<String>,
    },
    /// What is known there of one worker.
    Info { node: NodeId },
    /// A message for a placed actor that should live there.
    Placed(Box<PlacedCall>),
    /// An actor that belongs there and comes from here.
    Arrive(Box<Belongings>),
    /// A copy to be kept for the case that we die.
    Keep(Box<Belongings>),
    /// What is known there of an actor that starts here; a live one ends there.
    Surrender { key: PlacedKey, hash: u64 },
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PeerReply {
    /// Of `nodes`.
    Nodes(NodesReply),
    /// Of `info`.
    Info(Option<Box<NodeInfo>>),
    /// Of `placed`.
    Placed(PlacedAnswer),
    /// Of `surrender`.
    Surrendered {
        #[serde(default)]
        record: Option<Record>,
    },
    /// Nothing to tell.
    Done,
}
